"""The section of one task on one machine class: what was run, the tables, and the sentences that they say."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

from tdabench.board.rows import AXES, Axis, format_score
from tdabench.findings.agreement import growths
from tdabench.findings.entries import Contest, Entry
from tdabench.findings.markdown import code, count, listing, percent, plain, score, share, size, table
from tdabench.findings.savings import CLAIMS, Gain, Verdict, gains, verdicts
from tdabench.findings.winners import Winner, strongest, winners

CONTESTED = tuple(axis for axis in AXES if axis.key in CLAIMS)
"""The costs that winners are named at: those that the claim is about."""
_AXIS = {axis.key: axis for axis in AXES}
_TITLES = {"one model": "One model"}


def section(contest: Contest) -> list[str]:
    """Return the lines of a contest's section."""
    return [
        f"## {contest.title}",
        "",
        *_facts(contest),
        *_measured(contest),
        *_savings(contest),
        *_winners(contest),
        *_agreement(contest),
        *_without(contest),
    ]


def _facts(contest: Contest) -> list[str]:
    task, records = contest.task, [record for entry in contest.entries for record in entry.records]
    methods, flavours = (sorted({getattr(e, name) for e in contest.entries}) for name in ("method", "flavour"))
    seeds = sorted({record.seed for record in records})
    ceiling = "unknown" if task.ceiling is None else format_score(task.ceiling)
    return [
        f"{plain(task.title)}, version {code(task.version)}: {task.n_train} training examples; LDS over"
        f" {count(task.n_queries, 'reported query', 'reported queries')} and {task.n_subsets} subsets x"
        f" {count(task.n_seeds, 'seed')}; noise ceiling {ceiling}.",
        "",
        f"- {count(len(records), 'run')} with an LDS, of {count(len(contest.entries), 'configuration')},"
        f" {count(len(contest.without), 'run')} without; run seeds {', '.join(map(str, seeds)) or 'none'}.",
        f"- Machine class {code(contest.machine.machine_class)}: {plain(contest.place)}.",
        f"- Methods: {', '.join(code(m) for m in methods) or 'none'}.",
        f"- Ensembles: {', '.join(code(f) for f in flavours) or 'none'}.",
        "",
    ]


def _measured(contest: Contest) -> list[str]:
    """Write a table for every kind of ensemble, all methods in it, by method, variant and size."""
    groups: dict[str, list[Entry]] = defaultdict(list)
    for entry in contest.entries:
        groups[entry.kind].append(entry)
    lines = ["### Measured", ""] if groups else []
    columns = ["method", "ensemble", "runs", "LDS [95 %]", *(axis.name.lower() for axis in AXES)]
    for kind, entries in groups.items():
        lines += [f"**{_TITLES.get(kind, f'Kind: {kind}')}**", ""]
        lines += table(columns, [_measured_row(entry) for entry in entries], left=2)
    return lines


def _measured_row(entry: Entry) -> list[str]:
    costs = [axis.text(entry.costs[axis.key]) for axis in AXES]
    method = f"{entry.record.method}{entry.name.removeprefix(entry.record.label)}"
    return [code(method), code(entry.ensemble), str(len(entry.records)), score(entry.lds, entry.interval), *costs]


def _savings(contest: Contest) -> list[str]:
    found = [gain for family in contest.families for gain in gains(family)]
    columns = ["ensemble", "LDS", "as good as independent ×", *(f"saved: {axis.name.lower()}" for axis in AXES)]
    said = [f"- {sentence(group)}" for group in _by_method(verdicts(contest))]
    alone = [code(f.name) for f in contest.families if f.others and len(f.curve) < 2]
    if alone:
        said.append(f"- Not held against anything, as no independent ensembles were run: {', '.join(alone)}.")
    if not found and not said:
        return []
    return [
        "### Saving at equal LDS",
        "",
        *table(columns, [_saving_row(gain) for gain in found]),
        *said,
        *([""] if said else []),
    ]


