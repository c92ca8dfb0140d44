"""Markdown, and how numbers are written in it."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tdabench.findings.curves import ABOVE, BELOW, INSIDE, Bounded
from tdabench.formats import NO_VALUE, format_score

WORSE = "worse than one model"
"""In place of a saving, where an ensemble's LDS is below that of a single model in all of its interval."""
NO_BETTER = "no better than one model"
"""In place of a saving, where the interval leaves open that it is as good as a single model."""
_DIGITS, _MOST_DIGITS = 3, 6
_COST = " the cost"
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


def score(value: float, ends: tuple[float, float]) -> str:
    """Write an LDS, or a difference of two, with its interval."""
    return f"{format_score(value)} [{', '.join(map(format_score, ends))}]"


def signed(values: tuple[float, float, float]) -> str:
    """Write a difference with its sign and its interval."""
    digits = _DIGITS
    while digits < _MOST_DIGITS and any(end != 0 and round(end, digits) == 0 for end in values[1:]):
        digits += 1  # else an interval that leaves out 0 would seem to end there
    texts = [f"{round(value, digits) + 0.0:.{digits}f}".replace("-", "−") for value in values]
    return f"{'+' if round(values[0], digits) > 0 else ''}{texts[0]} [{texts[1]}, {texts[2]}]"


def share(found: Bounded) -> str:
    """Write a saving with its interval, in words where it is only a bound."""
    ends = ((found.low, found.low_place), (found.high, found.high_place))
    value = bare(found)
    if found.place != INSIDE and all(place == found.place for _, place in ends):
        return value
    if found.place == BELOW:
        return f"{value} [at best {saved(found.high, found.high_place)}]"
    said = _COST if value.endswith(_COST) else ""  # once is enough
    return f"{value} [{', '.join(saved(*end).removesuffix(said) for end in ends)}]"


def bare(found: Bounded) -> str:
    """Write a saving without its interval."""
    return _below(found) if found.place == BELOW else saved(found.value, found.place)


def _below(found: Bounded) -> str:
    return WORSE if found.high_place == BELOW else NO_BETTER


def saved(value: float, place: int) -> str:
    """Write a saving in per cent, or how many times as much it costs; a bound with its sign."""
    if place == BELOW:
        return WORSE
    sign = place == ABOVE
    if value > -0.005 or math.isnan(value):
        return f"{'≥ ' * sign}{percent(value)}"
    times = 1 - value
    digits = 2 if times < 1.95 else 1
    return f"{'≤ ' * sign}{'∞' if math.isinf(times) else f'{times:.{digits}f}'} ×{_COST}"


def size(found: Bounded) -> str:
    """Write as how many independent models an ensemble is as good, without the interval."""
    if found.place == BELOW:
        return _below(found)
    more = "more than " if found.place == ABOVE else ""
    return f"{more}{f'{found.value:.1f}'.removesuffix('.0')}"


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
