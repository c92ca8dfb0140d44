"""The document: its header, how to read it, the summary, a section or page a task, and what was not run."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from tdabench._version import __version__
from tdabench.bootstrap import RESAMPLE_SEED
from tdabench.ensembles import format_ensemble, kind_of, parse_ensemble
from tdabench.errors import UsageError
from tdabench.findings.curves import SERVING_TOLERANCE, TOLERANCE
from tdabench.findings.entries import Contest, contests_of
from tdabench.findings.kinds import kinds
from tdabench.findings.markdown import NO_BETTER, WORSE, code, percent, plain, table
from tdabench.findings.savings import CLAIMS
from tdabench.findings.sections import section
from tdabench.findings.summary import summary
from tdabench.findings.words import COSTS, listed
from tdabench.formats import count, listing
from tdabench.jobs import Job, plan, shown
from tdabench.options import values
from tdabench.records import OptionValue, Record
from tdabench.registry import find_method, find_task
from tdabench.results.rows import in_order
from tdabench.results.runs import Run
from tdabench.results.seed_draws import TASK_DEGREES
from tdabench.results.tasks import TaskInfo
from tdabench.results.words import describe_machine, unique
from tdabench.suites import Suite
from tdabench.tuned import with_tuned_options

if TYPE_CHECKING:
    from tdabench.task import Task

_NO_NAME = re.compile(r"[^\w-]+")
_HOW = (
    "**LDS**: from the stored scores, on the reported queries; 95 % intervals from {resamples} resamples of subsets and"
    " queries (seed {seed}), the same for all runs of a task, so comparisons are paired (docs/protocol.md).",
    "**Run seeds**: another run seed is other models, masks and projections. Of a configuration run with several, LDS"
    " and costs are means over them, and the interval holds their spread by a t distribution, in which the task's"
    " seed variance, where it is known, counts like {seeds} more seeds. Two configurations are compared at the seeds"
    " that both were run with, and so at the same models: what a model does to both cancels (where they share a"
    " single one of several, at all their seeds). With one seed, the variation between trained models is drawn from"
    " the task's seed variance, measured on other configurations (docs/protocol.md); where the task has none,"
    " intervals hold no such variation, and a verdict says `(one seed)`. Repetitions of a seed count as one.",
    "**Costs**: from the records, measured once for each run, so intervals hold no noise of costs. Every model is"
    " priced at the median measured time of training one on the task, without trainings on a busy machine unless all"
    " were; adapters and banks of models cost what they took, and a training that gives checkpoints has the price of"
    " one that gives none: copying takes some 3 %, less than times differ by. Serving is fitting, and"
    " attributing all of a task's queries together: where fitting is most of it, more queries cost little more."
    " Tuning is paid once for a method on a task and is in no comparison; its time stands beside all methods on one"
    " model (`elsewhere`: tuned on another machine class; –: not tuned; choices made earlier paid for all queries,"
    " later ones for those that they are judged on). Times are compared inside one machine class only.",
    "**Saved at equal LDS**: 1 - cost / cost of independent ensembles of the same method, code and options at the size"
    " that reaches the same LDS. Between measured sizes the LDS is linear in the logarithm of the size and the cost"
    " linear in the size; a larger ensemble that scores lower counts as its best smaller one. `{worse}`: its LDS"
    " is below that of one model, so there is nothing to save at; `{no_better}`: the same, but the interval leaves open"
    " that it is as good. Of a cost that more models have less of, the most up to a size counts. Without a run of one"
    " model nothing is held against the curve. The interval recomputes curve and run in every resample, each widened"
    " for itself, so it is somewhat wider than that of a difference. No saving can be larger than what the cost leaves"
    " of the most independent models that were run, whatever the LDS.",
    "**Claim** ({claim}): reached where the whole interval of some dropout or LoRA ensemble is at or above it, not"
    " reached where those of all are below it, else it cannot be told; a cost may be {tolerance} above what the claim"
    " leaves, since measured times vary. The best of several is shown, not adjusted for the choice.",
    "**Winner at equal cost**: among runs that cost at most as much, within {tolerance} ({serving} of serving time,"
    " within which 19 of 20 pairs of runs of the same work agree), the highest LDS of those that"
    " no other is significantly better than at the seeds that both were run with. Level: the paired interval of the"
    " difference holds 0, unadjusted for the number of comparisons. At its own cost, an ensemble"
    " is held against independent ones between measured sizes; beyond the largest nothing was measured at that cost.",
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


@dataclass(frozen=True)
class Document:
    """Findings as Markdown.

    Attributes
    ----------
    text
        What holds over all tasks; of a single task, everything.
    pages
        Of several tasks, one for each by its path beside the document: together they are longer than GitHub, which
        shows Markdown of more than 512 KB as plain text, would render.
    """

    text: str
    pages: Mapping[str, str]


def render(runs: Iterable[Run], tasks: Sequence[TaskInfo], source: Source, name: str = "findings.md") -> Document:
    """Write the findings of evaluated runs; the same runs in any order are the same bytes.

    Parameters
    ----------
    name
        The document's file, which pages link to.
    """
    ordered = in_order(runs)
    contests = contests_of(ordered, tasks)
    pages = dict(zip(_paths(contests, name), contests, strict=True)) if len(contests) > 1 else {}
    sections = [] if pages else [line for contest in contests for line in section(contest)]
    lines = [f"# {_called(source)}", "", *_question(), *summary(contests), *_source(ordered, source), *_contents(pages)]
    lines += [*kinds(contests), *sections, *_not_run(ordered, tasks, contests, source), *_how_to_read(contests)]
    return Document(_text_of(lines), {path: _page(contest, source, name) for path, contest in pages.items()})


def _text_of(lines: Sequence[str]) -> str:
    return "\n".join(lines).rstrip("\n") + "\n"


def _called(source: Source) -> str:
    names = listing([code(suite.name) for suite in source.suites])
    return f"Findings of the {'suite' if len(source.suites) == 1 else 'suites'} {names}" if names else "Findings"


def pages_folder(name: str) -> str:
    """Return the folder of a document's pages, beside it."""
    return f"{Path(name).stem}-by-task"


