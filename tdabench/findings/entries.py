"""Runs as findings compare them: seeds joined; apart by task, its version, machine class, code and library versions."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

from tdabench.ensembles import KINDS, SIZES, format_ensemble
from tdabench.records import Machine, Record
from tdabench.results.axes import AXES
from tdabench.results.configurations import Configuration
from tdabench.results.prices import Price, price_of
from tdabench.results.rows import in_order
from tdabench.results.runs import Run, by_configuration, draws_of
from tdabench.results.seed_draws import SeedDraws, at_shared, direction
from tdabench.results.seed_draws import difference as difference_of
from tdabench.results.tasks import TaskInfo
from tdabench.results.words import apart, describe_machine

ONE_MODEL = "one model"
INDEPENDENT = "independent"
_ORDER = (ONE_MODEL, *KINDS)


@dataclass(frozen=True, eq=False)
class Entry(Configuration):
    """A configuration with an LDS and costs, measured once or several times (other seeds, repetitions).

    Attributes
    ----------
    name
        Tells it from the other entries of its contest.
    variant
        What tells its ensemble from one that reads the same, in brackets; else empty. A record of another version may
        lack an option that is at its default here, which is not written.
    """

    name: str = ""
    variant: str = ""

    @property
    def records(self) -> tuple[Record, ...]:
        """Of the runs on its machine class, by seed."""
        return tuple(run.record for run in self.own)

    @cached_property
    def draws(self) -> SeedDraws:
        """Draws of the LDS, over run seeds where there are several."""
        return draws_of(self.runs, self.variance)

    @cached_property
    def costs(self) -> Mapping[str, float]:
        """By the keys of :data:`~tdabench.results.axes.AXES`; means over run seeds, models at their price.

        Raises
        ------
        ValueError
            If a cost was not measured. Such runs do not count (:func:`counts`), and none of theirs is zero.
        """
        found = {axis.key: cost for axis in AXES if (cost := self.cost(axis)) is not None}
        if len(found) < len(AXES):
            raise ValueError(f"The costs of {self.record.label} were not measured, so that its runs do not count.")
        return found

    @property
    def method(self) -> str:
        """The method's name."""
        return self.record.method

    @property
    def options(self) -> str:
        """The method's options, as text that is equal where they are."""
        return json.dumps(self.record.options, sort_keys=True)

    @property
    def code(self) -> str:
        """The hash of the method's file, which is that of all runs."""
        return self.record.provenance.method_sha256

    @property
    def versions(self) -> dict[str, str]:
        """The versions of torch and of the method's library that all runs were made with."""
        return self.record.versions

    @property
    def seeds(self) -> tuple[int, ...]:
        """The run seeds."""
        return tuple(sorted({run.record.seed for run in self.runs}))

    @property
    def lent(self) -> tuple[Run, ...]:
        """The runs of other machine classes that count for its LDS."""
        return tuple(run for run in self.runs if run.lent_to)

    @property
    def kind(self) -> str:
        """The kind of ensemble, or :data:`ONE_MODEL`."""
        return ONE_MODEL if self.record.ensemble is None else self.record.ensemble.kind

    @cached_property
    def flavour(self) -> str:
        """The kind with the options that make it another ensemble, not another size."""
        if self.record.ensemble is None:
            return ONE_MODEL
        options = {k: v for k, v in self.record.ensemble.options.items() if k not in SIZES}
        return format_ensemble(self.kind, options).removesuffix("()")

    @cached_property
    def ensemble(self) -> str:
        """The ensemble in full."""
        made = self.record.ensemble
        return ONE_MODEL if made is None else made.text

    @property
    def asked_rank(self) -> int | None:
        """The rank that was asked for of its adapters; None for what has none."""
        rank = self.record.ensemble.options.get("rank") if self.record.ensemble is not None else None
        return rank if isinstance(rank, int) and self.kind == "lora" else None

    @property
    def lds(self) -> float:
        """The LDS."""
        return self.draws.estimate


