"""MNIST, 28 x 28, and a dropout MLP: the field's most used small setting."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from tdabench.recipe import Recipe, SubsetPlan
from tdabench.targets import LOG_ODDS, cross_entropy
from tdabench.task import Task
from tdabench.tasks.mnist import DATA_SHA256, LICENCE, N_QUERIES, N_TRAIN, load_data
from tdabench.tasks.networks import dropout_mlp


def make_model() -> nn.Module:
    """Return the MLP 784-128-64-10 with dropout 0.1 after each hidden layer: 109,386 parameters."""
    return dropout_mlp(784, 128, 64, 10, p=0.1)


TASK = Task(
    name="mnist-mlp",
    title="MNIST, dropout MLP",
    description="First 5,000 training and 500 test images of MNIST; MLP 784-128-64-10 with dropout 0.1.",
    licence=LICENCE,
    n_train=N_TRAIN,
    n_queries=N_QUERIES,
    load_data=load_data,
    data_sha256=DATA_SHA256,
    make_model=make_model,
    loss=cross_entropy,
    target=LOG_ODDS,
    recipe=Recipe(lr=0.01, momentum=0.9, batch_size=64, epochs=50),
    folder=Path(__file__).parent,
    plan=SubsetPlan(n_subsets=100, n_seeds=10),
)
