"""Taps: one forward and one backward pass that give every layer's part of every example's gradient.

What a layer's parameters receive is known from the layer's input and the gradient at its output, so those two are
noted in a forward hook and no gradient of a parameter is ever asked of autograd. Parameters that no such layer holds
(learned positions, relative distances, layers of another kind, tied or called twice) are loose: they get a copy per
example, which costs memory of their own size only, and autograd gives each copy's gradient. Copies need the examples
apart, so such models are passed under ``vmap``, with a zero added at every noted output to differentiate by; or one
example after another, where ``vmap`` has no rule for what the model does.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.func import functional_call, vmap

from tdabench.errors import Declined
from tdabench.examples import Batch
from tdabench.kernels import differentiable
from tdabench.layers import pieces_of
from tdabench.pieces import Outer, Piece, Rows

if TYPE_CHECKING:
    from tdabench.member import Member, Quantity

Hook = Callable[[str, Tensor, Tensor], Tensor | None]


@dataclass(frozen=True)
class Layout:
    """How the gradients of a member are found; see :mod:`tdabench.layout`.

    Attributes
    ----------
    layers
        Layers that factor, by name, with the shape of what one example brings out of each.
    loose
        Parameters that none of them holds.
    unused
        Parameters that enter the outputs of no example, and so have gradients of zeros; not among the loose.
    way
        How examples are passed: ``"together"``, ``"mapped"`` one by one under ``vmap``, or ``"alone"``, one after
        another.
    numbers
        How many numbers a pass holds for one example, roughly: inputs, outputs, gradients and the patches of one layer;
        at least what all modules bring out, frozen ones included.
    """

    layers: dict[str, torch.Size]
    loose: tuple[str, ...]
    unused: tuple[str, ...]
    way: Literal["together", "mapped", "alone"]
    numbers: int


@contextlib.contextmanager
def hooked(model: nn.Module, names: Iterable[str], hook: Hook) -> Iterator[None]:
    """Call ``hook(name, input, output)`` after every call of the layers called ``names``; what it returns replaces."""
    modules = dict(model.named_modules())
    handles = []
    for name in names:

        def after(_: nn.Module, args: Any, kwargs: dict[str, Any], out: Tensor, name: str = name) -> Tensor | None:
            return hook(name, args[0] if args else kwargs["input"], out)

        # Before hooks of the model's own, which may change the output.
        handles.append(modules[name].register_forward_hook(after, prepend=True, with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def tap(member: Member, layout: Layout, batch: Batch, of: Quantity, *, short: bool = False) -> Iterator[Piece]:
    """Yield the pieces of a batch's gradients, in the order of the model's layers, loose parameters last.

    A piece is made when it is asked for; what it is made of is let go then. If ``short``, those that may be are in
    bfloat16.

    Raises
    ------
    Declined
        If the model calls its layers otherwise than it did when the layout was found.
    """
    member.task.meter.count(forward=len(batch), backward=len(batch))
    yield from pieces_at(member, layout, batch, of, short=short)


def pieces_at(member: Member, layout: Layout, batch: Batch, of: Quantity, *, short: bool = False) -> Iterator[Piece]:
    """Yield the pieces of a batch's gradients, as :func:`tap` does, without counting the passes."""
    # Many examples at once under vmap: fused attention would be given them one after another.
    with differentiable(member.model, plain=layout.way == "mapped"):
        seen, at_outputs, loose = _PASSES[layout.way](member, layout, batch, of)
    values = {**member.parameters, **member.statistics}
    modules = dict(member.model.named_modules())
    for name in layout.layers:
        yield from pieces_of(name, modules[name], seen.pop(name), at_outputs.pop(name), values, short=short)
    for name, g in loose.items():
        rows = Rows(name, (name,), _as_matrices(g))
        yield rows.shortened() if short else rows
    for name in layout.unused:
        yield _nothing(name, member.parameters[name], len(batch))


def _nothing(name: str, parameter: Tensor, n: int) -> Outer:
    """Return gradients of zeros, as factors: a layer that is not used may be large."""
    p, q = _as_matrices(parameter.unsqueeze(0)).shape[1:]
    return Outer(name, (name,), parameter.new_zeros(n, 1, p), parameter.new_zeros(n, 1, q))


def _as_matrices(g: Tensor) -> Tensor:
    """Return ``[n, ...]`` as ``[n, p, q]``."""
    return g.reshape(g.shape[0], g.shape[1] if g.dim() > 2 else g[0].numel(), -1)


def row(batch: Batch, i: int) -> Batch:
    """Return one example of a batch, as a batch."""
    one = slice(i, i + 1)
    return Batch(batch.inputs[one], batch.labels[one], batch.index[one], batch.split)


def leaves_of(member: Member) -> dict[str, Tensor]:
    """Return the member's parameters as tensors that autograd differentiates by."""
    return {name: p.detach().requires_grad_() for name, p in member.parameters.items()}


# Inputs of the layers and gradients at their outputs, ``[B, ...]`` with what one example alone brings in or out of the
# layer, the dimension that it calls the batch included; and gradients of loose parameters, ``[B, *shape]``.
Tapped = tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]


