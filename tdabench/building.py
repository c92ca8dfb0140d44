"""Building ground truth: retraining in slices that survive a kill, over any ``concurrent.futures.Executor``.

A slice is a group of subsets under one seed. It is written, whole, when it is done; a build starts by reading the
slices that are there and retrains only the replicas that are missing.
"""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Executor, Future, ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import lru_cache
from multiprocessing import get_context, parent_process
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock, Timeout

from tdabench import provenance
from tdabench._version import __version__
from tdabench.datasets import cache_folder
from tdabench.errors import FileFormatError, UsageError
from tdabench.files import read_arrays, write_arrays
from tdabench.ground_truth import Manifest, write_ground_truth
from tdabench.registry import find_task
from tdabench.task import Task, TaskData
from tdabench.trainer import Parameters, group_size, target_outputs, train_replicas

STREAM = "ground-truth"


@dataclass(frozen=True)
class Slice:
    """A group of replicas that trains at once: some subsets under one seed."""

    seed: int
    subsets: tuple[int, ...]

    @property
    def file_name(self) -> str:
        """Where its outputs are kept."""
        return f"seed-{self.seed:04d}-subsets-{self.subsets[0]:05d}-{self.subsets[-1]:05d}.safetensors"


@dataclass(frozen=True)
class Progress:
    """How far a build is."""

    done: int
    fresh: int
    """Of these, how many this call computed."""
    total: int
    seconds_per_replica: float


def total_replicas(task: Task) -> int:
    """Return how many retrainings a task's ground truth consists of."""
    return task.plan.n_subsets * task.plan.n_seeds


def retrain(task: Task, data: TaskData, seed: int, subsets: Iterable[int]) -> torch.Tensor:
    """Retrain on some subsets under one seed; return the target of every query, ``[R, n_queries]`` float32.

    In groups of the build's size, and never alone where the build has groups: one replica alone runs through other
    kernels than a batch of them, and training can amplify their rounding into a tenth of the spread between subsets.
    """
    chosen, masks = list(subsets), task.subset_masks()
    size = group_size(dict(task.initial_model("plan").named_parameters()))
    parts = []
    for start in range(0, len(chosen), size):
        group = chosen[start : start + size]
        rows = group * 2 if len(group) == 1 < size else group
        stacked: Parameters = train_replicas(task, data, masks[rows], STREAM, seed)
        parts.append(target_outputs(task, data, stacked)[: len(group)].cpu())
    return torch.cat(parts)


def work_folder(task: Task) -> Path:
    """Return where the slices of a build are kept until it is complete; other subsets are another build."""
    plan = task.plan
    name = f"{task.name}-{task.version}-{plan.n_subsets}x{plan.n_seeds}-{plan.fraction:g}"
    return cache_folder() / "ground_truth" / name


def build(
    reference: str,
    out: Path,
    *,
    data_folder: Path | None = None,
    workers: int | None = None,
    executor: Executor | None = None,
    replace: bool = False,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> Manifest:
    """Build a task's ground truth into ``out``, resuming what an earlier call finished.

    Parameters
    ----------
    reference
        The task's name or ``path.py:NAME``; workers find the task by it.
    out
        Folder to write.
    data_folder
        Where the user's data sets are.
    workers
        Local worker processes, one thread each; all cores by default. Unused with ``executor``.
    executor
        Where slices are computed; its workers must see the work folder.
    replace
        Build anew although ``out`` exists; it is replaced when the new one is complete.
    on_progress
        Called after every slice.

    Raises
    ------
    UsageError
        If ``out`` exists and ``replace`` is not given, or another build of this task is running.
    """
    task = find_task(reference)
    _refuse_existing(out, replace)
    folder = work_folder(task)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / "build.lock", timeout=0):
            _refuse_existing(out, replace)  # a build that ended just now
            outputs, seconds = _fill(reference, task, folder, data_folder, workers, executor, on_progress)
            manifest = _put(out, task.subset_masks().numpy(), outputs, _facts(task, seconds))
            shutil.rmtree(folder, ignore_errors=True)
    except Timeout:
        raise UsageError(f"Another build of {task.name} is running in {folder}; wait for it, or stop it.") from None
    return manifest


def _refuse_existing(out: Path, replace: bool) -> None:
    if out.exists() and not replace:
        raise UsageError(f"{out} exists already. Pass --replace to build anew, or --out DIR to build elsewhere.")


def _put(out: Path, masks: np.ndarray, outputs: np.ndarray, facts: dict[str, object]) -> Manifest:
    """Write beside what is there and swap when it is whole; a failure leaves what was there."""
    fresh, old = (out.with_name(f".{out.name}.{word}") for word in ("new", "old"))
    for leftover in (fresh, old):
        shutil.rmtree(leftover, ignore_errors=True)
    manifest = write_ground_truth(fresh, masks, outputs, facts)
    if out.exists():
        out.rename(old)
    fresh.rename(out)
    shutil.rmtree(old, ignore_errors=True)
    return manifest


