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

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits

from tdabench.lds import spearman_columns

Floats = npt.NDArray[np.float64]

RESAMPLE_SEED = 20110
"""Seed of the bootstrap; a constant, so that all runs of a task meet the same resamples and their draws are paired."""


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
    weighted
        ``[n_queries, n_resamples, n_subsets]``, ranks times how often the subset was drawn: whole, at most
        n_subsets^2 / 4.
    variance
        ``[n_queries, n_resamples]``, of the ranks of the drawn subsets, not divided by anything.
    untied
        ``[n_resamples]``, the same of any values of which no two are equal.
    """

    values: npt.NDArray[np.floating]
    resamples: Resamples
    weighted: npt.NDArray[np.signedinteger]
    variance: Floats
    untied: Floats

    @classmethod
    @threadpool_limits.wrap(limits=1, user_api="blas")
    def of(cls, truth: npt.ArrayLike, resamples: Resamples) -> RankedTruth:
        """Rank mean outputs ``[n_subsets, n_queries]``; equal values are ties."""
        values = np.asarray(truth)
        n_subsets, n_queries = values.shape
        counts = resamples.subsets.astype(np.float32)  # [n_resamples, n_subsets]
        untied = _untied_variance(counts)
        weighted = np.empty((n_queries, *counts.shape), dtype=np.min_scalar_type(-(n_subsets**2 // 4) - 1))
        variance = np.empty((n_queries, len(counts)))
        for q in range(n_queries):
            ranks = counts @ _signs(values[:, q])
            weighted[q] = ranks * counts
            variance[q] = _variance(values[:, q], ranks, counts, untied)
        return cls(values, resamples, weighted, variance, untied)


# One query's product is small: waking other threads for it costs more than it does, and far more on a busy machine.
@threadpool_limits.wrap(limits=1, user_api="blas")
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
    One query at a time: its ranks in all resamples, 0.4 MB for 1,000 resamples of 100 subsets, stay in the processor's
    cache until they are multiplied with those of the truth. All numbers are whole and at most n_subsets**3, so up to
    256 subsets float32 is exact here, and half the time of float64; beyond, a correlation is off by less than 1e-6.
    """
    predicted, resamples = np.asarray(predicted), truth.resamples
    n_queries = predicted.shape[1]
    rho = spearman_columns(predicted, truth.values)  # [n_queries]
    counts = resamples.subsets.astype(np.float32)  # [n_resamples, n_subsets]
    ranks, weighted = np.empty_like(counts), np.empty_like(counts)
    subsets, both = np.zeros(len(counts)), np.zeros(len(counts))
    for q in range(n_queries):
        np.matmul(counts, _signs(predicted[:, q]), out=ranks)
        np.copyto(weighted, truth.weighted[q])
        covariance = np.einsum("bm,bm->b", ranks, weighted).astype(np.float64)
        variance = _variance(predicted[:, q], ranks, counts, truth.untied) * truth.variance[q]
        resampled = np.divide(covariance, np.sqrt(variance), out=np.zeros_like(covariance), where=variance > 0)
        subsets += resampled
        both += resampled * resamples.queries[:, q]
    queries = resamples.queries @ rho  # [n_resamples]
    return Draws(float(rho.mean()), subsets / n_queries, queries / n_queries, both / n_queries)


def percentile_interval(draws: npt.ArrayLike, level: float = 0.95) -> tuple[float, float]:
    """Return the interval that holds the central share ``level`` of the draws."""
    low, high = np.quantile(np.asarray(draws, dtype=np.float64), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _signs(values: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
    """Return the signs of all pairwise differences of ``[n_subsets]``: 1 where the column's is above the row's.

    Multiplied with how often each row was drawn, they rank every resample: twice the average rank less its mean is the
    number of drawn rows below less that of drawn rows above, ties included. So one matrix product ranks all resamples,
    in less time than it takes to gather and add up sorted multiplicities.
    """
    above = values[None, :] > values[:, None]
    signs: npt.NDArray[np.float32] = np.subtract(above, above.T, dtype=np.float32)
    return signs


def _untied_variance(counts: npt.NDArray[np.float32]) -> Floats:
    """Return the sum over drawn rows of the squared ranks where no values are equal, ``[n_resamples]``.

    Rows tie with their own copies alone then, so the variance of ranks, (n^3 - n) / 3 in units of half a rank less
    (c^3 - c) / 3 for every group of c ties, depends on how often rows were drawn and on nothing else.
    """
    n_subsets, drawn = counts.shape[1], counts.astype(np.float64)
    untied: Floats = ((n_subsets**3 - n_subsets) - (drawn**3 - drawn).sum(axis=1)) / 3
    return untied


def _variance(
    values: npt.NDArray[np.floating], ranks: npt.NDArray[np.float32], counts: npt.NDArray[np.float32], untied: Floats
) -> Floats:
    """Return the sum over drawn rows of the squared ranks ``[n_resamples, n_subsets]``, ``[n_resamples]``."""
    if len(np.unique(values)) == len(values):
        return untied
    return np.einsum("bm,bm->b", ranks * counts, ranks).astype(np.float64)
