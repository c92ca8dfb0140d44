"""The answer, on top: the claim in a few sentences with counts, and what is best at equal cost."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from tdabench.ensembles import KINDS
from tdabench.findings.curves import ABOVE, INSIDE, least, share_saved
from tdabench.findings.entries import ONE_MODEL, Contest, Entry, Family, ahead
from tdabench.findings.kinds import PAIRS, Group, all_gains, matches, outcomes, worse_on
from tdabench.findings.markdown import code, percent, plain, saved, share
from tdabench.findings.races import race_table, races_of, won
from tdabench.findings.redrawn import of_models, redrawn
from tdabench.findings.savings import CLAIMS, Gain, Outcome, Verdict, claimed, verdicts
from tdabench.findings.winners import Duel, duel
from tdabench.findings.words import COSTS, contender, ensemble, flavour, listed, rest, several
from tdabench.findings.wrong_labels import wrong_labels
from tdabench.formats import count, format_score, listing
from tdabench.results.words import seeds_used

_OPEN: Mapping[Outcome, str] = {"cannot be told": "open:"}
_OF_PAIRS: Mapping[Outcome, str] = {"not reached": "not on", "cannot be told": "open on"}
_SAYS: Mapping[Outcome, tuple[str, str]] = {
    "reached": ("reaches it", "reach it"),
    "not reached": ("does not", "do not"),
    "cannot be told": ("is open", "are open"),
}
_OF_ENSEMBLES: Mapping[Outcome, str] = {"not reached": "not by", "cannot be told": "open for"}
_NO_CORRECTION = (
    "What is not reached is so by the ensembles that were run, of which some pairs have few."
    " Intervals and differences are judged one by one, without a correction for their number, and costs were measured"
    " once for each run."
)
Pair = tuple[str, str]
Point = list[str]
"""What is said in one point of the answer: a sentence, and what is said below it."""


@dataclass(frozen=True, eq=False)
class Trial:
    """A dropout or LoRA ensemble, held against the claim."""

    contest: Contest
    family: Family
    gain: Gain

    def __str__(self) -> str:
        return f"{contender(self.gain.entry)} on {plain(self.contest.title)}"


def trials_of(contests: Sequence[Contest]) -> list[Trial]:
    """Return every ensemble that the claim is about and that has a curve to be held against."""
    return [Trial(c, family, gain) for c in contests for family in c.families for gain in claimed(family)]


def summary(contests: Sequence[Contest]) -> list[str]:
    """Return the lines of the answer."""
    trials, races = trials_of(contests), races_of(contests)
    judged = [verdict for contest in contests for verdict in verdicts(contest)]
    entries = [entry for contest in contests for entry in contest.entries]
    lead = f"**{_lead(trials, judged)}**" if trials else "No dropout or LoRA ensemble can be held against the claim."
    said = [_alone(axis, [v for v in judged if v.axis == axis]) for axis in CLAIMS] if trials else []
    said += [[_at_once(trials)]] if trials else []
    said += [_kinds(contests), [_against(contests)]]
    said += [won(axis, races) for axis in CLAIMS if races]
    said += [[wrong_labels(contests)]]
    seeds = [(entry.seeds, entry.draws.knows_luck) for entry in entries]
    said += [[f"**How sure**: {seeds_used(seeds)}", *_luck(contests), _NO_CORRECTION]] if entries else []
    return ["## The answer", "", lead, "", *(line for point in said for line in _lines(point)), "", *race_table(races)]


def _lines(point: Point) -> list[str]:
    """Return a point as an item of a list, with what is said below as items of its own; nothing of an empty one."""
    head, *below = [text for text in point if text] or [""]
    return [f"- {head}", *(f"  - {text}" for text in below)] if head else []


def _luck(contests: Sequence[Contest]) -> list[str]:
    """Say what the luck of the models does to an LDS, and that of a draw on the same models, where it was measured."""
    found, said = redrawn(contests), [of_models(contests)]
    if found.pairs:
        said.append(
            f"Adapters drawn anew on the same models move an LDS, too: {found.n_apart} of"
            f" {count(len(found.pairs), 'pair')} of LoRA ensembles that differ in nothing but the draw have"
            f" significantly different LDS, by up to {format_score(found.most)}."
        )
    return said


def _lead(trials: Sequence[Trial], judged: Sequence[Verdict]) -> str:
    """Say on how many pairs of a task and a method each saving is reached, and by how many ensembles all."""
    counts, outcomes = [], {axis: _pairs(judged, axis) for axis in CLAIMS}
    for axis, found in outcomes.items():
        n = _counted(found)
        counts.append(f"{COSTS[axis]} on {n['reached']} of {len(found)}{rest(n, _OPEN)}")
    whole = Counter(trial.gain.whole for trial in trials)
    pairs = {_pair(verdict) for verdict in judged}
    masked = {_pair(v) for v in judged if any(gain.entry.kind == "dropout" for gain in v.tried)}
    without = f" ({len(pairs - masked)} of them without dropout)" if pairs - masked else ""
    differ = next((text for found in outcomes.values() if (text := several(found))), "")
    return (
        f"Saved as claimed, by pairs of a task and a method{without}: {listed(counts)}.{differ} All three at once: by"
        f" {whole['reached']} of {count(len(trials), 'ensemble')}{rest(whole, _OPEN)}."
    )


def _pair(verdict: Verdict) -> Pair:
    return verdict.contest.task.name, verdict.family.method


def _pairs(judged: Iterable[Verdict], axis: str) -> dict[Pair, set[Outcome]]:
    """Return the outcomes for each pair of a task and a method: one, unless its machine classes or options differ."""
    pairs: dict[Pair, set[Outcome]] = defaultdict(set)
    for verdict in judged:
        if verdict.axis == axis:
            pairs[_pair(verdict)].add(verdict.outcome)
    return pairs


def _counted(pairs: Mapping[Pair, set[Outcome]]) -> Counter[Outcome]:
    """Count the pairs that have an outcome; one that has two counts for both."""
    return Counter(outcome for outcomes in pairs.values() for outcome in outcomes)


def _named(pairs: Iterable[Pair]) -> str:
    """Name pairs by task, as in ``digits-mlp (`ek-fac`, `trak`), mnist-mlp (`trak`)``."""
    tasks: dict[str, list[str]] = defaultdict(list)
    for task, method in sorted(pairs):
        tasks[task].append(code(method))
    return ", ".join(f"{plain(task)} ({', '.join(methods)})" for task, methods in tasks.items())


# --- the claim


def _alone(axis: str, judged: Sequence[Verdict]) -> Point:
    """Say on which pairs of a task and a method one of the savings is reached, by what, and what that is worth."""
    pairs = _pairs(judged, axis)
    found = _counted(pairs)
    reached = [v for v in judged if v.outcome == "reached"]
    text = f"**{COSTS[axis].capitalize()}, claimed up to {percent(CLAIMS[axis])}**: reached on {found['reached']} of"
    text += f" {count(len(pairs), 'pair')}{rest(found, _OF_PAIRS)}"
    if reached:
        text += f": {_named(set(map(_pair, reached)))}"
    head = f"{text}.{_seeds(reached)}{several(pairs)}"
    said = [_too_short(axis, pairs, judged), *_by_kind(axis, judged), *_worth(axis, reached), _at_best(axis, judged)]
    return [head, *said]


def _all(reached: Sequence[Verdict], holds: Callable[[Verdict], bool]) -> set[Pair]:
    """Return the pairs of a task and a method for which something holds wherever the saving is reached."""
    pairs: dict[Pair, list[bool]] = defaultdict(list)
    for verdict in reached:
        pairs[_pair(verdict)].append(holds(verdict))
    return {pair for pair, said in pairs.items() if all(said)}


def _seeds(reached: Sequence[Verdict]) -> str:
    n, on_one = len(set(map(_pair, reached))), len(_all(reached, lambda verdict: verdict.one_seed))
    if not on_one:
        return ""
    if n == on_one:
        return f" {'It rests' if n == 1 else 'All rest'} on one seed."
    return f" {count(on_one, 'of them rests', 'of them rest')} on one seed."


def _too_short(axis: str, pairs: Mapping[Pair, set[Outcome]], judged: Sequence[Verdict]) -> str:
    """Say on how many of the open pairs no interval is at fault, but how many independent models were run."""
    able = {_pair(verdict) for verdict in judged if verdict.outcome == "cannot be told" and not verdict.too_short}
    short = [pair for pair, outcomes in pairs.items() if "cannot be told" in outcomes and pair not in able]
    if not short:
        return ""
    return (
        f"On {len(short)} of the open ones more independent models would have to be run to tell: what is open there"
        f" costs more than {percent(1 - CLAIMS[axis])} of the most that were."
    )


def _by_kind(axis: str, judged: Sequence[Verdict]) -> list[str]:
    """Say how many dropout and LoRA ensembles reach it, and how many could."""
    kinds: dict[str, list[Gain]] = defaultdict(list)
    for verdict in judged:
        for gain in verdict.tried:
            kinds[flavour(gain.entry.kind)].append(gain)
    said = []
    for name, tried in sorted(kinds.items()):
        found = Counter(gain.outcome(axis) for gain in tried)
        parts = [count(found[o], *words) for o, words in _SAYS.items() if found[o] or o == "reached"]
        able = sum(gain.could(axis) for gain in tried)
        cheap = f"; {count(able, 'costs', 'cost')} little enough for it" if able < len(tried) else ""
        said.append(f"Of {count(len(tried), 'ensemble')} of {name} {listed(parts)}{cheap}.")
    return said


def _worth(axis: str, reached: Sequence[Verdict]) -> list[str]:
    """Say where independent models do not help, and where a single model of another method is the better buy."""
    padded = _all(reached, _is_padded)
    said = []
    if padded:
        said.append(
            f"On {len(padded)} of the pairs that reach it, {_named(padded)}, fewer independent models are as good as"
            " the most that were run, as far as can be told; held against those, the claim is not met."
        )
    better = {verdict: _better(axis, verdict) for verdict in reached}
    beaten = _all(reached, lambda verdict: better[verdict] is not None)
    if beaten:
        names = sorted({contender(e) for verdict, e in better.items() if e is not None and _pair(verdict) in beaten})
        costs = listed([COSTS[a] for a in CLAIMS if a in _bought(axis)])
        said.append(
            f"On {len(beaten)} of them, {_named(beaten)}, whatever reaches it is beaten by {' or '.join(names)}: a"
            f" higher LDS, at no more {costs}."
        )
    return said


def _is_padded(verdict: Verdict) -> bool:
    """Return whether a saving is reached only against more independent models than help.

    That is so where every ensemble that reaches it is better than the largest independent one, which is then what it is
    held against, and does not save as much against the smallest that no larger one is significantly better than.
    """
    enough = verdict.family.enough
    axis, claim = verdict.axis, CLAIMS[verdict.axis]
    reaching = [gain for gain in verdict.tried if gain.reaches(axis)]
    return all(
        gain.savings[axis].place == ABOVE and share_saved(gain.entry.costs[axis], enough.costs[axis]) < least(claim)
        for gain in reaching
    )


def _bought(axis: str) -> set[str]:
    """Return the costs that whoever wants to save one of them pays in any case."""
    return {"train", "serve", axis}


def _better(axis: str, verdict: Verdict) -> Entry | None:
    """Return another method's single model that is better than every ensemble that reaches a saving, and cheaper."""
    ensembles = [gain.entry for gain in verdict.tried if gain.reaches(axis)]
    own = {entry.method for entry in verdict.family.entries}
    others = [e for e in verdict.contest.entries if e.kind == ONE_MODEL and e.method not in own]
    able = [
        other
        for other in others
        if all(ahead(other, e) > 0 and all(other.costs[a] <= e.costs[a] for a in _bought(axis)) for e in ensembles)
    ]
    return max(able, key=lambda entry: (entry.lds, entry.name), default=None)