def _fill(
    reference: str,
    task: Task,
    folder: Path,
    data_folder: Path | None,
    workers: int | None,
    executor: Executor | None,
    on_progress: Callable[[Progress], None],
) -> tuple[np.ndarray, float]:
    """Compute whatever is missing; return outputs ``[M, S, n_queries]`` and worker seconds per replica."""
    outputs, seconds = read_slices(task, folder)
    total = total_replicas(task)
    missing = plan_slices(task, np.isnan(outputs).any(axis=2))
    done = total - sum(len(s.subsets) for s in missing)
    on_progress(Progress(done, 0, total, seconds))
    if missing:
        own = executor is None
        pool = executor or _local_pool(workers)
        futures: list[Future[float]] = []
        try:
            futures += [pool.submit(_compute, reference, data_folder, s, folder / s.file_name) for s in missing]
            _watch(futures, missing, done, total, on_progress)
        finally:
            for future in futures:
                future.cancel()
            if own:
                pool.shutdown(wait=True)
        outputs, seconds = read_slices(task, folder)
    if np.isnan(outputs).any():
        raise FileFormatError(f"The build in {folder} is incomplete. Start it again; finished slices are kept.")
    return outputs, seconds


def _watch(
    futures: list[Future[float]],
    slices: list[Slice],
    done: int,
    total: int,
    on_progress: Callable[[Progress], None],
) -> None:
    size = {id(f): len(s.subsets) for f, s in zip(futures, slices, strict=True)}
    seconds, fresh = 0.0, 0
    for future in as_completed(futures):
        seconds += future.result()
        fresh += size[id(future)]
        on_progress(Progress(done + fresh, fresh, total, seconds / fresh))


def _local_pool(workers: int | None) -> ProcessPoolExecutor:
    # One thread per worker: independent replicas use the cores better than one replica's matrix products do.
    return ProcessPoolExecutor(workers or provenance.available_cores(), get_context("spawn"), initializer=_start_worker)


def _start_worker() -> None:
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End this worker when the build is killed; else it would wait for work for ever."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def plan_slices(task: Task, missing: np.ndarray) -> list[Slice]:
    """Group the missing replicas, ``[M, S]`` bool, by seed, in groups that train well together."""
    size = group_size(dict(task.initial_model("plan").named_parameters()))
    slices = []
    for seed in range(missing.shape[1]):
        subsets = np.flatnonzero(missing[:, seed]).tolist()
        slices += [Slice(seed, tuple(subsets[i : i + size])) for i in range(0, len(subsets), size)]
    return slices


@lru_cache(maxsize=1)
def _cached_data(reference: str, data_folder: Path | None) -> TaskData:
    return find_task(reference).data(data_folder)


def _compute(reference: str, data_folder: Path | None, part: Slice, path: Path) -> float:
    """Compute one slice in a worker, write it, and return its seconds."""
    task, data = find_task(reference), _cached_data(reference, data_folder)
    start = time.perf_counter()
    outputs = retrain(task, data, part.seed, part.subsets)
    seconds = time.perf_counter() - start
    if not outputs.isfinite().all():
        subset = part.subsets[int((~outputs.isfinite()).any(1).nonzero()[0])]
        raise UsageError(
            f"The training of {task.name} diverged: its outputs are not finite, first for subset {subset} under seed "
            f"{part.seed}. Lower the recipe's learning rate, and start again."
        )
    arrays = {
        "outputs": outputs.numpy(),
        "subsets": np.array(part.subsets, dtype=np.int64),
        "seed": np.array([part.seed], dtype=np.int64),
        "seconds": np.array([seconds]),
    }
    write_arrays(path, arrays)
    return seconds


def read_slices(task: Task, folder: Path) -> tuple[np.ndarray, float]:
    """Return outputs ``[M, S, n_queries]``, NaN where no slice is there yet, and worker seconds per replica."""
    plan = task.plan
    outputs = np.full((plan.n_subsets, plan.n_seeds, task.n_queries), np.nan, dtype=np.float32)
    seconds, replicas = 0.0, 0
    for path in sorted(folder.glob("seed-*.safetensors")):
        arrays = read_arrays(path, "slice of ground truth", f"Remove {path} and start the build again.")
        outputs[arrays["subsets"], int(arrays["seed"][0])] = arrays["outputs"]
        seconds += float(arrays["seconds"][0])
        replicas += len(arrays["subsets"])
    return outputs, seconds / max(replicas, 1)


def _facts(task: Task, seconds_per_replica: float) -> dict[str, object]:
    plan = task.plan
    return {
        "task": task.name,
        "task_version": task.version,
        "data_sha256": task.data_sha256,
        "target": task.target.name,
        "recipe": asdict(task.recipe),
        "n_subsets": plan.n_subsets,
        "n_seeds": plan.n_seeds,
        "n_train": task.n_train,
        "n_queries": task.n_queries,
        "fraction": plan.fraction,
        "seeds": list(range(plan.n_seeds)),
        "built": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "tdabench_version": __version__,
        "commit": provenance.commit()[0],
        "packages": provenance.packages(),
        "cpu": provenance.cpu_name(),
        "threads_per_worker": 1,
        "replicas_per_group": group_size(dict(task.initial_model("plan").named_parameters())),
        "seconds_per_replica": seconds_per_replica,
    }
