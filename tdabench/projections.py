r"""Projections: short vectors whose dot products stand for those of gradients.

A projection works on one layer's piece at a time and draws its random numbers from a stream named after the layer, so
neither blocks nor the order of layers change what comes out. All preserve dot products in expectation.

========== =========================================================== ====================================
kind       what it is                                                  cost for one example and layer
========== =========================================================== ====================================
dense      a random sign matrix (Johnson & Lindenstrauss)              p q size
sparse     every coordinate is added, with a random sign, to one of    p q
           ``size`` numbers (sparse JL; Kane & Nelson 2014, s = 1)
rank-one   ``size`` random rank-one sign matrices, applied to the      (p + q) size per position
           factors (tensor random projection; Sun et al. 2018)
masked     a random part of the rows and columns, then sparse          what is kept of p q
           (GraSS; Hu et al. 2025)
kronecker  both sides projected, the layer's numbers kept apart        (p + q) sqrt(size) per position
           (LoGra; Choe et al. 2024)
========== =========================================================== ====================================

Where an example's gradient is a sum over many positions, ``kronecker`` forms it where that takes fewer multiply-adds
than projecting every position (a convolution with few channels over many pixels, for one).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from tdabench.options import check_choice
from tdabench.pieces import Outer, Piece, in_order
from tdabench.seeds import derive_seed, generator

Kind = Literal["auto", "dense", "sparse", "rank-one"]


class Sketch(Protocol):
    """The projection of one layer's gradients."""

    def __call__(self, piece: Piece) -> Tensor:
        """Return ``[n, size]``."""


Draw = Callable[[Piece], Sketch]
"""Draws the projection for a layer from its name and shape; called once per layer."""


@dataclass(frozen=True)
class Dense:
    """Multiply by random signs ``[p * q, size]`` / sqrt(size)."""

    signs: Tensor

    def __call__(self, piece: Piece) -> Tensor:
        """Return ``[n, size]``."""
        return piece.flat() @ self.signs


@dataclass(frozen=True)
class RankOne:
    """Component j is the sum over positions of (r_j . left)(s_j . right) / sqrt(size).

    Unbiased, at the cost of two thin matrix products. Of one outer product, the variance of a dot product is up to 4
    times that of a dense projection of the same size: where both sides point the same way; where they do not, the same.
    """

    left: Tensor  # [p, size]
    right: Tensor  # [q, size]

    def __call__(self, piece: Piece) -> Tensor:
        """Return ``[n, size]``."""
        if not isinstance(piece, Outer):
            return ((piece.values @ self.right) * self.left).sum(1)
        return ((piece.left @ self.left) * (piece.right @ self.right)).sum(1)


@dataclass(frozen=True)
class Sparse:
    """Add every coordinate, with its sign, to its bucket; buckets are equally full."""

    buckets: Tensor  # [p * q] int64
    signs: Tensor  # [p * q]
    size: int

    def __call__(self, piece: Piece) -> Tensor:
        """Return ``[n, size]``."""
        flat = piece.flat() * self.signs
        return flat.new_zeros(flat.shape[0], self.size).index_add_(1, self.buckets, flat)


@dataclass(frozen=True)
class Masked:
    """Keep some rows and columns of the gradient, and project what is kept.

    Factors are cut before they are multiplied, so what is not kept is never computed.
    """

    left: Tensor
    right: Tensor
    inner: Sparse
    scale: float

    def __call__(self, piece: Piece) -> Tensor:
        """Return ``[n, size]``."""
        return self.inner(piece.take(self.left, self.right)).mul_(self.scale)


@dataclass(frozen=True)
class Kronecker:
    """Project both sides; a side that is short already (None) is left alone."""

    left: Tensor | None
    right: Tensor | None

    def __call__(self, piece: Piece) -> Tensor:
        """Return ``[n, k_left * k_right]``."""
        return piece.rotated(self.left, self.right).flat()


