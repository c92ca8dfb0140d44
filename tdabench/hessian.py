r"""The Hessian of the mean training loss at a member, as a matrix that multiplies vectors.

Nobody forms a Hessian to multiply with it: the derivative of the gradient along v is ``H v`` (Pearlmutter 1994), one
backward pass through a backward pass, and many vectors share the passes that do not depend on them. They share the
products with them, too, where many fit into memory at once: a small network's passes cost little beside their calls.
Where few do, or torch cannot differentiate a layer for many vectors at once, they are taken one after another.

The Hessian of a network is indefinite. Its Gauss-Newton part ``J' (d2 loss / d outputs2) J`` leaves out the curvature
of the network itself; it is positive semi-definite for every loss that is convex in the outputs, and is the Hessian
where the outputs are linear in the parameters (Schraudolph 2002; Martens 2020). It is the one that solvers need.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from tdabench.budgets import block_bytes
from tdabench.errors import Declined
from tdabench.examples import Batch, Examples, consecutive
from tdabench.held import numbers_held
from tdabench.kernels import differentiable
from tdabench.memory import keep_freed, ran_out
from tdabench.options import check_choice
from tdabench.projections import signs
from tdabench.taps import leaves_of

if TYPE_CHECKING:
    from tdabench.member import Member

Curvature = Literal["gauss-newton", "hessian"]
Product = Callable[[Sequence[Tensor]], list[Tensor]]
Pull = Callable[[Sequence[Tensor], Sequence[Tensor], Sequence[Tensor]], list[Tensor]]

# What one pass of some vectors over some examples may take.
_BLOCK_BYTES = 128 << 20
# More examples at once do not multiply faster; fewer would write the products to memory too often.
_BATCH = 256
# Vectors share passes where so many fit into a block: what fewer save is less than what ``vmap`` copies.
_FEWEST_SHARING = 16
# Of a vector, in a pass that vectors share.
_COPIES = 4
# Sharing is tried on so many examples: what is wrong for some numbers of them is right for others.
_TRIED = (2, 3)
# Of a product's length, by parameter, and of the whole one's: rounding is far below, and what is wrong far above.
_SAME, _NOTHING = 1e-2, 1e-3
# Of the estimate of the diagonal; its relative error is below sqrt(2 / 32) and typically a few percent.
_PROBES = 32
#: The largest explicit Hessian: 1.2 GB in float32, so that a process which factors it in place stays below 2 GB.
MOST_PARAMETERS = 17_500


class Hessian:
    """The Hessian of the mean loss of ``n`` examples, plus ``ridge`` on its diagonal.

    Parameters
    ----------
    member
        Where it is taken, with respect to ``member.parameters``; its dropout mask, adapter and running statistics hold.
    examples
        Over which it is averaged.
    curvature
        ``"gauss-newton"`` or ``"hessian"``.
    ridge
        Added to the diagonal.
    rows
        ``[r]`` int64, to average over these of the examples only; all by default.

    Notes
    -----
    Vectors are flat, ``[P]``: the parameters in the order of ``member.parameters``, each flattened. Batches and blocks
    change results by rounding alone. Every example passed with every vector is counted as one forward and one backward
    pass.
    """

    def __init__(
        self,
        member: Member,
        examples: Examples,
        curvature: Curvature = "gauss-newton",
        ridge: float = 0.0,
        rows: Tensor | None = None,
    ) -> None:
        check_choice("curvature", curvature, Curvature)
        self.member, self.examples, self.curvature, self.ridge = member, examples, curvature, ridge
        self.rows = torch.arange(len(examples), device=examples.inputs.device) if rows is None else rows
        self._sizes = [p.numel() for p in member.parameters.values()]

    @property
    def n_parameters(self) -> int:
        """Number of rows and columns."""
        return sum(self._sizes)

    def on(self, rows: Tensor) -> Hessian:
        """Return the same, averaged over the examples at ``rows`` ``[r]`` only."""
        other = Hessian(self.member, self.examples, self.curvature, self.ridge, rows)
        other.__dict__["_shares_passes"] = self._shares_passes  # by passes, and the same
        return other

    def times(self, vectors: Tensor) -> Tensor:
        """Return the products ``[m, P]`` with vectors ``[m, P]``.

        Raises
        ------
        Declined
            If torch cannot differentiate the model, or the loss, twice.
        """
        try:
            return self._times(vectors)
        except NotImplementedError as error:
            raise Declined(
                f"torch cannot differentiate the model of {self.member.task.name} twice, as products with its Hessian "
                f"need: {error}"
            ) from error

    def _times(self, vectors: Tensor) -> Tensor:
        out = torch.zeros_like(vectors)
        if 8 * self._numbers * len(self.rows) * len(vectors) > self._most_bytes:  # else little is freed and taken again
            keep_freed()
        shared = self._vectors_at_once >= _FEWEST_SHARING and self._shares_passes
        for batch in self._batches():
            product = self._product(batch, shared=shared)
            for part in consecutive(len(vectors), self._vectors_at_once):
                # Parameter by parameter, in place: joined first, the products would be written and read once more.
                for there, g in zip(self._columns(out[part]), product(self._by_parameter(vectors[part])), strict=True):
                    there.add_(g.reshape(len(g), -1))
            self.member.task.meter.count(forward=len(batch) * len(vectors), backward=len(batch) * len(vectors))
        return out.div_(len(self.rows)).add_(vectors, alpha=self.ridge)

    def explicit(self, most: int = MOST_PARAMETERS) -> Tensor:
        """Return the matrix itself, ``[P, P]``, symmetric up to rounding.

        Raises
        ------
        Declined
            If it has more than ``most`` rows.
        """
        size = self.n_parameters
        if size > most:
            raise Declined(
                f"an explicit Hessian of {size:,} parameters takes {4 * size**2 / 1e9:,.1f} GB; "
                f"it is formed for up to {most:,} parameters"
            )
        out = self._like.new_empty(size, size)
        for rows in consecutive(size, max(1, self._most_bytes // (4 * size))):
            unit = out[rows].zero_()  # the rows of the identity, where their products will stand
            unit.diagonal(rows.start).fill_(1)
            out[rows] = self.times(unit)
        return out

    def mean_diagonal(self) -> float:
        """Return the mean of the Gauss-Newton part's diagonal, without ``ridge``; what damping is relative to.

        Estimated by Hutchinson's estimator with 32 vectors of signs from the member's stream, so that every solver has
        the same. Of the Gauss-Newton part whatever the curvature: the Hessian's own may be negative.
        """
        plain = Hessian(self.member, self.examples, "gauss-newton", rows=self.rows)
        stream = ("mean-diagonal", self.member.task.name, self.member.task.seed, self.member.number)
        size = self.n_parameters
        probes = signs(_PROBES * size, self._like, *stream).view(_PROBES, size)
        total = sum(
            (probes[part] * plain.times(probes[part])).sum() for part in consecutive(_PROBES, self._rows_at_once)
        )
        return float(total) / (_PROBES * size)

    @property
    def _like(self) -> Tensor:
        return next(iter(self.member.parameters.values()))

    @property
    def _most_bytes(self) -> int:
        return block_bytes(_BLOCK_BYTES, self._like.device)

    def _batches(self) -> Iterator[Batch]:
        for part in consecutive(len(self.rows), max(1, min(_BATCH, self._most_bytes // (8 * self._numbers)))):
            yield self.examples.take(self.rows[part])

    @property
    def _rows_at_once(self) -> int:
        return max(1, self._most_bytes // (4 * self.n_parameters))

    @property
    def _vectors_at_once(self) -> int:
        # What passes of a vector hold of the examples, and the copies of it, by parameter, and of its product.
        of_one = 8 * self._numbers * min(_BATCH, len(self.rows)) + 4 * _COPIES * self.n_parameters
        return max(1, self._most_bytes // of_one)

    @property
    def _numbers(self) -> int:
        """How many numbers a pass holds of one example, roughly."""
        return numbers_held(self.member, self.examples.inputs, plain=True)

    @cached_property
    def _shares_passes(self) -> bool:
        """Whether vectors can share a pass, under ``vmap``.

        Torch has no rule for some second derivatives there (max pooling of images, for one), and that of group
        normalisation is wrong for some shapes, without a word; it may be a function, so two products are compared.
        """
        if any(isinstance(module, nn.GroupNorm) for module in self.member.model.modules()):
            return False
        probes = signs(2 * self.n_parameters, self._like, "sharing", self.member.task.name).view(2, -1)
        try:
            return all(self._is_shared_rightly(self.rows[:n], self._by_parameter(probes)) for n in _TRIED)
        except RuntimeError as error:
            if ran_out(error):
                raise
            return False

    def _is_shared_rightly(self, rows: Tensor, vectors: Sequence[Tensor]) -> bool:
        """Return whether vectors that share a pass over some examples have the products that they have apart."""
        batch = self.examples.take(rows)
        found, wanted = (self._product(batch, shared=shared)(vectors) for shared in (True, False))
        nothing = _NOTHING * sum(float(g.square().sum()) for g in wanted) ** 0.5
        # Written so that what is not finite passes: it is so either way.
        return not any((a - b).norm() > _SAME * b.norm() + nothing for a, b in zip(found, wanted, strict=True))

    def _product(self, batch: Batch, *, shared: bool) -> Product:
        """Return what multiplies vectors, by parameter, with the sum over a batch's examples."""
        pull = _pulled if shared else _pulled_apart
        with differentiable(self.member.model, plain=True):
            return (_gauss_newton if self.curvature == "gauss-newton" else _whole)(self.member, batch, pull)

    def _by_parameter(self, flat: Tensor) -> list[Tensor]:
        """Return vectors ``[m, P]`` by parameter, ``[m, *shape]`` each."""
        parts = zip(self._columns(flat), self.member.parameters.values(), strict=True)
        return [part.reshape(-1, *p.shape) for part, p in parts]

    def _columns(self, flat: Tensor) -> tuple[Tensor, ...]:
        """Return each parameter's columns of ``[m, P]``."""
        return flat.split(self._sizes, dim=1)


