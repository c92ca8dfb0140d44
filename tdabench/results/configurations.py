"""Configurations: everything that decides a run but its seed, with the runs that differ in it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from tdabench.records import Record
from tdabench.results.axes import Axis
from tdabench.results.prices import Price
from tdabench.results.runs import Run, draws_of, mean_cost, mean_of_known, models_of
from tdabench.results.seed_draws import SeedDraws
from tdabench.results.seed_variance import SeedVariance

Size = tuple[float, float]
"""(models, members per model)."""


@dataclass(frozen=True, eq=False)
class Configuration:
    """A method with its code, its options and its ensemble, on a task's version and a machine class.

    Attributes
    ----------
    runs
        By seed, at least one of the machine class; repetitions of a seed are its mean. Those that are lent to it count
        for its LDS alone.
    price
        What training a model costs on the task and machine class; None where training costs what was measured.
    variance
        The task's seed variance; None where it is not known.
    """

    runs: tuple[Run, ...]
    price: Price | None = None
    variance: SeedVariance | None = None

    @property
    def record(self) -> Record:
        """The first run's on its machine class; of what it says, the configuration is that of all."""
        return self.own[0].record

    @cached_property
    def own(self) -> tuple[Run, ...]:
        """The runs on its machine class."""
        return tuple(run for run in self.runs if not run.lent_to)

    @cached_property
    def measured(self) -> tuple[Run, ...]:
        """The runs that its costs are the mean of: those with an LDS; without any, those that ended as ok; else all."""
        able = [run for run in self.own if run.record.status == "ok"]
        return tuple([run for run in able if run.lds is not None] or able or self.own)

    @cached_property
    def scored(self) -> tuple[Run, ...]:
        """The runs that its LDS is the mean of: those, and what is lent to it."""
        return *self.measured, *(run for run in self.runs if run.lent_to)

    @cached_property
    def draws(self) -> SeedDraws | None:
        """Draws of the LDS, over run seeds where there are several; None where there is no LDS."""
        return draws_of(self.scored, self.variance) if self.measured[0].lds is not None else None

    @property
    def lds(self) -> float | None:
        """The LDS, the mean over run seeds; None where no run has one that can be compared."""
        return None if self.draws is None else self.draws.estimate

    @cached_property
    def interval(self) -> tuple[float, float]:
        """Its 95 % interval over subsets and queries, and over run seeds where there are several; else no numbers."""
        return (math.nan, math.nan) if self.draws is None else self.draws.interval(within=1.0)

    def mean(self, read: Callable[[Run], float | None]) -> float | None:
        """Return the mean over run seeds of what ``read`` finds in a run here; None where it finds nothing in any."""
        return mean_of_known((run.record.seed, read(run)) for run in self.measured)

    def _mean_of_scored(self, read: Callable[[Run], float | None]) -> float | None:
        """Return the same of what follows from scores and members, with what is lent."""
        return mean_of_known((run.record.seed, read(run)) for run in self.scored)

    def cost(self, axis: Axis) -> float | None:
        """Return what it cost, the mean over run seeds; None if it was not measured."""
        return mean_cost(self.measured, axis, self.price)

    @property
    def seeds_counted(self) -> frozenset[int]:
        """The run seeds that its LDS is the mean of."""
        return frozenset(run.record.seed for run in self.scored)

    @cached_property
    def auroc(self) -> float | None:
        """How well it finds wrong labels, the mean over run seeds; None where none are known."""
        return self._mean_of_scored(lambda run: run.evaluation.mislabel_auroc if run.evaluation else None)

    @cached_property
    def correlations(self) -> tuple[float | None, float | None]:
        """How members correlate within and between models, the mean over run seeds; None where that is not known."""
        within = self._mean_of_scored(lambda run: found.within if (found := run.record.correlations) else None)
        between = self._mean_of_scored(lambda run: found.between if (found := run.record.correlations) else None)
        return within, between

    @property
    def models(self) -> int:
        """How many independently trained models it averages over; 1 where its ensemble does not say."""
        return models_of(self.record)

    @property
    def members(self) -> int:
        """How many members its ensemble has."""
        return self.record.members

    @property
    def untuned(self) -> str:
        """How the options that can be tuned were set where no tuning chose them; empty where one did, or none can."""
        sources = {run.record.options_from for run in self.runs}
        if "tuned" in sources:  # the options of all runs are the same, so these are the ones that were chosen
            return ""
        return {"defaults": "at defaults", "given": "set by hand"}.get(self.record.options_from or "", "")

    @property
    def size(self) -> Size | None:
        """How many models, and members of each; None where its ensemble does not say."""
        ensemble = self.record.ensemble
        models = 1 if ensemble is None else ensemble.options.get("models")
        if not isinstance(models, int) or models < 1 or self.members % models:
            return None
        return float(models), self.members / models
