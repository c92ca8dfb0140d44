"""Kinds of ensemble over all tasks and methods: what they save, how they do at equal cost, and against each other."""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Sequence

from tdabench.ensembles import KINDS
from tdabench.findings.curves import BELOW, Bounded
from tdabench.findings.entries import Contest, Entry, Family, ahead, difference
from tdabench.findings.markdown import bare, count, percent, signed, table
from tdabench.findings.savings import CLAIMED_KINDS, CLAIMS, Gain, gains
from tdabench.findings.winners import duel
from tdabench.findings.words import COSTS, flavour, tally

PAIRS = (
    ("dropout(scope=q-only)", "dropout", "Dropout for the Q factor alone against dropout everywhere"),
    ("dropout(mask=per-sample)", "dropout", "A mask for every example against one mask a member"),
    (
        "dropout(scope=q-only, mask=per-sample)",
        "dropout(scope=q-only)",
        "The same, with dropout for the Q factor alone",
    ),
    ("lora", "dropout", "LoRA against dropout"),
    ("lora(rank=2)", "lora", "LoRA of rank 2 against rank 8"),
    ("lora(rank=32)", "lora", "LoRA of rank 32 against rank 8"),
    ("lora(epochs=1)", "lora", "LoRA fine-tuned for 1 epoch against 5"),
    ("lora(epochs=20)", "lora", "LoRA fine-tuned for 20 epochs against 5"),
    ("checkpoints", "dropout", "Checkpoints of one training against dropout"),
    ("projections", "dropout", "Projections of the same model against dropout"),
    ("projections", "dropout(scope=q-only)", "Projections of the same model against dropout for the Q factor alone"),
)
"""Flavours compared at equal numbers of models and members: questions that the paper's figures leave open."""

Group = list[tuple[Contest, Family, Gain]]


def all_gains(contests: Sequence[Contest]) -> Group:
    """Return what every ensemble saves, with where it was measured and its method's family."""
    return [(contest, family, gain) for contest in contests for family in contest.families for gain in gains(family)]


def kinds(contests: Sequence[Contest]) -> list[str]:
    """Return the lines about kinds of ensemble."""
    groups: dict[str, Group] = defaultdict(list)
    for contest, family, gain in all_gains(contests):
        groups[gain.entry.flavour].append((contest, family, gain))
    if not groups:
        return []
    ordered = sorted(groups.items(), key=lambda item: _order(item[0]))
    return ["## Kinds of ensemble", "", *_savings(ordered), *_duels(ordered), *_pairs(contests)]


def _order(text: str) -> tuple[int, str]:
    known, kind = list(KINDS), text.partition("(")[0]
    return (known.index(kind) if kind in known else len(known)), text


def _name(text: str, group: Group) -> list[str]:
    n_tasks = len({contest.task.name for contest, _, _ in group})
    return [flavour(text), f"{len(group)} on {count(n_tasks, 'task')}"]


def _savings(groups: Sequence[tuple[str, Group]]) -> list[str]:
    columns = ["kind", "ensembles"]
    columns += [
        f"{COSTS[axis]} saved (claimed of dropout and LoRA: up to {percent(share)})" for axis, share in CLAIMS.items()
    ]
    rows = [
        [*_name(text, group), *(_saved([g for _, _, g in group], axis) for axis in CLAIMS)] for text, group in groups
    ]
    return [
        "**Saved at equal LDS**, over all tasks, methods and sizes, against independent ensembles of the same method:"
        " half of the ensembles save at least so much; in brackets the least and the most. ≥ and ≤ are bounds: better"
        " than the largest independent ensemble.",
        "",
        *table(columns, rows, left=2),
    ]


def _saved(found: Sequence[Gain], axis: str) -> str:
    ranked = sorted((gain.savings[axis] for gain in found), key=_rank)
    least, half, most = (bare(ranked[i]) for i in (0, len(ranked) // 2, -1))
    ends = "" if len(ranked) == 1 else f" [{least} to {most}]"
    if found[0].entry.kind not in CLAIMED_KINDS:
        return f"{half}{ends}"
    return f"{half}{ends}; claim reached by {sum(gain.reaches(axis) for gain in found)}"


def _rank(found: Bounded) -> tuple[bool, bool, float, int]:
    return found.place != BELOW, found.high_place != BELOW, found.value, found.place


def _duels(groups: Sequence[tuple[str, Group]]) -> list[str]:
    columns = ["kind", "ensembles", *(f"at equal {COSTS[axis]}" for axis in CLAIMS)]
    rows = [
        [*_name(text, group), *(tally(duel(gain.entry, family, axis) for _, family, gain in group) for axis in CLAIMS)]
        for text, group in groups
    ]
    return [
        "**LDS at the ensemble's own cost**, against independent ensembles of the same method that cost as much."
        " Dearer: than the largest independent ensemble, so that nothing was measured at the same cost.",
        "",
        *table(columns, rows, left=len(columns)),
    ]


def _pairs(contests: Sequence[Contest]) -> list[str]:
    said = [text for pair in PAIRS if (text := _pair(contests, *pair)) is not None]
    lead = [
        "**With as many models and members**, against each other. Where a method projects at random, every dropout mask"
        " has a projection of its own, too, as every member has; with dropout for the Q factor alone, all masks of a"
        " model share one. So what dropout everywhere adds to that is in part what projections alone add.",
        "",
    ]
    return [*lead, *(f"- {text}" for text in said), ""] if said else []


def matched(family: Family, first: str, second: str) -> list[tuple[Entry, Entry]]:
    """Return pairs of two flavours' entries with as many models and members."""
    sized: dict[tuple[int, int], Entry] = {(e.models, e.members): e for e in family.others if e.flavour == second}
    pairs = [(e, sized.get((e.models, e.members))) for e in family.others if e.flavour == first]
    return [(a, b) for a, b in pairs if b is not None]


def _all_matched(contests: Sequence[Contest], first: str, second: str) -> list[tuple[Entry, Entry]]:
    return [p for c in contests for family in c.families for p in matched(family, first, second)]


def outcomes_of(contests: Sequence[Contest], first: str, second: str) -> Counter[int]:
    """Count where one flavour's entries are better (1), level (0) and worse (-1) than another's of the same size."""
    return Counter(ahead(a, b) for a, b in _all_matched(contests, first, second))


def _pair(contests: Sequence[Contest], first: str, second: str, title: str) -> str | None:
    pairs = _all_matched(contests, first, second)
    if not pairs:
        return None
    values = sorted(difference(a, b)[0] for a, b in pairs)
    outcomes = outcomes_of(contests, first, second)
    span = " to ".join(dict.fromkeys(map(_signed, (values[0], values[-1]))))
    return (
        f"{title}: better in {outcomes[1]}, level in {outcomes[0]}, worse in {outcomes[-1]} of"
        f" {count(len(pairs), 'pair')}; LDS differences {span}{_serving(pairs)}."
    )


def _signed(value: float) -> str:
    return signed((value, value, value)).partition(" ")[0]


def _serving(pairs: Sequence[tuple[Entry, Entry]]) -> str:
    ratios = [a.costs["serve"] / b.costs["serve"] for a, b in pairs if b.costs["serve"] > 0]
    return f"; serving takes {statistics.median(ratios):.2g} times as long (median)" if ratios else ""
