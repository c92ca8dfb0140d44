"""Representations: what a model's last linear layer is given, from forward passes alone."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from tdabench.errors import Declined
from tdabench.examples import Examples

if TYPE_CHECKING:
    from tdabench.member import Member

BATCH = 256
"""Examples a pass; a sequence's logits are many numbers."""


@torch.no_grad()
def representations(member: Member, examples: Examples, *, pooled: bool, batch_size: int = BATCH) -> Tensor:
    """Return the representations ``[n, d]``, or ``[n, ..., d]`` if not ``pooled``; see :meth:`Member.representations`.

    The last linear layer is the last one that is called in the pass itself, whatever it is called in the model.
    """
    parts = []
    with _inputs_of_last_linear(member.model) as seen:
        for batch in examples.batches(batch_size):
            member.task.meter.count(forward=len(batch))
            seen.clear()
            member.logits(member.parameters, batch)
            if not seen or seen[0].shape[0] != len(batch):
                raise Declined(
                    f"the model of {member.task.name} has no linear layer that is given one row per example, so there "
                    "is no representation"
                )
            last = seen[0]  # [B, ..., d]
            parts.append(last.flatten(1, -2).mean(1) if pooled and last.dim() > 2 else last.clone())
    return torch.cat(parts)


@contextlib.contextmanager
def _inputs_of_last_linear(model: nn.Module) -> Iterator[list[Tensor]]:
    """Give a list that holds the input of the linear layer called last; one tensor at most is kept alive."""
    seen: list[Tensor] = []

    def note(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen[:] = [inputs[0].detach()]

    handles = [m.register_forward_pre_hook(note) for m in model.modules() if isinstance(m, nn.Linear)]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
