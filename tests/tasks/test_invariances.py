"""What holds for every task: the sign of its target, disjoint sets and streams, equal subsets, the declared data."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from test_datasets import batches, packed  # noqa: F401 - fixtures
from torch import nn

from tdabench import dropout, retraining, seeds, trained_models, trainer
from tdabench import task as task_module
from tdabench.datasets.cifar10 import BATCHES, CAT_DOG_TRAIN
from tdabench.examples import Examples
from tdabench.registry import TASKS, find_task, names
from tdabench.task import Task, TaskData
from tdabench.tasks import cifar2
from tdabench.trainer import Stream, stacked_state, target_outputs, train_replicas
from tdabench.view import TaskView

CPU = torch.device("cpu")
NAMES = names(TASKS)
#: What a task's data folder must hold, by the beginning of its name; any of the places will do. Others are embedded.
PLACES = {
    "mnist": ("MNIST/raw/train-images-idx3-ubyte",),
    "cifar2": (f"{BATCHES}/data_batch_1", CAT_DOG_TRAIN),
    "maestro": ("maestro-v3.0.0",),
    "shakespeare": ("tinyshakespeare/input.txt",),
}
SLOW = ("maestro-music-transformer",)  # tokenises 678 performances
PLANTED = 8


def param(name: str):
    marks = [pytest.mark.data] if name.split("-")[0] in PLACES else []
    return pytest.param(name, marks=[*marks, pytest.mark.slow(minutes=1)] if name in SLOW else marks)


every_task = pytest.mark.parametrize("name", NAMES)
every_task_with_data = pytest.mark.parametrize("name", [param(name) for name in NAMES])
tasks_on_a_cpu = pytest.mark.parametrize("name", [param(n) for n in NAMES if not find_task(n).needs_cuda])
tasks_on_cuda = pytest.mark.parametrize("name", [param(n) for n in NAMES if find_task(n).needs_cuda])


def data_folder(*places: str) -> Path:
    """Return the folder of the real data sets, or skip where it holds none of the places."""
    folder = os.environ.get("TDABENCH_DATA")
    if not folder:
        pytest.skip("set TDABENCH_DATA to a folder that holds the data sets to run this test")
    if not any((Path(folder) / place).exists() for place in places):
        pytest.skip(f"TDABENCH_DATA holds no {' or '.join(places)}")
    return Path(folder)


def loaded(name: str) -> tuple[Task, TaskData]:
    """Return a task and its data, loaded once; skip where the data is not at hand."""
    task = find_task(name)
    if name.split("-")[0] in PLACES:
        data_folder(*PLACES[name.split("-")[0]])
    if name.startswith("maestro"):
        pytest.importorskip("symusic", reason="MIDI is read with the extra tdabench[music]")
    return task, _data(name)


@cache
def _data(name: str) -> TaskData:
    return find_task(name).data()


def rows(examples: Examples) -> list[bytes]:
    return [row.tobytes() for row in examples.inputs.numpy()]


# The target is higher-is-better


@dataclass(frozen=True)
class Planting:
    """A small training set in which the first examples are copies of queries."""

    task: Task
    data: TaskData
    masks: torch.Tensor  # [2, n_train]: with the copies, and with other examples in their place

    @staticmethod
    def in_task(task: Task, data: TaskData, n_train: int, epochs: int) -> Planting:
        """Copy the first queries over the first training examples, and train for a few epochs."""
        inputs, labels = data.training.inputs[:n_train].clone(), data.training.labels[:n_train].clone()
        inputs[:PLANTED], labels[:PLANTED] = data.queries.inputs[:PLANTED], data.queries.labels[:PLANTED]
        queries = Examples(data.queries.inputs[:PLANTED], data.queries.labels[:PLANTED], "queries")
        masks = torch.ones(2, n_train, dtype=torch.bool)
        masks[0, PLANTED : 2 * PLANTED] = False
        masks[1, :PLANTED] = False
        short = replace(task.recipe, epochs=epochs, batch_size=min(task.recipe.batch_size, 16))
        small = replace(task, n_train=n_train, n_queries=PLANTED, recipe=short)
        return Planting(small, TaskData(Examples(inputs, labels, "train"), queries), masks)


@tasks_on_a_cpu
def test_removing_a_query_s_copy_from_training_lowers_its_target(name):
    task, data = loaded(name)
    planting = Planting.in_task(task, data, n_train=64, epochs=8)
    trained = train_replicas(planting.task, planting.data, planting.masks, "planted")
    with_copies, without = target_outputs(planting.task, planting.data, trained).mean(1).tolist()
    assert with_copies > without + 0.02


@tasks_on_cuda
def test_a_step_down_a_query_s_loss_raises_its_target(name):
    task, data = loaded(name)
    query = TaskData(data.training, Examples(data.queries.inputs[:1], data.queries.labels[:1], "queries"))
    model = task.initial_model("step").eval()
    before = target_outputs(task, query, stacked_state(model, 1, CPU))
    loss = task.loss(model(query.queries.inputs), query.queries.labels).sum()
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    length = torch.stack([g.norm() for g in gradients]).norm()
    with torch.no_grad():
        for parameter, gradient in zip(model.parameters(), gradients, strict=True):
            parameter.sub_(0.05 * gradient / length)
    assert (target_outputs(task, query, stacked_state(model, 1, CPU)) > before).all()


# Data


@every_task_with_data
def test_no_training_example_is_a_query(name):
    _, data = loaded(name)
    assert not set(rows(data.training)) & set(rows(data.queries))


@every_task_with_data
def test_the_data_are_as_declared(name):
    task, data = loaded(name)
    assert data.sha256 == task.data_sha256
    assert (len(data.training), len(data.queries)) == (task.n_train, task.n_queries)
    with torch.no_grad():
        classes = task.initial_model("classes").eval()(data.queries.inputs[:1]).shape[-1]
    for examples in (data.training, data.queries):
        assert len(examples.labels) == len(examples.inputs)
        assert examples.labels.dtype == torch.int64
        assert 0 <= examples.labels.min() <= examples.labels.max() < classes
        if examples.inputs.is_floating_point():
            assert examples.inputs.dtype == torch.float32
            assert examples.inputs.isfinite().all()
        else:  # tokens, of which the labels are the next ones
            assert 0 <= examples.inputs.min() <= examples.inputs.max() < classes
            assert torch.equal(examples.inputs[:, 1:], examples.labels[:, :-1])


@every_task_with_data
def test_outputs_do_not_depend_on_the_query_batch(name, monkeypatch):
    task, data = loaded(name)
    n = 9 if task.needs_cuda else 64
    some = TaskData(data.training, Examples(data.queries.inputs[:n], data.queries.labels[:n], "queries"))
    stacked = stacked_state(task.initial_model("batches"), 1, CPU)
    whole = target_outputs(task, some, stacked)
    monkeypatch.setattr(trainer, "_QUERY_BATCH", 7)
    torch.testing.assert_close(target_outputs(task, some, stacked), whole, rtol=1e-4, atol=1e-5)
    assert whole.isfinite().all()


# Subsets and streams


@every_task
def test_subsets_are_distinct_halves_and_there_are_enough_of_them(name):
    task = find_task(name)
    assert (task.plan.n_subsets >= 100, task.plan.n_seeds >= 5, task.plan.fraction) == (True, True, 0.5)
    masks = task.subset_masks()
    assert masks.shape == (task.plan.n_subsets, task.n_train)
    assert set(masks.sum(1).tolist()) == {round(task.n_train / 2)}
    assert len({row.tobytes() for row in masks.numpy()}) == task.plan.n_subsets


@pytest.fixture
def derived(monkeypatch) -> dict[int, tuple]:
    """Return the seeds that are derived from now on, each with the name of its stream."""
    found: dict[int, tuple] = {}
    derive = seeds.derive_seed

    def noted(*name):
        seed = derive(*name)
        assert found.setdefault(seed, name) == name
        return seed

    for module in (seeds, dropout, task_module):
        monkeypatch.setattr(module, "derive_seed", noted)
    return found


@every_task
def test_seeds_of_ground_truth_and_of_attribution_models_are_disjoint(name, derived):
    task = replace(find_task(name), make_model=lambda: nn.Linear(1, 1))  # the streams do not depend on the model's size
    site = dropout.DropoutSite("0.mask", 0.1, (1,))
    runs, models = range(task.plan.n_seeds), range(3)

    def seeds_of(streams) -> set[int]:
        derived.clear()
        for stream in streams:
            task.initial_model(*stream)
            random = Stream((task.name, *stream), 2, (site,), CPU)
            for epoch in range(task.recipe.epochs):
                random.kept_in_order(epoch, torch.ones(1, 2, dtype=torch.bool))
                random.dropout(epoch)
        return set(derived)

    truth = seeds_of((retraining.STREAM, seed) for seed in runs)
    attribution = seeds_of((trained_models.STREAM, seed, model) for seed, model in product(runs, models))
    assert retraining.STREAM != trained_models.STREAM
    per_training = 1 + 2 * task.recipe.epochs  # the start, and an order and masks for every epoch
    assert len(truth) == len(runs) * per_training
    assert len(attribution) == len(runs) * len(models) * per_training
    assert not truth & attribution


# Wrong labels

SIBLINGS = {"mnist-mlp-noisy": ("mnist-mlp", 0.1), "cifar2-resnet9-small-noisy": ("cifar2-resnet9-small", 0.0916)}


def test_every_task_whose_wrong_labels_are_known_has_a_clean_sibling():
    assert [name for name in NAMES if find_task(name).mislabelled is not None] == sorted(SIBLINGS)


@pytest.mark.data
@pytest.mark.parametrize("name", sorted(SIBLINGS))
def test_exactly_the_labels_that_differ_from_the_clean_task_s_are_called_wrong(name):
    if name.startswith("cifar2"):
        data_folder("CIFAR-10_human.pt", "cifar10/cifar10n.npz")
    sibling, share = SIBLINGS[name]
    (task, noisy), (_, clean) = loaded(name), loaded(sibling)
    wrong = task.mislabelled(None)
    assert wrong.dtype == torch.bool
    assert torch.equal(wrong, noisy.training.labels != clean.training.labels)
    assert torch.equal(noisy.training.inputs, clean.training.inputs)
    assert torch.equal(noisy.queries.labels, clean.queries.labels)
    assert round(wrong.double().mean().item(), 4) == share


@pytest.mark.data
def test_the_view_does_not_tell_which_labels_are_wrong(tmp_path):
    task, data = loaded("mnist-mlp-noisy")
    assert task.mislabelled is not None
    handed = TaskView(task, data, tmp_path)
    assert handed._task.mislabelled is None
    assert not [name for name in dir(handed) if "label" in name]


# CIFAR-10, packed and official


@pytest.mark.data
@pytest.mark.parametrize("place", [CAT_DOG_TRAIN, f"{BATCHES}/data_batch_1"], ids=["packed", "official"])
def test_either_layout_of_cifar10_gives_the_data_of_the_task(place, tmp_path):
    folder = data_folder(place)
    part = Path(place).parts[0]
    (tmp_path / part).symlink_to(folder / part)  # the other layout is out of sight
    assert cifar2.load_data(tmp_path).sha256 == find_task("cifar2-resnet9-small").data_sha256


def test_both_layouts_of_cifar10_give_the_same_prepared_data(batches, packed):  # noqa: F811 - fixtures
    official, again = cifar2.load_data(batches), cifar2.load_data(packed)
    assert official.sha256 == again.sha256
    for name, array in official.arrays().items():
        np.testing.assert_array_equal(array, again.arrays()[name])
    assert official.training.inputs.abs().max() == 1.0
    assert set(official.training.labels.tolist()) == {0, 1}
