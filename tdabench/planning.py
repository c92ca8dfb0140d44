"""Planning: what a run will cost, before it is run.

Counts come from the method and the ensemble (:mod:`tdabench.work`), seconds of one of each from a short calibration on
this machine (:mod:`tdabench.calibration`). Nothing is trained to the end and no ground truth is read.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import BrokenExecutor
from dataclasses import replace
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from tdabench.authors import author_errors
from tdabench.calibration import Bench, Rates
from tdabench.ensembles import Checkpoints, Independent, check_supported, parse_ensemble
from tdabench.errors import DataError, Declined, UsageError
from tdabench.estimates import Estimate, Total, TrainingEstimate
from tdabench.grouping import threads
from tdabench.jobs import Job, Plan, plan
from tdabench.member import forget_masks
from tdabench.memory import release_unused, resident_bytes
from tdabench.method import MemberMethod, check_task
from tdabench.model_names import adapter_name, checkpoint_name, model_name
from tdabench.model_store import ModelStore
from tdabench.options import make
from tdabench.precision import exact_float32
from tdabench.registry import find_method
from tdabench.retraining import local_pool
from tdabench.runner import on_device
from tdabench.work import Counts, Parts, Work

if TYPE_CHECKING:
    from tdabench.sizes import Sizes


def estimate_job(job: Job, *, stored: bool = True) -> Estimate:
    """Estimate what a run will cost on this machine.

    Parameters
    ----------
    job
        What to run.
    stored
        Whether the measured times of trainings that were done before on this machine are taken for them.

    Raises
    ------
    TdabenchError
        If there is a mistake in the job, or the task's data is missing.
    """
    with threads(job.threads), exact_float32():  # as a run computes
        bench = _bench(job.task, job.data_folder, job.device, job.threads)
        planned = plan(job)
        try:
            return _estimate(planned, bench, stored)
        except Declined as reason:
            return Estimate(planned, declined=str(reason))


@lru_cache(maxsize=1)  # the data of one task is in memory at a time
def _bench(task: str, data_folder: str | None, device: str, n_threads: int) -> Bench:
    from tdabench.registry import find_task

    found = find_task(task)
    data = found.data(Path(data_folder) if data_folder else None).to(device)
    bench = Bench(found, data)
    bench.view.warm_up()  # libraries load and compile before anything is timed
    return bench


def _estimate(planned: Plan, bench: Bench, stored: bool) -> Estimate:
    method, ensemble = _checked(planned.job, bench)
    parts = None if ensemble is None else ensemble.parts()
    made = parts or Parts(models=0, members=1)
    sizes = bench.sizes(made)
    work = _work_of(method, planned.job.method, sizes)
    if parts is None and work is None:
        return Estimate(planned)
    epochs = ensemble.epochs(bench.task.recipe.epochs) if isinstance(ensemble, Checkpoints) else []
    retrained = work.retrained if work is not None else 0
    found = Estimate(
        planned,
        parts=parts,
        trainings=(*_trainings(planned, bench, made, epochs, stored), *_banks(bench, work, planned.job.seed)),
        models_bytes=(made.models + made.checkpoints + retrained) * bench.file_bytes()
        + (made.adapters * bench.file_bytes(made.rank) if made.adapters else 0),
    )
    return found if work is None else _with_work(found, work, made, sizes, bench)


def _work_of(method: Any, name: str, sizes: Sizes) -> Work | None:
    """Return what a method says of its work; what goes wrong in it is the author's to mend."""
    with author_errors(f"work(sizes) of {name}"):
        work = method.work(sizes)
    if work is not None and not isinstance(work, Work):
        raise UsageError(f"work(sizes) of {name} returns {work!r}. Return a tdabench.Work, or None.")
    return work


def _checked(job: Job, bench: Bench) -> tuple[Any, Any]:
    """Return the method and what wraps it, which may be nothing; raise :class:`Declined` where a run would."""
    method: Any = make(find_method(job.method), job.method, job.options)
    check_task(method, bench.view)
    if not isinstance(method, MemberMethod):
        return method, None
    ensemble = parse_ensemble(job.ensemble) if job.ensemble else Independent()
    check_supported(ensemble, method, bench.view)
    return method, ensemble


