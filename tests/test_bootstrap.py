from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from tdabench.bootstrap import Draws, RankedTruth, Resamples, bootstrap_lds, draw, percentile_interval
from tdabench.lds import spearman_columns


def spearman_or_0(a, b) -> float:
    constant = len(set(a)) == 1 or len(set(b)) == 1
    return 0.0 if constant else float(stats.spearmanr(a, b).statistic)


def repeated_rows(predicted, truth, subsets, queries) -> float:
    rows, columns = np.repeat(np.arange(len(subsets)), subsets), np.repeat(np.arange(len(queries)), queries)
    return float(np.mean([spearman_or_0(predicted[rows, q], truth[rows, q]) for q in columns]))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 9), st.integers(1, 4), st.booleans())
def test_every_resample_equals_scipy_on_the_repeated_rows(seed, n_subsets, n_queries, ties):
    rng = np.random.default_rng(seed)
    predicted, truth = rng.normal(size=(2, n_subsets, n_queries))
    if ties:
        predicted, truth = np.round(predicted), np.round(truth)
    resamples = draw(n_subsets, n_queries, 8, seed=seed)
    draws = bootstrap_lds(predicted, RankedTruth.of(truth, resamples))
    once = np.ones(n_subsets, dtype=int), np.ones(n_queries, dtype=int)
    assert draws.estimate == pytest.approx(repeated_rows(predicted, truth, *once), abs=1e-9)
    for b, (subsets, queries) in enumerate(zip(resamples.subsets, resamples.queries, strict=True)):
        assert draws.both[b] == pytest.approx(repeated_rows(predicted, truth, subsets, queries), abs=1e-9)
        assert draws.subsets[b] == pytest.approx(repeated_rows(predicted, truth, subsets, once[1]), abs=1e-9)
        assert draws.queries[b] == pytest.approx(repeated_rows(predicted, truth, once[0], queries), abs=1e-9)


