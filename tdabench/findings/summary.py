"""The answer, on top: the claim in a few sentences with counts, and who wins at equal cost, task by task."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from tdabench.board.findings import seeds_used
from tdabench.board.rows import format_score
from tdabench.findings.entries import INDEPENDENT, ONE_MODEL, Contest, Entry, Family, difference
from tdabench.findings.markdown import code, count, listing, percent, plain, share, signed, table
from tdabench.findings.savings import CLAIMS, OUTCOMES, Gain, Outcome, Verdict, claimed, verdicts
from tdabench.findings.winners import Winner, best_of, strongest, winners, within
from tdabench.findings.words import COSTS, contender, ensemble, flavour, listed

_WORDS: Mapping[Outcome, str] = {"not reached": "by", "cannot be told": "for"}
BUDGET = 5
"""Models whose cost is the budget of the table on top: the largest size that every ladder of the suites has."""


@dataclass(frozen=True, eq=False)
class Trial:
    """A dropout or LoRA ensemble, held against the claim."""

    contest: Contest
    family: Family
    gain: Gain

    def __str__(self) -> str:
        return f"{contender(self.gain.entry)} on {plain(self.contest.title)}"


@dataclass(frozen=True, eq=False)
class Race:
    """Who wins on a task at the cost of one independent ensemble.

    Attributes
    ----------
    family
        The method whose ensembles compete.
    winners, overall
        Of its ensembles, and of all methods, by cost.
    """

    contest: Contest
    family: Family
    winners: dict[str, Winner]
    overall: dict[str, Winner]


def trials_of(contests: Sequence[Contest]) -> list[Trial]:
    """Return every ensemble that the claim is about and that has a curve to be held against."""
    return [Trial(c, family, gain) for c in contests for family in c.families for gain in claimed(family)]


def races_of(contests: Sequence[Contest]) -> list[Race]:
    """Return a race for every contest in which other ensembles than independent ones have a curve beside them.

    A curve whose smallest size is beyond :data:`BUDGET` has none at its cost, and is left out.
    """
    made = []
    for contest in contests:
        family = strongest([family for family in contest.families if _affordable(family)])
        if family is not None and family.others:
            rungs = _affordable(family)[-1:]
            own, every = (
                {axis: winners(entries, rungs, axis)[0] for axis in CLAIMS}
                for entries in (family.entries, contest.entries)
            )
            made.append(Race(contest, family, own, every))
    return made


def _affordable(family: Family) -> list[Entry]:
    """Return the sizes of a curve up to :data:`BUDGET`."""
    return [knot for knot in family.curve if knot.members <= BUDGET]


def summary(contests: Sequence[Contest]) -> list[str]:
    """Return the lines of the answer."""
    trials, races = trials_of(contests), races_of(contests)
    judged = [verdict for contest in contests for verdict in verdicts(contest)]
    entries = [entry for contest in contests for entry in contest.entries]
    lead = f"**{_lead(trials, judged)}**" if trials else "No dropout or LoRA ensemble can be held against the claim."
    said = (
        [_at_once(trials), *(_alone(axis, [v for v in judged if v.axis == axis]) for axis in CLAIMS)] if trials else []
    )
    said += [_won(axis, races) for axis in CLAIMS if races]
    said += [f"**How sure**: {seeds_used([entry.seeds for entry in entries])}"] if entries else []
    return ["## The answer", "", lead, "", *(f"- {text}" for text in said), "", *_races(races)]


# --- the claim


def _lead(trials: Sequence[Trial], judged: Sequence[Verdict]) -> str:
    """Say in one line which savings are reached anywhere, and whether one ensemble has them all."""
    groups: dict[str, list[str]] = {outcome: [] for outcome in OUTCOMES}
    for axis in CLAIMS:
        groups[_any([v.outcome for v in judged if v.axis == axis])].append(COSTS[axis])
    names = {
        "reached": "Saved as claimed on some task",
        "not reached": "Not saved as claimed on any",
        "cannot be told": "Neither shown nor refuted",
    }
    alone = " ".join(f"{names[outcome]}: {listed(axes)}." for outcome, axes in groups.items() if axes)
    whole = sum(trial.gain.whole == "reached" for trial in trials)
    if whole:
        return f"{alone} All three at once are reached by {whole} of {count(len(trials), 'ensemble')}."
    shown = "reaches" if _any([t.gain.whole for t in trials]) == "not reached" else "is shown to reach"
    return f"{alone} No one ensemble {shown} all three at once."


def _any(outcomes: Sequence[Outcome]) -> Outcome:
    """Return what holds of several taken together, where one that is reached will do."""
    if "reached" in outcomes:
        return "reached"
    return "cannot be told" if "cannot be told" in outcomes else "not reached"


def _at_once(trials: Sequence[Trial]) -> str:
    """Say whether any one ensemble saves all that is claimed: a user cannot serve with one and store another."""
    each = _pairs((trial.contest, trial.family.name, trial.gain.whole) for trial in trials)
    reached = [trial for trial in trials if trial.gain.whole == "reached"]
    one_seed = bool(reached) and all(trial.gain.one_seed for trial in reached)
    return f"**All three at once**: {_counts(each, [t.gain.whole for t in trials], one_seed)}{_named(reached)}"


def _pairs(found: Iterable[tuple[Contest, str, Outcome]]) -> dict[str, Outcome]:
    """Return the outcome for each pair of a task and a method, over the machine classes that it was measured on."""
    pairs: dict[str, list[Outcome]] = defaultdict(list)
    for contest, name, outcome in found:
        pairs[f"{plain(contest.task.name)} {code(name)}"].append(outcome)
    return {pair: _any(outcomes) for pair, outcomes in pairs.items()}


def _named(trials: Sequence[Trial], most: int = 4) -> str:
    return f" By {listing(list(map(str, trials)), most, '; ')}." if trials else ""


def _alone(axis: str, judged: Sequence[Verdict]) -> str:
    """Say on how many pairs of a task and a method one of the savings is reached, by any ensemble."""
    each = _pairs((v.contest, v.method, v.outcome) for v in judged)
    outcomes: list[Outcome] = [gain.outcome(axis) for verdict in judged for gain in verdict.tried]
    reached = [v for v in judged if v.outcome == "reached"]
    one_seed = bool(reached) and all(v.one_seed for v in reached)
    lead = f"**{COSTS[axis].capitalize()}, claimed up to {percent(CLAIMS[axis])}**"
    return f"{lead}: {_counts(each, outcomes, one_seed)}{_at_best(axis, judged)}"


def _counts(pairs: Mapping[str, Outcome], ensembles: Sequence[Outcome], one_seed: bool) -> str:
    """Count outcomes over pairs of a task and a method, naming those where it is not reached, and over ensembles."""
    rest = []
    for outcome in OUTCOMES[1:]:
        names = [name for name, found in pairs.items() if found == outcome]
        rest += [f"{outcome} on {len(names)}: {listing(names, 4)}"] if names else []
    found = Counter(ensembles)
    others = [f"{outcome} {word} {found[outcome]}" for outcome, word in _WORDS.items() if found[outcome]]
    return (
        f"reached on {sum(o == 'reached' for o in pairs.values())} of {count(len(pairs), 'pair')} of a task and a"
        f" method{' (one seed)' * one_seed}{_aside(rest)}, by {found['reached']} of"
        f" {count(len(ensembles), 'dropout or LoRA ensemble')}{_aside(others)}."
    )


def _aside(said: Sequence[str]) -> str:
    return f" ({'; '.join(said)})" if said else ""


def _at_best(axis: str, judged: Sequence[Verdict]) -> str:
    found = [Trial(v.contest, v.family, v.best) for v in judged if v.best is not None]
    if not found:
        return " No ensemble is as good as a single model."
    best = max(found, key=lambda trial: trial.gain.rank(axis))
    return f" At best {share(best.gain.savings[axis])}: {best}."


# --- at equal cost


def _won(axis: str, races: Sequence[Race]) -> str:
    """Count on which tasks kinds of ensemble win at equal cost, and independent ones are level, and other methods."""
    kinds: dict[str, set[str]] = defaultdict(set)
    for race in races:
        kinds[_kind(race.winners[axis].best)].add(race.contest.task.name)
    (first, n), *rest = sorted(((k, len(found)) for k, found in kinds.items()), key=lambda item: (-item[1], item[0]))
    won = listed([f"{first} on {n} of {count(_n_tasks(races), 'task')}", *(f"{kind} on {n}" for kind, n in rest)])
    independent = _kind(races[0].family.curve[0])
    able = _n_tasks(
        [r for r in races if independent in {_kind(e) for e in (r.winners[axis].best, *r.winners[axis].level)}]
    )
    fewer = any(race.winners[axis].budget.members < BUDGET for race in races)
    most = f"{BUDGET} independent models" + (" (of fewer where the ladder ends before)" if fewer else "")
    lead = f"**At equal {COSTS[axis]}**, at most that of {most}: won by {won}."
    lead += f" Independent models win or are level with the winner on {able}.{_overall(axis, races)}"
    several = len(races) > _n_tasks(races)
    return f"{lead} A task counts once, with what holds on any of its machine classes." if several else lead


def _n_tasks(races: Sequence[Race]) -> int:
    return len({race.contest.task.name for race in races})


def _kind(entry: Entry) -> str:
    return flavour(INDEPENDENT if entry.kind == ONE_MODEL else entry.flavour)


def _overall(axis: str, races: Sequence[Race]) -> str:
    lost = [race for race in races if race.overall[axis].best not in race.family.entries]
    if not lost:
        return ""
    others = [f"{contender(race.overall[axis].best)} on {plain(race.contest.title)}" for race in lost]
    return f" With all methods in the race, another one wins on {_n_tasks(lost)}: {listing(others, 4, '; ')}."


def _races(races: Sequence[Race]) -> list[str]:
    if not races:
        return []
    columns = ["task and method", *(f"winner at equal {COSTS[axis]}" for axis in CLAIMS)]
    rows = [[_race_title(race), *(_cell(race, axis) for axis in CLAIMS)] for race in races]
    return [
        f"### Who wins at the cost of {BUDGET} independent models",
        "",
        f"The best ensemble of the method among those that cost no more than its {BUDGET} independent models, its LDS,"
        " and how far it leads over the best independent ensemble among them, with the 95 % interval. Level:"
        " other kinds of ensemble whose difference from the winner is not significant.",
        "",
        *table(columns, rows, left=len(columns)),
    ]


def _race_title(race: Race) -> str:
    budget = next(iter(race.winners.values())).budget
    other = "" if budget.members == BUDGET else f", at the cost of {ensemble(budget)}"
    return f"{plain(race.contest.title)}, {code(race.family.name)}{other}"


def _cell(race: Race, axis: str) -> str:
    winner = race.winners[axis]
    best = winner.best
    text = f"**{ensemble(best)}**: {format_score(best.lds)}"
    rival = best_of(within(race.family.curve, axis, winner.budget.costs[axis]))
    if best is not rival:
        text += f", leads {ensemble(rival)} by {signed(difference(best, rival))}"
    level: dict[str, Entry] = {}
    for entry in winner.level:
        level.setdefault(_kind(entry), entry)
    level.pop(_kind(best), None)
    return f"{text}. Level: {listing([ensemble(e) for e in level.values()], 3, '; ') or 'no other kind'}"
