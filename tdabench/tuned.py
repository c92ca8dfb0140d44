"""Tuned options: chosen once for a method on a task, stored with the task, and charged to the runs that use them.

A choice holds for one version of the task, one method's code and one grid of values. It is used whole or not at all:
options that were found together are not the best of their kind one by one.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import ValidationError

from tdabench.errors import FileFormatError
from tdabench.files import read_json, storage_errors, write_text
from tdabench.records import OptionValue, Seconds, Strict
from tdabench.validation import faults

if TYPE_CHECKING:
    from tdabench.jobs import Job
    from tdabench.task import Task

TUNED_FILE = "tuned.json"
#: Folder of the candidates' run folders, inside the folder of runs.
CANDIDATES_FOLDER = ".tuning"
#: Candidates that a method may have measured.
BUDGET = 12
Grid = dict[str, tuple[Any, ...]]


class Candidate(Strict):
    """Options that were tried, and their LDS on the tuning queries."""

    options: dict[str, OptionValue]
    tuning_lds: float | None
    """None if it did not end as ok: a damping that is too small for a method is a finding, not an end."""
    charged_s: Seconds
    """Serving time; all the time of its process if it did not end as ok, as no other is known then."""


class Tuned(Strict):
    """The choice for one method on one task."""

    task_version: str
    method_sha256: str
    grid: dict[str, list[OptionValue]]
    """The values of each option that were there to try."""
    options: dict[str, OptionValue]
    """What was found, and what was set beside it."""
    tune_s: Seconds
    """What all candidates are charged with, on the machine class below."""
    machine_class: str
    budget: int = BUDGET
    """How many candidates could be measured; the same for all methods that are compared."""
    seed: int = 0
    """Of the runs that the candidates were measured in."""
    attributed: Literal["all", "tuning"] = "all"
    """Which queries the candidates attributed, and are charged for; all queries in choices that do not say."""
    candidates: list[Candidate]

    @property
    def set_by_hand(self) -> set[str]:
        """Options that were set, not searched."""
        return self.options.keys() - self.grid.keys()


def read_tuned(task: Task) -> dict[str, Tuned]:
    """Return the choices that are stored with a task, by method, also those that no longer hold."""
    path = task.folder / TUNED_FILE
    if not path.exists():
        return {}
    hint = f"Remove the file, and tune again with {_command(task)}."
    choices = read_json(path, "file of tuned options", hint)
    if not isinstance(choices, dict):
        raise FileFormatError(f"{path} is not a valid file of tuned options: it holds no choices by method. {hint}")
    found = {}
    for method, choice in choices.items():
        try:
            found[method] = Tuned.model_validate(choice)
        except ValidationError as error:
            why = faults(error, method)[0]
            raise FileFormatError(f"{path} is not a valid file of tuned options: {why}. {hint}") from error
    return found


def _command(task: Task) -> str:
    from tdabench.registry import reference_to

    return f"`tdabench tune {reference_to(task)} METHOD`"


@dataclass(frozen=True)
class Remark:
    """What a user must know of how a method's options were chosen.

    Attributes
    ----------
    what, advice
        What it is, and what to do; the same for all methods that it is true of.
    method
        As the user typed it.
    """

    what: str
    method: str
    advice: str


def lines(remarks: Iterable[Remark]) -> list[str]:
    """Return remarks as text, a line for all methods that share one."""
    methods: dict[tuple[str, str], dict[str, None]] = {}
    for remark in remarks:
        methods.setdefault((remark.what, remark.advice), {})[remark.method] = None
    return [f"{what}: {', '.join(found)}. {advice}".rstrip() for (what, advice), found in methods.items()]


def with_tuned_options(job: Job, task: Task, defaults: bool = False) -> tuple[Job, Remark | None]:
    """Return the job with the options that were tuned for the task, charged with the tuning, and what to say of it.

    A choice is used whole or not at all: where an option that is given has another value, none of it is used. Options
    that are given and equal the choice are charged like it.

    Parameters
    ----------
    defaults
        Options that are not given stay at the method's defaults.
    """
    from tdabench import provenance
    from tdabench.jobs import shown
    from tdabench.options import make, values
    from tdabench.registry import find_method

    method = find_method(job.method)
    grid = declared_grid(method)
    if not grid:
        return job, None
    tuned = read_tuned(task).get(shown(job.method))
    problem = _problem(tuned, task, method, grid)
    if tuned is None or problem is not None:
        silent = defaults or (tuned is None and bool(grid.keys() & job.options.keys()))
        return job, None if silent else Remark(f"{task.name}: {problem}", job.method, f"Choose with {_command(task)}.")
    options = job.options if defaults else {**tuned.options, **job.options}
    # Of all options: the best damping, say, was chosen with the others as they were.
    if values(make(method, job.method, options)) != values(make(method, job.method, tuned.options)):
        what = f"{task.name}: what is given differs from the tuned options, so none of these is used"
        return job, None if defaults else Remark(what, job.method, "")
    if defaults and not tuned.options.keys() & job.options.keys():
        return job, None  # the choice was the defaults, and needs none of the tuning
    if tuned.budget != BUDGET:
        what = f"{task.name}: tuned within {tuned.budget} candidates, where others have {BUDGET}"
        remark = Remark(what, job.method, f"To compare it with them, choose with {_command(task)}.")
    else:
        remark = None
    if tuned.machine_class == provenance.machine(job.threads, job.device).machine_class:
        return replace(job, options=options, tune_s=tuned.tune_s), remark
    what = f"{task.name}: tuned on another machine class, so no tuning time is recorded"
    return replace(job, options=options, tune_s=None), Remark(what, job.method, f"Tune here with {_command(task)}.")


def _problem(tuned: Tuned | None, task: Task, method: type[Any], grid: Grid) -> str | None:
    """Return why a choice does not hold for a task and a method as they are now; None if it does."""
    from tdabench.registry import source_sha256

    if tuned is None:
        return "not tuned, so at the defaults"
    changed = {
        "for another version of the task": tuned.task_version != task.version,
        "with other code of the method": tuned.method_sha256 != source_sha256(method),
        "over other values": tuned.grid != {k: list(v) for k, v in grid.items() if k not in tuned.set_by_hand},
    }
    problem = next((what for what, is_so in changed.items() if is_so), None)
    return None if problem is None else f"tuned {problem}, so the choice is not used"


def declared_grid(method: type[Any]) -> Grid:
    """Return the values that a method declares for each option that can be tuned; empty if there is none."""
    from tdabench.options import describe

    return {info.name: info.tune for info in describe(method) if info.tune}


def write_tuned(task: Task, method: str, tuned: Tuned) -> Path:
    """Store the choice with the task, beside those of other methods; another process may store one at the same time."""
    from filelock import FileLock

    from tdabench.jobs import shown

    path = task.folder / TUNED_FILE
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.parent / f".{TUNED_FILE}.lock"):
            write_text(path, _text({**read_tuned(task), shown(method): tuned}))
    return path


def _text(stored: dict[str, Tuned]) -> str:
    """Write a fact a line and a candidate a line, sorted, so that the file and its changes are easy to read."""
    return "{\n" + ",\n".join(f"  {json.dumps(k)}: {_entry(v)}" for k, v in sorted(stored.items())) + "\n}\n"


def _entry(tuned: Tuned) -> str:
    facts = tuned.model_dump(mode="json")
    tried = ",\n".join(f"      {json.dumps(candidate)}" for candidate in facts.pop("candidates"))
    said = [f"    {json.dumps(name)}: {json.dumps(value)}" for name, value in facts.items()]
    return "{\n" + ",\n".join([*said, f'    "candidates": [\n{tried}\n    ]']) + "\n  }"
