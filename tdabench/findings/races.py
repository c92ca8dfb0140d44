"""Who wins at equal cost, over all methods and task by task."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from tdabench.findings.curves import tolerance
from tdabench.findings.entries import INDEPENDENT, ONE_MODEL, Contest, Entry, Family, ahead, difference
from tdabench.findings.markdown import code, percent, plain, signed, table
from tdabench.findings.savings import CLAIMS
from tdabench.findings.winners import Winner, best_of, strongest, winners, within
from tdabench.findings.words import COSTS, SLACK, contender, ensemble, flavour, listed, several
from tdabench.formats import count, format_score, listing

BUDGET = 5
"""Models whose cost is the budget: the largest size that every ladder of the suites has."""
_LEVEL = "a tie of independent models and others"
_TIE = "a tie of others than independent models"


@dataclass(frozen=True, eq=False)
class Race:
    """Who wins on a task at the cost of one independent ensemble.

    Attributes
    ----------
    family
        The method whose ensembles compete.
    winners
        Of its ensembles, by cost.
    """

    contest: Contest
    family: Family
    winners: dict[str, Winner]

    @property
    def pair(self) -> tuple[str, str]:
        """The task and the method, which may have been measured on several machine classes, or with several options."""
        return self.contest.task.name, self.family.method


def races_of(contests: Sequence[Contest]) -> list[Race]:
    """Return a race for every method of which other ensembles than independent ones have a curve beside them.

    A curve whose smallest size is beyond :data:`BUDGET` has none at its cost, and is left out.
    """
    return [_race(c, family) for c in contests for family in c.families if family.others and _affordable(family)]


def _race(contest: Contest, family: Family) -> Race:
    rungs = _affordable(family)[-1:]
    return Race(contest, family, {axis: winners(family.entries, rungs, axis)[0] for axis in CLAIMS})


def _affordable(family: Family) -> list[Entry]:
    """Return the sizes of a curve up to :data:`BUDGET`; none where there is no curve."""
    return [knot for knot in family.curve if knot.members <= BUDGET] if len(family.curve) > 1 else []


def leading(races: Sequence[Race]) -> list[Race]:
    """Return the race of each contest's strongest curve."""
    first = {contest: strongest([r.family for r in races if r.contest is contest]) for contest in _contests(races)}
    return [race for race in races if race.family is first[race.contest]]


def _contests(races: Sequence[Race]) -> list[Contest]:
    return list(dict.fromkeys(race.contest for race in races))


def won(axis: str, races: Sequence[Race]) -> list[str]:
    """Count kinds of ensemble that win at equal cost, by pairs of a task and a method, and where other methods win."""
    kinds: dict[str, set[tuple[str, str]]] = defaultdict(set)
    pairs: dict[tuple[str, str], set[str]] = defaultdict(set)
    for race in races:
        outcome = _outcome(race.winners[axis])
        kinds[outcome].add(race.pair)
        pairs[race.pair].add(outcome)
    ordered = sorted(((kind, len(found)) for kind, found in kinds.items()), key=lambda item: (-item[1], item[0]))
    counted = listed([f"{kind} on {n}{_unrivalled(kind, axis, races)}" for kind, n in ordered])
    fewer = any(race.winners[axis].budget.members < BUDGET for race in races)
    most = f"{BUDGET} independent models" + (" (of fewer where the ladder ends before)" if fewer else "")
    head = (
        f"**At equal {COSTS[axis]}**, at most that of {most} of the same method, within {percent(tolerance(axis))}: of"
        f" {count(len(pairs), 'pair')} of a task and a method, the best ensemble is {counted}.{several(pairs)}"
    )
    return [head, *_overall(axis, races)]


def _unrivalled(kind: str, axis: str, races: Sequence[Race]) -> str:
    """Say on how many pairs independent models win where nothing else was run that takes a budget of several models."""
    won_by = [race for race in races if _outcome(race.winners[axis]) == kind == flavour(INDEPENDENT)]
    alone = {race.pair for race in won_by if all(entry.models == 1 for entry in race.family.others)}
    return f" (on {len(alone)} of them no other ensemble of several models was run)" if alone else ""


