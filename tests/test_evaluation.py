from __future__ import annotations

import json
from dataclasses import dataclass, replace

import numpy as np
import pytest
from scipy import stats

from tdabench.errors import GroundTruthError, ScoresError, UsageError
from tdabench.evaluation import Evaluator, compare, evaluate
from tdabench.mislabels import mislabel_auroc, suspicion_ranks

N_SUBSETS, N_SEEDS, N_QUERIES, N_TRAIN = 60, 4, 30, 80


@dataclass(frozen=True, eq=False)
class FakeTruth:
    masks: np.ndarray
    outputs: np.ndarray
    reported: np.ndarray
    tuning: np.ndarray
    mislabelled: np.ndarray | None = None


@pytest.fixture(scope="module")
def perfect() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(N_QUERIES, N_TRAIN)).astype(np.float32)


@pytest.fixture(scope="module")
def truth(perfect) -> FakeTruth:
    rng = np.random.default_rng(1)
    masks = np.zeros((N_SUBSETS, N_TRAIN), dtype=bool)
    for row in masks:
        row[rng.permutation(N_TRAIN)[: N_TRAIN // 2]] = True
    expected = masks.astype(np.float64) @ perfect.T  # [n_subsets, n_queries]
    outputs = expected[:, None] + 4 * rng.normal(size=(N_SUBSETS, N_SEEDS, N_QUERIES))
    return FakeTruth(masks, outputs.astype(np.float32), np.arange(6, N_QUERIES), np.arange(6))


def noisy(scores, amount, seed=2) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(size=scores.shape)
    return (scores + amount * noise).astype(np.float32)


@pytest.mark.parametrize(("queries", "rows"), [("reported", slice(6, 30)), ("tuning", slice(0, 6)), ("all", slice(30))])
def test_lds_is_the_mean_over_the_chosen_queries(perfect, truth, queries, rows):
    scores = noisy(perfect, 1.0)
    found = evaluate(scores, truth, queries, n_resamples=50)
    sums, outputs = truth.masks.astype(float) @ scores.T, truth.outputs.mean(axis=1, dtype=np.float64)
    expected = [stats.spearmanr(sums[:, q], outputs[:, q]).statistic for q in range(N_QUERIES)][rows]
    assert found.lds == pytest.approx(np.mean(expected), abs=1e-12)
    assert (found.n_queries, found.n_subsets) == (len(expected), N_SUBSETS)
    assert found.low < found.lds < found.high


def test_the_same_input_gives_the_same_bytes(perfect, truth):
    scores = noisy(perfect, 1.0)
    first, second = evaluate(scores, truth), evaluate(scores.copy(), replace(truth, masks=truth.masks.copy()))
    assert first == second
    assert json.dumps(first.to_dict()) == json.dumps(second.to_dict())
    assert first.draws.both.tobytes() == second.draws.both.tobytes()
    assert Evaluator.of(truth).evaluate(scores) == first


def test_to_dict_is_json_without_draws(perfect, truth):
    found = evaluate(perfect, truth, n_resamples=50)
    again = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert again == found.to_dict()
    assert "draws" not in again
    assert "draws" not in repr(found)
    assert again.pop("mislabel_auroc") is None
    assert {type(value) for value in again.values()} <= {float, int, bool, str}


def test_wrong_labels_are_looked_for_among_the_chosen_queries_where_they_are_known(perfect, truth):
    wrong = np.zeros(N_TRAIN, dtype=bool)
    wrong[:9] = True
    known = replace(truth, mislabelled=wrong)
    scores = perfect.copy()
    scores[6:, :9] -= 100  # the reported queries
    assert evaluate(scores, known, n_resamples=50).mislabel_auroc == 1.0
    expected = mislabel_auroc(suspicion_ranks(scores[:6]), wrong)
    assert evaluate(scores, known, "tuning", n_resamples=50).mislabel_auroc == expected < 1.0


def test_a_good_run_has_no_warnings(perfect, truth):
    found = evaluate(noisy(perfect, 1.0), truth)
    assert found.warnings() == []
    assert 0 < found.lds < found.ceiling


def test_few_subsets_or_queries_are_warned_of(perfect, truth):
    fewer = replace(truth, masks=truth.masks[:19], outputs=truth.outputs[:19])
    said = "Its interval may be too narrow: of 19 subsets, where 20 or more would do."
    assert said in evaluate(noisy(perfect, 1.0), fewer).warnings()
    enough = replace(truth, masks=truth.masks[:20], outputs=truth.outputs[:20])
    assert not any("too narrow" in text for text in evaluate(noisy(perfect, 1.0), enough).warnings())


def test_wrong_sign_is_warned_of(perfect, truth):
    found = evaluate(-perfect, truth)
    assert found.negated_better
    assert found.lds == pytest.approx(-evaluate(perfect, truth).lds)
    assert found.warnings() == [
        f"The negated scores do better (LDS {found.lds:.3f}, 95 % interval {found.low:.3f} to {found.high:.3f})."
        " A score must be higher where having the example raises the output: check the sign."
    ]


def test_an_interval_ends_where_an_lds_does(perfect):
    masks = np.zeros((2, N_TRAIN), dtype=bool)
    masks[0, ::2] = masks[1, 1::2] = True
    outputs = (masks.astype(np.float64) @ perfect.T)[:, None].astype(np.float32)
    found = evaluate(perfect, FakeTruth(masks, outputs, np.arange(1), np.arange(1, 2)), n_resamples=50)
    assert (found.lds, found.high) == (1, 1)
    assert evaluate(-perfect, FakeTruth(masks, outputs, np.arange(1), np.arange(1, 2)), n_resamples=50).low == -1


def test_random_scores_are_not_warned_of(perfect, truth):
    found = [evaluate(noisy(np.zeros_like(perfect), 1.0, seed), truth, n_resamples=200) for seed in range(6)]
    assert any(one.lds < 0 for one in found)
    assert not any(one.negated_better for one in found)


def test_better_than_perfect_is_warned_of(truth):
    # Scores fitted to the very outputs they are scored on.
    outputs = truth.outputs.mean(axis=1, dtype=np.float64)
    leaked = np.linalg.lstsq(truth.masks - 0.5, outputs, rcond=None)[0].T
    found = evaluate(leaked, truth)
    assert found.above_ceiling
    assert any("exceeds the noise ceiling" in text and "leaked" in text for text in found.warnings())


def test_one_seed_has_no_ceiling(perfect, truth):
    found = evaluate(perfect, replace(truth, outputs=truth.outputs[:, :1]))
    assert found.ceiling is None
    assert not found.above_ceiling
    assert found.warnings() == ["The noise ceiling cannot be known from one seed per subset."]
    assert json.loads(json.dumps(found.to_dict()))["ceiling"] is None


def test_constant_queries_are_counted_in_the_mean(perfect, truth):
    scores = perfect.copy()
    scores[6:12] = 0.1
    found = evaluate(scores, truth)
    assert found.constant_queries == 6
    assert found.lds < 0.8 * evaluate(perfect, truth).lds
    assert found.warnings()[0].startswith("6 of 24 queries have scores or outputs that do not vary")


def test_constant_scores_everywhere_are_0_not_nan(perfect, truth):
    found = evaluate(np.zeros_like(perfect), truth)
    assert (found.lds, found.low, found.high, found.constant_queries) == (0.0, 0.0, 0.0, 24)
    assert not found.negated_better


def test_a_non_finite_score_fails_even_in_a_query_not_chosen(perfect, truth):
    scores = perfect.copy()
    scores[0, 5] = np.nan
    with pytest.raises(ScoresError, match="first is query 0, training example 5"):
        evaluate(scores, truth, "reported")


def test_missing_rows_are_an_error(perfect, truth):
    with pytest.raises(ScoresError, match=r"\[24, 80\], expected \[n_queries, n_train\] = \[30, 80\]"):
        evaluate(perfect[6:], truth)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"outputs": np.zeros((N_SUBSETS - 1, 2, N_QUERIES), np.float32)}, "with 60 subsets"),
        ({"outputs": np.full((N_SUBSETS, 2, N_QUERIES), np.nan, np.float32)}, "2880 of 2880 outputs are not finite"),
        ({"reported": np.array([], dtype=int)}, "reported queries are empty"),
        ({"reported": np.array([N_QUERIES])}, "reported queries are out of range"),
    ],
)
def test_inconsistent_ground_truth_is_an_error(perfect, truth, changes, message):
    with pytest.raises(GroundTruthError, match=message):
        evaluate(perfect, replace(truth, **changes))


