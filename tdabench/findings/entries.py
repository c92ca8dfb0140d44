"""Runs as findings compare them: repetitions joined, and apart by task, task version and machine class."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from tdabench.board.findings import describe_machine
from tdabench.board.rows import AXES, Row, TaskInfo, in_order
from tdabench.bootstrap import Draws
from tdabench.ensembles import KINDS, SIZES, format_ensemble
from tdabench.evaluation import Evaluation
from tdabench.records import Machine, Record

ONE_MODEL = "one model"
INDEPENDENT = "independent"
_ORDER = (ONE_MODEL, *KINDS)


@dataclass(frozen=True, eq=False)
class Entry:
    """A method with its options and its ensemble, measured once or several times (other seeds, repetitions).

    Attributes
    ----------
    records
        Of the runs, at least one.
    draws
        Bootstrap draws of the LDS; of the mean LDS where there are several runs.
    costs
        By the keys of :data:`~tdabench.board.rows.AXES`; means where there are several runs.
    name
        Tells it from the other entries of its contest.
    """

    records: tuple[Record, ...]
    draws: Draws = field(repr=False)
    costs: Mapping[str, float]
    name: str

    @property
    def record(self) -> Record:
        """The first of the records; method, options and ensemble are those of all."""
        return self.records[0]

    @property
    def method(self) -> str:
        """The method's name."""
        return self.record.method

    @property
    def options(self) -> str:
        """The method's options, as text that is equal where they are."""
        return json.dumps(self.record.options, sort_keys=True)

    @property
    def kind(self) -> str:
        """The kind of ensemble, or :data:`ONE_MODEL`."""
        return ONE_MODEL if self.record.ensemble is None else self.record.ensemble.kind

    @property
    def flavour(self) -> str:
        """The kind with the options that make it another ensemble, not another size."""
        if self.record.ensemble is None:
            return ONE_MODEL
        options = {k: v for k, v in self.record.ensemble.options.items() if k not in SIZES}
        return format_ensemble(self.kind, options).removesuffix("()")

    @property
    def ensemble(self) -> str:
        """The ensemble in full."""
        made = self.record.ensemble
        return ONE_MODEL if made is None else format_ensemble(made.kind, made.options)

    @property
    def members(self) -> int:
        """How many members."""
        return self.record.members

    @property
    def models(self) -> int:
        """How many independently trained models; 1 where the ensemble does not say."""
        models = None if self.record.ensemble is None else self.record.ensemble.options.get("models")
        return models if isinstance(models, int) and models >= 1 else 1

    @property
    def lds(self) -> float:
        """The LDS."""
        return self.draws.estimate

    @property
    def interval(self) -> tuple[float, float]:
        """Its 95 % interval over subsets and queries."""
        return self.draws.interval()


@dataclass(frozen=True, eq=False)
class Family:
    """The entries of one method with the same options.

    Attributes
    ----------
    name
        The method, and the options that tell it from other families of the contest.
    curve
        The single model and the independent ensembles, one a size, smallest first; may be empty.
    others
        The other ensembles.
    """

    name: str
    curve: tuple[Entry, ...]
    others: tuple[Entry, ...]

    @property
    def entries(self) -> tuple[Entry, ...]:
        """All of them."""
        return (*self.curve, *self.others)


@dataclass(frozen=True, eq=False)
class Contest:
    """Everything measured on one task and one machine class.

    Attributes
    ----------
    entries
        What has an LDS, ordered by method, ensemble and size.
    without
        Runs that have none: declined, failed, or of an older task version.
    place
        The machine class for people.
    title
        The task's name, and the machine where the task was measured on several.
    """

    task: TaskInfo
    machine: Machine
    entries: tuple[Entry, ...]
    without: tuple[Row, ...]
    place: str
    title: str

    @property
    def families(self) -> list[Family]:
        """Methods with their options, each with its curve and its other ensembles."""
        groups: dict[tuple[str, str], list[Entry]] = defaultdict(list)
        for entry in self.entries:
            groups[entry.method, entry.options].append(entry)
        firsts = [members[0] for _, members in sorted(groups.items())]
        named = zip(_told_apart(firsts, [e.method for e in firsts]), firsts, strict=True)
        return [_family(name, groups[first.method, first.options]) for name, first in named]


def difference(a: Entry, b: Entry) -> tuple[float, float, float]:
    """Return the LDS of ``a`` less that of ``b`` and its 95 % interval, paired over subsets and queries."""
    draws = a.draws - b.draws
    return draws.estimate, *draws.interval()