def _outcome(winner: Winner) -> str:
    """Name the kind that wins, its variants together, or say that other kinds are level with it."""
    best, independent = _kind(winner.best), flavour(INDEPENDENT)
    level = {best, *map(_kind, winner.level)}
    if len(level) > 1:
        return _LEVEL if independent in level else _TIE
    return best if best == independent else f"one of {best}"


def _kind(entry: Entry) -> str:
    return flavour(INDEPENDENT if entry.kind == ONE_MODEL else entry.kind)


def variant_of(entry: Entry) -> str:
    """Name the kind of an entry's ensemble with its variant; a single model is an independent one."""
    return flavour(INDEPENDENT if entry.kind == ONE_MODEL else entry.flavour)


def _overall(axis: str, races: Sequence[Race]) -> list[str]:
    """Say what is best of all methods at the cost of each strongest curve's budget, a sentence a method."""
    families: dict[str, list[Race]] = defaultdict(list)
    for race in leading(races):
        families[race.family.name].append(race)
    return [_beaten(axis, name, found) for name, found in sorted(families.items())]


def _beaten(axis: str, name: str, races: Sequence[Race]) -> str:
    """Say on which tasks all ensembles of a method lose to another one; nothing where they do not."""
    lost = [(race, better) for race in races if (better := _better(race, axis)) is not None]
    if not lost:
        return ""
    others = [f"{contender(better)} on {plain(race.contest.title)}" for race, better in lost]
    tasks, all_tasks = (len({race.contest.task.name for race in some}) for some in ([r for r, _ in lost], races))
    return (
        f"At the {COSTS[axis]} of as many independent models of {code(name)}, another method is significantly better"
        f" than all ensembles of {code(name)} that cost no more on {tasks} of {count(all_tasks, 'task')}:"
        f" {listing(others, 4, '; ')}."
    )


def _better(race: Race, axis: str) -> Entry | None:
    """Return the best of all methods at the same cost, if it is another one and significantly better than all of these.

    Not of the family's winner alone: what is level with that may have a wider interval, or other seeds.
    """
    budget = race.winners[axis].budget
    best = winners(race.contest.entries, [budget], axis)[0].best
    if best.method == race.family.method:
        return None
    own = within(race.family.entries, axis, budget.costs[axis])
    return best if all(ahead(best, entry) > 0 for entry in own) else None


def race_table(races: Sequence[Race]) -> list[str]:
    """Return the lines of the table of the strongest curves' races."""
    found = leading(races)
    if not found:
        return []
    columns = ["task and method", *(f"best at equal {COSTS[axis]}" for axis in CLAIMS)]
    rows = [[_title(race), *(_cell(race, axis) for axis in CLAIMS)] for race in found]
    return [
        f"### What is best of one method at the cost of its {BUDGET} independent models",
        "",
        "Of the method whose independent ensembles have the most sizes on the task; where another method is better at"
        f" that cost is said above. The best ensemble among those that cost no more than its {BUDGET} independent"
        f" models, within {SLACK}, its LDS, and how far it is from the best independent ensemble among them, with the"
        " 95 % interval. Level: other kinds of ensemble that the best is not significantly better than.",
        "",
        *table(columns, rows, left=len(columns)),
    ]


def _title(race: Race) -> str:
    budget = next(iter(race.winners.values())).budget
    other = "" if budget.members == BUDGET else f", at the cost of {ensemble(budget)}"
    return f"{plain(race.contest.title)}, {code(race.family.name)}{other}"


_VERBS = {1: "leads", 0: "not told apart from", -1: "at the seeds that both have behind"}


def _cell(race: Race, axis: str) -> str:
    winner = race.winners[axis]
    best = winner.best
    text = f"**{ensemble(best)}**: {format_score(best.lds)}"
    rival = best_of(within(race.family.curve, axis, winner.budget.costs[axis]))
    if best is not rival:
        verb = _VERBS[ahead(best, rival)]
        text += f", {verb} {ensemble(rival)}{' by' if verb == 'leads' else ':'} {signed(difference(best, rival))}"
    level: dict[str, Entry] = {}
    for entry in winner.level:
        level.setdefault(variant_of(entry), entry)
    level.pop(variant_of(best), None)
    return f"{text}. Level: {listing([ensemble(e) for e in level.values()], 3, '; ') or 'no other kind'}"
