r"""Per-sample gradients: dot products, norms, products with vectors and projections, in blocks of bounded memory.

A linear layer's gradient for one example is an outer product: of the gradient with respect to the layer's output,
``g [out]``, and of its input, ``a [in]`` (the bias is one more input that is always one). So a dot product of two
examples' gradients is ``(g . g') (a . a')``, summed over layers, and the norms follow; one forward and one backward
pass per batch gives all factors. Convolutions, layers on tokens and embeddings are sums of outer products over
positions; where the sum is cheaper than its factors it is formed, one layer and one block of examples at a time. Whole
per-sample gradients are formed by :meth:`Gradients.dense` alone, and, of a few queries, by :meth:`Gradients.by_layer`.

:mod:`tdabench.taps` makes the passes, :mod:`tdabench.pieces` holds one layer's part,
:mod:`tdabench.projections` shortens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

from tdabench.budgets import block_bytes
from tdabench.errors import UsageError
from tdabench.examples import Examples, consecutive
from tdabench.layout import layout_of
from tdabench.memory import keep_freed
from tdabench.pieces import BLOCKS_AT_ONCE, Outer, Piece, Rows, add_products, cut, dot, in_order, is_one_product, joined
from tdabench.precision import in_float32
from tdabench.projections import Draw, Kind, Sketch, projection
from tdabench.room import Room
from tdabench.sizes import Layer
from tdabench.taps import Layout, tap

if TYPE_CHECKING:
    from tdabench.member import Member, Quantity

ExampleFunction = Callable[[Tensor, Tensor], Tensor]
Through = Callable[[Piece], Piece]
T = TypeVar("T")

# What a pass and what is made of it may take on a CPU; large enough for full matrix-product speed.
BLOCK_BYTES = 128 << 20
# One side of a dot product is held up to this, because the other side's gradients are computed once for each part.
HELD_BYTES = 512 << 20
# Factors are kept between uses up to this, where they are all that is needed.
KEPT_BYTES = 128 << 20
# One layer's gradients are formed in parts of this size: larger ones are returned to the system after each use, and
# fetching fresh memory costs more than filling it.
_FORMED_BYTES = 16 << 20
BATCH = 1024


def as_it_is(piece: Piece) -> Piece:
    """Return it."""
    return piece


class Gradients:
    """The gradients of ``n`` examples at one member, computed in blocks when they are used.

    Parameters
    ----------
    member
        Where the gradients are taken, with respect to ``member.parameters``.
    examples
        Of which examples.
    of
        ``"loss"`` or ``"target"``.
    rows
        Only these of the examples; all by default.

    Notes
    -----
    Batches, blocks and order change results by rounding alone.
    """

    def __init__(self, member: Member, examples: Examples, of: Quantity, rows: range | None = None) -> None:
        self.member, self.examples, self.of = member, examples, of
        self._rows = range(len(examples)) if rows is None else rows
        self._kept: dict[bool, list[Piece]] = {}

    def __len__(self) -> int:
        return len(self._rows)

    @cached_property
    def layout(self) -> Layout:
        """How the gradients are found."""
        return layout_of(self.member, self.examples)

    @property
    def n_parameters(self) -> int:
        """Length of one gradient."""
        return sum(p.numel() for p in self.member.parameters.values())

    @property
    def like(self) -> Tensor:
        """A tensor of the gradients' type and device."""
        return next(iter(self.member.parameters.values()))

    def blocks(self, each: Callable[[Piece], T], *, short: bool = False) -> Iterator[tuple[slice, list[T]]]:
        """Yield which consecutive examples are next, and what ``each`` makes of every piece of their gradients.

        Pieces are made one after the other, as they take more memory than what is made of them. Factors are kept for
        the next use where each layer has one outer product per example and all fit in memory.

        Parameters
        ----------
        each
            Called with every piece.
        short
            Whether long sums over positions may be in bfloat16, for products of which roundings average out.
        """
        if 4 * self.layout.numbers * len(self) > BLOCK_BYTES:  # else one batch is all, and what it frees is not missed
            keep_freed()
        if short in self._kept:
            for rows in consecutive(len(self), BATCH):
                yield rows, [each(piece.part(rows)) for piece in self._kept[short]]
            return
        keeper = _Keeper(len(self), self._most(KEPT_BYTES))

        def noted(piece: Piece) -> T:
            keeper.note(piece)
            return each(piece)

        place = 0
        for batch in self.examples.batches(self.batch_size(), self._rows):
            keeper.start()
            pieces = tap(self.member, self.layout, batch, self.of, short=short)
            yield slice(place, place + len(batch)), list(map(noted, pieces))
            place += len(batch)
        if keeper.keeps:
            self._kept[short] = keeper.joined()

    def batch_size(self) -> int:
        """Return how many examples share a pass: what fits into a block of the device."""
        return max(1, min(BATCH, self._most(BLOCK_BYTES) // (4 * self.layout.numbers)))

    def _most(self, on_cpu: int) -> int:
        """Return what may take ``on_cpu`` bytes on a CPU, on the gradients' device."""
        return block_bytes(on_cpu, self.like.device)

    @property
    def short(self) -> bool:
        """Whether products of gradients that are sums over positions may be taken of numbers in bfloat16.

        They are where the task's models were trained in it: the precision of its recipe, where the processor has it and
        the user does not want float32.
        """
        return self.member.task.trained_in == "bfloat16" and not in_float32()

    def _held(self, most_bytes: int, *, short: bool) -> Iterator[tuple[slice, list[Piece]]]:
        """Yield the pieces in the form whose dot products are cheap, of as many examples at once as may be held.

        They are good until the next are asked for.
        """
        room = Room(len(self), most_bytes)
        return room.filled(self.blocks(room.place, short=short))

    def dot(self, other: Gradients) -> Tensor:
        """Return the dot products ``[n, m]`` with the gradients of ``m`` other examples at the same member."""
        if len(other) < len(self):
            return other.dot(self).T
        out = self.like.new_zeros(len(self), len(other))
        for rows, columns, pairs in self._pairs(other, short=self.short):
            products = out.new_zeros(rows.stop - rows.start, columns.stop - columns.start)
            for a, b in pairs:
                dot(a, b, products)
            out[rows, columns] = products
        return out

    def layer_dots(self, other: Gradients) -> Iterator[tuple[slice, slice, str, Tensor]]:
        """Yield which examples, which of the ``m`` others, which layer, and the dot products of their parts in it.

        They are ``[h, c]``, in blocks of bounded memory, the caller's to change; the others are passed once for each
        ``h``.
        """
        for rows, columns, pairs in self._pairs(other, short=False):
            n = rows.stop - rows.start
            at_once = max(1, self._most(BLOCK_BYTES) // (4 * BLOCKS_AT_ONCE * n))
            for a, b in pairs:
                for some in consecutive(len(b), at_once):
                    products = self.like.new_zeros(n, some.stop - some.start)
                    dot(a, b.part(some), products)
                    yield rows, slice(columns.start + some.start, columns.start + some.stop), a.key, products

    def _pairs(self, other: Gradients, *, short: bool) -> Iterator[tuple[slice, slice, list[tuple[Piece, Piece]]]]:
        """Yield examples and others, and the pieces of both layer by layer, in the form whose products are cheap."""
        for rows, held in self._held(self._most(HELD_BYTES), short=short):
            # Many columns at once, or the held side would be read from memory for every few of them.
            for columns, pieces in other._held(self._most(BLOCK_BYTES), short=short):
                yield rows, columns, list(zip(held, pieces, strict=True))

    def norms(self) -> Tensor:
        """Return the Euclidean norms ``[n]``."""
        return sum(self.layer_squares().values(), self.like.new_zeros(len(self))).sqrt_()

    def layer_squares(self) -> dict[str, Tensor]:
        """Return the squared norms ``[n]`` of each layer's part."""
        out: dict[str, Tensor] = {}
        for rows, parts in self.blocks(lambda piece: (piece.key, piece.squares())):
            for key, squares in parts:
                if key not in out:
                    out[key] = self.like.new_empty(len(self))
                out[key][rows] = squares
        return out

    def times(self, vectors: Tensor | Mapping[str, Tensor], through: Through = as_it_is) -> Tensor:
        """Return the products ``[n, m]`` with ``m`` vectors in parameter space.

        Parameters
        ----------
        vectors
            ``[m, P]``, flat in the order of ``member.parameters``; or by layer as :meth:`by_layer` gives them,
            ``[m, p, q]`` each. Layers in bfloat16 are multiplied with gradients in bfloat16.
        through
            Changes each piece of the gradients first, to other coordinates for example; not the vectors.
        """
        layers = self.split(vectors) if isinstance(vectors, Tensor) else vectors
        short = any(layer.dtype == torch.bfloat16 for layer in layers.values())
        out = self.like.new_zeros(len(self), len(next(iter(layers.values()))))
        for rows, key, flat in self._flats(through, short=short):
            add_products(flat, layers[key].flatten(1), out[rows])
        return out

    def flats(self) -> Iterator[tuple[slice, str, Tensor]]:
        """Yield which examples, which layer, and their gradients in it ``[b, p * q]``, in blocks of bounded memory."""
        return self._flats(as_it_is, short=False)

    def _flats(self, through: Through, *, short: bool) -> Iterator[tuple[slice, str, Tensor]]:
        formed_bytes = self._most(_FORMED_BYTES)
        for rows, pieces in self._held(self._most(BLOCK_BYTES), short=short):
            for piece in pieces:
                if isinstance(piece, Rows):  # formed already
                    yield rows, piece.key, through(piece).flat()
                    continue
                for some in cut(piece, formed_bytes):
                    part = slice(rows.start + some.start, rows.start + some.stop)
                    yield part, piece.key, through(piece.part(some)).flat()

    def split(self, vectors: Tensor) -> dict[str, Tensor]:
        """Return flat vectors ``[m, P]`` by layer, ``[m, p, q]`` each."""
        return {piece.key: self._matrix(vectors, piece) for piece in self._one}

    def flatten(self, layers: Mapping[str, Tensor]) -> Tensor:
        """Return what :meth:`split` splits: ``[m, P]`` from ``[m, p, q]`` by layer."""
        out = self.like.new_empty(len(next(iter(layers.values()))), self.n_parameters)
        for piece in self._one:
            self._write(out, piece, layers[piece.key])
        return out

    @property
    def layers(self) -> tuple[Layer, ...]:
        """What a gradient consists of; known from a pass of one example."""
        return tuple(
            Layer(piece.key, *piece.shape, piece.positions if isinstance(piece, Outer) else 0) for piece in self._one
        )

    @cached_property
    def _one(self) -> list[Piece]:
        """The pieces of one example, which show each layer's parameters, shape and order."""
        first = Gradients(self.member, self.examples, self.of, self._rows[:1])
        return [piece for _, pieces in first.blocks(as_it_is) for piece in pieces]

    def _matrix(self, flat: Tensor, like: Piece) -> Tensor:
        """Return a layer's part of flat vectors ``[m, P]`` as ``[m, p, q]``; a bias is the last column."""
        parts = [flat[:, self._places[name]] for name in like.parameters]
        p, q = like.shape
        if len(parts) == 1:
            return in_order(parts[0].reshape(-1, p, q), like.order)
        return in_order(torch.cat([parts[0].reshape(-1, p, q - 1), parts[1].reshape(-1, p, 1)], dim=2), like.order)

    def _write(self, out: Tensor, like: Piece, values: Tensor) -> None:
        """Write a layer's part ``[m, p, q]`` to its place in flat vectors ``[m, P]``."""
        if like.order is not None:
            values = values[..., like.order.argsort()]
        weight, *bias = (self._places[name] for name in like.parameters)
        p, q = values.shape[1:]
        out[:, weight].view(-1, p, q - len(bias)).copy_(values[:, :, : q - len(bias)])
        if bias:
            out[:, bias[0]] = values[:, :, -1]

    @cached_property
    def _places(self) -> dict[str, slice]:
        """Return where each parameter stands in a flat gradient."""
        places, start = {}, 0
        for name, p in self.member.parameters.items():
            places[name] = slice(start, start + p.numel())
            start += p.numel()
        return places

    def dense(self) -> Tensor:
        """Return the gradients ``[n, P]`` themselves, flat in the order of ``member.parameters``."""
        out = self.like.new_empty(len(self), self.n_parameters)
        formed_bytes = self._most(_FORMED_BYTES)
        # Single products are formed where they are written, in parts: formed at once, they would be held twice.
        for rows, pieces in self.blocks(lambda piece: piece if is_one_product(piece) else piece.rows()):
            for piece in pieces:
                for some in cut(piece, formed_bytes):
                    self._write(out[rows][some], piece, piece.part(some).rows().values)
        return out

    def by_layer(
        self, most_bytes: int | None = None, through: Through = as_it_is
    ) -> Iterator[tuple[slice, dict[str, Tensor]]]:
        """Yield the gradients by layer, ``[h, p, q]`` each, of as many examples at once as ``most_bytes`` hold."""
        most_bytes = most_bytes or layer_bytes(self.like.device)
        for rows in consecutive(len(self), max(1, most_bytes // (4 * self.n_parameters))):
            part = Gradients(self.member, self.examples, self.of, self._rows[rows])
            layers: dict[str, Tensor] = {}
            for some, pieces in part.blocks(lambda piece: through(piece).rows()):
                for piece in pieces:
                    if piece.key not in layers:
                        layers[piece.key] = self.like.new_empty(len(part), *piece.shape)
                    layers[piece.key][some] = piece.values
            yield rows, layers

    def project(self, size: int, *stream: str | int, kind: Kind = "auto") -> Tensor:
        """Return random projections ``[n, size]`` that preserve dot products in expectation.

        Raises
        ------
        UsageError
            If ``kind`` is ``auto`` and inputs are of another shape than the task's, which may be projected otherwise.
        """
        kind = self._for_all_shapes() if kind == "auto" else kind
        out = self.like.new_zeros(len(self), size)
        for rows, parts in self._sketched(projection(size, *stream, kind=kind)):
            for part in parts.values():
                out[rows] += part
        return out

    def _for_all_shapes(self) -> Kind:
        """Return the kind that projects training examples and queries alike.

        A layer may have one outer product for an example of one shape, and several for one of another.
        """
        training, queries = self.member.task.training.inputs.shape[1:], self.member.task.queries.inputs.shape[1:]
        if training != queries:
            return "sparse"
        if (own := self.examples.inputs.shape[1:]) != training:
            raise UsageError(
                f"inputs of shape {list(own)} may be projected otherwise than the task's, of shape {list(training)}: "
                "say which projection both have, kind=sparse for example"
            )
        return "auto"

    def sketch(self, draw: Draw) -> dict[str, Tensor]:
        """Return each layer's gradients projected apart, ``[n, k]`` by layer."""
        out: dict[str, Tensor] = {}
        for rows, parts in self._sketched(draw):
            for key, part in parts.items():
                if key not in out:
                    out[key] = part.new_empty(len(self), part.shape[1])
                out[key][rows] = part
        return out

    def _sketched(self, draw: Draw) -> Iterator[tuple[slice, dict[str, Tensor]]]:
        sketches: dict[str, Sketch] = {}

        def sketched(piece: Piece) -> tuple[str, Tensor]:
            if piece.key not in sketches:
                sketches[piece.key] = draw(piece)
            return piece.key, _in_parts(sketches[piece.key], piece)

        for rows, parts in self.blocks(sketched):
            yield rows, dict(parts)


def layer_bytes(device: torch.device) -> int:
    """Return how much may be held of gradients by layer, unless it is said: as much again is made of them."""
    return block_bytes(HELD_BYTES // 2, device)


def _in_parts(sketch: Sketch, piece: Piece) -> Tensor:
    """Project some examples at a time, because a sketch may form the layer's gradients."""
    most_bytes = block_bytes(_FORMED_BYTES, piece.device)
    return torch.cat([sketch(piece.part(some)) for some in cut(piece, most_bytes)])


class _Keeper:
    """Notes the pieces of ``n`` examples, as long as they are worth keeping."""

    def __init__(self, n: int, most_bytes: int) -> None:
        self._n, self._most_bytes = n, most_bytes
        self._batches: list[list[Piece]] = []
        self.keeps = True

    def start(self) -> None:
        """Begin a batch."""
        self._batches.append([])

    def note(self, piece: Piece) -> None:
        """Keep a piece if all so far are single products that fit."""
        if not self.keeps:
            return
        batch = self._batches[-1]
        batch.append(piece)
        single = isinstance(piece, Rows) or piece.positions == 1
        if not single or 4 * self._n * sum(one.numbers for one in batch) > self._most_bytes:
            self.keeps = False
            self._batches.clear()

    def joined(self) -> list[Piece]:
        """Return the pieces of all examples."""
        return [joined(list(layer)) for layer in zip(*self._batches, strict=True)]
