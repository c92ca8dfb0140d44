"""The section of one task on one machine class: what was run, the tables, and the sentences that they say."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from statistics import median

from tdabench.findings.agreement import growths
from tdabench.findings.entries import ONE_MODEL, Contest, Entry, Family
from tdabench.findings.markdown import code, percent, plain, score, share, signed, size, table
from tdabench.findings.savings import CLAIMS, Gain, Verdict, gains, verdicts
from tdabench.findings.winners import Duel, Winner, duel, strongest, winners
from tdabench.findings.words import AXIS, COSTS, SLACK, contender, ensemble, flavour, listed, method, rest
from tdabench.formats import NO_VALUE, count, format_predicted, format_score, format_seconds, listing
from tdabench.model_names import is_model
from tdabench.results.axes import AXES
from tdabench.results.prices import Price
from tdabench.results.runs import Run
from tdabench.results.words import seeds_used

SAVED = ("train", "serve", "total", "memory", "storage")
"""The costs whose saving is shown; the rest are in the numbers that the command prints as JSON."""


def section(contest: Contest) -> list[str]:
    """Return the lines of a contest's section."""
    return [
        f"## {plain(contest.title)}",
        "",
        *_facts(contest),
        *_measured(contest),
        *_savings(contest),
        *_equal_cost(contest),
        *_agreement(contest),
        *_without(contest),
    ]


def _facts(contest: Contest) -> list[str]:
    task, n_runs = contest.task, sum(len(entry.records) for entry in contest.entries)
    ceiling = "unknown" if task.ceiling is None else format_score(task.ceiling)
    facts = [
        f"{count(n_runs, 'run')} with an LDS, of {count(len(contest.entries), 'configuration')};"
        f" {count(len(contest.without), 'run')} without.",
        f"Machine class {code(contest.machine.machine_class)}: {plain(contest.place)}.",
        *_lent(contest),
        *([seeds_used([(e.seeds, e.draws.knows_luck) for e in contest.entries])] if contest.entries else []),
        *_price(contest),
        *_ranks(contest),
        *_busy(contest),
        *_options(contest),
        *_codes(contest),
        *_sources(contest),
    ]
    return [
        f"{plain(task.title)}, version {code(task.version)}: {task.n_train} training examples; LDS over"
        f" {count(task.n_queries, 'reported query', 'reported queries')} and {task.n_subsets} subsets x"
        f" {count(task.n_seeds, 'retraining seed')}; noise ceiling {ceiling}.",
        "",
        *(f"- {fact}" for fact in facts),
        "",
    ]


def _lent(contest: Contest) -> list[str]:
    runs = [run for entry in contest.entries for run in entry.lent]
    if not runs:
        return []
    lenders = listing([code(key) for key in sorted({run.record.machine.machine_class for run in runs})])
    several = sum(bool(entry.lent) for entry in contest.entries)
    return [
        f"{count(len(runs), 'more run')} at other run seeds, lent by machine class {lenders}, which computes the same"
        f" scores: {count(several, 'configuration has its', 'configurations have their')} LDS from them, too."
    ]


def _price(contest: Contest) -> list[str]:
    price = contest.price
    if price is None:
        return []
    measured = f"the median of {price.n} models" if price.n > 1 else "as measured once"
    took = f"Training one model takes {format_seconds(price.seconds)}, {measured}"
    return [
        f"{took}; every model is priced at that, whether its training gives checkpoints or not.",
        *_adapters(contest, price),
    ]


def _adapters(contest: Contest, price: Price) -> list[str]:
    """Say what an adapter takes of what a model does: whether it can save anything follows from that.

    Nothing where a model took no time that the clock could tell.
    """
    if price.seconds == 0:
        return []
    times: dict[str, list[float]] = defaultdict(list)
    for entry in contest.entries:
        if entry.kind == "lora":
            for record in entry.records:
                adapters = [t.wall_s for name, t in record.trainings.items() if not is_model(name)]
                times[entry.flavour] += [wall_s / price.seconds for wall_s in adapters]
    said = [f"{median(found):.2g} for {flavour(name)}" for name, found in sorted(times.items()) if found]
    return [f"Fine-tuning an adapter takes, in models (medians): {', '.join(said)}."] if said else []