def test_unknown_queries_are_an_error(perfect, truth):
    with pytest.raises(UsageError, match=r"'test'\. Choose one of: reported, tuning, all"):
        evaluate(perfect, truth, "test")


def test_a_better_run_is_significantly_better(perfect, truth):
    good, bad = evaluate(noisy(perfect, 0.3), truth), evaluate(noisy(perfect, 2.0), truth)
    difference = compare(good, bad)
    assert difference.value == good.lds - bad.lds
    assert 0 < difference.low < difference.value < difference.high
    assert difference.significant
    assert difference.p_better > 0.99
    opposite = compare(bad, good)
    assert (opposite.low, opposite.high) == pytest.approx((-difference.high, -difference.low))
    assert opposite.p_better == pytest.approx(1 - difference.p_better)


def test_a_run_does_not_differ_from_itself(perfect, truth):
    run = evaluate(perfect, truth)
    difference = compare(run, run)
    assert (difference.value, difference.low, difference.high, difference.p_better) == (0.0, 0.0, 0.0, 0.5)
    assert not difference.significant


def test_pairing_sees_what_separate_intervals_do_not(perfect, truth):
    base = noisy(perfect, 1.0)
    a, b = evaluate(base, truth), evaluate(noisy(base, 0.3, seed=5), truth)
    assert compare(a, b).high - compare(a, b).low < (a.high - a.low) / 2


def test_runs_on_another_basis_cannot_be_compared(perfect, truth):
    run = evaluate(perfect, truth)
    moved = replace(truth, outputs=truth.outputs + np.float32(1))
    others = evaluate(perfect, truth, "tuning"), evaluate(perfect, truth, n_resamples=50), evaluate(perfect, moved)
    for other in others:
        with pytest.raises(UsageError, match=f"basis {run.basis}, the other on {other.basis}"):
            compare(run, other)
