"""Sections of the page: everything about a task, worked out and ready for the template to print."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

from markupsafe import Markup

from tdabench.board.chart import COMPACT, GROWTH, WIDE, draw
from tdabench.board.findings import Finding, findings
from tdabench.board.growth import MEMBERS, Curve, grown
from tdabench.board.lines import Line, make_lines
from tdabench.board.marks import FLAVOURS, PATHS, Predicted, colours, points, shape_of
from tdabench.board.names import names
from tdabench.results.axes import AXES, Axis
from tdabench.results.rows import Row
from tdabench.results.tasks import TaskInfo
from tdabench.results.words import describe_machine, seeds_used, unique

_NO_TASK = "no LDS: the definition of the task is not at hand"
_OLDER = "no LDS: the run is of another version of the task"


@dataclass(frozen=True)
class Figure:
    """The chart for one axis, in two sizes, and its front in words."""

    axis: Axis
    wide: Markup
    compact: Markup
    front: list[tuple[Line, str]]


@dataclass(frozen=True)
class MachineGroup:
    """The charts of one machine class."""

    title: str
    fingerprint: str
    lines: list[Line]
    n_runs: int
    figures: list[Figure]
    methods: list[tuple[str, int]]
    kinds: list[tuple[str, str]]
    growth: list[Growth]


@dataclass(frozen=True)
class Growth:
    """How the ensembles of one method grow: the chart, and each curve's mark and words."""

    method: str
    chart: Markup
    curves: list[tuple[str, Curve]]


@dataclass(frozen=True)
class Section:
    """What the page shows of one task.

    Attributes
    ----------
    statuses
        How many runs ended in each way.
    seeds
        What the run seeds of the rows that have an LDS mean for their intervals; empty where none has one.
    """

    task: TaskInfo
    known: bool
    anchor: str
    lines: list[Line]
    older: list[Line]
    findings: list[Finding]
    groups: list[MachineGroup]
    statuses: list[tuple[str, int]]
    seeds: str

    @property
    def priced(self) -> bool:
        """Whether models have one price for all rows."""
        return any(line.row.price is not None for line in self.lines)


def make_sections(ordered: Sequence[Row], fronts: Sequence[frozenset[str]], tasks: Sequence[TaskInfo]) -> list[Section]:
    """Sort rows into sections, one a task; rows of a task that is not among ``tasks`` get one too.

    Parameters
    ----------
    ordered, fronts
        Rows as :func:`~tdabench.results.rows.in_order` sorts them, and their fronts.
    """
    by_task: dict[str, list[int]] = defaultdict(list)
    for i, row in enumerate(ordered):
        by_task[row.record.task].append(i)
    known = {task.name: task for task in tasks}
    unknown = [_undefined_task(name) for name in by_task if name not in known]
    colour_of, anchors = colours(ordered), _anchors(ordered)
    of_page, made = [*known.values(), *unknown], []
    for task, section_anchor in zip(of_page, unique(f"task-{_slug(task.name)}" for task in of_page), strict=True):
        mine = by_task.get(task.name, [])
        current = [i for i in mine if ordered[i].record.task_version == task.version]
        older = [i for i in mine if ordered[i].record.task_version != task.version]
        lines = make_lines(current, ordered, fronts, anchors, colour_of, task.ceiling, task.no_score)
        not_compared = _NO_TASK if task.name not in known else _OLDER
        made.append(
            Section(
                task=task,
                known=task.name in known,
                anchor=section_anchor,
                lines=lines,
                older=make_lines(older, ordered, [frozenset()] * len(ordered), anchors, colour_of, None, not_compared),
                findings=findings(task, [line.row for line in lines]),
                groups=_machine_groups(lines, task, fronts, colour_of),
                statuses=_statuses(lines),
                seeds=_seeds(lines),
            )
        )
    return made


def _statuses(lines: Sequence[Line]) -> list[tuple[str, int]]:
    counts = Counter(run.record.status for line in lines for run in line.row.runs)
    return sorted(counts.items(), key=lambda item: (item[0] != "ok", item[0]))


