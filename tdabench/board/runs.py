"""Runs with their quality, and the configurations that they are of: everything that decides a run but its seed."""

from __future__ import annotations

import hashlib
import json
import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING

from tdabench.board.seed_draws import SeedDraws, over_seeds
from tdabench.records import Record

if TYPE_CHECKING:  # evaluating loads scipy, showing does not
    from tdabench.bootstrap import Draws
    from tdabench.evaluation import Evaluation


@dataclass(frozen=True)
class Run:
    """One measured execution of a method on a task.

    Attributes
    ----------
    evaluation
        None unless the run ended as ok, on a task whose ground truth is at hand.
    """

    record: Record
    evaluation: Evaluation | None = None

    @property
    def lds(self) -> float | None:
        """The LDS, or None where the run has none that can be compared."""
        if self.record.status != "ok" or self.evaluation is None or not math.isfinite(self.evaluation.lds):
            return None
        return self.evaluation.lds


def configuration(record: Record) -> tuple[str, ...]:
    """Return what runs of one configuration share: what decides what they compute, are charged and compare with."""
    ensemble = "" if record.ensemble is None else json.dumps(record.ensemble.model_dump(), sort_keys=True)
    options = json.dumps(record.options, sort_keys=True)
    code, versions = record.provenance.method_sha256, json.dumps(record.versions, sort_keys=True)
    machine = record.machine.machine_class
    return record.task, record.task_version, machine, record.method, code, versions, options, ensemble


def configuration_name(record: Record) -> str:
    """Name a configuration: readable first, unique by the hash of what its runs share."""
    return f"{record.label} {hashlib.sha256(json.dumps(configuration(record)).encode()).hexdigest()[:10]}"


def by_configuration(runs: Iterable[Run]) -> list[tuple[Run, ...]]:
    """Group runs, each group by seed; neither depends on the order given."""
    groups: dict[tuple[str, ...], list[Run]] = defaultdict(list)
    for run in sorted(runs, key=lambda run: (run.record.seed, run.record.run_id, run.record.to_json())):
        groups[configuration(run.record)].append(run)
    return [tuple(group) for _, group in sorted(groups.items())]


def draws_of(runs: Iterable[Run]) -> SeedDraws:
    """Return the draws of the mean LDS over run seeds, of runs that all have been evaluated; at least one."""
    by_seed: dict[int, list[Draws]] = defaultdict(list)
    for run in runs:
        if run.evaluation is not None:
            by_seed[run.record.seed].append(run.evaluation.draws)
    return over_seeds(by_seed)


def mean_over_seeds(values: Iterable[tuple[int, float]]) -> float:
    """Return the mean over run seeds of (seed, value) pairs, at least one; repetitions of a seed weigh as one run."""
    by_seed: dict[int, list[float]] = defaultdict(list)
    for seed, value in values:
        by_seed[seed].append(value)
    return fmean(map(fmean, by_seed.values()))


def mean_of_known(values: Iterable[tuple[int, float | None]]) -> float | None:
    """Return the same of those values that are known; None where none is."""
    known = [(seed, value) for seed, value in values if value is not None]
    return mean_over_seeds(known) if known else None
