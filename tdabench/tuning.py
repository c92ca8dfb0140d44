"""Tuning: options chosen on the tuning queries, stored with the task, and charged for.

The method's process never sees ground truth, so tuning happens around runs: every candidate is measured like any run,
but attributes the tuning queries alone; its scores are evaluated, and the best one's options are kept. No score depends
on what other queries there are, so these are what a run of all queries gives. Candidates are no results: they lie in a
folder that boards do not read.

Every method has the same budget of candidates. Options are searched one after another, in the order in which the
method declares them: all values of the first with the others at their defaults, then all values of the second with the
first at its best, and so on, for as long as the budget lasts. Where the product of all grids is within the budget, all
of it is tried.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tdabench.errors import OptionError, UsageError
from tdabench.options import make
from tdabench.tuned import BUDGET, CANDIDATES_FOLDER, Candidate, Grid, Tuned, declared_grid, read_tuned

if TYPE_CHECKING:
    from tdabench.ground_truth import GroundTruth
    from tdabench.jobs import Job, Plan
    from tdabench.records import Record
    from tdabench.task import Task

_DIGITS = 6  # of stored numbers: a millionth of an LDS, a microsecond


def grid_of(method: type[Any], name: str) -> dict[str, tuple[Any, ...]]:
    """Return the values that a method declares for each option it wants tuned.

    Raises
    ------
    UsageError
        If it declares none.
    """
    grid = declared_grid(method)
    if not grid:
        raise UsageError(f"{name} declares nothing to tune: none of its options has values under tune=.")
    return grid


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
    if math.prod(len(values) for values in grid.values()) <= budget:
        product = itertools.product(*grid.values())
        return [measure(dict(zip(grid, values, strict=True))) for values in product]
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


def _check_grid(grid: Grid, method: str, fixed: dict[str, Any]) -> None:
    """Make the method with each value of its grid: the last would else be refused after hours of the others."""
    from tdabench.registry import find_method

    for name, values in grid.items():
        for value in values:
            try:
                make(find_method(method), method, {**fixed, name: value})
            except OptionError as error:
                raise OptionError(f"{error} It is among the values under tune=.") from error


def tune(
    job: Job,
    runs: Path,
    on_candidate: Callable[[Candidate, Record], None] = lambda *_: None,
    timeout_s: float | None = None,
    budget: int = BUDGET,
) -> Tuned:
    """Search the method's grid, as single models, and return the best on the tuning queries.

    Parameters
    ----------
    job
        The job to tune; its options are fixed, the others' grid is searched.
    runs
        Folder of runs. The candidates' run folders go into :data:`~tdabench.tuned.CANDIDATES_FOLDER` in it; a candidate
        measured before is not measured again.
    on_candidate
        Called after every candidate, with the record of its run.
    timeout_s
        Seconds after which a candidate is stopped; the runner's default if None.
    budget
        How many candidates may be measured.

    Raises
    ------
    UsageError
        If nothing is left to tune, or the task has no queries for it, or no candidate ended as ok.
    OptionError
        If the method would not take a value that it wants tried; said before any is.
    """
    from tdabench.jobs import plan
    from tdabench.registry import find_method, find_task

    task = find_task(job.task)
    truth = _truth_to_tune_on(task)
    base = plan(replace(job, ensemble=None))
    fixed = {name: base.options[name] for name in job.options}
    grid = _left(grid_of(find_method(job.method), job.method), fixed, job.method)
    _check_grid(grid, job.method, fixed)

    def measure(options: dict[str, Any]) -> Candidate:
        planned = plan(replace(base.job, options={**fixed, **options}, queries="tuning"))
        folder, record = _measured(planned, runs / CANDIDATES_FOLDER, timeout_s)
        candidate = _scored(folder, record, truth, options)
        on_candidate(candidate, record)
        return candidate

    candidates = search(grid, base.options, measure, budget)
    if all(c.tuning_lds is None for c in candidates):
        where = runs / CANDIDATES_FOLDER
        raise UsageError(
            f"Tuning stopped: none of {len(candidates)} candidates ended as ok; their logs are in {where}."
        )
    return Tuned(
        task_version=task.version,
        method_sha256=base.method_sha256,
        grid={name: list(values) for name, values in grid.items()},
        options={**fixed, **best_of(candidates, base.options)},
        tune_s=round(sum(c.charged_s for c in candidates), _DIGITS),
        machine_class=base.machine.machine_class,
        budget=budget,
        seed=job.seed,
        attributed="tuning",
        candidates=candidates,
    )


def _truth_to_tune_on(task: Task) -> GroundTruth:
    """Return a task's ground truth; what would end the tuning after all has been measured ends it here."""
    from tdabench.ground_truth import read_ground_truth

    if not len(task.tuning_queries):
        raise UsageError(
            f"{task.name} has {task.n_queries} queries. A fifth of them are for tuning, so it takes at least 5."
        )
    read_tuned(task)  # may be damaged
    return read_ground_truth(task)


def _left(grid: Grid, fixed: dict[str, Any], method: str) -> Grid:
    """Return the grid without the options that are fixed."""
    left = {name: values for name, values in grid.items() if name not in fixed}
    if not left:
        raise UsageError(f"Nothing is left to tune: {method} can tune {', '.join(grid)}. Leave out a --set.")
    return left


def _measured(planned: Plan, runs: Path, timeout_s: float | None) -> tuple[Path, Record]:
    """Return the run folder and the record of a run, which is measured if it is not there.

    One that was stopped or broke is measured again: with more time, or with the memory to itself, it may end well.
    """
    from tdabench.records import ENDED_WELL, read_record
    from tdabench.runner import DEFAULT_TIMEOUT_S, find_run, run

    folder = find_run(planned, runs)
    if folder is not None and (record := read_record(folder)).status in ENDED_WELL:
        return folder, record
    return run(planned, runs, timeout_s=timeout_s or DEFAULT_TIMEOUT_S)


def _scored(folder: Path, record: Record, truth: GroundTruth, options: dict[str, Any]) -> Candidate:
    """Return what a run makes its options worth: its LDS on the tuning queries and its cost."""
    from tdabench.lds import lds_per_query
    from tdabench.scores import read_run_scores

    if record.costs is None or record.status != "ok":
        return Candidate(options=options, tuning_lds=None, charged_s=round(record.process_s, _DIGITS))
    scores = read_run_scores(folder, record)
    rho, _ = lds_per_query(scores, truth.masks, truth.mean[:, truth.tuning])
    lds, charged_s = round(float(rho.mean()), _DIGITS), round(record.costs.serve_s, _DIGITS)
    return Candidate(options=options, tuning_lds=lds, charged_s=charged_s)
