"""Estimates: what a run will cost, and what it was computed from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tdabench.budgets import budget_bytes

if TYPE_CHECKING:
    from tdabench.calibration import Rates
    from tdabench.jobs import Plan
    from tdabench.work import Parts, Work


@dataclass(frozen=True)
class TrainingEstimate:
    """A training that the run is charged for.

    Attributes
    ----------
    name
        What it is kept under.
    kind
        ``"model"``, ``"run"`` (a model with checkpoints), ``"adapter"`` or ``"bank"`` (models that a method retrains).
    seconds
        What it takes, or took.
    measured
        Whether it was done before on this machine, and its time is known.
    """

    name: str
    kind: str
    seconds: float
    measured: bool = False


@dataclass(frozen=True)
class Estimate:
    """What a run will cost; sizes are bytes.

    Attributes
    ----------
    plan
        The checked job.
    declined
        Why the run would be declined; then nothing else is known.
    parts
        What the ensemble is made of; None for a method on the whole task.
    work
        Counts of all members; None where the method does not say its work.
    rates
        Seconds of one of each.
    fit_s, attribute_s
        Serving.
    trainings
        What is trained; None where a method on the whole task does not say.
    peak_bytes
        Peak memory of fit and attribute.
    process_bytes
        What the process holds before the method begins, which is not the method's: Python, torch, the task's data.
    models_bytes, storage_bytes
        What is stored: models and adapters alone, and with what fit leaves.
    """

    plan: Plan
    declined: str | None = None
    parts: Parts | None = None
    work: Work | None = None
    rates: Rates | None = None
    fit_s: float | None = None
    attribute_s: float | None = None
    trainings: tuple[TrainingEstimate, ...] | None = None
    peak_bytes: int | None = None
    process_bytes: int = 0
    models_bytes: int | None = None
    storage_bytes: int | None = None

    @property
    def train_s(self) -> float | None:
        """Seconds of all trainings, from nothing."""
        return None if self.trainings is None else sum(t.seconds for t in self.trainings)

    @property
    def extra_train_s(self) -> float | None:
        """The same for a user who has one of the models already; a run's checkpoints do not come with a model."""
        if self.trainings is None:
            return None
        first = next((t.seconds for t in self.trainings if t.kind == "model"), 0.0)
        return sum(t.seconds for t in self.trainings) - first

    @property
    def serve_s(self) -> float | None:
        """Fit and attribute."""
        return None if self.fit_s is None or self.attribute_s is None else self.fit_s + self.attribute_s

    @property
    def fits_budget(self) -> bool | None:
        """Whether the process at its peak stays below the budget; None where it is not known, and on a GPU."""
        if self.peak_bytes is None or self.plan.machine.device != "cpu":
            return None
        return self.process_bytes + self.peak_bytes < budget_bytes()


@dataclass(frozen=True)
class Total:
    """What several runs will cost together, each training done once; ``unknown`` counts runs that are not in it.

    ``each`` has the seconds of every run, in their order, a training counting with the first run that needs it;
    runs that nothing is known of count as the mean of the others.
    """

    runs: int
    train_s: float
    serve_s: float
    start_s: float
    unknown: int
    each: tuple[float, ...] = ()

    @property
    def seconds(self) -> float:
        """All of it."""
        return self.train_s + self.serve_s + self.start_s
