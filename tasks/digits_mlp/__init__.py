"""Handwritten digits, 8 x 8, and a small dropout MLP: the task that needs no download."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from tdabench.examples import Examples
from tdabench.recipe import Recipe, SubsetPlan
from tdabench.seeds import generator
from tdabench.targets import LOG_ODDS, cross_entropy
from tdabench.task import Task, TaskData
from tdabench.tasks.networks import dropout_mlp

N_TRAIN, N_QUERIES = 1000, 500


def load_data(folder: Path | None) -> TaskData:
    """Split scikit-learn's digits once, by a named stream; the data is embedded, so ``folder`` is not needed."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    inputs = torch.from_numpy(digits.data).to(torch.float32) / 16.0  # [1797, 64], pixels 0 to 16
    labels = torch.from_numpy(digits.target).to(torch.int64)
    order = torch.randperm(len(labels), generator=generator("digits-mlp", "split"))
    train, queries = order[:N_TRAIN], order[N_TRAIN : N_TRAIN + N_QUERIES]
    return TaskData(
        Examples(inputs[train], labels[train], "train"), Examples(inputs[queries], labels[queries], "queries")
    )


def make_model() -> nn.Module:
    """Return the MLP 64-128-64-10 with dropout 0.1 after each hidden layer: 17,226 parameters."""
    return dropout_mlp(64, 128, 64, 10, p=0.1)


TASK = Task(
    name="digits-mlp",
    title="Digits, dropout MLP",
    description="scikit-learn's 8 x 8 handwritten digits; MLP 64-128-64-10 with dropout 0.1. Embedded, no download.",
    licence="CC BY 4.0 (UCI optical recognition of handwritten digits, Alpaydin and Kaynak 1998)",
    n_train=N_TRAIN,
    n_queries=N_QUERIES,
    load_data=load_data,
    data_sha256="1ce7066acbfa02bf73f4b9b79fca70d4f9eaeb53bc2de1166559e02b3641b1d6",
    make_model=make_model,
    loss=cross_entropy,
    target=LOG_ODDS,
    recipe=Recipe(lr=0.05, momentum=0.9, batch_size=50, epochs=30),
    folder=Path(__file__).parent,
    plan=SubsetPlan(n_subsets=100, n_seeds=20),
)
