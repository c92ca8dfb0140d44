"""Slices of ground truth: what a build has finished so far, as files that add up.

A slice is a group of subsets under one seed. Slices of several folders, made on several machines, are read together:
a replica may be in more than one, and none may be missing when ground truth is written.
"""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tdabench import precision, provenance
from tdabench._version import __version__
from tdabench.errors import FileFormatError, StorageError, UsageError
from tdabench.files import read_arrays, read_json, read_metadata, sha256_arrays, write_arrays, write_json
from tdabench.ground_truth import Builder
from tdabench.registry import reference_to
from tdabench.snapshots import Snapshots
from tdabench.task import Task

FACTS = "builder"
"""Key of the slice's metadata that says which machine made it, and how."""
_MEASURED = "seconds_by_group"
"""The one of these facts that differs from one start of a build to the next."""
_ARRAYS = {"outputs", "subsets", "seed", "seconds"}
LOCK = "build.lock"
"""File in a folder of slices that a running build holds."""
_SNAPSHOT = "partial-"
_GROUP = "group.json"
_ROUNDING = ("plain", "moved")
_FILES = rf"({_SNAPSHOT})?seed-\d{{4,}}-subsets-\d{{5,}}-\d{{5,}}\.safetensors|{_SNAPSHOT}rounding-\w+\.safetensors"
# A slice or a snapshot, or the size of the groups, half-written by a killed process.
_HALF_WRITTEN = re.compile(rf"\.({_FILES}|{re.escape(_GROUP)})\.\w+")
_OURS = re.compile(rf"{_FILES}|{_HALF_WRITTEN.pattern}|{re.escape(_GROUP)}|{re.escape(LOCK)}")
# A file that was begun so long ago is not being written any more.
_ABANDONED_S = 3600.0
_KEEPS_FOLDER = ".gitkeep"


@dataclass(frozen=True)
class Slice:
    """A group of replicas that is retrained in one piece: some subsets under one seed."""

    seed: int
    subsets: tuple[int, ...]

    @property
    def file_name(self) -> str:
        """Where its outputs are kept."""
        return f"seed-{self.seed:04d}-subsets-{self.subsets[0]:05d}-{self.subsets[-1]:05d}.safetensors"


@dataclass(frozen=True)
class Found:
    """What the slices in some folders add up to.

    Attributes
    ----------
    outputs
        ``[M, S, n_queries]`` float32, NaN where a replica is missing.
    builders
        ``[M, S]`` uint8, indices of ``built_on``; 0 where a replica is missing.
    built_on
        The machines, with what each of them did.
    """

    outputs: np.ndarray
    builders: np.ndarray
    built_on: list[Builder]

    @property
    def missing(self) -> np.ndarray:
        """``[M, S]`` bool."""
        return np.isnan(self.outputs).any(axis=2)

    @property
    def n_done(self) -> int:
        """How many replicas are there."""
        return int((~self.missing).sum())

    @property
    def seconds_per_replica(self) -> float:
        """Worker seconds, over all builders; 0 where nothing is there yet."""
        return sum(b.seconds_per_replica * b.n_replicas for b in self.built_on) / max(self.n_done, 1)


def plan_slices(missing: np.ndarray, size: int) -> list[Slice]:
    """Group the missing replicas, ``[M, S]`` bool, by seed, in groups that train well together."""
    slices = []
    for seed in range(missing.shape[1]):
        subsets = np.flatnonzero(missing[:, seed]).tolist()
        slices += [Slice(seed, tuple(subsets[i : i + size])) for i in range(0, len(subsets), size)]
    return slices


def builder_facts(task: Task, device: torch.device) -> dict[str, Any]:
    """Return what is known of this machine as a builder before it starts."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    return {
        "cpu": provenance.cpu_name(),
        "device": name,
        "packages": provenance.packages(),
        "tdabench_version": __version__,
        "commit": provenance.commit()[0],
        "precision": precision.used(task.recipe.precision, device),
        "threads_per_worker": 1,
    }


def machine_facts(task: Task, device: torch.device) -> dict[str, Any]:
    """Return those of :func:`builder_facts` that say where a slice is trained; an executor's workers differ in them."""
    facts = builder_facts(task, device)
    return {name: facts[name] for name in ("cpu", "device", "packages", "precision")}


