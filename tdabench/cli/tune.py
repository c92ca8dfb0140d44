"""``tdabench tune``: choosing a method's options."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tdabench.cli.options import machine_options, on_machine, parse_settings, seed_type, set_option
from tdabench.cli.output import note, print_json
from tdabench.cli.termination import cleaning_up
from tdabench.tuned import BUDGET, CANDIDATES_FOLDER

if TYPE_CHECKING:
    from tdabench.records import Record
    from tdabench.tuned import Candidate


def _tried(candidate: Candidate) -> str:
    if candidate.tuning_lds is None:
        return "did not end as ok; its log says why"
    return f"LDS {candidate.tuning_lds:.4f} on the tuning queries"


@click.command()
@click.argument("task")
@click.argument("method")
@set_option
@click.option("--seed", type=seed_type, default=0, show_default=True, help="Seed of the attribution model.")
@click.option("--dry-run", is_flag=True, help="Do not store the choice.")
@click.option(
    "--budget", type=click.IntRange(1), default=BUDGET, show_default=True, help="How many candidates may be measured."
)
@machine_options
def tune(
    task: str,
    method: str,
    settings: tuple[str, ...],
    seed: int,
    dry_run: bool,
    budget: int,
    threads: int,
    device: str,
    timeout_s: float,
    data_folder: Path | None,
    runs: Path,
    as_json: bool,
) -> None:
    """Choose METHOD's options on the tuning queries of TASK, from the values the method declares.

    Both are named as for `tdabench run`: METHOD, for example, as FILE.py:CLASS.

    The choice is stored with the task,
    together with what --set gives; `run` and `suite` use it and are charged for the tuning. The candidates are no
    results: they go into a folder .tuning among the runs, which boards do not read.
    """
    from tdabench.cli.caveats import note_other_sources, warn_of_busy_candidates
    from tdabench.files import check_writable
    from tdabench.jobs import Job, plan
    from tdabench.registry import find_task
    from tdabench.tuned import write_tuned
    from tdabench.tuning import tune as tune_job

    job = on_machine(Job(task, method, parse_settings(settings), None, seed), threads, device, data_folder)
    if not dry_run:
        check_writable(find_task(task).folder, "Tune with --dry-run, and run with the options that it prints.")
    records: list[Record] = []

    def tried(candidate: Candidate, record: Record) -> None:
        note(f"{candidate.options}: {_tried(candidate)}")
        records.append(record)

    with cleaning_up():
        chosen = tune_job(job, runs, on_candidate=tried, timeout_s=timeout_s, budget=budget)
    warn_of_busy_candidates(records, runs)
    note_other_sources(records, f"remove {runs / CANDIDATES_FOLDER}, or choose another folder with --runs")
    where = None if dry_run else write_tuned(find_task(task), method, chosen)
    command = plan(replace(job, options=chosen.options, tune_s=chosen.tune_s)).command
    facts: dict[str, Any] = {
        **chosen.model_dump(mode="json"),
        "stored": str(where) if where else None,
        "command": command,
    }
    if as_json:
        return print_json(facts)
    charged = f"charged with {chosen.tune_s:.2f} s, the serving time of {len(chosen.candidates)} candidates"
    click.echo(f"Best: {chosen.options}; {charged}.")
    return click.echo(f"Stored in {where}" if where else f"Not stored (--dry-run). To measure it: {command}")
