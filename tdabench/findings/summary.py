"""The summary over all tasks: one table, and plain sentences made from numbers."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from tdabench.board.rows import AXES
from tdabench.ensembles import KINDS
from tdabench.findings.curves import ABOVE, BELOW, INSIDE, Bounded
from tdabench.findings.entries import Contest, Entry, Family, ahead, difference
from tdabench.findings.markdown import code, count, percent, plain, score, share, signed, table
from tdabench.findings.savings import CLAIMS, Gain, Verdict, gains, verdicts
from tdabench.findings.sections import CONTESTED
from tdabench.findings.winners import TOLERANCE, Duel, duel

PAIRS = (
    ("dropout(scope=q-only)", "dropout", "Dropout for the Q factor alone against dropout everywhere"),
    ("dropout(mask=per-sample)", "dropout", "A mask for every example against one mask a member"),
    ("lora", "dropout", "LoRA against dropout"),
    ("checkpoints", "dropout", "Checkpoints of one training against dropout"),
    ("projections", "dropout", "Projections of the same model against dropout"),
)
"""Flavours compared at equal numbers of models and members: questions that the paper's figures leave open."""


@dataclass(frozen=True, eq=False)
class Line:
    """A task and a flavour of ensemble: the run with the highest LDS among those that have a curve."""

    contest: Contest
    family: Family
    gain: Gain
    duels: tuple[Duel, ...]


def lines_of(contests: Sequence[Contest]) -> list[Line]:
    """Return a line for every task and flavour; its duels are in the order of the costs that are contested."""
    made = []
    for contest in contests:
        best: dict[str, tuple[Family, Gain]] = {}
        for family in contest.families:
            for gain in gains(family):
                known = best.get(gain.entry.flavour)
                if known is None or gain.entry.lds > known[1].entry.lds:
                    best[gain.entry.flavour] = family, gain
        for family, gain in sorted(best.values(), key=lambda found: _order(found[1].entry)):
            duels = tuple(duel(gain.entry, family, axis.key) for axis in CONTESTED)
            made.append(Line(contest, family, gain, duels))
    return made


def _order(entry: Entry) -> tuple[int, str]:
    kinds = list(KINDS)
    return (kinds.index(entry.kind) if entry.kind in kinds else len(kinds)), entry.flavour


def summary(contests: Sequence[Contest]) -> list[str]:
    """Return the summary's lines."""
    lines = lines_of(contests)
    if not lines:
        return ["## Summary", "", "No ensemble can be held against a curve of independent ones.", ""]
    columns = ["task", "ensemble", "its best run", "LDS [95 %]", *(f"saved: {a.name.lower()}" for a in CONTESTED)]
    columns += [f"at equal {axis.name.lower()}" for axis in CONTESTED]
    said = [*_claims(contests), *_savings(lines), *_at_equal_cost(lines), *_pairs(contests)]
    return [
        "## Summary",
        "",
        "One row for each task and kind of ensemble: the run with the highest LDS, what it saves against independent"
        " ensembles of the same method at the same LDS, and who is better at the same cost.",
        "",
        *table(columns, [_row(line) for line in lines], left=3),
        "What the numbers say:",
        "",
        *(f"- {text}" for text in said),
        "",
    ]


def _row(line: Line) -> list[str]:
    entry = line.gain.entry
    shares = [share(line.gain.savings[axis.key]) for axis in CONTESTED]
    duels = [_duel(found) for found in line.duels]
    run = f"{entry.method} + {entry.ensemble}"
    return [
        plain(line.contest.title),
        code(entry.flavour),
        code(run),
        score(entry.lds, entry.interval),
        *shares,
        *duels,
    ]


def _duel(found: Duel) -> str:
    winner = {
        "ahead": "this",
        "alone": "this, nothing is as cheap",
        "level": "level",
        "behind": "independent",
        "beyond": "not known",
    }[found.outcome]
    dearer = f" at {found.excess:.1f} times its cost" if found.excess > 1 + TOLERANCE else ""
    return f"{winner}: {signed(found.difference)} to × {found.size:.1f}{dearer}"


def _claims(contests: Sequence[Contest]) -> list[str]:
    """Say how often the claim is met, cost by cost."""
    found: dict[str, list[Verdict]] = defaultdict(list)
    for contest in contests:
        for verdict in verdicts(contest):
            found[verdict.axis].append(verdict)
    return [_claim(axis.key, axis.name, found[axis.key]) for axis in AXES if axis.key in found]


