"""``tdabench ground-truth``: build, verify, show."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tdabench.cli.options import Duration, data_option, json_option
from tdabench.cli.output import Live, print_facts, print_json, warn_of_broken
from tdabench.devices import check_device
from tdabench.errors import TdabenchError, UsageError

if TYPE_CHECKING:
    from tdabench.filling import Progress
    from tdabench.ground_truth import Builder, Manifest
    from tdabench.task import Task
    from tdabench.verification import Check

_FOLDER = click.Path(path_type=Path, file_okay=False)
_device_option = click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)


class Shard(click.ParamType):
    """A share of the work, written as ``i/n``: number i of n, counted from 0."""

    name = "i/n"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        """Return (i, n)."""
        if isinstance(value, tuple):
            return value
        found = re.fullmatch(r"(\d+)/(\d+)", str(value))
        if found is None or not int(found[1]) < int(found[2]):
            self.fail(f"{value!r} is not a share. Write i/n with i from 0 to n - 1, as in 0/4.", param, ctx)
        return int(found[1]), int(found[2])


@click.group("ground-truth")
def ground_truth() -> None:
    """Build, merge, verify or show the ground truth of TASK: a name, or FILE.py:NAME."""


@ground_truth.command()
@click.argument("task")
@click.option("--out", type=_FOLDER, help="Folder to write. Default: ground_truth/ in the task's folder.")
@click.option("--workers", type=click.IntRange(1), help="Worker processes, one thread each. Default: all cores.")
@_device_option
@click.option("--slices", type=_FOLDER, help="Folder of finished slices. Default: beside the task, else in the cache.")
@click.option(
    "--shard", type=Shard(), help="Build a share, as in 0/4, into --slices; `merge` puts the shares together."
)
@click.option("--minutes", type=Duration(), help="Stop after so long; the same command goes on.")
@click.option("--replace", is_flag=True, help="Build anew although there is ground truth.")
@data_option
@json_option
def build(
    task: str,
    out: Path | None,
    workers: int | None,
    device: str,
    slices: Path | None,
    shard: tuple[int, int] | None,
    minutes: float | None,
    replace: bool,
    data_folder: Path | None,
    as_json: bool,
) -> None:
    """Retrain on every subset of TASK under every seed. Killed at any moment, the same command goes on."""
    from tdabench.building import build as build_task
    from tdabench.building import total_replicas
    from tdabench.filling import Options
    from tdabench.registry import find_task

    check_device(device)
    found = find_task(task)
    found.data(data_folder)  # a missing data set is found before the workers start
    options = Options(data_folder, workers, device, slices, shard, minutes)
    with Live(total_replicas(found), "replicas") as live:
        manifest = build_task(task, out, options, replace=replace, on_progress=lambda p: _show_progress(live, p))
    _report(found, out, manifest, as_json, f"{live.done} of {live.total} replicas of {found.name} are done.")


@ground_truth.command()
@click.argument("task")
@click.argument("slices", nargs=-1, required=True, type=click.Path(path_type=Path, file_okay=False, exists=True))
@click.option("--out", type=_FOLDER, help="Folder to write. Default: ground_truth/ in the task's folder.")
@_device_option
@click.option("--replace", is_flag=True, help="Write although there is ground truth.")
@data_option
@json_option
def merge(
    task: str,
    slices: tuple[Path, ...],
    out: Path | None,
    device: str,
    replace: bool,
    data_folder: Path | None,
    as_json: bool,
) -> None:
    """Put the shares that several machines built into folders SLICES together; none may be missing.

    One replica is retrained twice, to measure how much training amplifies rounding.
    """
    from tdabench.building import merge as merge_slices
    from tdabench.filling import Options
    from tdabench.registry import find_task

    check_device(device)
    manifest = merge_slices(task, slices, out, Options(data_folder, device=device), replace=replace)
    _report(find_task(task), out, manifest, as_json, "")


def _report(task: Task, out: Path | None, manifest: Manifest | None, as_json: bool, unfinished: str) -> None:
    from tdabench.ground_truth import ground_truth_folder

    folder = out or ground_truth_folder(task)
    if manifest is None:
        return print_json({"task": task.name, "complete": False}) if as_json else click.echo(unfinished)
    facts = {"folder": str(folder), "complete": True, **manifest.model_dump(mode="json")}
    return print_json(facts) if as_json else click.echo(f"Ground truth of {task.name}: {folder}")


def _show_progress(live: Live, progress: Progress) -> None:
    live.total = progress.total
    if live.done == 0 and progress.fresh == 0:
        live.skip(progress.done)
    else:
        reliability = "" if progress.reliability is None else f", reliability {progress.reliability:.3f}"
        live.finish(f"{progress.seconds_per_replica:.3g} s a replica{reliability}", progress.done - live.done)


@ground_truth.command()
@click.argument("task", required=False)
@click.option("--all", "everything", is_flag=True, help="Verify every registered task that the device can retrain.")
@click.option("--replicas", type=click.IntRange(1), default=3, show_default=True, help="How many to retrain.")
@click.option("--choice-seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of their choice.")
@click.option("--folder", type=_FOLDER, help="Folder to verify. Default: ground_truth/ in the task's folder.")
@_device_option
@data_option
@json_option
def verify(
    task: str | None,
    everything: bool,
    replicas: int,
    choice_seed: int,
    folder: Path | None,
    device: str,
    data_folder: Path | None,
    as_json: bool,
) -> None:
    """Check TASK's files against their manifest, retrain random replicas, and compare them with the shipped rows.

    Exits with 0 if every replica agrees, and with 1 if one does not; with --all also with 1
    if a task cannot be loaded or verified: it is named, and the others are verified all the same.
    """
    if everything == (task is not None):
        raise click.UsageError("Name a TASK, or pass --all.")
    if everything and folder is not None:
        raise click.UsageError("--folder goes with one TASK; leave it out, or name the task.")
    from tdabench.verification import verify as verify_task

    check_device(device)
    tasks, outcomes = _tasks_to_verify(task, device)
    with Live(replicas * len(tasks), "replicas") as live:
        check = partial(
            verify_task,
            replicas=replicas,
            choice_seed=choice_seed,
            data_folder=data_folder,
            folder=folder,
            device=device,
        )
        outcomes += [_verified(found, check, live, replicas, go_on=everything) for found in tasks]
    outcomes.sort(key=lambda outcome: outcome.task)
    shown = [outcome.to_dict() for outcome in outcomes]
    if as_json:
        print_json(shown if everything else shown[0])
    else:
        for outcome in outcomes:
            click.echo(outcome.line())
    if not all(outcome.passed for outcome in outcomes):
        raise click.exceptions.Exit(1)


def _verified(task: Task, check: Callable[..., list[Check]], live: Live, replicas: int, *, go_on: bool) -> _Outcome:
    """Verify a task and show it; an error is raised, or where others are to be verified still, told."""
    live.now(f"{task.name}: retraining")
    try:
        return _Outcome(task.name, check(task, on_check=partial(_show_check, live, task.name)))
    except TdabenchError as error:
        if not go_on:
            raise
        live.finish(f"{task.name}: not verified: {error}", replicas)
        return _Outcome(task.name, [], str(error))


def _show_check(live: Live, name: str, check: Check) -> None:
    live.finish(f"{name}: {_check_line(check)}")


@dataclass(frozen=True)
class _Outcome:
    task: str
    checks: list[Check]
    error: str | None = None

    @property
    def passed(self) -> bool:
        return self.error is None and all(c.passed for c in self.checks)

    def to_dict(self) -> dict[str, Any]:
        checks = [{**_finite(asdict(c)), "passed": c.passed} for c in self.checks]
        problem = {} if self.error is None else {"error": self.error}
        return {"task": self.task, "passed": self.passed, "checks": checks, **problem}

    def line(self) -> str:
        if self.error is not None:
            return f"{self.task}: not verified: {self.error}"
        return f"{self.task}: {sum(c.passed for c in self.checks)} of {len(self.checks)} replicas agree."


def _finite(facts: dict[str, Any]) -> dict[str, Any]:
    """Return facts with None for numbers that JSON does not have: nothing to compare, or a spread of 0."""
    return {k: None if isinstance(value, float) and not isfinite(value) else value for k, value in facts.items()}


def _tasks_to_verify(task: str | None, device: str) -> tuple[list[Task], list[_Outcome]]:
    """Return one task, or all that the device can retrain; and those that cannot even be loaded."""
    from tdabench import registry

    if task is not None:
        return [registry.find_task(task)], []
    broken: list[_Outcome] = []

    def leave_out(name: str, error: UsageError) -> None:
        warn_of_broken(name, error)
        broken.append(_Outcome(name, [], " ".join(str(error).split())))

    found = registry.find_all(registry.TASKS, registry.find_task, leave_out)
    return [t for t in found.values() if device == "cuda" or not t.needs_cuda], broken


def _check_line(check: Check) -> str:
    verdict = "agrees" if check.passed else "DIFFERS"
    line = (
        f"subset {check.subset}, seed {check.seed}: {verdict}, difference {check.difference:.2g} of the spread between"
        f" subsets (tolerance {check.tolerance:.3g}"
    )
    if check.other_seed is not None:
        return f"{line}), {check.other_seed:.2g} from the nearest row of another seed"
    if check.places is None:
        return f"{line})"
    return (
        f"{line}, as rounding moves a row as far as another seed); among the subsets that a row is like, its own is at "
        f"place {check.places.retrained} for the retrained row and {check.places.shipped} for the shipped one (up to "
        f"{check.places.last} agree)"
    )


@ground_truth.command()
@click.argument("task")
@json_option
def show(task: str, as_json: bool) -> None:
    """Show what TASK's ground truth is, how it was made, and its noise ceiling."""
    from tdabench.ground_truth import ground_truth_folder, quality, read_ground_truth
    from tdabench.registry import find_task
    from tdabench.results.reading import evaluator_of

    found = find_task(task)
    truth = read_ground_truth(found)
    manifest, ceiling = truth.manifest, evaluator_of(task).ceiling
    facts = {
        "folder": str(ground_truth_folder(found)),
        "noise_ceiling": ceiling.value,
        "reliability": ceiling.reliability,
        **quality(found.target, truth.outputs),
        **manifest.model_dump(mode="json"),
    }
    if as_json:
        return print_json(facts)
    del facts["built_on"]
    builders = [[f"builder {i}", _builder_line(b)] for i, b in enumerate(manifest.built_on)]
    return print_facts([[k, str(v)] for k, v in facts.items()] + builders)


def _builder_line(builder: Builder) -> str:
    together = f"{builder.replicas_per_group} at once" if builder.replicas_per_group > 1 else "one at a time"
    where = builder.cpu if builder.device == "cpu" else f"{builder.device}, {builder.cpu}"
    return (
        f"{builder.n_replicas} replicas, {builder.seconds_per_replica:.3g} s each, {together}, {builder.precision}, "
        f"torch {builder.packages.get('torch', 'unknown')}, on {where}"
    )
