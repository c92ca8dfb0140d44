"""Correlations of members, against the pairs themselves."""

from __future__ import annotations

import time
from itertools import combinations
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tdabench import MemberMethod
from tdabench.baselines.grad_dot import GradDot
from tdabench.baselines.trak import Trak
from tdabench.correlations import CorrelationMeter, Correlations
from tdabench.ensembles import Checkpoints, Dropout, Independent, Projections
from tdabench.execution import execute


def pairwise(models: list[int], scores: np.ndarray) -> tuple[list[float], list[float]]:
    """Return the correlations of all pairs, within and between models, each the mean over queries."""
    within, between = [], []
    z = scores - scores.mean(2, keepdims=True)
    z /= np.linalg.norm(z, axis=2, keepdims=True)
    for i, j in combinations(range(len(models)), 2):
        (within if models[i] == models[j] else between).append(float((z[i] * z[j]).sum(1).mean()))
    return within, between


def measured(models: list[int], scores: np.ndarray) -> Correlations | None:
    meter = CorrelationMeter(*scores.shape[1:])
    for model, member in zip(models, scores, strict=True):
        meter.add(model, torch.from_numpy(member).float())
    return meter.result()


def made_up(models: list[int], n_queries: int, n_train: int, seed: int = 0) -> np.ndarray:
    """Return members that share something, share more within a model, and differ in scale and offset."""
    random = np.random.default_rng(seed)
    common = random.standard_normal((n_queries, n_train))
    of_model = {m: random.standard_normal((n_queries, n_train)) for m in models}
    own = random.standard_normal((len(models), n_queries, n_train))
    scores = np.stack([common + of_model[m] + 0.7 * e for m, e in zip(models, own, strict=True)])
    return scores * random.uniform(0.1, 10, (len(models), n_queries, 1)) + random.uniform(-5, 5, (n_queries, 1))


sizes = st.lists(st.integers(1, 4), min_size=1, max_size=4).filter(lambda s: sum(s) > 1)


@settings(max_examples=30)
@given(sizes, st.integers(1, 70), st.integers(3, 256), st.integers(0, 9))
def test_small_sets_are_measured_exactly(sizes, n_queries, n_train, seed):
    models = [m for m, size in enumerate(sizes) for _ in range(size)]
    scores = made_up(models, n_queries, n_train, seed)
    within, between = pairwise(models, scores)
    found = measured(models, scores)
    assert (found.n_within_pairs, found.n_between_pairs) == (len(within), len(between))
    for mean, pairs in ((found.within, within), (found.between, between)):
        assert mean == (pytest.approx(np.mean(pairs), abs=1e-4) if pairs else None)


@pytest.mark.parametrize("n_train", [257, 1000, 3000])
def test_larger_sets_are_measured_closely(n_train):
    models = [0, 0, 1, 1]
    scores = made_up(models, 250, n_train)
    within, between = pairwise(models, scores)
    found = measured(models, scores)
    assert found.within == pytest.approx(np.mean(within), abs=0.012)
    assert found.between == pytest.approx(np.mean(between), abs=0.012)


def test_queries_that_score_alike_do_not_share_an_error():
    """One score vector for all queries: were the signs the same for each, the error would not average out."""
    random = np.random.default_rng(0)
    errors = []
    for _ in range(8):
        a, b = random.standard_normal((2, 1, 3000)).repeat(400, 1)
        truth = np.corrcoef(a[0], b[0])[0, 1]
        errors.append(measured([0, 1], np.stack([a, b])).between - truth)
    assert np.sqrt(np.mean(np.square(errors))) < 3 / np.sqrt(256 * 400)


def test_the_same_scores_correlate_by_one_and_negated_ones_by_minus_one():
    scores = made_up([0], 50, 2000)
    assert measured([0, 0], np.concatenate([scores, 3 * scores + 1])).within == pytest.approx(1, abs=1e-6)
    assert measured([0, 1], np.concatenate([scores, -scores])).between == pytest.approx(-1, abs=1e-6)


@pytest.mark.parametrize("scale", [1e-30, 1e-23, 1e30])
def test_the_scale_of_a_query_s_scores_does_not_matter(scale):
    scores = made_up([0, 1], 5, 50)
    expected = measured([0, 1], scores)
    scores[:, 2] *= scale
    assert measured([0, 1], scores).between == pytest.approx(expected.between, abs=1e-5)


