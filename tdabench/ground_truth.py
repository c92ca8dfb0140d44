"""Ground truth: which examples each subset keeps, and the target of every query after retraining on it.

Two files: ``arrays.safetensors`` (packed masks ``[M, ceil(n_train / 8)]``, outputs ``[M, S, n_queries]`` float32,
builders ``[M, S]``: which machine retrained each replica, and packed ``mislabelled`` where the task knows which labels
are wrong) and ``manifest.json`` (what they are, how they were made, and their hashes, its own included).
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field, ValidationError

from tdabench.devices import MOST_THREADS
from tdabench.errors import FileFormatError, GroundTruthError, MissingGroundTruthError, StorageError
from tdabench.files import (
    json_bytes,
    new_folder,
    read_arrays,
    read_json,
    sha256_arrays,
    sha256_file,
    write_arrays,
    write_json,
)
from tdabench.records import MOST, Count, Seconds, Strict
from tdabench.registry import reference_to
from tdabench.validation import faults

if TYPE_CHECKING:
    from tdabench.targets import Target
    from tdabench.task import Task

MANIFEST_FILE = "manifest.json"
ARRAYS_FILE = "arrays.safetensors"


class Builder(Strict):
    """A machine that retrained replicas, and how it did."""

    cpu: str
    device: str
    """``cpu``, or the name of the accelerator."""
    packages: dict[str, str]
    tdabench_version: str
    commit: str | None
    precision: str
    threads_per_worker: int = Field(ge=1, le=MOST_THREADS)
    replicas_per_group: int = Field(ge=1, le=MOST)
    """How many replicas trained at once as one batched program."""
    seconds_by_group: dict[str, Seconds]
    """Measured seconds per replica and step for each size of group that was tried; the fastest was taken."""
    n_replicas: Count
    seconds_per_replica: Seconds
    """Worker seconds."""


class Manifest(Strict):
    """What the arrays are and how they were made."""

    task: str
    task_version: str
    data_sha256: str
    target: str
    recipe: dict[str, float | int | str]
    n_subsets: Count
    n_seeds: Count
    n_train: Count
    n_queries: Count
    fraction: float = Field(gt=0, lt=1)
    seeds: list[Count]
    arrays_sha256: str
    """Of the file; those of the arrays hold in any format."""
    masks_sha256: str
    outputs_sha256: str
    builders_sha256: str
    mislabelled_sha256: str | None = None
    built: str
    built_on: list[Builder] = Field(min_length=1)
    subset_spread: float = Field(ge=0)
    """Standard deviation of an output between subsets, averaged over queries and seeds; the unit of tolerances."""
    rounding_difference: float = Field(ge=0)
    """What perturbing the initialisation by one part in a million changes, root mean square, in that unit."""
    manifest_sha256: str = ""
    """Of this file with this field empty."""

    def sealed(self) -> Manifest:
        """Return the manifest with its own hash."""
        return self.model_copy(update={"manifest_sha256": self.own_sha256})

    @property
    def own_sha256(self) -> str:
        """Hash of every other field."""
        plain = self.model_copy(update={"manifest_sha256": ""})
        return hashlib.sha256(json_bytes(plain.model_dump(mode="json"))).hexdigest()


@dataclass(frozen=True)
class GroundTruth:
    """Ground truth in memory.

    Attributes
    ----------
    masks
        ``[M, n_train]`` bool: the examples each subset keeps.
    outputs
        ``[M, S, n_queries]`` float32: the target after retraining on subset m with seed s; higher is better.
    tuning, reported
        Query indices: options are chosen on the first, results are reported on the second.
    manifest
        How it was made.
    builders
        ``[M, S]`` uint8: which of the manifest's builders retrained each replica.
    mislabelled
        ``[n_train]`` bool: the training examples whose label is wrong; None where that is not known.
    """

    masks: np.ndarray
    outputs: np.ndarray
    tuning: np.ndarray
    reported: np.ndarray
    manifest: Manifest
    builders: np.ndarray
    mislabelled: np.ndarray | None = None

    @property
    def mean(self) -> np.ndarray:
        """Mean output over seeds, ``[M, n_queries]`` float64."""
        return self.outputs.mean(axis=1, dtype=np.float64)


def ground_truth_folder(task: Task) -> Path:
    """Return where a task's ground truth stands."""
    return task.folder / "ground_truth"


def has_ground_truth(task: Task) -> bool:
    """Return whether this version of a task has ground truth; whether that is valid shows when it is read."""
    folder = ground_truth_folder(task)
    if not (folder / MANIFEST_FILE).exists():
        return False
    try:
        return _is_of(read_manifest(folder, hint=""), task)
    except (FileFormatError, StorageError):
        return True


