"""Small tasks of three kinds, and where their tests are run: on a CUDA device, or on one that is pretended."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import made_up
import pytest
import torch
from torch import nn

from tdabench import model_store, timing
from tdabench.examples import Examples
from tdabench.precision import exact_float32
from tdabench.recipe import Recipe
from tdabench.seeds import generator
from tdabench.targets import MEAN_LOG_PROBABILITY, token_cross_entropy
from tdabench.task import Task, TaskData
from tdabench.tasks.networks import resnet9
from tdabench.tasks.transformers import music_transformer

N_TRAIN, N_QUERIES, VOCABULARY, LENGTH = 48, 12, 11, 16
SGD = Recipe(lr=0.02, momentum=0.9, batch_size=8, epochs=2, weight_decay=1e-3, schedule="linear")
ADAMW = replace(SGD, lr=1e-3, optimizer="adamw", beta2=0.99, warmup=0.2)


@pytest.fixture(autouse=True)
def _exact_products() -> Iterator[None]:
    """Multiply float32 as a run and a build do, so that the CPU can be compared with."""
    with exact_float32():
        yield


HAS_CUDA = torch.cuda.is_available()
if not HAS_CUDA:
    import pretended  # here, before any test: autograd counts the kinds of devices at a process's first backward pass


@pytest.fixture(params=[pytest.param("cuda", marks=pytest.mark.gpu) if HAS_CUDA else "pretended"])
def place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[torch.device]:
    """Return a device that is not the CPU."""
    if request.param == "cuda":
        device = torch.device("cuda", torch.cuda.current_device())
        # The thread of backward passes has no context before its first; a library's call there would warn of it.
        torch.ones(2, device=device, requires_grad=True).mul(2).sum().backward()
        yield device
        return
    monkeypatch.setattr(model_store, "safe_open", pretended.safe_open)
    monkeypatch.setattr(timing, "_QUEUED", 1)  # there is no launching to be hidden, and a product takes a second
    with pretended.device() as device:
        yield device


def sequences() -> TaskData:
    random = generator("cuda", "sequences")
    parts = ((N_TRAIN, "train"), (N_QUERIES, "queries"))
    return TaskData(*(made_up.sequences(n, split, random, VOCABULARY, LENGTH) for n, split in parts))


def images() -> TaskData:
    random = generator("cuda", "images")
    labels = torch.randint(3, (N_TRAIN + N_QUERIES,), generator=random)
    pixels = torch.randn(N_TRAIN + N_QUERIES, 3, 16, 16, generator=random) + labels.view(-1, 1, 1, 1)
    return TaskData(
        Examples(pixels[:N_TRAIN], labels[:N_TRAIN], "train"), Examples(pixels[N_TRAIN:], labels[N_TRAIN:], "queries")
    )


def music_model() -> nn.Module:
    return music_transformer(VOCABULARY, LENGTH, layers=2, width=16, heads=2, p=0.1)


def image_model() -> nn.Module:
    return resnet9(3, width=8, strides=(2, 2, 2), p=0.1)


@pytest.fixture
def setting(small, small_data):
    """Return a factory of small tasks with their data on the CPU: an MLP, a transformer, a model with statistics."""

    def make(name: str) -> tuple[Task, TaskData]:
        if name == "mlp":
            return small, small_data
        task = replace(small, name=f"cuda-{name}", n_train=N_TRAIN, n_queries=N_QUERIES, recipe=SGD)
        if name == "images":
            return replace(task, make_model=image_model), images()
        task = replace(task, make_model=music_model, loss=token_cross_entropy, target=MEAN_LOG_PROBABILITY)
        return replace(task, recipe=ADAMW), sequences()

    return make
