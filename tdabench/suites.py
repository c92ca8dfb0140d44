"""Suites: named lists of runs, in ``suites/*.toml`` or a file of the user's."""

from __future__ import annotations

import tomllib
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, ValidationError, model_validator

from tdabench.errors import FileFormatError, UnknownNameError, UsageError
from tdabench.jobs import Job
from tdabench.records import OptionValue, RunSeed, Strict
from tdabench.registry import find_task, split_reference
from tdabench.validation import faults

_FOLDER = Path(__file__).parent / "suites"


_Seeds = Annotated[list[RunSeed], Field(min_length=1)]


class _Block(Strict):
    """Every method of ``methods`` under every ensemble of ``ensembles``; an empty ensemble is a single model.

    ``options`` are those of all its methods, as ``--set`` gives them: where one differs from the tuned choice, the
    others are at their defaults. ``seeds_by_task`` names tasks that have other seeds than ``seeds``.
    """

    tasks: list[str] = Field(min_length=1)
    methods: list[str] = Field(min_length=1)
    ensembles: list[str] = Field(min_length=1)
    options: dict[str, OptionValue] = Field(default={})
    seeds: _Seeds = Field(default=[0])
    seeds_by_task: dict[str, _Seeds] = Field(default={})

    @model_validator(mode="after")
    def _seeds_are_of_these_tasks(self) -> Self:
        others = sorted(self.seeds_by_task.keys() - set(self.tasks))
        if others:
            raise ValueError(f"seeds_by_task names {others[0]}, which is not among tasks")
        return self


class LeftOut(Strict):
    """What a suite does not run, and why; the board says it."""

    tasks: list[str] = Field(min_length=1)
    what: str
    reason: str


class _File(Strict):
    title: str
    timeout_s: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    run: list[_Block] = Field(min_length=1)
    left_out: list[LeftOut] = Field(default=[])

    @model_validator(mode="after")
    def _leaves_out_of_its_own_tasks(self) -> Self:
        run = {task for block in self.run for task in block.tasks}
        others = sorted({task for entry in self.left_out for task in entry.tasks} - run)
        if others:
            raise ValueError(f"left_out names {others[0]}, which is in no [[run]]")
        return self


@dataclass(frozen=True)
class Suite:
    """A named list of runs.

    ``timeout_s`` are the seconds after which one of them is stopped, unless ``--timeout`` says others.
    """

    name: str
    title: str
    jobs: tuple[Job, ...]
    left_out: tuple[LeftOut, ...] = ()
    timeout_s: float | None = None

    def left_out_of(self, task: str) -> tuple[tuple[str, str], ...]:
        """Return what is left out of a task, and why; the task by its name, also where the suite names its file."""
        return tuple((entry.what, entry.reason) for entry in self.left_out if task in map(_task_name, entry.tasks))

    def only(self, tasks: Collection[str]) -> Suite:
        """Return the runs on some tasks only, each named as in the suite, by its file from here, or by its own name.

        Raises
        ------
        UnknownNameError
            If the suite has no run on one of them.
        """
        known = {job.task for job in self.jobs}
        chosen: set[str] = set()
        for task in tasks:
            # As in the suite, nothing is loaded: a file may be broken that others of its runs are of.
            of_task = {task} if task in known else {reference for reference in known if _names(task, reference)}
            if not of_task:
                raise UnknownNameError(f"task of the suite {self.name}", task, known)
            chosen |= of_task
        return replace(self, jobs=tuple(job for job in self.jobs if job.task in chosen))


def _task_name(reference: str) -> str:
    return reference if split_reference(reference) is None else find_task(reference).name


def _names(typed: str, reference: str) -> bool:
    """Tell whether what a user typed names the task that a suite refers to."""
    named, asked = split_reference(reference), split_reference(typed)
    if named is None or asked is None:
        return typed == _task_name(reference)
    return (asked[0].resolve(), asked[1]) == (named[0].resolve(), named[1])


def suite_names() -> list[str]:
    """Return the names of the suites that ship with tdabench."""
    return sorted(path.stem for path in _FOLDER.glob("*.toml"))


def find_suite(reference: str) -> Suite:
    """Return a suite by its name, or from a ``.toml`` file.

    Raises
    ------
    UnknownNameError, UsageError
        If there is no such suite, or no such file.
    FileFormatError
        If the file is not a suite.
    """
    path = Path(reference) if reference.endswith(".toml") else _FOLDER / f"{reference}.toml"
    if not path.is_file():
        if reference.endswith(".toml"):
            raise UsageError(f"There is no file {path}. A suite is named so, or by one of: {', '.join(suite_names())}.")
        raise UnknownNameError("suite", reference, suite_names(), "A suite of your own is a .toml file.")
    try:
        content = _File.model_validate(tomllib.loads(path.read_text(encoding="utf-8-sig")))
    except (ValueError, RecursionError) as error:  # of TOML, of its letters, of the schema, of absurd numbers
        why = faults(error)[0] if isinstance(error, ValidationError) else str(error).splitlines()[0]
        raise FileFormatError(f"{path} is not a suite: {why}. See {_FOLDER / 'quick.toml'}.") from error
    left_out = [
        entry.model_copy(update={"tasks": [_beside(path, task) for task in entry.tasks]}) for entry in content.left_out
    ]
    return Suite(path.stem, content.title, tuple(_jobs(content, path)), tuple(left_out), content.timeout_s)


def _beside(suite: Path, reference: str) -> str:
    """Return a reference to a file that lies beside the suite, and not in the folder that the command is given in."""
    parts = split_reference(reference)
    if parts is None or parts[0].is_file() or not (suite.parent / parts[0]).is_file():
        return reference
    return f"{suite.parent / parts[0]}:{parts[1]}"


def _jobs(content: _File, path: Path) -> list[Job]:
    return [
        Job(_beside(path, task), _beside(path, method), dict(block.options), ensemble or None, seed)
        for block in content.run
        for task in block.tasks
        for method in block.methods
        for ensemble in block.ensembles
        for seed in block.seeds_by_task.get(task, block.seeds)
    ]
