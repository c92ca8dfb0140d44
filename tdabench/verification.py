"""Verifying ground truth: retrain some replicas and compare them with the shipped rows."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from tdabench import precision, provenance
from tdabench.errors import GroundTruthError, UsageError
from tdabench.ground_truth import Builder, GroundTruth, in_spreads, read_ground_truth, rms_difference
from tdabench.grouping import threads
from tdabench.registry import reference_to
from tdabench.retraining import retrain
from tdabench.task import Task

# On the processor and torch version of the build, with the build's threads and batched kernels (see `retrain`), rows
# come out the same to the bit. Elsewhere rounding differs, and training amplifies it over thousands of steps; by how
# much is measured in each build (`rounding_difference` of the manifest). Another replica is about 1.4 spreads away.
SAME_MACHINE_TOLERANCE = 1e-3
OTHER_MACHINE_TOLERANCE = 0.25
ROUNDING_FACTOR = 2.0
LARGEST_TOLERANCE = 1.0  # of another subset's row; another seed's of the same subset may be nearer
# Where rounding moves a row as far as another replica is away, a row is known by its subset. Of the honest replicas of
# the shipped tasks of that kind, 98 % and more are among the first tenth; of rows from anywhere else, a tenth.
PLACES = 0.1
# There, rounding moves a row no further than another seed would: of the shipped tasks' rows, none is 1.5 times as far
# from the same subset's under the next seed as they are on average.
FARTHEST = 1.5


@dataclass(frozen=True)
class Check:
    """One replica compared.

    Attributes
    ----------
    difference
        Root mean square over queries of the retrained row less the shipped one, in units of the spread between subsets.
    tolerance
        The largest difference that agrees.
    other_seed
        Where the tolerance is wide: the difference of the retrained row from the nearest of the subset's shipped rows
        under other seeds, of which its own must be nearer. None with one seed, and where the tolerance is tight.
    places
        Where the tolerance alone does not tell a replica from another; else None.
    """

    subset: int
    seed: int
    difference: float
    tolerance: float
    other_seed: float | None = None
    places: Places | None = None

    @property
    def passed(self) -> bool:
        """Whether the retrained row agrees with the shipped one."""
        # A training that its seed does not change is no nearer to its own row; then all are the same, and so is this.
        of_its_seed = self.other_seed is None or self.difference < max(self.other_seed, SAME_MACHINE_TOLERANCE)
        return self.difference <= self.tolerance and of_its_seed and (self.places is None or self.places.passed)


@dataclass(frozen=True)
class Places:
    """What is compared where rounding, amplified by training, moves a row too far: whether both rows fit the subset.

    Attributes
    ----------
    retrained, shipped
        Among all subsets, ordered by how much the row is like their shipped outputs: 1 where it is most like those of
        its own subset. The shipped row is held against the other seeds.
    last
        The last place that agrees.
    """

    retrained: int
    shipped: int
    last: int

    @property
    def passed(self) -> bool:
        """Whether both rows are as much like their own subset's as is asked."""
        return max(self.retrained, self.shipped) <= self.last


def tolerance(task: Task, truth: GroundTruth, builder: Builder, device: str = "cpu") -> float | None:
    """Return the tolerance for a builder's replicas on a device here; None where no difference tells replicas apart.

    Tight where replicas train as they did in the build: on its processor, in its precision, with its torch version.
    Loose elsewhere, and for what a GPU builds or retrains: its kernels may add up in another order each time. Loose is
    twice what perturbing the initialisation by a part in a million changes, at least 0.25 spreads. Beyond 1 spread it
    would no longer tell a replica from another, and there is none. Nor is there one in another precision, as
    bfloat16 rounds by a part in 256.
    """
    if builder.precision != precision.used(task.recipe.precision, torch.device(device)):
        return None
    same = (
        builder.device == device == "cpu"
        and builder.cpu == provenance.cpu_name()
        and builder.packages.get("torch") == provenance.packages()["torch"]
    )
    if same:
        return SAME_MACHINE_TOLERANCE
    expected = max(ROUNDING_FACTOR * truth.manifest.rounding_difference, OTHER_MACHINE_TOLERANCE)
    return expected if expected <= LARGEST_TOLERANCE else None


