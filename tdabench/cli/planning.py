"""``tdabench plan``: what a run will cost, and how well that was estimated."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tdabench.cli.measure import plan_job
from tdabench.cli.options import (
    data_option,
    json_option,
    on_machine,
    parse_settings,
    seed_type,
    set_option,
    threads_type,
)
from tdabench.cli.output import note, print_facts, print_json
from tdabench.errors import TdabenchError, UsageError

if TYPE_CHECKING:
    from tdabench.estimates import Estimate
    from tdabench.jobs import Job
    from tdabench.records import Costs, Record
    from tdabench.work import Counts

_COLUMNS = ("task", "run", "training", "measured", "serving", "measured", "memory", "measured", "storage", "measured")
_TIMES = ("training", "serving")
_SUMMARY = ("estimated over measured", "runs", "least", "10 %", "median", "90 %", "most")
# Shorter serving is mostly what a process does once and what a member takes beside its work, which is not estimated.
_SHORT_S = 1.0


@click.command()
@click.argument("task", required=False)
@click.argument("method", required=False)
@set_option
@click.option("--ensemble", metavar="'KIND(...)'", help="For example 'dropout(models=5, masks=10)'.")
@click.option("--seed", type=seed_type, default=0, show_default=True, help="Seed of the run.")
@click.option("--defaults", is_flag=True, help="Use the method's own defaults, not the options tuned for the task.")
@click.option("--threads", type=threads_type, default=1, show_default=True, help="Threads of the run.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option(
    "--against",
    multiple=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder of runs to hold estimates against, in place of TASK and METHOD; may be given several times.",
)
@data_option
@json_option
def plan(
    task: str | None,
    method: str | None,
    settings: tuple[str, ...],
    ensemble: str | None,
    seed: int,
    defaults: bool,
    threads: int,
    device: str,
    against: tuple[Path, ...],
    data_folder: Path | None,
    as_json: bool,
) -> None:
    """Estimate what METHOD will cost on TASK: time, memory and disk, and the counts behind them.

    A few seconds of calibration with the task's untrained model; nothing is run. Both are named as for `tdabench run`.
    With --against, print as Markdown how estimates spread about what runs have measured, and both, run by run.
    """
    from tdabench.jobs import Job
    from tdabench.planning import estimate_job

    if against:
        if task is not None:
            raise UsageError("--against takes task and method from the runs. Leave out TASK and METHOD.")
        return _print_against(against, data_folder, as_json)
    if task is None or method is None:
        raise UsageError("Give a task and a method, as in `tdabench plan digits-mlp trak`, or --against RUNS.")
    job = on_machine(Job(task, method, parse_settings(settings), ensemble, seed), threads, device, data_folder)
    estimate = estimate_job(plan_job(job, defaults).job)
    return print_json(as_facts(estimate)) if as_json else _print(estimate)


def as_facts(estimate: Estimate) -> dict[str, Any]:
    """Return an estimate as plain values; sizes are bytes, and what is not known is None."""
    names = ("train_s", "extra_train_s", "fit_s", "attribute_s", "serve_s")
    sizes = ("peak_bytes", "process_bytes", "fits_budget", "models_bytes", "storage_bytes")
    trainings = estimate.trainings
    return {
        "task": estimate.plan.task.name,
        "method": estimate.plan.method,
        "options": estimate.plan.options,
        "ensemble": estimate.plan.job.ensemble,
        "declined": estimate.declined,
        **{name: getattr(estimate, name) for name in (*names, *sizes)},
        "trainings": None if trainings is None else [asdict(t) for t in trainings],
        "parts": None if estimate.parts is None else asdict(estimate.parts),
        "work": None if estimate.work is None else asdict(estimate.work),
        "rates": None if estimate.rates is None else asdict(estimate.rates),
        "machine_class": estimate.plan.machine.machine_class,
    }


def _print(estimate: Estimate) -> None:
    rows = [["run", estimate.plan.label], ["task", estimate.plan.task.name]]
    if estimate.declined is not None:
        return print_facts([*rows, ["declined", estimate.declined]])
    rows.append(["training", _training(estimate)])
    if estimate.work is not None:
        rows += _served(estimate)
    elif estimate.models_bytes is not None:
        rows.append(["storage", f"{_bytes(estimate.models_bytes)} of models, and what the method leaves"])
    print_facts(rows)
    if estimate.work is None:
        note(f"{estimate.plan.method} does not say its work, so its serving time and memory are not known in advance.")
    return None


def _training(estimate: Estimate) -> str:
    if estimate.trainings is None:
        return "not known: the method trains what it needs itself and does not say it"
    times = f"{_seconds(estimate.train_s)} from nothing, {_seconds(estimate.extra_train_s)} given a model"
    return f"{times} ({_trained(estimate)})" if estimate.trainings else times


def _trained(estimate: Estimate) -> str:
    """Say how many of each kind are trained, and of how many the time was measured before."""
    from tdabench.formats import count

    trainings, parts = estimate.trainings or (), []
    for kind in dict.fromkeys(t.kind for t in trainings):
        some = [t for t in trainings if t.kind == kind]
        known = sum(t.measured for t in some)
        parts.append(count(len(some), kind) + (f", {known} measured before" if known else ""))
    return "; ".join(parts)


def _served(estimate: Estimate) -> list[list[str]]:
    from tdabench.budgets import budget_bytes

    work = estimate.work
    assert work is not None
    most = "at most " if work.at_most else ""
    held = _bytes(estimate.peak_bytes)
    if estimate.fits_budget is not None:
        side = "below" if estimate.fits_budget else "ABOVE"
        held = f"{held}, with the process itself {side} the budget of {_bytes(budget_bytes())}"
    times = f"fit {_seconds(estimate.fit_s)}, attribute {_seconds(estimate.attribute_s)}"
    left = f"models {_bytes(estimate.models_bytes)}, what fit leaves {_bytes(4 * work.state)}"
    return [
        ["serving", f"{most}{_seconds(estimate.serve_s)} ({times})"],
        ["peak memory", held],
        ["storage", f"{_bytes(estimate.storage_bytes)} ({left})"],
        ["fit", _counts(work.fit)],
        ["attribute", _counts(work.attribute)],
    ]


def _counts(counts: Counts) -> str:
    """Write what a phase does."""
    from tdabench.formats import format_count

    named = {
        "examples forward": counts.forward,
        "gradients": counts.gradients,
        "Hessian products": counts.curved,
        "multiply-adds": counts.products,
        "numbers written": counts.moved,
    }
    return ", ".join(f"{format_count(n)} {name}" for name, n in named.items() if n) or "nothing"


def _seconds(value: float | None) -> str:
    from tdabench.formats import format_seconds

    return format_seconds(value)


def _bytes(value: float | None) -> str:
    from tdabench.formats import format_bytes

    return format_bytes(value)


def _print_against(folders: tuple[Path, ...], data_folder: Path | None, as_json: bool) -> None:
    from tdabench.cli.reports import run_folders
    from tdabench.findings.markdown import table
    from tdabench.records import read_record

    pairs = []
    for folder in run_folders(folders):
        record = read_record(folder)
        estimate = _estimate_of(record, data_folder)
        if estimate is not None:
            pairs.append((record, estimate))
    if not pairs:
        raise UsageError("None of these runs can be compared with an estimate. Measure some here with `tdabench run`.")
    if as_json:
        return print_json([{"estimate": as_facts(e), "measured": r.model_dump(mode="json")} for r, e in pairs])
    summary = table(_SUMMARY, _summary(pairs))
    return click.echo("\n".join([*summary, *table(_COLUMNS, [_row(r, e) for r, e in pairs], left=2)]), nl=False)


def _summary(pairs: list[tuple[Record, Estimate]]) -> list[list[str]]:
    """Return how the estimates spread about what was measured, a row each for time, memory and storage."""
    from numpy import quantile

    ratios: dict[str, list[float]] = {}
    for record, estimate in pairs:
        for what, (estimated, measured) in _compared(record, estimate).items():
            if estimated is None or not measured:
                continue
            length = f"{_SHORT_S:g} s and more" if measured >= _SHORT_S else "shorter than that"
            name = f"{what}, {length}" if what == "serving" else what
            ratios.setdefault(name, []).append(estimated / measured)
    points = (0, 0.1, 0.5, 0.9, 1)
    return [[k, str(len(v)), *(f"{q:.2f}" for q in quantile(v, points))] for k, v in sorted(ratios.items())]


def _compared(record: Record, estimate: Estimate) -> dict[str, tuple[float | None, float | None]]:
    """Return what was estimated of a run and what it measured, in the order of the columns; seconds and bytes."""
    from tdabench.results.axes import peak_bytes

    costs: Costs | None = record.costs
    assert costs is not None
    return {
        "training": (estimate.train_s, costs.train_s),
        "serving": (estimate.serve_s, costs.serve_s),
        "memory": (estimate.peak_bytes, peak_bytes(costs)),
        "storage": (estimate.storage_bytes, costs.storage_bytes),
    }


def _estimate_of(record: Record, data_folder: Path | None) -> Estimate | None:
    """Return the estimate of a run that ended as ok on this machine; else say why there is none."""
    from tdabench.planning import estimate_job

    try:
        _refuse_file(record)
        estimate = estimate_job(_job_of(record, data_folder), stored=False) if record.status == "ok" else None
        reason = _why_not(record, estimate)
    except TdabenchError as error:
        estimate, reason = None, str(error)
    if reason is not None:
        note(f"Left out: {record.run_id}: {reason}")
    return estimate if reason is None else None


def _refuse_file(record: Record) -> None:
    """Raise :class:`UsageError` for a method from a file: one of that name that lies here may be anybody's."""
    from tdabench.registry import names_file

    if names_file(record.method):
        raise UsageError("its method is from a file, and no file is run because a record names it.")


def _why_not(record: Record, estimate: Estimate | None) -> str | None:
    """Return why an estimate cannot be held against a run; None where it can."""
    if estimate is None:
        return f"it ended as {record.status}."
    if estimate.plan.machine.machine_class != record.machine.machine_class:
        return "it was measured on another class of machine."
    if estimate.plan.task.version != record.task_version:
        return "its task has changed since."
    if estimate.declined is not None:
        return f"it would be declined now: {estimate.declined.rstrip('.')}."
    return None if estimate.work is not None else "its method does not say its work."


def _job_of(record: Record, data_folder: Path | None) -> Job:
    from tdabench.jobs import Job

    made = record.ensemble
    ensemble = None if made is None else made.text
    job = Job(record.task, record.method, dict(record.options), ensemble, record.seed)
    return on_machine(job, record.machine.threads, record.machine.device, data_folder)


def _row(record: Record, estimate: Estimate) -> list[str]:
    compared = _compared(record, estimate).items()
    written = [(_seconds if what in _TIMES else _bytes)(value) for what, pair in compared for value in pair]
    return [record.task, record.label, *written]
