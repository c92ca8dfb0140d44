"""Verifying ground truth: retrain some replicas and compare them with the shipped rows."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from tdabench import provenance
from tdabench.building import retrain
from tdabench.errors import GroundTruthError
from tdabench.ground_truth import GroundTruth, read_ground_truth
from tdabench.task import Task

# On the processor and torch version of the build, with the build's threads and batched kernels (see `retrain`), rows
# come out the same to the bit (digits-mlp and mnist-mlp, groups of 2 to 50). Elsewhere rounding differs, and ReLUs that
# switch amplify it over thousands of steps: inputs perturbed by 1e-6 move mnist-mlp's outputs by 0.08 of the spread
# between subsets (root mean square), a replica alone on two threads by 0.07. Another replica is about 1.4 spreads away.
SAME_MACHINE_TOLERANCE = 1e-3
OTHER_MACHINE_TOLERANCE = 0.25


@dataclass(frozen=True)
class Check:
    """One replica compared: root-mean-square difference over queries, in units of the spread between subsets."""

    subset: int
    seed: int
    difference: float
    tolerance: float

    @property
    def passed(self) -> bool:
        """Whether the retrained row agrees with the shipped one."""
        return self.difference <= self.tolerance


def tolerance(truth: GroundTruth) -> float:
    """Return the tolerance that holds here: tight on the build's processor and torch version, loose elsewhere."""
    manifest = truth.manifest
    same = manifest.cpu == provenance.cpu_name() and manifest.packages.get("torch") == provenance.packages()["torch"]
    return SAME_MACHINE_TOLERANCE if same else OTHER_MACHINE_TOLERANCE


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
    on_check
        Called after every replica.

    Raises
    ------
    GroundTruthError
        If the files are missing or do not match the manifest or the task.
    """
    truth = read_ground_truth(task, folder)
    _check_masks(task, truth)
    data = task.data(data_folder)
    by_seed: dict[int, list[int]] = defaultdict(list)
    for subset, seed in choose_replicas(truth, replicas, choice_seed):
        by_seed[seed].append(subset)
    checks = []
    for seed, subsets in sorted(by_seed.items()):
        with _threads(truth.manifest.threads_per_worker):
            rows = retrain(task, data, seed, subsets).numpy()
        for subset, outputs in zip(subsets, rows, strict=True):
            checks.append(_compare(truth, subset, seed, outputs))
            on_check(checks[-1])
    return checks


@contextlib.contextmanager
def _threads(n: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _compare(truth: GroundTruth, subset: int, seed: int, outputs: np.ndarray) -> Check:
    difference = outputs.astype(np.float64) - truth.outputs[subset, seed]  # [n_queries]
    rms = float(np.sqrt(np.mean(difference**2)))
    return Check(subset, seed, rms / truth.manifest.subset_spread, tolerance(truth))


def _check_masks(task: Task, truth: GroundTruth) -> None:
    expected = task.subset_masks().numpy()
    if expected.shape != truth.masks.shape:
        raise GroundTruthError(
            f"The masks of {task.name} have shape {truth.masks.shape}, its plan gives {expected.shape}. "
            f"Restore the files, or rebuild with `tdabench ground-truth build {task.name} --replace`."
        )
    wrong: Sequence[int] = np.flatnonzero((expected != truth.masks).any(axis=1)).tolist()
    if wrong:
        raise GroundTruthError(
            f"The masks of {task.name} are not the ones its seeds give (first at subset {wrong[0]}). "
            f"Restore the files, or rebuild with `tdabench ground-truth build {task.name} --replace`."
        )