def _is_of(manifest: Manifest, task: Task) -> bool:
    return (manifest.task, manifest.task_version) == (task.name, task.version)


def read_ground_truth(task: Task, folder: Path | None = None) -> GroundTruth:
    """Read and check a task's ground truth.

    Raises
    ------
    MissingGroundTruthError
        If there is none, or that of another version of the task.
    GroundTruthError
        If it does not match its manifest.
    """
    folder = folder or ground_truth_folder(task)
    own = folder == ground_truth_folder(task)  # a hint must not have it replaced because a copy of it is damaged
    again = " --replace" if own and folder.exists() else ""
    hint = f"Build it with `tdabench ground-truth build {reference_to(task)}{again}`."
    if not (folder / MANIFEST_FILE).exists():
        raise MissingGroundTruthError(f"{task.name} has no ground truth in {folder}. {hint}")
    manifest = read_manifest(folder, hint)
    if own and manifest.task != task.name:
        hint = f"Give {task.name} a folder of its own (folder=...); --replace would delete what {manifest.task} has."
    if not _is_of(manifest, task):
        raise MissingGroundTruthError(
            f"The ground truth in {folder} belongs to {manifest.task} version {manifest.task_version}, "
            f"not to {task.name} version {task.version}. {hint}"
        )
    arrays = check_arrays(manifest, folder, hint)
    truth = GroundTruth(
        masks=_unpack(arrays["masks"], manifest),
        outputs=arrays["outputs"],
        tuning=task.tuning_queries.numpy(),
        reported=task.reported_queries.numpy(),
        manifest=manifest,
        builders=arrays["builders"],
        mislabelled=_unpack(arrays["mislabelled"], manifest) if "mislabelled" in arrays else None,
    )
    _check_facts(truth, task, folder / MANIFEST_FILE, hint)
    return truth


def read_manifest(folder: Path, hint: str) -> Manifest:
    """Read and validate ``manifest.json``; one changed byte is noticed."""
    path = folder / MANIFEST_FILE
    value = read_json(path, "ground-truth manifest", hint)
    try:
        manifest = Manifest.model_validate(value)
    except ValidationError as error:
        raise GroundTruthError(f"{path} is not a valid manifest: {faults(error)[0]}. {hint}") from error
    if manifest.manifest_sha256 != manifest.own_sha256:
        raise GroundTruthError(
            f"The manifest {path} does not match its own hash: SHA-256 {manifest.own_sha256[:16]}..., it says "
            f"{manifest.manifest_sha256[:16]}.... The file was changed or damaged; restore it, or rebuild. {hint}"
        )
    if path.read_bytes() != json_bytes(manifest.model_dump(mode="json")):
        raise GroundTruthError(
            f"The manifest {path} holds what was written, in other bytes: another order, other spaces or numbers in "
            f"another form. The file was changed; restore it, or rebuild. {hint}"
        )
    return manifest


def check_arrays(manifest: Manifest, folder: Path, hint: str) -> dict[str, np.ndarray]:
    """Read the arrays, and name whatever does not match the manifest."""
    path = folder / ARRAYS_FILE
    arrays = read_arrays(path, "ground-truth file", hint)
    hashes = {
        "masks": manifest.masks_sha256,
        "outputs": manifest.outputs_sha256,
        "builders": manifest.builders_sha256,
        **({"mislabelled": manifest.mislabelled_sha256} if manifest.mislabelled_sha256 else {}),
    }
    if set(arrays) != set(hashes):
        raise GroundTruthError(f"{path} holds {sorted(arrays)}, expected {sorted(hashes)}. {hint}")
    found = {f"{name} in": (sha256_arrays({name: arrays[name]}), expected) for name, expected in hashes.items()}
    found["bytes of"] = (sha256_file(path), manifest.arrays_sha256)
    for what, (got, expected) in found.items():
        if got != expected:
            raise GroundTruthError(
                f"The {what} {path} do not match the manifest: SHA-256 {got[:16]}..., expected {expected[:16]}.... "
                f"The file was changed or damaged; restore it, or rebuild. {hint}"
            )
    return arrays


def check_mislabelled(mislabelled: np.ndarray, n_train: int, what: str) -> None:
    """Raise unless labels are told wrong or right one by one ``[n_train]``, some of each."""
    if mislabelled.shape != (n_train,) or mislabelled.dtype != bool or len(np.unique(mislabelled)) != 2:
        raise GroundTruthError(
            f"{what}: expected [{n_train}] bool, some labels wrong and some right; got {list(mislabelled.shape)} "
            f"{mislabelled.dtype}, {int(mislabelled.astype(bool).sum())} wrong. Without any, leave them out."
        )