def _together(member: Member, layout: Layout, batch: Batch, of: Quantity) -> Tapped:
    """Pass the batch as it is; examples do not interact, so the gradient of the sum holds every example's own."""
    seen, at_outputs, loose = _passed(member, layout, batch, of)
    as_one_each = [{name: t.unsqueeze(1) for name, t in part.items()} for part in (seen, at_outputs)]
    return as_one_each[0], as_one_each[1], loose


def _alone(member: Member, layout: Layout, batch: Batch, of: Quantity) -> Tapped:
    """Pass one example after another."""
    each = [_passed(member, layout, row(batch, i), of) for i in range(len(batch))]
    seen, at_outputs, loose = (_stacked(parts) for parts in zip(*each, strict=True))
    return seen, at_outputs, loose


def _stacked(parts: Iterable[dict[str, Tensor]]) -> dict[str, Tensor]:
    parts = list(parts)
    return {name: torch.stack([part[name] for part in parts]) for name in parts[0]}


def _passed(member: Member, layout: Layout, batch: Batch, of: Quantity) -> Tapped:
    """Return what an ordinary pass shows: inputs, gradients at outputs, and gradients of loose parameters."""
    seen: dict[str, Tensor] = {}
    edges: dict[str, GradientEdge] = {}

    def note(name: str, x: Tensor, out: Tensor) -> None:
        check_call(member, layout, seen, name, out, len(batch))
        seen[name] = x.detach()
        # The edge, not the tensor: an activation that works in place turns the tensor into its own output.
        edges[name] = get_gradient_edge(out)

    leaves = leaves_of(member)
    with torch.enable_grad(), hooked(member.model, layout.layers, note):
        values = member.function(of)(member.logits(leaves, batch), batch.labels)  # [B]
        total = values.sum()  # in here: a method may have switched gradients off
    check_called(member, layout, seen)
    starts: list[Any] = [*(edges[name] for name in layout.layers), *(leaves[name] for name in layout.loose)]
    found = torch.autograd.grad(total, starts, allow_unused=True)
    shapes = [*((len(batch) * s[0], *s[1:]) for s in layout.layers.values()), *(leaves[k].shape for k in layout.loose)]
    # What an example does not use has no part in its gradient.
    full = [values.new_zeros(shape) if g is None else g for g, shape in zip(found, shapes, strict=True)]
    split = len(layout.layers)
    return (
        seen,
        dict(zip(layout.layers, full[:split], strict=True)),
        dict(zip(layout.loose, full[split:], strict=True)),
    )


def _mapped(member: Member, layout: Layout, batch: Batch, of: Quantity) -> Tapped:
    """Pass every example under ``vmap`` with its own copy of the loose parameters."""
    function, n = member.function(of), len(batch)
    copies = {k: member.parameters[k].detach().expand(n, *member.parameters[k].shape) for k in layout.loose}
    like = next(iter(member.parameters.values()))
    # Zeros that take no memory: every row is the same number.
    zeros = {name: like.new_zeros(()).expand(n, *shape) for name, shape in layout.layers.items()}
    fixed = {**{k: p for k, p in member.parameters.items() if k not in copies}, **member.statistics}

    def one(
        copies: dict[str, Tensor], zeros: dict[str, Tensor], x: Tensor, y: Tensor, masks: dict[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        seen: dict[str, Tensor] = {}

        def note(name: str, x: Tensor, out: Tensor) -> Tensor:
            check_call(member, layout, seen, name, out, 1)
            seen[name] = x.detach()
            return out + zeros[name]

        with hooked(member.model, layout.layers, note):
            rows = {k: m.unsqueeze(0) for k, m in masks.items()}
            logits = functional_call(member.model, {**fixed, **copies, **rows}, (x.unsqueeze(0),))
        check_called(member, layout, seen)
        return function(logits, y.unsqueeze(0)).squeeze(0), seen

    leaves = [t.requires_grad_() for t in (*copies.values(), *zeros.values())]
    with torch.enable_grad():
        values, seen = vmap(one)(copies, zeros, batch.inputs, batch.labels, member.mask_rows(batch))
        total = values.sum()
    found = [  # a model may take what it makes of a parameter out of the graph
        torch.zeros_like(leaf) if g is None else g
        for g, leaf in zip(torch.autograd.grad(total, leaves, allow_unused=True), leaves, strict=True)
    ]
    split = len(copies)
    return (
        seen,
        dict(zip(layout.layers, found[split:], strict=True)),
        dict(zip(layout.loose, found[:split], strict=True)),
    )


_PASSES: dict[str, Callable[[Member, Layout, Batch, Quantity], Tapped]] = {
    "together": _together,
    "mapped": _mapped,
    "alone": _alone,
}


def check_call(member: Member, layout: Layout, seen: dict[str, Tensor], name: str, out: Tensor, n: int) -> None:
    """Refuse a second call, and one that brings out more or less than the layout says."""
    first, *rest = layout.layers[name]
    if name in seen or out.shape != (n * first, *rest):
        raise _otherwise(member, name)


def check_called(member: Member, layout: Layout, seen: dict[str, Tensor]) -> None:
    """Refuse a pass that did not call a layer."""
    for name in layout.layers:
        if name not in seen:
            raise _otherwise(member, name)


def _otherwise(member: Member, name: str) -> Declined:
    return Declined(
        f"the model of {member.task.name} calls {name or 'itself'} differently for different examples, so the layer's "
        "gradients cannot be put together"
    )