def projection(size: int, *stream: str | int, kind: Kind = "auto") -> Draw:
    """Return what draws a projection to ``size`` numbers.

    ``auto`` is rank-one for layers with one outer product per example, which then never form a gradient, and sparse
    for the others, where forming one layer's gradient for a block of examples is cheaper than what works on factors. It
    depends on the piece: who projects sets of inputs of different shapes asks for one kind.
    """
    check_choice("kind", kind, Kind)

    def draw(piece: Piece) -> Sketch:
        p, q = piece.shape
        name, like = (*stream, piece.key), _like(piece)
        one = isinstance(piece, Outer) and piece.positions == 1
        if kind == "rank-one" or (kind == "auto" and one):
            left = signs(p * size, like, *name, "left").view(p, size)
            right = signs(q * size, like, *name, "right").view(q, size)
            return RankOne(left / math.sqrt(size), _rows_in_order(right, piece))
        if kind == "dense":
            dense = signs(p * q * size, like, *name, "dense").view(p, q, size) / math.sqrt(size)
            return Dense(_rows_in_order(dense, piece).flatten(0, 1))
        sparse = _sparse(p * q, size, like, *name)
        buckets, of_sign = (in_order(t.view(p, q), piece.order).flatten() for t in (sparse.buckets, sparse.signs))
        return Sparse(buckets, of_sign, size)

    return draw


def masked_sketch(size: int, keep: float, *stream: str | int) -> Draw:
    """Return what draws a projection of a random part, ``keep`` in (0, 1], of each layer's gradient."""

    def draw(piece: Piece) -> Sketch:
        p, q = piece.shape
        name, like = (*stream, piece.key), _like(piece)
        left, right = _some(p, keep**0.5, like, *name, "left"), _some(q, keep**0.5, like, *name, "right")
        inner = _sparse(len(left) * len(right), min(size, len(left) * len(right)), like, *name)
        if piece.order is not None:
            right = piece.order.argsort()[right]
        return Masked(left, right, inner, math.sqrt(p * q / (len(left) * len(right))))

    return draw


def kronecker_sketch(rank: int, *stream: str | int) -> Draw:
    """Return what draws normal projections of both sides to ``rank`` dimensions each."""

    def draw(piece: Piece) -> Sketch:
        name, like = (*stream, piece.key), _like(piece)
        p, q = piece.shape
        # One side that is short leaves its room to the other: a bias of 64 numbers is kept whole at rank 8.
        most_left, most_right = rank * max(1, rank // q), rank * max(1, rank // p)
        right = _normal(q, most_right, like, *name, "right")
        return Kronecker(
            _normal(p, most_left, like, *name, "left"), None if right is None else _rows_in_order(right, piece)
        )

    return draw


def signs(n: int, like: Tensor, *stream: str | int) -> Tensor:
    """Return ``n`` random signs of the stream; the same on every platform and device."""
    # A bit is a sign. random_raw is part of NumPy's stream-compatibility promise.
    words = np.random.SFC64(derive_seed(*stream)).random_raw(-(-n // 64)).astype("<u8", copy=False)
    bits = np.unpackbits(words.view(np.uint8))[:n]
    return torch.from_numpy(bits).to(like.device).to(like.dtype).mul_(2).sub_(1)  # bytes on the way there


def _sparse(n: int, size: int, like: Tensor, *stream: str | int) -> Sparse:
    buckets = torch.randperm(n, generator=generator(*stream, "buckets")) % size
    return Sparse(_shuffled(buckets, size, *stream).to(like.device), signs(n, like, *stream, "signs"), size)


def _shuffled(buckets: Tensor, size: int, *stream: str | int) -> Tensor:
    """Rename the buckets at random, so that layers with fewer coordinates than buckets do not share the first ones."""
    return torch.randperm(size, generator=generator(*stream, "names"))[buckets]


def _some(n: int, share: float, like: Tensor, *stream: str | int) -> Tensor:
    kept = max(1, round(n * share))
    return torch.randperm(n, generator=generator(*stream))[:kept].sort().values.to(like.device)


def _normal(n: int, size: int, like: Tensor, *stream: str | int) -> Tensor | None:
    if n <= size:
        return None
    return (torch.randn(n, size, generator=generator(*stream)) / math.sqrt(size)).to(like.device, like.dtype)


def _rows_in_order(table: Tensor, piece: Piece) -> Tensor:
    """Return numbers drawn for the parameters' columns, ``[..., q, size]``, in the order of a piece's."""
    return table if piece.order is None else table.index_select(-2, piece.order)


def _like(piece: Piece) -> Tensor:
    return piece.left if isinstance(piece, Outer) else piece.values
