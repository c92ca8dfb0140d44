"""MNIST and logistic regression: convex, so influence functions are near exact and every method can be checked."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from tdabench.recipe import Recipe, SubsetPlan
from tdabench.targets import LOG_ODDS, cross_entropy
from tdabench.task import Task
from tdabench.tasks.mnist import DATA_SHA256, LICENCE, N_QUERIES, N_TRAIN, load_data


def make_model() -> nn.Module:
    """Return one linear layer 784-10: 7,850 parameters."""
    return nn.Sequential(nn.Linear(784, 10))


TASK = Task(
    name="mnist-lr",
    title="MNIST, logistic regression",
    description="First 5,000 training and 500 test images of MNIST; logistic regression with weight decay. Convex.",
    licence=LICENCE,
    n_train=N_TRAIN,
    n_queries=N_QUERIES,
    load_data=load_data,
    data_sha256=DATA_SHA256,
    make_model=make_model,
    loss=cross_entropy,
    target=LOG_ODDS,
    recipe=Recipe(lr=0.02, momentum=0.9, batch_size=64, epochs=30, weight_decay=1e-2, schedule="linear"),
    folder=Path(__file__).parent,
    plan=SubsetPlan(n_subsets=100, n_seeds=5),
)