def _saving_row(gain: Gain) -> list[str]:
    shares = [share(gain.savings[axis.key]) for axis in AXES]
    return [code(gain.entry.name), format_score(gain.entry.lds), size(gain.size), *shares]


def _by_method(found: Sequence[Verdict]) -> list[list[Verdict]]:
    groups: dict[int, list[Verdict]] = defaultdict(list)
    for i, verdict in enumerate(found):
        groups[i // len(CLAIMS)].append(verdict)
    return list(groups.values())


def sentence(group: Sequence[Verdict]) -> str:
    """Hold one method's verdicts, one a cost, against the claim in one sentence."""
    parts = [f"{percent(CLAIMS[v.axis])} of {_AXIS[v.axis].name.lower()} **{v.outcome}**{_best(v)}" for v in group]
    first = group[0]
    tried = count(first.n, "dropout or LoRA ensemble")
    return f"{code(first.method)}, the claimed savings by any of {tried}: {'; '.join(parts)}."


def _best(verdict: Verdict) -> str:
    if verdict.best is None:
        return ": none is as good as a single model"
    best = f": at best {share(verdict.best.savings[verdict.axis])} by {code(verdict.best.entry.ensemble)}"
    if verdict.outcome != "cannot be told":
        return best
    beyond = f", {verdict.n_beyond} better than the largest independent ensemble" if verdict.n_beyond else ""
    return f"{best} ({verdict.n_miss} of {verdict.n} surely below{beyond})"


def _winners(contest: Contest) -> list[str]:
    lines = []
    families = [family for family in contest.families if len(family.curve) > 1 and family.others]
    for family in families:
        found = [winner for axis in CONTESTED for winner in winners(family.entries, family.curve, axis.key)]
        lines += [f"**Among the ensembles of {code(family.name)}**", "", *_ladder(found, whole=False)]
    ladder = strongest(contest.families)
    if ladder is not None:
        found = [winner for axis in CONTESTED for winner in winners(contest.entries, ladder.curve, axis.key)]
        lines += [f"**Among all methods, at the costs of {code(ladder.name)}**", "", *_ladder(found, whole=True)]
    return ["### Winners at equal cost", "", *lines] if lines else []


def _ladder(found: Sequence[Winner], whole: bool) -> list[str]:
    """Write winners as a table; ``whole`` names give the method as well."""
    columns = ["equal", "budget of", "is", "within it", "best", "LDS [95 %]", "not distinguishable from it"]
    return table(columns, [_ladder_row(winner, _AXIS[winner.axis], whole) for winner in found], left=2)


def _ladder_row(winner: Winner, axis: Axis, whole: bool) -> list[str]:
    def name(entry: Entry) -> str:
        return code(entry.name if whole else entry.ensemble)

    level = listing([name(entry) for entry in winner.level], 4) or "none"
    return [
        axis.name.lower(),
        f"independent × {winner.budget.members}",
        axis.text(winner.budget.costs[axis.key]),
        str(winner.n),
        name(winner.best),
        score(winner.best.lds, winner.best.interval),
        level,
    ]


def _agreement(contest: Contest) -> list[str]:
    rows = [
        [
            code(family.name),
            code(growth.flavour),
            *(f"{format_score(e.lds)} at {e.members}" for e in (growth.first, growth.last)),
            *map(format_score, (growth.at_last, growth.limit, growth.within, growth.between)),
        ]
        for family in contest.families
        for growth in growths(family)
    ]
    columns = ["method", "ensemble", "smallest", "largest", "predicted largest", "predicted limit"]
    columns += ["correlation within a model", "between models"]
    return ["### How members agree", "", *table(columns, rows, left=2)] if rows else []


def _without(contest: Contest) -> list[str]:
    if not contest.without:
        return []
    said = Counter(
        (row.record.status, row.record.reason or "of an older version of the task", row.record.label)
        for row in contest.without
    )
    rows = [[code(label), status, plain(reason), str(n)] for (status, reason, label), n in sorted(said.items())]
    return ["### Declined, failed or out of date", "", *table(["run", "status", "reason", "runs"], rows, left=3)]
