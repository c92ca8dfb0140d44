"""Two-way bootstrap of the LDS: how far it would move with other subsets and other queries.

An LDS is a mean over queries of correlations over subsets, and both were sampled. Resampling only one of them leaves
out the other's share of the variance, so each resample draws subsets and queries, both with replacement (Owen 2007,
"The pigeonhole bootstrap"). Ranks are taken anew inside every resample.

The pigeonhole bootstrap over-covers. The variance of a mean over a table of subsets by queries has three parts: A of
the subsets' shared effects, B of the queries', and C of what is left in the single cells. Resampling subsets alone
estimates A + C, queries alone B + C, both at once A + B + 3C (Owen 2007). Where C matters (independent
subset effects, few queries), nominal 95 % intervals cover in up to 100 % of cases. :class:`Draws` therefore keeps the
one-way resamples beside the two-way one and rescales the draws to subsets + queries - interaction = A + B + C, the
two-way clustered variance of Cameron, Gelbach & Miller 2011, "Robust inference with multiway clustering".
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tdabench.lds import spearman_columns

Floats = npt.NDArray[np.float64]

RESAMPLE_SEED = 20110
"""Seed of the bootstrap; a constant, so that all runs of a task meet the same resamples and their draws are paired."""
_QUERIES_AT_ONCE = 16


@dataclass(frozen=True, eq=False)
class Resamples:
    """How often each subset and each query is drawn, for every resample.

    Two methods evaluated on the same resamples can be compared by subtracting their draws.
    """

    subsets: npt.NDArray[np.int64]
    """``[n_resamples, n_subsets]``; every row sums to n_subsets."""
    queries: npt.NDArray[np.int64]
    """``[n_resamples, n_queries]``; every row sums to n_queries."""


@dataclass(frozen=True, eq=False)
class Draws:
    """Bootstrap draws of an LDS, or of a difference of two."""

    estimate: float
    """The value without resampling."""
    subsets: Floats
    """``[n_resamples]``; the subsets resampled, the queries as they are."""
    queries: Floats
    """``[n_resamples]``; the queries resampled, the subsets as they are."""
    both: Floats
    """``[n_resamples]``; both resampled: the plain two-way draws, which are too wide."""

    def __sub__(self, other: Draws) -> Draws:
        """Return the draws of the difference; both must come from the same :class:`Resamples`."""
        return Draws(
            self.estimate - other.estimate,
            self.subsets - other.subsets,
            self.queries - other.queries,
            self.both - other.both,
        )

    def corrected(self) -> Floats:
        """Return draws whose spread estimates that of the value, ``[n_resamples]``, centred on the estimate.

        The sum of the one-way deviations keeps the shape of the distribution and is rescaled to the two-way clustered
        variance. That is a difference and may come out too small, so it is at least the larger one-way variance: A + C
        and B + C are parts of A + B + C. Centring removes the draws' own bias: a Spearman correlation over n subsets is
        pulled towards 0 by about 1/n, and one of resampled subsets is pulled once more.
        """
        subsets, queries = self.subsets - self.subsets.mean(), self.queries - self.queries.mean()
        interaction = self.both - self.subsets - self.queries
        one_way = subsets.var(), queries.var()
        deviations = subsets + queries
        spread = deviations.std()
        if spread == 0:
            return np.full(len(deviations), self.estimate)
        variance = max(sum(one_way) - interaction.var(), *one_way)
        scaled: Floats = self.estimate + deviations * (np.sqrt(variance) / spread)
        return scaled

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Return the percentile interval of the corrected draws."""
        return percentile_interval(self.corrected(), level)


def draw(n_subsets: int, n_queries: int, n_resamples: int = 1000, *, seed: int) -> Resamples:
    """Draw subsets and queries with replacement; the same arguments give the same resamples."""
    rng = np.random.default_rng(seed)
    return Resamples(
        subsets=rng.multinomial(n_subsets, np.full(n_subsets, 1 / n_subsets), size=n_resamples),
        queries=rng.multinomial(n_queries, np.full(n_queries, 1 / n_queries), size=n_resamples),
    )


