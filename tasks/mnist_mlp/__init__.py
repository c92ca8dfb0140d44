"""MNIST, 28 x 28, and a dropout MLP: the field's most used small setting."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from tdabench import datasets
from tdabench.examples import Examples
from tdabench.targets import LOG_ODDS, cross_entropy
from tdabench.task import Recipe, SubsetPlan, Task, TaskData
from tdabench.tasks.networks import dropout_mlp

N_TRAIN, N_QUERIES = 5000, 500
MEAN, STANDARD_DEVIATION = 0.1307, 0.3081


def load_data(folder: Path | None) -> TaskData:
    """Take the first 5,000 training and the first 500 test images, flattened and standardised."""
    train, test = datasets.mnist(folder)
    return TaskData(_first(train, N_TRAIN, "train"), _first(test, N_QUERIES, "queries"))


def _first(images: object, n: int, split: str) -> Examples:
    pixels: Tensor = images.data[:n]  # type: ignore[attr-defined]  # [n, 28, 28] uint8
    inputs = (pixels.flatten(1).to(torch.float32) / 255.0 - MEAN) / STANDARD_DEVIATION  # [n, 784]
    return Examples(inputs, images.targets[:n].to(torch.int64), split)  # type: ignore[attr-defined]


def make_model() -> nn.Module:
    """Return the MLP 784-128-64-10 with dropout 0.1 after each hidden layer: 109,386 parameters."""
    return dropout_mlp(784, 128, 64, 10, p=0.1)


TASK = Task(
    name="mnist-mlp",
    title="MNIST, dropout MLP",
    description="First 5,000 training and 500 test images of MNIST; MLP 784-128-64-10 with dropout 0.1.",
    licence="CC BY-SA 3.0 (MNIST, LeCun, Cortes and Burges)",
    n_train=N_TRAIN,
    n_queries=N_QUERIES,
    load_data=load_data,
    data_sha256="fef5e102328cd59302e33cec38293038116988c404244c4bf2b8a6a2608039fe",
    make_model=make_model,
    loss=cross_entropy,
    target=LOG_ODDS,
    recipe=Recipe(lr=0.01, momentum=0.9, batch_size=64, epochs=50),
    folder=Path(__file__).parent,
    plan=SubsetPlan(n_subsets=100, n_seeds=10),
)
