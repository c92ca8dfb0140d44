r"""Kronecker-factored curvature with corrected eigenvalues (EK-FAC; George et al. 2018).

For a layer with gradients ``G [p, q] = sum_t g_t a_t^T``, K-FAC takes the second moment of ``vec(G)`` for the Kronecker
product of the second moments of ``g`` and of ``a``. Its eigenvectors are Kronecker products of theirs; what EK-FAC adds
is that the eigenvalues are measured: in the coordinates ``G' = U^T G V``, the mean of ``G'^2``. Layers are taken to be
independent of one another.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from tdabench.budgets import block_bytes
from tdabench.gradients import Gradients, layer_bytes
from tdabench.pieces import Piece, Rows, cut, is_long, is_one_product
from tdabench.room import Room

# A side longer than this keeps its own coordinates: an eigendecomposition grows with the third power.
LONGEST = 4096
# Columns of a second moment that are computed at once: of 72 to 432, the fastest on the layers of a small ResNet.
_MOMENT_BLOCK = 144
# So much of turned gradients is squared at once: it stays in the cache.
_SQUARED_BYTES = 4 << 20
# So much of the queries is solved for at once.
_SOLVED_BYTES = 64 << 20


@dataclass(frozen=True)
class Eigenbasis:
    """One layer's eigenvectors and eigenvalues.

    Attributes
    ----------
    left, right
        ``[p, p]`` and ``[q, q]``, eigenvectors in columns; None where a side keeps its own coordinates.
    values
        ``[p, q]`` second moments of the gradients in these coordinates.
    """

    left: Tensor | None
    right: Tensor | None
    values: Tensor

    def solve(self, vectors: Tensor, ridge: float, *, short: bool = False) -> Tensor:
        """Return ``(F + ridge I)^-1`` times each of ``vectors [m, p, q]``, of the same shape.

        If ``short``, in bfloat16, in which they are turned back; not turned there: what is divided by small eigenvalues
        must be exact.
        """
        there = vectors if self.left is None else self.left.T @ vectors
        there = there if self.right is None else there @ self.right
        return self.solve_turned(there, ridge, short=short)

    def solve_turned(self, there: Tensor, ridge: float, *, short: bool = False) -> Tensor:
        """Solve for vectors that are in the eigenbasis already; the solutions are turned back."""
        there = there * self.inverse(ridge)
        there = there.bfloat16() if short else there
        back = there if self.left is None else self.left.to(there.dtype) @ there
        return back if self.right is None else back @ self.right.T.to(there.dtype)

    def inverse(self, ridge: float) -> Tensor:
        """Return the inverse eigenvalues ``[p, q]``."""
        return 1.0 / (self.values + max(ridge, torch.finfo(self.values.dtype).tiny))


def eigenbases(gradients: Gradients, *, values_of: Gradients | None = None) -> dict[str, Eigenbasis]:
    """Return each layer's eigenbasis from the gradients' second moments; two passes over the gradients.

    Parameters
    ----------
    gradients
        Usually those of the loss at sampled labels (:func:`tdabench.fisher.with_sampled_labels`).
    values_of
        Gradients whose second moments along the eigenvectors are the eigenvalues; by default the same. Those at labels
        drawn anew do not take for curvature what the first draw's eigenvectors fitted of its noise.
    """
    measured = gradients if values_of is None else values_of
    sides = {key: (_eigenvectors(left), _eigenvectors(right)) for key, (left, right) in _moments(gradients).items()}
    values: dict[str, Tensor] = {}

    def add(piece: Piece) -> None:
        turned = piece.rotated(*sides[piece.key])
        for some in cut(piece, block_bytes(_SQUARED_BYTES, piece.device)):
            squares = _sum_of_squares(turned.part(some))
            values[piece.key] = squares.add_(values[piece.key]) if piece.key in values else squares

    for _ in measured.blocks(add, short=measured.short):
        pass
    return {key: Eigenbasis(*sides[key], values[key] / len(measured)) for key in sides}


def solved_dot(
    queries: Gradients, training: Gradients, bases: Mapping[str, Eigenbasis], ridges: Mapping[str, float]
) -> Tensor:
    """Return ``q^T (F + ridge I)^-1 z`` of every pair of gradients, ``[n_queries, n_train]``, summed over layers.

    Parameters
    ----------
    queries, training
        Gradients at one member.
    bases, ridges
        By layer.

    Notes
    -----
    Where a layer has one outer product per query, both sides are turned to the eigenbasis while they are factors, and
    nothing is turned back; elsewhere the queries are turned there (as factors or as sums, whichever is cheaper) and
    back, since they are few, and products are taken as :meth:`~tdabench.gradients.Gradients.dot` takes them.
    """
    one_product: set[str] = set()
    most_bytes = layer_bytes(queries.like.device)
    solved_bytes = min(block_bytes(_SOLVED_BYTES, queries.like.device), most_bytes)

    def turned(piece: Piece) -> Piece:
        return piece.rotated(bases[piece.key].left, bases[piece.key].right)

    def turned_and_noted(piece: Piece) -> Piece:
        if is_one_product(piece):
            one_product.add(piece.key)
        return turned(piece)

    def as_the_queries(piece: Piece) -> Piece:  # whatever the piece is: shorter queries may have one product alone
        return turned(piece) if piece.key in one_product else piece

    def solved() -> Iterator[tuple[slice, list[Piece]]]:
        for rows, layers in queries.by_layer(solved_bytes, through=turned_and_noted):
            yield rows, [room.place(solution(key, layers[key])) for key in bases]

    def solution(key: str, there: Tensor) -> Piece:
        if key in one_product:
            return Rows(key, (), there * bases[key].inverse(ridges[key]))
        short = queries.short and is_long(there[0].numel())
        return Rows(key, (), bases[key].solve_turned(there, ridges[key], short=short))

    out = queries.like.new_empty(len(queries), len(training))
    room = Room(len(queries), most_bytes)
    for rows, held in room.filled(solved()):
        out[rows] = training.times({piece.key: piece.rows().values for piece in held}, through=as_the_queries).T
    return out


def _moments(gradients: Gradients) -> dict[str, tuple[Tensor | None, Tensor | None]]:
    """Return the second moments of each layer's two sides; None of one that keeps its own coordinates."""
    moments: dict[str, tuple[Tensor | None, Tensor | None]] = {}

    def add(piece: Piece) -> None:
        sides = piece.sides()
        if piece.key not in moments:
            moments[piece.key] = _nothing_yet(sides[0]), _nothing_yet(sides[1])
        for side, moment in zip(sides, moments[piece.key], strict=True):
            if moment is not None:
                _add_below(side, moment)

    for _ in gradients.blocks(add, short=gradients.short):
        pass
    return {key: (_mirrored(left), _mirrored(right)) for key, (left, right) in moments.items()}


