"""Kinds of ensemble over all tasks and methods: what they save, how they do at equal cost, and against each other."""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace

from tdabench.findings.beyond import beyond
from tdabench.findings.curves import ABOVE, BELOW, INSIDE, Bounded
from tdabench.findings.entries import Contest, Entry, Family, ahead, difference
from tdabench.findings.markdown import bare, percent, plain, signed, table
from tdabench.findings.redrawn import Match, Redrawn, is_redrawn, redrawn
from tdabench.findings.savings import CLAIMED_KINDS, CLAIMS, Gain, gains
from tdabench.findings.winners import duel
from tdabench.findings.words import COSTS, flavour, listed, order, tally
from tdabench.formats import count, format_score

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
    ("checkpoints(span=whole)", "dropout", "Checkpoints of the whole training against dropout"),
    ("checkpoints(span=whole)", "checkpoints", "Checkpoints of the whole training against those of its second half"),
    (
        "checkpoints(span=whole, q_masks=20)",
        "checkpoints(span=whole)",
        "Checkpoints of the whole training with 20 dropout masks for the Q factor against the same without",
    ),
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
    ordered = sorted(groups.items(), key=lambda item: order(item[0]))
    return ["## Kinds of ensemble", "", *_savings(ordered), *_duels(ordered), *beyond(contests), *_pairs(contests)]


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
    middle = len(ranked) // 2
    least, half, most = map(bare, (ranked[0], _bound(ranked[: middle + 1]), _bound(ranked)))
    ends = "" if len(ranked) == 1 else f" [{least} to {most}]"
    if found[0].entry.kind not in CLAIMED_KINDS:
        return f"{half}{ends}"
    return f"{half}{ends}; claim reached by {sum(gain.reaches(axis) for gain in found)}"


def _bound(ranked: Sequence[Bounded]) -> Bounded:
    """Return the last, as a bound where one before it is: that might be the larger, and another then the last."""
    last = ranked[-1]
    more = last.place == INSIDE and any(found.place == ABOVE for found in ranked)
    return replace(last, place=ABOVE) if more else last


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
    luck = redrawn(contests)
    said = [text for pair in PAIRS if (text := _pair(contests, luck, *pair)) is not None]
    said += [luck.text()] if luck.pairs else []
    lead = [
        "**With as many models and members**, against each other. Where a method projects at random, every dropout mask"
        " has a projection of its own, too, as every member has; with dropout for the Q factor alone, all masks of a"
        " model share one. So what dropout everywhere adds to that is in part what projections alone add; likewise"
        " `ek-fac` draws its labels for every member, whatever the ensemble. On sequences"
        " the Q factor is nearly the same for all examples, so dropout for it alone changes next to nothing there.",
        "",
    ]
    return [*lead, *(f"- {text}" for text in said), ""] if said else []


def matched(family: Family, first: str, second: str) -> list[tuple[Entry, Entry]]:
    """Return pairs of two flavours' entries with as many models and members."""
    sized: dict[tuple[int, int], Entry] = {(e.models, e.members): e for e in family.others if e.flavour == second}
    pairs = [(e, sized.get((e.models, e.members))) for e in family.others if e.flavour == first]
    return [(a, b) for a, b in pairs if b is not None]


def matches(contests: Sequence[Contest], first: str, second: str) -> list[Match]:
    """Return these pairs of all methods and tasks, but for those that are the same ensemble drawn anew."""
    pairs = [(c, a, b) for c in contests for family in c.families for a, b in matched(family, first, second)]
    return [pair for pair in pairs if not is_redrawn(*pair)]


def outcomes(pairs: Sequence[Match]) -> Counter[int]:
    """Count where the first of a pair is better (1), level (0) and worse (-1) than the second."""
    return Counter(ahead(a, b) for _, a, b in pairs)


def worse_on(pairs: Sequence[Match]) -> str:
    """Say on which tasks the first of a pair is worse, and on how many of their pairs."""
    tried = Counter(contest.title for contest, _, _ in pairs)
    lost = Counter(contest.title for contest, a, b in pairs if ahead(a, b) < 0)
    return f" (worse on {listed([f'{plain(title)}: {n} of {tried[title]}' for title, n in sorted(lost.items())])})"


def _pair(contests: Sequence[Contest], luck: Redrawn, first: str, second: str, title: str) -> str | None:
    pairs = matches(contests, first, second)
    if not pairs:
        return None
    values = sorted(difference(a, b)[0] for _, a, b in pairs)
    found = outcomes(pairs)
    span = " to ".join(dict.fromkeys(map(_signed, (values[0], values[-1]))))
    text = (
        f"{title}: better in {found[1]}, level in {found[0]}, worse in {found[-1]} of"
        f" {count(len(pairs), 'pair')}; LDS differences {span}"
    )
    if luck.pairs:
        sizes = [(ahead(a, b), abs(difference(a, b)[0]) > luck.most) for _, a, b in pairs]
        text += f", by more than {format_score(luck.most)} better in {sizes.count((1, True))}"
        text += f" and worse in {sizes.count((-1, True))}"
    return f"{text}{_serving(pairs)}."


def _signed(value: float) -> str:
    return signed((value, value, value)).partition(" ")[0]


def _serving(pairs: Sequence[Match]) -> str:
    ratios = [a.costs["serve"] / b.costs["serve"] for _, a, b in pairs if b.costs["serve"] > 0]
    return f"; serving takes {statistics.median(ratios):.2g} times as long (median)" if ratios else ""
