"""What the board is made of: rows, each a configuration with its runs, tasks, and the costs to hold quality against."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, TypeVar

from tdabench.board.prices import Price, price_of, priced
from tdabench.board.runs import Run, by_configuration, draws_of, lucks_of, mean_of_known
from tdabench.board.seed_draws import SeedDraws, rank_groups
from tdabench.ensembles import KINDS, SIZES, format_ensemble, without_defaults
from tdabench.front import pareto_front
from tdabench.records import Costs, Record


@dataclass(frozen=True)
class TaskInfo:
    """What the board says about a task.

    Attributes
    ----------
    n_queries
        Queries that the LDS is averaged over.
    n_subsets, n_seeds
        Retrainings behind the ground truth: subsets times seeds; 0 subsets where there is none.
    ceiling
        LDS that a perfect method would reach; None where it cannot be estimated.
    reliability
        Reliability of the ground truth's mean over all seeds, in [0, 1], estimated from halves of them; None likewise.
    left_out
        What a suite did not run on the task, and why.
    no_score
        Why runs of the task have no LDS; empty where it has ground truth.
    adapter_ranks
        The highest rank that a LoRA adapter can have, for each layer of the model that takes one; empty if not known.
    """

    name: str
    title: str
    version: str
    description: str
    n_train: int
    n_queries: int
    n_subsets: int
    n_seeds: int
    ceiling: float | None = None
    reliability: float | None = None
    left_out: tuple[tuple[str, str], ...] = ()
    no_score: str = ""
    adapter_ranks: tuple[int, ...] = ()

    @property
    def has_truth(self) -> bool:
        """Whether runs of the task can have an LDS."""
        return self.n_subsets > 0


@dataclass(frozen=True)
class Row:
    """One row of the board: a configuration, whose runs differ in nothing but their seed.

    Attributes
    ----------
    runs
        By seed, at least one; repetitions of a seed are its mean.
    rank_group
        1 is best; rows that share a group are not distinguishable from its best. None where rows were not ranked.
    price
        What training a model costs on the row's task and machine class; None where training costs what was measured.
    luck
        See :func:`tdabench.board.runs.lucks_of`.
    """

    runs: tuple[Run, ...]
    rank_group: int | None = None
    price: Price | None = None
    luck: int = 0

    @property
    def record(self) -> Record:
        """The first run's; of what it says, the configuration is that of all."""
        return self.runs[0].record

    @cached_property
    def measured(self) -> tuple[Run, ...]:
        """The runs that the row is the mean of: those with an LDS; without any, those that ended as ok; else all."""
        able = [run for run in self.runs if run.record.status == "ok"]
        return tuple([run for run in able if run.lds is not None] or able or self.runs)

    @cached_property
    def draws(self) -> SeedDraws | None:
        """Draws of the LDS, over run seeds where there are several; None where there is no LDS."""
        return draws_of(self.measured, self.luck) if self.measured[0].lds is not None else None

    @property
    def lds(self) -> float | None:
        """The LDS, the mean over run seeds; None where no run has one that can be compared."""
        return None if self.draws is None else self.draws.estimate

    @cached_property
    def interval(self) -> tuple[float, float]:
        """Its 95 % interval over subsets and queries, and over run seeds where there are several; else no numbers."""
        return (math.nan, math.nan) if self.draws is None else self.draws.interval(within=1.0)

    def mean(self, read: Callable[[Run], float | None]) -> float | None:
        """Return the mean over run seeds of what ``read`` finds in a run; None where it finds nothing in any."""
        return mean_of_known((run.record.seed, read(run)) for run in self.measured)

    @property
    def seeds_counted(self) -> frozenset[int]:
        """The run seeds that the row is the mean of."""
        return frozenset(run.record.seed for run in self.measured)

    @property
    def seeds(self) -> str:
        """How many run seeds the row is the mean of, in words; empty where it is a single run of its only seed."""
        there, counted, n_runs = {run.record.seed for run in self.runs}, self.seeds_counted, len(self.measured)
        if len(there) == n_runs == 1:
            return ""
        missing = f"{len(counted)} of " if counted < there else ""
        repeated = f", {n_runs} runs" if n_runs > len(counted) else ""
        return f"{missing}{len(there)} seed{'s' * (len(there) > 1)}{repeated}"

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
    def untuned(self) -> str:
        """How the options that can be tuned were set where no tuning chose them; empty where one did, or none can."""
        sources = {run.record.options_from for run in self.runs}
        if "tuned" in sources:  # the options of all runs are the same, so these are the ones that were chosen
            return ""
        return {"defaults": "at defaults", "given": "set by hand"}.get(self.record.options_from or "", "")

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


@dataclass(frozen=True)
class Axis:
    """A cost that quality is held against; less is better.

    Attributes
    ----------
    key
        Short name: in the URL, in column names.
    name, label
        On the control; along the axis of the chart.
    unit
        ``s``, ``B``, or ``members``.
    cost
        Reads the cost from a record's costs.
    """

    key: str
    name: str
    label: str
    unit: Literal["s", "B", "members"]
    cost: Callable[[Costs], float]

    def of(self, record: Record, price: Price | None = None) -> float | None:
        """Return what a run cost, with its models at a price if there is one; None if it was not measured."""
        costs = priced(record, price)
        return None if costs is None else self.cost(costs)

    def value(self, row: Row) -> float | None:
        """Return what a row cost, the mean over its run seeds, or None if it was not measured."""
        return row.mean(lambda run: self.of(run.record, row.price))

    def text(self, value: float | None) -> str:
        """Write a cost for people."""
        return format_seconds(value) if self.unit == "s" else format_bytes(value)