def _nothing_yet(side: Tensor) -> Tensor | None:
    size = side.shape[1]  # of one number the moment says nothing
    return side.new_zeros(size, size, dtype=_sums_in(side)) if 1 < size <= LONGEST else None


def _sums_in(values: Tensor) -> torch.dtype:
    """Return the format in which numbers of that one are added up."""
    return torch.promote_types(values.dtype, torch.float32)


def _add_below(side: Tensor, moment: Tensor) -> None:
    """Add ``side.T @ side`` to a moment, but for blocks above the diagonal: they are those below."""
    for start in range(0, len(moment), _MOMENT_BLOCK):
        columns, below = slice(start, start + _MOMENT_BLOCK), slice(start, None)
        moment[below, columns] += side[:, below].T @ side[:, columns]


def _mirrored(moment: Tensor | None) -> Tensor | None:
    return None if moment is None else moment.tril() + moment.tril(-1).T


def _eigenvectors(moment: Tensor | None) -> Tensor | None:
    if moment is None:
        return None
    # In double precision: the small eigenvalues' vectors matter most once they are divided by.
    exact = moment.double()
    try:
        vectors = torch.linalg.eigh(exact).eigenvectors
    except torch.linalg.LinAlgError:
        if exact.device.type == "cpu":
            raise
        vectors = torch.linalg.eigh(exact.cpu()).eigenvectors  # a GPU's library gives up on some of low rank
    return vectors.to(moment)


def _sum_of_squares(piece: Piece) -> Tensor:
    """Return the sum over examples of the squared gradients, ``[p, q]``."""
    if is_one_product(piece):
        return piece.left[:, 0].square().T @ piece.right[:, 0].square()
    values = piece.rows().values
    longer = values.to(_sums_in(values))
    # In place where it is a copy: fetching fresh memory costs more than filling it.
    return (longer.square() if longer is values else longer.square_()).sum(0)
