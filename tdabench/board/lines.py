"""Lines of the page's tables: rows, worked out and ready for the template to print."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tdabench.board.details import Block, Listed, blocks, listed
from tdabench.board.marks import PATHS, shape_of
from tdabench.board.names import codes, names
from tdabench.board.table import means
from tdabench.results.rows import Row

_UNKNOWN = "no LDS, and no reason was recorded"


@dataclass(frozen=True)
class Line:
    """A row as the page shows it.

    Attributes
    ----------
    index
        Its place in the embedded data.
    anchor
        Its id on the page.
    listed, details
        Its runs, and the facts in their records, in columns.
    means
        Costs and ingredients, the means over run seeds.
    code
        The version of the method's file, where the task has rows of several; else empty.
    no_score
        Why it has no LDS; empty where it has one.
    """

    row: Row
    index: int
    anchor: str
    name: str
    fronts: frozenset[str]
    colour: int
    shape: str
    starts_group: bool
    bar: Bar | None
    auroc: float | None
    caution: str
    listed: list[Listed]
    details: list[list[Block]]
    means: dict[str, float | None]
    code: str
    no_score: str


@dataclass(frozen=True)
class Bar:
    """An LDS and its interval as shares of a bar, in percent; ``ceiling`` likewise."""

    zero: float
    value: float
    low: float
    high: float
    ceiling: float | None


def make_lines(
    indices: Sequence[int],
    ordered: Sequence[Row],
    fronts: Sequence[frozenset[str]],
    anchors: Sequence[list[str]],
    colour_of: Mapping[str, int],
    ceiling: float | None,
    no_score: str,
) -> list[Line]:
    """Make the lines of a table.

    Parameters
    ----------
    indices
        Which of the rows ``ordered``; ``fronts`` and ``anchors``, one a run, go with these.
    colour_of
        The colour of each method.
    ceiling
        The task's noise ceiling, if it has one.
    no_score
        Why a row has no LDS where its runs give no reason.
    """
    chosen = [ordered[i] for i in indices]
    top = max([0.05, ceiling or 0.0, *(row.interval[1] for row in chosen if row.lds is not None)])
    made: list[Line] = []
    for i, row, name, code in zip(indices, chosen, names(chosen), codes(chosen), strict=True):
        made.append(
            Line(
                row=row,
                index=i,
                anchor=anchors[i][0],
                name=name,
                fronts=fronts[i],
                colour=colour_of[row.record.method],
                shape=PATHS[shape_of(row.kind, row.flavour)],
                starts_group=bool(made) and row.rank_group != made[-1].row.rank_group,
                bar=_bar(row, top, ceiling),
                auroc=row.auroc,
                caution=_caution(row),
                listed=listed(row, anchors[i]),
                details=blocks(row),
                means=means(row),
                code=code,
                no_score="" if row.lds is not None else row.reason or no_score or _UNKNOWN,
            )
        )
    return made


def _caution(row: Row) -> str:
    """Return the row's own warnings; a missing ceiling concerns the whole task, whose card says it."""
    if row.lds is None:
        return ""
    found = [run.evaluation for run in row.scored if run.evaluation]
    own = any(e.constant_queries or e.negated_better or e.above_ceiling for e in found)
    missing = [run for run in row.runs if run.record.seed not in row.seeds_counted]
    reasons = [(run.record.seed, run.no_score.removeprefix("no LDS: ") or run.record.status) for run in missing]
    without = [f"Seed {seed} has no LDS: {reason}." for seed, reason in reasons]
    return " ".join([*(row.warnings() if own else []), *without])


def _bar(row: Row, top: float, ceiling: float | None) -> Bar | None:
    """Lay the LDS out on a bar whose first eighth is below zero."""
    if row.lds is None:
        return None

    def place(value: float) -> float:
        return round(min(100.0, max(0.0, 12.5 + 87.5 * value / top)), 1)

    low, high = row.interval
    return Bar(place(0.0), place(row.lds), place(low), place(high), None if ceiling is None else place(ceiling))
