"""The noise ceiling: the LDS that exact predictions would have on a task.

Ground truth is a mean over a few seeds, so even predictions that equal the expected output of every subset do not reach
an LDS of 1. How far they get follows from how well two halves of the seeds agree. Sums of scores, one for each example,
need not come as far: what many examples do together is not what they do one by one.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import numpy as np
import numpy.typing as npt

from tdabench.lds import average_ranks, constant_columns

Floats = npt.NDArray[np.float64]
Half = tuple[int, ...]

MAX_SPLITS = 50
"""Up to 8 seeds, all ways to halve them; beyond, this many random ones."""

SPLIT_SEED = 20230
"""Seed of the random halves; a constant, so that a task has one ceiling."""


@dataclass(frozen=True)
class Ceiling:
    """The LDS that exact predictions would have, and what it was computed from."""

    value: float | None
    """None where there is one seed per subset: the ceiling cannot be known from one seed."""
    reliability: float | None
    """Mean over queries of the reliability of the mean over all seeds: the share of its variance that is not noise."""
    n_splits: int
    """How many ways of halving the seeds were averaged."""


def noise_ceiling(outputs: npt.NDArray[np.floating]) -> Ceiling:
    """Estimate the ceiling from the split-half reliability of the outputs over seeds.

    Per query, the Spearman correlation over subsets between the means of two halves of the seeds, averaged over splits,
    is stepped up to all seeds (Spearman 1910, Brown 1910; for an odd number the halves are unequal and the step is
    solved for unequal halves). An exact prediction correlates with the mean over all seeds as the square root of its
    reliability (Spearman 1904). Two corrections, each worth up to .03 where outputs are noisy:

    - The laws above hold for Pearson's correlation. Spearman's is converted to it and back as for normal variables,
      which outputs, sums of many small effects, resemble (Pearson 1907: r = 2 sin(pi rho / 6)).
    - A query's reliability is itself estimated from few subsets, and the mean of square roots of noisy numbers, clipped
      at 0, is not the square root of what they estimate. So estimates are first pulled towards their mean until they
      vary over queries as much as true reliabilities do (constrained empirical Bayes; Ghosh 1992).

    Parameters
    ----------
    outputs
        ``[n_subsets, n_seeds, n_queries]``, finite. What all subsets of a seed have in common does not matter.

    Returns
    -------
    ceiling
        Never NaN. A query whose output does not vary over subsets counts 0, as in the LDS. The same outputs give the
        same ceiling.
    """
    n_subsets, n_seeds, n_queries = outputs.shape
    if n_seeds < 2:
        return Ceiling(None, None, 0)
    splits = _halves(n_seeds)
    varies = ~constant_columns(outputs.mean(axis=1, dtype=np.float64))  # [n_queries]
    if n_subsets < 2 or not varies.any():
        return Ceiling(0.0, 0.0, len(splits))
    rho, variance = _half_agreement(outputs[:, :, varies], splits)  # [n_varying]
    reliability = step_up(_to_pearson(_shrink(rho, variance)), len(splits[0]), n_seeds)  # [n_varying]
    # Dividing by all queries counts a constant one 0.
    return Ceiling(
        value=float(_to_spearman(np.sqrt(reliability)).sum() / n_queries),
        reliability=float(reliability.sum() / n_queries),
        n_splits=len(splits),
    )


def step_up(correlation: Floats, half: int, n_seeds: int) -> Floats:
    """Return the reliability of a mean over all seeds from the correlation of the means of two parts.

    With v the noise variance of one seed over the variance of the signal, means of h and S - h seeds correlate as
    r = 1 / sqrt((1 + v/h) (1 + v/(S-h))), and a mean of S seeds has reliability S / (S + v). The first equation is
    quadratic in v. For h = S/2 this is the Spearman-Brown formula, 2r / (1 + r).

    Parameters
    ----------
    correlation
        Pearson correlations, any shape; below 0 counts as 0, above 1 as 1.
    half
        h, the seeds in one part; the other has the rest.
    n_seeds
        S.
    """
    reliability = np.zeros_like(correlation)
    positive = correlation > 1e-100  # its square must not underflow
    excess = 1 / np.minimum(correlation[positive], 1) ** 2 - 1
    noise = (np.sqrt(n_seeds**2 + 4 * half * (n_seeds - half) * excess) - n_seeds) / 2
    reliability[positive] = n_seeds / (n_seeds + noise)
    return reliability


def _halves(n_seeds: int) -> list[Half]:
    """Return the first half of every split; the second half is the rest."""
    half = n_seeds // 2
    if n_seeds <= 8:
        # With two equal halves, each split comes up twice: keep the one whose first half holds seed 0.
        return [first for first in combinations(range(n_seeds), half) if n_seeds % 2 or first[0] == 0]
    rng = np.random.default_rng(SPLIT_SEED)
    return [tuple(int(seed) for seed in rng.permutation(n_seeds)[:half]) for _ in range(MAX_SPLITS)]


def _half_agreement(outputs: npt.NDArray[np.floating], splits: list[Half]) -> tuple[Floats, Floats]:
    """Return each query's Spearman correlation between halves, averaged over splits, and its sampling variance."""
    n_subsets, _, n_queries = outputs.shape
    total = outputs.sum(axis=1, dtype=np.float64)  # [n_subsets, n_queries]
    rho, influence = np.zeros(n_queries), np.zeros((n_subsets, n_queries))
    for half in splits:
        first = outputs[:, half].sum(axis=1, dtype=np.float64)  # [n_subsets, n_queries]
        x, y = _standard_ranks(first), _standard_ranks(total - first)  # [n_subsets, n_queries]
        correlation = np.mean(x * y, axis=0)
        rho += correlation
        # A subset's influence on a correlation (Devlin, Gnanadesikan & Kettenring 1975): x y - r (x^2 + y^2) / 2.
        influence += x * y - correlation * (x * x + y * y) / 2
    variance = np.mean(np.square(influence / len(splits)), axis=0) / n_subsets
    return rho / len(splits), variance


