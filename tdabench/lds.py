"""The linear datamodeling score (LDS), for all queries at once.

Source: Park et al. 2023, "TRAK: Attributing Model Behavior at Scale", section 2.2. Per query: the Spearman correlation,
over subsets, between the summed scores of the kept examples and the mean output of models retrained on the subset.
The values equal ``scipy.stats.spearmanr`` on the same sums; a constant column counts 0 instead of NaN and is reported.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tdabench.errors import GroundTruthError, ScoresError

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

BLOCK_BYTES = 8 * 2**20
"""Size of the float64 copy of a block of scores: large enough for the matrix product, small enough for the cache."""

CENTRE_BITS = 24
"""Bits of the centre that is subtracted from a query's scores: as many as float32 has."""

EPS = float(np.finfo(np.float64).eps)


def lds_per_query(
    scores: npt.NDArray[np.floating], masks: Bools, outputs_mean: npt.NDArray[np.floating]
) -> tuple[Floats, Bools]:
    """Return the LDS of each query, and which queries have a constant column.

    Parameters
    ----------
    scores
        ``[n_queries, n_train]``, higher = having that example raises the output.
    masks
        ``[n_subsets, n_train]``, True where the example is kept; all subsets of equal size.
    outputs_mean
        ``[n_subsets, n_queries]``, the output averaged over the seeds of a subset.

    Returns
    -------
    rho
        ``[n_queries]``; 0 where the sums or the outputs do not vary over subsets.
    constant
        ``[n_queries]``, True for those.

    Raises
    ------
    ScoresError
        If the scores have the wrong shape or are not finite.
    GroundTruthError
        If the subsets differ in size, or the outputs have the wrong shape or are not finite.
    """
    sums = subset_sums(scores, masks)  # [n_subsets, n_queries]
    if outputs_mean.shape != sums.shape:
        raise GroundTruthError(
            f"Mean outputs have shape {list(outputs_mean.shape)}, expected [n_subsets, n_queries] = {list(sums.shape)}."
            " Run `tdabench ground-truth verify TASK`."
        )
    if not np.isfinite(outputs_mean).all():
        bad = int(np.count_nonzero(~np.isfinite(outputs_mean)))
        raise GroundTruthError(f"{bad} mean outputs are not finite. Run `tdabench ground-truth verify TASK`.")
    return spearman_columns(sums, outputs_mean), constant_columns(sums) | constant_columns(outputs_mean)