def _with_work(found: Estimate, work: Work, parts: Parts, sizes: Sizes, bench: Bench) -> Estimate:
    """Return the estimate with everything that follows from the work at a member."""
    total = _with_combining(work, parts.members, sizes)
    rates = bench.rates(parts, curved=total.fit.curved + total.attribute.curved > 0)
    masks_s = rates.masks_s * parts.members * parts.q_members
    drawn_in_fit = total.fit.forward_examples > 0
    return replace(
        found,
        work=total,
        rates=rates,
        fit_s=seconds(total.fit, rates) + masks_s * drawn_in_fit,
        attribute_s=seconds(total.attribute, rates) + masks_s * (not drawn_in_fit),
        peak_bytes=_peak_bytes(work, parts, sizes, bench, rates),
        process_bytes=resident_bytes(),
        storage_bytes=(found.models_bytes or 0) + 4 * total.state,
    )


def seconds(counts: Counts, rates: Rates) -> float:
    """Return how long something takes."""
    return (
        counts.forward * rates.forward_s
        + counts.gradients * rates.gradients_s
        + counts.curved * rates.curved_s
        + counts.products * rates.products_s
        + counts.moved * rates.moved_s
    )


def _with_combining(work: Work, members: int, sizes: Sizes) -> Work:
    """Return the work of all members, with the running mean of their scores."""
    combining = Counts(moved=2 * sizes.n_scores * members) if members > 1 else Counts()
    return work * members + Work(attribute=combining)


def _peak_bytes(work: Work, parts: Parts, sizes: Sizes, bench: Bench, rates: Rates) -> int:
    """Return the peak of fit and attribute: one member's model, its work, the scores so far; all models of a bank."""
    resident = (min(1, parts.models) + work.retrained) * bench.file_bytes()
    resident += bench.file_bytes(parts.rank) if parts.adapters else 0
    phases = [4 * (counts.held + _passing(counts, sizes, rates)) for counts in (work.fit, work.attribute)]
    return resident + max(phases) + 4 * (work.state + sizes.n_scores * min(2, parts.members))


def _passing(counts: Counts, sizes: Sizes, rates: Rates) -> int:
    """Return the numbers that passes hold, as the engine reckons or as was measured if that is more."""
    of_engine = 2 * sizes.pass_numbers * bool(counts.gradients)
    more = max(0, int(rates.gradients_bytes / 4) - of_engine) * min(sizes.batch, sizes.n_train)
    forward = int(rates.forward_bytes / 4) * min(sizes.forward_batch, sizes.n_train)
    return max(counts.blocks + more * bool(counts.gradients), forward * bool(counts.forward))


