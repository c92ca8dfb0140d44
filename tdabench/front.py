"""The front: the runs that no other run beats on quality and cost."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt


def pareto_front(
    quality: Sequence[float | None] | npt.NDArray[np.floating], cost: Sequence[float | None] | npt.NDArray[np.floating]
) -> npt.NDArray[np.bool_]:
    """Return which runs are on the front.

    A run is on the front unless another is at least as good on both axes and strictly better on one. So runs at exactly
    the same point are on it together or not at all, and zero is a value like any other.

    Parameters
    ----------
    quality
        ``[n_runs]``, higher is better. None or NaN means missing.
    cost
        ``[n_runs]``, lower is better. None or NaN means missing.

    Returns
    -------
    on_front
        ``[n_runs]``; False where either value is missing, and such a run beats no other. Takes O(n log n).

    Raises
    ------
    ValueError
        If the two differ in length.
    """
    values = np.array(quality, dtype=np.float64), np.array(cost, dtype=np.float64)  # None becomes NaN
    if values[0].shape != values[1].shape or values[0].ndim != 1:
        raise ValueError(f"quality has shape {values[0].shape} and cost {values[1].shape}; expected one value per run.")
    on_front = np.zeros(len(values[0]), dtype=bool)
    known = np.flatnonzero(~(np.isnan(values[0]) | np.isnan(values[1])))
    if known.size:
        on_front[known] = _front_of_known(values[0][known], values[1][known])
    return on_front


def _front_of_known(quality: npt.NDArray[np.float64], cost: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    _, level = np.unique(cost, return_inverse=True)  # [n_runs], 0 = the cheapest cost
    best = np.full(level.max() + 1, -np.inf)  # [n_costs], best quality at exactly this cost
    np.maximum.at(best, level, quality)
    cheaper = np.concatenate([[-np.inf], np.maximum.accumulate(best)[:-1]])  # [n_costs], best at any lower cost
    # At the lowest cost nothing is cheaper, so even a quality of -inf is not beaten from there.
    unbeaten: npt.NDArray[np.bool_] = (quality == best[level]) & ((level == 0) | (quality > cheaper[level]))
    return unbeaten
