"""CIFAR-10's cats and dogs and a ResNet-9 of full width: the size of the literature's image setting."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from tdabench.recipe import Recipe, SubsetPlan
from tdabench.targets import LOG_ODDS, cross_entropy
from tdabench.task import Task
from tdabench.tasks import cifar2
from tdabench.tasks.networks import resnet9


def make_model() -> nn.Module:
    """Return the ResNet-9 64-128-256-512 with channel dropout 0.1: 4,825,154 parameters."""
    return resnet9(cifar2.N_CLASSES, width=64, strides=(1, 2, 2), p=0.1)


TASK = Task(
    name="cifar2-resnet9",
    title="CIFAR-2, ResNet-9",
    description="First 5,000 training and 500 test images of CIFAR-10's cats and dogs; ResNet-9, 4.8 M parameters.",
    licence=cifar2.LICENCE,
    n_train=cifar2.N_TRAIN,
    n_queries=cifar2.N_QUERIES,
    load_data=cifar2.load_data,
    data_sha256=cifar2.DATA_SHA256,
    make_model=make_model,
    loss=cross_entropy,
    target=LOG_ODDS,
    recipe=Recipe(
        lr=0.02,
        momentum=0.9,
        batch_size=64,
        epochs=10,
        weight_decay=5e-4,
        schedule="linear",
        precision="bfloat16",
    ),
    folder=Path(__file__).parent,
    plan=SubsetPlan(n_subsets=100, n_seeds=10),
    needs_cuda=True,
)