def _ranks(contest: Contest) -> list[str]:
    """Say which ranks no layer of the model allows."""
    ranks = {(entry.asked_rank, contest.rank(entry)) for entry in contest.entries}
    above = {asked: rank for asked, rank in ranks if asked is not None and rank is not None and asked > rank}
    if not above:
        return []
    asked = listed([str(asked) for asked in sorted(above)])
    rank = next(iter(above.values()))
    return [f"LoRA adapters of rank {asked} are of rank {rank} here: no layer that takes one allows more."]


def _busy(contest: Contest) -> list[str]:
    records = [record for entry in contest.entries for record in entry.records]
    n = sum(bool(record.busy()) for record in records)
    return [f"Times of {n} of {count(len(records), 'run')} are too long: the machine did other work."] if n else []


def _options(contest: Contest) -> list[str]:
    """Say whose options were not tuned on the task, since a method at its defaults may be worth more."""
    said = []
    for untuned, words in (("at defaults", "at their defaults"), ("set by hand", "set by hand")):
        names = {entry.method for entry in contest.entries if entry.untuned == untuned}
        said += [f"{words} for {', '.join(code(name) for name in sorted(names))}"] if names else []
    return [f"Options that can be tuned, but were not: {'; '.join(said)}."] if said else []


def _codes(contest: Contest) -> list[str]:
    """Say which methods were run with several versions of their code, or of torch: told apart, never averaged."""
    versions: dict[str, set[str]] = defaultdict(set)
    for entry in contest.entries:
        versions[entry.method].add(entry.code)
    changed = [code(name) for name, found in sorted(versions.items()) if len(found) > 1]
    said = []
    if changed:
        said.append(f"Run with several versions of their code, which are told apart by its hash: {', '.join(changed)}.")
    torches = sorted({entry.versions.get("torch", "unknown") for entry in contest.entries})
    if len(torches) > 1:
        said.append(
            "Run with several versions of torch, whose models differ and are not averaged:"
            f" {', '.join(map(plain, torches))}."
        )
    return said


def _sources(contest: Contest) -> list[str]:
    """Say which methods' ensembles were measured with several versions of tdabench: its engine sets time and memory."""
    mixed = [code(family.name) for family in contest.families if len(family.sources) > 1]
    if not mixed:
        return []
    return [
        "Measured with several versions of tdabench's own sources, so that a part of what serving time and memory"
        f" differ by may be theirs: {', '.join(mixed)}."
    ]


# --- LDS and costs


def _measured(contest: Contest) -> list[str]:
    """Write a table for every method with ensembles, and one of all methods on one model."""
    if not contest.entries:
        return []
    columns = ["LDS [95 %]", *(axis.name.lower() for axis in AXES), "run seeds"]
    lines = ["### LDS and costs", ""]
    families = contest.families
    for family in families:
        if any(entry.kind != ONE_MODEL for entry in family.entries):
            rows = [[ensemble(entry), *_costs(entry)] for entry in family.entries]
            lines += [f"**{code(family.name)}**", "", *table(["ensemble", *columns], rows)]
    alone = sorted((e for e in contest.entries if e.kind == ONE_MODEL), key=lambda e: (-e.lds, e.name))
    if len(alone) > 1 or not any(family.others for family in families):
        heads = ["method", *columns, "tuning", "AUROC of wrong labels"]
        if all(entry.auroc is None for entry in alone):
            heads.pop()
        rows = [[code(method(e)), *_costs(e), _tuning(e), format_score(e.auroc)][: len(heads)] for e in alone]
        lines += ["**All methods on one model**", "", *table(heads, rows)]
    return lines


def _tuning(entry: Entry) -> str:
    """Return the time that choosing the options took; none where they were not chosen by tuning."""
    costs = entry.record.costs
    if costs is None or entry.record.options_from != "tuned":
        return NO_VALUE
    return "elsewhere" if costs.tune_s is None else format_seconds(costs.tune_s)


def _costs(entry: Entry) -> list[str]:
    costs = [axis.text(entry.costs[axis.key]) for axis in AXES]
    return [score(entry.lds, entry.interval), *costs, str(len(entry.seeds))]