@pytest.mark.parametrize(("n_subsets", "tolerance"), [(127, 1e-12), (128, 1e-12), (256, 1e-12), (600, 1e-6)])
def test_many_subsets(n_subsets, tolerance):
    rng = np.random.default_rng(0)
    predicted = rng.normal(size=(n_subsets, 2))
    truth = predicted + rng.normal(size=(n_subsets, 2))
    resamples = draw(n_subsets, 2, 3, seed=0)
    draws = bootstrap_lds(predicted, RankedTruth.of(truth, resamples))
    expected = [repeated_rows(predicted, truth, resamples.subsets[b], resamples.queries[b]) for b in range(3)]
    np.testing.assert_allclose(draws.both, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("n_subsets", [22, 23, 24, 361, 362, 363])
def test_kept_ranks_hold_the_most_extreme_resample(n_subsets):
    """The first and the last subset alone are drawn, half and half: around the edges of one and two bytes."""
    subsets = np.zeros((1, n_subsets), dtype=np.int64)
    half = n_subsets // 2
    subsets[0, [0, -1]] = half, n_subsets - half
    truth = np.arange(n_subsets, dtype=float)[:, None]
    ranked = RankedTruth.of(truth, Resamples(subsets, np.ones((1, 1), dtype=np.int64)))
    product = half * (n_subsets - half)
    assert ranked.weighted[0, [0, -1], 0].tolist() == [-product, product]
    assert ranked.variance == half * (n_subsets - half) ** 2 + (n_subsets - half) * half**2


def test_the_same_seed_gives_the_same_resamples():
    a, b, other = draw(10, 6, 20, seed=1), draw(10, 6, 20, seed=1), draw(10, 6, 20, seed=2)
    np.testing.assert_array_equal(a.subsets, b.subsets)
    np.testing.assert_array_equal(a.queries, b.queries)
    assert (a.subsets != other.subsets).any()
    assert (a.subsets.sum(axis=1) == 10).all()
    assert (a.queries.sum(axis=1) == 6).all()


def test_perfect_scores_have_an_interval_of_one_point():
    truth = np.random.default_rng(0).normal(size=(20, 5))
    assert bootstrap_lds(truth, RankedTruth.of(truth, draw(20, 5, 100, seed=0))).interval() == (1.0, 1.0)


def test_a_single_query_resamples_subsets_only():
    predicted, truth = np.random.default_rng(0).normal(size=(2, 30, 1))
    draws = bootstrap_lds(predicted, RankedTruth.of(truth, draw(30, 1, 200, seed=0)))
    np.testing.assert_allclose(draws.corrected() - draws.estimate, draws.subsets - draws.subsets.mean(), atol=1e-12)


def test_differences_are_those_of_the_draws():
    predicted, other, truth = np.random.default_rng(0).normal(size=(3, 30, 6))
    resamples = draw(30, 6, 100, seed=0)
    ranked = RankedTruth.of(truth, resamples)
    a, b = bootstrap_lds(predicted, ranked), bootstrap_lds(other, ranked)
    assert (a - b).estimate == a.estimate - b.estimate
    np.testing.assert_array_equal((a - b).both, a.both - b.both)
    assert (a - a).interval() == (0.0, 0.0)


def test_percentile_interval_holds_the_central_share():
    assert percentile_interval(np.arange(101), 0.9) == pytest.approx((5, 95))
    assert percentile_interval(np.full(7, 0.25)) == (0.25, 0.25)


# --- Coverage -------------------------------------------------------------------------------------------------------


def sample(rng, n_subsets, n_queries, share, lowest, highest):
    """Draw scores and outputs, standard normal, correlated by r_q; ``share`` of either's variance is the subset's."""
    r = rng.uniform(lowest, highest, size=n_queries)

    def effects():
        common, own = rng.normal(size=(n_subsets, 1)), rng.normal(size=(n_subsets, n_queries))
        return np.sqrt(share) * common + np.sqrt(1 - share) * own

    predicted = effects()
    return predicted, r * predicted + np.sqrt(1 - r**2) * effects()


def true_lds(lowest, highest) -> float:
    """Return the mean over queries of the Spearman correlation over all subsets (Pearson 1907)."""
    return float(np.mean(6 / np.pi * np.arcsin(np.linspace(lowest, highest, 10_001) / 2)))


POPULATIONS = {
    "subsets and queries matter": (0.3, 0.1, 0.7),
    "mostly subsets matter": (0.6, 0.3, 0.3),
    "mostly queries matter": (0.0, -0.2, 0.9),
    "neither is shared": (0.0, 0.3, 0.3),
}


def draws_of_population(name, n_samples):
    for number in range(n_samples):
        predicted, truth = sample(np.random.default_rng([7, number]), 60, 40, *POPULATIONS[name])
        yield bootstrap_lds(predicted, RankedTruth.of(truth, draw(60, 40, 400, seed=number)))


def coverage(intervals, value) -> float:
    return float(np.mean([low <= value <= high for low, high in intervals]))


def test_the_populations_true_lds_is_that_of_a_very_large_sample():
    for name, population in POPULATIONS.items():
        predicted, truth = sample(np.random.default_rng(0), 2_000, 1_000, *population)
        assert spearman_columns(predicted, truth).mean() == pytest.approx(true_lds(*population[1:]), abs=0.03), name


@pytest.mark.parametrize("name", POPULATIONS)
def test_the_interval_covers_the_true_lds_in_about_95_of_100_samples(name):
    intervals = [draws.interval() for draws in draws_of_population(name, 100)]
    found = coverage(intervals, true_lds(*POPULATIONS[name][1:]))
    print(f"coverage, {name}: {found:.2f}")
    assert 0.90 <= found <= 0.98


@pytest.mark.parametrize(
    ("n_subsets", "n_queries", "least"), [(10, 60, 0.8), (20, 60, 0.88), (60, 5, 0.75), (60, 20, 0.88), (20, 20, 0.88)]
)
def test_intervals_of_few_subsets_or_queries_cover_less(n_subsets, n_queries, least):
    found = {}
    for name, population in POPULATIONS.items():
        intervals = []
        for number in range(100):
            predicted, truth = sample(np.random.default_rng([9, number]), n_subsets, n_queries, *population)
            resamples = draw(n_subsets, n_queries, 400, seed=number)
            intervals.append(bootstrap_lds(predicted, RankedTruth.of(truth, resamples)).interval())
        found[name] = coverage(intervals, true_lds(*population[1:]))
    print(f"coverage of {n_subsets} subsets, {n_queries} queries: {found}")
    assert all(least <= share <= 1 for share in found.values())


def test_plain_two_way_draws_are_too_wide_where_nothing_is_shared():
    # Why draws are corrected: the spread of these is that of the estimate times the square root of 3.
    found = list(draws_of_population("neither is shared", 60))
    spread = np.std([draws.estimate for draws in found])
    assert np.mean([draws.both.std() for draws in found]) > 1.4 * spread
    assert np.mean([draws.corrected().std() for draws in found]) == pytest.approx(spread, rel=0.2)


def test_paired_differences_cover_too():
    # Two methods see the same truth; the second is noisier, and both share the subsets' effects.
    hits, gap = [], true_lds(0.5, 0.5) - true_lds(0.4, 0.4)
    for number in range(100):
        rng = np.random.default_rng([8, number])
        predicted, truth = sample(rng, 60, 40, 0.3, 0.5, 0.5)
        noisier = 0.8 * predicted + 0.6 * rng.normal(size=predicted.shape)
        ranked = RankedTruth.of(truth, draw(60, 40, 400, seed=number))
        low, high = (bootstrap_lds(predicted, ranked) - bootstrap_lds(noisier, ranked)).interval()
        hits.append(low <= gap <= high)
    print(f"coverage, paired difference: {np.mean(hits):.2f}")
    assert 0.90 <= np.mean(hits) <= 0.98


def test_draws_that_do_not_vary_stay_at_the_estimate():
    same = np.full(5, 0.5)
    np.testing.assert_array_equal(Draws(0.4, same, same, same).corrected(), np.full(5, 0.4))
