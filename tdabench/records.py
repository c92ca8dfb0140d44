"""The record of a run: what was run, what it cost, on what machine. Facts only, never quality.

The record is the file border, so it is validated strictly: an unknown field or a value of another type is an error.
Quality is not in it: :mod:`tdabench.evaluation` computes it from the scores.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from tdabench.ensembles import format_ensemble
from tdabench.errors import FileFormatError
from tdabench.files import MISSING, reading_errors
from tdabench.registry import is_task_name
from tdabench.seeds import MOST_SEED
from tdabench.validation import faults

SCHEMA_VERSION: Literal[2] = 2
RECORD_FILE = "record.json"
SCORES_FILE = "scores.safetensors"
LOG_FILE = "log.txt"
PACKAGES = ("torch", "torchvision", "numpy", "scipy", "pandas", "scikit-learn", "safetensors")
"""Packages whose versions every record holds; beside them, that of a library that the method calls."""
BUSY_SHARE = 0.9
"""Share of its time below which a single thread did not have the processor to itself."""
_LEAST_WAIT_S = 0.01  # shorter ones are of the disk and the clocks
MORE_THREADS = 1.1
"""Of the threads that a run was given: so many in use are more than rounding of the clocks."""
_LEAST_MORE_S = 0.1
_SERVING = ("fit", "attribute")
_SHOWN = 3

Status = Literal["ok", "declined", "failed", "timeout", "out-of-memory"]
ENDED_WELL: tuple[Status, ...] = ("ok", "declined")
"""That a method declines a task is a result too."""
OptionsFrom = Literal["tuned", "defaults", "given"]
MOST = 10**18
"""Of seconds, bytes and whatever is counted: more than any run takes, and not too much to reckon with."""
OptionValue = bool | Annotated[int, Field(ge=-MOST, le=MOST)] | float | str | None
Seconds = Annotated[float, Field(ge=0, le=MOST)]
Count = Annotated[int, Field(ge=0, le=MOST)]
RunSeed = Annotated[int, Field(ge=0, le=MOST_SEED)]


class Strict(BaseModel):
    """Base of all file schemas: no unknown fields, no silent conversions, finite, immutable."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


class Costs(Strict):
    """What a run cost. Times are seconds of wall clock, sizes are bytes."""

    train_s: Seconds
    """Measured time of training every model and adapter the run used, each alone, from nothing; banks of retrained
    models together.

    Checkpoints of one training run are charged once."""
    extra_train_s: Seconds
    """The same for a user who already has one trained model: ``train_s`` less that model.

    A model does not give the checkpoints of the run that led to it, so a run that they are taken of stays charged."""
    fit_s: Seconds
    attribute_s: Seconds
    tune_s: Seconds | None
    """Time spent on choosing the options on the tuning queries; 0 where they were not chosen so.

    None where they were chosen on another machine class, whose seconds do not compare."""
    wall_s: Seconds
    """Wall clock of the run itself; the phases add up to it."""
    peak_host_bytes: Count
    """Peak resident memory less the resident memory before the method started."""
    baseline_host_bytes: Count
    peak_device_bytes: Count | None = None
    """Peak memory allocated on the CUDA device; None on a CPU."""
    reserved_device_bytes: Count | None = None
    storage_bytes: Count
    """What must be kept to serve a new query: checkpoints, adapters and what fit left."""

    @property
    def serve_s(self) -> float:
        """Serving time: fit and attribute."""
        return self.fit_s + self.attribute_s


class Ingredients(Strict):
    """What a run was made of, counted; independent of the machine."""

    models_trained: Count
    adapters_trained: Count
    forward_examples: Count
    """Examples passed forward through a model, gradient passes included."""
    backward_examples: Count
    """Examples whose gradient was taken."""


class TrainingRecord(Strict):
    """What training one model, run, adapter or part of a bank took, alone: seconds."""

    wall_s: Seconds
    cpu_s: Seconds
    """Of the process, all threads together."""


