"""The saving at equal LDS: cheap ensembles against the curve of independent ones, and the paper's claim beside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from tdabench.board.rows import AXES
from tdabench.findings.curves import ABOVE, BELOW, Bounded, saving, size_reached
from tdabench.findings.entries import Contest, Entry, Family

CLAIMS: Mapping[str, float] = {"train": 0.80, "serve": 0.60, "storage": 0.80}
"""Shares saved "at similar" quality, by cost: the abstract of arXiv 2405.17293."""
CLAIMED_KINDS = ("dropout", "lora")
"""The kinds of ensemble that the claim is about."""

Outcome = Literal["met", "not met", "cannot be told"]


@dataclass(frozen=True)
class Gain:
    """What a cheap ensemble saves.

    Attributes
    ----------
    size
        Of the independent ensemble that reaches the same LDS.
    savings
        Share saved, by the keys of :data:`~tdabench.board.rows.AXES`.
    """

    entry: Entry
    size: Bounded
    savings: Mapping[str, Bounded]


@dataclass(frozen=True)
class Verdict:
    """The claim about one cost, held against a method's dropout and LoRA ensembles.

    Attributes
    ----------
    axis
        Key of the cost.
    best
        The ensemble that saves most; None where none reaches a single model's LDS.
    n, n_reach, n_miss, n_beyond
        Ensembles tried; those that surely reach the claim; those that surely miss it; those better than the largest
        independent one, whose saving is known from below only.
    """

    contest: Contest
    method: str
    axis: str
    outcome: Outcome
    best: Gain | None
    n: int
    n_reach: int
    n_miss: int
    n_beyond: int


def gains(family: Family) -> list[Gain]:
    """Return what each of a method's other ensembles saves; nothing where no independent ensemble was run.

    The interval is that of the LDS values, which are resampled jointly: in every resample all runs meet the same
    subsets and queries (:meth:`tdabench.bootstrap.Draws.corrected`). Costs were measured once.
    """
    if len(family.curve) < 2:
        return []
    sizes = np.array([entry.members for entry in family.curve], dtype=np.float64)
    lds = np.array([entry.lds for entry in family.curve])
    draws = np.stack([entry.draws.corrected() for entry in family.curve], axis=1)  # [n_resamples, n_sizes]
    found = []
    for entry in family.others:
        targets = entry.draws.corrected()  # [n_resamples]
        savings = {}
        for axis in AXES:
            costs = [knot.costs[axis.key] for knot in family.curve]
            savings[axis.key] = saving(sizes, lds, draws, costs, entry.lds, targets, entry.costs[axis.key])
        found.append(Gain(entry, size_reached(sizes, lds, draws, entry.lds, targets), savings))
    return found


def verdicts(contest: Contest) -> list[Verdict]:
    """Hold the claim against every method that has dropout or LoRA ensembles and a curve."""
    made = []
    for family in contest.families:
        tried = [gain for gain in gains(family) if gain.entry.kind in CLAIMED_KINDS]
        if tried:
            made += [_verdict(contest, family.name, axis, tried) for axis in CLAIMS]
    return made


def _verdict(contest: Contest, method: str, axis: str, tried: list[Gain]) -> Verdict:
    found = [gain.savings[axis] for gain in tried]
    n_reach = sum(one.surely_reaches(CLAIMS[axis]) for one in found)
    n_miss = sum(one.surely_misses(CLAIMS[axis]) for one in found)
    outcome: Outcome = "met" if n_reach else "not met" if n_miss == len(tried) else "cannot be told"
    n_beyond = sum(one.place == ABOVE for one in found)
    reached = [gain for gain in tried if gain.savings[axis].place != BELOW]
    best = max(reached, key=lambda gain: (gain.savings[axis].value, gain.entry.lds), default=None)
    return Verdict(contest, method, axis, outcome, best, len(tried), n_reach, n_miss, n_beyond)
