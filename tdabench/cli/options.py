"""Options that several commands share, and what is made of what was typed."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tdabench.devices import MOST_THREADS, check_device
from tdabench.errors import OptionError
from tdabench.seeds import MOST_SEED

if TYPE_CHECKING:
    from tdabench.jobs import Job


class Duration(click.FloatRange):
    """A time above zero; not NaN, which is in every range, and not infinite."""

    def __init__(self) -> None:
        super().__init__(0, min_open=True)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the number."""
        found: float = super().convert(value, param, ctx)
        if not math.isfinite(found):
            self.fail(f"{found} is not a time.", param, ctx)
        return found


json_option = click.option("as_json", "--json", is_flag=True, help="Print the result as JSON on stdout.")
data_option = click.option(
    "data_folder",
    "--data",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    help="Folder that holds the data sets. Default: TDABENCH_DATA, else a download into the cache.",
)


def _find_tasks(context: click.Context, parameter: click.Parameter, references: tuple[str, ...]) -> None:
    from tdabench.registry import find_task

    for reference in references:
        find_task(reference)


own_tasks_option = click.option(
    "--task",
    multiple=True,
    metavar="FILE.py:NAME",
    expose_value=False,
    callback=_find_tasks,
    help="Task of your own that a run is of; may be given several times.",
)
runs_option = click.option(
    "--runs",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("runs"),
    show_default=True,
    help="Folder of run folders.",
)

seeds_from_option = click.option(
    "seeds_from",
    "--seeds-from",
    multiple=True,
    type=click.Path(path_type=Path, file_okay=False),
    metavar="RUNS",
    help="Runs of another machine class that computes the same scores: their run seeds count for the LDS, not for "
    "costs. May be given several times.",
)

threads_type = click.IntRange(1, MOST_THREADS)
seed_type = click.IntRange(0, MOST_SEED)


def machine_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options that every measuring command has."""
    for add in (
        click.option("--threads", type=threads_type, default=1, show_default=True, help="Threads of a run."),
        click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True),
        click.option(
            "timeout_s",
            "--timeout",
            type=Duration(),
            default=3600.0,
            show_default=True,
            help="Seconds after which a run is stopped.",
        ),
        data_option,
        runs_option,
        json_option,
    ):
        command = add(command)
    return command


set_option = click.option("settings", "--set", multiple=True, metavar="OPTION=VALUE", help="Option of the method.")


def parse_settings(settings: Sequence[str]) -> dict[str, str]:
    """Return ``--set`` arguments as a dict of texts."""
    parsed: dict[str, str] = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals or not name:
            raise OptionError(f"Cannot read --set {setting!r}. Write --set option=value.")
        if name.strip() in parsed:
            raise OptionError(f"--set gives {name.strip()} twice. Give it once.")
        parsed[name.strip()] = value.strip()
    return parsed


def parse_seconds(text: str) -> float | None:
    """Return the argument of ``--tune-s``; None if the seconds are not known on this machine class."""
    from tdabench.records import MOST

    if text == "unknown":
        return None
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds <= MOST:
        raise OptionError(f"Cannot read --tune-s {text!r}. Write seconds, or unknown.")
    return seconds


def on_machine(job: Job, threads: int, device: str, data_folder: Path | None) -> Job:
    """Return the job as it is on this machine; refuse a device that is not there."""
    check_device(device)
    folder = None if data_folder is None else str(data_folder.resolve())
    return replace(job, threads=threads, device=device, data_folder=folder)