def write_slice(
    task: Task, part: Slice, outputs: np.ndarray, seconds: float, facts: dict[str, object], folder: Path
) -> None:
    """Write the outputs of a slice, ``[R, n_queries]``, whole or not at all."""
    arrays = {
        "outputs": outputs,
        "subsets": np.array(part.subsets, dtype=np.int64),
        "seed": np.array([part.seed], dtype=np.int64),
        "seconds": np.array([seconds]),
    }
    metadata = {
        **_plan_facts(task),
        "sha256": sha256_arrays(arrays),
        FACTS: json.dumps(facts, sort_keys=True),
    }
    write_arrays(folder / part.file_name, arrays, metadata)


def _plan_facts(task: Task) -> dict[str, str]:
    # The plan is in no version, and its fraction decides what a subset is.
    return {"task_version": task.version, "fraction": f"{task.plan.fraction:g}"}


def snapshots_of(task: Task, part: Slice, facts: Mapping[str, object], folder: Path) -> Snapshots:
    """Return the snapshots of a slice that is being trained; they are good for the same builder only."""
    builder = {k: v for k, v in facts.items() if k != _MEASURED}
    of = {**_plan_facts(task), "seed": part.seed, "subsets": part.subsets, FACTS: builder}
    return Snapshots(folder / f"{_SNAPSHOT}{part.file_name}", json.dumps(of, sort_keys=True))


def rounding_snapshots(task: Task, group: int, facts: Mapping[str, object], folder: Path) -> list[Snapshots]:
    """Return the snapshots of the two trainings that tell what rounding does."""
    of = {**_plan_facts(task), "group": group, FACTS: facts}
    return [
        Snapshots(folder / f"{_SNAPSHOT}rounding-{which}.safetensors", json.dumps({**of, "of": which}, sort_keys=True))
        for which in _ROUNDING
    ]


def remember_group(folder: Path, facts: Mapping[str, object], group: int, seconds: Mapping[str, float]) -> None:
    """Write down the size of groups that was measured: snapshots are of use only to a build that has the same."""
    write_json(folder / _GROUP, {FACTS: facts, "replicas_per_group": group, _MEASURED: seconds})


def remembered_group(folder: Path, facts: Mapping[str, object]) -> tuple[int, dict[str, float]] | None:
    """Return what was written down for this builder; None if nothing was, or it cannot be read."""
    try:
        found = read_json(folder / _GROUP, "size of groups", "")
        return (int(found["replicas_per_group"]), found[_MEASURED]) if found[FACTS] == facts else None
    except (FileFormatError, StorageError, KeyError, TypeError, ValueError):
        return None


def remove_leftovers(folder: Path) -> None:
    """Remove what killed workers left: snapshots of slices that are whole, and files that were never finished."""
    for path in folder.glob(f"{_SNAPSHOT}seed-*.safetensors"):
        if path.with_name(path.name.removeprefix(_SNAPSHOT)).exists():
            path.unlink(missing_ok=True)
    for path in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):  # another one's, and finished just now
            if _HALF_WRITTEN.fullmatch(path.name) and time.time() - path.stat().st_mtime > _ABANDONED_S:
                path.unlink()


def holds_only_slices(folder: Path) -> bool:
    """Tell whether a folder is one of slices: it holds some, or a ``.gitkeep`` in their place, and nothing else."""
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    return bool(names) and all(name == _KEEPS_FOLDER or _OURS.fullmatch(name) for name in names)


def remove_slices(folder: Path) -> None:
    """Remove the slices and the lock in a folder, and the folder if nothing else is in it."""
    for path in folder.iterdir():
        if _OURS.fullmatch(path.name):
            path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # something else is in it
        folder.rmdir()


def read_slices(task: Task, folders: Iterable[Path]) -> Found:
    """Return what the slices in ``folders`` add up to; where two have a replica, the first one counts.

    Raises
    ------
    FileFormatError
        If a slice is damaged, or of another version of the task or another plan; it is named.
    """
    plan = task.plan
    outputs = np.full((plan.n_subsets, plan.n_seeds, task.n_queries), np.nan, dtype=np.float32)
    builders = np.zeros((plan.n_subsets, plan.n_seeds), dtype=np.uint8)
    work: dict[str, _Counts] = {}
    for path in (path for folder in folders for path in sorted(folder.glob("seed-*.safetensors"))):
        arrays, builder = _read_slice(task, path)
        seed = int(arrays["seed"][0])
        new = np.isnan(outputs[arrays["subsets"], seed]).any(axis=1)  # [R]
        if not new.any():
            continue
        key = builder.model_dump_json(exclude={_MEASURED})
        counts = work.setdefault(key, _Counts(builder))
        counts.replicas += int(new.sum())
        counts.seconds += float(arrays["seconds"][0]) * float(new.mean())
        outputs[arrays["subsets"][new], seed] = arrays["outputs"][new]
        builders[arrays["subsets"][new], seed] = list(work).index(key)
    return Found(outputs, builders, [counts.total() for counts in work.values()])


