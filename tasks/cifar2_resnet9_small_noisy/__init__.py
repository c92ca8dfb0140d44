"""CIFAR-10's cats and dogs as people labelled them, and a narrow ResNet-9: which labels are wrong is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tdabench import datasets
from tdabench.datasets.cifar10 import CAT, DOG
from tdabench.examples import Examples
from tdabench.recipe import SubsetPlan
from tdabench.targets import LOG_ODDS, cross_entropy
from tdabench.task import Task, TaskData
from tdabench.tasks import cifar2
from tdabench.tasks.cifar2_resnet9_small import RECIPE, make_model

LABELS = "random_label1"
"""One of CIFAR-10N's annotators an image, the first."""


def load_data(folder: Path | None) -> TaskData:
    """Return the task's images with human training labels; the queries' labels are right.

    An annotator could answer any of the ten classes. Where the answer is neither cat nor dog, the right label stands.
    """
    clean = cifar2.load_data(folder)
    wrong = mislabelled(folder)
    labels = torch.where(wrong, 1 - clean.training.labels, clean.training.labels)
    return TaskData(Examples(clean.training.inputs, labels, "train"), clean.queries)


def mislabelled(folder: Path | None) -> Tensor:
    """Return the training images that the annotator took for the other animal, ``[5000]`` bool."""
    pets = datasets.cats_and_dogs(folder)
    said = datasets.cifar10n(folder)[LABELS][pets.train_index[: cifar2.N_TRAIN]]
    other = CAT + DOG - pets.train_y[: cifar2.N_TRAIN]
    return torch.from_numpy(np.asarray(said == other))


TASK = Task(
    name="cifar2-resnet9-small-noisy",
    title="CIFAR-2, narrow ResNet-9, human labels",
    description="The task cifar2-resnet9-small with the labels that CIFAR-10N's annotators gave, one image in eleven "
    "taken for the other animal.",
    licence=f"{cifar2.LICENCE}; labels CC BY-NC 4.0 (CIFAR-10N, Wei et al. 2022)",
    n_train=cifar2.N_TRAIN,
    n_queries=cifar2.N_QUERIES,
    load_data=load_data,
    data_sha256="b8c06d21f26b25b2d49d23918e8677a4a4b5f4299ad9f9d3c7ada5a97e8b3bb3",
    make_model=make_model,
    loss=cross_entropy,
    target=LOG_ODDS,
    recipe=RECIPE,
    folder=Path(__file__).parent,
    plan=SubsetPlan(n_subsets=100, n_seeds=5),
    mislabelled=mislabelled,
)
