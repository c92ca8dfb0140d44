"""The winner at equal cost: who has the highest LDS within a budget, and who cannot be told from it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from tdabench.bootstrap import Draws
from tdabench.findings.entries import Entry, Family, ahead

TOLERANCE = 0.05
"""A run that exceeds a budget by this share is still within it: measured times vary by some per cent."""

Outcome = Literal["ahead", "behind", "level", "alone", "beyond"]


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
        Entries within the budget that are not significantly worse than the best, best first.
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
    outcome
        Of the cheap ensemble. ``alone``: a single model costs more. ``beyond``: it is ahead of the largest independent
        ensemble but costs more, so who wins at its cost is not known.
    size
        Of the independent ensemble at the same cost, between measured ones; the nearest end beyond them.
    difference
        LDS of the cheap ensemble less the independent one's, with the ends of its 95 % interval.
    excess
        What the cheap ensemble costs in units of that independent one.
    """

    outcome: Outcome
    size: float
    difference: tuple[float, float, float]
    excess: float


def within(entries: Sequence[Entry], axis: str, budget: float) -> list[Entry]:
    """Return the entries that cost at most the budget, within :data:`TOLERANCE`."""
    return [entry for entry in entries if entry.costs[axis] <= budget * (1 + TOLERANCE)]


def best_of(entries: Sequence[Entry]) -> Entry:
    """Return the entry with the highest LDS, the first by name among equals."""
    return min(entries, key=lambda entry: (-entry.lds, entry.name))


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
        level = [e for e in able if e is not best and ahead(best, e) == 0]
        made.append(Winner(rung, axis, best, tuple(sorted(level, key=lambda e: (-e.lds, e.name))), len(able)))
    return made


def duel(entry: Entry, family: Family, axis: str) -> Duel:
    """Hold an ensemble against its family's curve at its own cost.

    Between measured sizes the cost is linear in the size, and the LDS in the logarithm of the size.
    """
    sizes = np.array([knot.members for knot in family.curve], dtype=np.float64)
    costs = np.maximum.accumulate([knot.costs[axis] for knot in family.curve])
    cost = entry.costs[axis]
    size = float(np.interp(cost, costs, sizes))
    draws = entry.draws - _at(family, np.interp(np.log(size), np.log(sizes), np.arange(len(sizes))))
    low, high = draws.interval()
    outcome: Outcome = "ahead" if low > 0 else "behind" if high < 0 else "level"
    if cost * (1 + TOLERANCE) < costs[0]:
        outcome = "alone"
    elif cost > costs[-1] * (1 + TOLERANCE) and outcome == "ahead":
        outcome = "beyond"
    reference = float(np.interp(size, sizes, costs))
    return Duel(outcome, size, (draws.estimate, low, high), cost / reference if reference > 0 else math.inf)


def _at(family: Family, place: float) -> Draws:
    """Return the draws of the curve between two knots; the place is a knot's number and the way to the next."""
    left = min(int(place), len(family.curve) - 2)
    share = place - left
    a, b = (family.curve[left + k].draws for k in (0, 1))
    mixed = ((1 - share) * getattr(a, name) + share * getattr(b, name) for name in ("subsets", "queries", "both"))
    return Draws((1 - share) * a.estimate + share * b.estimate, *mixed)


def strongest(families: Sequence[Family]) -> Family | None:
    """Return the family whose curve has the most sizes, and among those the highest LDS; None without a curve."""
    curved = [family for family in families if len(family.curve) > 1]
    return max(curved, key=lambda f: (len(f.curve), max(e.lds for e in f.curve), f.name), default=None)
