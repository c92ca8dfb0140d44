"""MNIST as its tasks prepare it: the first 5,000 training and the first 500 test images, flattened, standardised."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from tdabench import datasets
from tdabench.examples import Examples
from tdabench.task import TaskData

N_TRAIN, N_QUERIES, N_CLASSES = 5000, 500, 10
MEAN, STANDARD_DEVIATION = 0.1307, 0.3081
DATA_SHA256 = "fef5e102328cd59302e33cec38293038116988c404244c4bf2b8a6a2608039fe"
LICENCE = "CC BY-SA 3.0 (MNIST, LeCun, Cortes and Burges)"


def load_data(folder: Path | None) -> TaskData:
    """Take the first images of each set, in the original order."""
    train, test = datasets.mnist(folder)
    return TaskData(_first(train, N_TRAIN, "train"), _first(test, N_QUERIES, "queries"))


def _first(images: object, n: int, split: str) -> Examples:
    pixels: Tensor = images.data[:n]  # type: ignore[attr-defined]  # [n, 28, 28] uint8
    inputs = (pixels.flatten(1).to(torch.float32) / 255.0 - MEAN) / STANDARD_DEVIATION  # [n, 784]
    return Examples(inputs, images.targets[:n].to(torch.int64), split)  # type: ignore[attr-defined]
