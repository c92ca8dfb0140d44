from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from scipy import stats

from tdabench.errors import GroundTruthError, ScoresError
from tdabench.lds import average_ranks, constant_columns, lds_per_query, spearman_columns, subset_sums

# Few different values, so that ties are common; halves, so that they are exact.
tied_values = st.integers(-3, 3).map(lambda n: n / 2)
any_values = st.floats(-1e6, 1e6, allow_nan=False, width=32)


def half_masks(n_subsets: int, n_train: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    masks = np.zeros((n_subsets, n_train), dtype=bool)
    for row in masks:
        row[rng.permutation(n_train)[: n_train // 2]] = True
    return masks


@given(arrays(np.float64, array_shapes(min_dims=1, max_dims=3, max_side=7), elements=tied_values | any_values))
def test_average_ranks_equal_scipy_along_every_axis(values):
    for axis in range(values.ndim):
        np.testing.assert_array_equal(average_ranks(values, axis=axis), stats.rankdata(values, axis=axis))


@given(st.data(), st.integers(2, 12), st.integers(1, 5), st.sampled_from([tied_values, any_values]))
def test_spearman_columns_equal_scipy(data, n_rows, n_columns, elements):
    a, b = (data.draw(arrays(np.float64, (n_rows, n_columns), elements=elements)) for _ in range(2))
    rho = spearman_columns(a, b)
    constant = constant_columns(a) | constant_columns(b)
    for q in range(n_columns):
        expected = 0.0 if constant[q] else stats.spearmanr(a[:, q], b[:, q]).statistic
        assert rho[q] == pytest.approx(expected, abs=1e-12)


def test_lds_equals_the_loop_over_queries():
    rng = np.random.default_rng(1)
    scores = rng.normal(size=(20, 60)).astype(np.float32)
    masks, outputs = half_masks(30, 60), rng.normal(size=(30, 20))
    rho, constant = lds_per_query(scores, masks, outputs)
    loop = [stats.spearmanr(masks.astype(float) @ scores[q], outputs[:, q]).statistic for q in range(20)]
    np.testing.assert_allclose(rho, loop, rtol=0, atol=1e-12)
    assert not constant.any()


@settings(max_examples=30)
@given(st.integers(0, 10**6), st.sampled_from([1.0, -2.5, 0.1, 1e-6, 3e7]))
def test_tied_sums_stay_tied(seed, unit):
    rng = np.random.default_rng(seed)
    votes = rng.integers(0, 2, size=(8, 301))  # an odd count, so that the mean is no round number
    masks, outputs = half_masks(40, 301, seed), rng.normal(size=(40, 8))
    scores = votes.astype(np.float32) * np.float32(unit)
    counts = masks.astype(int) @ votes.T  # exact integers, full of ties
    expected = spearman_columns(np.sign(unit) * counts, outputs)
    np.testing.assert_allclose(lds_per_query(scores, masks, outputs)[0], expected, rtol=0, atol=1e-12)


def test_a_large_common_offset_changes_nothing():
    rng = np.random.default_rng(2)
    scores = rng.integers(-8, 8, size=(5, 400)).astype(np.float32)  # so that the offset itself rounds nothing
    masks, outputs = half_masks(50, 400), rng.normal(size=(50, 5))
    plain, _ = lds_per_query(scores, masks, outputs)
    offset, _ = lds_per_query(scores + np.float32(1e6), masks, outputs)
    np.testing.assert_array_equal(plain, offset)


@pytest.mark.parametrize("value", [0.0, 0.1, -1 / 3, 1e-30, 7e22])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_equal_scores_count_0_and_are_reported(value, dtype):
    rng = np.random.default_rng(3)
    scores = rng.normal(size=(4, 1001)).astype(dtype)
    scores[2] = value
    rho, constant = lds_per_query(scores, half_masks(40, 1001), rng.normal(size=(40, 4)))
    assert constant.tolist() == [False, False, True, False]
    assert rho[2] == 0
    assert (rho[[0, 1, 3]] != 0).all()


def test_scores_that_differ_only_where_no_subset_does_are_constant():
    rng = np.random.default_rng(4)
    scores, masks = np.full((1, 999), 0.1), half_masks(30, 999)
    masks = np.concatenate([np.ones((30, 1), dtype=bool), masks], axis=1)
    scores = np.concatenate([[[123.456]], scores], axis=1)
    rho, constant = lds_per_query(scores, masks, rng.normal(size=(30, 1)))
    assert constant.all()
    assert rho[0] == 0


@pytest.mark.parametrize("scale", [1e-300, 1e-12, 1.0, 1e12, 1e300])
def test_a_small_signal_is_not_taken_for_noise(scale):
    rng = np.random.default_rng(5)
    scores, masks = np.ones((1, 200)), half_masks(30, 200)
    scores[0, 7] += 1e-9  # one example in one query, far below float32 precision
    outputs = masks[:, [7]] + 0.0
    rho, constant = lds_per_query(scores * scale, masks, outputs + 1e-3 * rng.normal(size=(30, 1)))
    assert not constant.any()
    assert rho[0] > 0.8


def test_a_constant_output_counts_0_and_is_reported():
    rng = np.random.default_rng(6)
    outputs = rng.normal(size=(30, 3))
    outputs[:, 1] = 0.1
    outputs[::2, 1] = np.nextafter(0.1, 1)  # what a mean over seeds may do to equal values
    rho, constant = lds_per_query(rng.normal(size=(3, 40)), half_masks(30, 40), outputs)
    assert constant.tolist() == [False, True, False]
    assert rho[1] == 0


def test_large_score_matrices_are_summed_in_blocks(monkeypatch):
    rng = np.random.default_rng(7)
    scores, masks = rng.integers(-9, 9, size=(7, 50)).astype(np.float32), half_masks(10, 50)
    whole = subset_sums(scores, masks)
    monkeypatch.setattr("tdabench.lds.BLOCK_BYTES", 8 * 50 * 2)
    np.testing.assert_array_equal(subset_sums(scores, masks), whole)


@pytest.mark.parametrize("shape", [(4,), (4, 9), (4, 10, 1), (0, 10)])
def test_wrong_shape_names_both_shapes(shape):
    with pytest.raises(ScoresError, match=r"expected .*\[n_queries, 10\]") as caught:
        subset_sums(np.zeros(shape, dtype=np.float32), half_masks(6, 10))
    assert str(list(shape)) in str(caught.value)


def test_wrong_type_names_the_type():
    with pytest.raises(ScoresError, match="type int64, expected float32 or float64"):
        subset_sums(np.zeros((4, 10), dtype=np.int64), half_masks(6, 10))


def test_non_finite_scores_are_counted_and_located():
    scores = np.zeros((5, 10), dtype=np.float32)
    scores[2, 3:5], scores[4, 0], scores[4, 1] = np.nan, np.inf, -np.inf
    with pytest.raises(ScoresError) as caught:
        subset_sums(scores, half_masks(6, 10))
    assert str(caught.value) == (
        "Scores are not finite: 2 NaN and 2 infinite values of 50, in 2 of 5 queries; the first is query 2, training"
        " example 3. Expected finite scores only. Look for a division by zero or too small a damping."
    )


def test_scores_too_large_to_sum_are_an_error():
    scores = np.where(np.arange(10) % 2, 1.7e308, -1.7e308)[None]
    with pytest.raises(ScoresError, match="query 0 are too large to sum"):
        subset_sums(scores, half_masks(6, 10))


def test_subsets_of_different_size_are_an_error():
    masks = half_masks(6, 10)
    masks[4, :] = True
    with pytest.raises(GroundTruthError, match="subset 0 keeps 5 examples and subset 4 keeps 10"):
        subset_sums(np.zeros((3, 10), dtype=np.float32), masks)


def test_masks_of_another_type_are_an_error():
    with pytest.raises(GroundTruthError, match="type int64"):
        subset_sums(np.zeros((3, 10), dtype=np.float32), half_masks(6, 10).astype(np.int64))


@pytest.mark.parametrize(
    ("outputs", "message"), [(np.zeros((6, 4)), r"shape \[6, 4\]"), (np.full((6, 3), np.nan), "18")]
)
def test_bad_outputs_are_an_error(outputs, message):
    with pytest.raises(GroundTruthError, match=message):
        lds_per_query(np.zeros((3, 10), dtype=np.float32), half_masks(6, 10), outputs)
