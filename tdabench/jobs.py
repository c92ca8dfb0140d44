"""A job: everything that decides a run, as plain values that a fresh process can read."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tdabench import provenance
from tdabench.datasets import cache_folder
from tdabench.errors import UsageError
from tdabench.options import describe, make, values
from tdabench.records import EnsembleRecord, Machine, OptionsFrom, OptionValue
from tdabench.registry import find_method, find_task, source_sha256, split_reference

if TYPE_CHECKING:
    from tdabench.task import Task

RESULT_FILE = "result.json"
"""What the worker leaves for the runner, inside the run folder in the making."""


@dataclass(frozen=True)
class Job:
    """What to run.

    Attributes
    ----------
    task, method
        Registered names, or ``path.py:NAME``.
    options
        Options of the method, as text or values; the rest are at their defaults.
    ensemble
        As ``kind(option=value, ...)``; None for a single model.
    seed
        Seed of the run: attribution models, masks, projections.
    threads
        Threads of the run's process.
    device
        ``cpu`` or ``cuda``.
    data_folder
        Where the user's data sets are; None for the default.
    tune_s
        Seconds that choosing the options has cost; charged to the run. None if they were chosen on another machine
        class, whose seconds do not compare.
    queries
        Which are attributed: all, or for a candidate of a tuning those that it is judged on.
    """

    task: str
    method: str
    options: dict[str, Any]
    ensemble: str | None = None
    seed: int = 0
    threads: int = 1
    device: str = "cpu"
    data_folder: str | None = None
    tune_s: float | None = 0.0
    queries: Literal["all", "tuning"] = "all"

    def to_json(self) -> str:
        """Return the job as the worker reads it."""
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str) -> Job:
        """Return the job that :meth:`to_json` wrote."""
        return Job(**json.loads(text))


@dataclass(frozen=True)
class Plan:
    """A checked job: the parts of its record that are known before it runs."""

    job: Job
    task: Task
    method: str
    options: dict[str, OptionValue]
    options_from: OptionsFrom | None
    ensemble: EnsembleRecord | None
    method_sha256: str
    machine: Machine
    versions: dict[str, str]
    """Of torch, and of the library that the method calls, if it calls one."""

    @property
    def key(self) -> str:
        """Hash of everything that decides what the run computes, is charged, and can be compared with."""
        decides = {
            "task": [self.task.name, self.task.version],
            "method": [self.method, self.method_sha256, self.options],
            "ensemble": self.ensemble.model_dump() if self.ensemble else None,
            "seed": self.job.seed,
            "machine_class": self.machine.machine_class,
            "versions": self.versions,
            # A candidate of the tuning is not the tuned run: only the latter is charged for the tuning.
            **({"tune_s": self.job.tune_s} if self.job.tune_s != 0 else {}),
            **({"queries": self.job.queries} if self.job.queries != "all" else {}),
        }
        return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:10]

    @property
    def run_id(self) -> str:
        """Name of the run folder: readable first, unique by the key."""
        parts = [self.task.name, self.method, *([self.ensemble.text] if self.ensemble else [])]
        words = [re.sub(r"[^A-Za-z0-9.]+", "-", p).strip("-") for p in parts]
        return f"{'--'.join(words)[:120]}--{self.key}"

    @property
    def label(self) -> str:
        """Method and ensemble, for progress lines."""
        return self.method if self.ensemble is None else f"{self.method} + {self.ensemble.text}"

    @property
    def models_folder(self) -> Path:
        """Where the trained models of the task are kept."""
        return models_folder(self.task, self.machine, self.versions["torch"])

    @property
    def command(self) -> str:
        """What replays the run: every option, and what choosing them has cost, whatever is tuned by then.

        That of a candidate measures its options as a run does, on all queries.
        """
        words = ["tdabench", "run", shown(self.job.task), shown(self.job.method)]
        for name, value in self.options.items():
            words += ["--set", f"{name}={value}"]
        if self.options_from is not None:
            words += ["--tune-s", "unknown" if self.job.tune_s is None else str(self.job.tune_s)]
        if self.ensemble is not None:
            words += ["--ensemble", self.ensemble.text]
        words += ["--seed", str(self.job.seed), "--threads", str(self.job.threads), "--device", self.job.device]
        return shlex.join(words)


def models_folder(task: Task, machine: Machine, torch: str) -> Path:
    """Return where trained models of a task's version, a machine class and a version of torch are kept."""
    return cache_folder() / "models" / f"{task.name}-{task.version}" / machine.machine_class / f"torch-{torch}"


def shown(reference: str) -> str:
    """Return a reference without the folders of this machine."""
    parts = split_reference(reference)
    return reference if parts is None else f"{parts[0].name}:{parts[1]}"


def plan(job: Job) -> Plan:
    """Check a job before anything is measured.

    Raises
    ------
    UsageError
        For an unknown task, method, option or ensemble, or a value of the wrong type.
    """
    from tdabench.ensembles import kind_of, parse_ensemble, recorded

    task = find_task(job.task)
    cls = find_method(job.method)
    options = values(make(cls, job.method, job.options))
    record = None
    if job.ensemble is not None:
        _check_wrappable(cls, job)
        ensemble = parse_ensemble(job.ensemble)
        record = EnsembleRecord(kind=kind_of(ensemble), options=recorded(ensemble), members=ensemble.size)
    return Plan(
        job=job,
        task=task,
        method=shown(job.method),
        options=options,
        options_from=_options_from(cls, options, job),
        ensemble=record,
        method_sha256=source_sha256(cls),
        machine=provenance.machine(job.threads, job.device),
        versions=provenance.versions("torch", *([cls.library] if cls.library else [])),
    )


def _options_from(cls: type[Any], options: dict[str, OptionValue], job: Job) -> OptionsFrom | None:
    """Return where the options that can be tuned come from; None where there are none."""
    tunable = [info for info in describe(cls) if info.tune]
    if not tunable:
        return None
    if job.tune_s != 0:
        return "tuned"
    return "defaults" if all(options[info.name] == info.default for info in tunable) else "given"


def _check_wrappable(cls: type[Any], job: Job) -> None:
    from tdabench.method import MemberMethod

    if not issubclass(cls, MemberMethod):
        raise UsageError(
            f"{shown(job.method)} is defined on the whole task, so no ensemble can wrap it. Leave out --ensemble, "
            "or define it per member (tdabench.MemberMethod)."
        )
