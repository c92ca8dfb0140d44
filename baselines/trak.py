"""TRAK: linearise the model at its final parameters, and do exact attribution in the linear model.

At the trained parameters a network is close to linear in them, with each example's gradient of the log-odds as its
features. For a linear (logistic) model the influence of an example is known in closed form: the inverse of the
features' second moment, times the example's features, times how wrong the model is on it (Q = 1 - p).

On sequences the target is the mean log-probability of the tokens, and Q is one minus the geometric mean of the tokens'
probabilities: what their log-odds would have. The paper's soft threshold, which sets small scores to zero, is left out.

Gradients are too long to invert anything, so they are randomly projected first; and the projected second moment is
badly conditioned, so a ridge is added, relative to its mean diagonal. Without the ridge a single model's LDS
roughly halves.

Over an ensemble, TRAK averages the projected kernels and the Q factors apart and multiplies the means (Park et al.,
algorithm 1), which is not the mean of the members' scores.

Source: Park et al. 2023, "TRAK: Attributing Model Behavior at Scale".
Cost per member: one gradient pass over the training set and one over the queries, the projection, one Cholesky
factorisation of size ``projection``. Storage per member: one number per training example and projected dimension.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

import tdabench


@dataclass(frozen=True)
class TrakState:
    """What serving needs: the projected training features times the inverse kernel, and the Q factor."""

    features: Tensor  # [n_train, projection]
    q: Tensor  # [n_train]


@dataclass(frozen=True)
class Trak(tdabench.MemberMethod):
    """Kernel of randomly projected log-odds gradients, with a ridge, times one minus the right probability."""

    projection: int = tdabench.option(512, "dimensions of the random projection", low=1, tune=(512, 1024, 2048))
    ridge: float = tdabench.option(
        1.0,
        "ridge, relative to the mean diagonal of the kernel",
        low=0,
        tune=(0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0),
    )

    uses_q = True
    uses_projection = True

    def work(self, sizes: tdabench.Sizes) -> tdabench.Work:
        """Project both sides, factor the kernel, solve for the training set and multiply every pair."""
        n, k = sizes.n_train, self.projection
        solving = tdabench.Counts(products=2 * 3 * n * k**2, held=6 * n * k)  # in float64
        q = tdabench.Counts(forward=n * sizes.q_members)
        pairs = tdabench.Counts(products=sizes.n_scores * k, held=3 * sizes.n_scores)
        return tdabench.Work(
            fit=sizes.project(n, k) + tdabench.Counts.cholesky(k) + solving + q,
            attribute=sizes.project(sizes.n_queries, k) + pairs,
            state=n * k + n,
        )

    def fit(self, member: tdabench.Member) -> TrakState:
        """Project the training gradients and solve with their second moment."""
        features = self._features(member, member.task.training)  # [n_train, projection]
        kernel = features.double().T @ features.double()  # [projection, projection]
        kernel.diagonal().add_(self.ridge * kernel.diagonal().mean())
        factor, info = torch.linalg.cholesky_ex(kernel)
        if info.item() != 0:
            raise tdabench.UsageError(
                f"TRAK's kernel is singular at ridge {self.ridge:g}: give a larger one (--set ridge=0.1) or a smaller "
                f"projection than {self.projection}."
            )
        solved = torch.cholesky_solve(features.double().T, factor).T.to(features.dtype)
        q = torch.stack([1.0 - m.right_probability(member.task.training) for m in member.q_members]).mean(0)
        return TrakState(solved.contiguous(), q)

    def attribute(self, member: tdabench.Member, state: TrakState) -> tuple[Tensor, Tensor]:
        """Return the member's kernel ``[n_queries, n_train]`` and Q factor ``[n_train]``."""
        return self._features(member, member.task.queries) @ state.features.T, state.q

    def combine(self, parts: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
        """Multiply the mean kernel by the mean Q factor."""
        kernel, q = tdabench.mean(parts)
        return kernel * q

    def member_scores(self, part: tuple[Tensor, Tensor]) -> Tensor:
        """Multiply the member's kernel by its own Q factor: what it would say alone."""
        kernel, q = part
        return kernel * q

    def _features(self, member: tdabench.Member, examples: tdabench.Examples) -> Tensor:
        # Every member has its own projection, so its error averages out over the ensemble.
        stream = ("trak", member.task.seed, member.number)
        return member.gradients(examples, of="target").project(self.projection, *stream)