def _paths(contests: Sequence[Contest], name: str) -> list[str]:
    """Return where the pages lie: files of different names, also where those of tasks differ in their signs alone."""
    slugs = (_NO_NAME.sub("-", contest.title.lower()).strip("-") or "task" for contest in contests)
    return [f"{pages_folder(name)}/{slug}.md" for slug in unique(slugs)]


def _page(contest: Contest, source: Source, name: str) -> str:
    """Return a contest's section as a document, its headings a level up."""
    title, *rest = [line.removeprefix("#") if line.startswith("##") else line for line in section(contest)]
    return _text_of([title, "", f"Part of [{_called(source)}]{_belongs(name)}", *rest])


def _belongs(name: str) -> str:
    return f"(../{quote(name)}), which say how the numbers were obtained."


def is_page_of(text: str, name: str) -> bool:
    """Return whether a file is a page of a document, so that one that the document had before may go."""
    below_title = next(iter(text.splitlines()[2:3]), "")
    return below_title.startswith("Part of [") and below_title.endswith(_belongs(name))


def _contents(pages: Mapping[str, Contest]) -> list[str]:
    links = [f"[{plain(contest.title)}]({quote(path)})" for path, contest in pages.items()]
    return [f"By task, with every ensemble's LDS, costs and savings: {', '.join(links)}.", ""] if links else []


def _question() -> list[str]:
    saved = listed([f"up to {percent(share)} of {COSTS[axis]}" for axis, share in CLAIMS.items()])
    return [
        "Attributing with an ensemble of independently trained models is good and dear."
        f" [arXiv 2405.17293](https://arxiv.org/abs/2405.17293) claims that ensembles of dropout masks or LoRA adapters"
        f" on few models save {saved} at similar quality, the LDS. Do they, and which ensemble is worth its cost?",
        "",
    ]


