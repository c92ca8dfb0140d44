"""Building ground truth: retraining in slices that survive a kill, over any ``concurrent.futures.Executor``.

A slice is written, whole, when it is done; a build starts by reading the slices that are there and retrains only the
replicas that are missing. Several machines build shards into folders of their own, and ``merge`` puts them together.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Sequence
from concurrent.futures import Executor
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout

from tdabench.datasets import cache_folder
from tdabench.errors import UsageError
from tdabench.files import check_writable, folder_aside
from tdabench.filling import OnProgress, Options, fill, work_of
from tdabench.ground_truth import (
    ARRAYS_FILE,
    MANIFEST_FILE,
    Manifest,
    check_mislabelled,
    ground_truth_folder,
    subset_spread,
    write_ground_truth,
)
from tdabench.registry import find_task, reference_to
from tdabench.retraining import rounding_in_worker
from tdabench.slices import (
    LOCK,
    Found,
    check_complete,
    holds_only_slices,
    read_slices,
    remove_slices,
)
from tdabench.task import Task


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
        subset would be empty or whole; or if a worker was killed.
    StorageError
        If ``out`` cannot be written; said before anything is trained.
    """
    task, options = find_task(reference), options or Options()
    out = (out or ground_truth_folder(task)).resolve()  # it is replaced by renaming, which a link is in the way of
    _refuse_existing(task, out, replace, options)
    task.subset_masks()  # what is wrong with them is said now, not after all is trained
    task.check_initial_model()
    _mislabelled(task, options)
    if options.shard is None:
        check_writable(out.parent, "Pass --out DIR to build into another folder.")
    folder = options.slices or work_folder(task)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / LOCK, timeout=0):
            _refuse_existing(task, out, replace, options)  # a build that ended just now
            found = fill(reference, task, folder, options, executor, on_progress)
            if options.shard is not None or found.missing.any():
                return None
            manifest = _write(reference, task, found, out, options, folder, executor)
            elsewhere = out != ground_truth_folder(task).resolve()
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
    StorageError
        If ``out`` cannot be written; said before anything is trained.
    """
    task, options = find_task(reference), options or Options()
    if task.needs_cuda and options.device == "cpu":
        raise UsageError(
            f"To merge {task.name}, one of its replicas is retrained twice, which needs a GPU. On a machine that has "
            f"one, use `tdabench ground-truth merge {reference_to(task)} ... --device cuda`."
        )
    out = (out or ground_truth_folder(task)).resolve()
    _refuse_existing(task, out, replace)
    check_writable(out.parent, "Pass --out DIR to write another folder.")
    found = read_slices(task, folders)
    check_complete(task, found, folders)
    return _write(reference, task, found, out, options, work_folder(task))


def _refuse_existing(task: Task, out: Path, replace: bool, options: Options | None = None) -> None:
    if not out.exists():
        return
    shard, slices = (None, None) if options is None else (options.shard, options.slices)
    if shard is not None and slices is not None:  # writes slices alone, where the user said
        return
    if (owner := _owner(out)) not in (None, task.name):  # replaced, its hours would be gone
        raise UsageError(
            f"{out} holds the ground truth of {owner}. Give {task.name} a folder of its own (folder=...), or pass "
            "--out DIR to build elsewhere."
        )
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


def _owner(out: Path) -> str | None:
    """Return the name of the task whose ground truth a folder holds; None where nobody can tell."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        return str(json.loads((out / MANIFEST_FILE).read_text(encoding="utf-8"))["task"])
    return None


def _mislabelled(task: Task, options: Options) -> np.ndarray | None:
    """Return which labels are wrong ``[n_train]``, checked; None where the task does not know."""
    wrong = task.wrong_labels(options.data_folder)
    if wrong is None:
        return None
    check_mislabelled(wrong.numpy(), task.n_train, f"The mislabelled examples of {task.name}")
    return wrong.numpy()


def _write(
    reference: str,
    task: Task,
    found: Found,
    out: Path,
    options: Options,
    folder: Path,
    executor: Executor | None = None,
) -> Manifest:
    """Write beside what is there and swap when it is whole; a failure leaves what was there.

    ``folder`` takes snapshots of what is trained for it.
    """
    mislabelled = _mislabelled(task, options)
    facts = _facts(task, found, _rounding(reference, found, options, folder, executor))
    masks, old = task.subset_masks().numpy(), out.with_name(f".{out.name}.old")
    with folder_aside(out.parent) as aside:  # another command may write the same
        fresh = aside / out.name
        manifest = write_ground_truth(
            fresh, masks, found.outputs, facts, builders=found.builders, mislabelled=mislabelled
        )
        if out.exists():  # else the old one, if there was one, still stands aside: an earlier swap was killed
            shutil.rmtree(old, ignore_errors=True)
            out.rename(old)
        fresh.rename(out)
    shutil.rmtree(old, ignore_errors=True)
    return manifest


def _rounding(reference: str, found: Found, options: Options, folder: Path, executor: Executor | None) -> float:
    """Measure what rounding does, in groups of the first replica's size, where the replicas were trained."""
    builder = found.built_on[int(found.builders[0, 0])]
    work = work_of(reference, options, folder, builder.replicas_per_group, {})
    if executor is not None and options.device != "cpu":  # this machine need not have one
        return executor.submit(rounding_in_worker, work).result()
    return rounding_in_worker(work)


def _facts(task: Task, found: Found, rounding: float) -> dict[str, object]:
    plan, spread = task.plan, subset_spread(found.outputs)
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