# --- the saving


def _savings(contest: Contest) -> list[str]:
    found = [(family, gains(family)) for family in contest.families]
    said = [f"- {text}" for group in _by_method(verdicts(contest)) for text in sentences(group)]
    said += [f"- {text}" for text in _not_held(contest)]
    tables = [line for family, made in found if made for line in _saving_table(family, made)]
    if not tables and not said:
        return []
    return ["### Saved at equal LDS", "", *tables, *said, *([""] if said else [])]


def _not_held(contest: Contest) -> list[str]:
    """Say which methods' ensembles are held against nothing, and what would have to be run for that."""
    groups: dict[str, list[str]] = {"single model was run": [], "independent ensembles were run": []}
    single, independent = groups.values()
    for family in contest.families:
        if family.others and not family.compares:
            (single if family.curve and not family.from_one else independent).append(code(family.name))
    return [f"Not held against anything, as no {what}: {', '.join(names)}." for what, names in groups.items() if names]


def _saving_table(family: Family, found: Sequence[Gain]) -> list[str]:
    columns = [
        "ensemble",
        "LDS",
        "as good as how many independent models",
        *(f"{_saved(axis)} saved" for axis in SAVED),
    ]
    largest = ensemble(family.curve[-1])
    return [
        f"**{code(family.name)}**: the share of a cost that an ensemble saves against independent models of the same"
        f" LDS, with the 95 % interval. ≥ and ≤ are bounds: it is better than {largest}, the most that were run.",
        "",
        *table(columns, [_saving_row(gain) for gain in found]),
    ]


def _saved(axis: str) -> str:
    return COSTS.get(axis, AXIS[axis].name.lower())


def _saving_row(gain: Gain) -> list[str]:
    shares = [share(gain.savings[axis]) for axis in SAVED]
    return [ensemble(gain.entry), format_score(gain.entry.lds), size(gain.size), *shares]


def _by_method(found: Sequence[Verdict]) -> list[list[Verdict]]:
    groups: dict[str, list[Verdict]] = defaultdict(list)
    for verdict in found:
        groups[verdict.method].append(verdict)
    return list(groups.values())


def sentences(group: Sequence[Verdict]) -> list[str]:
    """Hold one method's verdicts, one a cost, against the claim; and whether one ensemble saves all at once."""
    name, tried = code(group[0].method), group[0].tried
    whole = [ensemble(gain.entry) for gain in tried if gain.whole == "reached"]
    said = [f"{name}, up to {percent(CLAIMS[v.axis])} of {COSTS[v.axis]}: **{v.outcome}**{_why(v)}." for v in group]
    left = rest(Counter(gain.whole for gain in tried), {"cannot be told": "open for"})
    at_once = f"by {listed(whole)}" if whole else f"by none of {count(len(tried), 'dropout or LoRA ensemble')}"
    return [*said, f"{name}, all three at once: {at_once}{left}."]


def _why(verdict: Verdict) -> str:
    one_seed = " (one seed)" if verdict.one_seed and verdict.outcome != "cannot be told" else ""
    if verdict.best is None:
        return f"{one_seed}; none is as good as a single model"
    those = "of those that reach it, at best" if verdict.n_reach else "at best"
    best = f"{one_seed}; {those} {share(verdict.best.savings[verdict.axis])} by {ensemble(verdict.best.entry)}"
    if verdict.outcome != "cannot be told":
        return best
    beyond = f"; {verdict.n_beyond} better than the largest independent ensemble" if verdict.n_beyond else ""
    return f"{best} (not reached by {verdict.n_miss} of {len(verdict.tried)}{beyond})"


# --- at equal cost


def _equal_cost(contest: Contest) -> list[str]:
    lines = []
    for family in contest.families:
        if len(family.curve) > 1 and family.others:
            lines += _ladder(family, family.entries, whole=False)
            lines += _duels(family) if family.compares else []
    ladder = strongest(contest.families)
    if ladder is not None and len(contest.families) > 1:
        lines += _ladder(ladder, contest.entries, whole=True)
    return ["### Who wins at equal cost", "", *lines] if lines else []