def choose_replicas(truth: GroundTruth, n: int, seed: int) -> list[tuple[int, int]]:
    """Return ``n`` random (subset, seed) pairs, without repetition."""
    n_subsets, n_seeds, _ = truth.outputs.shape
    chosen = np.random.default_rng(seed).choice(n_subsets * n_seeds, min(n, n_subsets * n_seeds), replace=False)
    return [(int(c) // n_seeds, int(c) % n_seeds) for c in chosen]


def verify(
    task: Task,
    replicas: int = 3,
    *,
    choice_seed: int = 0,
    data_folder: Path | None = None,
    folder: Path | None = None,
    device: str = "cpu",
    on_check: Callable[[Check], None] = lambda _: None,
) -> list[Check]:
    """Check the files against the manifest, the masks against the task, and some replicas against a retraining.

    Parameters
    ----------
    task
        The task.
    replicas
        How many random replicas to retrain.
    choice_seed
        Seed of their choice.
    data_folder
        Where the user's data sets are.
    folder
        Where the ground truth is; the task's own by default.
    device
        Where to retrain: ``cpu`` or ``cuda``.
    on_check
        Called after every replica.

    Raises
    ------
    GroundTruthError
        If the files are missing or do not match the manifest or the task.
    UsageError
        If the task needs a GPU and another device was asked for.
    """
    truth = read_ground_truth(task, folder)
    _check_masks(task, truth)
    _check_labels(task, truth, data_folder)
    _check_retrainable(task, device)
    data = task.data(data_folder).to(device)
    together: dict[tuple[int, int], list[int]] = defaultdict(list)
    for subset, seed in choose_replicas(truth, replicas, choice_seed):
        together[seed, int(truth.builders[subset, seed])].append(subset)
    checks = []
    for (seed, number), subsets in sorted(together.items()):
        builder = truth.manifest.built_on[number]
        allowed = tolerance(task, truth, builder, device)
        with threads(builder.threads_per_worker):
            rows = retrain(task, data, seed, subsets, builder.replicas_per_group).numpy()
        for subset, outputs in zip(subsets, rows, strict=True):
            checks.append(_compare(truth, allowed, subset, seed, outputs))
            on_check(checks[-1])
    return checks


def _compare(truth: GroundTruth, tolerance: float | None, subset: int, seed: int, outputs: np.ndarray) -> Check:
    spread = truth.manifest.subset_spread
    difference = in_spreads(rms_difference(outputs, truth.outputs[subset, seed]), spread)
    if tolerance == SAME_MACHINE_TOLERANCE:
        return Check(subset, seed, difference, tolerance)
    if tolerance is not None:
        others = np.delete(truth.outputs[subset], seed, axis=0)  # [n_seeds - 1, n_queries]
        nearest = min((in_spreads(rms_difference(outputs, row), spread) for row in others), default=None)
        return Check(subset, seed, difference, tolerance, nearest)
    return Check(subset, seed, difference, _farthest(truth), places=_places(truth, subset, seed, outputs))


def _farthest(truth: GroundTruth) -> float:
    """Return how far another seed's row of the same subset may be from a row, in spreads."""
    here, there = truth.outputs, np.roll(truth.outputs, 1, axis=1)  # [n_subsets, n_seeds, n_queries]
    if here.shape[1] == 1:  # taken to be all noise: two rows are then a root of two apart
        return FARTHEST * 2**0.5
    return FARTHEST * in_spreads(rms_difference(here, there), truth.manifest.subset_spread)


def _places(truth: GroundTruth, subset: int, seed: int, outputs: np.ndarray) -> Places:
    centre = truth.outputs[:, seed].mean(axis=0, dtype=np.float64)  # [n_queries]
    others = np.delete(truth.outputs, seed, axis=1).astype(np.float64)  # [n_subsets, n_seeds - 1, n_queries]
    retrained = _place(outputs - centre, truth.mean, subset)
    # With one seed there are no others, and the retrained row is held against the shipped one.
    shipped = _place(truth.outputs[subset, seed] - centre, others.mean(axis=1), subset) if others.size else retrained
    return Places(retrained, shipped, max(1, int(PLACES * len(truth.outputs))))


def _place(row: np.ndarray, means: np.ndarray, subset: int) -> int:
    """Return the place of a subset among all by how much its ``means [n_subsets, n_queries]`` correlate with a row.

    All less their mean over subsets: what a subset changes is compared, and not which queries are easy.
    """
    like = np.corrcoef(row, means - means.mean(axis=0))[0, 1:]  # [n_subsets]
    return 1 + int((~(like[subset] > np.delete(like, subset))).sum())  # what is not finite is like nothing


def _check_retrainable(task: Task, device: str) -> None:
    if task.needs_cuda and device == "cpu":
        raise UsageError(
            f"The files of {task.name} are whole, but retraining its replicas needs a GPU. "
            f"Verify it with `tdabench ground-truth verify {reference_to(task)} --device cuda`."
        )


def _check_labels(task: Task, truth: GroundTruth, data_folder: Path | None) -> None:
    wrong = task.wrong_labels(data_folder)
    expected = None if wrong is None else wrong.tolist()
    shipped = None if truth.mislabelled is None else truth.mislabelled.tolist()
    if expected != shipped:
        raise GroundTruthError(
            f"The wrong labels that the ground truth of {task.name} names are not the ones its data has. {_again(task)}"
        )


def _check_masks(task: Task, truth: GroundTruth) -> None:
    expected = task.subset_masks().numpy()
    if expected.shape != truth.masks.shape:
        raise GroundTruthError(
            f"The masks of {task.name} have shape {truth.masks.shape}, its plan gives {expected.shape}. {_again(task)}"
        )
    wrong: Sequence[int] = np.flatnonzero((expected != truth.masks).any(axis=1)).tolist()
    if wrong:
        raise GroundTruthError(
            f"The masks of {task.name} are not the ones its seeds give (first at subset {wrong[0]}). {_again(task)}"
        )


def _again(task: Task) -> str:
    return f"Restore the files, or rebuild with `tdabench ground-truth build {reference_to(task)} --replace`."
