"""The cats and dogs of CIFAR-10 as their tasks prepare them: the first 5,000 training and the first 500 test images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tdabench import datasets
from tdabench.datasets.cifar10 import DOG
from tdabench.examples import Examples
from tdabench.task import TaskData

N_TRAIN, N_QUERIES, N_CLASSES = 5000, 500, 2
DATA_SHA256 = "8b8530a2914199ef945b6b2fc9e8208f74005dc0d1e0d13566a3d9adfdae8a1f"
LICENCE = "none stated, published for research (CIFAR-10, Krizhevsky, Nair and Hinton 2009)"


def load_data(folder: Path | None) -> TaskData:
    """Take the first cats (0) and dogs (1) of each set, in the original order; pixels from -1 to 1."""
    pets = datasets.cats_and_dogs(folder)
    return TaskData(
        Examples(_pixels(pets.train_x[:N_TRAIN]), _labels(pets.train_y[:N_TRAIN]), "train"),
        Examples(_pixels(pets.test_x[:N_QUERIES]), _labels(pets.test_y[:N_QUERIES]), "queries"),
    )


def _pixels(images: np.ndarray) -> Tensor:
    return (torch.from_numpy(images).to(torch.float32) / 255.0 - 0.5) / 0.5  # [n, 3, 32, 32]


def _labels(classes: np.ndarray) -> Tensor:
    return torch.from_numpy((classes == DOG).astype(np.int64))
