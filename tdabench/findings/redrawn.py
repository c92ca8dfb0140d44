"""The same configuration drawn anew: what luck does to an LDS, which an interval of one seed leaves out.

Another run seed is other models. On the same models, LoRA ensembles tell: an adapter's rank is at most the smaller side
of its layer, and where no layer lets two ranks differ, ensembles of them are the same but for their random numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import median, stdev

from tdabench.findings.entries import ONE_MODEL, Contest, Entry, ahead, difference
from tdabench.findings.markdown import plain
from tdabench.findings.words import listed
from tdabench.formats import count, format_score

Match = tuple[Contest, Entry, Entry]


@dataclass(frozen=True, eq=False)
class Redrawn:
    """Pairs of entries that differ in nothing but the draw."""

    pairs: tuple[Match, ...]

    @property
    def n_apart(self) -> int:
        """In how many the interval of the difference leaves out 0."""
        return sum(ahead(a, b) != 0 for _, a, b in self.pairs)

    @property
    def most(self) -> float:
        """The largest difference of their LDS."""
        return max(abs(difference(a, b)[0]) for _, a, b in self.pairs)

    def text(self) -> str:
        """Say what follows for differences of one seed."""
        highest = {contest.title: contest.rank(a) for contest, a, _ in self.pairs}
        where = listed([f"{plain(title)} (rank {rank})" for title, rank in sorted(highest.items())])
        return (
            f"**Luck of the draw**: on {where} no layer that takes an adapter lets it have a higher rank, so that LoRA"
            " ensembles of that rank and of higher ones are the same, drawn anew on the same models. They are left out"
            f" above. Of {count(len(self.pairs), 'such pair')}, LDS differ by up to {format_score(self.most)}, and the"
            f" interval of the difference leaves out 0 in {self.n_apart}: where both were run with one seed, a"
            " difference that is no larger may be luck, though its interval leaves out 0."
        )


def of_models(contests: Sequence[Contest]) -> str:
    """Say how far an LDS varies over the run seeds of a configuration: of single models, and of ensembles.

    By the standard deviation, as that does not grow with the number of seeds.
    """
    several = [(c.task.name, entry) for c in contests for entry in c.entries if len(entry.draws.by_seed) > 1]
    single = [(task, entry) for task, entry in several if entry.kind == ONE_MODEL]
    ensembles = [entry for _, entry in several if entry.kind != ONE_MODEL]
    said = []
    if single:
        n_tasks, n_methods = len({task for task, _ in single}), len({entry.method for _, entry in single})
        which = f"{count(len(single), 'configuration')} of one model ({count(n_methods, 'method')} on"
        said.append(f"{_spread([entry for _, entry in single])} for {which} {count(n_tasks, 'task')})")
    if ensembles:
        said.append(f"{_spread(ensembles)} for {count(len(ensembles), 'ensemble')}")
    lead = "From run seed to run seed, and so from model to model, an LDS has a standard deviation"
    return f"{lead} {listed(said)}." if said else ""


def _spread(entries: Sequence[Entry]) -> str:
    """Say how large the standard deviations over run seeds are."""
    found = [stdev(draws.estimate for draws in entry.draws.by_seed.values()) for entry in entries]
    return f"of up to {format_score(max(found))} (median {format_score(median(found))})"


def is_redrawn(contest: Contest, a: Entry, b: Entry) -> bool:
    """Return whether two entries of one family differ in the rank that was asked for, and in nothing that was made."""
    if contest.rank(a) is None or contest.rank(a) != contest.rank(b):
        return False
    asked, other = (entry.record.ensemble.options if entry.record.ensemble else {} for entry in (a, b))
    return asked != other and {**asked, "rank": None} == {**other, "rank": None}


def redrawn(contests: Sequence[Contest]) -> Redrawn:
    """Find such pairs among all methods and tasks."""
    found = [
        (contest, a, b)
        for contest in contests
        for family in contest.families
        for a, b in combinations(family.others, 2)
        if is_redrawn(contest, a, b)
    ]
    return Redrawn(tuple(found))
