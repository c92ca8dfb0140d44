"""Printing: JSON and tables on stdout, progress on stderr."""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

import click
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn
from rich.table import Table

from tdabench.formats import printable


class _Console(Console):
    """Rich's console; where nobody reads any more, the command line decides what that means."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))


def print_json(value: Any) -> None:
    """Print a value as JSON; NaN is never written."""
    click.echo(json.dumps(value, indent=2, allow_nan=False))


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]], title: str | None = None) -> None:
    """Print a table; on anything but a terminal it is as wide as it needs to be."""
    said = None if title is None else escape(printable(title))
    table = Table(title=said, title_justify="left", header_style="bold", show_edge=False, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*[escape(printable(cell)) for cell in row])
    # Narrower than this, columns would be folded into a letter a line; a terminal breaks long lines itself.
    width = max(80, shutil.get_terminal_size().columns) if sys.stdout.isatty() else 200
    _Console(file=sys.stdout, width=width).print(table)


def say(text: str) -> None:
    """Print a line of a result to stdout."""
    click.echo(printable(text))


def print_facts(rows: Sequence[Sequence[str]]) -> None:
    """Print names and values, a line each."""
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        say(f"{name:<{width}}  {value}")


def note(text: str) -> None:
    """Print a line of progress to stderr."""
    click.echo(printable(text), err=True)


def warn(text: str) -> None:
    """Print a warning to stderr."""
    note(f"Warning: {text}")


def warn_of_broken(name: str, error: Exception) -> None:
    """Say that a registered task or method is left out because its package cannot be loaded."""
    warn(f"{name} is left out. {' '.join(str(error).split())}")


class Live:
    """Progress of a count of pieces of work: a live line on a terminal, else a line per finished piece.

    Parameters
    ----------
    total
        How many pieces there are.
    unit
        What they are called.
    expected
        Seconds that each of the pieces to come should take, in their order; without them, all are taken to be alike.
    """

    def __init__(self, total: int, unit: str, expected: Sequence[float] = ()) -> None:
        self.total, self.unit = total, unit
        self.done = 0
        self._expected = expected
        self._fresh = 0
        self._start = time.monotonic()
        self._took = 0.0  # for what is finished: a long piece at work does not make the rest look longer
        self._terminal = sys.stderr.isatty()
        self._progress = Progress(
            SpinnerColumn(),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.description}"),
            console=Console(stderr=True),
            transient=True,
        )
        self._bar = self._progress.add_task("", total=total)
        self._now = ""

    def __enter__(self) -> Live:
        if self._terminal:
            self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._terminal:  # else stopping what never started prints an empty line
            self._progress.stop()

    def skip(self, count: int) -> None:
        """Count pieces that were done before."""
        self.done += count
        self._draw()

    def now(self, text: str) -> None:
        """Say what is going on."""
        self._now = text
        self._draw()

    def finish(self, text: str, count: int = 1) -> None:
        """Count finished pieces and print a line about them."""
        self.done += count
        self._fresh += count
        self._took = time.monotonic() - self._start
        line = f"[{self.done}/{self.total}] {text}"
        if self._terminal:
            self._progress.console.print(printable(line), markup=False, highlight=False)
        else:
            note(f"{line} ({self.time_left()} left)")
        self._draw()

    def time_left(self) -> str:
        """Estimate from the pieces finished here, or a dash before the first that tells anything."""
        done, left = float(self._fresh), float(self.total - self.done)
        if self._expected:
            done, left = sum(self._expected[: self._fresh]), sum(self._expected[self._fresh :])
        if not done:
            return "-"
        seconds = self._took / done * left
        return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"

    def _draw(self) -> None:
        description = escape(printable(f"{self.unit}, {self.time_left()} left  {self._now}"))
        self._progress.update(self._bar, completed=self.done, description=description)


def phase_printer(live: Live, label: str) -> Callable[[dict[str, Any]], None]:
    """Return a listener that shows a run's phase and member on the live line."""
    state = {"phase": "starting", "members": ""}
    live.now(f"{label}: starting")

    def listen(event: dict[str, Any]) -> None:
        if "phase" in event and event["phase"] != "harness":
            state["phase"] = event["phase"]
        if "total" in event and event["total"] > 1:
            state["members"] = f" {event['done']}/{event['total']} members"
        live.now(f"{label}: {state['phase']}{state['members']}")

    return listen