@dataclass(frozen=True, eq=False)
class RankedTruth:
    """Mean outputs with their ranks in every resample, which all runs of a task share: half of the work on a run.

    Attributes
    ----------
    values
        ``[n_subsets, n_queries]``, the mean outputs.
    resamples
        Made by :func:`draw` for as many subsets and queries.
    drawn
        ``[n_subsets, n_resamples]``, how often each subset was drawn.
    weighted
        ``[n_queries, n_subsets, n_resamples]``, ranks times how often the subset was drawn: whole, at most
        n_subsets^2 / 4.
    repeats
        ``[n_queries, n_resamples]``, the sum over subsets of ``weighted`` times how often they were drawn once more.
    variance
        ``[n_queries, n_resamples]``, of the ranks of the drawn subsets, not divided by anything.
    untied
        ``[n_resamples]``, the same of any values of which no two are equal.
    """

    values: npt.NDArray[np.floating]
    resamples: Resamples
    drawn: npt.NDArray[np.float32]
    weighted: npt.NDArray[np.signedinteger]
    repeats: Floats
    variance: Floats
    untied: Floats

    @classmethod
    def of(cls, truth: npt.ArrayLike, resamples: Resamples) -> RankedTruth:
        """Rank mean outputs ``[n_subsets, n_queries]``; equal values are ties."""
        values = np.asarray(truth)
        n_subsets, n_queries = values.shape
        drawn = np.ascontiguousarray(resamples.subsets.T, dtype=np.float32)
        untied = _untied_variance(drawn)
        weighted = np.empty((n_queries, *drawn.shape), dtype=np.min_scalar_type(-(n_subsets**2 // 4) - 1))
        repeats, variance = np.empty((2, n_queries, drawn.shape[1]))
        for q, tied in enumerate(_have_ties(values)):
            ranks = _ranks(values[:, q], drawn)
            weighted[q] = ranks * drawn
            repeats[q] = np.einsum("mb,mb->b", drawn, weighted[q], dtype=np.float64)
            variance[q] = _variance(ranks, drawn) if tied else untied
        return cls(values, resamples, drawn, weighted, repeats, variance, untied)


def bootstrap_lds(predicted: npt.ArrayLike, truth: RankedTruth) -> Draws:
    """Resample the mean over queries of the Spearman correlation over subsets.

    Parameters
    ----------
    predicted
        ``[n_subsets, n_queries]``, summed scores; equal values are ties.
    truth
        What they are held against.

    Returns
    -------
    draws
        ``draws.both[b]`` is what :func:`tdabench.lds.spearman_columns` gives on the rows and columns repeated as often
        as resample b drew them; a column that is constant among the drawn rows counts 0.

    Notes
    -----
    A few queries at a time, so that their ranks in all resamples, 1.6 MB for sixteen queries, 1,000 resamples and 100
    subsets, stay in the processor's cache until they are multiplied with those of the truth. All numbers are whole and
    at most n_subsets**3 / 2, so up to 322 subsets float32 is exact here, and half the time of float64; beyond, a
    correlation is off by less than 1e-6.
    """
    predicted, resamples = np.asarray(predicted), truth.resamples
    n_queries = predicted.shape[1]
    rho = spearman_columns(predicted, truth.values)  # [n_queries]
    covariance, variance = _products(predicted, truth)  # [n_queries, n_resamples]
    variance *= truth.variance
    resampled = np.divide(covariance, np.sqrt(variance), out=np.zeros_like(covariance), where=variance > 0)
    subsets = resampled.sum(axis=0)
    both = np.einsum("qb,bq->b", resampled, resamples.queries)
    queries = np.einsum("bq,q->b", resamples.queries, rho)  # [n_resamples]
    return Draws(float(rho.mean()), subsets / n_queries, queries / n_queries, both / n_queries)


def _products(predicted: npt.NDArray[np.floating], truth: RankedTruth) -> tuple[Floats, Floats]:
    """Return the sums over drawn subsets of ranks times the truth's, and of squared ranks, ``[n_queries, B]``.

    Where no values are equal, a subset's rank is twice the number drawn up to it, in their order, less how often it was
    drawn itself and less the number drawn in all. Of the three, only the first depends on the values, the last is of no
    account as the truth's ranks add up to 0, and the other product is :attr:`RankedTruth.repeats`.
    """
    products, squares = np.empty((2, *truth.variance.shape))
    tied = _have_ties(predicted)
    for q in np.flatnonzero(tied).tolist():
        ranks = _ranks(predicted[:, q], truth.drawn)
        np.einsum("mb,mb->b", ranks, truth.weighted[q], out=products[q], dtype=np.float64)
        squares[q] = _variance(ranks, truth.drawn)
    orders = np.argsort(predicted, axis=0)  # [n_subsets, n_queries]
    up_to, weighted = np.empty((2, *truth.drawn.shape), dtype=np.float32)
    kept = np.empty_like(truth.weighted[0])
    for q, counted in _counted(truth.drawn, orders, np.flatnonzero(~tied).tolist()):
        np.take(truth.weighted[q], orders[:, q], axis=0, out=kept, mode="clip")
        np.copyto(weighted, kept)
        np.copyto(up_to, counted)
        products[q] = np.einsum("mb,mb->b", up_to, weighted)
        products[q] = 2 * products[q] - truth.repeats[q]
        squares[q] = truth.untied
    return products, squares


def _counted(
    drawn: npt.NDArray[np.float32], orders: npt.NDArray[np.intp], queries: Sequence[int]
) -> Iterator[tuple[int, npt.NDArray[np.unsignedinteger]]]:
    """Yield queries with how many subsets were drawn up to each place of their order, ``[n_subsets, B]``.

    No more than there are subsets, so that few bits hold it, and several queries at once, as calls would take most of
    the time. Good until the next is asked for.
    """
    n_subsets, n_resamples = drawn.shape
    counts = drawn.astype(np.min_scalar_type(n_subsets))
    sums = np.empty((n_subsets, _QUERIES_AT_ONCE, n_resamples), dtype=counts.dtype)
    for start in range(0, len(queries), _QUERIES_AT_ONCE):
        some = queries[start : start + _QUERIES_AT_ONCE]
        for i, q in enumerate(some):
            sums[:, i] = counts[orders[:, q]]
        _accumulate(list(sums), list(sums))
        yield from ((q, sums[:, i]) for i, q in enumerate(some))


def percentile_interval(draws: npt.ArrayLike, level: float = 0.95) -> tuple[float, float]:
    """Return the interval that holds the central share ``level`` of the draws."""
    low, high = np.quantile(np.asarray(draws, dtype=np.float64), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _accumulate(rows: Sequence[npt.NDArray[Any]], sums: Sequence[npt.NDArray[Any]]) -> None:
    """Write the sum of the rows up to each into ``sums``: a fifth of the time of numpy's accumulate down columns."""
    sums[0][:] = before = rows[0]
    for row, total in zip(rows[1:], sums[1:], strict=True):
        before = np.add(before, row, out=total)


def _ranks(values: npt.NDArray[np.floating], drawn: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return twice the average rank of ``[n_subsets]`` values less its mean in every resample, ``[n_subsets, B]``.

    That is the number of drawn rows below less that of drawn rows above, ties included.
    """
    order = np.argsort(values)
    below = np.zeros((len(values) + 1, drawn.shape[1]), dtype=np.float32)  # below the value of each place in the order
    _accumulate(list(drawn[order]), list(below[1:]))
    ends = [np.searchsorted(values[order], values, side=side) for side in ("left", "right")]
    ranks: npt.NDArray[np.float32] = below[ends[0]] + below[ends[1]] - below[-1]
    return ranks


def _have_ties(values: npt.NDArray[np.floating]) -> npt.NDArray[np.bool_]:
    """Return which columns of ``[n_subsets, n_queries]`` hold a value twice."""
    ordered = np.sort(values, axis=0)
    return np.asarray((ordered[1:] == ordered[:-1]).any(axis=0))


def _untied_variance(drawn: npt.NDArray[np.float32]) -> Floats:
    """Return the sum over drawn rows of the squared ranks where no values are equal, ``[n_resamples]``.

    Rows tie with their own copies alone then, so the variance of ranks, (n^3 - n) / 3 in units of half a rank less
    (c^3 - c) / 3 for every group of c ties, depends on how often rows were drawn and on nothing else.
    """
    n_subsets, counts = len(drawn), drawn.astype(np.float64)
    untied: Floats = ((n_subsets**3 - n_subsets) - (counts**3 - counts).sum(axis=0)) / 3
    return untied


def _variance(ranks: npt.NDArray[np.float32], drawn: npt.NDArray[np.float32]) -> Floats:
    """Return the sum over drawn rows of the squared ranks ``[n_subsets, n_resamples]``, ``[n_resamples]``."""
    return np.einsum("mb,mb->b", ranks * drawn, ranks).astype(np.float64)