def peak_bytes(costs: Costs) -> int:
    """Return the peak on the device where the run used one, else the peak in the host's memory."""
    return costs.peak_host_bytes if costs.peak_device_bytes is None else costs.peak_device_bytes


AXES = (
    Axis("train", "Training", "training time, from nothing", "s", lambda c: c.train_s),
    Axis("extra", "Training, given a model", "training time, from a trained model", "s", lambda c: c.extra_train_s),
    Axis("serve", "Serving", "serving time (fit + attribute)", "s", lambda c: c.serve_s),
    Axis("total", "Total time", "total time (training + serving)", "s", lambda c: c.train_s + c.serve_s),
    Axis("memory", "Peak memory", "peak memory", "B", peak_bytes),
    Axis("storage", "Storage", "storage kept to serve a new query", "B", lambda c: c.storage_bytes),
)


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
            front = pareto_front([rows[i].lds for i in members], [axis.value(rows[i]) for i in members])
            for i, on_it in zip(members, front, strict=True):
                if on_it:
                    keys[i].add(axis.key)
    return [frozenset(k) for k in keys]


def rows_of(runs: Iterable[Run]) -> list[Row]:
    """Join runs into rows, one a configuration, and rank those of a task and version that have an LDS.

    Models have one price on a task and machine class, so that no row is cheaper than another by luck.
    """
    groups = by_configuration(runs)
    prices = _prices(run.record for group in groups for run in group)
    lucks = lucks_of(groups)
    rows = [
        Row(group, price=prices[_contest(group[0].record)], luck=luck)
        for group, luck in zip(groups, lucks, strict=True)
    ]
    contests: dict[tuple[str, str], dict[int, SeedDraws]] = defaultdict(dict)
    for i, row in enumerate(rows):
        if row.draws is not None:
            contests[row.record.task, row.record.task_version][i] = row.draws
    for found in contests.values():
        for i, group in zip(found, rank_groups(list(found.values())), strict=True):
            rows[i] = replace(rows[i], rank_group=group)
    return rows


def _prices(records: Iterable[Record]) -> dict[tuple[str, ...], Price | None]:
    contests: dict[tuple[str, ...], list[Record]] = defaultdict(list)
    for record in records:
        contests[_contest(record)].append(record)
    return {contest: price_of(found) for contest, found in contests.items()}


def _contest(record: Record) -> tuple[str, ...]:
    return record.task, record.task_version, record.machine.machine_class


Measured = TypeVar("Measured", Run, Row)


def in_order(measured: Iterable[Measured]) -> list[Measured]:
    """Sort rows, or runs, best first, those without a score last; the same whatever order they came in."""

    def place(one: Measured) -> tuple[object, ...]:
        r = one.record
        score: tuple[int, float] = (1, 0.0) if one.lds is None else (0, -one.lds)
        return r.task, r.task_version, *score, r.label, r.run_id, r.to_json()

    return sorted(measured, key=place)


NO_VALUE = "–"


def format_score(value: float | None) -> str:
    """Write an LDS: three decimals, a true minus sign, no minus before zero."""
    if value is None or not math.isfinite(value):
        return NO_VALUE
    return f"{round(value, 3) + 0.0:.3f}".replace("-", "−")


def format_predicted(value: float | None) -> str:
    """Write an LDS that was predicted; more than 1, which none can be, is only said to be more."""
    return "> 1" if value is not None and value > 1 else format_score(value)


def format_seconds(value: float | None) -> str:
    """Write a time with three significant digits in the unit that reads best.

    >>> format_seconds(0.0123), format_seconds(312)
    ('12.3 ms', '5.2 min')
    """
    units = ((1e-6, "µs"), (1e-3, "ms"), (1.0, "s"), (60.0, "min"), (3600.0, "h"), (86400.0, "d"))
    return _scaled(value, units, "0 s", digits=3)


def format_bytes(value: float | None) -> str:
    """Write a size in decimal units: two digits below ten, none after the point above.

    >>> format_bytes(1234567), format_bytes(64e9)
    ('1.2 MB', '64 GB')
    """
    units = ((1.0, "B"), (1e3, "kB"), (1e6, "MB"), (1e9, "GB"), (1e12, "TB"), (1e15, "PB"))
    return _scaled(value, units, "0 B", digits=2)


def format_count(value: float | None) -> str:
    """Write a count: whole below ten thousand, three digits and k, M, G above."""
    if value is not None and value < 10_000:
        return f"{value:,.0f}"
    return _scaled(value, ((1e3, "k"), (1e6, "M"), (1e9, "G"), (1e12, "T")), "0", digits=3)


def _scaled(value: float | None, units: Sequence[tuple[float, str]], zero: str, digits: int) -> str:
    if value is None or not math.isfinite(value):
        return NO_VALUE
    if value == 0:
        return zero
    # The unit is chosen after rounding, so that 0.9999 s reads 1 s and not 1000 ms.
    rounded = float(f"{value:.2e}")
    size, unit = next(((s, u) for s, u in reversed(units) if rounded >= s), units[0])
    number = value / size
    decimals = max(0, digits - 1 - math.floor(math.log10(rounded / size)))
    text = f"{number:.{decimals}f}"
    return f"{text.rstrip('0').rstrip('.') if '.' in text else text} {unit}"
