"""Gradients whose second moment is the Fisher information: those of the loss at labels that the model itself draws."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from tdabench.errors import Declined
from tdabench.examples import Examples
from tdabench.seeds import derive_seed

if TYPE_CHECKING:
    from tdabench.member import Member

_BATCH = 256


@torch.no_grad()
def with_sampled_labels(member: Member, examples: Examples, *stream: str | int) -> Examples:
    """Return the examples with one label each (each token, for sequences) drawn from the member's predictions.

    The second moment of the loss's gradients at such labels estimates the Fisher information, which for cross-entropy
    is the Gauss-Newton part of the Hessian; at the true labels it is the empirical Fisher, which shrinks as the model
    fits (Kunstner et al. 2019).

    Parameters
    ----------
    member, examples
        Where, and of which examples.
    stream
        Names the random stream; the draw depends on nothing else but the predictions.

    Raises
    ------
    Declined
        If the labels are not classes.
    """
    if examples.labels.dtype != torch.int64:
        raise Declined("labels can be drawn from the model's predictions only where they are classes")
    labels = []
    random = np.random.Generator(np.random.PCG64(derive_seed(*stream, "labels")))
    for batch in examples.batches(_BATCH):
        member.task.meter.count(forward=len(batch))
        cumulative = member.logits(member.parameters, batch).double().softmax(-1).cumsum(-1)  # [B, ..., C]
        u = torch.from_numpy(random.random(cumulative.shape[:-1])).to(cumulative.device)
        drawn = (cumulative < u.unsqueeze(-1)).sum(-1)
        labels.append(drawn.clamp_(max=cumulative.shape[-1] - 1))  # a sum that rounds to just below one
    return Examples(examples.inputs, torch.cat(labels), examples.split)
