"""The saving at equal LDS: cheap ensembles against the curve of independent ones, and the paper's claim beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np

from tdabench.findings.curves import ABOVE, BELOW, Bounded, least, saving, share_saved, size_reached
from tdabench.findings.entries import Contest, Entry, Family
from tdabench.results.axes import AXES
from tdabench.results.seed_draws import at_shared

CLAIMS: Mapping[str, float] = {"train": 0.80, "serve": 0.60, "storage": 0.80}
"""Shares saved, up to so much, "at similar" quality, by cost: the abstract of arXiv 2405.17293."""
CLAIMED_KINDS = ("dropout", "lora")
"""The kinds of ensemble that the claim is about."""

Outcome = Literal["reached", "not reached", "cannot be told"]
OUTCOMES: tuple[Outcome, ...] = ("reached", "not reached", "cannot be told")


@dataclass(frozen=True, eq=False)
class Gain:
    """What a cheap ensemble saves.

    Attributes
    ----------
    size
        Of the independent ensemble that reaches the same LDS.
    savings
        Share saved, by the keys of :data:`~tdabench.results.axes.AXES`.
    most
        Share that it could save, were it as good as the largest independent ensemble that was run.
    one_seed
        The ensemble and those that it is held against have no more than one seed in common, and the task does not say
        how far an LDS moves from seed to seed, so that the intervals leave out how lucky that is.
    """

    entry: Entry
    size: Bounded
    savings: Mapping[str, Bounded]
    most: Mapping[str, float]
    one_seed: bool

    def could(self, axis: str) -> bool:
        """Return whether it costs so little that the independent ensembles that were run can show the claim."""
        return self.most[axis] >= least(CLAIMS[axis])

    def reaches(self, axis: str) -> bool:
        """Return whether it surely saves what is claimed of a cost."""
        return self.savings[axis].surely_reaches(CLAIMS[axis])

    def misses(self, axis: str) -> bool:
        """Return whether it surely does not."""
        return self.savings[axis].surely_misses(CLAIMS[axis])

    def outcome(self, axis: str) -> Outcome:
        """Return what the interval says of a cost."""
        if self.reaches(axis):
            return "reached"
        return "not reached" if self.misses(axis) else "cannot be told"

    def rank(self, axis: str) -> tuple[bool, float]:
        """Return what is higher the more it surely saves."""
        return self.reaches(axis), self.savings[axis].value

    @property
    def whole(self) -> Outcome:
        """Whether it alone saves what is claimed of every cost."""
        found = {self.outcome(axis) for axis in CLAIMS}
        return "reached" if found == {"reached"} else "not reached" if "not reached" in found else "cannot be told"


@dataclass(frozen=True, eq=False)
class Verdict:
    """The claim about one cost, held against a method's dropout and LoRA ensembles.

    Attributes
    ----------
    axis
        Key of the cost.
    tried
        The ensembles.
    outcome
        ``reached`` where one of them surely saves as much, ``not reached`` where all surely do not.
    """

    contest: Contest
    family: Family
    axis: str
    tried: tuple[Gain, ...]

    @property
    def method(self) -> str:
        """The method, with what tells it apart."""
        return self.family.name

    @property
    def outcome(self) -> Outcome:
        """What the intervals say."""
        if self.n_reach:
            return "reached"
        return "not reached" if self.n_miss == len(self.tried) else "cannot be told"

    @property
    def n_reach(self) -> int:
        """How many surely save what is claimed."""
        return sum(gain.reaches(self.axis) for gain in self.tried)

    @property
    def n_miss(self) -> int:
        """How many surely do not."""
        return sum(gain.misses(self.axis) for gain in self.tried)

    @property
    def n_beyond(self) -> int:
        """How many are better than the largest independent ensemble, so that their saving is known from below only."""
        return sum(gain.savings[self.axis].place == ABOVE for gain in self.tried)

    @property
    def one_seed(self) -> bool:
        """Whether what was told rests on one seed: no ensemble with several reaches the claim, or one of all misses."""
        if self.n_reach:
            return all(gain.one_seed for gain in self.tried if gain.reaches(self.axis))
        return any(gain.one_seed for gain in self.tried)

    @property
    def best(self) -> Gain | None:
        """The ensemble that saves most; None where none reaches a single model's LDS."""
        reached = [gain for gain in self.tried if gain.savings[self.axis].place != BELOW]
        return max(reached, key=lambda gain: (*gain.rank(self.axis), gain.entry.lds), default=None)

    @property
    def too_short(self) -> bool:
        """Whether it cannot be told as too few independent models were run: no open ensemble could show it."""
        tried = [gain for gain in self.tried if gain.outcome(self.axis) == "cannot be told"]
        return self.outcome == "cannot be told" and not any(gain.could(self.axis) for gain in tried)


@lru_cache(maxsize=1024)  # more than there are families in a document
def gains(family: Family) -> tuple[Gain, ...]:
    """Return what each of a method's other ensembles saves; nothing without a single model or independent ensembles.

    The interval is that of the LDS values, which are resampled jointly: in every resample all runs meet the same
    subsets, queries and seeds (:meth:`~tdabench.results.seed_draws.SeedDraws.corrected`), and they are compared at the
    run seeds that they share. Costs were measured once.
    """
    if not family.compares:
        return ()
    return tuple(_gain(entry, family.curve) for entry in family.others)


def _gain(entry: Entry, curve: Sequence[Entry]) -> Gain:
    *knots, own = at_shared([*(knot.draws for knot in curve), entry.draws])
    sizes = np.array([knot.members for knot in curve], dtype=np.float64)
    lds = np.array([draws.estimate for draws in knots])
    draws = np.stack([found.corrected() for found in knots], axis=1)  # [n_resamples, n_sizes]
    target, targets = own.estimate, own.corrected()
    savings, most = {}, {}
    for axis in AXES:
        costs, cost = [knot.costs[axis.key] for knot in curve], entry.costs[axis.key]
        savings[axis.key] = saving(sizes, lds, draws, costs, target, targets, cost)
        most[axis.key] = float(share_saved(cost, max(costs)))
    one_seed = not all(found.knows_luck for found in (*knots, own))
    return Gain(entry, size_reached(sizes, lds, draws, target, targets), savings, most, one_seed)


def claimed(family: Family) -> tuple[Gain, ...]:
    """Return what those of a method's ensembles save that the claim is about."""
    return tuple(gain for gain in gains(family) if gain.entry.kind in CLAIMED_KINDS)


def verdicts(contest: Contest) -> list[Verdict]:
    """Hold the claim against every method that has dropout or LoRA ensembles and a curve, cost by cost."""
    tried = [(family, claimed(family)) for family in contest.families]
    return [Verdict(contest, family, axis, found) for family, found in tried if found for axis in CLAIMS]
