"""A training that is killed goes on from its last snapshot, and ends at the same values to the bit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from tdabench import retraining
from tdabench import snapshots as snapshots_module
from tdabench.errors import StorageError
from tdabench.files import read_metadata
from tdabench.retraining import Work, compute_slice, retrain, rounding_difference
from tdabench.slices import Slice, builder_facts, remove_leftovers, remove_slices, rounding_snapshots, snapshots_of
from tdabench.snapshots import Snapshots
from tdabench.trainer import train_replicas


@pytest.fixture(autouse=True)
def _often(monkeypatch):
    """Let snapshots follow one another as soon as a test says."""
    monkeypatch.setattr(snapshots_module, "_LEAST_BETWEEN", 0)


class EndError(Exception):
    """Stands for the end of the process."""


class KilledAfter(Snapshots):
    """Keeps every epoch's snapshot, and ends the training once some epochs are done."""

    def __init__(self, path: Path, of: str, epochs: int) -> None:
        super().__init__(path, of, every_s=0.0)
        self.epochs = epochs

    def offer(self, epochs, state) -> None:
        super().offer(epochs, state)
        if epochs == self.epochs:
            raise EndError


class Told(Snapshots):
    """Notes which epochs it is offered."""

    def __init__(self, path: Path, of: str) -> None:
        super().__init__(path, of)
        self.offered: list[int] = []

    def offer(self, epochs, state) -> None:
        self.offered.append(epochs)


def normalised_model() -> nn.Module:
    """Return a model with running statistics, one of them a count."""
    return nn.Sequential(
        nn.Linear(64, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 10, bias=False)
    )


class Averaging(nn.Linear):
    """Keeps a running mean in bfloat16, which NumPy does not have."""

    def __init__(self) -> None:
        super().__init__(64, 10)
        self.register_buffer("mean", torch.zeros(10, dtype=torch.bfloat16))

    def forward(self, x):
        h = super().forward(x)
        if self.training:
            self.mean.mul_(0.5).add_(h.detach().mean(0).bfloat16())
        return h - self.mean


def large_model() -> nn.Module:
    """Return a model with a weight that is stored transposed while several replicas train."""
    return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Dropout(0.2), nn.Linear(128, 10))


def of_kind(small, kind: str):
    if kind == "sgd":
        return small
    if kind == "statistics":
        return replace(small, make_model=normalised_model)
    if kind == "bfloat16":
        return replace(small, make_model=Averaging)
    recipe = replace(small.recipe, optimizer="adamw", lr=1e-3, momentum=0.9, beta2=0.99, weight_decay=0.1)
    recipe = replace(recipe, schedule="linear", warmup=0.2, epochs=4)
    return replace(small, make_model=large_model, recipe=recipe)


@pytest.mark.parametrize("replicas", [1, 3])
@pytest.mark.parametrize("kind", ["sgd", "statistics", "bfloat16", "adamw"])
def test_a_training_that_goes_on_ends_where_one_that_was_left_alone_does(small, small_data, tmp_path, kind, replicas):
    task = of_kind(small, kind)
    masks = task.subset_masks()[:replicas]
    alone = train_replicas(task, small_data, masks, "x")
    for epochs in range(1, task.recipe.epochs):  # killed again and again
        with pytest.raises(EndError):
            train_replicas(task, small_data, masks, "x", snapshots=KilledAfter(tmp_path / "s", "x", epochs))
    told = Told(tmp_path / "s", "x")
    seen = []
    ended = train_replicas(
        task, small_data, masks, "x", snapshots=told, on_epoch=lambda epoch, values: seen.append(epoch)
    )
    assert seen == [task.recipe.epochs], "one epoch was left"
    assert told.offered == [], "the last epoch needs no snapshot"
    assert alone.keys() == ended.keys()
    for name, value in alone.items():
        assert torch.equal(value, ended[name]), name


def kept(path: Path, of: str = "x") -> Snapshots:
    snapshots = Snapshots(path, of, every_s=0.0)
    snapshots.offer(2, lambda: {"value.a": torch.arange(6.0).view(2, 3), "optimizer.0.step": torch.tensor(4.0)})
    return snapshots


