"""Scales of a chart: from values to places on the page, and the ticks that people expect."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

ZERO_COLUMN = 38.0
_HOURS = 12  # powers of ten of an hour that have ticks
_LEAST = 1e-12
"""Costs below are drawn there: nothing real is, and their ratio to the highest may be no number."""


@dataclass(frozen=True)
class Linear:
    """Values from ``low`` to ``high`` lie between ``start`` and ``end``."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """Place a value."""
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


@dataclass(frozen=True)
class Log:
    """A logarithmic scale with a column of its own for exact zeros, which have no logarithm but are measured values.

    Attributes
    ----------
    zero
        Where zeros are drawn; None when there are none.
    """

    low: float
    high: float
    start: float
    end: float
    zero: float | None

    def __call__(self, value: float) -> float:
        """Place a value; zero goes to its column, and what is below the scale to its start."""
        if value <= 0:
            return self.start if self.zero is None else self.zero
        share = math.log(max(value / self.low, 1.0)) / math.log(self.high / self.low)
        return self.start + share * (self.end - self.start)


def cost_scale(values: Sequence[float], start: float, end: float) -> Log:
    """Fit a log scale, at least one decade wide, to costs; zeros move it to the right to make room."""
    positive = [v for v in values if v > 0]
    zero = start + ZERO_COLUMN / 2 if len(positive) < len(values) else None
    start = start if zero is None else start + ZERO_COLUMN + 6
    if not positive:
        return Log(1.0, 1.0, start, end, zero)
    low, high = max(_LEAST, min(positive)), max(_LEAST, max(positive))
    span = math.log10(high / low)
    pad = max(0.05 * span, (1 - span) / 2, 0.08)
    return Log(low * 10**-pad, high * 10**pad, start, end, zero)


def score_scale(values: Sequence[float], start: float, end: float) -> Linear:
    """Fit a linear scale that holds zero, all values and a little air above."""
    low, high = min([0.0, *values]), max([0.1, *values])
    air = 0.06 * (high - low)
    return Linear(low - air if low < 0 else low, high + air, start, end)


def score_ticks(scale: Linear, at_most: int = 7) -> list[float]:
    """Return round values on a linear scale; zero is one of them."""
    span = scale.high - scale.low
    steps = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
    step = next((s for s in steps if span / s <= at_most), math.ceil(span / at_most))
    first, last = math.ceil(scale.low / step - 1e-9), math.floor(scale.high / step + 1e-9)
    return [round(i * step, 10) for i in range(first, last + 1)]


def cost_ticks(scale: Log, unit: str, at_most: int) -> list[float]:
    """Return values that people name (1 s, 10 s, 1 min, 10 min, 1 h; 1 kB, 10 kB; whole members), as densely as fits.

    Where all costs are zero there are none.
    """
    if scale.low == scale.high:
        return []
    fine, coarse = ([v for v in ladder if scale.low <= v <= scale.high] for ladder in _ladders(scale, unit))
    chosen = fine if len(fine) <= at_most or len(coarse) < 3 else coarse
    return chosen[:: math.ceil(len(chosen) / at_most) or 1]


def _ladders(scale: Log, unit: str) -> tuple[list[float], list[float]]:
    powers = range(math.floor(math.log10(scale.low)), math.ceil(math.log10(scale.high)) + 1)
    fine = [float(f"{m}e{k}") for k in powers for m in (1, 2, 5)]
    coarse = [float(f"1e{k}") for k in powers]
    if unit == "s":
        clock = [10.0, 20.0, 30.0, *(60.0 * m for m in (1, 2, 5, 10, 20, 30))]
        hours = [3600.0 * float(f"{m}e{k}") for k in range(_HOURS) for m in (1, 2, 5)]
        fine = [v for v in fine if v < 10] + clock + hours
        coarse = [v for v in coarse if v < 60] + [60.0, 600.0] + [3600.0 * 10**k for k in range(_HOURS)]
    if unit == "members":
        fine, coarse = ([v for v in ladder if v >= 1] for ladder in (fine, coarse))
    return fine, coarse
