"""Runs with their quality, and the configurations that they are of: everything that decides a run but its seed."""

from __future__ import annotations

import hashlib
import json
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean
from typing import TYPE_CHECKING

from tdabench.records import Record
from tdabench.results.axes import Axis
from tdabench.results.prices import Price
from tdabench.results.seed_draws import SeedDraws, alone, over_seeds
from tdabench.results.seed_variance import SeedVariance, stream_of
from tdabench.seeds import MOST_SEED

if TYPE_CHECKING:  # evaluating loads scipy, showing does not
    from tdabench.bootstrap import Draws
    from tdabench.evaluation import Evaluation

_SEED_BITS = MOST_SEED.bit_length()
_DIGITS = 12
"""Significant ones of a cost: far more than clocks have, and fewer than sums of the same times agree in."""


@dataclass(frozen=True)
class Run:
    """One measured execution of a method on a task.

    Attributes
    ----------
    evaluation
        None unless the run ended as ok, on a task whose ground truth is at hand.
    no_score
        Why there is none, where the record and the task do not say it; else empty.
    lent_to
        The machine class that its LDS counts for where it was measured on another one
        (:mod:`tdabench.results.lending`); else empty.
    """

    record: Record
    evaluation: Evaluation | None = None
    no_score: str = ""
    lent_to: str = ""

    @property
    def reason(self) -> str:
        """Why it did not end as ok, or has no LDS all the same; empty where nothing is known of that."""
        return self.record.reason or self.no_score

    @property
    def counts_for(self) -> str:
        """The machine class whose configurations it is of."""
        return self.lent_to or self.record.machine.machine_class

    @property
    def lds(self) -> float | None:
        """The LDS, or None where the run has none that can be compared."""
        if self.record.status != "ok" or self.evaluation is None or not math.isfinite(self.evaluation.lds):
            return None
        return self.evaluation.lds


def computation(record: Record) -> tuple[str, ...]:
    """Return what decides a run's scores but its seed, as far as all machines compute alike."""
    ensemble = "" if record.ensemble is None else json.dumps(record.ensemble.model_dump(), sort_keys=True)
    options = json.dumps(record.options, sort_keys=True)
    code, versions = record.provenance.method_sha256, json.dumps(record.versions, sort_keys=True)
    return record.task, record.task_version, record.method, code, versions, options, ensemble


def configuration(record: Record, machine_class: str = "") -> tuple[str, ...]:
    """Return what runs of one configuration share: what decides what they compute, are charged and compare with.

    Parameters
    ----------
    machine_class
        That of the configuration, where the run is lent to it; else the run's own.
    """
    task, version, *made = computation(record)
    return task, version, machine_class or record.machine.machine_class, *made


def configuration_name(record: Record) -> str:
    """Name a configuration: readable first, unique by the hash of what its runs share."""
    return f"{record.label} {hashlib.sha256(json.dumps(configuration(record)).encode()).hexdigest()[:10]}"


def by_configuration(runs: Iterable[Run]) -> list[tuple[Run, ...]]:
    """Group runs, each group by seed, without those that were measured again; the order given does not matter."""
    groups: dict[tuple[str, ...], dict[int, list[Run]]] = defaultdict(lambda: defaultdict(list))
    for run in sorted(runs, key=lambda run: (run.record.seed, run.record.run_id, run.record.to_json())):
        groups[configuration(run.record, run.counts_for)][run.record.seed].append(run)
    return [
        tuple(run for repeated in seeds.values() for run in _that_count(repeated))
        for _, seeds in sorted(groups.items())
    ]


def _that_count(repeated: Sequence[Run]) -> Sequence[Run]:
    """Return which runs of one seed count: of the newest sources of tdabench, on an idle machine where one was.

    Of those with an LDS, where one has it: a newer run without says less than an older one. Those that say why they
    have none stay.
    """
    ended = [run for run in repeated if run.record.status == "ok"]
    able = [run for run in ended if run.lds is not None] or ended
    if len(able) < 2:
        return repeated
    newest = max(able, key=lambda run: (run.record.created, run.record.run_id)).record.provenance.sources_sha256
    alike = [run for run in able if run.record.provenance.sources_sha256 == newest]
    kept = [run for run in alike if not run.record.busy()] or alike
    beaten = {id(run) for run in able} - {id(run) for run in kept}
    return [run for run in repeated if id(run) not in beaten]


def _luck(run: Run) -> int:
    """Return a number for a run's models: equal where they are, at one seed on one machine class with one torch.

    By a hash, so that a configuration's draws do not depend on what stands beside it.
    """
    made_by = stream_of([run.counts_for, run.record.versions.get("torch", "")])
    return run.record.seed + (made_by << _SEED_BITS)


def models_of(record: Record) -> int:
    """Return how many independently trained models a run averages over; 1 where its ensemble does not say."""
    models = None if record.ensemble is None else record.ensemble.options.get("models")
    return models if isinstance(models, int) and models >= 1 else 1


def draws_of(runs: Sequence[Run], variance: SeedVariance | None = None) -> SeedDraws:
    """Return the draws of the mean LDS over run seeds, of runs that all have been evaluated; at least one.

    Parameters
    ----------
    runs
        Of one configuration.
    variance
        The task's, for what few seeds cannot tell.
    """
    by_seed: dict[int, list[Draws]] = defaultdict(list)
    for run in runs:
        if run.evaluation is not None:
            by_seed[_luck(run)].append(run.evaluation.draws)
    if variance is None:
        return over_seeds(by_seed)
    stream, models = stream_of(configuration(runs[0].record, runs[0].counts_for)), models_of(runs[0].record)
    draw = partial(alone, stream=stream, own=variance.own, shared=variance.shared, models=models)
    return over_seeds(by_seed, {seed: draw(seed, n=len(found[0].both)) for seed, found in by_seed.items()})


def mean_over_seeds(values: Iterable[tuple[int, float]]) -> float:
    """Return the mean over run seeds of (seed, value) pairs, at least one; repetitions of a seed weigh as one run."""
    by_seed: dict[int, list[float]] = defaultdict(list)
    for seed, value in values:
        by_seed[seed].append(value)
    return fmean(map(fmean, by_seed.values()))


def mean_of_known(values: Iterable[tuple[int, float | None]]) -> float | None:
    """Return the mean over run seeds of those values that are known; None where none is."""
    known = [(seed, value) for seed, value in values if value is not None]
    return mean_over_seeds(known) if known else None


def mean_cost(runs: Iterable[Run], axis: Axis, price: Price | None) -> float | None:
    """Return what a configuration cost, the mean over run seeds, its models at a price; None if it was not measured.

    Rounded, so that costs that are equal but for the order in which they were summed are equal: the mean of three runs
    that cost the same may differ from each in its last bit, and a front would tell them apart.
    """
    cost = mean_of_known((run.record.seed, axis.of(run.record, price)) for run in runs)
    return None if cost is None else float(f"{cost:.{_DIGITS - 1}e}")
