from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tdabench.front import pareto_front

# Few different values, so that exact ties and zeros are common.
values = st.one_of(
    st.none(), st.just(math.nan), st.sampled_from([-math.inf, -1.0, -0.0, 0.0, 0.5, 1.0, math.inf]), st.floats()
)
points = st.lists(st.tuples(values, values), max_size=25)


def missing(point) -> bool:
    return any(v is None or math.isnan(v) for v in point)


def by_definition(runs) -> list[bool]:
    def beats(a, b):
        return not missing(a) and a[0] >= b[0] and a[1] <= b[1] and (a[0] > b[0] or a[1] < b[1])

    return [not missing(run) and not any(beats(other, run) for other in runs) for run in runs]


def front(runs) -> list[bool]:
    return pareto_front([q for q, _ in runs], [c for _, c in runs]).tolist()


@given(points)
def test_equals_the_definition(runs):
    assert front(runs) == by_definition(runs)


@given(points, st.randoms())
def test_does_not_depend_on_the_order(runs, random):
    order = list(range(len(runs)))
    random.shuffle(order)
    assert front([runs[i] for i in order]) == [front(runs)[i] for i in order]


@given(points, values, values)
def test_a_run_with_a_missing_value_changes_no_other(runs, quality, cost):
    assert front([*runs, (quality, None), (None, cost), (math.nan, cost)])[: len(runs)] == front(runs)


def test_equal_cost_and_lower_quality_is_beaten():
    # A sweep that compares with >= and always keeps its first point calls all three the front.
    assert front([(1, 1), (1, 2), (2, 2)]) == [True, False, True]
    assert front([(1, 1), (2, 1)]) == [False, True]


def test_equal_quality_and_higher_cost_is_beaten():
    assert front([(2, 1), (2, 3)]) == [True, False]


def test_zero_is_a_value():
    # A front that skips falsy coordinates loses these.
    assert front([(0.0, 0.0), (0.5, 1.0)]) == [True, True]
    assert front([(0.0, 1.0), (-0.5, 0.5)]) == [True, True]
    assert front([(0.0, 0.0), (-0.0, -0.0)]) == [True, True]


def test_identical_runs_are_all_on_the_front():
    assert front([(1, 1), (1, 1), (0, 2), (0, 2)]) == [True, True, False, False]


def test_no_runs_and_only_missing_runs():
    assert front([]) == []
    assert front([(None, 1), (1, math.nan)]) == [False, False]


def test_lengths_must_agree():
    with pytest.raises(ValueError, match="one value per run"):
        pareto_front([1.0, 2.0], [1.0])


def test_arrays_are_welcome_and_unchanged():
    quality, cost = np.array([1.0, 2.0]), np.array([1.0, 1.0])
    assert pareto_front(quality, cost).tolist() == [False, True]
    assert quality.tolist() == [1.0, 2.0]