def _standard_ranks(values: Floats) -> Floats:
    ranks = average_ranks(values)
    ranks -= ranks.mean(axis=0)
    scale = np.sqrt(np.mean(ranks * ranks, axis=0))
    return np.divide(ranks, scale, out=np.zeros_like(ranks), where=scale > 0)


def _shrink(rho: Floats, variance: Floats) -> Floats:
    observed = rho.var()
    true = max(observed - variance.mean(), 0.0)
    return rho.mean() + (rho - rho.mean()) * (np.sqrt(true / observed) if observed > 0 else 0.0)


def _to_pearson(rho: Floats) -> Floats:
    return 2 * np.sin(np.pi / 6 * rho)


def _to_spearman(correlation: Floats) -> Floats:
    return 6 / np.pi * np.arcsin(correlation / 2)


class RunningReliability:
    """The reliability of what a build has finished so far: of the mean over its seeds, on the subsets it has.

    Parameters
    ----------
    outputs
        ``[n_subsets, n_seeds, n_queries]``, NaN where a replica is missing.
    """

    def __init__(self, outputs: npt.NDArray[np.floating]) -> None:
        self._outputs = outputs.copy()
        self._done = np.isfinite(outputs).all(axis=2)  # [n_subsets, n_seeds]
        self._seen = 0
        self.value: float | None = None
        self._update()

    def add(self, subsets: npt.NDArray[np.integer], seed: int, outputs: npt.NDArray[np.floating]) -> None:
        """Take in the outputs ``[R, n_queries]`` of some subsets under one seed."""
        self._outputs[subsets, seed] = outputs
        self._done[subsets, seed] = np.isfinite(outputs).all(axis=1)
        self._update()

    def _update(self) -> None:
        """Compute it anew when a twentieth has been added, for the seeds that have half as many subsets as the fullest.

        A share of the work never has all subsets.
        """
        done = self._done
        if done.sum() < self._seen + max(done.size // 20, 1) and done.sum() < done.size:
            return
        self._seen = int(done.sum())
        count = done.sum(axis=0)  # [n_seeds]
        common = np.flatnonzero(count >= max(count.max() / 2, 1))
        subsets = done[:, common].all(axis=1)
        if len(common) >= 2 and subsets.sum() >= 4:
            self.value = noise_ceiling(self._outputs[subsets][:, common]).reliability