def _source(found: Sequence[Run], source: Source) -> list[str]:
    runs = [run for run in found if not run.lent_to]
    machines = {run.record.machine.machine_class: run.record.machine for run in runs}
    made = [run.record.provenance for run in runs]
    tdabench = sorted({p.tdabench_version for p in made})
    torch = sorted({p.packages["torch"] for p in made if "torch" in p.packages})
    commits = sorted({f"{(p.commit or 'unknown')[:10]}{' with changes' if p.dirty else ''}" for p in made})
    return [
        f"Every number and sentence is computed from run folders by tdabench {__version__}; how, is said at the end:",
        "",
        "```",
        source.command,
        "```",
        "",
        f"- {count(len(runs), 'run')} of {count(len({run.record.task for run in runs}), 'task')}, of which"
        f" {count(sum(run.lds is not None for run in runs), 'has', 'have')} an LDS; measured with tdabench"
        f" {_listed([plain(v) for v in tdabench])}, torch {_listed([plain(v) for v in torch])}, commits"
        f" {_listed([code(c) for c in commits])}.",
        *(f"- Machine class {code(key)}: {plain(describe_machine(m))}." for key, m in sorted(machines.items())),
        *_lent([run for run in found if run.lent_to]),
        "",
    ]


def _lent(runs: Sequence[Run]) -> list[str]:
    """Say whose LDS, measured on another machine class, counts here, and why it may."""
    lenders: dict[str, list[Record]] = defaultdict(list)
    for run in runs:
        lenders[run.record.machine.machine_class].append(run.record)
    return [
        f"- Lent by machine class {code(key)} ({plain(describe_machine(records[0].machine))}):"
        f" {count(len(records), 'run')} at other run seeds, of {count(len({r.task for r in records}), 'task')}. In the"
        " runs that both machines made it computes the same scores, bit for bit, so its LDS count; its costs do not."
        for key, records in sorted(lenders.items())
    ]


def _listed(texts: Sequence[str]) -> str:
    return listing(texts) or "unknown"


def _how_to_read(contests: Sequence[Contest]) -> list[str]:
    n_resamples = sorted({len(e.draws.corrected()) for c in contests for e in c.entries})
    facts = {
        "resamples": " or ".join(map(str, n_resamples)) or "no",
        "seed": RESAMPLE_SEED,
        "seeds": TASK_DEGREES,
        "claim": ", ".join(f"up to {percent(share)} of {COSTS[axis]}" for axis, share in CLAIMS.items()),
        "tolerance": percent(TOLERANCE),
        "serving": percent(SERVING_TOLERANCE),
        "worse": WORSE,
        "no_better": NO_BETTER,
    }
    return ["## How the numbers were obtained", "", *(f"- {text.format(**facts)}" for text in _HOW), ""]


def _not_run(runs: Sequence[Run], tasks: Sequence[TaskInfo], contests: Sequence[Contest], source: Source) -> list[str]:
    said = [*_unknown(runs, contests), *_gaps(contests)]
    said += [_suite_gaps(suite, runs, tasks) for suite in source.suites]
    left = [
        [plain(", ".join(item.tasks)), plain(item.what), plain(item.reason), code(suite.name)]
        for suite in source.suites
        for item in suite.left_out
    ]
    if not said and not left:
        return []
    lines = ["## What was not run", "", *(f"- {text}" for text in said), *([""] if said else [])]
    return lines + table(["tasks", "what", "why", "suite"], left, left=4)


def _unknown(runs: Sequence[Run], contests: Sequence[Contest]) -> list[str]:
    missing = sorted({run.record.task for run in runs} - {contest.task.name for contest in contests})
    if not missing:
        return []
    names = listing([code(name) for name in missing])
    return [f"No LDS for the runs of {names}: the task is not installed, or has no ground truth."]


