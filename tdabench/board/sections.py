"""Sections of the page: everything about a task, worked out and ready for the template to print."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

from markupsafe import Markup

from tdabench.board.chart import COMPACT, GROWTH, WIDE, draw
from tdabench.board.findings import Finding, describe_machine, findings
from tdabench.board.growth import MEMBERS, Curve, grown
from tdabench.board.marks import PATHS, Predicted, colours, points, shape_of
from tdabench.board.rows import AXES, Axis, Row, TaskInfo, names


@dataclass(frozen=True)
class Run:
    """A row as the page shows it; ``index`` is its place in the embedded data."""

    row: Row
    index: int
    anchor: str
    name: str
    fronts: frozenset[str]
    colour: int
    shape: str
    starts_group: bool
    bar: Bar | None
    caution: str


@dataclass(frozen=True)
class Bar:
    """An LDS and its interval as shares of a bar, in percent; ``ceiling`` likewise."""

    zero: float
    value: float
    low: float
    high: float
    ceiling: float | None


@dataclass(frozen=True)
class Figure:
    """The chart for one axis, in two sizes, and its front in words."""

    axis: Axis
    wide: Markup
    compact: Markup
    front: list[tuple[Run, str]]


@dataclass(frozen=True)
class MachineGroup:
    """The charts of one machine class."""

    title: str
    fingerprint: str
    runs: list[Run]
    figures: list[Figure]
    methods: list[tuple[str, int]]
    kinds: list[tuple[str, str]]
    growth: list[Growth]


@dataclass(frozen=True)
class Growth:
    """How the ensembles of one method grow: the chart, and each curve's mark and words."""

    method: str
    colour: int
    chart: Markup
    curves: list[tuple[str, Curve]]


@dataclass(frozen=True)
class Section:
    """What the page shows of one task."""

    task: TaskInfo
    known: bool
    anchor: str
    runs: list[Run]
    older: list[Run]
    findings: list[Finding]
    groups: list[MachineGroup]
    statuses: list[tuple[str, int]]


def make_sections(ordered: Sequence[Row], fronts: Sequence[frozenset[str]], tasks: Sequence[TaskInfo]) -> list[Section]:
    """Sort runs into sections, one a task; runs of a task that is not among ``tasks`` get one too.

    Parameters
    ----------
    ordered, fronts
        Runs as :func:`~tdabench.board.rows.in_order` sorts them, and their fronts.
    """
    by_task: dict[str, list[int]] = defaultdict(list)
    for i, row in enumerate(ordered):
        by_task[row.record.task].append(i)
    known = {task.name: task for task in tasks}
    unknown = [_undefined_task(name) for name in by_task if name not in known]
    colour_of, anchors = colours(ordered), _anchors(ordered)
    made = []
    for task in [*known.values(), *unknown]:
        mine = by_task.get(task.name, [])
        current = [i for i in mine if ordered[i].record.task_version == task.version]
        older = [i for i in mine if ordered[i].record.task_version != task.version]
        runs = _runs(current, ordered, fronts, anchors, colour_of, task.ceiling)
        made.append(
            Section(
                task,
                task.name in known,
                f"task-{_slug(task.name)}",
                runs,
                _runs(older, ordered, [frozenset()] * len(ordered), anchors, colour_of, None),
                findings(task, [r.row for r in runs]),
                _machine_groups(runs, task, fronts, colour_of),
                _statuses(runs),
            )
        )
    return made


def _statuses(runs: Sequence[Run]) -> list[tuple[str, int]]:
    counts = Counter(run.row.record.status for run in runs)
    return sorted(counts.items(), key=lambda item: (item[0] != "ok", item[0]))


def _undefined_task(name: str) -> TaskInfo:
    return TaskInfo(name, name, "", "", n_train=0, n_queries=0, n_subsets=0, n_seeds=0)


def _anchors(ordered: Sequence[Row]) -> list[str]:
    """Give every run an id that is safe in a URL and unique on the page."""
    seen: Counter[str] = Counter()
    made = []
    for row in ordered:
        slug = f"run-{_slug(row.record.run_id)}"
        seen[slug] += 1
        made.append(slug if seen[slug] == 1 else f"{slug}--{seen[slug]}")
    return made


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", text)


