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

    def shapes(self, sizes: tdabench.Sizes) -> list[tuple[int, int]]:
        """Return what each layer's gradient ``[p, q]`` is shortened to before it is read as one row of numbers."""
        raise NotImplementedError

    def lengths(self, sizes: tdabench.Sizes) -> list[int]:
        """Return how many numbers are kept of each layer."""
        return [p * q for p, q in self.shapes(sizes)]

    def work(self, sizes: tdabench.Sizes) -> tdabench.Work:
        """Compress both sides, factor and solve layer by layer, and multiply every pair."""
        n, m, lengths = sizes.n_train, sizes.n_queries, self.lengths(sizes)
        solving = sum((tdabench.Counts.cholesky(k) for k in lengths), tdabench.Counts())
        solving += tdabench.Counts(products=sum(2 * 3 * n * k**2 for k in lengths), held=6 * n * max(lengths))
        pairs = tdabench.Counts(products=sizes.n_scores * sum(lengths), held=2 * sizes.n_scores)
        return tdabench.Work(
            fit=self._compressing(sizes, n) + solving,
            attribute=self._compressing(sizes, m) + pairs,
            state=n * sum(lengths),
        )

    def _compressing(self, sizes: tdabench.Sizes, n: int) -> tdabench.Counts:
        """Count the shortening of both sides, and the product of what is left of them."""
        total = sizes.passes(n) + tdabench.Counts(held=2 * n * sum(self.lengths(sizes)))
        for layer, (p, q) in zip(sizes.layers, self.shapes(sizes), strict=True):
            each = layer.positions * (layer.p * p + layer.q * q + p * q) or layer.numbers * q + layer.p * p * q
            total += tdabench.Counts(products=n * each, moved=n * p * q)
        return total

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

    def shapes(self, sizes: tdabench.Sizes) -> list[tuple[int, int]]:
        """Return ``rank`` dimensions a side, and those of a shorter side left over to the other."""
        most = [(self.rank * max(1, self.rank // x.q), self.rank * max(1, self.rank // x.p)) for x in sizes.layers]
        return [(min(x.p, p), min(x.q, q)) for x, (p, q) in zip(sizes.layers, most, strict=True)]

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

    def shapes(self, sizes: tdabench.Sizes) -> list[tuple[int, int]]:
        """Return what the masks leave of both sides."""
        share = self.keep**0.5
        return [(max(1, round(x.p * share)), max(1, round(x.q * share))) for x in sizes.layers]

    def lengths(self, sizes: tdabench.Sizes) -> list[int]:
        """Return how many buckets a layer has."""
        return [min(self.size, p * q) for p, q in self.shapes(sizes)]

    def sketch(self, member: tdabench.Member) -> Callable[[Any], Any]:
        """Draw masks of both sides, buckets and signs."""
        return tdabench.masked_sketch(self.size, self.keep, "grass", member.task.seed, member.number)
