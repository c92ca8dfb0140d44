"""Building ground truth: retraining in slices that survive a kill, over any ``concurrent.futures.Executor``.

A slice is written, whole, when it is done; a build starts by reading the slices that are there and retrains only the
replicas that are missing. Several machines build shards into folders of their own, and ``merge`` puts them together.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, wait
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock, Timeout

from tdabench import provenance
from tdabench.ceiling import RunningReliability
from tdabench.datasets import cache_folder
from tdabench.errors import UsageError
from tdabench.files import read_arrays
from tdabench.ground_truth import (
    ARRAYS_FILE,
    MANIFEST_FILE,
    Builder,
    Manifest,
    check_mislabelled,
    ground_truth_folder,
    subset_spread,
    write_ground_truth,
)
from tdabench.grouping import Grouping, choose_group
from tdabench.registry import absolute_reference, find_task, reference_to
from tdabench.retraining import Work, choose_group_in_worker, compute_slice, local_pool, rounding_difference
from tdabench.slices import (
    LOCK,
    Found,
    Slice,
    builder_facts,
    check_complete,
    holds_only_slices,
    plan_slices,
    read_slices,
    remember_group,
    remembered_group,
    remove_leftovers,
    remove_slices,
    rounding_snapshots,
)
from tdabench.task import Task

OnProgress = Callable[["Progress"], None]


@dataclass(frozen=True)
class Progress:
    """How far a build is."""

    done: int
    fresh: int
    """Of these, how many this call computed."""
    total: int
    seconds_per_replica: float
    reliability: float | None = None
    """Split-half reliability of the mean over the seeds that are there; None before there are two."""


@dataclass(frozen=True)
class Options:
    """How to build.

    Attributes
    ----------
    data_folder
        Where the user's data sets are.
    workers
        Local worker processes, one thread each; by default one a core, or one for an accelerator. Unused with an
        executor.
    device
        ``cpu`` or ``cuda``.
    slices
        Folder of finished slices; by default :func:`work_folder`.
    shard
        (i, n): only the subsets whose number is i modulo n; ground truth is then left to :func:`merge`.
    minutes
        Stop after so many minutes; finished slices are kept.
    """

    data_folder: Path | None = None
    workers: int | None = None
    device: str = "cpu"
    slices: Path | None = None
    shard: tuple[int, int] | None = None
    minutes: float | None = None


def total_replicas(task: Task) -> int:
    """Return how many retrainings a task's ground truth consists of."""
    return task.plan.n_subsets * task.plan.n_seeds


def work_folder(task: Task) -> Path:
    """Return where slices are kept until they are complete: beside the task if it ships some, else in the cache.

    A folder called ``slices`` that holds anything else is the user's own, and left alone.
    """
    if holds_only_slices(_shipped(task)):
        return _shipped(task)
    plan = task.plan
    name = f"{task.name}-{task.version}-{plan.n_subsets}x{plan.n_seeds}-{plan.fraction:g}"
    return cache_folder() / "ground_truth" / name


def _shipped(task: Task) -> Path:
    return task.folder / "slices"


def build(
    reference: str,
    out: Path | None = None,
    options: Options | None = None,
    *,
    executor: Executor | None = None,
    replace: bool = False,
    on_progress: OnProgress = lambda _: None,
) -> Manifest | None:
    """Build a task's ground truth into ``out``, resuming what an earlier call finished.

    Parameters
    ----------
    reference
        The task's name or ``path.py:NAME``; workers find the task by it.
    out
        Folder to write; the task's own by default.
    options
        How to build.
    executor
        Where slices are computed; its workers must see the folder of slices.
    replace
        Build anew although ``out`` exists; it is replaced when the new one is complete.
    on_progress
        Called after every slice.

    Returns
    -------
    Manifest or None
        None if it stopped before all replicas were there: the time was up, or a shard is all that was asked for.

    Raises
    ------
    UsageError
        If ``out`` exists and ``replace`` is not given, unless only a share is built into a folder of slices that is
        named; or if ``out`` holds other files, or another build into the same folder of slices is running; or if a
        worker was killed.
    """
    task, options = find_task(reference), options or Options()
    out = out or ground_truth_folder(task)
    _refuse_existing(out, replace, options)
    _mislabelled(task, options)  # what is wrong with them is said now, not after all is trained
    folder = options.slices or work_folder(task)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / LOCK, timeout=0):
            _refuse_existing(out, replace, options)  # a build that ended just now
            found = _fill(reference, task, folder, options, executor, on_progress)
            if options.shard is not None or found.missing.any():
                return None
            manifest = _write(task, found, out, options, folder)
            elsewhere = out.resolve() != ground_truth_folder(task).resolve()
            if options.slices is None and not (folder == _shipped(task) and elsewhere):
                remove_slices(folder)
    except Timeout:
        raise UsageError(f"Another build of {task.name} is running in {folder}; wait for it, or stop it.") from None
    return manifest


