"""``tdabench archive``: keeps runs in a repository."""

from __future__ import annotations

from pathlib import Path

import click

from tdabench.cli.options import json_option, own_tasks_option
from tdabench.cli.output import Live, print_json

_FOLDER = click.Path(path_type=Path, file_okay=False)


@click.command()
@click.argument("runs", nargs=-1, required=True, type=_FOLDER)
@click.option("--out", type=_FOLDER, required=True, help="Folder to keep the runs in.")
@own_tasks_option
@json_option
def archive(runs: tuple[Path, ...], out: Path, as_json: bool) -> None:
    """Keep the run folders in RUNS in a folder for a repository: records, and evidence in place of scores.

    Evidence is about a hundredth of the size of scores and gives the same LDS and interval, for the ground truth that
    it was made with. `score`, `compare`, `board` and `findings` read such a folder as they read runs. Where the folder
    holds another run under the name of one, nothing is written.
    """
    from tdabench.archive import archive_runs
    from tdabench.cli.reports import run_folders
    from tdabench.formats import count

    folders = run_folders(runs)
    with Live(len(folders), "runs") as live:
        kept = archive_runs(folders, out, on_run=lambda _: live.skip(1))
    before = len({folder.resolve().name for folder in folders}) - kept
    facts = {"kept": kept, "there_before": before, "folder": str(out)}
    if as_json:
        return print_json(facts)
    return click.echo(f"{count(kept, 'run')} kept in {out}; {before} there before.")
