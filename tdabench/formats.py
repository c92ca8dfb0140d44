"""Numbers as people read them: scores, times, sizes, counts."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence

NO_VALUE = "–"
_OBEYED = ("Cc", "Cf")  # control characters, and those that turn the direction of writing


def printable(text: str) -> str:
    r"""Write out what a terminal would obey instead of print: records and logs may come from strangers.

    >>> print(printable("one\x1b[2Jtwo"))
    one\x1b[2Jtwo
    """
    return "".join(
        letter if letter in "\n\t" or unicodedata.category(letter) not in _OBEYED else ascii(letter)[1:-1]
        for letter in text
    )


def format_score(value: float | None) -> str:
    """Write an LDS: three decimals, a true minus sign, no minus before zero."""
    if value is None or not math.isfinite(value):
        return NO_VALUE
    return f"{round(value, 3) + 0.0:.3f}".replace("-", "−")


def format_predicted(value: float | None) -> str:
    """Write an LDS that was predicted; more than 1, which none can be, is only said to be more."""
    return "> 1" if value is not None and value > 1 else format_score(value)


def format_seconds(value: float | None) -> str:
    """Write a time with three significant digits in the unit that reads best.

    >>> format_seconds(0.0123), format_seconds(312)
    ('12.3 ms', '5.2 min')
    """
    units = ((1e-6, "µs"), (1e-3, "ms"), (1.0, "s"), (60.0, "min"), (3600.0, "h"), (86400.0, "d"))
    return _scaled(value, units, "0 s", digits=3)


def format_bytes(value: float | None) -> str:
    """Write a size in decimal units: two digits below ten, none after the point above.

    >>> format_bytes(1234567), format_bytes(64e9)
    ('1.2 MB', '64 GB')
    """
    units = ((1.0, "B"), (1e3, "kB"), (1e6, "MB"), (1e9, "GB"), (1e12, "TB"), (1e15, "PB"))
    return _scaled(value, units, "0 B", digits=2)


def format_count(value: float | None) -> str:
    """Write a count: whole below ten thousand, three digits and k, M, G above."""
    if value is not None and value < 10_000:
        return f"{value:,.0f}"
    return _scaled(value, ((1e3, "k"), (1e6, "M"), (1e9, "G"), (1e12, "T")), "0", digits=3)


def _scaled(value: float | None, units: Sequence[tuple[float, str]], zero: str, digits: int) -> str:
    if value is None or not math.isfinite(value):
        return NO_VALUE
    if value == 0:
        return zero
    # The unit is chosen after rounding, so that 0.9999 s reads 1 s and not 1000 ms.
    rounded = float(f"{value:.2e}")
    size, unit = next(((s, u) for s, u in reversed(units) if rounded >= s), units[0])
    number = value / size
    decimals = max(0, digits - 1 - math.floor(math.log10(rounded / size)))
    text = f"{number:.{decimals}f}"
    return f"{text.rstrip('0').rstrip('.') if '.' in text else text} {unit}"


def listing(items: Sequence[str], most: int = 6, between: str = ", ") -> str:
    """Write a list in one line, cut where it is long."""
    more = len(items) - most
    return between.join(items[:most]) + (f" and {more} more" if more > 0 else "")


def count(n: int, noun: str, plural: str | None = None) -> str:
    """Write a count with its noun.

    >>> count(1, "run"), count(3, "run")
    ('1 run', '3 runs')
    """
    return f"{n} {noun if n == 1 else plural or f'{noun}s'}"
