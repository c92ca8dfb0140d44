"""The winner at equal cost: who has the highest LDS within a budget, and who cannot be told from it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tdabench.findings.curves import ABOVE, BELOW, INSIDE, tolerance
from tdabench.findings.entries import Entry, Family, ahead
from tdabench.results.seed_draws import SeedDraws, at_shared, combined
from tdabench.results.seed_draws import best_of as first_of

AHEAD, LEVEL, BEHIND = 1, 0, -1
"""How an LDS compares with another, as far as the interval of the difference tells."""


@dataclass(frozen=True)
class Winner:
    """Who wins within the budget of one independent ensemble.

    Attributes
    ----------
    budget
        The ensemble whose cost is the budget.
    axis
        Key of the cost.
    level
        Entries within the budget that the best is not significantly better than, highest LDS first.
    n
        Entries within the budget.
    """

    budget: Entry
    axis: str
    best: Entry
    level: tuple[Entry, ...]
    n: int


@dataclass(frozen=True)
class Duel:
    """A cheap ensemble against independent ones of the same method at the same cost.

    Attributes
    ----------
    lds
        :data:`AHEAD`, :data:`LEVEL` or :data:`BEHIND`: the cheap ensemble's against the independent one's.
    place
        ``BELOW``: a single model, with which the curve starts, costs more; ``ABOVE``: the largest independent ensemble
        costs less, so nothing was measured at the same cost; ``INSIDE``: between.
    size
        Of the independent ensemble at the same cost, between measured ones; the nearest end beyond them.
    difference
        LDS of the cheap ensemble less the independent one's, with the ends of its 95 % interval.
    excess
        What the cheap ensemble costs in units of that independent one.
    """

    lds: int
    place: int
    size: float
    difference: tuple[float, float, float]
    excess: float

    @property
    def outcome(self) -> str:
        """What that means for the cheap ensemble, one of :data:`OUTCOMES`."""
        return _MEANING[self.place][self.lds]


OUTCOMES = (
    "better",
    "level",
    "worse",
    "no better and dearer",
    "better but dearer",
    "cheaper than one model and better",
    "cheaper than one model and level",
    "cheaper than one model and worse",
)
"""Of a duel. "Dearer" is than the largest independent ensemble: where the LDS is better, too, who wins is not known."""
_MEANING = {
    INSIDE: {AHEAD: OUTCOMES[0], LEVEL: OUTCOMES[1], BEHIND: OUTCOMES[2]},
    ABOVE: {AHEAD: OUTCOMES[4], LEVEL: OUTCOMES[3], BEHIND: OUTCOMES[2]},
    BELOW: {AHEAD: OUTCOMES[5], LEVEL: OUTCOMES[6], BEHIND: OUTCOMES[7]},
}


def within(entries: Sequence[Entry], axis: str, budget: float) -> list[Entry]:
    """Return the entries that cost at most the budget, within :func:`~tdabench.findings.curves.tolerance`."""
    return [entry for entry in entries if entry.costs[axis] <= budget * (1 + tolerance(axis))]


def best_of(entries: Sequence[Entry]) -> Entry:
    """Return the entry with the highest LDS of those that no other is significantly better than, at shared seeds.

    The first by name among equals (:func:`tdabench.results.seed_draws.best_of`).
    """
    named = sorted(entries, key=lambda entry: entry.name)
    return named[first_of([entry.draws for entry in named])]


def winners(entries: Sequence[Entry], ladder: Sequence[Entry], axis: str) -> list[Winner]:
    """Return the winner within each budget of a ladder.

    Parameters
    ----------
    entries
        Who competes; the ladder's own entries are among them.
    ladder
        Independent ensembles, whose costs are the budgets.
    axis
        Key of the cost.
    """
    made = []
    for rung in ladder:
        able = within(entries, axis, rung.costs[axis])
        best = best_of(able)
        level = [e for e in able if e is not best and ahead(best, e) <= 0]
        made.append(Winner(rung, axis, best, tuple(sorted(level, key=lambda e: (-e.lds, e.name))), len(able)))
    return made


def best_so_far(curve: Sequence[SeedDraws]) -> list[SeedDraws]:
    """Return, for each size of a curve, the best of those up to it: what a user with that budget would take."""
    best: list[SeedDraws] = []
    for draws in curve:
        best.append(draws if not best or draws.estimate > best[-1].estimate else best[-1])
    return best


def duel(entry: Entry, family: Family, axis: str) -> Duel:
    """Hold an ensemble against its family's curve at its own cost, at the run seeds that they share.

    Between measured sizes the cost is linear in the size, and the LDS in the logarithm of the size; where a larger
    ensemble has a lower LDS than a smaller one, the smaller one counts. The curve starts at a single model
    (:attr:`~tdabench.findings.entries.Family.compares`).
    """
    *knots, own = at_shared([*(knot.draws for knot in family.curve), entry.draws])
    sizes = np.array([knot.members for knot in family.curve], dtype=np.float64)
    costs = np.maximum.accumulate([knot.costs[axis] for knot in family.curve])
    cost = entry.costs[axis]
    size = float(np.interp(cost, costs, sizes))
    draws = own - _at(best_so_far(knots), np.interp(np.log(size), np.log(sizes), np.arange(len(sizes))))
    low, high = draws.interval()
    slack = 1 + tolerance(axis)
    place = BELOW if cost * slack < costs[0] else ABOVE if cost > costs[-1] * slack else INSIDE
    reference = float(np.interp(size, sizes, costs))
    excess = cost / reference if reference > 0 else math.inf if cost > 0 else 1.0
    return Duel(int(low > 0) - int(high < 0), place, size, (draws.estimate, low, high), excess)


def _at(knots: Sequence[SeedDraws], place: float) -> SeedDraws:
    """Return the draws of the curve between two knots; the place is a knot's number and the way to the next."""
    left = min(int(place), len(knots) - 2)
    share = place - left
    return combined([knots[left], knots[left + 1]], [1 - share, share])


def strongest(families: Sequence[Family]) -> Family | None:
    """Return the family whose curve has the most sizes; None without a curve.

    One with other ensembles goes before one without, as a curve alone has nothing to be compared with; among equals,
    the one with the most of them, then the one with the highest LDS.
    """

    def place(family: Family) -> tuple[object, ...]:
        best = max(entry.lds for entry in family.curve)
        return bool(family.others), len(family.curve), len(family.others), best, family.name

    return max((family for family in families if len(family.curve) > 1), key=place, default=None)
