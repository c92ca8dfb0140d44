"""The meter of a run: phases, peak memory, ingredients and storage."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from tdabench.correlations import CorrelationMeter
from tdabench.devices import synchronize
from tdabench.memory import PeakMemory
from tdabench.stopwatch import Stopwatch
from tdabench.storage import state_bytes

TRAIN, FIT, ATTRIBUTE = "train", "fit", "attribute"


@dataclass(frozen=True)
class Trained:
    """What training one model, run or adapter cost: measured seconds of training it alone, and bytes to keep it."""

    seconds: float
    storage_bytes: int
    cpu_seconds: float
    """Processor seconds of the process meanwhile: fewer than ``seconds`` on one thread where the machine was busy."""
    models: int = 1
    """How many models; more where a part of a bank is trained at once, and then ``seconds`` are those of all."""


class Meter:
    """Counts what a run uses.

    Parameters
    ----------
    device
        Synchronised at every edge of a timer.
    memory
        Peak memory of the process; None where it is not measured (in tests and notebooks).
    on_phase
        Called with the name of each phase that starts.
    """

    def __init__(
        self,
        device: torch.device | str = "cpu",
        memory: PeakMemory | None = None,
        on_phase: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.models: dict[str, Trained] = {}
        self.runs: dict[str, Trained] = {}
        self.adapters: dict[str, Trained] = {}
        self.banks: dict[str, Trained] = {}
        self.forward_examples = 0
        self.backward_examples = 0
        self.state_bytes = 0
        self.correlations: CorrelationMeter | None = None  # where there are members to compare
        self.memory = memory
        self._on_phase = on_phase
        self._device = torch.device(device)
        note = memory.note if memory is not None else lambda _: None
        self.stopwatch = Stopwatch(partial(synchronize, self._device), on_edge=note)

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Charge the block to a phase."""
        with self.stopwatch.phase(name):
            self._on_phase(name)
            yield

    def count(self, forward: int = 0, backward: int = 0) -> None:
        """Count examples passed forward and backward."""
        self.forward_examples += forward
        self.backward_examples += backward

    def keep(self, state: Any, known: set[int] | None = None) -> None:
        """Count what fit left, to be stored with the models; ``known`` storages are counted already."""
        self.state_bytes += state_bytes(state, known if known is not None else set())

    @property
    def trainings(self) -> dict[str, Trained]:
        """Every training that the run is charged for, by name: models, runs with their checkpoints, adapters, banks.

        A run bears its model's name and ends with the model, so one that is used both ways is charged once, as a run.
        """
        return {**self.models, **self.runs, **self.adapters, **self.banks}

    @property
    def models_trained(self) -> int:
        """How many models were trained, with checkpoints kept on the way or without, those of banks included."""
        return len(self.models.keys() | self.runs.keys()) + sum(t.models for t in self.banks.values())

    @property
    def train_s(self) -> float:
        """Seconds of all trainings, each alone."""
        return sum(t.seconds for t in self.trainings.values())

    @property
    def extra_train_s(self) -> float:
        """The same for a user who has one of the models already, but no checkpoint of the run that led to it."""
        first = next((t for name, t in self.models.items() if name not in self.runs), None)
        return self.train_s - (first.seconds if first else 0.0)

    @property
    def storage_bytes(self) -> int:
        """Bytes of checkpoints, adapters and what fit left."""
        return self.state_bytes + sum(t.storage_bytes for t in self.trainings.values())
