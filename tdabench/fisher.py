"""Gradients whose second moment is the Fisher information: those of the loss at labels that the model itself draws."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from tdabench.errors import Declined
from tdabench.examples import Examples
from tdabench.held import forward_batch
from tdabench.seeds import derive_seed

if TYPE_CHECKING:
    from tdabench.member import Member


@torch.no_grad()
def with_sampled_labels(member: Member, examples: Examples, *stream: str | int) -> Examples:
    """Return the examples with one label each (each token, for sequences) drawn from the member's predictions.

    The second moment of the gradients of the cross-entropy at such labels estimates the Fisher information, which is
    the Gauss-Newton part of the Hessian; at the true labels it is the empirical Fisher, which shrinks as the model fits
    (Kunstner et al. 2019). Where the loss is the mean over T tokens, whose labels are drawn independently, the second
    moment is 1 / T of the Gauss-Newton part: 1 / T^2 times the sum of the tokens' parts, where that is 1 / T times it.

    Parameters
    ----------
    member, examples
        Where, and of which examples.
    stream
        Names the random stream; the draw depends on nothing else but the predictions.

    Raises
    ------
    Declined
        If the labels are not classes, or some are none; or the model has no output for each of several classes; or the
        loss is not their cross-entropy, the mean over those of an example.
    """
    if examples.labels.dtype != torch.int64:
        raise Declined("labels can be drawn from the model's predictions only where they are classes")
    if bool((examples.labels < 0).any()):  # drawn, they would be predicted, which the loss does not ask for
        raise Declined(
            "labels can be drawn from the model's predictions only where each is a class, and some are below 0 (as "
            "ignore_index has them)"
        )
    labels: list[Tensor] = []
    random = np.random.Generator(np.random.PCG64(derive_seed(*stream, "labels")))
    for batch in examples.batches(forward_batch(member, examples)):
        member.task.meter.count(forward=len(batch))
        logits = member.logits(member.parameters, batch)  # [B, ..., C]
        _check_classes(logits, batch.labels)
        if not labels:
            _check_loss(member, logits, batch.labels)
        cumulative = logits.double().softmax(-1).cumsum(-1)
        u = torch.from_numpy(random.random(cumulative.shape[:-1])).to(cumulative.device)
        drawn = (cumulative < u.unsqueeze(-1)).sum(-1)
        labels.append(drawn.clamp_(max=cumulative.shape[-1] - 1))  # a sum that rounds to just below one
    return replace(examples, labels=torch.cat(labels))


def _check_classes(logits: Tensor, labels: Tensor) -> None:
    if logits.shape[:-1] != labels.shape or logits.shape[-1] < 2:
        raise Declined(
            "labels can be drawn from the model's predictions only where it has an output for each of several classes; "
            f"it has outputs [{_after_batch(logits)}] for labels [{_after_batch(labels)}]"
        )


def _check_loss(member: Member, logits: Tensor, labels: Tensor) -> None:
    losses = member.task.loss_function(logits, labels)
    each = torch.nn.functional.cross_entropy(logits.movedim(-1, 1), labels, reduction="none")  # [B, ...]
    if not torch.allclose(losses, each.flatten(1).mean(1) if each.dim() > 1 else each, 1e-3, 1e-4, equal_nan=True):
        raise Declined(
            "labels can be drawn from the model's predictions only where the loss is their cross-entropy, and that of "
            f"{member.task.name} is another"
        )


def _after_batch(values: Tensor) -> str:
    return ", ".join(["B", *(str(size) for size in values.shape[1:])])
