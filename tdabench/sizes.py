"""Sizes: what the work of a method depends on, and how often the engine does what.

A method need not know how the engine cuts its work into blocks: the methods of :class:`Sizes` are named after what
:class:`~tdabench.gradients.Gradients` and :class:`~tdabench.hessian.Hessian` do, and count it. Passes are exact;
multiply-adds are those of the matrix products; memory is an upper bound, and so are the passes of EK-FAC on a task
trained in bfloat16, whose queries take half the room once they are solved for.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from tdabench import pieces
from tdabench.examples import FORWARD_BATCH
from tdabench.work import Counts


@dataclass(frozen=True)
class Layer:
    """A part of the gradient, as the engine factors it.

    Attributes
    ----------
    key
        Its name.
    p, q
        Shape of one gradient.
    positions
        How many outer products one example's gradient is the sum of; 0 where it comes as it is.
    """

    key: str
    p: int
    q: int
    positions: int

    @property
    def numbers(self) -> int:
        """Length of the gradient."""
        return self.p * self.q

    @property
    def factors(self) -> int:
        """Numbers held of one example's factors."""
        return self.positions * (self.p + self.q) or self.numbers

    @property
    def stays_factored(self) -> bool:
        """Whether dot products are taken of the factors; see :meth:`tdabench.pieces.Outer.compact`."""
        return self.positions > 0 and pieces.stays_factored(self.positions, self.p, self.q)

    @property
    def compact(self) -> int:
        """Numbers held of one example for dot products."""
        return self.factors if self.stays_factored else self.numbers

    def is_short(self, *, short: bool) -> bool:
        """Return whether dot products are taken of numbers in bfloat16, where long sums may be."""
        return short and not self.stays_factored and pieces.is_long(self.numbers)

    def compact_bytes(self, *, short: bool) -> int:
        """Return what the numbers held of one example for dot products take."""
        return self.compact * (2 if self.is_short(short=short) else 4)

    @property
    def forming(self) -> Counts:
        """What it takes to form one example's gradient."""
        products = self.positions * self.numbers if self.positions > 1 else 0
        return Counts(products=products, moved=self.numbers)

    @property
    def compacting(self) -> Counts:
        """What it takes to bring one example into the form of which dot products are taken."""
        return Counts() if self.stays_factored else self.forming

    @property
    def pair(self) -> int:
        """Multiply-adds of the dot product of two examples, both in that form."""
        squared = self.positions**2 if self.stays_factored else 0
        return squared * (self.p + self.q) or self.numbers


@dataclass(frozen=True)
class Blocks:
    """How the engine cuts its work.

    Attributes
    ----------
    block_bytes, held_bytes, kept_bytes
        Of a block, of the held side of a dot product, of factors that are kept between uses.
    most_examples
        Of a pass.
    longest_side
        Of a layer, for its eigenvectors to be found.
    scale
        Size of blocks as a multiple of those on a CPU at the default memory budget.
    """

    block_bytes: int
    held_bytes: int
    kept_bytes: int
    most_examples: int
    longest_side: int
    scale: float = 1.0