class EnsembleRecord(Strict):
    """Which ensemble, and how many members it counts: of dropout for the Q factor alone, the masks that it averages."""

    kind: str
    options: dict[str, OptionValue]
    members: int = Field(ge=1, le=MOST)

    @property
    def text(self) -> str:
        """The ensemble in the one way that it is written, however it was given."""
        return format_ensemble(self.kind, self.options)


class CorrelationsRecord(Strict):
    """How the members' scores correlate: Pearson over training examples, averaged over queries and pairs."""

    within: float | None = Field(ge=-1, le=1)
    """Of members of one attribution model; None where no model has two."""
    between: float | None = Field(ge=-1, le=1)
    """Of members of different attribution models; None where there is one model."""
    n_within_pairs: Count
    n_between_pairs: Count


class ScoresRecord(Strict):
    """The score file that evaluation reads."""

    sha256: str
    shape: list[Count]
    dtype: str


class Machine(Strict):
    """The hardware, without host or user names."""

    machine_class: str
    """Fingerprint inside which times may be compared."""
    cpu: str
    cores: Count
    threads: Count
    memory_bytes: Count
    device: str
    device_name: str | None = None
    budget_bytes: Count | None = None
    """What runs on a CPU were to stay below where that is not the default; part of the machine class."""
    product_precision: Literal["float32"] | None = None
    """Where the user wanted products of gradients in float32 on every task; part of the machine class."""


class Provenance(Strict):
    """Which code and inputs made the run."""

    tdabench_version: str
    commit: str | None
    dirty: bool | None
    sources_sha256: str
    """Short hash of the code of tdabench that runs share; the method's own is below."""
    method_sha256: str
    data_sha256: str
    python: str
    packages: dict[str, str]
    matmul_precision: str
    seeds: dict[str, list[RunSeed]]
    """The run's seed: streams of attribution models, masks and projections are named by it."""