def _trainings(
    planned: Plan, bench: Bench, parts: Parts, epochs: list[int], stored: bool
) -> Iterator[TrainingEstimate]:
    """Yield the trainings of an ensemble's models and adapters; a run with its checkpoints is one."""
    seed, recipe, n = planned.job.seed, bench.task.recipe, bench.task.n_train
    store = ModelStore(planned.models_folder, torch.device(planned.job.device))

    def found(kind: str, names: list[str], rank: int, n_epochs: int) -> TrainingEstimate:
        before = [store.find(name) for name in names] if stored else [None]
        known = [kept.seconds for kept in before if kept is not None]
        if len(known) == len(names):
            return TrainingEstimate(names[-1], kind, max(known), measured=True)
        return TrainingEstimate(names[-1], kind, bench.training(rank).seconds(n, recipe.batch_size, n_epochs))

    for model in range(parts.models):
        name = model_name(seed, model)
        kept = [name, *(checkpoint_name(name, e) for e in epochs if e != recipe.epochs)]
        yield found("run" if epochs else "model", kept, 0, recipe.epochs)
    for i in range(parts.adapters):
        model, adapter = divmod(i, parts.adapters // parts.models)
        name = adapter_name(seed, model, adapter, parts.rank, parts.adapter_epochs)
        yield found("adapter", [name], parts.rank, parts.adapter_epochs)


def _banks(bench: Bench, work: Work | None, seed: int) -> Iterator[TrainingEstimate]:
    """Yield the retraining that a method does itself, many models at once where that is faster."""
    if work is None or work.retrained == 0:
        return
    recipe, n = bench.task.recipe, max(1, round(work.share * bench.task.n_train))
    each = bench.bank_step_s * recipe.epochs * -(-n // recipe.batch_size)
    yield TrainingEstimate(f"bank-{seed}-{work.retrained}-{work.share:g}", "bank", each * work.retrained)


def estimate_jobs(jobs: Iterable[Job]) -> Total:
    """Estimate what several runs will cost, one after the other; what cannot be estimated is counted.

    Errors are left to the runs themselves, each of which says its own. Nothing that was measured with is kept: runs on
    a device are estimated in a process of its own, because one that has used a device holds some of its memory.

    Raises
    ------
    UsageError
        If no process of a run can start here, or use the device.
    """
    jobs = list(jobs)
    if all(job.device == "cpu" for job in jobs):
        return _total(jobs)
    with local_pool(1) as pool:
        try:
            return pool.submit(_total, jobs).result()
        except BrokenExecutor:  # killed, most likely for memory; each run will say so itself
            return Total(len(jobs), 0.0, 0.0, len(jobs) * start_s(_device(jobs)), len(jobs))


def _total(jobs: list[Job]) -> Total:
    estimates: dict[int, Estimate | None] = {}
    without_data: set[str] = set()  # a download is tried once, not for every run
    for i in sorted(range(len(jobs)), key=lambda i: jobs[i].task):  # so that each task is calibrated once
        estimates[i] = None
        if jobs[i].task in without_data:
            continue
        try:
            estimates[i] = estimate_job(jobs[i])
        except DataError:
            without_data.add(jobs[i].task)
        except Exception:  # of a method's own code
            continue
    _bench.cache_clear()
    forget_masks()
    release_unused()
    return _together([estimates[i] for i in range(len(jobs))], start_s(_device(jobs)))


def _device(jobs: Sequence[Job]) -> str:
    return next((job.device for job in jobs if job.device != "cpu"), "cpu")


def _together(estimates: Sequence[Estimate | None], start: float) -> Total:
    """Add up runs in their order, each of which takes ``start`` to start; None stands for one that is not known."""
    serve_s = 0.0
    trainings: dict[tuple[str, str], float] = {}
    each: list[float | None] = []
    for estimate in estimates:
        if estimate is None:
            each.append(None)
            continue
        named = {(estimate.plan.task.name, f"{t.kind} {t.name}"): t for t in estimate.trainings or ()}
        new = {name: t.seconds for name, t in named.items() if not t.measured and name not in trainings}
        trainings |= new
        serve_s += estimate.serve_s or 0.0
        known = estimate.declined is not None or estimate.serve_s is not None
        each.append(start + (estimate.serve_s or 0.0) + sum(new.values()) if known else None)
    usual = statistics.fmean([seconds for seconds in each if seconds is not None] or [start])
    weights = tuple(usual if seconds is None else seconds for seconds in each)
    return Total(len(each), sum(trainings.values()), serve_s, len(each) * start, each.count(None), weights)


@cache
def start_s(device: str) -> float:
    """Return how long the process of a run takes to start here, until it can use a device; measured once.

    Raises
    ------
    UsageError
        If it cannot start or use the device: no run could.
    """
    script = "import tdabench.worker"
    if device != "cpu":  # a context, and the libraries
        script += f"; import torch; square = torch.ones(2, 2, device={device!r}); (square @ square).sum().item()"
    environment = {**os.environ, **on_device(device)}
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-P", "-c", script], capture_output=True, text=True, env=environment)
    if done.returncode != 0:
        said = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise UsageError(f"A process of a run cannot start on the device {device}: {said.rstrip('.')}.")
    return time.perf_counter() - start
