from __future__ import annotations

import numpy as np
import pytest

from tdabench import ceiling
from tdabench.ceiling import RunningReliability, noise_ceiling, step_up
from tdabench.lds import lds_per_query, subset_sums


def world(seed, reliability, n_seeds, n_subsets=100, n_queries=150, n_train=200):
    """Return scores, masks and outputs: the scores' sums are the outputs' expectation.

    ``reliability`` is the share of one retraining's variance over subsets that is signal, one for each query or for
    all; every seed also moves all subsets alike, which must not matter.
    """
    rng = np.random.default_rng(seed)
    masks = np.zeros((n_subsets, n_train), dtype=bool)
    for row in masks:
        row[rng.permutation(n_train)[: n_train // 2]] = True
    shared, own = rng.normal(size=(1, n_train)), rng.normal(size=(n_queries, n_train))
    scores = 0.5 * shared + own
    signal = subset_sums(scores, masks)  # [n_subsets, n_queries]
    signal /= np.sqrt(n_train / 4) * np.sqrt(1.25)
    noise = rng.normal(size=(n_subsets, n_seeds, n_queries))
    common = 3 * rng.normal(size=(1, n_seeds, n_queries))
    outputs = np.sqrt(reliability) * signal[:, None] + np.sqrt(1 - np.asarray(reliability)) * noise + common
    return scores, masks, outputs.astype(np.float32)


def measured(scores, masks, outputs) -> float:
    return float(lds_per_query(scores, masks, outputs.mean(axis=1))[0].mean())


@pytest.mark.parametrize("n_seeds", [3, 5, 10, 20])
@pytest.mark.parametrize("reliability", [0.2, 0.5, 0.9])
def test_perfect_scores_reach_the_ceiling(reliability, n_seeds):
    scores, masks, outputs = world(n_seeds, reliability, n_seeds)
    ceiling = noise_ceiling(outputs).value
    print(f"reliability {reliability}, {n_seeds} seeds: {measured(scores, masks, outputs):.3f}, ceiling {ceiling:.3f}")
    assert ceiling == pytest.approx(measured(scores, masks, outputs), abs=0.02)


@pytest.mark.parametrize("n_seeds", [5, 10, 20])
@pytest.mark.parametrize(("lowest", "highest"), [(0.04, 0.04), (0.01, 0.2)])
def test_perfect_scores_reach_the_ceiling_of_noisy_outputs_on_average(lowest, highest, n_seeds):
    # Half means correlate by .1 to .3 here: the average removes the estimate's noise and would leave a bias.
    gaps = []
    for seed in range(6):
        reliability = np.random.default_rng(seed).uniform(lowest, highest, size=150)
        scores, masks, outputs = world(seed, reliability, n_seeds)
        gaps.append(noise_ceiling(outputs).value - measured(scores, masks, outputs))
    print(f"reliability {lowest} to {highest}, {n_seeds} seeds: gap {np.mean(gaps):+.3f}, sd {np.std(gaps):.3f}")
    assert abs(np.mean(gaps)) < 0.015


def test_one_seed_has_no_ceiling():
    ceiling = noise_ceiling(np.zeros((10, 1, 3), dtype=np.float32))
    assert (ceiling.value, ceiling.reliability, ceiling.n_splits) == (None, None, 0)


@pytest.mark.parametrize(("n_seeds", "n_splits"), [(2, 1), (3, 3), (4, 3), (5, 10), (8, 35), (9, 50), (20, 50)])
def test_few_seeds_are_halved_in_all_ways(n_seeds, n_splits):
    assert noise_ceiling(world(0, 0.5, n_seeds, n_queries=4)[2]).n_splits == n_splits


def test_outputs_without_noise_have_a_ceiling_of_1():
    _, _, outputs = world(0, 1.0, 4, n_queries=5)
    ceiling = noise_ceiling(np.repeat(outputs[:, :1], 4, axis=1))
    assert ceiling.value == pytest.approx(1, abs=1e-12)
    assert ceiling.reliability == pytest.approx(1, abs=1e-12)


def test_outputs_of_nothing_but_noise_have_a_low_ceiling():
    assert 0 <= noise_ceiling(world(0, 0.0, 6)[2]).value < 0.15


def test_constant_queries_count_0():
    _, _, outputs = world(0, 0.5, 5, n_queries=8)
    constant = np.concatenate([outputs, np.full_like(outputs, 0.1)], axis=2)
    assert noise_ceiling(constant).value == pytest.approx(noise_ceiling(outputs).value / 2, abs=1e-12)
    assert noise_ceiling(np.full((10, 5, 3), 0.1, dtype=np.float32)).value == 0


@pytest.mark.parametrize("shape", [(1, 5, 3), (2, 2, 1), (3, 3, 1)])
def test_tiny_outputs_give_a_number(shape):
    value = noise_ceiling(np.random.default_rng(0).normal(size=shape)).value
    assert 0 <= value <= 1


def test_half_of_the_outputs_constant_is_no_nan():
    outputs = np.zeros((10, 2, 1), dtype=np.float32)
    outputs[:, 1, 0] = np.arange(10)
    assert noise_ceiling(outputs).value == 0


def test_the_ceiling_is_deterministic():
    outputs = world(0, 0.5, 12, n_queries=5)[2]
    assert noise_ceiling(outputs) == noise_ceiling(outputs.copy())


def test_step_up_is_spearman_brown_for_equal_halves():
    r = np.array([-0.3, 0.0, 0.1, 0.5, 0.9, 1.0])
    np.testing.assert_allclose(step_up(r, 3, 6), np.maximum(2 * r / (1 + r), 0), atol=1e-12)


@pytest.mark.parametrize(("half", "n_seeds"), [(1, 3), (2, 5), (10, 21)])
@pytest.mark.parametrize("noise", [0.01, 1.0, 25.0])
def test_step_up_inverts_unequal_halves(half, n_seeds, noise):
    correlation = 1 / np.sqrt((1 + noise / half) * (1 + noise / (n_seeds - half)))
    assert step_up(np.array([correlation]), half, n_seeds)[0] == pytest.approx(n_seeds / (n_seeds + noise))


# --- the reliability of an unfinished build


def running(outputs, order=None, size=1) -> list[float | None]:
    """Return the running values while replicas (subset, seed) come in, one group of subsets after the other."""
    n_subsets, n_seeds, _ = outputs.shape
    reliability = RunningReliability(np.full_like(outputs, np.nan))
    values = [reliability.value]
    for seed in range(n_seeds) if order is None else order:
        for start in range(0, n_subsets, size):
            subsets = np.arange(n_subsets)[start : start + size]
            reliability.add(subsets, seed, outputs[subsets, seed])
            values.append(reliability.value)
    return values


def test_one_seed_has_no_running_reliability():
    outputs = world(0, 0.5, 3, n_queries=5)[2]
    assert running(outputs, order=[1], size=10) == [None] * 11
    assert RunningReliability(outputs[:, :1]).value is None


def test_two_seeds_have_one_that_counts_only_them():
    outputs = world(0, 0.5, 4, n_queries=5)[2]
    values = running(outputs, order=[3, 1], size=25)
    assert values[:6] == [None] * 6
    assert values[-1] == noise_ceiling(outputs[:, [1, 3]]).reliability


@pytest.mark.parametrize("size", [1, 7, 50, 100])
@pytest.mark.parametrize("n_seeds", [2, 3, 6])
def test_the_last_running_value_is_the_reliability_of_all(n_seeds, size):
    outputs = world(1, 0.4, n_seeds, n_queries=6)[2]
    assert running(outputs, size=size)[-1] == noise_ceiling(outputs).reliability
    assert RunningReliability(outputs).value == noise_ceiling(outputs).reliability


def test_ragged_progress_counts_the_seeds_that_many_subsets_have_on_the_subsets_that_have_them_all():
    outputs = world(2, 0.5, 5, n_queries=6)[2]
    begun = outputs.copy()
    begun[60:, 1], begun[:30, 2], begun[40:, 3], begun[:, 4] = np.nan, np.nan, np.nan, np.nan
    assert RunningReliability(begun).value == noise_ceiling(outputs[30:60, :3]).reliability


def test_the_share_of_one_of_many_machines_has_one_too():
    outputs = world(3, 0.5, 4, n_queries=6)[2]
    share = np.full_like(outputs, np.nan)
    share[2::10] = outputs[2::10]
    assert RunningReliability(share).value == noise_ceiling(outputs[2::10]).reliability


@pytest.mark.parametrize("n_common", [0, 3])
def test_too_few_common_subsets_have_none(n_common):
    outputs = world(4, 0.5, 2, n_queries=6)[2]
    begun = outputs.copy()
    begun[50:, 0], begun[: 50 - n_common, 1] = np.nan, np.nan
    assert RunningReliability(begun).value is None


def test_nothing_finished_has_none():
    assert RunningReliability(np.full((10, 4, 3), np.nan, dtype=np.float32)).value is None


def test_it_is_computed_anew_for_a_twentieth_and_at_the_end(monkeypatch):
    calls = []
    monkeypatch.setattr(ceiling, "noise_ceiling", lambda o: calls.append(o.shape) or noise_ceiling(o))
    outputs = world(5, 0.5, 4, n_queries=3)[2]
    running(outputs)  # 400 replicas, one by one
    assert len(calls) <= 20
    assert calls[-1] == (100, 4, 3)


def test_the_outputs_that_are_given_are_left_alone():
    begun = np.full((10, 3, 2), np.nan, dtype=np.float32)
    RunningReliability(begun).add(np.arange(10), 0, np.ones((10, 2), dtype=np.float32))
    assert np.isnan(begun).all()