def merge(
    reference: str,
    folders: Sequence[Path],
    out: Path | None = None,
    options: Options | None = None,
    *,
    replace: bool = False,
) -> Manifest:
    """Write ground truth from the slices in several folders.

    Raises
    ------
    UsageError
        If a replica is missing, ``out`` exists and ``replace`` is not given, or ``out`` holds other files; or if the
        task needs a GPU and another device was asked for.
    """
    task, options = find_task(reference), options or Options()
    if task.needs_cuda and options.device == "cpu":
        raise UsageError(
            f"To merge {task.name}, one of its replicas is retrained twice, which needs a GPU. On a machine that has "
            f"one, use `tdabench ground-truth merge {reference_to(task)} ... --device cuda`."
        )
    out = out or ground_truth_folder(task)
    _refuse_existing(out, replace)
    found = read_slices(task, folders)
    check_complete(task, found, folders)
    return _write(task, found, out, options, work_folder(task))


def _refuse_existing(out: Path, replace: bool, options: Options | None = None) -> None:
    if not out.exists():
        return
    shard, slices = (None, None) if options is None else (options.shard, options.slices)
    if shard is not None and slices is not None:  # writes slices alone, where the user said
        return
    if not replace and shard is not None:
        raise UsageError(f"{out} exists already. Pass --slices DIR to build a share for another one into that folder.")
    if not replace:
        raise UsageError(f"{out} exists already. Pass --replace to build anew, or --out DIR to build elsewhere.")
    others = sorted({p.name for p in out.iterdir()} - {MANIFEST_FILE, ARRAYS_FILE}) if out.is_dir() else [out.name]
    if others:  # replaced, they would be gone
        raise UsageError(
            f"{out} is not a folder of ground truth alone: it holds {', '.join(others[:3])}. Nothing was replaced; "
            "pass --out DIR to build elsewhere, or remove them."
        )


def _mislabelled(task: Task, options: Options) -> np.ndarray | None:
    """Return which labels are wrong ``[n_train]``, checked; None where the task does not know."""
    if task.mislabelled is None:
        return None
    found = task.mislabelled(options.data_folder).numpy()
    check_mislabelled(found, task.n_train, f"The mislabelled examples of {task.name}")
    return found


def _write(task: Task, found: Found, out: Path, options: Options, folder: Path) -> Manifest:
    """Write beside what is there and swap when it is whole; a failure leaves what was there.

    ``folder`` takes snapshots of what is trained for it.
    """
    mislabelled = _mislabelled(task, options)
    fresh, old = (out.with_name(f".{out.name}.{word}") for word in ("new", "old"))
    shutil.rmtree(fresh, ignore_errors=True)
    manifest = write_ground_truth(
        fresh,
        task.subset_masks().numpy(),
        found.outputs,
        _facts(task, found, options, folder),
        builders=found.builders,
        mislabelled=mislabelled,
    )
    if out.exists():  # else the old one, if there was one, still stands aside: an earlier swap was killed
        shutil.rmtree(old, ignore_errors=True)
        out.rename(old)
    fresh.rename(out)
    shutil.rmtree(old, ignore_errors=True)
    return manifest


def _fill(
    reference: str, task: Task, folder: Path, options: Options, executor: Executor | None, on_progress: OnProgress
) -> Found:
    """Compute whatever is missing, and return what there is."""
    remove_leftovers(folder)
    found = read_slices(task, [folder])
    missing = found.missing
    if options.shard is not None:
        index, count = options.shard
        missing[np.arange(len(missing)) % count != index] = False
    start = Progress(found.n_done, 0, found.n_done + int(missing.sum()), found.seconds_per_replica)
    running = RunningReliability(found.outputs)
    on_progress(replace(start, reliability=running.value))
    if not missing.any():
        return found
    work = _plan(reference, task, folder, options, found.built_on)
    slices, workers = plan_slices(missing, work.group), None if executor else _workers(options)
    pool = executor or local_pool(_workers(options))
    try:
        reports = _Reports(folder, start, running, on_progress)
        _compute(pool, work, slices, workers or len(slices), options.minutes, reports.done)
    except BrokenExecutor as error:
        raise _worker_lost(workers) from error
    finally:
        if executor is None:
            pool.shutdown(wait=True)
    return read_slices(task, [folder])


