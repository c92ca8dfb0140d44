"""Times of evaluation beside the loop that it replaces; run with ``pytest --benchmark-only -o addopts= -s``.

Equality of results is asserted, times are not: they are printed and kept in the benchmark's ``extra_info``.
"""

from __future__ import annotations

import time

import numpy as np
import pytest
from scipy import stats
from threadpoolctl import threadpool_limits

from tdabench.bootstrap import RankedTruth, bootstrap_lds, draw
from tdabench.ceiling import noise_ceiling
from tdabench.lds import lds_per_query, spearman_columns, subset_sums

N_SUBSETS, N_TRAIN, N_QUERIES = 100, 5_000, 1_000


@pytest.fixture(scope="module")
def case():
    rng = np.random.default_rng(0)
    masks = np.zeros((N_SUBSETS, N_TRAIN), dtype=bool)
    for row in masks:
        row[rng.permutation(N_TRAIN)[: N_TRAIN // 2]] = True
    scores = rng.normal(size=(N_QUERIES, N_TRAIN)).astype(np.float32)
    return scores, masks, rng.normal(size=(N_SUBSETS, N_QUERIES))


def loop_over_queries(scores, masks, outputs):
    """Do what one writes first: for every query, add up the kept scores of every subset, then call scipy."""
    kept = [np.flatnonzero(row) for row in masks]
    rho = []
    for q, row in enumerate(scores):
        sums = [row[index].sum(dtype=np.float64) for index in kept]
        rho.append(stats.spearmanr(sums, outputs[:, q]).statistic)
    return np.array(rho)


def loop_with_gather(scores, masks, outputs):
    """Do as dattri does: pick the kept columns of every subset and add them up, then call scipy for every query."""
    sums = np.stack([scores[:, np.flatnonzero(row)].sum(axis=1, dtype=np.float64) for row in masks])
    return loop_over_spearman(sums, outputs)


def loop_with_matmul(scores, masks, outputs):
    """Sum by one product of the masks and a query's scores: the tightest loop over queries around scipy."""
    weights = masks.astype(np.float64)
    return np.array([stats.spearmanr(weights @ row, outputs[:, q]).statistic for q, row in enumerate(scores)])


def loop_over_spearman(sums, outputs):
    return np.array([stats.spearmanr(sums[:, q], outputs[:, q]).statistic for q in range(sums.shape[1])])


def timed(function, *arguments):
    start = time.perf_counter()
    result = function(*arguments)
    return result, time.perf_counter() - start


def compare_times(benchmark, **loops_s) -> None:
    ours_s = benchmark.stats.stats.min
    for name, loop_s in loops_s.items():
        benchmark.extra_info[f"{name}_s"], benchmark.extra_info[f"{name}_ratio"] = loop_s, loop_s / ours_s
        print(f"\n{benchmark.name}: {ours_s:.4f} s; {name} {loop_s:.4f} s, {loop_s / ours_s:.1f} times ours", end="")


@pytest.mark.parametrize("threads", [1, 2])
def test_lds(benchmark, case, threads):
    with threadpool_limits(threads, user_api="blas"):
        rho, _ = benchmark.pedantic(lds_per_query, args=case, rounds=5, warmup_rounds=1)
        plain, plain_s = timed(loop_over_queries, *case)
        gather, gather_s = timed(loop_with_gather, *case)
        matmul, matmul_s = timed(loop_with_matmul, *case)
    for loop in (plain, gather, matmul):
        np.testing.assert_allclose(rho, loop, rtol=0, atol=1e-12)
    compare_times(benchmark, scipy_loop=plain_s, gather_and_scipy_loop=gather_s, matmul_and_scipy_loop=matmul_s)


def test_spearman_alone(benchmark, case):
    scores, masks, outputs = case
    sums = subset_sums(scores, masks)
    rho = benchmark.pedantic(spearman_columns, args=(sums, outputs), rounds=5, warmup_rounds=1)
    loop, loop_s = timed(loop_over_spearman, sums, outputs)
    np.testing.assert_allclose(rho, loop, rtol=0, atol=1e-12)
    compare_times(benchmark, scipy_loop=loop_s)


def test_bootstrap(benchmark):
    rng = np.random.default_rng(0)
    predicted = rng.normal(size=(100, 400))
    truth = predicted + rng.normal(size=(100, 400))
    resamples = draw(100, 400, 1000, seed=0)
    ranked = RankedTruth.of(truth, resamples)  # once a task
    draws = benchmark.pedantic(bootstrap_lds, args=(predicted, ranked), rounds=3)
    rows = np.repeat(np.arange(100), resamples.subsets[0])
    rho, loop_s = timed(loop_over_spearman, predicted[rows], truth[rows])
    assert draws.both[0] == pytest.approx(resamples.queries[0] @ rho / 400, abs=1e-9)
    compare_times(benchmark, scipy_loop_extrapolated=1000 * loop_s)


def test_ceiling(benchmark):
    outputs = np.random.default_rng(0).normal(size=(100, 10, 400)).astype(np.float32)
    assert 0 <= benchmark.pedantic(noise_ceiling, args=(outputs,), rounds=3).value < 0.2
    print(f"\n{benchmark.name}: {benchmark.stats.stats.min:.4f} s", end="")
