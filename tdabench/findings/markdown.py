"""Markdown, and how numbers are written in it."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tdabench.board.rows import NO_VALUE, format_score
from tdabench.findings.curves import ABOVE, BELOW, Bounded

_ESCAPED = str.maketrans({c: f"\\{c}" for c in "|<>`*_[]\\"})


def plain(text: object) -> str:
    """Write text of a record so that Markdown shows it as it is, on one line."""
    return " ".join(str(text).split()).translate(_ESCAPED)


def code(text: object) -> str:
    """Write a name or a command as code, also inside a table."""
    return f"`{' '.join(str(text).split()).replace('`', chr(39)).replace('|', '¦')}`"


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> list[str]:
    """Write a table, the first ``left`` columns aligned left and the rest right; nothing where it has no rows."""
    if not rows:
        return []
    rule = [":--" if i < left else "--:" for i in range(len(columns))]
    return [*(f"| {' | '.join(cells)} |" for cells in (columns, rule, *rows)), ""]


def listing(items: Sequence[str], most: int = 6) -> str:
    """Write a list in one line, cut where it is long."""
    more = len(items) - most
    return ", ".join(items[:most]) + (f" and {more} more" if more > 0 else "")


def count(n: int, noun: str, plural: str | None = None) -> str:
    """Write a count with its noun.

    >>> count(1, "run"), count(3, "run")
    ('1 run', '3 runs')
    """
    return f"{n} {noun if n == 1 else plural or f'{noun}s'}"


def score(value: float, ends: tuple[float, float]) -> str:
    """Write an LDS, or a difference of two, with its interval."""
    return f"{format_score(value)} [{', '.join(map(format_score, ends))}]"


def signed(values: tuple[float, float, float]) -> str:
    """Write a difference with its sign and its interval."""
    return f"{'+' if round(values[0], 3) > 0 else ''}{score(values[0], values[1:])}"


def share(found: Bounded) -> str:
    """Write a saving in per cent with its interval; ``none`` below the curve, ``≥`` above it."""
    ends = f"[{_percent(found.low, found.low_place)}, {_percent(found.high, found.high_place)}]"
    return f"{_percent(found.value, found.place)} {ends}"


def size(found: Bounded) -> str:
    """Write a size on the curve, without its interval."""
    sign = {ABOVE: "> ", BELOW: "< "}.get(found.place, "")
    return f"{sign}{found.value:.1f}"


def percent(value: float) -> str:
    """Write a share in whole per cent.

    >>> percent(0.8), percent(-0.001)
    ('80 %', '0 %')
    """
    if math.isnan(value):
        return NO_VALUE
    if math.isinf(value):
        return "∞ %" if value > 0 else "−∞ %"
    return f"{round(100 * value):d} %".replace("-", "−")


def _percent(value: float, place: int) -> str:
    if place == BELOW:
        return "none"
    return f"≥ {percent(value)}" if place == ABOVE else percent(value)