@dataclass(frozen=True, eq=False)
class Family:
    """The entries of one method with the same code and options.

    Attributes
    ----------
    name
        The method, and what tells it from other families of the contest: options, or the code's hash.
    curve
        The single model and the independent ensembles, one a size, smallest first; may be empty.
    others
        The other ensembles.
    doubles
        Independent ensembles of a size that the curve has already: of one model beside the single model.
    """

    name: str
    curve: tuple[Entry, ...]
    others: tuple[Entry, ...]
    doubles: tuple[Entry, ...] = ()

    @property
    def method(self) -> str:
        """The method's name, which other families of the contest may share."""
        return self.entries[0].method

    @property
    def entries(self) -> tuple[Entry, ...]:
        """All of them."""
        return (*sorted((*self.curve, *self.doubles), key=lambda entry: entry.members), *self.others)

    @property
    def from_one(self) -> bool:
        """Whether the curve starts at one model, which an ensemble must be as good as to save anything."""
        return bool(self.curve) and self.curve[0].members == 1

    @property
    def enough(self) -> Entry:
        """The smallest of the curve, which must not be empty, that no larger one is significantly better than."""
        return next(e for i, e in enumerate(self.curve) if all(ahead(more, e) <= 0 for more in self.curve[i + 1 :]))

    @property
    def compares(self) -> bool:
        """Whether other ensembles can be held against the curve: one model, and independent ones beside it."""
        return self.from_one and len(self.curve) > 1

    @property
    def sources(self) -> frozenset[str]:
        """Hashes of the sources of tdabench that they were measured with."""
        return frozenset(record.provenance.sources_sha256 for entry in self.entries for record in entry.records)


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
    price
        What training a model costs; None where no run tells.
    """

    task: TaskInfo
    machine: Machine
    entries: tuple[Entry, ...]
    without: tuple[Run, ...]
    place: str
    title: str
    price: Price | None = None

    def rank(self, entry: Entry) -> int | None:
        """Return the rank that an entry's adapters have, which no layer lets be larger than its smaller side.

        None for what has no adapters, and where the model is not known.
        """
        asked, highest = entry.asked_rank, max(self.task.adapter_ranks, default=None)
        return None if asked is None or highest is None else min(asked, highest)

    @cached_property
    def families(self) -> list[Family]:
        """Methods with their code, library versions and options, each with its curve and its other ensembles."""
        groups: dict[tuple[str, ...], list[Entry]] = defaultdict(list)
        for entry in self.entries:
            groups[entry.method, entry.options, entry.code, *entry.versions.values()].append(entry)
        families = [members for _, members in sorted(groups.items())]
        names = [members[0].method for members in families]
        told = apart(names, [_facts(members[0]) for members in families])
        return [_family(f"{name}{said}", found) for name, said, found in zip(names, told, families, strict=True)]


@lru_cache(maxsize=4096)  # tables ask for the same pairs again and again
def difference(a: Entry, b: Entry) -> tuple[float, float, float]:
    """Return the LDS of ``a`` less that of ``b`` and its 95 % interval, paired over subsets, queries and seeds.

    At the run seeds that both have, so it need not be the difference of the two LDS where one has more.
    """
    return difference_of(a.draws, b.draws)


def ahead(a: Entry, b: Entry) -> int:
    """Return 1 where ``a`` is significantly better than ``b``, -1 where worse, 0 where that cannot be told."""
    return direction(difference(a, b))


def knows_luck(a: Entry, b: Entry) -> bool:
    """Return whether the interval of their difference holds the variation between trained models."""
    return all(draws.knows_luck for draws in at_shared([a.draws, b.draws]))


def contests_of(runs: Iterable[Run], tasks: Sequence[TaskInfo]) -> list[Contest]:
    """Group runs into contests, sorted by task and machine class; the order of the runs does not matter.

    Parameters
    ----------
    runs
        Evaluated runs, as :func:`tdabench.results.reading.read_runs` returns them, and what is lent to them.
    tasks
        Their tasks; runs of tasks that are not among them are left out.
    """
    known = {task.name: task for task in tasks}
    groups: dict[tuple[str, str], list[Run]] = defaultdict(list)
    for run in in_order(runs):
        if run.record.task in known:
            groups[run.record.task, run.counts_for].append(run)
    made = [_contest(known[task], members) for (task, _), members in sorted(groups.items())]
    return _titled(made)


def _contest(task: TaskInfo, runs: Sequence[Run]) -> Contest:
    able = [run for run in runs if counts(run)]
    groups = by_configuration(able)
    price = _price(run for run in runs if run.record.task_version == task.version and not run.lent_to)
    made = [Entry(members, price, task.seed_variance, members[0].record.label) for members in groups]
    entries = _named(sorted(made, key=_entry_order))
    machine = next(run.record.machine for run in runs if not run.lent_to)
    without = tuple(run for run in runs if not counts(run))
    return Contest(task, machine, entries, without, describe_machine(machine), task.name, price)


def _price(runs: Iterable[Run]) -> Price | None:
    """Return the price of a model over all runs of a task's version, also those without an LDS, as the board does."""
    return price_of(run.record for group in by_configuration(runs) for run in group)