def test_what_only_longer_numbers_tell_apart_is_told_apart():
    scores = torch.randn(5, 50, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 1e8
    meter = CorrelationMeter(5, 50)
    for number in (0, 1):
        meter.add(number, scores)
    assert meter.result().between == pytest.approx(1)


def test_constant_scores_correlate_with_nothing():
    scores = made_up([0, 1], 4, 100)
    scores[1, :2] = 7.0
    expected = np.mean([0, 0, *(np.corrcoef(scores[:, q])[0, 1] for q in (2, 3))])
    assert measured([0, 1], scores).between == pytest.approx(expected, abs=1e-5)
    assert measured([0, 1], np.ones((2, 4, 100))).between == 0
    # The mean of a thousand tenths is not a tenth.
    rounded = np.stack([np.full((4, 1001), value, dtype=np.float32) for value in (0.1, 0.2, 0.3)])
    assert measured([0, 1, 2], rounded).between == 0


def test_what_has_no_pairs_is_not_measured():
    assert CorrelationMeter(3, 4).result() is None
    assert measured([0], made_up([0], 3, 4)) is None
    two = made_up([0, 1], 3, 10)
    assert measured([0, 0], two).between is None
    assert measured([0, 1], two).within is None


@pytest.mark.parametrize("bad", ["text", torch.zeros(4, 3), torch.zeros(3, 4, dtype=torch.int64), (torch.zeros(3, 4),)])
def test_parts_that_are_no_scores_are_not_measured(bad):
    meter = CorrelationMeter(3, 4)
    meter.add(0, torch.rand(3, 4))
    meter.add(0, bad)
    meter.add(0, torch.rand(3, 4))
    assert meter.result() is None


def test_scores_that_are_not_finite_are_not_measured():
    scores = made_up([0, 1], 3, 10)
    scores[1, 0, 0] = np.nan
    assert measured([0, 1], scores) is None


def test_the_result_so_far_does_not_end_the_measuring():
    models, scores = [0, 0, 1, 1], made_up([0, 0, 1, 1], 5, 30)
    meter = CorrelationMeter(5, 30)
    for model, member in zip(models, scores, strict=True):
        meter.add(model, torch.from_numpy(member).float())
        meter.result()
    assert meter.result() == measured(models, scores)


def test_memory_does_not_grow_with_the_ensemble():
    meter = CorrelationMeter(20, 3000)

    def held() -> int:
        return sum(v.untyped_storage().nbytes() for v in vars(meter).values() if isinstance(v, torch.Tensor))

    before = held()
    for number in range(20):
        meter.add(number // 4, torch.rand(20, 3000))
    assert held() == before < 100_000


@pytest.mark.parametrize("ensemble", [Independent(3), Dropout(2, 2), Checkpoints(2, 2)])
def test_a_run_measures_its_members(view, ensemble):
    task = view()
    execute(GradDot(), ensemble, task)
    members = list(ensemble.members(view()))
    parts = np.stack([GradDot().attribute(m, None).numpy() for m in members])
    within, between = pairwise([m.model_number for m in members], parts)
    found = task.meter.correlations.result()
    assert (found.n_within_pairs, found.n_between_pairs) == (len(within), len(between))
    assert found.between == pytest.approx(np.mean(between), abs=1e-3)
    assert found.within == (pytest.approx(np.mean(within), abs=1e-3) if within else None)


def test_traks_members_are_measured_by_their_own_scores(view):
    task, ensemble = view(), Projections(1, 3)
    execute(Trak(16), ensemble, task)
    alone = []
    for member in ensemble.members(view()):
        kernel, q = Trak(16).attribute(member, Trak(16).fit(member))
        alone.append((kernel * q).numpy())
    within, _ = pairwise([0, 0, 0], np.stack(alone))
    assert task.meter.correlations.result().within == pytest.approx(np.mean(within), abs=1e-3)


def test_measuring_changes_no_score(view, monkeypatch):
    plain, seen = view(), []
    silent = SimpleNamespace(add=lambda *given: seen.append(given))
    monkeypatch.setattr("tdabench.execution.CorrelationMeter", lambda *_: silent)
    expected = execute(GradDot(), Independent(3), plain)
    monkeypatch.undo()
    measured = view()
    assert torch.equal(execute(GradDot(), Independent(3), measured), expected)
    assert [number for number, _ in seen] == [0, 1, 2]
    assert measured.meter.correlations.result() is not None


class Slowly(MemberMethod):
    """Takes no time itself."""

    def attribute(self, member, state):
        return torch.rand(member.task.n_queries, member.task.n_train)


def test_the_time_of_measuring_is_not_the_method_s(view, monkeypatch):
    task = view()
    for model in range(2):
        task.train(model)
    monkeypatch.setattr(CorrelationMeter, "add", lambda *_: time.sleep(0.2))
    execute(Slowly(), Independent(2), task)
    phases = task.meter.stopwatch.phases
    assert phases["harness"] > 0.4
    assert phases["attribute"] + phases["fit"] < 0.2


def test_one_member_is_not_measured(view):
    task = view()
    execute(GradDot(), None, task)
    assert task.meter.correlations is None
