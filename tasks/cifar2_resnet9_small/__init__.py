"""CIFAR-10's cats and dogs and a narrow ResNet-9: the image setting that two CPU cores can retrain."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from tdabench.recipe import Recipe, SubsetPlan
from tdabench.targets import LOG_ODDS, cross_entropy
from tdabench.task import Task
from tdabench.tasks import cifar2
from tdabench.tasks.networks import resnet9

RECIPE = Recipe(
    lr=0.03,
    momentum=0.9,
    batch_size=64,
    epochs=6,
    weight_decay=5e-4,
    schedule="linear",
    precision="bfloat16",
)


def make_model() -> nn.Module:
    """Return the ResNet-9 12-24-48-96 with channel dropout 0.1: 170,894 parameters."""
    return resnet9(cifar2.N_CLASSES, width=12, strides=(2, 2, 2), p=0.1)


TASK = Task(
    name="cifar2-resnet9-small",
    title="CIFAR-2, narrow ResNet-9",
    description="First 5,000 training and 500 test images of CIFAR-10's cats and dogs; ResNet-9, 0.17 M parameters.",
    licence=cifar2.LICENCE,
    n_train=cifar2.N_TRAIN,
    n_queries=cifar2.N_QUERIES,
    load_data=cifar2.load_data,
    data_sha256=cifar2.DATA_SHA256,
    make_model=make_model,
    loss=cross_entropy,
    target=LOG_ODDS,
    recipe=RECIPE,
    folder=Path(__file__).parent,
    plan=SubsetPlan(n_subsets=100, n_seeds=5),
)
