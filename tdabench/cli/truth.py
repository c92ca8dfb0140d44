"""``tdabench ground-truth``: build, verify, show."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from tdabench.cli.output import Live, data_option, json_option, print_facts, print_json

if TYPE_CHECKING:
    from tdabench.building import Progress
    from tdabench.verification import Check


@click.group("ground-truth")
def ground_truth() -> None:
    """Build, verify or show the ground truth of a task."""


@ground_truth.command()
@click.argument("task")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="Default: the task's own folder.")
@click.option("--workers", type=click.IntRange(1), help="Worker processes, one thread each. Default: all cores.")
@click.option("--replace", is_flag=True, help="Build anew although there is ground truth.")
@data_option
@json_option
def build(
    task: str, out: Path | None, workers: int | None, replace: bool, data_folder: Path | None, as_json: bool
) -> None:
    """Retrain on every subset of TASK under every seed. Killed at any moment, the same command goes on."""
    from tdabench.building import build as build_task
    from tdabench.building import total_replicas
    from tdabench.ground_truth import ground_truth_folder
    from tdabench.registry import find_task

    found = find_task(task)
    found.data(data_folder)  # a missing data set is found before the workers start
    folder = out or ground_truth_folder(found)
    with Live(total_replicas(found), "replicas") as live:
        manifest = build_task(
            task,
            folder,
            data_folder=data_folder,
            workers=workers,
            replace=replace,
            on_progress=lambda p: _show_progress(live, p),
        )
    facts = {"folder": str(folder), **manifest.model_dump(mode="json")}
    return print_json(facts) if as_json else click.echo(f"Ground truth of {found.name}: {folder}")


def _show_progress(live: Live, progress: Progress) -> None:
    if live.done == 0 and progress.fresh == 0:
        live.skip(progress.done)
    else:
        live.finish(f"{progress.seconds_per_replica:.3f} s a replica", progress.done - live.done)


@ground_truth.command()
@click.argument("task")
@click.option("--replicas", type=click.IntRange(1), default=3, show_default=True, help="How many to retrain.")
@click.option("--choice-seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of their choice.")
@click.option("--folder", type=click.Path(path_type=Path, file_okay=False), help="Default: the task's own.")
@data_option
@json_option
def verify(
    task: str, replicas: int, choice_seed: int, folder: Path | None, data_folder: Path | None, as_json: bool
) -> None:
    """Check TASK's files against their manifest, retrain random replicas, and compare them with the shipped rows.

    Exits with 1 if a replica differs by more than the tolerance.
    """
    from tdabench.registry import find_task
    from tdabench.verification import verify as verify_task

    found = find_task(task)
    with Live(replicas, "replicas") as live:
        live.now("retraining")
        checks = verify_task(
            found,
            replicas,
            choice_seed=choice_seed,
            data_folder=data_folder,
            folder=folder,
            on_check=lambda check: live.finish(_check_line(check)),
        )
    passed = all(c.passed for c in checks)
    if as_json:
        print_json({"task": found.name, "passed": passed, "checks": [{**vars(c), "passed": c.passed} for c in checks]})
    else:
        click.echo(f"{found.name}: {sum(c.passed for c in checks)} of {len(checks)} replicas agree.")
    if not passed:
        raise click.exceptions.Exit(1)


def _check_line(check: Check) -> str:
    verdict = "agrees" if check.passed else "DIFFERS"
    return (
        f"subset {check.subset}, seed {check.seed}: {verdict}, difference {check.difference:.2g} "
        f"of the spread between subsets (tolerance {check.tolerance:g})"
    )


@ground_truth.command()
@click.argument("task")
@json_option
def show(task: str, as_json: bool) -> None:
    """Show what TASK's ground truth is, how it was made, and its noise ceiling."""
    from tdabench.ground_truth import ground_truth_folder, read_ground_truth
    from tdabench.registry import find_task
    from tdabench.results import evaluator_of

    found = find_task(task)
    manifest = read_ground_truth(found).manifest
    ceiling = evaluator_of(task).ceiling
    facts = {
        "folder": str(ground_truth_folder(found)),
        "noise_ceiling": ceiling.value,
        "reliability": ceiling.reliability,
        **manifest.model_dump(mode="json"),
    }
    return print_json(facts) if as_json else print_facts([[k, str(v)] for k, v in facts.items()])