def _ladder(family: Family, entries: Sequence[Entry], whole: bool) -> list[str]:
    """Write the winner at each budget as a table; ``whole`` names give the method as well."""
    found = [winners(entries, family.curve, axis) for axis in CLAIMS]
    who = f"All methods, at the costs of {code(family.name)}" if whole else f"Ensembles of {code(family.name)}"
    rows = [
        [f"{ensemble(rung)}, LDS {format_score(rung.lds)}", *(_winner(axis[i], whole) for axis in found)]
        for i, rung in enumerate(family.curve)
    ]
    columns = ["at most the cost of", *(f"equal {COSTS[axis]}" for axis in CLAIMS)]
    return [
        f"**{who}**, within {SLACK}: the best at that cost, its LDS with the 95 % interval, and what is level with it.",
        "",
        *table(columns, rows, left=len(columns)),
    ]


def _winner(winner: Winner, whole: bool) -> str:
    name = contender if whole else ensemble
    level = listing([name(entry) for entry in winner.level], 3, "; ") or "none"
    best = winner.best
    cost, budget = (AXIS[winner.axis].text(entry.costs[winner.axis]) for entry in (best, winner.budget))
    return f"**{name(best)}**: {score(best.lds, best.interval)} at {cost} (budget {budget}). Level: {level}"


def _duels(family: Family) -> list[str]:
    columns = ["ensemble", *(f"at equal {COSTS[axis]}" for axis in CLAIMS)]
    rows = [[ensemble(entry), *(_duel(duel(entry, family, axis)) for axis in CLAIMS)] for entry in family.others]
    return [
        f"**Each ensemble of {code(family.name)} at its own cost**: its LDS less that of as many independent models as"
        " cost the same, with the 95 % interval.",
        "",
        *table(columns, rows, left=len(columns)),
    ]


def _duel(found: Duel) -> str:
    models = f"{found.size:.1f}".removesuffix(".0")
    noun = "model" if models == "1" else "models"
    cost = "" if 0.95 < found.excess < 1.05 else f" at {found.excess:.2g} times the cost"
    return f"{found.outcome}: {signed(found.difference)} against {models} {noun}{cost}"


# --- members, and runs without an LDS


def _agreement(contest: Contest) -> list[str]:
    rows = [
        [
            code(family.name),
            flavour(growth.flavour),
            *(f"{format_score(e.lds)} at {_counted(e)}" for e in (growth.first, growth.last)),
            *map(format_predicted, (growth.at_last, growth.limit)),
            *map(format_score, (growth.within, growth.between)),
        ]
        for family in contest.families
        for growth in growths(family)
    ]
    if not rows:
        return []
    columns = ["method", "members", "LDS of the fewest", "LDS of the most", "predicted for the most"]
    columns += ["predicted without end", "correlation within a model", "correlation between models"]
    return [
        "### How members agree",
        "",
        "Mean correlations of the scores of the largest ensemble's members, and the LDS that they predict from that of"
        " the smallest of the kind, of one model where that was run, and fitted to nothing else."
        " The prediction takes members to be equally good and their scores to be averaged: early checkpoints are worse"
        " than late ones, and TRAK multiplies two means, so there an LDS may come out above the limit."
        " Dropout for the Q factor alone has no correlations, as no mask has scores of its own."
        f" {NO_VALUE}: of one size alone nothing is predicted. Where"
        " the two were run with different seeds, the prediction starts from the smallest at those that both have.",
        "",
        *table(columns, rows, left=2),
    ]


def _counted(entry: Entry) -> str:
    """Return how many members, and of how many models where both could vary."""
    several = entry.models > 1 and entry.members > entry.models
    return f"{entry.members} of {entry.models} models" if several else str(entry.members)


def _without(contest: Contest) -> list[str]:
    said = Counter((run.record.status, _reason(run, contest), run.record.label) for run in contest.without)
    rows = [[code(label), status, plain(reason), str(n)] for (status, reason, label), n in sorted(said.items())]
    lines = table(["run", "status", "reason", "runs"], rows, left=3)
    return ["### Declined, failed or out of date", "", *lines] if rows else []


def _reason(run: Run, contest: Contest) -> str:
    old = run.record.task_version != contest.task.version
    return run.reason or ("of an older version of the task" if old else "the task has no ground truth")
