"""The document: its header, how to read it, the summary, a section a task, and what was not run."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from tdabench._version import __version__
from tdabench.board.findings import describe_machine
from tdabench.board.rows import AXES, Row, TaskInfo, in_order
from tdabench.ensembles import format_ensemble, kind_of, parse_ensemble
from tdabench.evaluation import RESAMPLE_SEED
from tdabench.findings.entries import Contest, contests_of
from tdabench.findings.markdown import code, count, listing, percent, plain, table
from tdabench.findings.savings import CLAIMS
from tdabench.findings.sections import section
from tdabench.findings.summary import summary
from tdabench.findings.winners import TOLERANCE
from tdabench.jobs import Job, shown
from tdabench.options import values
from tdabench.registry import find_task
from tdabench.suites import Suite

_HOW = (
    "**LDS**: from the stored scores, on the reported queries; 95 % intervals from {resamples} resamples of subsets and"
    " queries (seed {seed}), the same for all runs of a task, so comparisons are paired (docs/protocol.md).",
    "**Costs**: from the records, measured once for each run, so intervals hold no noise of costs.{repeated} Tuning is"
    " not among them. Times are compared inside one machine class only.",
    "**Saving at equal LDS**: 1 - cost / cost of independent ensembles of the same method and options at the size that"
    " reaches the same LDS. Between measured sizes the LDS is linear in the logarithm of the size and the cost linear"
    " in the size; a larger ensemble that scores lower counts as its best smaller one. `≥`: better than the largest"
    " independent ensemble, so the saving is at least that against it. `none`: not as good as the smallest. Negative:"
    " costs more. The interval recomputes curve and run in every resample.",
    "**Claim** ({claim}): met where the whole interval of some dropout or LoRA ensemble is at or above it, not met"
    " where those of all are below it, else it cannot be told. The best of several is shown, not adjusted for the"
    " choice.",
    "**Winner at equal cost**: the highest LDS among runs that cost at most as much as the independent ensemble of that"
    " size, within {tolerance}, since measured times vary. Not distinguishable: the paired interval of the difference"
    " holds 0, unadjusted for the number of comparisons. In the summary a run is held against the independent curve at"
    " its own cost; where it is ahead of the largest but costs more, who wins is not known.",
    "**Members**: mean correlations of members' scores; the LDS predicted from the smallest ensemble of its kind"
    " (tdabench/saturation.py), fitted to nothing else.",
)


@dataclass(frozen=True)
class Source:
    """What the findings are made from.

    Attributes
    ----------
    command
        What makes them again.
    suites
        Suites whose missing runs, and whose reasons to leave something out, are told.
    """

    command: str
    suites: tuple[Suite, ...] = ()


def render(rows: Sequence[Row], tasks: Sequence[TaskInfo], source: Source) -> str:
    """Write the findings of evaluated runs as Markdown; the same runs in any order are the same bytes."""
    ordered = in_order(rows)
    contests = contests_of(ordered, tasks)
    lines = [
        "# Findings",
        "",
        *_header(ordered, source),
        *summary(contests),
        *_not_run(ordered, contests, source),
        *_how_to_read(contests),
    ]
    for contest in contests:
        lines += section(contest)
    return "\n".join(lines).rstrip("\n") + "\n"


def _header(rows: Sequence[Row], source: Source) -> list[str]:
    machines = {row.record.machine.machine_class: row.record.machine for row in rows}
    made = [row.record.provenance for row in rows]
    torch = sorted({p.packages["torch"] for p in made if "torch" in p.packages})
    commits = sorted({f"{(p.commit or 'unknown')[:10]}{' with changes' if p.dirty else ''}" for p in made})
    return [
        f"Do cheap ensembles save what [arXiv 2405.17293](https://arxiv.org/abs/2405.17293) claims? Every number and"
        f" every sentence is computed from run folders by tdabench {__version__}:",
        "",
        "```",
        source.command,
        "```",
        "",
        f"- {count(len(rows), 'run')} of {count(len({r.record.task for r in rows}), 'task')}, of which"
        f" {sum(row.lds is not None for row in rows)} have an LDS; measured with tdabench"
        f" {_listed(sorted({p.tdabench_version for p in made}))}, torch {_listed(torch)}, commits"
        f" {_listed([code(c) for c in commits])}.",
        *(f"- Machine class {code(key)}: {plain(describe_machine(m))}." for key, m in sorted(machines.items())),
        "",
    ]


def _listed(texts: Sequence[str]) -> str:
    return listing(texts) or "unknown"


def _how_to_read(contests: Sequence[Contest]) -> list[str]:
    n_resamples = sorted({len(e.draws.both) for c in contests for e in c.entries})
    several = any(len(entry.records) > 1 for contest in contests for entry in contest.entries)
    facts = {
        "resamples": " or ".join(map(str, n_resamples)) or "no",
        "seed": RESAMPLE_SEED,
        "repeated": " Where a configuration has several runs, LDS and costs are their means." if several else "",
        "claim": ", ".join(
            f"{percent(value)} of {axis.name.lower()}" for axis in AXES if (value := CLAIMS.get(axis.key))
        ),
        "tolerance": percent(TOLERANCE),
    }
    return ["## How the numbers were obtained", "", *(f"- {text.format(**facts)}" for text in _HOW), ""]


def _not_run(rows: Sequence[Row], contests: Sequence[Contest], source: Source) -> list[str]:
    said = [*_unknown(rows, contests), *_gaps(contests)]
    for suite in source.suites:
        said += _suite_gaps(suite, rows)
    left = [
        [plain(", ".join(item.tasks)), plain(item.what), plain(item.reason), code(suite.name)]
        for suite in source.suites
        for item in suite.left_out
    ]
    if not said and not left:
        return []
    lines = ["## What was not run", "", *(f"- {text}" for text in said), *([""] if said else [])]
    return lines + table(["tasks", "what", "why", "suite"], left, left=4)


def _unknown(rows: Sequence[Row], contests: Sequence[Contest]) -> list[str]:
    missing = sorted({row.record.task for row in rows} - {contest.task.name for contest in contests})
    if not missing:
        return []
    names = listing([code(name) for name in missing])
    return [f"No LDS for the runs of {names}: the task is not installed, or has no ground truth."]


def _gaps(contests: Sequence[Contest]) -> list[str]:
    """Say, for each task, which methods were run elsewhere and not there."""
    tried: dict[str, set[str]] = defaultdict(set)
    for contest in contests:
        tried[contest.title] |= {e.method for e in contest.entries} | {r.record.method for r in contest.without}
    everything = set().union(*tried.values()) if tried else set()
    return [
        f"{plain(title)}: {', '.join(code(m) for m in sorted(everything - methods))} (run on another task)."
        for title, methods in tried.items()
        if everything - methods
    ]


def _suite_gaps(suite: Suite, rows: Sequence[Row]) -> list[str]:
    """Count the runs of a suite that are not there."""
    there = {(r.record.task, r.record.method, _ensemble(r), r.record.seed) for r in rows}
    planned = {_planned(job) for job in suite.jobs}
    missing = sorted(planned - there)
    if not missing:
        return [f"Suite {code(suite.name)}: all {len(planned)} runs are there."]
    names = [f"{task} {method}{f' + {ensemble}' if ensemble else ''}" for task, method, ensemble, _ in missing]
    named = listing([code(name) for name in names], 12)
    return [f"Suite {code(suite.name)}: {len(missing)} of {len(planned)} runs are not there: {named}."]


def _ensemble(row: Row) -> str:
    ensemble = row.record.ensemble
    return "" if ensemble is None else format_ensemble(ensemble.kind, ensemble.options)


def _planned(job: Job) -> tuple[str, str, str, int]:
    """Return what a job's record will say: task, method, ensemble, seed."""
    if job.ensemble is None:
        ensemble = ""
    else:
        parsed = parse_ensemble(job.ensemble)
        ensemble = format_ensemble(kind_of(parsed), values(parsed))
    return find_task(job.task).name, shown(job.method), ensemble, job.seed