def ahead(a: Entry, b: Entry) -> int:
    """Return 1 where ``a`` is significantly better than ``b``, -1 where worse, 0 where that cannot be told."""
    _, low, high = difference(a, b)
    return int(low > 0) - int(high < 0)


def contests_of(rows: Iterable[Row], tasks: Sequence[TaskInfo]) -> list[Contest]:
    """Group runs into contests, sorted by task and machine class; the order of the rows does not matter.

    Parameters
    ----------
    rows
        Evaluated runs, as :func:`tdabench.results.read_rows` returns them.
    tasks
        Their tasks; runs of tasks that are not among them are left out.
    """
    known = {task.name: task for task in tasks}
    groups: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in in_order(list(rows)):
        if row.record.task in known:
            groups[row.record.task, row.record.machine.machine_class].append(row)
    made = [_contest(known[task], members) for (task, _), members in sorted(groups.items())]
    return _titled(made)


def _contest(task: TaskInfo, rows: Sequence[Row]) -> Contest:
    groups: dict[tuple[str, str, str], list[Row]] = defaultdict(list)
    for row in rows:
        if _counts(row):
            groups[row.record.method, json.dumps(row.record.options, sort_keys=True), _ensemble_key(row)].append(row)
    entries = sorted((_entry(members) for members in groups.values()), key=_entry_order)
    named = zip(entries, _told_apart(entries, [entry.name for entry in entries]), strict=True)
    machine = rows[0].record.machine
    without = tuple(row for row in rows if not _counts(row))
    return Contest(
        task,
        machine,
        tuple(replace(entry, name=name) for entry, name in named),
        without,
        describe_machine(machine),
        task.name,
    )


def _counts(row: Row) -> bool:
    return isinstance(row.evaluation, Evaluation) and row.record.costs is not None


def _ensemble_key(row: Row) -> str:
    ensemble = row.record.ensemble
    return "" if ensemble is None else json.dumps(ensemble.model_dump(), sort_keys=True)


def _entry(rows: Sequence[Row]) -> Entry:
    draws = [row.evaluation.draws for row in rows if isinstance(row.evaluation, Evaluation)]
    costs = {axis.key: float(np.mean([axis.value(row) for row in rows])) for axis in AXES}
    return Entry(tuple(row.record for row in rows), _mean(draws), costs, rows[0].record.label)


def _mean(draws: Sequence[Draws]) -> Draws:
    """Return the draws of the mean of several runs, which all met the same resamples."""
    if len(draws) == 1:
        return draws[0]
    parts = (np.mean([getattr(d, name) for d in draws], axis=0) for name in ("subsets", "queries", "both"))
    return Draws(float(np.mean([d.estimate for d in draws])), *parts)


def _entry_order(entry: Entry) -> tuple[object, ...]:
    place = _ORDER.index(entry.kind) if entry.kind in _ORDER else len(_ORDER)
    return entry.method, place, entry.flavour, entry.models, entry.members, entry.options, entry.ensemble


def _told_apart(entries: Sequence[Entry], names: Sequence[str]) -> list[str]:
    """Add, to names that several entries share, the options in which they differ."""
    sharing: dict[str, list[Entry]] = defaultdict(list)
    for entry, name in zip(entries, names, strict=True):
        sharing[name].append(entry)
    told = []
    for entry, name in zip(entries, names, strict=True):
        others = [other.record.options for other in sharing[name]]
        differing = [k for k, v in entry.record.options.items() if any(o.get(k) != v for o in others)]
        said = ", ".join(f"{k}={entry.record.options[k]}" for k in differing)
        told.append(f"{name} ({said})" if said else name)
    return told


def _family(name: str, entries: Sequence[Entry]) -> Family:
    curve: dict[int, Entry] = {}
    for entry in entries:  # the single model comes before an independent ensemble of one
        if entry.kind in (ONE_MODEL, INDEPENDENT):
            curve.setdefault(entry.members, entry)
    others = tuple(e for e in entries if e.kind not in (ONE_MODEL, INDEPENDENT))
    return Family(name, tuple(curve[size] for size in sorted(curve)), others)


def _titled(contests: Sequence[Contest]) -> list[Contest]:
    """Name the machine where a task has several, and its class where even descriptions are the same."""
    titled = []
    for contest in contests:
        same = [c.place for c in contests if c.task.name == contest.task.name]
        place = contest.place if same.count(contest.place) == 1 else f"{contest.place}, {contest.machine.machine_class}"
        title = contest.title if len(same) == 1 else f"{contest.title}, on {place}"
        titled.append(replace(contest, title=title, place=place))
    return titled