@dataclass
class _Counts:
    builder: Builder
    replicas: int = 0
    seconds: float = 0.0

    def total(self) -> Builder:
        work = {"n_replicas": self.replicas, "seconds_per_replica": self.seconds / max(self.replicas, 1)}
        return self.builder.model_copy(update=work)


def _read_slice(task: Task, path: Path) -> tuple[dict[str, np.ndarray], Builder]:
    """Return a slice's arrays, and who made it; how much work that was is left at 0."""
    hint, plan = f"Remove {path} and start the build again.", task.plan
    metadata = read_metadata(path, "slice of ground truth", hint)
    if metadata.get("task_version") != task.version:
        raise FileFormatError(
            f"{path} is a slice of version {metadata.get('task_version')}, not of {task.name} version {task.version}. "
            f"{hint}"
        )
    # The first slices say neither their fraction nor their hash.
    fraction = metadata.get("fraction", f"{plan.fraction:g}")
    if fraction != f"{plan.fraction:g}":
        raise FileFormatError(
            f"{path} is a slice of subsets that keep {fraction} of the training set; those of {task.name} keep "
            f"{plan.fraction:g}. {hint}"
        )
    arrays = read_arrays(path, "slice of ground truth", hint)
    if set(arrays) != _ARRAYS:
        raise FileFormatError(f"{path} holds {sorted(arrays)}, expected {sorted(_ARRAYS)}. {hint}")
    claimed = metadata.get("sha256")
    if claimed is not None and claimed != sha256_arrays(arrays):
        raise FileFormatError(f"{path} does not match its own hash: it was changed or damaged. {hint}")
    if not _fits(task, **arrays):
        raise FileFormatError(
            f"{path} holds outputs {list(arrays['outputs'].shape)} of subsets {arrays['subsets'].tolist()} under seed "
            f"{arrays['seed'].tolist()}, which is not of the plan of {task.name} ({plan.n_subsets} subsets, "
            f"{plan.n_seeds} seeds, {task.n_queries} queries). {hint}"
        )
    if not np.isfinite(arrays["outputs"]).all():
        raise FileFormatError(f"{path} holds outputs that are not finite, which no build writes. {hint}")
    try:
        facts = {**json.loads(metadata[FACTS]), "n_replicas": 0, "seconds_per_replica": 0.0}
        return arrays, Builder.model_validate(facts)
    except (KeyError, TypeError, ValueError) as error:
        raise FileFormatError(f"{path} does not say which machine made it, and how. {hint}") from error


def _fits(task: Task, outputs: np.ndarray, subsets: np.ndarray, seed: np.ndarray, seconds: np.ndarray) -> bool:
    """Tell whether these are outputs of replicas that the task's plan has."""
    return (
        outputs.shape == (subsets.size, task.n_queries)
        and outputs.dtype == np.float32
        and subsets.ndim == 1
        and subsets.size == len(np.unique(subsets)) > 0
        and bool((subsets >= 0).all() and (subsets < task.plan.n_subsets).all())
        and seed.shape == seconds.shape == (1,)
        and 0 <= int(seed[0]) < task.plan.n_seeds
    )


def check_complete(task: Task, found: Found, folders: Sequence[Path]) -> None:
    """Raise if a replica is missing, and name the first."""
    missing = np.argwhere(found.missing.T)  # [n, 2]: seed, subset
    if len(missing):
        seed, subset = missing[0].tolist()
        raise UsageError(
            f"{len(missing)} of {found.missing.size} replicas of {task.name} are missing in "
            f"{', '.join(map(str, folders))}, first subset {subset} under seed {seed}. "
            f"Build them with `tdabench ground-truth build {reference_to(task)} --slices DIR`, or name more folders."
        )