def _whole(member: Member, batch: Batch, pull: Pull) -> Product:
    """Differentiate the gradient along the vectors; the Hessian is symmetric, so a backward pass does it."""
    parameters = leaves_of(member)
    with torch.enable_grad():
        loss = member.loss(parameters, batch).sum()
        gradient = torch.autograd.grad(loss, list(parameters.values()), create_graph=True, materialize_grads=True)
    return lambda vectors: pull(gradient, list(parameters.values()), vectors)


def _gauss_newton(member: Member, batch: Batch, pull: Pull) -> Product:
    """Push the vectors forward to the outputs, through the loss's curvature there, and back.

    Pushing forward is the derivative of pulling back with respect to what is pulled, which is linear in it.
    """
    parameters = leaves_of(member)
    leaves = list(parameters.values())
    with torch.enable_grad():
        outputs = member.logits(parameters, batch)  # [B, ...]
        pulled = torch.zeros_like(outputs, requires_grad=True)
        back = torch.autograd.grad(outputs, leaves, pulled, create_graph=True, materialize_grads=True)
        at = outputs.detach().requires_grad_()
        loss = member.task.loss_function(at, batch.labels).sum()
        (gradient,) = torch.autograd.grad(loss, at, create_graph=True)

    def product(vectors: Sequence[Tensor]) -> list[Tensor]:
        pushed = pull(back, [pulled], vectors)  # [m, B, ...]
        return pull([outputs], leaves, pull([gradient], [at], pushed))

    return product


