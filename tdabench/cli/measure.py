"""``tdabench run`` and ``suite``: what measures."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from tdabench.cli.options import machine_options, on_machine, parse_seconds, parse_settings, seed_type, set_option
from tdabench.cli.output import Live, note, phase_printer
from tdabench.cli.termination import cleaning_up
from tdabench.errors import MissingGroundTruthError

if TYPE_CHECKING:
    from tdabench.jobs import Job, Plan
    from tdabench.records import Record
    from tdabench.task import Task
    from tdabench.tuned import Remark

_LONG_S = 600.0  # shorter suites are not worth a second command


@click.command()
@click.argument("task")
@click.argument("method")
@set_option
@click.option("--ensemble", metavar="'KIND(...)'", help="For example 'dropout(models=5, masks=10)'.")
@click.option("--seed", type=seed_type, default=0, show_default=True, help="Seed of the run.")
@click.option("--defaults", is_flag=True, help="Use the method's own defaults, not the options tuned for the task.")
@click.option(
    "--tune-s",
    metavar="SECONDS",
    help="What choosing the options has cost, as the command in a record says it: they are taken as they are given.",
)
@click.option("--again", is_flag=True, help="Measure anew, beside what was measured before.")
@machine_options
def run(
    task: str,
    method: str,
    settings: tuple[str, ...],
    ensemble: str | None,
    seed: int,
    defaults: bool,
    tune_s: str | None,
    again: bool,
    threads: int,
    device: str,
    timeout_s: float,
    data_folder: Path | None,
    runs: Path,
    as_json: bool,
) -> None:
    """Measure METHOD on TASK in a fresh process, and evaluate it.

    TASK is a name that `tdabench tasks` lists, or FILE.py:NAME; METHOD one of `tdabench methods`, or FILE.py:CLASS.
    """
    from tdabench.jobs import Job, plan
    from tdabench.runner import find_run

    job = on_machine(Job(task, method, parse_settings(settings), ensemble, seed), threads, device, data_folder)
    planned = plan_job(job, defaults) if tune_s is None else plan(replace(job, tune_s=parse_seconds(tune_s)))
    folder = None if again else find_run(planned, runs)
    if folder is not None:
        note(f"Measured before; pass --again to measure anew: {folder}")
    else:
        folder = _measure([planned], runs, timeout_s)[0]
    _report_run(folder, as_json)


def plan_job(job: Job, defaults: bool = False) -> Plan:
    """Check a job, with the options that were tuned for its task unless ``defaults`` are asked for; say what is not."""
    planned, remark = _plan_tuned(job, defaults)
    _say([remark])
    return planned


def _plan_tuned(job: Job, defaults: bool = False) -> tuple[Plan, Remark | None]:
    from tdabench.jobs import plan
    from tdabench.registry import find_task
    from tdabench.tuned import with_tuned_options

    job, remark = with_tuned_options(job, find_task(job.task), defaults)
    return plan(job), remark


def _say(remarks: Sequence[Remark | None]) -> None:
    from tdabench.tuned import lines

    for line in lines(remark for remark in remarks if remark is not None):
        note(line)


def _measure(
    plans: Sequence[Plan],
    runs: Path,
    timeout_s: float,
    done_before: int = 0,
    expected: Sequence[float] = (),
    before: Mapping[str, Path | None] | None = None,
) -> list[Path]:
    """Run every plan, one after the other, and show progress; return the run folders.

    Given what was there ``before`` by run, what other commands do about a run is not done again.
    """
    from tdabench.runner import run as run_job

    folders = []
    with cleaning_up(), Live(done_before + len(plans), "runs", expected) as live:
        live.skip(done_before)
        for planned in plans:
            label = f"{planned.task.name}: {planned.label}"
            if before is not None and (elsewhere := _elsewhere(planned, runs, before[planned.run_id])):
                live.finish(f"{label}: {elsewhere}")
                continue
            folder, record = run_job(planned, runs, timeout_s=timeout_s, on_event=phase_printer(live, label))
            live.finish(f"{label}: {_outcome(record)}")
            folders.append(folder)
    return folders


def _elsewhere(planned: Plan, runs: Path, before: Path | None) -> str | None:
    """Return what another command has done about a run since this one found ``before``; None if nothing."""
    from tdabench.runner import find_run, is_at_work

    if find_run(planned, runs) != before:
        return "measured by another command"
    return "another command measures it" if is_at_work(planned, runs) else None


def _outcome(record: Record) -> str:
    from tdabench.formats import format_seconds

    if record.costs is None:
        return f"{record.status}: {record.reason}"
    return f"ok, serving {format_seconds(record.costs.serve_s)}, training {format_seconds(record.costs.train_s)}"


def _report_run(folder: Path, as_json: bool) -> None:
    from tdabench.cli.caveats import note_other_sources, warn_of_busy
    from tdabench.cli.reports import print_run
    from tdabench.records import ENDED_WELL, read_record
    from tdabench.results.reading import evaluate_run

    record = read_record(folder)
    try:
        evaluation = evaluate_run(folder, record)
    except MissingGroundTruthError as missing:  # what was measured stands; its quality can be known later
        evaluation = None
        note(f"No LDS yet: {missing}")
    print_run(folder, record, evaluation, as_json)
    note_other_sources([record])
    warn_of_busy([record])
    if record.status not in ENDED_WELL:
        raise click.exceptions.Exit(1)


@click.command()
@click.argument("name")
@click.option(
    "--board",
    "board_folder",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("board"),
    show_default=True,
    help="Folder to write the page to.",
)
@click.option("--task", "tasks", multiple=True, help="Only the runs on this task, named as in the suite; repeatable.")
@click.option("--retry-failed", is_flag=True, help="Try runs again that failed, timed out or ran out of memory.")
@machine_options
@click.pass_context
def suite(
    context: click.Context,
    name: str,
    tasks: tuple[str, ...],
    board_folder: Path,
    retry_failed: bool,
    threads: int,
    device: str,
    timeout_s: float,
    data_folder: Path | None,
    runs: Path,
    as_json: bool,
) -> None:
    """Measure every run of the suite NAME that is missing, and write and print the leaderboard.

    Exits with 1 if a run of it did not end well.

    Interrupted and given again, the command does only what is missing. NAME may be a .toml file, and may itself say
    after how many seconds a run is stopped; --timeout goes before that.

    Runs are measured one after another. Where there are cores for two, give two commands different tasks (--task), the
    same --runs and a --board each, and then the command without --task, which writes the leaderboard of all. What
    another command has measured by then, or is measuring, is left to it.
    """
    from tdabench.cli.caveats import warn_of_busy
    from tdabench.cli.reports import finish_board
    from tdabench.records import ENDED_WELL, read_record
    from tdabench.runner import find_run, list_attempts
    from tdabench.suites import find_suite

    found = find_suite(name)
    if tasks:
        found = found.only(tasks)
    if found.timeout_s is not None and context.get_parameter_source("timeout_s") is ParameterSource.DEFAULT:
        timeout_s = found.timeout_s
    planned = [_plan_tuned(on_machine(job, threads, device, data_folder)) for job in found.jobs]
    plans = {p.run_id: p for p, _ in planned}  # blocks may overlap
    _say([remark for _, remark in planned])
    _measure_missing(found.name, list(plans.values()), runs, timeout_s, retry_failed)
    listed = list_attempts(runs)
    folders = [folder for p in plans.values() if (folder := find_run(p, runs, listed)) is not None]
    finish_board(folders, board_folder, as_json, found)
    records = [read_record(folder) for folder in folders]
    warn_of_busy(records)
    failed = [record for record in records if record.status not in ENDED_WELL]
    if failed:
        note(
            f"{len(failed)} of {len(records)} runs did not end well, first {failed[0].run_id} ({failed[0].status}: "
            f"{failed[0].reason}). Its folder has its log; `--retry-failed` tries such runs again."
        )
        raise click.exceptions.Exit(1)


def _measure_missing(suite: str, plans: Sequence[Plan], runs: Path, timeout_s: float, retry_failed: bool) -> None:
    """Say how long what is missing of a suite will take, and measure it."""
    from tdabench.runner import find_run, list_attempts

    listed = list_attempts(runs)
    before = {p.run_id: find_run(p, runs, listed) for p in plans}
    missing = [p for p in plans if _is_missing(before[p.run_id], retry_failed)]
    if not missing:
        return note(f"Suite {suite}: all {len(plans)} runs are measured; nothing to do.")
    note(f"Suite {suite}: {len(missing)} of {len(plans)} runs to measure.")
    note_without_truth({p.task.name: p.task for p in missing}.values())
    _find_data(missing)
    expected = note_estimate([p.job for p in missing])
    _measure(missing, runs, timeout_s, len(plans) - len(missing), expected, before)
    return None


def _find_data(plans: Sequence[Plan]) -> None:
    """Read the data of every task once, so that what is absent is said before hours are spent on other tasks."""
    for planned in {p.task.name: p for p in plans}.values():
        folder = planned.job.data_folder
        planned.task.data(None if folder is None else Path(folder))


def note_without_truth(tasks: Iterable[Task]) -> None:
    """Say of which tasks only costs can be told, before hours are spent on them."""
    from tdabench.ground_truth import has_ground_truth

    for task in tasks:
        if not has_ground_truth(task):
            note(f"{task.name} has no ground truth of this version: its runs will have costs, and no LDS until it has.")


def note_estimate(jobs: Sequence[Job]) -> tuple[float, ...]:
    """Say how long several runs will take, and return how long each; nothing where that is not known."""
    from tdabench.formats import format_seconds
    from tdabench.planning import estimate_jobs

    total = estimate_jobs(jobs)
    known = total.runs - total.unknown
    unknown = f"; without {total.unknown} that no estimate is known of" if total.unknown else ""
    note(
        f"Estimated: {format_seconds(total.seconds)} for {known} runs (training {format_seconds(total.train_s)}, "
        f"serving {format_seconds(total.serve_s)}, starting {format_seconds(total.start_s)}){unknown}"
    )
    _note_shared(jobs, total.each)
    return total.each


def _note_shared(jobs: Sequence[Job], seconds: Sequence[float]) -> None:
    """Say how two commands would share what takes long, where a core is free for a second one."""
    from tdabench.formats import format_seconds
    from tdabench.provenance import available_cores

    takes: dict[str, float] = defaultdict(float)
    for job, one in zip(jobs, seconds, strict=False):  # nothing may be known
        takes[job.task] += one
    if sum(takes.values()) < _LONG_S or len(takes) < 2 or jobs[0].device != "cpu":
        return
    if available_cores() < 2 * jobs[0].threads:
        return
    first, second = halves(takes)
    longer = max(sum(takes[task] for task in half) for half in (first, second))
    words = [" ".join(f"--task {task}" for task in half) for half in (first, second)]
    note(f"By two commands at once, about {format_seconds(longer)}: one with {words[0]}, the other with {words[1]}")


def halves(takes: Mapping[str, float]) -> tuple[list[str], list[str]]:
    """Return tasks in two parts that take about as long, the longest given first to where there is less.

    >>> halves({"a": 3.0, "b": 2.0, "c": 2.0})
    (['a'], ['b', 'c'])
    """
    parts: tuple[list[str], list[str]] = ([], [])
    for task in sorted(takes, key=lambda task: -takes[task]):
        min(parts, key=lambda part: sum(takes[one] for one in part)).append(task)
    return parts


def _is_missing(folder: Path | None, retry_failed: bool) -> bool:
    from tdabench.records import ENDED_WELL, read_record

    if folder is None:
        return True
    return retry_failed and read_record(folder).status not in ENDED_WELL
