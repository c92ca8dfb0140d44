r"""Pieces: the part of some examples' gradients that belongs to one layer.

What a layer of weights ``W [p, q]`` receives from one example is a sum over positions (tokens of a sequence, pixels of
a convolution; one for a plain vector) of outer products of the gradient at the layer's output ``[p]`` with its input
``[q]``. As long as nobody asks for the sum, a piece keeps the factors.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TypeGuard

import torch
from torch import Tensor

from tdabench.budgets import block_bytes
from tdabench.examples import consecutive

LONG = 4096
"""Gradients of so many numbers or more may be in bfloat16: over fewer, roundings do not average out."""

BLOCKS_AT_ONCE = 4
"""Blocks of dot products that are there while one is made: it, two that it is made of, and the one before it."""

# A product in bfloat16 comes out in bfloat16; the parts of so many numbers are added up in the format of the sum.
_SPAN = 8192
# Products of every pair of positions, of factors with several, take at most this twice.
_PAIRS_BYTES = 64 << 20


def stays_factored(positions: int, p: int, q: int) -> bool:
    """Return whether dot products are cheaper of factors than of sums.

    With T positions, a dot product of two examples costs T^2 (p + q) from factors and p q from sums; on every task here
    that has positions, sums win. With one position factors win always.
    """
    return positions == 1 or positions**2 * (p + q) <= p * q


def is_short(positions: int, p: int, q: int) -> bool:
    """Return whether gradients ``[p, q]`` that are sums over positions may be in bfloat16."""
    return not stays_factored(positions, p, q) and is_long(p * q)


def is_long(numbers: int) -> bool:
    """Return whether roundings average out over a gradient of so many numbers."""
    return numbers >= LONG


@dataclass(frozen=True)
class Rows:
    """Gradients as they are.

    Attributes
    ----------
    key
        Names the piece in random streams.
    parameters
        Whose gradient it is: one parameter, or a weight and a bias, which is then the last column.
    values
        ``[n, p, q]``.
    order
        ``[q]``: which of the parameters' columns each column is; None where they are the same. Layers give their
        columns in the order that costs least, a convolution for one.
    """

    key: str
    parameters: tuple[str, ...]
    values: Tensor
    order: Tensor | None = None

    def __len__(self) -> int:
        return self.values.shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        """Shape ``(p, q)`` of one gradient."""
        return self.values.shape[1], self.values.shape[2]

    @property
    def device(self) -> torch.device:
        """Where they are."""
        return self.values.device

    @property
    def numbers(self) -> int:
        """How many numbers are held for one example."""
        return self.values[0].numel()

    @property
    def bytes(self) -> int:
        """How much memory all of them take."""
        return self.values.nbytes

    def flat(self) -> Tensor:
        """Return the gradients ``[n, p * q]``."""
        return self.values.flatten(1)

    def part(self, rows: slice) -> Rows:
        """Return some of the examples."""
        return replace(self, values=self.values[rows])

    def rows(self) -> Rows:
        """Return itself."""
        return self

    def compact(self) -> Rows:
        """Return itself."""
        return self

    def shortened(self) -> Rows:
        """Return the gradients in bfloat16, if roundings average out over their length."""
        return replace(self, values=self.values.bfloat16()) if is_long(self.numbers) else self

    def squares(self) -> Tensor:
        """Return the squared norms ``[n]``."""
        return torch.linalg.vector_norm(self.flat(), dim=1).square_()

    def rotated(self, left: Tensor | None, right: Tensor | None) -> Rows:
        """Return the gradients in other coordinates, ``left.T @ gradient @ right``; None leaves a side alone."""
        values = self.values if right is None else self.values @ right.to(self.values.dtype)
        order = self.order if right is None else None
        return Rows(self.key, self.parameters, values if left is None else left.T.to(values.dtype) @ values, order)

    def take(self, left: Tensor, right: Tensor) -> Rows:
        """Return some rows and some columns, as they stand here."""
        return Rows(self.key, self.parameters, self.values.index_select(1, left).index_select(2, right))

    def sides(self) -> tuple[Tensor, Tensor]:
        """Return all columns ``[n q, p]`` and all rows ``[n p, q]``."""
        return self.values.transpose(0, 1).flatten(1).T, self.values.flatten(0, 1)


@dataclass(frozen=True)
class Outer:
    """Gradients as sums over positions of outer products.

    Attributes
    ----------
    key, parameters
        As in :class:`Rows`.
    left, right
        ``[n, T, p]`` and ``[n, T, q]``: example i's gradient is ``left[i].T @ right[i]``.
    order
        As in :class:`Rows`.
    """

    key: str
    parameters: tuple[str, ...]
    left: Tensor
    right: Tensor
    order: Tensor | None = None

    def __len__(self) -> int:
        return self.left.shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        """Shape ``(p, q)`` of one gradient."""
        return self.left.shape[2], self.right.shape[2]

    @property
    def positions(self) -> int:
        """How many outer products make up one gradient."""
        return self.left.shape[1]

    @property
    def device(self) -> torch.device:
        """Where they are."""
        return self.left.device

    @property
    def numbers(self) -> int:
        """How many numbers are held for one example."""
        return self.left[0].numel() + self.right[0].numel()

    @property
    def bytes(self) -> int:
        """How much memory all of them take."""
        return self.left.nbytes + self.right.nbytes

    def part(self, rows: slice) -> Outer:
        """Return some of the examples."""
        return replace(self, left=self.left[rows], right=self.right[rows])

    def rows(self) -> Rows:
        """Sum the outer products."""
        if self.positions == 1:
            values = self.left.transpose(1, 2) * self.right
        else:
            values = self.left.transpose(1, 2) @ self.right
        return Rows(self.key, self.parameters, values, self.order)

    def flat(self) -> Tensor:
        """Return the gradients ``[n, p * q]``."""
        return self.rows().flat()

    def compact(self) -> Rows | Outer:
        """Return whichever form makes dot products cheap."""
        return self if stays_factored(self.positions, *self.shape) else self.rows()

    def shortened(self) -> Outer:
        """Return the factors in bfloat16, if sums of them may be."""
        if not is_short(self.positions, *self.shape):
            return self
        return replace(self, left=self.left.bfloat16(), right=self.right.bfloat16())

    def squares(self) -> Tensor:
        """Return the squared norms ``[n]``."""
        if self.positions == 1:
            return self.left.square().sum((1, 2)) * self.right.square().sum((1, 2))
        if stays_factored(self.positions, *self.shape):
            lefts, rights = (side @ side.transpose(1, 2) for side in (self.left, self.right))  # [n, T, T]
            return (lefts * rights).sum((1, 2)).clamp_min_(0)  # terms have signs, and may cancel but for rounding
        return self.rows().squares()

    def rotated(self, left: Tensor | None, right: Tensor | None) -> Piece:
        """Return the gradients in other coordinates, ``left.T @ gradient @ right``; None leaves a side alone.

        With many positions the sum is formed first, where that takes fewer multiply-adds in the end.
        """
        p, q = self.shape
        new_p, new_q = p if left is None else left.shape[1], q if right is None else right.shape[1]
        of_left, of_right = 0 if left is None else p * new_p, 0 if right is None else q * new_q
        of_factors = self.positions * (of_left + of_right + new_p * new_q)
        if self.positions > 1 and self.positions * p * q + p * of_right + new_q * of_left < of_factors:
            return self.rows().rotated(left, right)
        new_left = self.left if left is None else self.left @ left.to(self.left.dtype)
        if right is None:
            return replace(self, left=new_left)
        return Outer(self.key, self.parameters, new_left, self.right @ right.to(self.right.dtype))

    def take(self, left: Tensor, right: Tensor) -> Outer:
        """Return some rows and some columns, as they stand here."""
        return Outer(self.key, self.parameters, self.left.index_select(2, left), self.right.index_select(2, right))

    def sides(self) -> tuple[Tensor, Tensor]:
        """Return the left vectors of all positions ``[n T, p]`` and the right ones ``[n T, q]``."""
        return self.left.flatten(0, 1), self.right.flatten(0, 1)


Piece = Rows | Outer


def is_one_product(piece: Piece) -> TypeGuard[Outer]:
    """Return whether each gradient is a single outer product, still in factors."""
    return isinstance(piece, Outer) and piece.positions == 1


def cut(piece: Piece, most_bytes: int) -> Iterator[slice]:
    """Yield which consecutive examples to take at once for their sums to take at most so much; at least one."""
    return consecutive(len(piece), max(1, most_bytes // (4 * math.prod(piece.shape))))


def dot(a: Piece, b: Piece, out: Tensor) -> None:
    """Add the dot products of every pair to ``out [n, m]``; both in the form that :meth:`Outer.compact` chooses."""
    if isinstance(a, Outer) and isinstance(b, Outer):
        if a.positions == b.positions == 1:
            out.addcmul_(a.left[:, 0] @ b.left[:, 0].T, a.right[:, 0] @ b.right[:, 0].T)
        else:
            pairs = len(a) * a.positions * b.positions  # numbers for one column
            for columns in consecutive(len(b), max(1, block_bytes(_PAIRS_BYTES, a.device) // (4 * pairs))):
                lefts = torch.einsum("ntp,msp->nmts", a.left, b.left[columns])
                rights = torch.einsum("ntq,msq->nmts", a.right, b.right[columns])
                out[:, columns] += lefts.mul_(rights).sum((2, 3))
    else:
        add_products(a.flat(), b.flat(), out)


def add_products(a: Tensor, b: Tensor, out: Tensor) -> None:
    """Add the dot products of the rows of ``a [n, d]`` and ``b [m, d]`` to ``out [n, m]``, in the format of ``b``."""
    a = a.to(b.dtype)
    if a.dtype == out.dtype:
        out.addmm_(a, b.T)
        return
    for start in range(0, a.shape[1], _SPAN):
        span = slice(start, start + _SPAN)
        out += a[:, span] @ b[:, span].T


def in_order(columns: Tensor, order: Tensor | None) -> Tensor:
    """Return what stands in the parameters' columns ``[..., q]`` in the order of a piece's."""
    return columns if order is None else columns[..., order]


def joined(parts: list[Piece]) -> Piece:
    """Join the pieces of consecutive examples."""
    if len(parts) == 1:
        return parts[0]
    whole = room_for(parts[0], sum(len(part) for part in parts))
    start = 0
    for part in parts:
        put(part, whole, start)
        start += len(part)
    return whole


def room_for(piece: Piece, n: int) -> Piece:
    """Return a piece of ``n`` examples like that one, with whatever memory holds."""
    if isinstance(piece, Rows):
        return replace(piece, values=piece.values.new_empty(n, *piece.values.shape[1:]))
    left, right = (side.new_empty(n, *side.shape[1:]) for side in (piece.left, piece.right))
    return replace(piece, left=left, right=right)


def put(piece: Piece, room: Piece, start: int) -> None:
    """Write a piece's examples to their place in a larger one, of its kind or for its sums."""
    there = slice(start, start + len(piece))
    if isinstance(room, Rows) and isinstance(piece, Outer) and piece.positions > 1:
        torch.bmm(piece.left.transpose(1, 2), piece.right, out=room.values[there])
    elif isinstance(room, Rows):
        room.values[there] = piece.rows().values
    elif isinstance(piece, Outer):
        room.left[there], room.right[there] = piece.left, piece.right
