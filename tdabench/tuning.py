"""Tuning: options chosen on the tuning queries, stored with the task, and charged for.

The method's process never sees ground truth, so tuning happens around runs: every candidate is measured like any
run, its scores are evaluated on the tuning queries alone, and the best one's options are kept.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from tdabench.errors import FileFormatError, UsageError
from tdabench.files import read_json, write_json
from tdabench.records import OptionValue, Strict

if TYPE_CHECKING:
    from tdabench.ground_truth import GroundTruth
    from tdabench.jobs import Job, Plan
    from tdabench.task import Task

TUNED_FILE = "tuned.json"


class Candidate(Strict):
    """Options that were tried, and their LDS on the tuning queries."""

    options: dict[str, OptionValue]
    tuning_lds: float
    serve_s: float


class Tuned(Strict):
    """The choice for one method on one task."""

    task_version: str
    options: dict[str, OptionValue]
    tune_s: float
    """Serving time of all candidates, on the machine class below."""
    machine_class: str
    candidates: list[Candidate]


def read_tuned(task: Task) -> dict[str, Tuned]:
    """Return the tuned options of a task by method; empty if nothing was tuned for this version of the task."""
    path = task.folder / TUNED_FILE
    if not path.exists():
        return {}
    hint = f"Tune again with `tdabench tune {task.name} METHOD`, or remove the file."
    try:
        stored = {k: Tuned.model_validate(v) for k, v in read_json(path, "file of tuned options", hint).items()}
    except (ValidationError, AttributeError) as error:
        raise FileFormatError(f"{path} is not a valid file of tuned options. {hint}") from error
    return {k: v for k, v in stored.items() if v.task_version == task.version}


def with_tuned_options(job: Job, task: Task) -> Job:
    """Return the job with the task's tuned options under the given ones, and the tuning charged to it."""
    from tdabench.jobs import shown

    tuned = read_tuned(task).get(shown(job.method))
    if tuned is None or set(tuned.options) <= set(job.options):
        return job
    return replace(job, options={**tuned.options, **job.options}, tune_s=tuned.tune_s)


def grid_of(method: type[Any], name: str) -> dict[str, tuple[Any, ...]]:
    """Return the values that a method declares for each option it wants tuned."""
    from tdabench.options import describe

    grid = {info.name: info.tune for info in describe(method) if info.tune}
    if not grid:
        raise UsageError(f"{name} declares nothing to tune: none of its options has values under tune=.")
    return grid


def combinations(grid: dict[str, tuple[Any, ...]]) -> Iterator[dict[str, Any]]:
    """Yield every combination of a grid."""
    for values in itertools.product(*grid.values()):
        yield dict(zip(grid, values, strict=True))


def tune(
    job: Job, runs: Path, on_candidate: Callable[[Candidate], None] = lambda _: None, timeout_s: float | None = None
) -> Tuned:
    """Try every combination of the method's grid, as single models, and return the best on the tuning queries.

    Parameters
    ----------
    job
        The job to tune; its options are fixed, the others' grid is tried.
    runs
        Where the candidates' run folders go; a candidate measured before is not measured again.
    on_candidate
        Called after every candidate.
    timeout_s
        Seconds after which a candidate is stopped; the runner's default if None.
    """
    from tdabench.ground_truth import read_ground_truth
    from tdabench.jobs import plan
    from tdabench.registry import find_method, find_task

    task = find_task(job.task)
    truth = read_ground_truth(task)
    grid = {k: v for k, v in grid_of(find_method(job.method), job.method).items() if k not in job.options}
    candidates = []
    for options in combinations(grid):
        planned = plan(replace(job, options={**job.options, **options}, ensemble=None))
        candidates.append(_try(planned, truth, options, runs, timeout_s))
        on_candidate(candidates[-1])
    best = max(candidates, key=lambda c: c.tuning_lds)
    return Tuned(
        task_version=task.version,
        options=best.options,
        tune_s=sum(c.serve_s for c in candidates),
        machine_class=planned.machine.machine_class,
        candidates=candidates,
    )


def _try(planned: Plan, truth: GroundTruth, options: dict[str, Any], runs: Path, timeout_s: float | None) -> Candidate:
    from tdabench.lds import lds_per_query
    from tdabench.records import read_record
    from tdabench.runner import DEFAULT_TIMEOUT_S, find_run, run
    from tdabench.scores import read_run_scores

    folder = find_run(planned, runs)
    if folder is None:
        folder, record = run(planned, runs, timeout_s=timeout_s or DEFAULT_TIMEOUT_S)
    else:
        record = read_record(folder)
    if record.costs is None:
        raise UsageError(f"Tuning stopped: {record.label} {options} ended as {record.status} ({record.reason}).")
    scores = read_run_scores(folder, record)[truth.tuning]
    rho, _ = lds_per_query(scores, truth.masks, truth.mean[:, truth.tuning])
    return Candidate(options=options, tuning_lds=float(rho.mean()), serve_s=record.costs.serve_s)


def write_tuned(task: Task, method: str, tuned: Tuned) -> Path:
    """Store the choice with the task, beside those of other methods."""
    from tdabench.jobs import shown

    path = task.folder / TUNED_FILE
    stored = {**read_tuned(task), shown(method): tuned}
    write_json(path, {k: v.model_dump(mode="json") for k, v in stored.items()})
    return path
