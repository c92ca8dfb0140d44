r"""Retraining: learn from models trained on random subsets what each example is worth.

Nothing is assumed of the model. Many subsets of the training set are drawn, one model is trained on each, and a query's
target under all of them is compared with what they were trained on. Both methods here are linear in those outputs
``y [M]``: the scores of a query are ``W y`` with a matrix ``W [n_train, M]`` that depends on the subsets alone, so it
is computed once and serves every query.

Empirical influence
    The mean output of the models that saw the example, less that of those that did not.
Datamodels
    The ridge regression of the output on the subsets' indicators: an example is not credited with what happened to be
    in the same subsets. With ``X [M, n_train]`` the centred indicators, ``W = X^T (X X^T + r I)^{-1}``: one
    factorisation of size ``M``, in float64. With far fewer models than examples, subsets hardly overlap more than by
    chance, ``X X^T`` is nearly diagonal, and the scores are nearly those of empirical influence. The paper takes the
    lasso instead, which has to be solved query by query.

Models that start alike differ by their subsets alone, so ``per_seed`` subsets at a time share initialisation, order and
dropout (the ground truth does so, too), and outputs and indicators are centred per seed: what a seed does to all its
models drops out, and more seeds average what it does to each. Subsets and streams follow from the run's seed, and no
stream is one of the ground truth's.

Source: Ilyas et al. 2022, "Datamodels: Predicting Predictions from Training Data"; Feldman & Zhang 2020, "What Neural
Networks Memorize and Why: Discovering the Long Tail via Influence Estimation" (empirical influence).
Cost: ``subsets`` trainings, and that is by far the most of it; both methods use the same models. Serving a query takes
a forward pass of each. Storage: all models, the subsets and ``W``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

import tdabench


@dataclass(frozen=True)
class RetrainingState:
    """What serving needs beside the retrained models."""

    masks: Tensor  # [subsets, n_train] bool
    weights: Tensor  # [n_train, subsets]: from a query's outputs to its scores


@dataclass(frozen=True)
class Retraining(tdabench.Method):
    """What the two methods share: the subsets, the models, and scores that are linear in their outputs."""

    subsets: int = tdabench.option(100, "retrained models, each on a random subset", low=2)
    fraction: float = tdabench.option(0.5, "share of the training set in a subset", low=0, high=1)
    per_seed: int = tdabench.option(50, "models, at least, that share initialisation, order and dropout", low=2)

    def work(self, sizes: tdabench.Sizes) -> tdabench.Work:
        """Retrain, find the weights, and pass the queries through every model."""
        n, m, count = sizes.n_train, sizes.n_queries, self.subsets
        return tdabench.Work(
            fit=tdabench.Counts(products=2 * 3 * n * count**2, held=8 * n * count) + tdabench.Counts.cholesky(count),
            attribute=tdabench.Counts(
                forward=count * m, products=2 * sizes.n_scores * count, held=2 * n * count + 3 * sizes.n_scores
            ),
            state=n * count + -(-n * count // 4),  # subsets are kept as bytes
            retrained=count,
            share=self.fraction,
        )

    def fit(self, task: tdabench.TaskView) -> RetrainingState:
        """Retrain, and turn the subsets into weights."""
        masks = self._masks(task)
        self._models(task, masks)
        centred = torch.cat([rows.double() - rows.double().mean(0) for rows in self._by_seed(masks)])
        weights = self._weights(centred).float()  # [n_train, subsets]
        return RetrainingState(masks, weights)

    def attribute(self, task: tdabench.TaskView, state: RetrainingState) -> Tensor:
        """Return ``[n_queries, n_train]``."""
        parts = [task.outputs(models, task.queries).double().cpu() for models in self._models(task, state.masks)]
        y = torch.cat([part - part.mean(0) for part in parts])  # [subsets, n_queries], centred per seed
        return y.T @ state.weights.double().T

    def _weights(self, centred: Tensor) -> Tensor:
        """Return ``[n_train, subsets]`` for the subsets' indicators ``[subsets, n_train]``, centred per seed."""
        raise NotImplementedError

    def _masks(self, task: tdabench.TaskView) -> Tensor:
        """Draw the subsets, ``[subsets, n_train]`` bool; none is empty, and none is everything."""
        size = min(max(round(self.fraction * task.n_train), 1), task.n_train - 1)
        masks = torch.zeros(self.subsets, task.n_train, dtype=torch.bool)
        for m in range(self.subsets):
            order = torch.randperm(task.n_train, generator=tdabench.generator(task.name, "retraining", task.seed, m))
            masks[m, order[:size]] = True
        return masks

    def _by_seed(self, masks: Tensor) -> tuple[Tensor, ...]:
        return masks.tensor_split(max(1, self.subsets // self.per_seed))

    def _models(self, task: tdabench.TaskView, masks: Tensor) -> list[list[dict[str, Tensor]]]:
        """Return the models of each seed; trained once, whatever method and options ask for them."""
        return [task.retrain(rows, "retraining", seed) for seed, rows in enumerate(self._by_seed(masks))]


@dataclass(frozen=True)
class EmpiricalInfluence(Retraining):
    """Mean output of the retrained models that saw the example, less that of the models that did not."""

    def _weights(self, centred: Tensor) -> Tensor:
        """Return ``[n_train, subsets]``: with centred indicators, the difference of two means is one weighted sum."""
        varies = centred.square().sum(0)  # [n_train], 0 for an example that no seed has both in and out
        return torch.where(varies > 0, centred / varies, 0.0).T


@dataclass(frozen=True)
class Datamodels(Retraining):
    """Ridge regression of the retrained models' outputs on their subsets."""

    ridge: float = tdabench.option(
        1.0,
        "ridge, relative to the mean diagonal of the subsets' products",
        low=1e-9,
        tune=(0.01, 0.1, 0.3, 1.0, 3.0, 10.0),
    )

    def _weights(self, centred: Tensor) -> Tensor:
        """Return ``[n_train, subsets]``: ridge regression in its dual form."""
        kernel = centred @ centred.T  # [subsets, subsets]
        kernel.diagonal().add_(self.ridge * kernel.diagonal().mean())
        return torch.cholesky_solve(centred, torch.linalg.cholesky(kernel)).T