def subset_sums(scores: npt.NDArray[np.floating], masks: Bools) -> Floats:
    """Sum the scores of the kept examples of every subset, up to a constant per query.

    Every query's scores are centred first, so that a large common offset does not use up the precision of the sums;
    as subsets are of equal size, that shifts a query's sums by a constant and leaves their ranks alone.

    Parameters
    ----------
    scores
        ``[n_queries, n_train]``, float32 or float64.
    masks
        ``[n_subsets, n_train]``, True where the example is kept.

    Returns
    -------
    sums
        ``[n_subsets, n_queries]``, float64. A column that is constant up to rounding is exactly 0.

    Raises
    ------
    ScoresError
        If the scores have the wrong shape or type, or are not finite.
    GroundTruthError
        If the subsets are not all of the same size.
    """
    scores = np.asarray(scores)
    kept = _subset_size(masks)
    check_scores(scores, n_train=masks.shape[1])
    weights = masks.astype(np.float64)  # [n_subsets, n_train]
    sums = np.empty((len(masks), len(scores)))  # [n_subsets, n_queries]
    step = max(1, BLOCK_BYTES // (8 * max(1, masks.shape[1])))
    buffer = np.empty((min(step, len(scores)), masks.shape[1]))  # reused: fresh memory costs more than filling it
    for start in range(0, len(scores), step):
        block = slice(start, start + step)
        with np.errstate(over="ignore", invalid="ignore"):  # reported below
            sums[:, block] = _centred_sums(scores[block], weights, kept, buffer)
    if not np.isfinite(sums).all():
        query = int(np.argmin(np.isfinite(sums).all(axis=0)))
        raise ScoresError(
            f"Scores of query {query} are too large to sum in float64 (up to {np.abs(scores[query]).max():.1e})."
            " Divide them by a constant: only their ranks matter."
        )
    return sums


def check_scores(scores: npt.NDArray[np.floating], n_train: int, n_queries: int | None = None) -> None:
    """Raise :class:`ScoresError` unless the scores are finite floats of shape ``[n_queries, n_train]``."""
    expected = f"[{'n_queries' if n_queries is None else n_queries}, {n_train}]"
    fits = scores.ndim == 2 and scores.shape[1] == n_train and n_queries in (None, len(scores))
    if not fits:
        raise ScoresError(
            f"Scores have shape {list(scores.shape)}, expected [n_queries, n_train] = {expected}."
            " Return one row per query and one column per training example from `attribute`."
        )
    if scores.dtype not in (np.float32, np.float64):
        raise ScoresError(
            f"Scores have type {scores.dtype}, expected float32 or float64. Convert them at the end of `attribute`."
        )
    if scores.size == 0:
        raise ScoresError(f"Scores are empty (shape {list(scores.shape)}), expected {expected}.")
    # The extremes are NaN or infinite exactly where a value is, and need no temporary of the scores' size.
    finite = np.isfinite(scores.min(axis=1)) & np.isfinite(scores.max(axis=1))  # [n_queries]
    if not finite.all():
        raise ScoresError(_describe_non_finite(scores, finite))


def spearman_columns(a: npt.ArrayLike, b: npt.ArrayLike) -> Floats:
    """Return the Spearman correlation of each column of ``a`` with the same column of ``b``.

    Parameters
    ----------
    a, b
        ``[n_rows, n_columns]``, finite.

    Returns
    -------
    rho
        ``[n_columns]``; equal to ``scipy.stats.spearmanr``, but 0 where :func:`constant_columns` holds for a or b.
    """
    a, b = np.asarray(a), np.asarray(b)
    middle = (len(a) + 1) / 2
    x, y = average_ranks(a) - middle, average_ranks(b) - middle  # [n_rows, n_columns]
    scale = np.sqrt(np.einsum("mq,mq->q", x, x) * np.einsum("mq,mq->q", y, y))
    # Ranks are halves, so their sums are exact and so is this comparison with 0.
    varies = (scale > 0) & ~constant_columns(a) & ~constant_columns(b)
    return np.divide(np.einsum("mq,mq->q", x, y), scale, out=np.zeros(a.shape[1]), where=varies)


def average_ranks(values: npt.ArrayLike, axis: int = 0) -> Floats:
    """Rank along an axis from 1 up, ties by the average of their ranks, as ``scipy.stats.rankdata`` does.

    Parameters
    ----------
    values
        Any shape, finite.
    axis
        The axis to rank along.

    Returns
    -------
    ranks
        The shape of ``values``, float64.
    """
    # Sorting along the last, contiguous axis is several times faster than down a column.
    rows = np.ascontiguousarray(np.moveaxis(np.asarray(values), axis, -1))
    length = rows.shape[-1]
    order = np.argsort(rows, axis=-1)
    # Places in all rows, one after another: faster than numpy's functions along an axis, which index row and column.
    order += length * np.arange(rows.size // max(1, length)).reshape(*rows.shape[:-1], 1)
    ordered = rows.ravel()[order]
    place = np.broadcast_to(np.arange(length, dtype=np.float64), rows.shape)
    differs = ordered[..., 1:] != ordered[..., :-1]
    ranks = np.empty(rows.size)
    ranks[order] = place + 1 if differs.all() else _tied_ranks(place, differs)
    return np.ascontiguousarray(np.moveaxis(ranks.reshape(rows.shape), -1, axis))


def constant_columns(values: npt.ArrayLike) -> Bools:
    """Return which columns of ``[n_rows, n_columns]`` do not vary.

    A mean over seeds of equal outputs may differ in its last bits, so a range of up to 8 units in the last place of the
    largest value counts as constant. The sums' own rounding error is larger; :func:`subset_sums` has removed it.
    """
    values = np.asarray(values, dtype=np.float64)
    low, high = values.min(axis=0), values.max(axis=0)
    return high - low <= 8 * EPS * np.maximum(np.abs(low), np.abs(high))


def _subset_size(masks: Bools) -> int:
    if masks.ndim != 2 or masks.dtype != np.bool_ or len(masks) == 0:
        raise GroundTruthError(
            f"Masks have shape {list(masks.shape)} and type {masks.dtype}, expected [n_subsets, n_train] and bool."
            " Run `tdabench ground-truth verify TASK`."
        )
    sizes = masks.sum(axis=1)  # [n_subsets]
    if (sizes != sizes[0]).any():
        first = int(np.argmax(sizes != sizes[0]))
        raise GroundTruthError(
            f"Subsets differ in size: subset 0 keeps {sizes[0]} examples and subset {first} keeps {sizes[first]}."
            " The LDS needs subsets of equal size. Run `tdabench ground-truth build TASK`."
        )
    return int(sizes[0])


def _centred_sums(scores: npt.NDArray[np.floating], weights: Floats, kept: int, buffer: Floats) -> Floats:
    # A centre of few bits keeps the sums of float32 scores of similar magnitude exact. Centred on the float64 mean, two
    # subsets with the same sum (counts, votes, 0/1 scores) would differ by rounding, and their tie would be broken.
    centred = buffer[: len(scores)]  # [n_queries, n_train]
    centred[...] = scores
    mantissa, exponent = np.frexp(centred.mean(axis=1))
    centre = np.ldexp(np.round(np.ldexp(mantissa, CENTRE_BITS)), exponent - CENTRE_BITS)  # [n_queries]
    centred -= centre[:, None]
    sums = weights @ centred.T  # [n_subsets, n_queries]
    span = sums.max(axis=0) - sums.min(axis=0)
    # If all scores of a query are equal, its sums are rounding noise around a constant, and ranking noise gives a
    # random number instead of 0. The noise in the difference of two sums is at most 2 * kept * eps * sum(|score|)
    # (Higham 2002, section 4.2), far below any real difference. The cheap first bound, n_train * max for the sum,
    # spares a pass over the scores of all other queries.
    bound = 2 * kept * EPS
    largest = np.maximum(scores.max(axis=1) - centre, centre - scores.min(axis=1))
    suspects = np.flatnonzero(span <= bound * weights.shape[1] * largest)
    noise = suspects[span[suspects] <= bound * np.abs(centred[suspects]).sum(axis=1)]
    sums[:, noise] = 0.0
    return sums


def _tied_ranks(place: Floats, differs: Bools) -> Floats:
    # A tie group's first and last place, spread over the group from either side; its rank is their mean.
    edge = np.ones((*differs.shape[:-1], 1), dtype=bool)
    starts = np.concatenate([edge, differs], axis=-1)
    ends = np.concatenate([differs, edge], axis=-1)
    first = np.maximum.accumulate(np.where(starts, place, 0), axis=-1)
    last = np.minimum.accumulate(np.where(ends, place, np.inf)[..., ::-1], axis=-1)[..., ::-1]
    return (first + last) / 2 + 1


def _describe_non_finite(scores: npt.NDArray[np.floating], finite: Bools) -> str:
    bad = scores[~finite]  # [n_bad, n_train]
    nans, infinities = int(np.isnan(bad).sum()), int(np.isinf(bad).sum())
    first = int(np.argmin(finite))
    column = int(np.argmin(np.isfinite(scores[first])))
    return (
        f"Scores are not finite: {nans} NaN and {infinities} infinite values of {scores.size}, in {len(bad)} of"
        f" {len(scores)} queries; the first is query {first}, training example {column}. Expected finite scores only."
        " Look for a division by zero or too small a damping."
    )
