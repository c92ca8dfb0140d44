"""What a cheaper run saves at equal quality, against a curve of quality over size; pure functions of arrays.

The curve is that of the independent ensembles: the LDS at each measured size, and what that size cost. A run saves
``1 - its cost / the curve's cost at the size that reaches the run's LDS``. Between measured sizes the LDS is linear in
the logarithm of the size, which follows the formula in :mod:`tdabench.saturation` more closely than linear in the size
(it rises steeply and then levels off); costs are linear in the size, as every model costs the same. Where a larger
ensemble has a lower LDS than a smaller one, the smaller one is what a user would take: the curve is its running
maximum. Beyond either end nothing is extrapolated; the saving is a bound there.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Places = npt.NDArray[np.int8]

TOLERANCE = 0.05
"""A cost that exceeds a bound by this share keeps it: measured times vary by some per cent."""
SERVING_TOLERANCE = 0.10
"""A serving time that exceeds a bound by this share keeps it: measured once, those of the same work differ by less
in 19 of 20 pairs of runs."""

BELOW, INSIDE, ABOVE = -1, 0, 1
"""Where an LDS lies: below the smallest ensemble's, on the curve, above the largest's."""


@dataclass(frozen=True)
class Bounded:
    """A number with its interval, each of which may be only a bound because the curve ends.

    Attributes
    ----------
    value, low, high
        The estimate and the ends of its interval.
    place, low_place, high_place
        :data:`BELOW`: the true value is at most this; :data:`ABOVE`: at least; :data:`INSIDE`: it is this.
    """

    value: float
    low: float
    high: float
    place: int = INSIDE
    low_place: int = INSIDE
    high_place: int = INSIDE

    def surely_reaches(self, claim: float) -> bool:
        """Return whether the whole interval is at or above ``claim``, within :data:`TOLERANCE` of the cost."""
        return self.low_place != BELOW and self.low >= least(claim)

    def surely_misses(self, claim: float) -> bool:
        """Return whether the whole interval is below ``claim``, or below the curve: no quality to save at."""
        return self.high_place == BELOW or (self.high_place != ABOVE and self.high < least(claim))


def tolerance(axis: str) -> float:
    """Return the share by which two costs may differ and count as equal; ``axis`` is the cost's key."""
    return SERVING_TOLERANCE if axis == "serve" else TOLERANCE


def least(claim: float) -> float:
    """Return the smallest saving that counts as ``claim``: the cost that it leaves may be a little more."""
    return 1 - (1 - claim) * (1 + TOLERANCE)


def reach(sizes: npt.ArrayLike, lds: npt.ArrayLike, target: npt.ArrayLike) -> tuple[Floats, Places]:
    """Return the size at which a curve reaches a target.

    Parameters
    ----------
    sizes
        ``[n]``, positive and increasing.
    lds
        ``[..., n]``, the LDS at each size; its running maximum is what counts.
    target
        ``[...]``.

    Returns
    -------
    size
        ``[...]``; monotone in the target, equal to a measured size at that size's LDS, and the nearest end beyond.
    place
        ``[...]``: :data:`BELOW`, :data:`INSIDE` or :data:`ABOVE`.
    """
    sizes, target = np.asarray(sizes, dtype=np.float64), np.asarray(target, dtype=np.float64)
    best = np.maximum.accumulate(np.asarray(lds, dtype=np.float64), axis=-1)  # [..., n]
    above, below = target > best[..., -1], target < best[..., 0]
    place = np.where(above, ABOVE, np.where(below, BELOW, INSIDE)).astype(np.int8)
    if len(sizes) == 1:
        return np.full(place.shape, sizes[0]), place
    right = np.clip((best < target[..., None]).sum(axis=-1), 1, len(sizes) - 1)  # [...]
    low, high = (np.take_along_axis(best, (right - k)[..., None], axis=-1)[..., 0] for k in (1, 0))
    share = np.divide(target - low, high - low, out=np.zeros(target.shape), where=high > low)
    share = np.where(above, 1.0, np.clip(share, 0.0, 1.0))
    start, end = sizes[right - 1], sizes[right]
    return np.where(share >= 1, end, start * (end / start) ** share), place


def cost_at(sizes: npt.ArrayLike, costs: npt.ArrayLike, size: npt.ArrayLike) -> Floats:
    """Return what an ensemble of ``size`` costs, linear between measured sizes and level beyond them."""
    wanted, known, prices = (np.asarray(values, dtype=np.float64) for values in (size, sizes, costs))
    return np.asarray(np.interp(wanted, known, prices))


def share_saved(cost: float, reference: npt.ArrayLike) -> Floats:
    """Return ``1 - cost / reference``: 0 where both are free, minus infinity where only the reference is."""
    reference = np.asarray(reference, dtype=np.float64)
    ratio = np.full(reference.shape, 1.0 if cost == 0 else np.inf)
    np.divide(cost, reference, out=ratio, where=reference > 0)
    return np.asarray(1 - ratio)


def size_reached(sizes: npt.ArrayLike, lds: Floats, draws: Floats, target: float, targets: Floats) -> Bounded:
    """Return the size at which the curve reaches a run's LDS, with its interval.

    Parameters
    ----------
    sizes, lds
        ``[n]``: the curve.
    draws
        ``[n_resamples, n]``: the curve in every resample.
    target, targets
        The run's LDS, and ``[n_resamples]`` in every resample.
    """
    size, place = reach(sizes, lds, target)
    return _bounded(size, place, *reach(sizes, draws, targets))


def saving(
    sizes: npt.ArrayLike, lds: Floats, draws: Floats, costs: npt.ArrayLike, target: float, targets: Floats, cost: float
) -> Bounded:
    """Return the share of a cost that a run saves against the curve at the run's LDS, with its interval.

    Parameters
    ----------
    sizes, lds, draws, target, targets
        As for :func:`size_reached`.
    costs
        ``[n]``, what each size of the curve cost; measured once, so the same in every resample. Where a larger one
        cost less than a smaller one, as its peak memory may, it counts as the smaller one, so that a better run never
        saves less.
    cost
        What the run cost.
    """
    size, place = reach(sizes, lds, target)
    resampled, places = reach(sizes, draws, targets)
    rising = np.maximum.accumulate(np.asarray(costs, dtype=np.float64))
    found, drawn = (share_saved(cost, cost_at(sizes, rising, s)) for s in (size, resampled))
    return _bounded(found, place, drawn, places)


def _bounded(value: Floats, place: Places, drawn: Floats, places: Places, level: float = 0.95) -> Bounded:
    # Ends are draws themselves, so that each has a place of its own and infinities are never averaged. Below the curve
    # is the worst, whatever it costs.
    order = np.lexsort((places, drawn, places != BELOW))
    tail = (1 - level) / 2 * (len(drawn) - 1)
    low, high = order[int(np.floor(tail))], order[int(np.ceil(len(drawn) - 1 - tail))]
    return Bounded(float(value), float(drawn[low]), float(drawn[high]), int(place), int(places[low]), int(places[high]))