def test_a_snapshot_says_how_long_it_took_and_what_it_holds(tmp_path):
    kept(tmp_path / "s")
    spent = float(read_metadata(tmp_path / "s", "snapshot", "")["seconds"])
    later = Snapshots(tmp_path / "s", "x")
    epochs, state = later.last()
    assert epochs == 2
    assert torch.equal(state["value.a"], torch.arange(6.0).view(2, 3))
    assert spent > 0
    assert later.seconds >= spent


def test_there_is_nothing_to_go_on_from_at_first(tmp_path):
    assert Snapshots(tmp_path / "s", "x").last() is None


def test_a_snapshot_of_another_training_is_not_used(tmp_path):
    kept(tmp_path / "s", of="x")
    assert Snapshots(tmp_path / "s", "y").last() is None


@pytest.mark.parametrize("damage", ["cut", "changed", "no-snapshot"])
def test_a_damaged_snapshot_is_not_used(tmp_path, damage):
    kept(tmp_path / "s")
    content = bytearray((tmp_path / "s").read_bytes())
    if damage == "cut":
        content = content[: len(content) // 2]
    elif damage == "changed":
        content[-1] ^= 1
    else:
        content = bytearray(b"{}")
    (tmp_path / "s").write_bytes(bytes(content))
    assert Snapshots(tmp_path / "s", "x").last() is None


def test_epochs_that_follow_soon_are_not_kept(tmp_path):
    snapshots = Snapshots(tmp_path / "s", "x", every_s=3600.0)
    snapshots.offer(1, lambda: pytest.fail("nobody needs the state"))
    assert not (tmp_path / "s").exists()


def test_a_full_disk_does_not_end_a_training(tmp_path, monkeypatch):
    def full(*args):
        raise StorageError("Cannot write: the disk is full.")

    monkeypatch.setattr(snapshots_module, "write_arrays", full)
    kept(tmp_path / "s")
    assert not (tmp_path / "s").exists()


@pytest.fixture
def work(small, small_reference, tmp_path) -> Work:
    folder = tmp_path / "slices"
    folder.mkdir()
    facts = builder_facts(small, torch.device("cpu")) | {"replicas_per_group": 2, "seconds_by_group": {"2": 0.1}}
    return Work(small_reference, None, "cpu", folder, 2, facts)


PART = Slice(1, (2, 5))


def test_a_slice_goes_on_from_its_snapshot_and_removes_it(small, small_data, work, monkeypatch):
    snapshots = snapshots_of(small, PART, work.facts, work.folder)
    dying = KilledAfter(snapshots.path, snapshots.of, 2)
    with pytest.raises(EndError):
        retrain(small, small_data, PART.seed, PART.subsets, 2, dying)
    told = []
    whole = retraining.train_replicas

    def train(*args, snapshots, **kwargs):
        told.append(snapshots.last()[0])
        return whole(*args, snapshots=snapshots, **kwargs)

    monkeypatch.setattr(retraining, "train_replicas", train)
    compute_slice(work, PART)
    assert told == [2]
    assert [path.name for path in work.folder.iterdir()] == [PART.file_name]


@pytest.mark.parametrize("change", ["builder", "subsets", "seed", "version", "fraction"])
def test_a_slices_snapshot_is_for_the_same_replicas_on_the_same_machine(small, work, change):
    of = snapshots_of(small, PART, work.facts, work.folder).of
    measured = work.facts | {"seconds_by_group": {"2": 0.2}}
    assert snapshots_of(small, PART, measured, work.folder).of == of
    task, part, facts = small, PART, work.facts
    if change == "builder":
        facts = work.facts | {"precision": "bfloat16"}
    elif change == "subsets":
        part = replace(PART, subsets=(2, 3, 5))
    elif change == "seed":
        part = replace(PART, seed=2)
    elif change == "fraction":
        task = replace(small, plan=replace(small.plan, fraction=0.3))
    else:
        task = replace(small, recipe=replace(small.recipe, lr=0.1))
    assert snapshots_of(task, part, facts, work.folder).of != of


def test_snapshots_that_are_left_behind_are_removed(small, work):
    left, at_work = (snapshots_of(small, Slice(0, (i,)), work.facts, work.folder) for i in (0, 1))
    for snapshots in (left, at_work):
        kept(snapshots.path)
    (work.folder / Slice(0, (0,)).file_name).touch()
    remove_leftovers(work.folder)
    assert not left.path.exists()
    assert at_work.path.exists()
    remove_slices(work.folder)
    assert not work.folder.exists()


DIES = """
import os, signal, sys
from pathlib import Path
from tdabench.registry import find_task
from tdabench.snapshots import Snapshots
from tdabench.trainer import train_replicas

def die(epoch, values):
    if epoch == 2:
        os.kill(os.getpid(), signal.SIGKILL)

task = find_task(sys.argv[1])
snapshots = Snapshots(Path(sys.argv[2]), "x", every_s=0.0)
train_replicas(task, task.data(), task.subset_masks()[:1], "x", on_epoch=die, snapshots=snapshots)
"""


def test_a_killed_process_leaves_a_snapshot_that_can_be_used(small, small_data, small_reference, tmp_path):
    path = tmp_path / "s.safetensors"
    program = tmp_path / "dies.py"
    program.write_text(DIES, encoding="utf-8")
    ended = subprocess.run([sys.executable, program, small_reference, path], env=os.environ, check=False)
    assert ended.returncode == -signal.SIGKILL
    snapshots = Snapshots(path, "x")
    assert snapshots.last()[0] == 1
    resumed = train_replicas(small, small_data, small.subset_masks()[:1], "x", snapshots=snapshots)
    alone = train_replicas(small, small_data, small.subset_masks()[:1], "x")
    assert all(torch.equal(value, resumed[name]) for name, value in alone.items())


def test_a_snapshot_that_takes_long_to_write_is_made_seldom(tmp_path, monkeypatch):
    """Writing takes three seconds here: the next is due a minute later."""
    clock = iter([200.0, 200.0, 203.0, 262.0, 264.0, 264.0, 267.0])
    monkeypatch.setattr(snapshots_module, "_LEAST_BETWEEN", 20)
    monkeypatch.setattr(snapshots_module, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    snapshots = Snapshots(tmp_path / "s", "x", every_s=10.0)
    snapshots._kept = 100.0
    state = {"value.a": torch.zeros(2)}
    snapshots.offer(1, lambda: state)
    snapshots.offer(2, lambda: pytest.fail("too soon"))
    snapshots.offer(3, lambda: state)
    assert read_metadata(tmp_path / "s", "snapshot", "")["epochs"] == "3"


def test_files_that_killed_workers_never_finished_are_removed_and_those_at_work_are_not(work):
    slice_file, snapshot = PART.file_name, f"partial-{PART.file_name}"
    old = [work.folder / f".{name}.abc12" for name in (slice_file, snapshot, "partial-rounding-moved.safetensors")]
    fresh, other = work.folder / f".{slice_file}.def34", work.folder / ".notes.abc12"
    for path in (*old, fresh, other):
        path.touch()
    for path in (*old, other):
        os.utime(path, (0, 0))
    remove_leftovers(work.folder)
    assert sorted(work.folder.iterdir()) == sorted([fresh, other])


def test_what_rounding_does_is_found_from_snapshots_too(small, small_data, tmp_path):
    whole = rounding_difference(small, small_data, 2)
    facts = builder_facts(small, torch.device("cpu"))
    plain, moved = rounding_snapshots(small, 2, facts, tmp_path)
    dying = [KilledAfter(plain.path, plain.of, 99), KilledAfter(moved.path, moved.of, 2)]
    with pytest.raises(EndError):
        rounding_difference(small, small_data, 2, dying)
    assert plain.path.exists(), "the first one is over, and its end would be lost"
    assert plain.path.name in {"partial-rounding-plain.safetensors"}
    again = rounding_snapshots(small, 2, facts, tmp_path)
    assert [snapshots.last()[0] for snapshots in again] == [2, 2]
    assert rounding_difference(small, small_data, 2, again) == whole > 0
    assert list(tmp_path.iterdir()) == []
    assert rounding_snapshots(small, 3, facts, tmp_path)[0].of != plain.of
