"""Representations: what a model's last linear layer is given, from forward passes alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.func import functional_call

from tdabench.errors import Declined
from tdabench.examples import Examples
from tdabench.graph import behind, entries
from tdabench.held import forward_batch
from tdabench.kernels import differentiable
from tdabench.taps import hooked

if TYPE_CHECKING:
    from tdabench.member import Member


@dataclass(frozen=True)
class LastLinear:
    """The linear layer that a pass calls last.

    Attributes
    ----------
    name
        In the model.
    by_row
        Whether it is given one row per example.
    uses
        How often its weight enters the model's outputs.
    is_output
        Whether what it gives is what the model gives, value for value.
    after
        Weights that enter the outputs elsewhere than in this layer and what is behind it: where there are some, it is
        not the model's last layer.
    """

    name: str
    by_row: bool
    uses: int
    is_output: bool
    after: tuple[str, ...]


def last_linear(member: Member) -> LastLinear | None:
    """Return the linear layer that a pass of training examples calls last; None if it calls none."""
    names = [name for name, module in member.model.named_modules() if isinstance(module, nn.Linear)]
    calls: list[tuple[str, int, Node | None, Tensor]] = []

    def note(name: str, x: Tensor, out: Tensor) -> None:
        calls.append((name, x.shape[0], out.grad_fn, out.detach().clone()))  # an activation may work in place

    given = {**dict(member.model.named_parameters()), **member.parameters, **member.statistics}
    floats = {k for k, _ in member.model.named_parameters()}
    leaves = {k: p.detach().requires_grad_() if k in floats else p for k, p in given.items()}
    inputs = member.task.training.inputs[:2]
    rows = []
    for n in range(1, 1 + len(inputs)):
        calls.clear()
        with torch.enable_grad(), differentiable(member.model), hooked(member.model, names, note):
            outputs = functional_call(member.model, leaves, (inputs[:n],))
        if not calls:
            return None
        rows.append(calls[-1][1] == n)
    name, _, node, given_out = calls[-1]
    after = tuple(k for k in entries(outputs, leaves, behind(node)) if leaves[k].dim() > 1)
    is_output = torch.equal(given_out.flatten(), outputs.detach().flatten())
    return LastLinear(name, all(rows), entries(outputs, leaves)[_weight_of(member.model, name)], is_output, after)


def _weight_of(model: nn.Module, name: str) -> str:
    """Return what a layer's weight is called among the parameters: a tied one has the first of its names."""
    own = dict(model.get_submodule(name).named_parameters(recurse=False)).get("weight")
    return next((k for k, p in model.named_parameters() if p is own), "")


@torch.no_grad()
def representations(member: Member, examples: Examples, *, pooled: bool, batch_size: int | None = None) -> Tensor:
    """Return the representations ``[n, d]``, or ``[n, ..., d]`` if not ``pooled``; see :meth:`Member.representations`.

    The last linear layer is the last one that is called in the pass itself, whatever it is called in the model.
    """
    last = last_linear(member)
    if last is None or not last.by_row:
        raise Declined(
            f"the model of {member.task.name} has no linear layer that is given one row per example, so there is no "
            "representation"
        )
    if last.after:
        raise Declined(
            f"what the last linear layer of the model of {member.task.name}, {last.name}, is given is no "
            f"representation: {last.after[0]} comes beside or after it"
        )
    if not pooled and not last.is_output:
        raise Declined(
            f"what the last linear layer of the model of {member.task.name}, {last.name or 'the model itself'}, gives "
            "is not the model's output: something changes it afterwards"
        )
    parts: list[Tensor] = []
    seen: list[Tensor] = []

    def note(_: str, x: Tensor, out: Tensor) -> None:
        seen[:] = [x]

    size = batch_size or forward_batch(member, examples)
    with differentiable(member.model), hooked(member.model, [last.name], note):
        for batch in examples.batches(size):
            member.task.meter.count(forward=len(batch))
            member.logits(member.parameters, batch)
            rows = seen.pop()  # [B, ..., d]
            parts.append(rows.flatten(1, -2).mean(1) if pooled and rows.dim() > 2 else rows.clone())
    return torch.cat(parts)
