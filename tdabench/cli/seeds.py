"""``tdabench seed-variance``: how far an LDS moves from run seed to run seed."""

from __future__ import annotations

from pathlib import Path

import click

from tdabench.cli.options import json_option, own_tasks_option, seeds_from_option
from tdabench.cli.output import note, print_json, print_table


@click.command("seed-variance")
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path, file_okay=False))
@click.option("--write", is_flag=True, help="Store it with the tasks: intervals of single runs then hold it.")
@seeds_from_option
@own_tasks_option
@json_option
def seed_variance(runs: tuple[Path, ...], write: bool, seeds_from: tuple[Path, ...], as_json: bool) -> None:
    """Measure how far an LDS moves from run seed to run seed, on the run folders in RUNS.

    Configurations with several seeds tell it. Runs of several machine classes may be given together.
    """
    from tdabench.cli.reports import read_with_seeds, run_folders, warn_of_unknown
    from tdabench.errors import UsageError
    from tdabench.registry import find_task
    from tdabench.results.rows import rows_of
    from tdabench.results.seed_variance import measure, write_seed_variance

    found, lent, tasks = read_with_seeds(run_folders(runs), seeds_from)
    warn_of_unknown(found, tasks)
    now = {(task.name, task.version) for task in tasks}
    rows = rows_of([*found, *lent])
    measured = {name: variance for (name, version), variance in measure(rows).items() if (name, version) in now}
    if not measured:
        raise UsageError(
            "No configuration among these runs has several seeds. Run one with `tdabench run TASK METHOD --seed 1`, "
            "`--seed 2` and so on."
        )
    if write:
        for name, variance in measured.items():
            note(f"Stored: {write_seed_variance(find_task(name), variance)}")
    if as_json:
        return print_json({name: variance.model_dump(mode="json") for name, variance in measured.items()})
    columns = ["task", "LDS of one model moves by", "of that all alike", "configurations", "pairs", "seeds"]
    cells = [
        [name, f"{v.total:.4f}", f"{v.shared:.4f}", str(v.n_configurations), str(v.n_pairs), str(v.n_seeds)]
        for name, v in measured.items()
    ]
    return print_table(columns, cells)
