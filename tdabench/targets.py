"""Target functions: the scalar per query whose change attribution explains. Higher is always better.

A target also says how its value maps to the probability of the right answer, which TRAK's Q factor needs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Target:
    """A named target function.

    Attributes
    ----------
    name
        What it measures; part of the task's version.
    function
        ``(logits [B, ...], labels [B, ...]) -> [B]``, differentiable, higher is better.
    probability
        ``values [B] -> [B]``: the probability of the right answer, from the target's own value; None where it has none.
    """

    name: str
    function: Callable[[Tensor, Tensor], Tensor]
    probability: Callable[[Tensor], Tensor] | None = None


_NOT_PREDICTED = -100  # what torch's cross-entropy ignores


def log_odds(logits: Tensor, labels: Tensor) -> Tensor:
    """Return log(p / (1 - p)) of the right class, ``[B]``, for logits ``[B, C]`` and labels ``[B]``.

    Computed from logits, never from p, so that it stays finite and differentiable when p rounds to one
    (Park et al. 2023, TRAK, equation 5).
    """
    right = logits.gather(-1, labels.unsqueeze(-1)).squeeze(-1)  # [B]
    others = logits.scatter(-1, labels.unsqueeze(-1), float("-inf"))  # [B, C]
    return right - others.logsumexp(-1)


LOG_ODDS = Target("log-odds of the right class", log_odds, torch.sigmoid)


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the cross-entropy of each example, ``[B]``, for logits ``[B, C]`` and labels ``[B]``."""
    return torch.nn.functional.cross_entropy(logits, labels, reduction="none")


def token_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the mean cross-entropy of each sequence's tokens, ``[B]``; logits ``[B, T, V]``, labels ``[B, T]``.

    Tokens labelled -100, as padding is, are not predicted: they are not in the mean, and a sequence of no others has 0.
    """
    losses = torch.nn.functional.cross_entropy(logits.transpose(-1, -2), labels, reduction="none")
    predicted = (labels != _NOT_PREDICTED).sum(-1).clamp(min=1).to(losses.dtype)
    return losses.mean(-1) * (labels.shape[-1] / predicted)  # times one, so the mean to the bit, where all are


def mean_log_probability(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the mean log-probability of each sequence's tokens, ``[B]``; those labelled -100 are left out."""
    return -token_cross_entropy(logits, labels)


#: Its probability of the right answer is the geometric mean of the tokens'.
MEAN_LOG_PROBABILITY = Target("mean log-probability of the tokens", mean_log_probability, torch.exp)
