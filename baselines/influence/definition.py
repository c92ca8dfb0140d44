r"""Influence functions: what leaving an example out would do to the parameters, by one Newton step.

A trained model minimises the mean loss over n examples. Take example i's share away, ``L(z_i) / n``, and the minimum
moves; a quadratic model of the loss says where to: by ``H^-1 grad L(z_i) / n``, with H the Hessian of the mean loss.
So having example i changes the target f of a query by

    score(q, i) = - grad f(q)' (H + ridge)^-1 grad L(z_i) / n

which is positive where the example raises the target. All four solvers here compute this number, with its factor 1 / n,
and agree up to how far they converge.

Two things make it work for networks. The Hessian of a network has negative eigenvalues, so its Gauss-Newton part stands
for it (``curvature``); for logistic regression the two are the same. And almost all eigenvalues are near zero, so that
a ridge decides how far noise is amplified: it is ``damping`` times the mean diagonal of the Gauss-Newton part, for one
grid to fit all tasks and members. Weight decay is a ridge, too, and is not added otherwise.

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

# The queries' gradients and their solutions are held up to this; solvers work on blocks of the second size.
_MOST_BYTES = 1 << 30
_BLOCK_BYTES = 128 << 20


@dataclass(frozen=True)
class Influence(tdabench.MemberMethod):
    """What the solvers share: options, and everything around the solution of the linear systems."""

    damping: float = tdabench.option(
        1.0,
        "ridge, relative to the mean diagonal of the Gauss-Newton matrix",
        low=0,
        tune=(0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0),
    )
    curvature: Literal["gauss-newton", "hessian"] = tdabench.option(
        "gauss-newton", "gauss-newton: positive semi-definite; hessian: with the curvature of the network itself"
    )
    layers: Literal["all", "last"] = tdabench.option("all", "all parameters, or those of the last linear layer")

    def supports(self, task: tdabench.TaskView) -> str | None:
        """Need a linear layer for ``layers=last``; whether all fits in memory is known at the member, in fit."""
        if self.layers == "last" and not task.has_linear_layers:
            return f"the model of {task.name} has no linear layer"
        return None

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

    def ridge(self, member: tdabench.Member) -> float:
        """Return what is added to the diagonal at a member."""
        return self.damping * member.hessian(member.task.training).mean_diagonal()

    def _query_gradients(self, member: tdabench.Member) -> tuple[Tensor, ...]:
        """Return the queries' gradients, ``[m, P]`` a block."""
        size = sum(p.numel() for p in member.parameters.values())
        needed = 4 * size * member.task.n_queries
        if needed > _MOST_BYTES:
            raise tdabench.Declined(
                f"gradients of {member.task.n_queries:,} queries with respect to {size:,} parameters take "
                f"{needed / 1e9:,.1f} GB; up to {_MOST_BYTES / 1e9:.1f} GB are held. Take --set layers=last."
            )
        gradients = member.gradients(member.task.queries, of="target").dense()  # [n_queries, P]
        return gradients.split(max(1, _BLOCK_BYTES // (4 * size)))