@dataclass
class _Reports:
    """Tells how far a build is after every slice."""

    folder: Path
    start: Progress
    running: RunningReliability
    on_progress: OnProgress
    seconds: float = 0.0
    fresh: int = 0

    def done(self, part: Slice, seconds: float) -> None:
        """Report one more slice."""
        self.seconds, self.fresh = self.seconds + seconds, self.fresh + len(part.subsets)
        arrays = read_arrays(self.folder / part.file_name, "slice of ground truth", "Start the build again.")
        self.running.add(arrays["subsets"], part.seed, arrays["outputs"])
        each, done = self.seconds / self.fresh, self.start.done + self.fresh
        now = replace(self.start, done=done, fresh=self.fresh, seconds_per_replica=each)
        self.on_progress(replace(now, reliability=self.running.value))


def _plan(reference: str, task: Task, folder: Path, options: Options, built_on: Sequence[Builder]) -> Work:
    """Choose the group: the one that this machine began with, else the fastest."""
    facts = builder_facts(task, torch.device(options.device))
    began = next((b for b in built_on if all(getattr(b, k) == v for k, v in facts.items())), None)
    reference = absolute_reference(reference)
    if began is not None:
        size, seconds = began.replicas_per_group, began.seconds_by_group
    elif (kept := remembered_group(folder, facts)) is not None:
        size, seconds = kept
    else:
        grouping = _grouping(reference, task, options)
        size, seconds = grouping.size, {str(n): s for n, s in grouping.seconds.items()}
        remember_group(folder, facts, size, seconds)
    facts |= {"replicas_per_group": size, "seconds_by_group": seconds}
    data_folder = None if options.data_folder is None else options.data_folder.absolute()
    return Work(reference, data_folder, options.device, folder.absolute(), size, facts)


def _grouping(reference: str, task: Task, options: Options) -> Grouping:
    if options.device == "cpu":
        return choose_group(task, task.data(options.data_folder))
    # This process would keep on the device what it tried there, and the workers are others.
    try:
        with local_pool(1) as pool:
            return pool.submit(choose_group_in_worker, reference, options.data_folder, options.device).result()
    except BrokenExecutor as error:
        raise _worker_lost(1) from error


def _workers(options: Options) -> int:
    return options.workers or (provenance.available_cores() if options.device == "cpu" else 1)


def _worker_lost(workers: int | None) -> UsageError:
    """Say what to do after a worker died; ``workers`` is how many there were, None where the executor is the user's."""
    fewer = "on fewer workers, or on a machine with more memory"
    if workers is not None:
        fewer = f"with --workers {workers // 2}" if workers > 1 else "on a machine with more memory"
    return UsageError(
        "A worker process was killed, most likely because memory ran out. "
        f"Finished slices are kept: give the same command {fewer}."
    )


def _compute(
    pool: Executor,
    work: Work,
    slices: Sequence[Slice],
    at_once: int,
    minutes: float | None,
    on_done: Callable[[Slice, float], None],
) -> None:
    """Have slices computed; when the time is up, those at work finish and no other begins.

    Only ``at_once`` are handed over at a time: a pool of processes takes more than it works at, and does not give back.
    """
    end = time.monotonic() + 60 * minutes if minutes is not None else float("inf")
    waiting = iter(slices)
    at_work: dict[Future[float], Slice] = {}

    def begin(n: int) -> None:
        at_work.update({pool.submit(compute_slice, work, part): part for part in islice(waiting, n)})

    try:
        begin(at_once)
        while at_work:
            for future in wait(at_work, return_when=FIRST_COMPLETED).done:
                on_done(at_work.pop(future), future.result())
            if time.monotonic() <= end:
                begin(at_once - len(at_work))
            else:
                at_work = {future: part for future, part in at_work.items() if not future.cancel()}
    finally:
        for future in at_work:
            future.cancel()


def _facts(task: Task, found: Found, options: Options, folder: Path) -> dict[str, object]:
    plan = task.plan
    builder = found.built_on[int(found.builders[0, 0])]
    data = task.data(options.data_folder).to(options.device)
    group = builder.replicas_per_group
    snapshots = rounding_snapshots(task, group, builder_facts(task, torch.device(options.device)), folder)
    rounding, spread = rounding_difference(task, data, group, snapshots), subset_spread(found.outputs)
    return {
        "task": task.name,
        "task_version": task.version,
        "data_sha256": task.data_sha256,
        "target": task.target.name,
        "recipe": task.recipe.facts(),
        "n_subsets": plan.n_subsets,
        "n_seeds": plan.n_seeds,
        "n_train": task.n_train,
        "n_queries": task.n_queries,
        "fraction": plan.fraction,
        "seeds": list(range(plan.n_seeds)),
        "built": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "built_on": [b.model_dump() for b in found.built_on],
        "rounding_difference": rounding / spread if spread > 0 else 0.0,
    }
