"""Retraining: the replicas of a subset and seed, here or in worker processes."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tdabench.errors import UsageError
from tdabench.ground_truth import rms_difference
from tdabench.grouping import Grouping, choose_group, threads
from tdabench.precision import exact_float32
from tdabench.registry import find_task
from tdabench.seeds import generator
from tdabench.slices import Slice, builder_facts, machine_facts, rounding_snapshots, snapshots_of, write_slice
from tdabench.snapshots import Snapshots
from tdabench.task import Task, TaskData
from tdabench.trainer import Parameters, target_outputs, train_replicas

STREAM = "ground-truth"
ROUNDING = 1e-6


def retrain(
    task: Task,
    data: TaskData,
    seed: int,
    subsets: Iterable[int],
    group: int,
    snapshots: Snapshots | None = None,
) -> torch.Tensor:
    """Retrain on some subsets under one seed; return the target of every query, ``[R, n_queries]`` float32.

    In groups of at most ``group``, and never alone where that is more than one: one replica alone runs through other
    kernels than a batch of them, and training can amplify their rounding into a tenth of the spread between subsets.
    Snapshots are of one training: with them, all subsets must fit in a group.
    """
    chosen, masks = list(subsets), task.subset_masks()
    assert snapshots is None or len(chosen) <= group
    parts = []
    with exact_float32():
        for start in range(0, len(chosen), group):
            part = chosen[start : start + group]
            rows = part * 2 if len(part) == 1 < group else part
            stacked: Parameters = train_replicas(task, data, masks[rows], STREAM, seed, snapshots=snapshots)
            parts.append(target_outputs(task, data, stacked)[: len(part)].cpu())
    return torch.cat(parts)


def rounding_difference(
    task: Task, data: TaskData, group: int, snapshots: Sequence[Snapshots | None] = (None, None)
) -> float:
    """Return how much training amplifies rounding: the root mean square change of the outputs of subset 0, seed 0.

    It is retrained twice, both times here, the second time from an initialisation whose values are changed by a random
    part in a million, some ten units of the last place: no less than another processor's kernels change within a few
    steps. With ``snapshots``, one for each, it goes on after a kill.
    """

    def perturbed() -> nn.Module:
        model = task.make_model()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                noise = torch.randn(parameter.shape, generator=generator(task.name, "rounding", name))
                parameter.mul_(1 + ROUNDING * noise)
        return model

    both = (task, replace(task, make_model=perturbed))
    with threads(1):
        plain, moved = (retrain(t, data, 0, [0], group, kept)[0] for t, kept in zip(both, snapshots, strict=True))
    for kept in snapshots:  # not before both are over, or a kill would cost the first one whole
        if kept is not None:
            kept.remove()
    return rms_difference(moved.numpy(), plain.numpy())


@dataclass(frozen=True)
class Work:
    """What a worker must know to compute slices.

    Attributes
    ----------
    reference
        The task's name or ``path.py:NAME``; paths are absolute, as a worker may be elsewhere.
    data_folder
        Where the user's data sets are.
    device
        ``cpu`` or ``cuda``.
    folder
        Where slices go.
    group
        Replicas trained at once.
    facts
        What is known of the builder; in place of its machine's, a worker's own count.
    """

    reference: str
    data_folder: Path | None
    device: str
    folder: Path
    group: int
    facts: dict[str, Any]


# Models are initialised from torch's own generator, and its number of threads and switches are the process's: where an
# executor has several threads in a process, one of them trains at a time.
_TRAINING = threading.Lock()


def compute_slice(work: Work, part: Slice) -> float:
    """Compute one slice in a worker, on one thread, write it, and return its seconds."""
    with _TRAINING, threads(1):
        task = find_task(work.reference)
        data = _cached_data(work.reference, task.version, work.data_folder, work.device)
        # This worker's own: an executor's may be other machines than the one that asked, and differ from one another.
        facts = {**work.facts, **machine_facts(task, torch.device(work.device))}
        snapshots = snapshots_of(task, part, facts, work.folder)
        outputs = retrain(task, data, part.seed, part.subsets, work.group, snapshots)
        seconds = snapshots.seconds
    if not outputs.isfinite().all():
        subset = part.subsets[int((~outputs.isfinite()).any(1).nonzero()[0])]
        raise UsageError(
            f"The training of {task.name} diverged: its outputs are not finite, first for subset {subset} under seed "
            f"{part.seed}. Lower the recipe's learning rate, or see whether the target is finite, and start again."
        )
    write_slice(task, part, outputs.numpy(), seconds, facts, work.folder)
    snapshots.remove()
    return seconds


def facts_in_worker(reference: str, device: str) -> dict[str, Any]:
    """Return what is known of a worker as a builder, where the machine that asks has no such device."""
    return builder_facts(find_task(reference), torch.device(device))


def rounding_in_worker(work: Work) -> float:
    """Return :func:`rounding_difference` on a worker's device."""
    task, device = find_task(work.reference), torch.device(work.device)
    data = _cached_data(work.reference, task.version, work.data_folder, work.device)
    with _TRAINING:
        snapshots = rounding_snapshots(task, work.group, builder_facts(task, device), work.folder)
        return rounding_difference(task, data, work.group, snapshots)


def choose_group_in_worker(reference: str, data_folder: Path | None, device: str) -> Grouping:
    """Measure the size of groups in a worker, whose memory is free again when it ends."""
    task = find_task(reference)
    return choose_group(task, task.data(data_folder).to(device))


@lru_cache(maxsize=1)
def _cached_data(reference: str, version: str, data_folder: Path | None, device: str) -> TaskData:
    """Return a task's data; of another version, as of a file edited since, it is read anew."""
    return find_task(reference).data(data_folder).to(device)


def local_pool(workers: int) -> ProcessPoolExecutor:
    """Return worker processes of one thread each.

    Independent replicas use the cores better than one replica's matrix products do.
    """
    return ProcessPoolExecutor(workers, get_context("spawn"), initializer=_start_worker)


def _start_worker() -> None:
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End this worker when the build is killed; else it would wait for work for ever."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
