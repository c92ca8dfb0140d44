"""Tuning: options chosen on the tuning queries, stored with the task, and charged for.

The method's process never sees ground truth, so tuning happens around runs: every candidate is measured like any
run, its scores are evaluated on the tuning queries alone, and the best one's options are kept.

Every method has the same budget of candidates. Options are searched one after another, in the order in which the
method declares them: all values of the first with the others at their defaults, then all values of the second with the
first at its best, and so on, for as long as the budget lasts. Where the product of all grids is within the budget, all
of it is tried.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
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
#: Candidates that a method may have measured.
BUDGET = 12


class Candidate(Strict):
    """Options that were tried, and their LDS on the tuning queries."""

    options: dict[str, OptionValue]
    tuning_lds: float | None
    """None if it did not end as ok: a damping that is too small for a method is a finding, not an end."""
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


Grid = dict[str, tuple[Any, ...]]
Measure = Callable[[dict[str, Any]], Candidate]


def search(grid: Grid, start: dict[str, Any], measure: Measure, budget: int = BUDGET) -> list[Candidate]:
    """Measure the candidates of a grid, at most ``budget`` of them, and return them in that order.

    Parameters
    ----------
    grid
        Values to try, by option.
    start
        Where the search along single options starts; usually the defaults.
    measure
        Measures a candidate.
    """
    product = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    if len(product) <= budget:
        return [measure(options) for options in product]
    return list(itertools.islice(_along(grid, start, measure), budget))


def _along(grid: Grid, start: dict[str, Any], measure: Measure) -> Iterator[Candidate]:
    """Yield candidates option by option, each option's values around the best of what was measured before."""
    found: dict[tuple[Any, ...], Candidate] = {}
    at = {name: start[name] for name in grid}
    for name, values in grid.items():
        for value in values:
            options = {**at, name: value}
            if (key := tuple(options.values())) not in found:
                found[key] = measure(options)
                yield found[key]
        at = dict(best_of(found.values(), default=at))


def best_of(candidates: Iterable[Candidate], default: dict[str, Any]) -> dict[str, Any]:
    """Return the options of the candidate with the highest LDS, or ``default`` if none has one."""
    scored = [c for c in candidates if c.tuning_lds is not None]
    return max(scored, key=lambda c: c.tuning_lds or 0.0).options if scored else default


def tune(
    job: Job,
    runs: Path,
    on_candidate: Callable[[Candidate], None] = lambda _: None,
    timeout_s: float | None = None,
    budget: int = BUDGET,
) -> Tuned:
    """Search the method's grid, as single models, and return the best on the tuning queries.

    Parameters
    ----------
    job
        The job to tune; its options are fixed, the others' grid is searched.
    runs
        Where the candidates' run folders go; a candidate measured before is not measured again.
    on_candidate
        Called after every candidate.
    timeout_s
        Seconds after which a candidate is stopped; the runner's default if None.
    budget
        How many candidates may be measured.

    Raises
    ------
    UsageError
        If no candidate ended as ok.
    """
    from tdabench.ground_truth import read_ground_truth
    from tdabench.jobs import plan
    from tdabench.options import describe
    from tdabench.registry import find_method, find_task

    task, method = find_task(job.task), find_method(job.method)
    truth = read_ground_truth(task)
    grid = {k: v for k, v in grid_of(method, job.method).items() if k not in job.options}
    defaults = {info.name: info.default for info in describe(method)}

    def measure(options: dict[str, Any]) -> Candidate:
        planned = plan(replace(job, options={**job.options, **options}, ensemble=None))
        candidate = _try(planned, truth, options, runs, timeout_s)
        on_candidate(candidate)
        return candidate

    candidates = search(grid, defaults, measure, budget)
    if all(c.tuning_lds is None for c in candidates):
        raise UsageError(f"Tuning stopped: none of {len(candidates)} candidates ended as ok; their logs are in {runs}.")
    return Tuned(
        task_version=task.version,
        options=best_of(candidates, defaults),
        tune_s=sum(c.serve_s for c in candidates),
        machine_class=plan(replace(job, ensemble=None)).machine.machine_class,
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
    if record.costs is None or record.status != "ok":
        return Candidate(options=options, tuning_lds=None, serve_s=record.costs.serve_s if record.costs else 0.0)
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
