"""What the board is made of: runs with their quality, tasks, and the costs that quality is held against."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from tdabench.ensembles import format_ensemble
from tdabench.front import pareto_front
from tdabench.records import Costs, Record


class EvaluationLike(Protocol):
    """What the board reads of an evaluation; properties, so that frozen classes fit."""

    @property
    def lds(self) -> float:
        """Mean over queries."""

    @property
    def low(self) -> float:
        """Lower end of the 95 % interval."""

    @property
    def high(self) -> float:
        """Upper end of it."""

    @property
    def n_queries(self) -> int:
        """Queries averaged over."""

    @property
    def n_subsets(self) -> int:
        """Subsets ranked."""

    @property
    def constant_queries(self) -> int:
        """Queries that count 0 because nothing varies."""

    @property
    def negated_better(self) -> bool:
        """The sign is probably wrong."""

    @property
    def above_ceiling(self) -> bool:
        """Better than a perfect method should be."""

    @property
    def ceiling(self) -> float | None:
        """The LDS that a perfect method would reach; None where unknown."""

    @property
    def mislabel_auroc(self) -> float | None:
        """How well wrong labels are found; None where they are not known."""

    def warnings(self) -> list[str]:
        """Say what a reader of the LDS must know."""


@dataclass(frozen=True)
class TaskInfo:
    """What the board says about a task.

    Attributes
    ----------
    n_queries
        Queries that the LDS is averaged over.
    n_subsets, n_seeds
        Retrainings behind the ground truth: subsets times seeds.
    ceiling
        LDS that a perfect method would reach; None where it cannot be estimated.
    reliability
        Split-half reliability of the ground truth, in [-1, 1]; None likewise.
    left_out
        What a suite did not run on the task, and why.
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


@dataclass(frozen=True)
class Row:
    """One run.

    Attributes
    ----------
    evaluation
        None unless the run ended as ok.
    rank_group
        1 is best; runs that share a group are not distinguishable. None where runs were not ranked.
    """

    record: Record
    evaluation: EvaluationLike | None = None
    rank_group: int | None = None

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
    def lds(self) -> float | None:
        """The LDS, or None where the run has none that can be compared."""
        if self.record.status != "ok" or self.evaluation is None or not math.isfinite(self.evaluation.lds):
            return None
        return self.evaluation.lds

    @property
    def short(self) -> str:
        """Method, kind of ensemble and size: what a label on a chart has room for."""
        if self.record.ensemble is None:
            return self.record.method
        return f"{self.record.method} · {self.kind} ×{self.record.members}"


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

    def value(self, row: Row) -> float | None:
        """Return what the run cost, or None if it was not measured."""
        return None if row.record.costs is None else self.cost(row.record.costs)

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
    """Return, for each run, the keys of the axes on whose front it is.

    A run competes with the runs of its task, task version and machine class, and with no others.
    """
    contests: dict[tuple[str, str, str], list[int]] = defaultdict(list)
    for i, row in enumerate(rows):
        if row.lds is not None:
            contests[row.record.task, row.record.task_version, row.record.machine.machine_class].append(i)
    keys: list[set[str]] = [set() for _ in rows]
    for members in contests.values():
        for axis in AXES:
            front = pareto_front([rows[i].lds for i in members], [axis.value(rows[i]) for i in members])
            for i, on_it in zip(members, front, strict=True):
                if on_it:
                    keys[i].add(axis.key)
    return [frozenset(k) for k in keys]


def in_order(rows: Sequence[Row]) -> list[Row]:
    """Sort rows best first, runs without a score last; the same whatever order they came in."""

    def place(row: Row) -> tuple[object, ...]:
        r = row.record
        score = (1, 0.0) if row.lds is None else (0, -row.lds)
        return r.task, r.task_version, *score, r.label, r.run_id, r.to_json()

    return sorted(rows, key=place)


def names(rows: Sequence[Row]) -> list[str]:
    """Name runs as briefly as tells them apart: method and size, then the options that differ, the machine, the run."""
    chosen = [row.short for row in rows]
    chosen = _tell_apart(rows, chosen, _options)
    chosen = _tell_apart(
        rows, chosen, lambda row: {"": f"on {row.record.machine.device_name or row.record.machine.cpu}"}
    )
    return _tell_apart(rows, chosen, lambda row: {"": f"run {row.record.run_id}"})


def _tell_apart(rows: Sequence[Row], chosen: Sequence[str], facts: Callable[[Row], dict[str, str]]) -> list[str]:
    """Add, to names that several runs share, the facts in which those runs differ."""
    sharing: dict[str, list[int]] = defaultdict(list)
    for i, name in enumerate(chosen):
        sharing[name].append(i)
    named = list(chosen)
    for name, members in sharing.items():
        known = [facts(rows[i]) for i in members]
        keys = dict.fromkeys(key for fact in known for key in fact)
        differing = [key for key in keys if len({fact.get(key) for fact in known}) > 1]
        for i, fact in zip(members, known, strict=True):
            said = ", ".join(fact[key] for key in differing if key in fact)
            named[i] = f"{name} ({said})" if said else name
    return named


def _options(row: Row) -> dict[str, str]:
    ensemble = row.record.ensemble
    options = {**(ensemble.options if ensemble else {}), **row.record.options, "seed": row.record.seed}
    return {key: f"{key}={value}" for key, value in options.items()}


NO_VALUE = "–"


def format_score(value: float | None) -> str:
    """Write an LDS: three decimals, a true minus sign, no minus before zero."""
    if value is None or not math.isfinite(value):
        return NO_VALUE
    return f"{round(value, 3) + 0.0:.3f}".replace("-", "−")


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