def _at_best(axis: str, judged: Sequence[Verdict]) -> str:
    found = [Trial(v.contest, v.family, v.best) for v in judged if v.best is not None]
    if not found:
        return "No ensemble is as good as a single model."
    best = max(found, key=lambda trial: trial.gain.rank(axis))
    those = "At best" if not best.gain.reaches(axis) else "At best, of those that reach it,"
    seed = " (one seed)" if best.gain.one_seed else ""
    return f"{those} {share(best.gain.savings[axis])}: {best}{seed}{_enough_for(best, axis)}."


def _enough_for(trial: Trial, axis: str) -> str:
    """Say what is saved against fewer models, where more than these do not help: the bound says how many were run."""
    enough = trial.family.enough
    if trial.gain.savings[axis].place != ABOVE or enough is trial.family.curve[-1]:
        return ""
    left = saved(float(share_saved(trial.gain.entry.costs[axis], enough.costs[axis])), INSIDE)
    return f"; {left} against {ensemble(enough)}, more of which are not significantly better"


def _at_once(trials: Sequence[Trial]) -> str:
    """Say whether any one ensemble saves all: a user cannot serve with one and store another."""
    found = Counter(trial.gain.whole for trial in trials)
    reached = [str(trial) for trial in trials if trial.gain.whole == "reached"]
    names = f": {listing(reached, 4, '; ')}" if reached else ""
    return (
        f"**All three by one ensemble**, which the paper does not claim: by {found['reached']} of"
        f" {count(len(trials), 'dropout or LoRA ensemble')}{rest(found, _OF_ENSEMBLES)}{names}."
    )


