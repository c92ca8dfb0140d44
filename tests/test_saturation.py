"""Predicted saturation, against members whose covariance is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tdabench.saturation import predicted_lds, variance

counts = st.integers(1, 50)
correlations = st.tuples(st.floats(0.02, 1), st.floats(0.02, 1)).map(lambda p: (max(p), min(p)))


def covariance(models: int, per_model: int, within: float, between: float) -> np.ndarray:
    """Return the covariance of all members, ``[I * D, I * D]``."""
    of_model = np.full((per_model, per_model), within)
    np.fill_diagonal(of_model, 1.0)
    different = 1 - np.kron(np.eye(models), np.ones((per_model, per_model)))
    return np.kron(np.eye(models), of_model) + between * different


@given(st.integers(1, 8), st.integers(1, 8), correlations)
def test_the_variance_is_that_of_the_mean_of_members(models, per_model, pair):
    expected = covariance(models, per_model, *pair).mean()
    assert variance(models, per_model, *pair) == pytest.approx(expected)


@given(counts, counts, correlations)
def test_the_limits_are_approached_from_above(models, per_model, pair):
    within, between = pair
    v = variance(models, per_model, within, between)
    assert v >= variance(models + 1, per_model, within, between) - 1e-12
    assert v >= variance(models, per_model + 1, within, between) - 1e-12
    assert variance(1, math.inf, within, None) == within
    assert variance(math.inf, per_model, within, between) == between


@given(st.floats(-1, 1), counts, counts, counts, counts, correlations)
def test_predictions_can_be_chained_and_taken_back(lds, i, d, i2, d2, pair):
    there = predicted_lds(lds, (i, d), (i2, d2), *pair)
    assert predicted_lds(lds, (i, d), (i, d), *pair) == pytest.approx(lds)
    assert predicted_lds(there, (i2, d2), (i, d), *pair) == pytest.approx(lds)
    assert predicted_lds(there, (i2, d2), (9, 9), *pair) == pytest.approx(predicted_lds(lds, (i, d), (9, 9), *pair))


@given(st.floats(0.01, 1), counts, counts)
def test_members_that_are_all_alike_gain_nothing(lds, models, per_model):
    assert predicted_lds(lds, (1, 1), (models, per_model), 1.0, 1.0) == pytest.approx(lds)


@given(st.floats(0.01, 0.3), counts)
def test_independent_errors_average_out_as_the_square_root(lds, models):
    assert predicted_lds(lds, (1, 1), (models, 1), None, 1e-9) == pytest.approx(lds * math.sqrt(models), rel=1e-6)


@pytest.mark.parametrize(("models", "per_model"), [(1, 8), (8, 1), (4, 5)])
def test_simulated_ensembles_correlate_with_the_truth_as_predicted(models, per_model):
    """Members with these covariances are drawn; nothing of the formula is used."""
    within, between, c, n = 0.6, 0.35, 0.4, 200_000
    members = covariance(models, per_model, within, between)
    whole = np.block([[np.ones((1, 1)), np.full((1, len(members)), c)], [np.full((len(members), 1), c), members]])
    drawn = np.random.default_rng(0).standard_normal((n, len(whole))) @ np.linalg.cholesky(whole).T
    truth, single, mean = drawn[:, 0], drawn[:, 1], drawn[:, 1:].mean(1)
    lds_1 = np.corrcoef(truth, single)[0, 1]
    found = np.corrcoef(truth, mean)[0, 1]
    assert predicted_lds(lds_1, (1, 1), (models, per_model), within, between) == pytest.approx(found, abs=0.01)
    assert found > lds_1 + 0.05


def test_what_is_not_known_is_not_predicted():
    assert predicted_lds(0.2, (1, 1), (1, 5), None, 0.5) is None
    assert predicted_lds(0.2, (1, 1), (5, 1), 0.5, None) is None
    assert predicted_lds(0.2, (1, 2), (1, 1), None, None) is None
    assert predicted_lds(0.2, (1, 1), (1, 1), None, None) == 0.2
    assert predicted_lds(0.2, (1, 1), (9, 1), None, -0.5) is None


@given(counts, counts, st.floats(-1, 1), st.floats(-1, 1))
def test_a_prediction_is_a_number_or_none(models, per_model, within, between):
    found = predicted_lds(0.3, (1, 1), (models, per_model), within, between)
    assume(found is not None)
    assert math.isfinite(found)
    assert found > 0


@pytest.mark.parametrize(("models", "per_model"), [(0, 1), (1, 0.5)])
def test_an_ensemble_has_a_member(models, per_model):
    with pytest.raises(ValueError, match="at least one model and one member each"):
        variance(models, per_model, 0.5, 0.5)