def counts(run: Run) -> bool:
    """Return whether a run has an LDS of the task's current version, and costs."""
    return run.evaluation is not None and run.record.costs is not None


def _entry_order(entry: Entry) -> tuple[object, ...]:
    place = _ORDER.index(entry.kind) if entry.kind in _ORDER else len(_ORDER)
    size, made_by = (entry.models, entry.members), (entry.code, *entry.versions.values())
    return entry.method, place, entry.flavour, *size, entry.options, entry.ensemble, *made_by


def _named(entries: Sequence[Entry]) -> tuple[Entry, ...]:
    """Tell entries apart that have the same name: their ensembles first, then how they were run."""
    variants = apart([entry.name for entry in entries], [_ensemble_facts(entry) for entry in entries])
    names = [f"{entry.name}{variant}" for entry, variant in zip(entries, variants, strict=True)]
    told = zip(entries, names, apart(names, [_facts(entry) for entry in entries]), variants, strict=True)
    return tuple(replace(entry, name=f"{name}{said}", variant=variant) for entry, name, said, variant in told)


def _ensemble_facts(entry: Entry) -> dict[str, str]:
    """Return the options of an ensemble, also those at their default."""
    made = entry.record.ensemble
    return {} if made is None else {name: f"{name}={value}" for name, value in made.options.items()}


def _facts(entry: Entry) -> dict[str, str]:
    """Return how an entry was run: options, the code's hash, library versions."""
    options = {name: f"{name}={value}" for name, value in entry.record.options.items()}
    return options | {"": f"code {entry.code[:6]}"} | {f" {k}": f"{k} {v}" for k, v in entry.versions.items()}


def _family(name: str, entries: Sequence[Entry]) -> Family:
    curve: dict[int, Entry] = {}
    plain = [entry for entry in entries if entry.kind in (ONE_MODEL, INDEPENDENT)]
    for entry in plain:  # the single model comes before an independent ensemble of one
        curve.setdefault(entry.members, entry)
    others = tuple(e for e in entries if e.kind not in (ONE_MODEL, INDEPENDENT))
    doubles = tuple(e for e in plain if e is not curve[e.members])
    return Family(name, tuple(curve[size] for size in sorted(curve)), others, doubles)


def _titled(contests: Sequence[Contest]) -> list[Contest]:
    """Name the machine where a task has several, and its class where even descriptions are the same."""
    titled = []
    for contest in contests:
        same = [c.place for c in contests if c.task.name == contest.task.name]
        place = contest.place if same.count(contest.place) == 1 else f"{contest.place}, {contest.machine.machine_class}"
        title = contest.title if len(same) == 1 else f"{contest.title}, on {place}"
        titled.append(replace(contest, title=title, place=place))
    return titled
