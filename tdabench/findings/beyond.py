"""Which cheap ensembles are better than the most independent models that were run, and train faster."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from tdabench.findings.curves import share_saved
from tdabench.findings.entries import Contest, Entry, Family, ahead, difference, knows_luck
from tdabench.findings.markdown import code, percent, plain, signed, table
from tdabench.findings.words import COSTS, ensemble, flavour, order
from tdabench.formats import count, listing

_SHOWN = 12


@dataclass(frozen=True, eq=False)
class Beaten:
    """The largest independent ensemble of a method on a task, and the fastest to train of a kind that is better."""

    contest: Contest
    family: Family
    by: Entry | None
    """None where none of the kind is better and faster to train."""

    @property
    def pair(self) -> tuple[str, str]:
        """The task and the method."""
        return self.contest.task.name, self.family.method

    @property
    def largest(self) -> Entry:
        """The largest independent ensemble."""
        return self.family.curve[-1]

    def __str__(self) -> str:
        assert self.by is not None
        led = f"{ensemble(self.by)} against {ensemble(self.largest)}: {signed(difference(self.by, self.largest))}"
        text = f"{plain(self.contest.title)}, {code(self.family.name)}: {led} at {self._share(self.largest)} of their"
        seed = "" if knows_luck(self.by, self.largest) else " (one seed)"
        return f"{text} {COSTS['train']}{self._of_enough()}{seed}"

    def _share(self, other: Entry) -> str:
        assert self.by is not None
        return percent(1 - float(share_saved(self.by.costs["train"], other.costs["train"])))

    def _of_enough(self) -> str:
        """Say what it is of the time of fewer models, where more than these do not help."""
        enough = self.family.enough
        return (
            "" if enough is self.largest else f", {self._share(enough)} of that of {ensemble(enough)}, which would do"
        )


def beyond(contests: Sequence[Contest]) -> list[str]:
    """Return the table of kinds, each with the ensembles that are better than the largest independent ones."""
    kinds: dict[str, list[Beaten]] = defaultdict(list)
    for contest in contests:
        for family in contest.families:
            if family.compares:
                for kind in sorted({entry.flavour for entry in family.others}):
                    kinds[kind].append(Beaten(contest, family, _fastest(family, kind)))
    rows = [
        _row(kind, found)
        for kind, found in sorted(kinds.items(), key=lambda item: order(item[0]))
        if any(beaten.by is not None for beaten in found)
    ]
    if not rows:
        return []
    return [
        "**Better than the largest independent ensemble** that was run of the same method, by a significant difference"
        " of LDS, and faster to train: on how many pairs of a task and a method, and by the ensemble with the least"
        f" {COSTS['train']}, with the paired 95 % interval. Which ensembles are tried is up to who runs them, and the"
        " fastest of several is shown, not adjusted for the choice.",
        "",
        *table(["kind", "pairs", "by"], rows, left=3),
    ]


def _fastest(family: Family, kind: str) -> Entry | None:
    largest = family.curve[-1]
    better = [
        entry
        for entry in family.others
        if entry.flavour == kind and entry.costs["train"] < largest.costs["train"] and ahead(entry, largest) > 0
    ]
    return min(better, key=lambda entry: (entry.costs["train"], entry.costs["serve"], entry.name), default=None)


def _row(kind: str, found: Sequence[Beaten]) -> list[str]:
    beaten = [one for one in found if one.by is not None]
    n_beaten, n_tried = (len({one.pair for one in some}) for some in (beaten, found))
    return [
        flavour(kind),
        f"{n_beaten} of {count(n_tried, 'pair')}",
        listing(list(map(str, beaten)), _SHOWN, "; "),
    ]
