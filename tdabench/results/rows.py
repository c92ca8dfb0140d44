"""Rows: configurations with their runs, ranked, and the fronts that they are on."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from tdabench.ensembles import KINDS, SIZES, format_ensemble, without_defaults
from tdabench.front import pareto_front
from tdabench.records import Record
from tdabench.results.axes import AXES
from tdabench.results.configurations import Configuration
from tdabench.results.prices import Price, price_of
from tdabench.results.runs import Run, by_configuration, configuration
from tdabench.results.seed_draws import SeedDraws, rank_groups
from tdabench.results.tasks import TaskInfo


@dataclass(frozen=True)
class Row(Configuration):
    """A row of the board: a configuration, ranked.

    Attributes
    ----------
    rank_group
        1 is best; rows that share a group are not distinguishable from its best. None where rows were not ranked.
    """

    rank_group: int | None = None

    @property
    def seeds(self) -> str:
        """How many run seeds the row is the mean of, in words; empty where it is a single run of its only seed."""
        there, counted, n_runs = {run.record.seed for run in self.runs}, self.seeds_counted, len(self.scored)
        if len(there) == n_runs == 1:
            return ""
        missing = f"{len(counted)} of " if counted < there else ""
        repeated = f", {n_runs} runs" if n_runs > len(counted) else ""
        n_lent = n_runs - len(self.measured)
        return f"{missing}{len(there)} seed{'s' * (len(there) > 1)}{repeated}{f', {n_lent} lent' if n_lent else ''}"

    @property
    def status(self) -> str:
        """How the runs ended: ``ok`` where one did, else each way."""
        found = sorted({run.record.status for run in self.runs})
        return "ok" if "ok" in found else ", ".join(found)

    @property
    def reason(self) -> str:
        """Why runs did not end as ok, or have no LDS, with their seeds where a row has several; empty where all do."""
        return "; ".join(self.told([[run.reason] if run.reason else [] for run in self.runs]))

    def warnings(self) -> list[str]:
        """Say what a reader of the LDS must know of any run."""
        return self.told([run.evaluation.warnings() if run.evaluation else [] for run in self.runs])

    def told(self, said: Sequence[Sequence[str]]) -> list[str]:
        """Return what is said of each run, with the seeds that it is said of, where that is not all."""
        seeds: dict[str, list[str]] = defaultdict(list)
        for run, texts in zip(self.runs, said, strict=True):
            for text in texts:
                seeds[text].append(str(run.record.seed))
        whole = len(self.runs)
        return [t if len(s) == whole else f"seed{'s' * (len(s) > 1)} {', '.join(s)}: {t}" for t, s in seeds.items()]

    @property
    def kind(self) -> str:
        """The kind of the ensemble, or ``none``."""
        return "none" if self.record.ensemble is None else self.record.ensemble.kind

    @property
    def variant(self) -> str:
        """The ensemble's sizes, and its options that are not at their default."""
        ensemble = self.record.ensemble
        if ensemble is None:
            return ""
        return format_ensemble(ensemble.kind, ensemble.options).removeprefix(f"{ensemble.kind}(").removesuffix(")")

    @property
    def sizes(self) -> dict[str, int]:
        """The ensemble's options that count members."""
        options = self.record.ensemble.options if self.record.ensemble else {}
        counts = {k: v for k, v in options.items() if isinstance(v, int) and not isinstance(v, bool)}
        guessed = self.kind not in KINDS  # of another version: its size is what equals the number of members
        return {k: v for k, v in counts.items() if k in SIZES or (guessed and v == self.record.members)}

    @property
    def flavour(self) -> str:
        """What makes the ensemble another one than its kind's default, briefly: ``q-only``, ``rank=4``."""
        ensemble = self.record.ensemble
        if ensemble is None:
            return ""
        shown = without_defaults(ensemble.kind, ensemble.options)
        words = {k: v if isinstance(v, str) else f"{k}={v}" for k, v in shown.items() if k not in self.sizes}
        return " ".join(words.values())

    @property
    def times(self) -> str:
        """The size: ``×20`` of one model or of twenty, ``5×4`` of five models with four members each."""
        models, members = self.sizes.get("models", 1), self.record.members
        if 1 < models < members and members % models == 0:
            return f"{models}×{members // models}"
        return f"×{members}"

    @property
    def short(self) -> str:
        """Method, ensemble and size: what a label on a chart has room for."""
        if self.record.ensemble is None:
            return self.record.method
        return " ".join(filter(None, (self.record.method, "·", self.kind, self.flavour, self.times)))


def on_fronts(rows: Sequence[Row]) -> list[frozenset[str]]:
    """Return, for each row, the keys of the axes on whose front it is.

    A row competes with those of its task, task version and machine class, and with no others.
    """
    contests: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for i, row in enumerate(rows):
        if row.lds is not None:
            contests[_contest(row.record)].append(i)
    keys: list[set[str]] = [set() for _ in rows]
    for members in contests.values():
        for axis in AXES:
            front = pareto_front([rows[i].lds for i in members], [rows[i].cost(axis) for i in members])
            for i, on_it in zip(members, front, strict=True):
                if on_it:
                    keys[i].add(axis.key)
    return [frozenset(k) for k in keys]


def rows_of(runs: Iterable[Run], tasks: Iterable[TaskInfo] = ()) -> list[Row]:
    """Join runs into rows, one a configuration, and rank those of a task and version that have an LDS.

    Models have one price on a task and machine class, so that no row is cheaper than another by luck. Runs that are
    lent (:mod:`tdabench.results.lending`) join the row that they are lent to, which must be among the runs.

    Parameters
    ----------
    tasks
        Say how far an LDS moves from seed to seed, for rows of one seed.
    """
    variances = {(task.name, task.version): task.seed_variance for task in tasks}
    groups = by_configuration(runs)
    prices = _prices(run.record for group in groups for run in group if not run.lent_to)
    rows = [
        Row(group, price=prices[task, version, machine_class], variance=variances.get((task, version)))
        for group in groups
        for task, version, machine_class, *_ in [configuration(group[0].record, group[0].counts_for)]
    ]
    contests: dict[tuple[str, str], dict[int, SeedDraws]] = defaultdict(dict)
    for i, row in enumerate(rows):
        if row.draws is not None:
            contests[_version(row.record)][i] = row.draws
    for found in contests.values():
        for i, group in zip(found, rank_groups(list(found.values())), strict=True):
            rows[i] = replace(rows[i], rank_group=group)
    return rows


def _prices(records: Iterable[Record]) -> dict[tuple[str, ...], Price | None]:
    contests: dict[tuple[str, ...], list[Record]] = defaultdict(list)
    for record in records:
        contests[_contest(record)].append(record)
    return {contest: price_of(found) for contest, found in contests.items()}


def _version(record: Record) -> tuple[str, str]:
    return record.task, record.task_version


def _contest(record: Record) -> tuple[str, ...]:
    return *_version(record), record.machine.machine_class


Measured = TypeVar("Measured", Run, Row)


def in_order(measured: Iterable[Measured]) -> list[Measured]:
    """Sort rows, or runs, best first, those without a score last; the same whatever order they came in."""

    def place(one: Measured) -> tuple[object, ...]:
        r = one.record
        score: tuple[int, float] = (1, 0.0) if one.lds is None else (0, -one.lds)
        return r.task, r.task_version, *score, r.label, r.run_id, r.to_json()

    return sorted(measured, key=place)