def _seeds(lines: Sequence[Line]) -> str:
    scored = [
        (row.seeds_counted, row.draws.knows_luck) for row in (line.row for line in lines) if row.draws is not None
    ]
    if not scored:
        return ""
    several = any(len(seeds) > 1 for seeds, _ in scored)
    return seeds_used(scored) + (" LDS and costs are means over a row’s seeds." if several else "")


def _undefined_task(name: str) -> TaskInfo:
    return TaskInfo(name, name, "", "", n_train=0, n_queries=0, n_subsets=0, n_seeds=0)


def _anchors(ordered: Sequence[Row]) -> list[list[str]]:
    """Give every run of every row an id that is safe in a URL and unique on the page."""
    anchors = iter(unique(f"run-{_slug(run.record.run_id)}" for row in ordered for run in row.runs))
    return [[next(anchors) for _ in row.runs] for row in ordered]


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", text)


def _machine_groups(
    lines: Sequence[Line], task: TaskInfo, fronts: Sequence[frozenset[str]], colour_of: dict[str, int]
) -> list[MachineGroup]:
    by_class: dict[str, list[Line]] = defaultdict(list)
    for line in lines:
        if line.row.lds is not None and line.row.measured[0].record.costs is not None:
            by_class[line.row.record.machine.machine_class].append(line)
    made = []
    for fingerprint, of_class in sorted(by_class.items(), key=lambda item: (-len(item[1]), item[0])):
        # Inside one class, the machine need not tell rows apart.
        known_as = names([line.row for line in of_class])
        members = [replace(line, name=name) for line, name in zip(of_class, known_as, strict=True)]
        title = describe_machine(members[0].row.record.machine)
        methods = sorted({line.row.record.method for line in members})
        kinds = sorted({_kind(line.row) for line in members}, key=lambda kind: (kind[0] != "none", kind))
        made.append(
            MachineGroup(
                title=title,
                fingerprint=fingerprint,
                lines=members,
                n_runs=sum(len(line.row.measured) for line in members),
                figures=[_figure(axis, members, task, fronts, colour_of, title) for axis in AXES],
                methods=[(method, colour_of[method]) for method in methods],
                kinds=[(" ".join(filter(None, kind)), PATHS[shape_of(*kind)]) for kind in kinds],
                growth=_growth(members, task),
            )
        )
    return made


def _kind(row: Row) -> tuple[str, str]:
    """Return kind and flavour as the legend tells them apart: by the shapes there are."""
    return row.kind, row.flavour if (row.kind, row.flavour) in FLAVOURS else ""


def _figure(
    axis: Axis,
    members: Sequence[Line],
    task: TaskInfo,
    fronts: Sequence[frozenset[str]],
    colour_of: dict[str, int],
    machine: str,
) -> Figure:
    drawn = points(
        [line.row for line in members],
        axis,
        [fronts[line.index] for line in members],
        [line.name for line in members],
        [line.anchor for line in members],
        colour_of,
    )
    best = [(cost, line) for line in members if axis.key in line.fronts and (cost := line.row.cost(axis)) is not None]
    best.sort(key=lambda pair: (pair[0], pair[1].index))
    counted = f"{len(drawn)} configurations, {len(best)} on the front"
    name = f"{task.title}: LDS against {axis.label} on {machine}. {counted}."
    wide, compact = (draw(drawn, axis, task.ceiling, size, name) for size in (WIDE, COMPACT))
    return Figure(axis, wide, compact, [(line, axis.text(cost)) for cost, line in best])


def _growth(members: Sequence[Line], task: TaskInfo) -> list[Growth]:
    rows, called, anchors = zip(*((line.row, line.name, line.anchor) for line in members), strict=True)
    curves_of = grown(rows, called, anchors)
    made = []
    for method, curves in curves_of.items():
        lines = [
            Predicted(c.prediction.line, c.colour, f"predicted: {method} · {c.label}\n{c.summary}")
            for c in curves
            if c.prediction is not None
        ]
        name = f"{task.title}: LDS of {method} against the number of members, {len(curves)} ensembles."
        chart = draw([p for c in curves for p in c.points], MEMBERS, task.ceiling, GROWTH, name, lines)
        made.append(Growth(method, chart, [(PATHS[c.points[0].shape], c) for c in curves]))
    return made