def _unpack(bits: np.ndarray, manifest: Manifest) -> np.ndarray:
    return np.unpackbits(bits, axis=-1, count=manifest.n_train).astype(bool)


def subset_spread(outputs: np.ndarray) -> float:
    """Return the standard deviation of an output between subsets, averaged over queries and seeds."""
    return float(outputs.std(axis=0, dtype=np.float64).mean())


def quality(target: Target, outputs: np.ndarray) -> dict[str, float]:
    """Return how good the retrained models are: attribution explains what they know, and not what the data could teach.

    Parameters
    ----------
    target
        The task's.
    outputs
        ``[M, S, n_queries]``.

    Returns
    -------
    dict
        ``mean_output``, the target's mean; and of log-odds ``share_right``, how many of the answers are right.
    """
    from tdabench.targets import LOG_ODDS

    found = {"mean_output": float(outputs.mean(dtype=np.float64))}
    return found | ({"share_right": float((outputs > 0).mean())} if target.name == LOG_ODDS.name else {})


def rms_difference(a: np.ndarray, b: np.ndarray) -> float:
    """Return the root mean square difference of two rows of outputs, in float64."""
    return float(np.sqrt(np.mean((a.astype(np.float64) - b) ** 2)))


def in_spreads(difference: float, spread: float) -> float:
    """Return a difference in units of the spread between subsets; where nothing varies, any difference is infinite."""
    return difference / spread if spread > 0 else (0.0 if difference == 0 else float("inf"))


def _check_facts(truth: GroundTruth, task: Task, path: Path, hint: str) -> None:
    """Name the first fact of the manifest that the task or the arrays contradict."""
    manifest, outputs = truth.manifest, truth.outputs
    expected = {
        "data_sha256": task.data_sha256,
        "target": task.target.name,
        "recipe": task.recipe.facts(),
        "n_train": task.n_train,
        "n_queries": task.n_queries,
        "n_subsets": truth.masks.shape[0],
        "seeds": list(range(manifest.n_seeds)),
        "subset_spread": subset_spread(outputs),
    }
    for name, value in expected.items():
        got = getattr(manifest, name)
        close = isinstance(value, float) and math.isclose(got, value, rel_tol=1e-6)
        if got != value and not close:
            raise GroundTruthError(f"{path} says {name} is {got}; the task and the arrays say {value}. {hint}")
    size, sizes = round(manifest.fraction * task.n_train), truth.masks.sum(axis=1)  # as Task.subset_masks() rounds
    if (sizes != size).any():
        first = int(np.argmax(sizes != size))
        raise GroundTruthError(
            f"{path} says fraction is {manifest.fraction}, which is {size} of {task.n_train} examples; subset {first} "
            f"has {sizes[first]}. {hint}"
        )
    shape = (manifest.n_subsets, manifest.n_seeds, manifest.n_queries)
    if outputs.shape != shape:
        raise GroundTruthError(f"{path} says the outputs have shape {shape}; they have {outputs.shape}. {hint}")
    if truth.builders.shape != shape[:2] or truth.builders.max() >= len(manifest.built_on):
        raise GroundTruthError(f"{path} names {len(manifest.built_on)} builders; the replicas name others. {hint}")


def write_ground_truth(
    folder: Path,
    masks: np.ndarray,
    outputs: np.ndarray,
    facts: dict[str, Any],
    *,
    builders: np.ndarray | None = None,
    mislabelled: np.ndarray | None = None,
) -> Manifest:
    """Write arrays and manifest as a new folder, whole or not at all.

    Parameters
    ----------
    folder
        Must not exist.
    masks, outputs
        As in :class:`GroundTruth`.
    facts
        The manifest's other fields.
    builders
        ``[M, S]``; by default the first builder retrained everything.
    mislabelled
        ``[n_train]`` bool, where it is known.
    """
    arrays = {
        "masks": np.packbits(masks, axis=-1),
        "outputs": outputs,
        "builders": np.zeros(outputs.shape[:2], np.uint8) if builders is None else builders.astype(np.uint8),
        **({} if mislabelled is None else {"mislabelled": np.packbits(mislabelled)}),
    }
    with new_folder(folder) as aside:
        file_sha256 = write_arrays(aside / ARRAYS_FILE, arrays)
        hashes = {f"{name}_sha256": sha256_arrays({name: array}) for name, array in arrays.items()}
        derived = {**hashes, "arrays_sha256": file_sha256, "subset_spread": subset_spread(outputs)}
        manifest = Manifest.model_validate({**facts, **derived}).sealed()
        write_json(aside / MANIFEST_FILE, manifest.model_dump(mode="json"))
    return manifest
