"""LoGra and GraSS: influence functions on gradients that were compressed one layer at a time.

A layer's gradients are shortened to ``k`` numbers, whose second moment is small enough to be inverted as it is. The two
differ in how they shorten. A layer's gradient is a sum of outer products of output gradients and inputs:

LoGra
    projects both factors to ``rank`` dimensions and multiplies what is left: the gradient with respect to a low-rank
    adapter between two random projections. No gradient is ever formed.
GraSS
    keeps a random part of both factors, multiplies that, and adds its numbers up in ``size`` buckets with random signs
    (a sparse Johnson-Lindenstrauss transform): sparse masks first, because most coordinates carry little.

Then score = -q^T (F + ridge I)^-1 z per layer, F the second moment of the compressed training loss gradients.

Sources: Choe et al. 2024, "What is Your Data Worth to GPT?" (LoGra); Hu et al. 2025, "GraSS: Scalable Data Attribution
with Gradient Sparsification and Sparse Projection" (the form called FactGraSS).
Cost per member: one gradient pass over the training set and one over the queries, a Cholesky factorisation of size k a
layer. Storage per member: k numbers per layer and training example; queries need no gradient of the training set.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

import tdabench

Features = dict[str, torch.Tensor]  # [n, k] by layer


class _Compressed(tdabench.MemberMethod):
    """Influence functions on features that :meth:`sketch` makes of a layer's gradients."""

    damping: float
    uses_projection = True

    def sketch(self, member: tdabench.Member) -> Callable[[Any], Any]:
        """Return what draws the compression of a layer; every member has its own."""
        raise NotImplementedError

    def fit(self, member: tdabench.Member) -> Features:
        """Compress the training gradients and solve with their second moment, layer by layer."""
        features = member.gradients(member.task.training, of="loss").sketch(self.sketch(member))
        return {key: self._solved(f) for key, f in features.items()}

    def _solved(self, features: torch.Tensor) -> torch.Tensor:
        moment = features.double().T @ features.double() / len(features)  # [k, k]
        ridge = self.damping * moment.diagonal().mean() + torch.finfo(torch.float32).tiny
        moment.diagonal().add_(ridge)
        factor, info = torch.linalg.cholesky_ex(moment)
        if info.item() != 0:
            raise tdabench.UsageError(
                f"A layer's second moment is singular at damping {self.damping:g}: give a larger one (--set damping=1)."
            )
        return torch.cholesky_solve(features.double().T, factor).T.to(features.dtype).contiguous()

    def attribute(self, member: tdabench.Member, state: Features) -> torch.Tensor:
        """Return ``[n_queries, n_train]``; minus, because training goes down the loss."""
        queries = member.gradients(member.task.queries, of="target").sketch(self.sketch(member))
        scores = torch.zeros(member.task.n_queries, member.task.n_train, device=member.task.device)
        for key, features in queries.items():
            scores.addmm_(features, state[key].T, alpha=-1)
        return scores


_DAMPING = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)


@dataclass(frozen=True)
class LoGra(_Compressed):
    """Influence functions on gradients whose two sides were projected."""

    rank: int = tdabench.option(16, "dimensions that each side of a layer is projected to", low=1, tune=(8, 16, 32))
    damping: float = tdabench.option(
        0.1, "ridge of each layer, relative to the mean diagonal of its second moment", low=0, tune=_DAMPING
    )

    def sketch(self, member: tdabench.Member) -> Callable[[Any], Any]:
        """Draw normal projections of both sides."""
        return tdabench.kronecker_sketch(self.rank, "logra", member.task.seed, member.number)


@dataclass(frozen=True)
class Grass(_Compressed):
    """Influence functions on sparse sums of a random part of the gradients."""

    size: int = tdabench.option(256, "numbers kept of a layer", low=1, tune=(64, 256, 1024))
    keep: float = tdabench.option(0.25, "part of a layer's gradient that is looked at", low=1e-6, high=1)
    damping: float = tdabench.option(
        0.1, "ridge of each layer, relative to the mean diagonal of its second moment", low=0, tune=_DAMPING
    )

    def sketch(self, member: tdabench.Member) -> Callable[[Any], Any]:
        """Draw masks of both sides, buckets and signs."""
        return tdabench.masked_sketch(self.size, self.keep, "grass", member.task.seed, member.number)
