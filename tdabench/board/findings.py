"""What the numbers of a task say, in plain sentences made from them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from tdabench.board.names import names
from tdabench.formats import format_score
from tdabench.results.axes import AXES, Axis
from tdabench.results.rows import Row
from tdabench.results.seed_draws import ahead, best_of
from tdabench.results.tasks import TaskInfo
from tdabench.results.words import describe_machine

# A reader takes in a handful of names; the table has the rest.
NAMED = 4
_COMPARED = tuple(axis for axis in AXES if axis.key in ("train", "serve", "memory"))


@dataclass(frozen=True)
class Finding:
    """A sentence with a lead: ``Best`` and what is best."""

    lead: str
    text: str


def findings(task: TaskInfo, rows: Sequence[Row]) -> list[Finding]:
    """Say which row is best, which are level with it, which of those is cheapest, and how far the ceiling is.

    Parameters
    ----------
    rows
        Rows of the task's current version.
    """
    scored = [(row, name, d) for row, name in zip(rows, names(rows), strict=True) if (d := row.draws) is not None]
    if not scored:
        return []
    best, name, draws = scored[best_of([d for *_, d in scored])]
    one = "1 seed" if any(row.seeds for row, *_ in scored) else ""  # beside others that have several
    lead = "Best" if len(scored) > 1 else "The only one scored so far"  # with nothing beside it, nothing is best
    made = [Finding(lead, f"{name} ({_score(best, best.seeds or one)}{_share(best, task.ceiling)}).")]
    if best.rank_group is None:
        return made
    level = [(row, n) for row, n, d in scored if row is not best and ahead(draws, d) <= 0]  # in later ranks, too
    if level:
        made.append(Finding("Not distinguishable from it", f"{_listing([n for _, n in level])}."))
    elif len(scored) > 1:
        made.append(Finding("Clear of the rest", "nothing else is level with it within the uncertainty."))
    return made + _cheapest([best, *(row for row, _ in level)])


def _score(row: Row, seeds: str) -> str:
    low, high = map(format_score, row.interval)
    return ", ".join(filter(None, (f"LDS {format_score(row.lds)}", seeds, f"95 % interval {low} to {high}")))


def _share(row: Row, ceiling: float | None) -> str:
    if ceiling is None or ceiling <= 0 or row.lds is None or row.lds <= 0:
        return ""
    return f", {row.lds / ceiling:.0%} of the noise ceiling".replace("%", " %")


def _listing(names: Sequence[str]) -> str:
    named, more = list(names[:NAMED]), len(names) - NAMED
    if more > 0:
        return f"{', '.join(named)} and {more} more"
    return ", ".join(named)


def _cheapest(level: Sequence[Row]) -> list[Finding]:
    """Name the cheapest of the best group, machine class by machine class: times compare nowhere else."""
    classes: dict[str, list[Row]] = defaultdict(list)
    for row in level:
        classes[row.record.machine.machine_class].append(row)
    made = []
    for members in classes.values():
        facts = [fact for axis in _COMPARED if (fact := _least(members, axis))]
        if facts:
            where = f" on {describe_machine(members[0].record.machine)}" if len(classes) > 1 else ""
            made.append(Finding(f"Cheapest of that group{where}", "; ".join(facts) + "."))
    return made


def _least(members: Sequence[Row], axis: Axis) -> str | None:
    """Name the cheapest row; None where all cost the same, which is no news."""
    pairs = zip(members, names(members), strict=True)
    priced = [(cost, name) for row, name in pairs if (cost := row.cost(axis)) is not None]
    if len({cost for cost, _ in priced}) < 2:
        return None
    cost = min(priced)[0]
    cheapest = [name for c, name in priced if c == cost]
    return f"in {axis.name.lower()}, {_listing(cheapest)} ({axis.text(cost)})"