def _runs(
    indices: Sequence[int],
    ordered: Sequence[Row],
    fronts: Sequence[frozenset[str]],
    anchors: Sequence[str],
    colour_of: dict[str, int],
    ceiling: float | None,
) -> list[Run]:
    chosen = [ordered[i] for i in indices]
    top = max(
        [0.05, ceiling or 0.0, *(row.evaluation.high for row in chosen if row.evaluation and row.lds is not None)]
    )
    made: list[Run] = []
    for i, row, name in zip(indices, chosen, names(chosen), strict=True):
        made.append(
            Run(
                row,
                i,
                anchors[i],
                name,
                fronts[i],
                colour_of[row.record.method],
                PATHS[shape_of(row.kind)],
                bool(made) and row.rank_group != made[-1].row.rank_group,
                _bar(row, top, ceiling),
                _caution(row),
            )
        )
    return made


def _caution(row: Row) -> str:
    """Return the run's own warnings; a missing ceiling concerns the whole task, whose card says it."""
    e = row.evaluation
    return " ".join(e.warnings()) if e and (e.constant_queries or e.negated_better or e.above_ceiling) else ""


def _bar(row: Row, top: float, ceiling: float | None) -> Bar | None:
    """Lay the LDS out on a bar whose first eighth is below zero."""
    if row.lds is None or row.evaluation is None:
        return None

    def place(value: float) -> float:
        return round(min(100.0, max(0.0, 12.5 + 87.5 * value / top)), 1)

    e = row.evaluation
    return Bar(place(0.0), place(e.lds), place(e.low), place(e.high), None if ceiling is None else place(ceiling))


def _machine_groups(
    runs: Sequence[Run], task: TaskInfo, fronts: Sequence[frozenset[str]], colour_of: dict[str, int]
) -> list[MachineGroup]:
    by_class: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        if run.row.lds is not None and run.row.record.costs is not None:
            by_class[run.row.record.machine.machine_class].append(run)
    made = []
    for fingerprint, runs_of_class in sorted(by_class.items(), key=lambda item: (-len(item[1]), item[0])):
        # Inside one class, the machine need not tell runs apart.
        known_as = names([run.row for run in runs_of_class])
        members = [replace(run, name=name) for run, name in zip(runs_of_class, known_as, strict=True)]
        title = describe_machine(members[0].row.record.machine)
        methods = sorted({r.row.record.method for r in members})
        kinds = sorted({r.row.kind for r in members}, key=lambda kind: (kind != "none", kind))
        made.append(
            MachineGroup(
                title,
                fingerprint,
                members,
                [_figure(axis, members, task, fronts, colour_of, title) for axis in AXES],
                [(method, colour_of[method]) for method in methods],
                [(kind, PATHS[shape_of(kind)]) for kind in kinds],
                _growth(members, task, colour_of),
            )
        )
    return made


def _figure(
    axis: Axis,
    members: Sequence[Run],
    task: TaskInfo,
    fronts: Sequence[frozenset[str]],
    colour_of: dict[str, int],
    machine: str,
) -> Figure:
    drawn = points(
        [r.row for r in members],
        axis,
        [fronts[r.index] for r in members],
        [r.name for r in members],
        [r.anchor for r in members],
        colour_of,
    )
    best = [(cost, run) for run in members if axis.key in run.fronts and (cost := axis.value(run.row)) is not None]
    best.sort(key=lambda pair: (pair[0], pair[1].index))
    name = f"{task.title}: LDS against {axis.label} on {machine}. {len(drawn)} runs, {len(best)} on the front."
    wide, compact = (draw(drawn, axis, task.ceiling, size, name) for size in (WIDE, COMPACT))
    return Figure(axis, wide, compact, [(run, axis.text(cost)) for cost, run in best])


def _growth(members: Sequence[Run], task: TaskInfo, colour_of: dict[str, int]) -> list[Growth]:
    curves_of = grown([r.row for r in members], [r.name for r in members], [r.anchor for r in members], colour_of)
    made = []
    for method, curves in curves_of.items():
        colour = colour_of[method]
        lines = [
            Predicted(c.prediction.line, colour, f"predicted: {method} · {c.label}\n{c.summary}")
            for c in curves
            if c.prediction is not None
        ]
        name = f"{task.title}: LDS of {method} against the number of members, {len(curves)} ensembles."
        chart = draw([p for c in curves for p in c.points], MEMBERS, task.ceiling, GROWTH, name, lines)
        made.append(Growth(method, colour, chart, [(PATHS[c.points[0].shape], c) for c in curves]))
    return made