def _claim(key: str, name: str, found: Sequence[Verdict]) -> str:
    tally = Counter(verdict.outcome for verdict in found)
    against = [v for v in found if v.outcome == "not met"]
    n, reach, miss = (sum(getattr(v, field) for v in found) for field in ("n", "n_reach", "n_miss"))
    where = ", ".join(f"{plain(v.contest.title)} {code(v.method)}" for v in against)
    contradicted = f" Against the claim: {where}." if against else ""
    return (
        f"{name}: the claim of {percent(CLAIMS[key])} saved at equal LDS is met by the best dropout or LoRA ensemble in"
        f" {tally['met']} of {count(len(found), 'pair')} of a task and a method, not met in {tally['not met']}, and"
        f" cannot be told in {tally['cannot be told']}. Of their {count(n, 'ensemble')}, {reach} surely save as much"
        f" and {miss} surely do not.{contradicted}"
    )


def _savings(lines: Sequence[Line]) -> list[str]:
    return [_saving(flavour, group) for flavour, group in _by_flavour(lines).items()]


def _by_flavour(lines: Sequence[Line]) -> dict[str, list[Line]]:
    groups: dict[str, list[Line]] = defaultdict(list)
    for line in sorted(lines, key=lambda line: _order(line.gain.entry)):
        groups[line.gain.entry.flavour].append(line)
    return groups


def _saving(flavour: str, lines: Sequence[Line]) -> str:
    said = [f"{axis.name.lower()} {_span([n.gain.savings[axis.key] for n in lines])}" for axis in CONTESTED]
    return f"Saved at equal LDS by {code(flavour)}, over {count(len(lines), 'task')}: {'; '.join(said)}."


def _span(found: Sequence[Bounded]) -> str:
    """Say from where to where savings reach, those that are known and those known from below apart."""
    parts = []
    for place, lead in ((INSIDE, ""), (ABOVE, "at least ")):
        values = [one.value for one in found if one.place == place]
        ends = " to ".join(dict.fromkeys(percent(end) for end in (min(values), max(values)))) if values else ""
        parts += [f"{lead}{ends} on {len(values)}"] if values else []
    below = sum(one.place == BELOW for one in found)
    return ", ".join([*parts, *([f"none on {below}"] if below else [])])


def _at_equal_cost(lines: Sequence[Line]) -> list[str]:
    said = []
    for flavour, group in _by_flavour(lines).items():
        parts = [f"at equal {a.name.lower()} {_tally([n.duels[i] for n in group])}" for i, a in enumerate(CONTESTED)]
        said.append(f"{code(flavour)} against independent, by {count(len(group), 'task')}: {'; '.join(parts)}.")
    return said


def _tally(duels: Sequence[Duel]) -> str:
    outcomes: Counter[str] = Counter("ahead" if duel.outcome == "alone" else duel.outcome for duel in duels)
    names = {"ahead": "ahead", "level": "level", "behind": "behind", "beyond": "not known"}
    return ", ".join(f"{outcomes[key]} {name}" for key, name in names.items() if outcomes[key])


def _pairs(contests: Sequence[Contest]) -> list[str]:
    return [text for pair in PAIRS if (text := _pair(contests, *pair)) is not None]


def matched(family: Family, flavour: str, other: str) -> list[tuple[Entry, Entry]]:
    """Return pairs of two flavours' entries with as many models and members."""
    sized: dict[tuple[int, int], Entry] = {(e.models, e.members): e for e in family.others if e.flavour == other}
    pairs = [(e, sized.get((e.models, e.members))) for e in family.others if e.flavour == flavour]
    return [(a, b) for a, b in pairs if b is not None]


def _pair(contests: Sequence[Contest], flavour: str, other: str, title: str) -> str | None:
    pairs = [p for c in contests for family in c.families for p in matched(family, flavour, other)]
    if not pairs:
        return None
    values = sorted(difference(a, b)[0] for a, b in pairs)
    outcomes = Counter(ahead(a, b) for a, b in pairs)
    span = " to ".join(dict.fromkeys(map(signed_number, (values[0], values[-1]))))
    return (
        f"{title}, with as many models and members: better in {outcomes[1]}, worse in {outcomes[-1]}, not"
        f" distinguishable in {outcomes[0]} of {count(len(pairs), 'pair')}; LDS differences"
        f" {span}."
    )


def signed_number(value: float) -> str:
    """Write a difference of LDS with its sign."""
    return signed((value, value, value)).partition(" ")[0]
