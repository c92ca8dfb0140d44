r"""Influence functions by LiSSA: the inverse as a sum of powers, each taken on another batch.

For a matrix A with eigenvalues between 0 and ``scale``, ``A^-1 = sum over j of (1 - A / scale)^j / scale``. Horner's
rule turns that into a recursion, and since each step needs a product with the Hessian only once, each may take it over
another small batch of training examples:

    x <- v + x - (H_batch + ridge) x / scale          (then A^-1 v = x / scale)

After ``depth`` steps, a direction of eigenvalue a is solved up to ``(1 - a / scale)^depth``. The eigenvalues of a
network span many orders of magnitude, so the small ones are never reached: stopping is a ridge of about scale / depth.
The noise of the batches comes on top; ``repeat`` independent recursions average it.

The recursion diverges if ``scale`` is below half of the largest eigenvalue that batches show, and is slow if it is far
above. So the largest eigenvalue is found by power iteration on several batches, and the scale is 1.5 times it.

Source: Agarwal et al. 2017, "Second-Order Stochastic Optimization for Machine Learning in Linear Time"; Koh & Liang
2017; see :mod:`tdabench.baselines.influence.definition`.
Cost per member: 32 products over the training set for the damping, ``10 * 10`` over a batch for the scale; per query
``repeat * depth`` over a batch. Storage: two numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import tdabench
from tdabench.baselines.influence.definition import Influence

_PROBED_BATCHES, _POWER_STEPS = 10, 10
_MARGIN = 1.5


@dataclass(frozen=True)
class LissaState:
    """What serving needs: two numbers."""

    ridge: float
    scale: float


@dataclass(frozen=True)
class LissaInfluence(Influence):
    """A stochastic power series, for all queries at once."""

    # Stopping early is a ridge, too, so damping alone would change nothing: all pairs of the two are tried.
    damping: float = tdabench.option(
        10.0, "ridge, relative to the mean diagonal of the Gauss-Newton matrix", low=0, tune=(1.0, 10.0, 100.0)
    )
    depth: int = tdabench.option(200, "steps of the recursion", low=1, tune=(50, 200, 800))
    batch: int = tdabench.option(50, "training examples per step", low=1)
    repeat: int = tdabench.option(1, "independent recursions that are averaged", low=1)

    def solving(self, sizes: tdabench.Sizes) -> tdabench.Work:
        """Find ridge and scale; then a product over a batch for each step, repetition and query."""
        n, m = self.seen(sizes), sizes.n_queries
        batch, at_once = min(self.batch, n), min(m, self._at_once(sizes.n_parameters))
        scale = sizes.curvature(batch, 1, at_once=1) * (_PROBED_BATCHES * _POWER_STEPS)
        steps = sizes.curvature(batch, m, at_once) * ((self.depth - 1) * self.repeat)
        return tdabench.Work(fit=sizes.mean_diagonal(n) + scale, attribute=steps)

    def fit(self, member: tdabench.Member) -> LissaState:
        """Return the ridge, and a scale at which the recursion converges."""
        member = self.at(member)
        ridge = self.ridge(member)
        return LissaState(ridge, _MARGIN * self._largest(member, ridge))

    def solve(self, member: tdabench.Member, state: LissaState, vectors: Tensor) -> Tensor:
        """Return the mean ``[m, P]`` of independent recursions."""
        total = torch.zeros_like(vectors)
        for repeat in range(self.repeat):
            total += self._recursion(member, state, vectors, repeat)
        total.div_(self.repeat * state.scale)
        # Where no step stretches, depth terms add up to at most depth times the vector.
        bounded = total.norm(dim=1) * state.scale <= 1.01 * self.depth * vectors.norm(dim=1)
        if not (total.isfinite().all() and bounded.all()):
            raise tdabench.UsageError(
                f"LiSSA diverged at scale {state.scale:.3g} and ridge {state.ridge:.3g}. Give a larger batch than "
                f"{self.batch}, a larger damping than {self.damping:g}, or --set curvature=gauss-newton."
            )
        return total

    def _recursion(self, member: tdabench.Member, state: LissaState, vectors: Tensor, repeat: int) -> Tensor:
        task = member.task
        hessian = self.hessian(member, state.ridge)
        # The same batches for every block of queries: a score does not depend on which queries come with it.
        random = tdabench.generator("if-lissa", task.seed, member.number, repeat)
        x = vectors.clone()
        for _ in range(self.depth - 1):
            batch = self._batch(hessian, random)
            x = x.sub_(batch.times(x), alpha=1 / state.scale).add_(vectors)
        return x

    def _largest(self, member: tdabench.Member, ridge: float) -> float:
        """Return the largest eigenvalue, in absolute value, over several batches."""
        task = member.task
        hessian = self.hessian(member, ridge)
        random = tdabench.generator("if-lissa", task.seed, member.number, "scale")
        largest = 0.0
        for _ in range(_PROBED_BATCHES):
            matrix = self._batch(hessian, random)
            vector = torch.randn(1, hessian.n_parameters, generator=random).to(task.device)
            for _ in range(_POWER_STEPS):
                vector = matrix.times(vector / vector.norm().clamp(min=1e-30))
            largest = max(largest, float(vector.norm()))
        return max(largest, torch.finfo(torch.float32).tiny)

    def _batch(self, hessian: Any, random: torch.Generator) -> Any:
        """Return the Hessian over a few of its examples, drawn without replacement; all where there are fewer."""
        order = torch.randperm(len(hessian.rows), generator=random)[: self.batch]
        return hessian.on(hessian.rows[order.to(hessian.rows.device)])