def _pulled(ends: Sequence[Tensor], starts: Sequence[Tensor], vectors: Sequence[Tensor]) -> list[Tensor]:
    """Return the products of vectors at the ends of a graph, ``[m, *shape]``, with its Jacobian, at its starts."""
    m = len(vectors[0])
    found = _differentiated(ends, starts, vectors, batched=True)
    return [start.new_zeros(m, *start.shape) if g is None else g for g, start in zip(found, starts, strict=True)]


def _pulled_apart(ends: Sequence[Tensor], starts: Sequence[Tensor], vectors: Sequence[Tensor]) -> list[Tensor]:
    """Return the same, one vector after another."""
    out = [start.new_zeros(len(vectors[0]), *start.shape) for start in starts]
    for i, each in enumerate(zip(*vectors, strict=True)):
        for there, g in zip(out, _differentiated(ends, starts, each, batched=False), strict=True):
            if g is not None:
                there[i] = g
    return out


def _differentiated(
    ends: Sequence[Tensor], starts: Sequence[Tensor], vectors: Sequence[Tensor], *, batched: bool
) -> Sequence[Tensor | None]:
    joint = [(end, v) for end, v in zip(ends, vectors, strict=True) if end.requires_grad]  # others are constant
    if not joint:
        return [None] * len(starts)
    return torch.autograd.grad(
        [end for end, _ in joint],
        list(starts),
        [v for _, v in joint],
        retain_graph=True,
        is_grads_batched=batched,
        allow_unused=True,
    )