def _gaps(contests: Sequence[Contest]) -> list[str]:
    """Say, for each task, which methods were run on others and not on it, whatever the machine class."""
    tried: dict[str, set[str]] = defaultdict(set)
    for contest in contests:
        tried[contest.task.name] |= {e.method for e in contest.entries} | {r.record.method for r in contest.without}
    everything = set().union(*tried.values()) if tried else set()
    return [
        f"{plain(task)}: {', '.join(code(m) for m in sorted(everything - methods))} (run on another task)."
        for task, methods in tried.items()
        if everything - methods
    ]


def _suite_gaps(suite: Suite, runs: Sequence[Run], tasks: Sequence[TaskInfo]) -> str:
    """Count the runs of a suite that have an LDS, that ended without one, and that are not there.

    A run of an older version of its task, with other options or of other code is not there: it would be measured again.
    """
    versions = {task.name: task.version for task in tasks}
    known = {task: find_task(task) for task in sorted({job.task for job in suite.jobs})}
    ended: dict[_Planned, str] = {}
    there_are = [run for run in runs if not run.lent_to]
    for run in sorted(there_are, key=lambda run: run.lds is not None):  # one with an LDS is the last word
        r = run.record
        if versions.get(r.task, r.task_version) == r.task_version:
            said = "" if run.lds is not None else _without(run)
            for settings in (f"{r.provenance.method_sha256} {_text(r.options)}", _ANY):
                ended[r.task, r.method, _ensemble(r), r.seed, settings] = said
    settings_of = cache(partial(_settings_of, known))
    jobs = {_planned(job, known[job.task], settings_of): job for job in suite.jobs}
    planned = sorted(jobs)
    without = [(run, ended[run]) for run in planned if ended.get(run)]
    missing = [run for run in planned if run not in ended]
    there = len(planned) - len(without) - len(missing)
    text = f"Suite {code(suite.name)}: {there} of {count(len(planned), 'run has', 'runs have')} an LDS"
    if without:
        named = [f"{_run(run, jobs[run])} ({why})" for run, why in without]
        text += f"; without one: {len(without)}, {listing(named, 12)}"
    if missing:
        text += f"; not there: {len(missing)}, {listing([_run(run, jobs[run]) for run in missing], 12)}"
    return f"{text}."


def _without(run: Run) -> str:
    """Say why a run has no LDS, briefly."""
    if run.record.status != "ok":
        return run.record.status
    return "evidence of other ground truth" if run.no_score else "no ground truth"


_Planned = tuple[str, str, str, int, str]
"""Task, method, ensemble, run seed, settings: the hash of the method's file and its options, or :data:`_ANY`."""
_ANY = ""


def _run(planned: _Planned, job: Job) -> str:
    task, method, ensemble, seed, _ = planned
    given = ", ".join(f"{name}={value}" for name, value in job.options.items())
    wrapped = f"{f' ({given})' if given else ''}{f' + {ensemble}' if ensemble else ''}"
    return code(f"{task} {method}{wrapped}{f', seed {seed}' if seed else ''}")


def _ensemble(record: Record) -> str:
    return "" if record.ensemble is None else record.ensemble.text


def _settings_of(known: Mapping[str, Task], task: str, method: str, options: str) -> str:
    """Return how a suite would measure a method now; any will do where it is not at hand, so that nobody can say."""
    try:
        find_method(method)
    except UsageError:
        return _ANY
    job = Job(task, method, json.loads(options))
    planned = plan(with_tuned_options(job, known[task])[0])
    return f"{planned.method_sha256} {_text(planned.options)}"


def _text(options: Mapping[str, OptionValue]) -> str:
    return json.dumps(options, sort_keys=True)


def _planned(job: Job, task: Task, settings_of: Callable[[str, str, str], str]) -> _Planned:
    """Return what a job's record will say."""
    if job.ensemble is None:
        ensemble = ""
    else:
        parsed = parse_ensemble(job.ensemble)
        ensemble = format_ensemble(kind_of(parsed), values(parsed))
    return task.name, shown(job.method), ensemble, job.seed, settings_of(job.task, job.method, _text(job.options))
