"""The command line. Results go to stdout, progress to stderr; a user's mistake is one line and exit code 2."""

from __future__ import annotations

import contextlib
import errno
import importlib
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from tdabench._version import __version__
from tdabench.cli.termination import Terminated
from tdabench.errors import TdabenchError, UsageError

# Command -> module; a command's module is imported when the command is used, so that --help answers at once.
_COMMANDS = {
    "tasks": "catalogue",
    "methods": "catalogue",
    "run": "measure",
    "plan": "planning",
    "suite": "measure",
    "tune": "tune",
    "score": "quality",
    "compare": "quality",
    "board": "quality",
    "findings": "reports",
    "seed-variance": "seeds",
    "archive": "archive",
    "ground-truth": "truth",
    "wandb": "quality",
}
_HELP = {
    "tasks": "List the tasks, or describe one.",
    "methods": "List the methods, or describe one and its options.",
    "run": "Measure a method on a task, in a fresh process.",
    "plan": "Estimate time, memory and disk of a run before it is run.",
    "suite": "Measure every run of a suite that is missing, and write the board.",
    "tune": "Choose a method's options on the tuning queries of a task.",
    "score": "Evaluate the scores of a run, or of a file.",
    "compare": "Compare two runs, paired on the same subsets and queries.",
    "board": "Write the leaderboard of a folder of runs.",
    "findings": "Write what cheap ensembles save at equal quality, and what wins at equal cost.",
    "seed-variance": "Measure how far an LDS moves from run seed to run seed.",
    "archive": "Keep runs in a repository, with evidence in place of scores.",
    "ground-truth": "Build, merge, verify or show the ground truth of a task.",
    "wandb": "Copy the results of a folder of runs to Weights & Biases.",
}


class _LazyGroup(click.Group):
    """A group that knows its commands by name and imports them when they are used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module = importlib.import_module(f"tdabench.cli.{_COMMANDS[cmd_name]}")
        command: click.Command = getattr(module, cmd_name.replace("-", "_"))
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(_HELP.items()))


@click.command(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="tdabench")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def cli(debug: bool) -> None:
    """Benchmark training data attribution: quality against cost, on ground truth that anyone can verify.

    Start with `tdabench suite quick`; it needs no download.
    """


def main(args: list[str] | None = None) -> None:
    """Run the command line and exit; errors of ours are one line on stderr and exit code 2."""
    words = sys.argv[1:] if args is None else args
    _open_streams()
    _leave_torch_its_own_kernels()
    try:
        _check_folder()
        with _until_nobody_reads():
            code = cli.main(words, prog_name="tdabench", standalone_mode=False)
        if isinstance(code, int):  # click returns a command's exit code instead of raising it
            sys.exit(code)
    except click.exceptions.Exit as done:
        sys.exit(done.exit_code)
    except click.ClickException as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # click 8.2 and later; not a mistake, a question
            error.show()
            sys.exit(error.exit_code)
        path = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else "tdabench"
        _say(f"Error: {error.format_message()} Type `{path} --help`.")
        sys.exit(2)
    except (KeyboardInterrupt, click.Abort) as error:
        _say("Interrupted. What was finished is kept; give the same command to go on.")
        cause = error.__cause__  # click raises its Abort from it
        sys.exit(cause.exit_code if isinstance(cause, Terminated) else 130)
    except (TdabenchError, OSError, RuntimeError) as error:
        hint = "" if isinstance(error, TdabenchError) else _hint(error)
        if "--debug" in words or hint is None:
            raise
        _say(f"Error: {error}{hint}")
        sys.exit(2)


@contextlib.contextmanager
def _until_nobody_reads() -> Iterator[None]:
    """End as a program does whose output is cut short, by ``head`` for one; click would say that a run failed."""
    try:
        yield
    except SystemExit:
        if "PacifyFlush" in type(sys.stdout).__name__:  # what click puts in place of a pipe that was closed
            sys.exit(128 + signal.SIGPIPE)
        raise


def _open_streams() -> None:
    """Let any text be printed: to a terminal that has not all letters, and to one that was closed."""
    for name in ("stdout", "stderr"):
        stream: Any = getattr(sys, name)
        if stream is None:
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115 - closed with the process
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def _leave_torch_its_own_kernels() -> None:
    """Keep torch, imported later, from compiling products on CUDA: for builds and plans as for runs.

    It would ask in Python before every batched product whether to, and need a C compiler where it does.
    """
    os.environ.setdefault("TORCH_DISABLE_NATIVE_JIT", "1")


def _check_folder() -> None:
    """Refuse a current folder that was removed, before a library ends the process for it."""
    try:
        Path.cwd()
    except FileNotFoundError:
        raise UsageError("The folder that you are in was removed. Go to another one.") from None


def _hint(error: OSError | RuntimeError) -> str | None:
    """Return what to do about an error that tells of the user's disk; None for one that is a defect of ours."""
    from tdabench.files import FULL, UNUSABLE

    number = error.errno if isinstance(error, OSError) else None
    if number in UNUSABLE or str(error).startswith("Symlink loop"):  # the latter from Path.resolve
        return ". Give another path."
    if number in {*FULL, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST}:
        return ". Free some space, or choose a folder that you can write to."
    if number in {errno.EMFILE, errno.ENFILE}:
        return ". Let more files be open at a time (ulimit -n), or give fewer at once."
    if number in {errno.ENOENT, errno.ENOTEMPTY, errno.ESTALE}:
        return ". Another program has changed the folder meanwhile. Give the command again."
    if number == errno.EIO:
        return ". The disk, or the way to it, is damaged. Choose a folder on another one."
    return None


def _say(text: Any) -> None:
    from tdabench.formats import printable

    print(printable(" ".join(str(text).split("\n"))), file=sys.stderr)
