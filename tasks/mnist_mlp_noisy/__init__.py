"""MNIST and a dropout MLP, with one label in ten flipped: which examples are wrong is known."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from tdabench.examples import Examples
from tdabench.recipe import Recipe, SubsetPlan
from tdabench.seeds import generator
from tdabench.targets import LOG_ODDS, cross_entropy
from tdabench.task import Task, TaskData
from tdabench.tasks import mnist
from tdabench.tasks.mnist_mlp import make_model

FLIPPED = 0.1


def load_data(folder: Path | None) -> TaskData:
    """Return MNIST with flipped training labels; the queries' labels are right."""
    clean = mnist.load_data(folder)
    shift = _shifts()
    labels = (clean.training.labels + shift) % mnist.N_CLASSES
    return TaskData(Examples(clean.training.inputs, labels, "train"), clean.queries)


def mislabelled(folder: Path | None) -> Tensor:
    """Return which training labels are flipped, ``[5000]`` bool; no file is needed to know."""
    return _shifts() > 0


def _shifts() -> Tensor:
    """Return how many classes each label is moved by: 0 where it is right, else 1 to 9, uniformly."""
    random = generator("mnist-mlp-noisy", "flips")
    order = torch.randperm(mnist.N_TRAIN, generator=random)
    shifts = torch.zeros(mnist.N_TRAIN, dtype=torch.int64)
    n_flipped = round(FLIPPED * mnist.N_TRAIN)
    shifts[order[:n_flipped]] = torch.randint(1, mnist.N_CLASSES, (n_flipped,), generator=random)
    return shifts


TASK = Task(
    name="mnist-mlp-noisy",
    title="MNIST, dropout MLP, flipped labels",
    description="The task mnist-mlp with one training label in ten replaced by another class, at random.",
    licence=mnist.LICENCE,
    n_train=mnist.N_TRAIN,
    n_queries=mnist.N_QUERIES,
    load_data=load_data,
    data_sha256="95e0483730eb22e231ef82bdcdaa52a934a201ba265847e575a4afbb2c453f79",
    make_model=make_model,
    loss=cross_entropy,
    target=LOG_ODDS,
    recipe=Recipe(lr=0.01, momentum=0.9, batch_size=64, epochs=50),
    folder=Path(__file__).parent,
    plan=SubsetPlan(n_subsets=100, n_seeds=5),
    mislabelled=mislabelled,
)
