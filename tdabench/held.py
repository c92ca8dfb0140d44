"""Held: how many numbers a pass holds of an example, and so how many examples are passed at once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.func import functional_call

from tdabench.budgets import block_bytes
from tdabench.examples import FORWARD_BATCH, Examples
from tdabench.graph import kept
from tdabench.kernels import differentiable
from tdabench.memory import ran_out
from tdabench.taps import leaves_of

if TYPE_CHECKING:
    from tdabench.member import Member
    from tdabench.view import TaskView

# Of a forward pass, if it held all at once; most of it is let go on the way.
_FORWARD_BYTES = 256 << 20

# It takes a few passes, and does not depend on values: a task's members share it.
_found: WeakKeyDictionary[TaskView, dict[object, int]] = WeakKeyDictionary()


def forward_batch(member: Member, examples: Examples) -> int:
    """Return how many examples are passed forward at once, as many as the memory budget leaves room for."""
    most = block_bytes(_FORWARD_BYTES, examples.inputs.device)
    return max(1, min(FORWARD_BATCH, most // (4 * numbers_held(member, examples.inputs))))


def numbers_held(member: Member, inputs: Tensor, *, plain: bool = False) -> int:
    """Return how many numbers a pass holds of one example: what comes out of modules, or its graph keeps, if more.

    Graphs keep what is computed between modules, as the weights of attention are.

    Parameters
    ----------
    inputs
        ``[n, *example]``; the first is passed, alone and twice.
    plain
        As in :func:`tdabench.kernels.differentiable`.
    """
    kind = (plain, inputs.shape[1:], *((name, p.shape) for name, p in member.parameters.items()))
    found = _found.setdefault(member.task, {})
    if kind not in found:
        one, two = (_kept_bytes(member, inputs[[0] * n], plain=plain) for n in (1, 2))
        found[kind] = max(1, numbers_out(member, inputs[:1]), (two - one) // 4)
    return found[kind]


def _kept_bytes(member: Member, inputs: Tensor, *, plain: bool) -> int:
    """Return what the graph of a pass keeps; 0 for models that differentiate inside, whose graphs cannot be watched."""
    try:
        with torch.enable_grad(), differentiable(member.model, plain=plain), kept() as found:
            outputs = functional_call(member.model, {**leaves_of(member), **member.statistics}, (inputs,))
            del outputs
    except RuntimeError as error:
        if ran_out(error):
            raise
        return 0
    return sum(found.values())


def numbers_out(member: Member, inputs: Tensor) -> int:
    """Return how many numbers come out of all modules for these inputs, those that hold modules included.

    Those that make weights, as adapters do, give them once for all examples and are left out.
    """
    sizes: list[int] = []

    def note(module: nn.Module, args: Any, out: Any) -> None:
        if isinstance(out, Tensor):
            sizes.append(out.numel())

    named = member.model.named_modules()
    handles = [m.register_forward_hook(note) for name, m in named if "parametrizations" not in name.split(".")]
    try:
        with torch.no_grad():
            functional_call(member.model, {**member.parameters, **member.statistics}, (inputs,))
    finally:
        for handle in handles:
            handle.remove()
    return sum(sizes)
