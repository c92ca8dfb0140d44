"""How the members of ensembles agree, and the LDS that follows from it, beside what was measured."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass

from tdabench.findings.entries import INDEPENDENT, ONE_MODEL, Entry, Family
from tdabench.results.configurations import Size
from tdabench.results.seed_draws import estimate_beside
from tdabench.saturation import predicted_lds


@dataclass(frozen=True)
class Growth:
    """An ensemble in several sizes.

    Attributes
    ----------
    first, last
        The smallest measured of the flavour, and the largest measured with some number of models (with any, for
        independent ensembles).
    within, between
        Mean correlations of the last one's members, of one model and of different ones, over run seeds; None without
        such pairs.
    at_last, limit
        LDS predicted from the first's, at the run seeds that it shares with the last: at the last one's size, and
        without end (of models for independent ensembles, of members of as many models for others). None where nothing
        follows; the first of them also where only one size was measured, which would foretell itself.
    """

    flavour: str
    first: Entry
    last: Entry
    within: float | None
    between: float | None
    at_last: float | None
    limit: float | None


def growths(family: Family) -> list[Growth]:
    """Return how a method's ensembles grow: for each flavour whose records carry correlations, and number of models.

    More members of a model are one way to grow, more models another, so a curve has one of them fixed.
    """
    groups: dict[str, list[Entry]] = defaultdict(list)
    for entry in family.entries:
        groups[INDEPENDENT if entry.kind == ONE_MODEL else entry.flavour].append(entry)
    found = []
    for flavour, entries in groups.items():
        entries.sort(key=lambda e: (e.models, e.members))
        largest = {None if flavour == INDEPENDENT else entry.models: entry for entry in entries}
        found += [_growth(flavour, entries[0], last) for last in largest.values()]
    return [growth for growth in found if growth is not None]


def _growth(flavour: str, first: Entry, last: Entry) -> Growth | None:
    (within, between), size, largest = last.correlations, first.size, last.size
    if (within is None and between is None) or size is None or largest is None:
        return None
    end: Size = (math.inf, 1.0) if flavour == INDEPENDENT else (largest[0], math.inf)
    start = estimate_beside(first.draws, last.draws)
    at_last, limit = (predicted_lds(start, size, to, within, between) for to in (largest, end))
    return Growth(flavour, first, last, within, between, None if first is last else at_last, limit)
