r"""Per-sample gradients: dot products, norms and random projections, without forming the gradients where possible.

A linear layer's gradient for one example is an outer product: of the gradient with respect to the layer's output,
``g [out]``, and of its input, ``a [in]`` (the bias is one more input that is always one). So a dot product of two
examples' gradients is ``(g . g') (a . a')``, summed over layers, and the norms follow; one forward and one backward
pass per batch gives all factors. The same holds for a low-rank adapter, whose two parts have the gradients
``g (down a)^T`` and ``(up^T g) a^T``.

Layers of any other kind fall back to ``torch.func.vmap(grad)`` in blocks of bounded memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.func import functional_call, grad, vmap

from tdabench.examples import Batch, Examples
from tdabench.lora import adapter_names
from tdabench.seeds import generator

if TYPE_CHECKING:
    from tdabench.member import Member, Quantity

ExampleFunction = Callable[[Tensor, Tensor], Tensor]

# Temporary results stay below this; large enough for full matrix-product speed.
_BLOCK_BYTES = 128 << 20
# One side of a dot product is held up to this, because the other side's gradients are computed once for each part.
_HELD_BYTES = 512 << 20
_BATCH = 1024
# Every slice of a dense projection has its own stream, so this is part of what the results are.
_SIGN_ROWS = 4096


class Gradients(Protocol):
    """The gradients of ``n`` examples at one member."""

    def dot(self, other: Gradients) -> Tensor:
        """Return the dot products ``[n, m]`` with the gradients of ``m`` other examples at the same member."""

    def norms(self) -> Tensor:
        """Return the Euclidean norms ``[n]``."""

    def project(self, size: int, *stream: str | int) -> Tensor:
        """Return random projections ``[n, size]`` that preserve dot products in expectation."""


@dataclass(frozen=True)
class FactoredGradients:
    """Gradients as sums of outer products.

    Attributes
    ----------
    left, right
        Per block ``[n, p]`` and ``[n, q]``: example i's gradient in the block is ``left[i] (x) right[i]``.
    """

    left: tuple[Tensor, ...]
    right: tuple[Tensor, ...]

    def dot(self, other: Gradients) -> Tensor:
        """Sum over blocks of (left . left') (right . right'), in row blocks of bounded memory."""
        if not isinstance(other, FactoredGradients):
            raise TypeError("Gradients at one member are all factored or all not.")
        n, m = self.left[0].shape[0], other.left[0].shape[0]
        out = self.left[0].new_zeros(n, m)
        rows = max(1, _BLOCK_BYTES // (8 * m))
        for start in range(0, n, rows):
            part = slice(start, start + rows)
            for a, b, c, d in zip(self.left, self.right, other.left, other.right, strict=True):
                out[part].addcmul_(a[part] @ c.T, b[part] @ d.T)
        return out

    def norms(self) -> Tensor:
        """Root of the sum over blocks of |left|^2 |right|^2."""
        squares = [a.square().sum(1) * b.square().sum(1) for a, b in zip(self.left, self.right, strict=True)]
        return torch.stack(squares).sum(0).sqrt()

    def project(self, size: int, *stream: str | int) -> Tensor:
        """Project each outer product on ``size`` random rank-one sign matrices.

        Component j is the sum over blocks of (r_j . left) (s_j . right) / sqrt(size), r_j and s_j independent random
        signs: an unbiased sketch of the dot product at the cost of two thin matrix products per block (Sun et al.
        2018, tensor random projection). Its variance is up to 9 times, typically 2 times, that of a dense projection
        of the same size.
        """
        out = self.left[0].new_zeros(self.left[0].shape[0], size)
        for number, (a, b) in enumerate(zip(self.left, self.right, strict=True)):
            r = _signs(a.shape[1], size, a, *stream, number, "left")
            s = _signs(b.shape[1], size, b, *stream, number, "right")
            out.addcmul_(a @ r, b @ s)
        return out.mul_(1.0 / math.sqrt(size))


@dataclass(frozen=True)
class PerSampleGradients:
    """Gradients of any model, computed in blocks whenever they are used."""

    member: Member
    examples: Examples
    of: Quantity

    @property
    def n_parameters(self) -> int:
        """Length of one gradient."""
        return sum(p.numel() for p in self.member.parameters.values())

    def blocks(self) -> Iterator[Tensor]:
        """Yield the gradients of consecutive examples, ``[b, n_parameters]``."""
        return self._blocks_of(range(len(self.examples)))

    def _blocks_of(self, part: range) -> Iterator[Tensor]:
        size = max(1, _BLOCK_BYTES // (4 * self.n_parameters))
        for start in range(part.start, part.stop, size):
            index = torch.arange(start, min(start + size, part.stop), device=self.examples.inputs.device)
            yield _flat_gradients(self.member, self.examples.take(index), self.of)

    def dot(self, other: Gradients) -> Tensor:
        """Multiply block by block; the other side's blocks are computed once per part of this side that is held."""
        if not isinstance(other, PerSampleGradients):
            raise TypeError("Gradients at one member are all factored or all not.")
        return torch.cat([torch.cat([held @ b.T for b in other.blocks()], dim=1) for held in self._held()])

    def _held(self) -> Iterator[Tensor]:
        """Yield the gradients of as many consecutive examples as may be held, ``[h, n_parameters]``."""
        rows = max(1, _HELD_BYTES // (4 * self.n_parameters))
        for start in range(0, len(self.examples), rows):
            part = range(start, min(start + rows, len(self.examples)))
            held = torch.empty(len(part), self.n_parameters, device=self.examples.inputs.device)
            place = 0
            for block in self._blocks_of(part):
                held[place : place + len(block)] = block
                place += len(block)
            yield held

    def norms(self) -> Tensor:
        """Norms, block by block."""
        return torch.cat([block.norm(dim=1) for block in self.blocks()])

    def project(self, size: int, *stream: str | int) -> Tensor:
        """Multiply by a dense random sign matrix / sqrt(size), drawn in slices of bounded memory."""
        parts = []
        for block in self.blocks():
            out = block.new_zeros(block.shape[0], size)
            for number, piece in enumerate(block.split(_SIGN_ROWS, dim=1)):
                out += piece @ _signs(piece.shape[1], size, block, *stream, "dense", number)
            parts.append(out / math.sqrt(size))
        return torch.cat(parts)


def of_member(member: Member, examples: Examples, of: Quantity) -> Gradients:
    """Return the gradients of every example at a member, factored where the layers allow it."""
    layers = linear_layers(member.model, set(member.parameters))
    if layers is not None:
        factored = _factored(member, examples, of, layers)
        if factored is not None:
            return factored
    return PerSampleGradients(member, examples, of)


def linear_layers(model: nn.Module, names: set[str]) -> dict[str, nn.Linear] | None:
    """Return the linear layers that hold all of ``names``; None if some parameter is held by another kind.

    None, too, if layers share a parameter: its gradient is a sum over them.
    """
    if len(list(model.parameters())) != len(list(model.named_parameters(remove_duplicate=False))):
        return None
    layers, held = {}, set()
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and type(module).forward is nn.Linear.forward:
            own = {n for n in _own_names(name) if n in names}
            if own:
                layers[name] = module
                held |= own
    return layers if held == names else None


def _own_names(layer: str) -> tuple[str, ...]:
    start = f"{layer}." if layer else ""
    return (f"{start}weight", f"{start}bias", *adapter_names(layer))


def _factored(
    member: Member, examples: Examples, of: Quantity, layers: dict[str, nn.Linear]
) -> FactoredGradients | None:
    parts: list[tuple[list[Tensor], list[Tensor]]] = []
    for batch in examples.batches(_BATCH):
        taps = _tap(member, batch, of, layers)
        if taps is None:
            return None
        left: list[Tensor] = []
        right: list[Tensor] = []
        for name, (a, g) in taps.items():
            for p, q in _outer_products(name, a, g, member.parameters):
                left.append(p)
                right.append(q)
        parts.append((left, right))
    lefts, rights = zip(*parts, strict=True)
    return FactoredGradients(
        tuple(torch.cat(x) for x in zip(*lefts, strict=True)), tuple(torch.cat(x) for x in zip(*rights, strict=True))
    )


def _outer_products(layer: str, a: Tensor, g: Tensor, parameters: dict[str, Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the outer products that make up a layer's gradient, from inputs ``a [B, in]`` and ``g [B, out]``."""
    weight, bias, down, up = _own_names(layer)
    if weight in parameters and bias in parameters:
        yield g, torch.cat([a, a.new_ones(a.shape[0], 1)], dim=1)
    elif weight in parameters:
        yield g, a
    elif bias in parameters:
        yield g, a.new_ones(a.shape[0], 1)
    if down in parameters:
        yield g, a @ parameters[down].T  # gradient of up: [out, r]
        yield g @ parameters[up], a  # gradient of down: [r, in]


def _tap(
    member: Member, batch: Batch, of: Quantity, layers: dict[str, nn.Linear]
) -> dict[str, tuple[Tensor, Tensor]] | None:
    """Return each layer's input ``[B, in]`` and gradient at its output ``[B, out]``.

    None if a layer is called more than once or on inputs that are not ``[B, in]``: then one outer product per example
    does not make up the gradient.
    """
    inputs: dict[str, list[Tensor]] = {name: [] for name in layers}
    outputs: dict[str, list[GradientEdge]] = {name: [] for name in layers}
    hooks = []
    for name, layer in layers.items():

        def note(_: nn.Module, args: tuple[Tensor, ...], out: Tensor, name: str = name) -> None:
            inputs[name].append(args[0].detach())
            # The edge, not the tensor: an activation that works in place turns the tensor into its own output.
            outputs[name].append(get_gradient_edge(out))

        hooks.append(layer.register_forward_hook(note))
    try:
        logits = member.logits({k: p.detach().requires_grad_() for k, p in member.parameters.items()}, batch)
    finally:
        for hook in hooks:
            hook.remove()
    if any(len(x) != 1 or x[0].dim() != 2 for x in inputs.values()):
        return None
    values = member.function(of)(logits, batch.labels)  # [B]
    # Examples do not interact, so the gradient of the sum holds every example's own gradient.
    at_outputs = torch.autograd.grad(values.sum(), [x[0] for x in outputs.values()])
    member.task.meter.count(forward=len(batch), backward=len(batch))
    return {name: (inputs[name][0], g) for name, g in zip(layers, at_outputs, strict=True)}


def _flat_gradients(member: Member, batch: Batch, of: Quantity) -> Tensor:
    """Return the gradients of a batch's examples, ``[B, n_parameters]``, by vmap over grad."""
    function = member.function(of)

    def one(parameters: dict[str, Tensor], x: Tensor, y: Tensor, masks: dict[str, Tensor]) -> Tensor:
        rows = {k: m.unsqueeze(0) for k, m in masks.items()}
        logits = functional_call(member.model, {**parameters, **member.statistics, **rows}, (x.unsqueeze(0),))
        return function(logits, y.unsqueeze(0)).squeeze(0)

    per_sample = vmap(grad(one), in_dims=(None, 0, 0, 0))
    found = per_sample(member.parameters, batch.inputs, batch.labels, member.mask_rows(batch))
    member.task.meter.count(forward=len(batch), backward=len(batch))
    return torch.cat([found[k].flatten(1) for k in member.parameters], dim=1)


def _signs(n: int, size: int, like: Tensor, *stream: str | int) -> Tensor:
    """Return random signs ``[n, size]`` of the stream, drawn on the CPU so that every device has the same."""
    bits = torch.randint(0, 2, (n, size), generator=generator(*stream), dtype=torch.int8)
    return bits.to(like.device, like.dtype).mul_(2).sub_(1)
