r"""Influence functions: what leaving an example out would do to the parameters, by one Newton step.

A trained model minimises the mean loss over n examples. Take example i's share away, ``L(z_i) / n``, and the minimum
moves; a quadratic model of the loss says where to: by ``H^-1 grad L(z_i) / n``, with H the Hessian of the mean loss.
So having example i changes the target f of a query by

    score(q, i) = - grad f(q)' (H + ridge)^-1 grad L(z_i) / n

which is positive where the example raises the target. All four solvers here compute this number, with its factor 1 / n,
and agree up to how far they converge where the curvature has no negative directions. Where it has some (with
``curvature=hessian``), the explicit solver and Arnoldi's take eigenvalues by their absolute values, CG and LiSSA as
they are.

Two things make it work for networks. The Hessian of a network has negative eigenvalues, so its Gauss-Newton part stands
for it (``curvature``); for logistic regression the two are the same. And almost all eigenvalues are near zero, so that
a ridge decides how far noise is amplified: it is ``damping`` times the mean diagonal of the Gauss-Newton part, for one
grid to fit all tasks and members. Weight decay is a ridge, too, and is not added otherwise.

Solvers multiply by the Hessian, which passes the whole training set for every vector. ``sample`` examples may stand
for it where that is too much, at a price: directions in which none of them curves are left to the ridge.

Gradients under a dropout mask, of an adapter or of the last layer alone give the influence in that smaller model.

Source: Cook 1977; Koh & Liang 2017, "Understanding Black-box Predictions via Influence Functions"; the Gauss-Newton
part: Martens 2020; Bae et al. 2022, "If Influence Functions are the Answer, Then What is the Question?".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

import tdabench

# The queries' gradients are held up to this; solvers work on blocks of the second size, and hold up to eight of them.
# Both are of the default memory budget on a CPU, and grow with what there is.
_MOST_BYTES = 1 << 30
_BLOCK_BYTES = 64 << 20


@dataclass(frozen=True)
class Influence(tdabench.MemberMethod):
    """What the solvers share: options, and everything around the solution of the linear systems."""

    damping: float = tdabench.option(
        10.0,
        "ridge, relative to the mean diagonal of the Gauss-Newton matrix",
        low=0,
        tune=(0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0),
    )
    curvature: Literal["gauss-newton", "hessian"] = tdabench.option(
        "gauss-newton", "gauss-newton: positive semi-definite; hessian: with the curvature of the network itself"
    )
    layers: Literal["all", "last"] = tdabench.option("all", "all parameters, or those of the linear layer called last")
    sample: int | None = tdabench.option(
        None, "training examples that the Hessian is averaged over; all if none", low=1
    )

    def supports(self, task: tdabench.TaskView) -> str | None:
        """Need a linear layer for ``layers=last``; whether all fits in memory is known at the member, in fit."""
        if self.layers == "last" and not task.has_linear_layers:
            return f"the model of {task.name} has no linear layer"
        return None

    def work(self, sizes: tdabench.Sizes) -> tdabench.Work | None:
        """Add what all solvers do for the queries to what each says it does."""
        sizes = self.sizes(sizes)
        n, m = sizes.n_train, sizes.n_queries
        cuts = -(-m // self._at_once(sizes.n_parameters, sizes.blocks.scale))
        self._check_held(m, sizes.n_parameters, sizes.blocks.scale)
        served = sizes.dense(m) + sizes.times(n, m, uses=cuts, flat=True)
        return self.solving(sizes) + tdabench.Work(attribute=served)

    def solving(self, sizes: tdabench.Sizes) -> tdabench.Work:
        """Return what ``fit`` and ``solve`` do for all queries, as counts."""
        raise NotImplementedError(f"{type(self).__name__} must define solving(sizes).")

    def sizes(self, sizes: tdabench.Sizes) -> tdabench.Sizes:
        """Return the sizes of the member whose parameters are differentiated."""
        if self.layers == "all":
            return sizes
        if sizes.last is None:
            raise tdabench.Declined("the model has no last linear layer to differentiate alone")
        return sizes.last

    def seen(self, sizes: tdabench.Sizes) -> int:
        """Return how many examples the Hessian is averaged over."""
        return sizes.n_train if self.sample is None else min(self.sample, sizes.n_train)

    def solve(self, member: tdabench.Member, state: Any, vectors: Tensor) -> Tensor:
        """Return ``(H + ridge)^-1`` times vectors ``[m, P]``, ``[m, P]``; ``state`` is what ``fit`` returned."""
        raise NotImplementedError(f"{type(self).__name__} must define solve(member, state, vectors).")

    def attribute(self, member: tdabench.Member, state: Any) -> Tensor:
        """Solve for the queries' gradients, of which there are fewer, and multiply by the training examples'."""
        member = self.at(member)
        task = member.task
        training = member.gradients(task.training, of="loss")
        parts = []
        for vectors in self._query_gradients(member):
            solved = self.solve(member, state, vectors)  # [m, P]
            parts.append(training.times(solved).T)
        return torch.cat(parts).div_(-task.n_train)

    def at(self, member: tdabench.Member) -> tdabench.Member:
        """Return the member whose parameters are differentiated."""
        return member.last_layer() if self.layers == "last" else member

    def hessian(self, member: tdabench.Member, ridge: float = 0.0) -> Any:
        """Return the Hessian of the mean loss, over ``sample`` examples if so asked, plus a ridge."""
        task = member.task
        whole = member.hessian(task.training, self.curvature, ridge)
        if self.sample is None or self.sample >= task.n_train:
            return whole
        order = torch.randperm(task.n_train, generator=tdabench.generator("influence", task.seed, member.number))
        return whole.on(order[: self.sample].to(task.device))

    def ridge(self, member: tdabench.Member) -> float:
        """Return what is added to the diagonal at a member."""
        return self.damping * self.hessian(member).mean_diagonal()

    def scale(self, member: tdabench.Member) -> float:
        """Return how large blocks may be, in those of a CPU at the default memory budget."""
        return _scale(member.task.device)

    def _query_gradients(self, member: tdabench.Member) -> tuple[Tensor, ...]:
        """Return the queries' gradients, ``[m, P]`` a block."""
        size = sum(p.numel() for p in member.parameters.values())
        scale = self.scale(member)
        self._check_held(member.task.n_queries, size, scale)
        gradients = member.gradients(member.task.queries, of="target").dense()  # [n_queries, P]
        return gradients.split(self._at_once(size, scale))

    def _at_once(self, size: int, scale: float | None = None) -> int:
        """Return how many queries a block has; ``scale`` is that of blocks, a CPU's if none is given."""
        if scale is None:
            scale = _scale(torch.device("cpu"))
        return max(1, int(scale * _BLOCK_BYTES) // (4 * size))

    def _check_held(self, n_queries: int, size: int, scale: float) -> None:
        needed, most = 4 * size * n_queries, scale * _MOST_BYTES
        if needed > most:
            raise tdabench.Declined(
                f"gradients of {n_queries:,} queries with respect to {size:,} parameters take "
                f"{needed / 1e9:,.1f} GB; up to {most / 1e9:.1f} GB are held. Take --set layers=last."
            )


def _scale(device: torch.device) -> float:
    """Return the size of blocks on a device as a multiple of those on a CPU at the default memory budget."""
    return tdabench.block_bytes(_MOST_BYTES, device) / _MOST_BYTES
