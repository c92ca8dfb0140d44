"""Filling a folder with the slices that it lacks: how many replicas at once, and who computes what."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, wait
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tdabench import provenance
from tdabench.ceiling import RunningReliability
from tdabench.errors import UsageError
from tdabench.files import read_arrays
from tdabench.ground_truth import Builder
from tdabench.grouping import Grouping, choose_group
from tdabench.memory import ran_out
from tdabench.registry import absolute_reference
from tdabench.retraining import Work, choose_group_in_worker, compute_slice, facts_in_worker, local_pool
from tdabench.slices import (
    Found,
    Slice,
    builder_facts,
    plan_slices,
    read_slices,
    remember_group,
    remembered_group,
    remove_leftovers,
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
        Folder of finished slices; by default :func:`tdabench.building.work_folder`.
    shard
        (i, n): only the subsets whose number is i modulo n; ground truth is then left to
        :func:`tdabench.building.merge`.
    minutes
        Stop after so many minutes; finished slices are kept.
    """

    data_folder: Path | None = None
    workers: int | None = None
    device: str = "cpu"
    slices: Path | None = None
    shard: tuple[int, int] | None = None
    minutes: float | None = None


def fill(
    reference: str, task: Task, folder: Path, options: Options, executor: Executor | None, on_progress: OnProgress
) -> Found:
    """Compute the slices of a task's ground truth that are missing from a folder, and return what there is then.

    Raises
    ------
    UsageError
        If a worker was killed, or ran out of memory.
    """
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
    work = _plan(reference, task, folder, options, executor, found.built_on)
    slices, workers = plan_slices(missing, work.group), None if executor else _workers(options)
    pool = executor or local_pool(_workers(options))
    try:
        reports = _Reports(folder, start, running, on_progress)
        _compute(pool, work, slices, workers or len(slices), options.minutes, reports.done)
    except Exception as error:
        if isinstance(error, BrokenExecutor):
            raise _worker_lost(workers) from error
        if ran_out(error):
            raise _worker_lost(workers, "A worker ran out of memory.") from error
        raise
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


def _plan(
    reference: str,
    task: Task,
    folder: Path,
    options: Options,
    executor: Executor | None,
    built_on: Sequence[Builder],
) -> Work:
    """Choose the group: the one that this machine began with, else the fastest."""
    reference = absolute_reference(reference)
    if executor is not None and options.device != "cpu":  # this machine need not have one
        facts = executor.submit(facts_in_worker, reference, options.device).result()
    else:
        facts = builder_facts(task, torch.device(options.device))
    began = next((b for b in built_on if all(getattr(b, k) == v for k, v in facts.items())), None)
    if began is not None:
        size, seconds = began.replicas_per_group, began.seconds_by_group
    elif (kept := remembered_group(folder, facts)) is not None:
        size, seconds = kept
    else:
        grouping = _grouping(reference, task, options, executor)
        size, seconds = grouping.size, {str(n): s for n, s in grouping.seconds.items()}
        remember_group(folder, facts, size, seconds)
    return work_of(reference, options, folder, size, facts | {"replicas_per_group": size, "seconds_by_group": seconds})


def work_of(reference: str, options: Options, folder: Path, group: int, facts: dict[str, Any]) -> Work:
    """Return what a worker must know, with paths that name the same from anywhere."""
    data_folder = None if options.data_folder is None else options.data_folder.absolute()
    return Work(absolute_reference(reference), data_folder, options.device, folder.absolute(), group, facts)


def _grouping(reference: str, task: Task, options: Options, executor: Executor | None) -> Grouping:
    if options.device == "cpu":
        return choose_group(task, task.data(options.data_folder))
    if executor is not None:
        return executor.submit(choose_group_in_worker, reference, options.data_folder, options.device).result()
    # This process would keep on the device what it tried there, and the workers are others.
    try:
        with local_pool(1) as pool:
            return pool.submit(choose_group_in_worker, reference, options.data_folder, options.device).result()
    except BrokenExecutor as error:
        raise _worker_lost(1) from error


def _workers(options: Options) -> int:
    return options.workers or (provenance.available_cores() if options.device == "cpu" else 1)


def _worker_lost(
    workers: int | None, what: str = "A worker process was killed, most likely because memory ran out."
) -> UsageError:
    """Say what to do after a worker died; ``workers`` is how many there were, None where the executor is the user's."""
    fewer = "on fewer workers, or on a machine with more memory"
    if workers is not None:
        fewer = f"with --workers {workers // 2}" if workers > 1 else "on a machine with more memory"
    return UsageError(f"{what} Finished slices are kept: give the same command {fewer}.")


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
