"""Ground truth: which examples each subset keeps, and the target of every query after retraining on it.

Two files: ``arrays.safetensors`` (packed masks ``[M, ceil(n_train / 8)]``, outputs ``[M, S, n_queries]`` float32) and
``manifest.json`` (what they are, how they were made, and their hashes).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from pydantic import Field, ValidationError

from tdabench.errors import GroundTruthError
from tdabench.files import new_folder, read_arrays, read_json, sha256_arrays, write_arrays, write_json
from tdabench.records import Strict

if TYPE_CHECKING:
    from tdabench.task import Task

MANIFEST_FILE = "manifest.json"
ARRAYS_FILE = "arrays.safetensors"


class Manifest(Strict):
    """What the arrays are and how they were made."""

    task: str
    task_version: str
    data_sha256: str
    target: str
    recipe: dict[str, float | int]
    n_subsets: int
    n_seeds: int
    n_train: int
    n_queries: int
    fraction: float
    seeds: list[int]
    masks_sha256: str
    outputs_sha256: str
    built: str
    tdabench_version: str
    commit: str | None
    packages: dict[str, str]
    cpu: str
    threads_per_worker: int = Field(ge=1)
    replicas_per_group: int
    seconds_per_replica: float = Field(ge=0)
    """Worker seconds, batched, on this machine."""
    subset_spread: float = Field(ge=0)
    """Standard deviation of an output between subsets, averaged over queries and seeds; the unit of tolerances."""


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
    """

    masks: np.ndarray
    outputs: np.ndarray
    tuning: np.ndarray
    reported: np.ndarray
    manifest: Manifest

    @property
    def mean(self) -> np.ndarray:
        """Mean output over seeds, ``[M, n_queries]`` float64."""
        return self.outputs.mean(axis=1, dtype=np.float64)


def ground_truth_folder(task: Task) -> Path:
    """Return where a task's ground truth stands."""
    return task.folder / "ground_truth"


def read_ground_truth(task: Task, folder: Path | None = None) -> GroundTruth:
    """Read and check a task's ground truth.

    Raises
    ------
    GroundTruthError
        If it is missing, belongs to another version of the task, or does not match its manifest.
    """
    folder = folder or ground_truth_folder(task)
    hint = f"Build it with `tdabench ground-truth build {task.name}`."
    if not (folder / MANIFEST_FILE).exists():
        raise GroundTruthError(f"{task.name} has no ground truth in {folder}. {hint}")
    manifest = read_manifest(folder, hint)
    if (manifest.task, manifest.task_version) != (task.name, task.version):
        raise GroundTruthError(
            f"The ground truth in {folder} belongs to {manifest.task} version {manifest.task_version}, "
            f"not to {task.name} version {task.version}. {hint}"
        )
    arrays = read_arrays(folder / ARRAYS_FILE, "ground-truth file", hint)
    masks, outputs = check_arrays(arrays, manifest, folder, hint)
    _check_facts(manifest, task, masks, outputs, folder / MANIFEST_FILE, hint)
    return GroundTruth(masks, outputs, task.tuning_queries.numpy(), task.reported_queries.numpy(), manifest)


def read_manifest(folder: Path, hint: str) -> Manifest:
    """Read and validate ``manifest.json``."""
    path = folder / MANIFEST_FILE
    value = read_json(path, "ground-truth manifest", hint)
    try:
        return Manifest.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise GroundTruthError(f"{path} is not a valid manifest: {where}: {first['msg']}. {hint}") from error


def check_arrays(
    arrays: dict[str, np.ndarray], manifest: Manifest, folder: Path, hint: str
) -> tuple[np.ndarray, np.ndarray]:
    """Unpack masks and outputs, and name whatever does not match the manifest."""
    path = folder / ARRAYS_FILE
    if set(arrays) != {"masks", "outputs"}:
        raise GroundTruthError(f"{path} holds {sorted(arrays)}, expected masks and outputs. {hint}")
    for name, expected in (("masks", manifest.masks_sha256), ("outputs", manifest.outputs_sha256)):
        got = sha256_arrays({name: arrays[name]})
        if got != expected:
            raise GroundTruthError(
                f"The {name} in {path} do not match the manifest: SHA-256 {got[:16]}..., expected {expected[:16]}.... "
                f"The file was changed or damaged; restore it, or rebuild. {hint}"
            )
    masks = np.unpackbits(arrays["masks"], axis=1, count=manifest.n_train).astype(bool)
    return masks, arrays["outputs"]


def subset_spread(outputs: np.ndarray) -> float:
    """Return the standard deviation of an output between subsets, averaged over queries and seeds."""
    return float(outputs.std(axis=0, dtype=np.float64).mean())


def _check_facts(manifest: Manifest, task: Task, masks: np.ndarray, outputs: np.ndarray, path: Path, hint: str) -> None:
    """Name the first fact of the manifest that the task or the arrays contradict."""
    expected = {
        "data_sha256": task.data_sha256,
        "target": task.target.name,
        "recipe": asdict(task.recipe),
        "n_train": task.n_train,
        "n_queries": task.n_queries,
        "n_subsets": masks.shape[0],
        "seeds": list(range(manifest.n_seeds)),
        "fraction": masks.mean(),
        "subset_spread": subset_spread(outputs),
    }
    for name, value in expected.items():
        got = getattr(manifest, name)
        close = isinstance(value, float) and abs(got - value) <= (0.5 / task.n_train if name == "fraction" else 1e-6)
        if got != value and not close:
            raise GroundTruthError(f"{path} says {name} is {got}; the task and the arrays say {value}. {hint}")
    shape = (manifest.n_subsets, manifest.n_seeds, manifest.n_queries)
    if outputs.shape != shape:
        raise GroundTruthError(f"{path} says the outputs have shape {shape}; they have {outputs.shape}. {hint}")


def write_ground_truth(folder: Path, masks: np.ndarray, outputs: np.ndarray, facts: dict[str, object]) -> Manifest:
    """Write arrays and manifest as a new folder, whole or not at all; ``facts`` are the manifest's other fields."""
    packed = np.packbits(masks, axis=1)
    manifest = Manifest.model_validate(
        {
            **facts,
            "masks_sha256": sha256_arrays({"masks": packed}),
            "outputs_sha256": sha256_arrays({"outputs": outputs}),
            "subset_spread": subset_spread(outputs),
        }
    )
    with new_folder(folder) as aside:
        write_arrays(aside / ARRAYS_FILE, {"masks": packed, "outputs": outputs})
        write_json(aside / MANIFEST_FILE, manifest.model_dump(mode="json"))
    return manifest
