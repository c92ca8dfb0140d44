r"""Pieces: the part of some examples' gradients that belongs to one layer.

What a layer of weights ``W [p, q]`` receives from one example is a sum over positions (tokens of a sequence, pixels of
a convolution; one for a plain vector) of outer products of the gradient at the layer's output ``[p]`` with its input
``[q]``. As long as nobody asks for the sum, a piece keeps the factors.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


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
    """

    key: str
    parameters: tuple[str, ...]
    values: Tensor

    def __len__(self) -> int:
        return self.values.shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        """Shape ``(p, q)`` of one gradient."""
        return self.values.shape[1], self.values.shape[2]

    @property
    def numbers(self) -> int:
        """How many numbers are held for one example."""
        return self.values[0].numel()

    def flat(self) -> Tensor:
        """Return the gradients ``[n, p * q]``."""
        return self.values.flatten(1)

    def part(self, rows: slice) -> Rows:
        """Return some of the examples."""
        return Rows(self.key, self.parameters, self.values[rows])

    def rows(self) -> Rows:
        """Return itself."""
        return self

    def compact(self) -> Rows:
        """Return itself."""
        return self

    def squares(self) -> Tensor:
        """Return the squared norms ``[n]``."""
        return torch.linalg.vector_norm(self.flat(), dim=1).square_()

    def rotated(self, left: Tensor | None, right: Tensor | None) -> Rows:
        """Return the gradients in other coordinates, ``left.T @ gradient @ right``; None leaves a side alone."""
        values = self.values if right is None else self.values @ right
        return Rows(self.key, self.parameters, values if left is None else left.T @ values)

    def take(self, left: Tensor, right: Tensor) -> Rows:
        """Return some coordinates of each side."""
        return Rows(self.key, self.parameters, self.values.index_select(1, left).index_select(2, right))

    def moments(self, longest: int) -> tuple[Tensor | None, Tensor | None]:
        """Return the sums over examples of ``G G.T [p, p]`` and ``G.T G [q, q]``.

        None for a side longer than ``longest``, and for one of a single number, whose moment says nothing.
        """
        by_row, by_column = self.values.transpose(0, 1).flatten(1), self.values.flatten(0, 1)
        return _moment(by_row.T, longest), _moment(by_column, longest)


@dataclass(frozen=True)
class Outer:
    """Gradients as sums over positions of outer products.

    Attributes
    ----------
    key, parameters
        As in :class:`Rows`.
    left, right
        ``[n, T, p]`` and ``[n, T, q]``: example i's gradient is ``left[i].T @ right[i]``.
    """

    key: str
    parameters: tuple[str, ...]
    left: Tensor
    right: Tensor

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
    def numbers(self) -> int:
        """How many numbers are held for one example."""
        return self.left[0].numel() + self.right[0].numel()

    def part(self, rows: slice) -> Outer:
        """Return some of the examples."""
        return Outer(self.key, self.parameters, self.left[rows], self.right[rows])

    def rows(self) -> Rows:
        """Sum the outer products."""
        if self.positions == 1:
            values = self.left.transpose(1, 2) * self.right
        else:
            values = self.left.transpose(1, 2) @ self.right
        return Rows(self.key, self.parameters, values)

    def flat(self) -> Tensor:
        """Return the gradients ``[n, p * q]``."""
        return self.rows().flat()

    def compact(self) -> Rows | Outer:
        """Return whichever form makes dot products cheap: factors only where there is one outer product.

        With T positions, a dot product of two examples costs T^2 (p + q) from factors and p q from sums; on every
        task here that has positions, sums win. With one position factors win always.
        """
        p, q = self.shape
        return self.rows() if self.positions**2 * (p + q) > p * q and self.positions > 1 else self

    def squares(self) -> Tensor:
        """Return the squared norms ``[n]``."""
        if self.positions == 1:
            return self.left.square().sum((1, 2)) * self.right.square().sum((1, 2))
        return self.rows().squares()

    def rotated(self, left: Tensor | None, right: Tensor | None) -> Outer:
        """Return the gradients in other coordinates, ``left.T @ gradient @ right``; None leaves a side alone."""
        new_left = self.left if left is None else self.left @ left
        return Outer(self.key, self.parameters, new_left, self.right if right is None else self.right @ right)

    def take(self, left: Tensor, right: Tensor) -> Outer:
        """Return some coordinates of each side."""
        return Outer(self.key, self.parameters, self.left.index_select(2, left), self.right.index_select(2, right))

    def moments(self, longest: int) -> tuple[Tensor | None, Tensor | None]:
        """Return the sums over examples and positions of ``left left.T [p, p]`` and ``right right.T [q, q]``."""
        return _moment(self.left.flatten(0, 1), longest), _moment(self.right.flatten(0, 1), longest)


def _moment(rows: Tensor, longest: int) -> Tensor | None:
    return rows.T @ rows if 1 < rows.shape[1] <= longest else None


Piece = Rows | Outer


def dot(a: Piece, b: Piece, out: Tensor) -> None:
    """Add the dot products of every pair to ``out [n, m]``; both in the form that :meth:`Outer.compact` chooses."""
    if isinstance(a, Outer) and isinstance(b, Outer):
        if a.positions == 1:
            out.addcmul_(a.left[:, 0] @ b.left[:, 0].T, a.right[:, 0] @ b.right[:, 0].T)
        else:
            lefts = torch.einsum("ntp,msp->nmts", a.left, b.left)
            out += lefts.mul_(torch.einsum("ntq,msq->nmts", a.right, b.right)).sum((2, 3))
    else:
        out.addmm_(a.flat(), b.flat().T)


def joined(parts: list[Piece]) -> Piece:
    """Join the pieces of consecutive examples."""
    first = parts[0]
    if len(parts) == 1:
        return first
    if isinstance(first, Rows):
        return Rows(first.key, first.parameters, torch.cat([p.values for p in parts if isinstance(p, Rows)]))
    outers = [p for p in parts if isinstance(p, Outer)]
    return Outer(first.key, first.parameters, torch.cat([p.left for p in outers]), torch.cat([p.right for p in outers]))
