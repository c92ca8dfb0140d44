"""Draws of an LDS measured with several run seeds: they hold the luck of the trained models, too.

A run's interval resamples subsets and queries at fixed models. Another run seed is other models, and one lucky model
may be worth more than two. With n seeds, the mean's deviation over other seeds is drawn as

    sqrt((n - 1) / chi2) * sum over seeds of z[seed] * (lds[seed] - mean) / sqrt(n (n - 1))

with z standard normal and chi2 of n - 1 degrees of freedom: the t distribution of a mean of n values. Drawing seeds
with replacement would give three seeds ten different means, and two thirds of the variance. A seed has its z from its
own stream, so entries that were run with the same seeds, and so at the same models, move together, and what they share
cancels in a difference. Entries are therefore compared at the seeds that they share (:func:`at_shared`).

A single seed cannot tell how lucky it is. Where the task says how far an LDS moves from seed to seed
(:mod:`tdabench.results.seed_variance`), its deviation is drawn from that (:func:`alone`); else intervals leave it out.
Of a few seeds, whose own spread says little (the t distribution of two has a factor of 12.7, so that they would know
less than one), the task's variance is pooled with it, as if it had been seen at :data:`TASK_DEGREES` seeds more: the
moderated t of Smyth (Stat. Appl. Genet. Mol. Biol. 3(1), 2004), with given degrees.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from tdabench.bootstrap import RESAMPLE_SEED, Draws, Floats, percentile_interval

_PARTS = ("subsets", "queries", "both")
_DEGREES, _SEEDS, _OWN, _MODELS = range(4)  # what a stream is for
TASK_DEGREES = 4
"""Degrees of freedom that a task's seed variance has beside those of a configuration's own seeds."""


@dataclass(frozen=True, eq=False)
class SeedDraws:
    """Draws of a mean LDS over run seeds, or of something linear in several of them.

    Attributes
    ----------
    by_seed
        Subsets and queries resampled, for each run seed, in the order of the seeds; empty where entries without a
        common seed were combined.
    sampled
        The mean over seeds of those.
    seeds
        ``[n_resamples]``, deviations over other seeds; zeros where there is one seed, of whose luck nothing is known.
    alone
        For each run seed, what ``seeds`` would be if it were the only one, ``[n_resamples]``; empty where the task does
        not say how far an LDS moves.
    """

    by_seed: Mapping[int, Draws]
    sampled: Draws
    seeds: Floats
    alone: Mapping[int, Floats] = field(default_factory=dict)

    @property
    def estimate(self) -> float:
        """The value without resampling."""
        return self.sampled.estimate

    @property
    def knows_luck(self) -> bool:
        """Whether the interval holds the variation between trained models."""
        return len(self.by_seed) != 1 or bool(self.alone)

    def at(self, seeds: Collection[int]) -> SeedDraws:
        """Return the draws at some of the run seeds, at least one."""
        if set(self.by_seed) == set(seeds):
            return self
        alone = {seed: found for seed, found in self.alone.items() if seed in seeds}
        return _over({seed: found for seed, found in self.by_seed.items() if seed in seeds}, alone)

    def __sub__(self, other: SeedDraws) -> SeedDraws:
        """Return the draws of the difference, paired over subsets, queries and, where both have the same, seeds."""
        return combined([self, other], [1.0, -1.0])

    def corrected(self) -> Floats:
        """Return draws whose spread estimates that of the value, ``[n_resamples]``."""
        return np.asarray(self.sampled.corrected() + self.seeds)

    def interval(self, level: float = 0.95, within: float = math.inf) -> tuple[float, float]:
        """Return the percentile interval of the corrected draws, as far as it lies in ``[-within, within]``.

        Two seeds of which the task says nothing have a single degree of freedom, whose t factor of 12.7 can carry an
        interval past what a correlation can be.
        """
        low, high = percentile_interval(self.corrected(), level)
        return max(low, -within), min(high, within)


def over_seeds(by_seed: Mapping[int, Sequence[Draws]], alone: Mapping[int, Floats] | None = None) -> SeedDraws:
    """Return the draws of the mean over seeds.

    Parameters
    ----------
    by_seed
        Run seeds, and the draws of each one's runs, all made from the same resamples. Repetitions of a seed are its
        mean: they weigh as one run.
    alone
        See :attr:`SeedDraws.alone`.
    """
    each = {seed: _weighted(draws, [1 / len(draws)] * len(draws)) for seed, draws in sorted(by_seed.items())}
    return _over(each, alone or {})


def alone(seed: int, stream: int, *, own: float, shared: float, models: int = 1, n: int) -> Floats:
    """Draw how far a single seed's LDS is from the mean over seeds, ``[n]``.

    Parameters
    ----------
    stream
        Names the configuration.
    own, shared
        Standard deviations of what one model does to the configuration by itself, and to all configurations alike.
    models
        How many the configuration averages over: the first of its seed, so a larger ensemble has those of a smaller one
        among its own.
    """
    lucks = np.mean([_normals(n, _MODELS, seed, model) for model in range(models)], axis=0)
    return np.asarray(own / math.sqrt(models) * _normals(n, _OWN, stream, seed) + shared * lucks)


def _over(each: Mapping[int, Draws], alone: Mapping[int, Floats]) -> SeedDraws:
    n = len(each)
    whole = _weighted(list(each.values()), [1 / n] * n)
    if n > 1:
        seeds = _deviations({seed: draws.estimate - whole.estimate for seed, draws in each.items()}, alone, whole)
    else:
        seeds = alone[next(iter(each))] if alone else np.zeros(len(whole.both))
    return SeedDraws(each, whole, seeds, alone)


def _deviations(found: Mapping[int, float], alone: Mapping[int, Floats], whole: Draws) -> Floats:
    """Draw how far the mean of several seeds is from that over all, ``[n_resamples]``.

    Parameters
    ----------
    found
        How far each is from their mean: ``n - 1`` degrees of freedom.
    alone
        See :attr:`SeedDraws.alone`: a draw of the task's variance for each, together :data:`TASK_DEGREES` more.
    """
    n, n_resamples, degrees = len(found), len(whole.both), len(found) - 1
    sums = np.sum([_normals(n_resamples, _SEEDS, seed) * value for seed, value in found.items()], axis=0)
    if alone:
        sums = sums + math.sqrt(TASK_DEGREES / n) * np.sum([alone[seed] for seed in found], axis=0)
        degrees += TASK_DEGREES
    chi2 = np.sum([_normals(n_resamples, _DEGREES, k) ** 2 for k in range(degrees)], axis=0)
    return np.asarray(sums / np.sqrt(n * chi2))


def at_shared(found: Sequence[SeedDraws]) -> list[SeedDraws]:
    """Return the draws at the seeds that all have, so that luck is compared with the same luck.

    As they are where all have several and share fewer than two: what a single seed leaves out is more than it cancels.
    """
    shared = set.intersection(*(set(draws.by_seed) for draws in found))
    if not shared or (len(shared) == 1 and all(len(draws.by_seed) > 1 for draws in found)):
        return list(found)
    return [draws.at(shared) for draws in found]


def estimate_beside(first: SeedDraws, other: SeedDraws) -> float:
    """Return the value of ``first`` at the run seeds that ``other`` has, too; its own where they share none."""
    return at_shared([first, other])[0].estimate


def difference(a: SeedDraws, b: SeedDraws) -> tuple[float, float, float]:
    """Return ``a`` less ``b`` and the ends of its 95 % interval, paired over subsets, queries and seeds.

    At the run seeds that both have, so it need not be the difference of the two means where one has more.
    """
    first, second = at_shared([a, b])
    draws = first - second
    return draws.estimate, *draws.interval()


def ahead(a: SeedDraws, b: SeedDraws) -> int:
    """Return 1 where ``a`` is significantly better than ``b``, -1 where worse, 0 where that cannot be told."""
    return direction(difference(a, b))


def direction(difference: tuple[float, float, float]) -> int:
    """Return the sign of a difference whose interval does not hold 0; else 0."""
    _, low, high = difference
    return int(low > 0) - int(high < 0)


def best_of(found: Sequence[SeedDraws]) -> int:
    """Return the number of the best: the highest LDS of those that no other is significantly better than.

    The highest mean need not be the best: of another one's seeds it may have the lucky one alone, and be worse at that
    (:func:`difference`). Where each has one that is better, the highest LDS; among equals, the first given.
    """
    down = sorted(range(len(found)), key=lambda i: -found[i].estimate)
    return next((i for i in down if not any(_beats(found[k], found[i]) for k in down if k != i)), down[0])


def _beats(a: SeedDraws, b: SeedDraws) -> bool:
    if a.estimate <= b.estimate and set(a.by_seed) == set(b.by_seed):
        return False  # at the same seeds the difference is that of the means
    return ahead(a, b) > 0


def rank_groups(found: Sequence[SeedDraws]) -> list[int]:
    """Rank LDS values of a task, those not significantly different from the best of their rank together.

    The best of what is left (:func:`best_of`) opens a group. From the highest LDS down, others join it until one that
    is lower than that best is significantly worse. Every test is at the 95 % level, not adjusted for their number.

    Returns
    -------
    groups
        One for each, in the order given; 1 is best and no number is left out.
    """
    groups, group = [0] * len(found), 0
    left = sorted(range(len(found)), key=lambda i: -found[i].estimate)
    while left:
        best, group = left[best_of([found[i] for i in left])], group + 1
        for index in _level(found, left, best):
            groups[index] = group
        left = [index for index in left if not groups[index]]
    return groups


def _level(found: Sequence[SeedDraws], left: Sequence[int], best: int) -> list[int]:
    """Return the best, and those of ``left``, from the highest down, that join its group."""
    level = [best]
    for index in left:
        if index == best:
            continue
        if not _beats(found[best], found[index]):
            level.append(index)
        elif found[index].estimate <= found[best].estimate:
            break
    return level


def combined(found: Sequence[SeedDraws], weights: Sequence[float]) -> SeedDraws:
    """Return the draws of the weighted sum of values."""
    first = found[0]
    if all(set(draws.by_seed) == set(first.by_seed) for draws in found) and first.by_seed:
        each = {seed: _weighted([draws.by_seed[seed] for draws in found], weights) for seed in first.by_seed}
        known = all(draws.alone for draws in found)
        return _over(each, {seed: _sum(weights, [draws.alone[seed] for draws in found]) for seed in each if known})
    sampled = _weighted([draws.sampled for draws in found], weights)
    return SeedDraws({}, sampled, _sum(weights, [draws.seeds for draws in found]))


def _sum(weights: Sequence[float], values: Sequence[Floats]) -> Floats:
    return np.asarray(np.tensordot(weights, values, axes=1))


def _weighted(draws: Sequence[Draws], weights: Sequence[float]) -> Draws:
    if len(draws) == 1 and weights[0] == 1:
        return draws[0]
    parts = (_sum(weights, [getattr(d, name) for d in draws]) for name in _PARTS)
    return Draws(float(np.dot(weights, [d.estimate for d in draws])), *parts)


@lru_cache(maxsize=1024)
def _normals(n: int, *stream: int) -> Floats:
    """Return ``[n]`` normal numbers whose second half is the first with its sign changed, so that they centre on 0."""
    half = np.random.default_rng([RESAMPLE_SEED, *stream]).standard_normal((n + 1) // 2)
    return np.concatenate([half, -half])[:n]
