"""How much the members of an ensemble agree: correlations of their scores, within a model and between models.

Averaging members pays as far as they differ. What limits an ensemble is how its members correlate; the board holds
that against how far the LDS has risen (:mod:`tdabench.saturation`).

The correlation of two members is Pearson's, over the training examples, of their scores for a query, averaged over
queries. It needs no ground truth, and it is the one that the LDS depends on: over random subsets of one size, the
covariance of two members' summed scores is proportional to the covariance of the scores themselves.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tdabench.seeds import generator

_SIZE = 256
_ROWS = 64


@dataclass(frozen=True)
class Correlations:
    """Mean correlation over pairs of members.

    Attributes
    ----------
    within, between
        Of members of one model, and of members of different models; None where there is no such pair.
    n_within_pairs, n_between_pairs
        Pairs averaged over.
    """

    within: float | None
    between: float | None
    n_within_pairs: int
    n_between_pairs: int


class CorrelationMeter:
    """Takes members' scores one after another and keeps two sums of them, however many there are.

    A query's scores are centred, scaled to length one and shortened by a random-sign projection that preserves inner
    products; the sum of a set's pairwise inner products follows from the length of its sum. Members of one model come
    one after another. For two members and a query the projected correlation has a standard error of up to
    1 / sqrt(256), independently between queries, so the mean over 250 one of .004; sets of up to 256 training examples
    are not projected.

    Parameters
    ----------
    n_queries, n_train
        Shape of a member's scores.
    """

    def __init__(self, n_queries: int, n_train: int) -> None:
        self.shape = (n_queries, n_train)
        self.size = min(n_train, _SIZE)
        # One sequence, begun one later for each query: errors of different queries do not add up.
        signs = torch.randint(0, 2, (n_queries + n_train,), generator=generator("correlations", n_queries, n_train))
        self._signs = (2.0 * signs - 1.0).unfold(0, n_train, 1)[:n_queries]  # [n_queries, n_train], a view
        self._finished, self._model = (torch.zeros(n_queries, self.size) for _ in range(2))
        self._number: int | None = None
        self._sizes: list[int] = []  # of the models, in members
        self._finished_models = 0.0  # sum over models of |sum of its members|^2
        self._squares, self._rows = 0.0, 0  # sum of |projected row|^2, and how many rows are not constant
        self._complete = True

    def add(self, model_number: int, scores: Any) -> None:
        """Take the scores of a member of an attribution model; anything that is not scores ends the measuring."""
        fits = isinstance(scores, Tensor) and scores.is_floating_point() and tuple(scores.shape) == self.shape
        self._complete = self._complete and fits
        if not self._complete:
            return
        if model_number != self._number:
            self._begin(model_number)
        for start in range(0, self.shape[0], _ROWS):
            rows = slice(start, start + _ROWS)
            short = self._shortened(scores[rows].detach().cpu(), self._signs[rows])
            self._model[rows] += short
            self._squares += _square(short)
        self._sizes[-1] += 1

    def _begin(self, model_number: int) -> None:
        self._finished_models += _square(self._model)
        self._finished += self._model
        self._model.zero_()
        self._number = model_number
        self._sizes.append(0)

    def _shortened(self, scores: Tensor, signs: Tensor) -> Tensor:
        """Return centred scores of length one, projected: ``[n, size]``. Constant scores correlate with nothing."""
        precise = scores.to(torch.promote_types(scores.dtype, torch.float32))
        centred = precise - precise.mean(1, keepdim=True)
        # Squares of small numbers would be nothing in float32, those of large ones infinite.
        scaled = (centred / centred.abs().amax(1, keepdim=True)).float()
        # By the extremes: the mean of equal numbers is off by their rounding.
        constant = precise.amax(1, keepdim=True) == precise.amin(1, keepdim=True)
        self._rows += int((~constant).sum())
        unit = torch.where(constant, 0.0, scaled / torch.linalg.vector_norm(scaled, dim=1, keepdim=True))
        if self.size == self.shape[1]:
            return unit
        padding = -self.shape[1] % self.size
        return torch.nn.functional.pad(unit * signs, (0, padding)).unflatten(1, (-1, self.size)).sum(1)

    def result(self) -> Correlations | None:
        """Return the mean correlations of all pairs so far; None where there is no pair or no scores of members."""
        n = sum(self._sizes)
        if not self._complete or n < 2:
            return None
        n_within = sum(size * (size - 1) // 2 for size in self._sizes)
        n_between = n * (n - 1) // 2 - n_within
        # |sum|^2 holds every member's square once and every pair twice.
        models, everything = self._finished_models + _square(self._model), _square(self._finished + self._model)
        within, between = (models - self._squares) / 2, (everything - models) / 2
        means = self._mean(within, n_within), self._mean(between, n_between)
        finite = all(mean is None or math.isfinite(mean) for mean in means)
        return Correlations(*means, n_within, n_between) if finite else None

    def _mean(self, total: float, pairs: int) -> float | None:
        if pairs == 0:
            return None
        # Projected rows are of length one only on average; the same scores twice correlate by exactly one.
        length = self._squares / self._rows if self._rows else 1.0
        mean = total / length / (pairs * self.shape[0])
        return max(-1.0, min(1.0, mean)) if math.isfinite(mean) else mean


def _square(rows: Tensor) -> float:
    return rows.double().square().sum().item()
