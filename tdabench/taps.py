"""Taps: one forward and one backward pass that give every layer's part of every example's gradient.

What a layer's parameters receive is known from the layer's input and the gradient at its output, so those two are
noted in a forward hook and no gradient of a parameter is ever asked of autograd. Parameters that no such layer holds
(learned positions, relative distances, layers of another kind, tied or called twice) are loose: they get a copy per
example, which costs memory of their own size only, and autograd gives each copy's gradient. Copies need the examples
apart, so such models are passed under ``vmap``, with a zero added at every noted output to differentiate by.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.func import functional_call, vmap

from tdabench.examples import Batch, Examples
from tdabench.layers import factors, own_names, pieces_of
from tdabench.pieces import Piece, Rows

if TYPE_CHECKING:
    from tdabench.member import Member, Quantity

Hook = Callable[[str, Tensor, Tensor], Tensor | None]


@dataclass(frozen=True)
class Layout:
    """How the gradients of a member are found.

    Attributes
    ----------
    layers
        Layers that factor, by name, with the shape of what one example brings out of each.
    loose
        Parameters that none of them holds.
    apart
        Whether examples are passed one by one under ``vmap``.
    numbers
        How many numbers a pass holds for one example, roughly: inputs, outputs, patches and gradients.
    """

    layers: dict[str, torch.Size]
    loose: tuple[str, ...]
    apart: bool
    numbers: int


@dataclass(frozen=True)
class _Call:
    rows: int
    inputs: int
    outputs: torch.Size


def layout_of(member: Member, examples: Examples) -> Layout:
    """Find the layers that factor, by passing two examples."""
    calls = _calls(member, examples)
    n = min(2, len(examples))
    layers = {name: calls[name][0] for name in calls if len(calls[name]) == 1}
    held = {p for name in layers for p in own_names(name)}
    loose = tuple(name for name in member.parameters if name not in held)
    mixed = any(call.rows != n for call in layers.values())  # a layer that is given all examples' tokens in one row
    modules = dict(member.model.named_modules())
    numbers = sum(_numbers(modules[name], call, n) for name, call in layers.items())
    numbers += sum(member.parameters[name].numel() for name in loose)
    shapes = {name: torch.Size([call.outputs[0] // n, *call.outputs[1:]]) for name, call in layers.items()}
    return Layout(shapes, loose, bool(loose) or mixed, numbers)


def _numbers(module: nn.Module, call: _Call, n: int) -> int:
    """Return how many numbers a layer's input, output and gradient take for one example, patches included."""
    outputs, channels = call.outputs.numel() // n, call.outputs[1 if isinstance(module, nn.Conv2d) else -1]
    positions = outputs // channels
    seen = call.inputs // n
    if isinstance(module, nn.Conv2d):
        seen += positions * module.in_channels * module.kernel_size[0] * module.kernel_size[1]
    summed = sum(p.numel() for p in module.parameters(recurse=False)) if positions > 1 else 0
    return seen + 3 * outputs + summed


def _calls(member: Member, examples: Examples) -> dict[str, list[_Call]]:
    """Return how every layer that factors and holds a differentiated parameter is called on two examples."""
    tied = _tied(member.model)
    wanted = set(member.parameters) - tied
    names = [
        name
        for name, module in member.model.named_modules()
        if factors(module) and wanted.intersection(own_names(name)) and not tied.intersection(own_names(name))
    ]
    calls: dict[str, list[_Call]] = {name: [] for name in names}

    def note(name: str, x: Tensor, out: Tensor) -> None:
        calls[name].append(_Call(x.shape[0], x.numel(), out.shape))

    values = {**member.parameters, **member.statistics}
    with torch.no_grad(), _hooked(member.model, names, note):
        functional_call(member.model, values, (examples.inputs[:2],))
    return calls


def _tied(model: nn.Module) -> set[str]:
    """Return the parameters that stand in more than one place: their gradient is a sum over the places."""
    places: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        places.setdefault(id(parameter), []).append(name)
    return {name for names in places.values() if len(names) > 1 for name in names}


@contextlib.contextmanager
def _hooked(model: nn.Module, names: Any, hook: Hook) -> Iterator[None]:
    """Call ``hook(name, input, output)`` after every call of the layers called ``names``; what it returns replaces."""
    modules = dict(model.named_modules())
    handles = []
    for name in names:

        def after(_: nn.Module, args: tuple[Tensor, ...], out: Tensor, name: str = name) -> Tensor | None:
            return hook(name, args[0], out)

        handles.append(modules[name].register_forward_hook(after))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def tap(member: Member, layout: Layout, batch: Batch, of: Quantity) -> list[Piece]:
    """Return the pieces of a batch's gradients, in the order of the model's layers, loose parameters last."""
    seen, at_outputs, loose = (_apart if layout.apart else _together)(member, layout, batch, of)
    member.task.meter.count(forward=len(batch), backward=len(batch))
    values = {**member.parameters, **member.statistics}
    modules = dict(member.model.named_modules())
    pieces: list[Piece] = []
    for name in layout.layers:
        pieces += pieces_of(name, modules[name], seen[name], at_outputs[name], values)
    return pieces + [Rows(name, (name,), _as_matrices(g)) for name, g in loose.items()]


def _as_matrices(g: Tensor) -> Tensor:
    """Return ``[n, ...]`` as ``[n, p, q]``."""
    return g.reshape(g.shape[0], g.shape[1] if g.dim() > 2 else g[0].numel(), -1)


Tapped = tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]


def _together(member: Member, layout: Layout, batch: Batch, of: Quantity) -> Tapped:
    """Pass the batch as it is; examples do not interact, so the gradient of the sum holds every example's own."""
    seen: dict[str, Tensor] = {}
    edges: dict[str, GradientEdge] = {}

    def note(name: str, x: Tensor, out: Tensor) -> None:
        seen[name] = x.detach()
        # The edge, not the tensor: an activation that works in place turns the tensor into its own output.
        edges[name] = get_gradient_edge(out)

    with torch.enable_grad(), _hooked(member.model, layout.layers, note):
        logits = member.logits({k: p.detach().requires_grad_() for k, p in member.parameters.items()}, batch)
        values = member.function(of)(logits, batch.labels)  # [B]
    found = torch.autograd.grad(values.sum(), [edges[name] for name in layout.layers])
    return seen, dict(zip(layout.layers, found, strict=True)), {}


def _apart(member: Member, layout: Layout, batch: Batch, of: Quantity) -> Tapped:
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
            seen[name] = x.detach()
            return out + zeros[name]

        with _hooked(member.model, layout.layers, note):
            rows = {k: m.unsqueeze(0) for k, m in masks.items()}
            logits = functional_call(member.model, {**fixed, **copies, **rows}, (x.unsqueeze(0),))
        return function(logits, y.unsqueeze(0)).squeeze(0), seen

    leaves = [t.requires_grad_() for t in (*copies.values(), *zeros.values())]
    with torch.enable_grad():
        values, seen = vmap(one)(copies, zeros, batch.inputs, batch.labels, member.mask_rows(batch))
    found = torch.autograd.grad(values.sum(), leaves)
    split = len(copies)
    # Under vmap an example is a batch of one, so its tensors have one dimension more.
    return (
        {name: x.flatten(0, 1) if x.shape[1] == 1 else x for name, x in seen.items()},
        {name: g.flatten(0, 1) if g.shape[1] == 1 else g for name, g in zip(layout.layers, found[split:], strict=True)},
        dict(zip(layout.loose, found[:split], strict=True)),
    )