# --- kinds of ensemble


def _kinds(contests: Sequence[Contest]) -> Point:
    """Say how often each kind beats independent models that cost as much."""
    groups: dict[str, Group] = defaultdict(list)
    for contest, family, gain in all_gains(contests):
        groups[gain.entry.kind].append((contest, family, gain))
    said = []
    for axis in CLAIMS:
        counts = [text for kind in KINDS if (text := _beats(kind, groups[kind], axis))]
        said += [f"At equal {COSTS[axis]}: {', '.join(counts)}."] if counts else []
    lead = "**Better than independent models** of the same method at the same cost"
    return [f"{lead}, of those that cost as much as one to the most that were run:", *said] if said else []


def _beats(kind: str, group: Group, axis: str) -> str:
    """Count the ensembles of a kind that win their duel, of those for which models of the same cost were run."""
    duels = [(contest, found) for contest, family, gain in group if (found := _even(gain, family, axis)) is not None]
    if not duels:
        return ""
    n_layers = [len(contest.task.adapter_ranks) for contest, _ in duels]  # that take adapters; 0 where not known
    deep = [found for (_, found), n in zip(duels, n_layers, strict=True) if n > 1]
    better, worse = _won([found for _, found in duels])
    text = f"{flavour(kind)} {better} of {len(duels)} (worse: {worse}"
    if kind == "lora" and 1 in n_layers:
        better, worse = _won(deep)
        text += f"; where more layers than one take adapters {better} of {len(deep)}, worse: {worse}"
    return f"{text})"


def _even(gain: Gain, family: Family, axis: str) -> Duel | None:
    found = duel(gain.entry, family, axis)
    return found if found.place == INSIDE else None


def _won(duels: Sequence[Duel]) -> tuple[int, int]:
    """Return how many of an ensemble's duels are won, and how many are lost."""
    better, worse = (sum(found.lds * sign > 0 for found in duels) for sign in (1, -1))
    return better, worse


def _against(contests: Sequence[Contest]) -> str:
    """Say how kinds compare with dropout masks, at as many models and members."""
    said = []
    for first, second, _ in PAIRS:
        pairs = matches(contests, first, second)
        if second == "dropout" and pairs and first in KINDS:
            found = outcomes(pairs)
            told = f"{flavour(first)} better in {found[1]} and worse in {found[-1]} of {found.total()}"
            said.append(f"{told}{worse_on(pairs) if found[1] > found[-1] > 0 else ''}")
    return f"**Against as many dropout masks**: {'; '.join(said)} comparisons." if said else ""
