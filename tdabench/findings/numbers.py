"""The findings as numbers, for those who draw or test instead of read; the document's, and those it has no room for."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from tdabench.findings.curves import ABOVE, BELOW, Bounded
from tdabench.findings.entries import Contest, Entry, Family, contests_of
from tdabench.findings.savings import CLAIMS, Gain, Verdict, gains, verdicts
from tdabench.findings.winners import Winner, duel, strongest, winners
from tdabench.results.axes import AXES
from tdabench.results.runs import Run
from tdabench.results.tasks import TaskInfo

_BOUNDS = {BELOW: "below the curve", ABOVE: "at least"}


def numbers(runs: Iterable[Run], tasks: Sequence[TaskInfo]) -> list[dict[str, Any]]:
    """Return what was found on every task and machine class, as JSON holds it.

    Costs are in seconds and bytes, savings are shares, and infinity is null. A value and its ends carry a
    ``bound`` where the curve of independent ensembles ends: ``at least``, or ``below the curve`` (worse than a model).
    """
    return [_contest(contest) for contest in contests_of(runs, tasks)]


def _contest(contest: Contest) -> dict[str, Any]:
    ladder = strongest(contest.families)
    price, judged = contest.price, verdicts(contest)
    return {
        "task": contest.task.name,
        "task_version": contest.task.version,
        "machine_class": contest.machine.machine_class,
        "ceiling": contest.task.ceiling,
        "model_train_s": None if price is None else price.seconds,
        "trainings": 0 if price is None else price.n,
        "methods": [_family(family, judged) for family in contest.families],
        "winners": [] if ladder is None else _winners(ladder, contest.entries),
    }


def _family(family: Family, judged: Sequence[Verdict]) -> dict[str, Any]:
    found = {gain.entry: gain for gain in gains(family)}
    return {
        "method": family.name,
        "options": family.entries[0].record.options,
        "code": family.entries[0].code,
        "claim": {v.axis: v.outcome for v in judged if v.family.name == family.name},
        "ensembles": [_entry(entry, family, found.get(entry)) for entry in family.entries],
        "winners": _winners(family, family.entries) if len(family.curve) > 1 else [],
    }


def _entry(entry: Entry, family: Family, gain: Gain | None) -> dict[str, Any]:
    low, high = entry.interval
    return {
        "name": entry.name,
        "ensemble": None if entry.record.ensemble is None else entry.ensemble,
        "kind": entry.flavour,
        "models": entry.models,
        "members": entry.members,
        "seeds": list(entry.seeds),
        "runs": [record.run_id for record in entry.records],
        "lent": [run.record.run_id for run in entry.lent],
        "lds": entry.lds,
        "low": low,
        "high": high,
        "costs": dict(entry.costs),
        "equal_lds": None if gain is None else _gain(gain),
        "equal_cost": None if gain is None else {axis: _duel(entry, family, axis) for axis in CLAIMS},
    }


def _gain(gain: Gain) -> dict[str, Any]:
    return {
        "models": _bounded(gain.size),
        "saved": {axis.key: _bounded(gain.savings[axis.key]) for axis in AXES},
        "claim": {axis: gain.outcome(axis) for axis in CLAIMS} | {"all": gain.whole},
        "one_seed": gain.one_seed,
    }


def _bounded(found: Bounded) -> dict[str, Any]:
    values = {"value": found.value, "low": found.low, "high": found.high}
    places = {"bound": found.place, "low_bound": found.low_place, "high_bound": found.high_place}
    return {k: _finite(v) for k, v in values.items()} | {k: _BOUNDS.get(v) for k, v in places.items()}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _duel(entry: Entry, family: Family, axis: str) -> dict[str, Any]:
    found = duel(entry, family, axis)
    value, low, high = found.difference
    ends = {"difference": value, "low": low, "high": high}
    return {"outcome": found.outcome, "models": found.size, **ends, "cost_ratio": _finite(found.excess)}


def _winners(ladder: Family, entries: Sequence[Entry]) -> list[dict[str, Any]]:
    return [_winner(winner) for axis in CLAIMS for winner in winners(entries, ladder.curve, axis)]


def _winner(winner: Winner) -> dict[str, Any]:
    return {
        "cost": winner.axis,
        "budget": winner.budget.costs[winner.axis],
        "budget_of": winner.budget.name,
        "within": winner.n,
        "best": winner.best.name,
        "lds": winner.best.lds,
        "level": [entry.name for entry in winner.level],
    }