@dataclass(frozen=True)
class Sizes:
    """What a method's work depends on; known without training anything.

    Attributes
    ----------
    n_train, n_queries
        Examples.
    layers
        What the gradients of a member consist of.
    pass_numbers
        Numbers that a pass of the engine holds of one example, roughly.
    blocks
        How the engine cuts its work.
    representation
        Positions and length of what the last linear layer is given; None where there is no such layer.
    n_outputs
        Length of the model's output, of one position in sequences.
    has_one_label
        Whether an example has one label, and not one for each token.
    short
        Whether products of long sums are taken of numbers in bfloat16.
    q_members
        Passes that the member's Q factor averages.
    last
        The same for a member that is differentiated by its last linear layer alone; None where there is none.
    forward_batch
        Examples of one pass forward alone.
    """

    n_train: int
    n_queries: int
    layers: tuple[Layer, ...]
    pass_numbers: int
    blocks: Blocks
    representation: tuple[int, int] | None = None
    n_outputs: int = 0
    has_one_label: bool = True
    short: bool = False
    q_members: int = 1
    last: Sizes | None = None
    forward_batch: int = FORWARD_BATCH

    @property
    def n_parameters(self) -> int:
        """Length of one gradient."""
        return sum(layer.numbers for layer in self.layers)

    @property
    def n_scores(self) -> int:
        """Queries times training examples."""
        return self.n_queries * self.n_train

    @property
    def batch(self) -> int:
        """Examples of one pass."""
        return max(1, min(self.blocks.most_examples, self.blocks.block_bytes // (4 * self.pass_numbers)))

    def keeps(self, n: int) -> bool:
        """Return whether the factors of ``n`` examples are kept after the first pass."""
        single = all(layer.positions <= 1 for layer in self.layers)
        return single and 4 * n * sum(layer.factors for layer in self.layers) <= self.blocks.kept_bytes

    def passes(self, n: int, times: int = 1) -> Counts:
        """Count ``times`` uses, one after the other, of the gradients of ``n`` examples."""
        kept = self.keeps(n)
        held = 2 * min(n, self.batch) * self.pass_numbers
        held += 2 * n * sum(layer.factors for layer in self.layers) if kept else 0
        return Counts(gradients=n if kept else n * times, blocks=held)

    def formed(self, n: int, times: int = 1) -> Counts:
        """Count ``times`` uses of the gradients of ``n`` examples, each forming them, a layer and a block at a time."""
        forming = sum((layer.forming for layer in self.layers), Counts()) * (n * times)
        block = self.blocks.block_bytes // 4
        largest = max(layer.numbers for layer in self.layers)
        return self._held(n, self.blocks.block_bytes, times) + forming + Counts(blocks=min(n * largest, block))

    def _held(self, n: int, most_bytes: int, times: int = 1, *, short: bool = False) -> Counts:
        """Count uses in which as many examples at once as ``most_bytes`` hold are there in compact form."""
        held = max(self._cuts(n, most_bytes, short=short)) * self._each(short=short) // 4
        return self.passes(n, times) + Counts(blocks=held + self.passes(n).blocks)

    def _each(self, *, short: bool) -> int:
        return sum(layer.compact_bytes(short=short) for layer in self.layers)

    def _cuts(self, n: int, most_bytes: int, *, short: bool = False) -> list[int]:
        """Return how many examples each held block has."""
        block = min(n, self.blocks.most_examples if self.keeps(n) else self.batch)
        return list(_parts(n, block * max(1, most_bytes // (block * self._each(short=short)))))

    def _compacted(self, n: int) -> Counts:
        return sum((layer.compacting for layer in self.layers), Counts()) * n

    def norms(self, n: int) -> Counts:
        """Count the norms of ``n`` gradients."""
        touched = Counts(moved=n * sum(layer.compact for layer in self.layers))
        return self.passes(n) + self._compacted(n) + touched

    def dot(self, n: int, m: int, *, again: bool = False) -> Counts:
        """Count all dot products of ``n`` gradients with ``m`` others; ``again`` where both were used before."""
        few, many = sorted((n, m))
        return self._pairs(few, many, again=again, short=self.short) + Counts(held=n * m)

    def layer_dots(self, n: int, m: int, *, again: bool = False) -> Counts:
        """Count the dot products in each layer, in blocks, of ``n`` gradients, which are held, with ``m`` others."""
        found = self._pairs(n, m, again=again, short=False)
        largest = max(self._cuts(n, self.blocks.held_bytes)) * m
        return found + Counts(blocks=found.blocks + min(pieces.BLOCKS_AT_ONCE * largest, self.blocks.block_bytes // 4))

    def _pairs(self, held: int, others: int, *, again: bool, short: bool) -> Counts:
        cuts = len(self._cuts(held, self.blocks.held_bytes, short=short))
        sides = (
            self._held(held, self.blocks.held_bytes, short=short),
            self._held(others, self.blocks.block_bytes, cuts, short=short),
        )
        passed = sum(0 if again and self.keeps(k) else s.gradients for k, s in zip((held, others), sides, strict=True))
        each = sum(layer.pair // (2 if layer.is_short(short=short) else 1) for layer in self.layers)
        forming = self._compacted(held) + self._compacted(others) * cuts
        written = held * others * len(self.layers)
        blocks = sum(side.blocks for side in sides)
        return forming + Counts(gradients=passed, products=held * others * each, moved=written, blocks=blocks)

    def times(self, n: int, m: int, *, uses: int = 1, flat: bool = False) -> Counts:
        """Count the products of ``n`` gradients with ``m`` vectors in all, over several uses of the gradients.

        Vectors that are flat are split by layer, which takes a look at one example.
        """
        products = Counts(gradients=int(flat), products=n * m * self.n_parameters)
        return self.formed(n, uses) + products

    def dense(self, n: int) -> Counts:
        """Count the forming of ``n`` whole gradients, all held at once."""
        forming = sum((layer.forming for layer in self.layers), Counts()) * n
        return self.passes(n) + forming + Counts(held=n * self.n_parameters)

    def by_layer(self, n: int, most_bytes: int | None = None) -> Counts:
        """Count the forming of ``n`` gradients by layer, of as many examples at once as :meth:`layer_cuts` says."""
        at_once = -(-n // self.layer_cuts(n, most_bytes))
        forming = sum((layer.forming for layer in self.layers), Counts()) * n
        parts = sum((self.passes(part) for part in _parts(n, at_once)), Counts())
        return parts + forming + Counts(held=at_once * self.n_parameters)

    def layer_cuts(self, n: int, most_bytes: int | None = None) -> int:
        """Return in how many parts :meth:`~tdabench.gradients.Gradients.by_layer` gives ``n`` gradients."""
        at_once = max(1, (most_bytes or self.blocks.held_bytes // 2) // (4 * self.n_parameters))
        return -(-n // at_once)

    def project(self, n: int, size: int) -> Counts:
        """Count random projections of ``n`` gradients to ``size`` numbers, of the kind ``auto``."""
        total, drawn, formed = self.passes(n), 0, 0
        for layer in self.layers:
            if layer.positions == 1:
                of_layer = (layer.p + layer.q) * size
                total += Counts(products=n * of_layer, moved=n * size)
            else:
                of_layer = 3 * layer.numbers  # buckets take eight bytes
                total += layer.forming * n + Counts(moved=n * layer.numbers)
                formed = max(formed, 3 * min(min(n, self.batch) * layer.numbers, self.blocks.block_bytes // 4))
            drawn += of_layer
        return total + Counts(moved=drawn, held=2 * n * size, blocks=total.blocks + drawn + formed)

    def eigenbases(self, n: int, *, apart: bool = False) -> Counts:
        """Count :func:`tdabench.eigenbases` of ``n`` gradients: moments, eigenvectors, and the values along them.

        ``apart`` where the values are those of other gradients, as many, so that none are kept from the first pass.
        """
        total = self.passes(n) + self.passes(n) if apart else self.passes(n, 2)
        for layer in self.layers:
            sides = self._eigen_sides(layer)
            # A side's moment and rotation: of every position's factor, or of the other side's length of rows.
            of_sums = sum(side * layer.numbers for side in sides)
            of_factors = layer.positions * sum(side**2 for side in sides)
            moments, rotations = of_factors or of_sums, min(of_factors, of_sums) or of_sums
            moved = n * layer.numbers if layer.positions != 1 else 0
            products = moments + rotations + layer.positions * layer.numbers
            total += Counts(products=n * products // (2 if layer.is_short(short=self.short) else 1), moved=moved)
            total += sum((Counts.eigenvectors(side) for side in sides), Counts())
        return total

    def _eigen_sides(self, layer: Layer) -> list[int]:
        """Return the lengths of the sides that have eigenvectors."""
        return [side for side in (layer.p, layer.q) if 1 < side <= self.blocks.longest_side]

    @property
    def eigenbasis_numbers(self) -> int:
        """Numbers of the eigenbases of all layers."""
        return sum(side**2 for layer in self.layers for side in self._eigen_sides(layer)) + self.n_parameters

    def solve(self, m: int, at_once: int) -> Counts:
        """Count the solution with the eigenbases of all layers for ``m`` vectors, of which some are held at once."""
        # There in float32, and back as their products will be taken.
        both_ways = ((layer, 1.5 if layer.is_short(short=self.short) else 2) for layer in self.layers)
        rotations = int(sum(ways * layer.numbers * sum(self._eigen_sides(layer)) for layer, ways in both_ways))
        return Counts(products=m * rotations, moved=4 * m * self.n_parameters, held=3 * at_once * self.n_parameters)

    def curvature(self, n: int, m: int, at_once: int) -> Counts:
        """Count the products of the Hessian over ``n`` examples with ``m`` vectors, of which some are held at once."""
        return Counts(curved=n * m, held=4 * at_once * self.n_parameters, blocks=self.blocks.block_bytes // 4)

    def mean_diagonal(self, n: int) -> Counts:
        """Count :meth:`tdabench.hessian.Hessian.mean_diagonal` over ``n`` examples, with its 32 vectors."""
        return self.curvature(n, 32, at_once=32)


def _parts(n: int, size: int) -> Iterator[int]:
    for start in range(0, n, size):
        yield min(size, n - start)