class Record(Strict):
    """One measured execution of a method on a task."""

    schema_version: Literal[2] = SCHEMA_VERSION
    run_id: str
    created: str
    """UTC, ISO 8601."""
    task: str
    task_version: str
    method: str
    options: dict[str, OptionValue]
    options_from: OptionsFrom | None = None
    """Where the options that can be tuned come from: ``tdabench tune``, the method's defaults, or the user's hand.

    None where the method has none that can be tuned."""
    ensemble: EnsembleRecord | None
    seed: RunSeed
    status: Status
    reason: str | None = None
    """Why the run did not end as ok; None when it did."""
    process_s: Seconds
    """Wall clock of the run's process from start to end, imports and training included; known whatever the status."""
    costs: Costs | None = None
    phases: dict[str, Seconds] = Field(default_factory=dict)
    cpu_phases: dict[str, Seconds] = Field(default_factory=dict)
    """Processor seconds of the process in each phase, all threads together; ``phases`` are wall clock."""
    trainings: dict[str, TrainingRecord] = Field(default_factory=dict)
    """What ``train_s`` is the sum of, by the name that a trained model is kept under."""
    ingredients: Ingredients | None = None
    correlations: CorrelationsRecord | None = None
    """None where there is one member, or where members have no scores of their own."""
    scores: ScoresRecord | None = None
    machine: Machine
    provenance: Provenance
    command: str
    """What replays the run."""

    @field_validator("task")
    @classmethod
    def _is_name(cls, task: str) -> str:
        """Refuse a file: whoever reads somebody else's record would run its code."""
        if not is_task_name(task):
            raise ValueError("a task's name is no path")
        return task

    @model_validator(mode="after")
    def _is_complete(self) -> Record:
        """Hold an ok run to what evaluation and the board read, and any other to a reason."""
        if self.status == "ok" and None in (self.costs, self.ingredients, self.scores):
            raise ValueError("a run that ended as ok has costs, ingredients and scores")
        if self.status != "ok" and not self.reason:
            raise ValueError(f"a run that ended as {self.status} has a reason")
        return self

    @property
    def label(self) -> str:
        """Method and ensemble in one line, as the board and the terminal print them."""
        if self.ensemble is None:
            return self.method
        return f"{self.method} + {self.ensemble.text}"

    @property
    def members(self) -> int:
        """How many members the ensemble counts; 1 without an ensemble."""
        return 1 if self.ensemble is None else self.ensemble.members

    @property
    def versions(self) -> dict[str, str]:
        """The versions of torch and of a library that the method calls: what decides, beside code, what it computes."""
        found = self.provenance.packages
        return {name: found[name] for name in sorted(found) if name == "torch" or name not in PACKAGES}

    def busy(self) -> dict[str, float]:
        """Return the processor's share of the times that were taken while the machine did other work too.

        By what they are of: ``serving``, and each training. Only one thread on a processor can be judged so: several
        wait for each other, and for an accelerator. A method that sleeps looks the same.
        """
        if self.machine.device != "cpu" or self.machine.threads != 1:
            return {}
        times = {"serving": self._serving} | {f"training {n}": (t.wall_s, t.cpu_s) for n, t in self.trainings.items()}
        return {what: cpu / wall for what, (wall, cpu) in times.items() if _waited(wall, cpu)}

    @property
    def _serving(self) -> tuple[float, float]:
        """Wall and processor seconds of serving."""
        wall, cpu = (sum(spent.get(phase, 0.0) for phase in _SERVING) for spent in (self.phases, self.cpu_phases))
        return wall, cpu

    def threads_used(self) -> float | None:
        """Return how many threads serving had on average, where that is more than the run was given; else None."""
        (wall, cpu), given = self._serving, self.machine.threads
        if self.machine.device != "cpu" or cpu < MORE_THREADS * given * wall or cpu - given * wall < _LEAST_MORE_S:
            return None
        return cpu / wall

    def warnings(self) -> list[str]:
        """Say what a reader of the times must know."""
        said = []
        if shares := [f"{share:.0%} of {what}" for what, share in self.busy().items()]:
            more = f" and {len(shares) - _SHOWN} more" if len(shares) > _SHOWN else ""
            said.append(
                f"The machine was busy: the process had the processor for {', '.join(shares[:_SHOWN])}{more}. "
                "Its times are too long."
            )
        if (used := self.threads_used()) is not None:
            said.append(
                f"Serving kept {used:.1f} threads at work, and the run was given {self.machine.threads}: "
                "its times compare with none of that machine class."
            )
        return said

    def to_json(self) -> str:
        """Return the file's text: sorted keys, no NaN, one trailing newline, so equal records are equal bytes."""
        return json.dumps(self.model_dump(mode="json"), indent=2, sort_keys=True, allow_nan=False) + "\n"


def _waited(wall_s: float, cpu_s: float) -> bool:
    return cpu_s < BUSY_SHARE * wall_s and wall_s - cpu_s > _LEAST_WAIT_S


def read_record(folder: Path) -> Record:
    """Read ``record.json`` of a run folder.

    Raises
    ------
    FileFormatError
        If the file is missing, truncated, or does not follow the schema; every problem is listed.
    """
    path = folder / RECORD_FILE
    with reading_errors(path):
        try:
            text = path.read_text(encoding="utf-8")
        except MISSING:
            raise FileFormatError(
                f"{folder} is not a run folder: it has no {RECORD_FILE}. Give the folder that `tdabench run` printed."
            ) from None
        except (IsADirectoryError, UnicodeDecodeError) as error:
            raise FileFormatError(f"Cannot read {path}: {error}.") from error
    return parse_record(text, path)


def parse_record(text: str, where: Path) -> Record:
    """Validate the text of a record; ``where`` is named in the error."""
    try:
        return Record.model_validate_json(text)
    except ValidationError as error:
        if any(e["loc"] == ("schema_version",) and _is_newer(e["input"]) for e in error.errors()):
            raise FileFormatError(f"{where} was written by a newer tdabench than this one. Update tdabench.") from error
        raise FileFormatError(
            f"{where} is not a valid record ({'; '.join(faults(error))}). Remove its folder, and run the method again."
        ) from error


def _is_newer(version: object) -> bool:
    return isinstance(version, int) and version > SCHEMA_VERSION
