from __future__ import annotations

import time
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from tdabench import UsageError, bank
from tdabench.baselines.controls import Random
from tdabench.baselines.datamodels import Datamodels, EmpiricalInfluence
from tdabench.execution import execute
from tdabench.grouping import Grouping
from tdabench.lds import lds_per_query
from tdabench.trainer import target_outputs, train_replicas


@pytest.fixture
def trainings(monkeypatch):
    """Note the streams of real trainings."""
    streams = []
    real = bank.train_replicas
    monkeypatch.setattr(
        bank, "train_replicas", lambda task, data, masks, *s: streams.append(s) or real(task, data, masks, *s)
    )
    return streams


@pytest.fixture
def grouped(monkeypatch):
    """Fix the size of groups, which is measured: what is computed must not depend on the machine's other work."""
    monkeypatch.setattr(bank, "choose_group", lambda task, data: Grouping(4, {}))


def halves(m: int, n: int = 120, seed: int = 0) -> torch.Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randperm(n, generator=random) < n // 2 for _ in range(m)])


# the bank


def test_retrained_models_are_those_of_the_trainer_from_a_stream_of_their_own(view, small, small_data, grouped):
    masks = halves(6)
    task = view(seed=3)
    found = task.outputs(task.retrain(masks, "mine", 1), task.queries)
    parts = [train_replicas(small, small_data, rows, "attribution", 3, "bank", "mine", 1) for rows in masks.split(4)]
    expected = torch.cat([target_outputs(small, small_data, part) for part in parts])
    assert torch.equal(found, expected)
    assert found.shape == (6, 40)


def test_streams_are_never_those_of_ground_truth_or_of_attribution_models(view, trainings):
    task = view()
    execute(Datamodels(subsets=4, per_seed=2), None, task)
    assert set(trainings) == {("attribution", 0, "bank", "retraining", seed) for seed in (0, 1)}


def test_a_bank_is_trained_once_and_charged_to_every_run(view, trainings):
    first, second = view(), view()
    for task in (first, second):
        execute(Datamodels(subsets=6, per_seed=3), None, task)
    assert len(trainings) >= 2
    count = len(trainings)
    third = view()
    execute(EmpiricalInfluence(subsets=6, per_seed=3), None, third)  # the same bank for another method
    assert len(trainings) == count
    assert first.meter.banks == second.meter.banks == third.meter.banks
    assert "train" in first.meter.stopwatch.phases
    assert "train" not in third.meter.stopwatch.phases


def test_the_whole_time_of_training_is_charged_and_every_model_counted(view):
    task = view()
    execute(EmpiricalInfluence(subsets=6, per_seed=3), None, task)
    meter = task.meter
    assert meter.models_trained == 6
    assert meter.train_s == pytest.approx(sum(t.seconds for t in meter.banks.values()))
    assert meter.extra_train_s == meter.train_s  # a model that one has already is of no use
    # Saving is in the phase and not in the charge.
    assert 0 < meter.train_s <= meter.stopwatch.phases["train"]
    assert meter.forward_examples == 6 * 40


def test_storage_is_what_a_new_query_needs_all_models_and_the_state(view):
    task = view()
    execute(EmpiricalInfluence(subsets=6, per_seed=3), None, task)
    models = 6 * 4 * (65 * 32 + 33 * 10)
    state = 6 * 120 + 4 * 6 * 120  # subsets and weights
    assert models + state < task.meter.storage_bytes < models + state + 4096  # files have headers, options a few bytes


def test_large_banks_are_kept_in_parts_of_bounded_size(view, monkeypatch, tmp_path):
    monkeypatch.setattr(bank, "_PART_BYTES", 3 * 4 * (65 * 32 + 33 * 10))
    task, masks = view(), halves(8)
    models = task.retrain(masks, "parts")
    assert [len(part["0.weight"]) for part in models] == [3, 3, 2]
    assert len(list((tmp_path / "models").iterdir())) == len(task.meter.banks) == 3
    assert task.meter.models_trained == 8
    assert task.outputs(models, task.queries).shape == (8, 40)


def test_measuring_the_group_is_once_and_no_part_of_training(view, monkeypatch):
    monkeypatch.setattr(bank, "_MAX_PART", 2)
    asked = []

    def slowly(task, data):
        asked.append(task.name)
        time.sleep(0.5)
        return Grouping(2, {})

    monkeypatch.setattr(bank, "choose_group", slowly)
    task = view()
    with task.meter.phase("fit"):
        task.retrain(halves(6), "measured")
    phases = task.meter.stopwatch.phases
    assert len(asked) == 1
    assert phases["harness"] >= 0.5
    assert task.meter.train_s + phases["fit"] < phases["train"] + phases["fit"] < phases["harness"] + 0.5
    view().retrain(halves(6), "measured")
    assert len(asked) == 1, "nothing is left to train"


def test_an_interrupted_bank_goes_on_where_it_was(view, monkeypatch, trainings, tmp_path, grouped):
    monkeypatch.setattr(bank, "_MAX_PART", 2)
    masks = halves(6)
    whole = view().retrain(masks, "long")
    made = sorted((tmp_path / "models").iterdir(), key=lambda p: p.stat().st_mtime_ns)
    made[-1].unlink()
    count = len(trainings)
    again = view().retrain(masks, "long")
    assert len(trainings) == count + 1
    assert all(torch.equal(a[k], b[k]) for a, b in zip(whole, again, strict=True) for k in a)


def test_other_subsets_streams_and_seeds_are_other_banks(view, small):
    task = view()
    asked = [(halves(4), ("a",)), (halves(4, seed=1), ("a",)), (halves(4), ("b",)), (halves(4), ("a", 0))]
    names = [next(bank.parts_of(small, masks, *stream)).name for masks, stream in asked]
    assert len(set(names)) == 4
    same = [task.outputs(task.retrain(halves(2), "s"), task.queries) for _ in range(2)]
    other = view(seed=1)
    assert torch.equal(*same)
    assert not torch.equal(same[0], other.outputs(other.retrain(halves(2), "s"), other.queries))


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        (torch.ones(2, 120), r"bool tensor \[M, n_train\] = \[M, 120\]; got torch.float32 \[2, 120\]. Give True"),
        (torch.ones(2, 7, dtype=torch.bool), r"got torch.bool \[2, 7\]"),
        (torch.eye(2, 120).bool().logical_or(torch.arange(2)[:, None] == 1), r"of one size.*the sizes \[1, 120\]"),
        (torch.zeros(2, 120, dtype=torch.bool), r"at least one example; got the sizes \[0\]"),
    ],
)
def test_what_is_no_set_of_subsets_is_refused(view, masks, message):
    with pytest.raises(UsageError, match=message):
        view().retrain(masks, "wrong")


# the methods


def fake(view, outputs_of):
    """Return a view whose retrained models' outputs are a given function of their subsets, and cost nothing."""
    task = view()
    task.retrain = lambda masks, *stream: [{"masks": masks}]
    task.outputs = lambda models, examples: torch.cat([outputs_of(m["masks"].double()) for m in models])
    return task


@pytest.mark.parametrize("per_seed", [50, 400])
def test_datamodels_recover_the_weights_of_outputs_that_are_linear_in_the_subsets(view, per_seed):
    random = torch.Generator().manual_seed(0)
    weights = torch.randn(40, 120, generator=random, dtype=torch.float64)
    weights -= weights.mean(1, keepdim=True)  # a constant cannot be seen: subsets are of equal size
    task = fake(view, lambda masks: masks @ weights.T + 7.0)
    scores = execute(Datamodels(subsets=400, per_seed=per_seed, ridge=1e-9), None, task)
    torch.testing.assert_close(scores, weights.float(), rtol=1e-3, atol=1e-3)


def test_what_a_seed_does_to_all_its_models_does_not_matter(view):
    random = torch.Generator().manual_seed(0)
    weights = torch.randn(40, 120, generator=random, dtype=torch.float64)
    for method in (Datamodels(subsets=40, per_seed=10), EmpiricalInfluence(subsets=40, per_seed=10)):
        plain = execute(method, None, fake(view, lambda masks: masks @ weights.T))
        offsets = iter(1000.0 * torch.randn(4, 40, generator=random, dtype=torch.float64))
        shifted = execute(method, None, fake(view, lambda masks: masks @ weights.T + next(offsets)))  # noqa: B023
        torch.testing.assert_close(shifted, plain, rtol=1e-3, atol=1e-3)


def test_datamodels_are_scikit_learn_s_ridge_regression(view):
    from sklearn.linear_model import Ridge

    random = torch.Generator().manual_seed(0)
    outputs = torch.randn(30, 40, generator=random, dtype=torch.float64)
    method = Datamodels(subsets=30, per_seed=30, ridge=0.7)
    task = fake(view, lambda masks: outputs)
    x = method._masks(task).double().numpy()
    penalty = 0.7 * ((x - x.mean(0)) ** 2).sum() / 30  # relative to the mean diagonal
    expected = Ridge(alpha=penalty, solver="cholesky").fit(x, outputs.numpy()).coef_
    np.testing.assert_allclose(execute(method, None, task).numpy(), expected, rtol=1e-3, atol=1e-5)


def test_empirical_influence_is_the_difference_of_two_means(view):
    random = torch.Generator().manual_seed(0)
    outputs = torch.randn(30, 40, generator=random, dtype=torch.float64)
    method = EmpiricalInfluence(subsets=30, per_seed=30)
    task = fake(view, lambda masks: outputs)
    masks = method._masks(task)
    expected = torch.stack([outputs[kept].mean(0) - outputs[~kept].mean(0) for kept in masks.T], dim=1)
    torch.testing.assert_close(execute(method, None, task), expected.float(), rtol=1e-4, atol=1e-4)


def test_an_example_that_is_always_in_or_out_scores_nothing_in_empirical_influence(view):
    method = EmpiricalInfluence(subsets=2, per_seed=2)
    task = fake(view, lambda masks: torch.randn(2, 40, dtype=torch.float64))
    masks = method._masks(task)
    scores = execute(method, None, task)
    alike = masks[0] == masks[1]
    assert 0 < alike.sum() < 120
    assert (scores[:, alike] == 0).all()
    assert (scores[:, ~alike] != 0).all()


@pytest.mark.parametrize("fraction", [0.0, 0.3, 1.0])
def test_subsets_are_of_the_asked_size_and_neither_empty_nor_everything(view, fraction):
    masks = Datamodels(subsets=5, fraction=fraction)._masks(view())
    assert masks.sum(1).tolist() == [{0.0: 1, 0.3: 36, 1.0: 119}[fraction]] * 5
    assert len({tuple(row) for row in masks.tolist()}) == 5


def test_subsets_follow_from_the_run_s_seed_and_more_of_them_begin_alike(view, small):
    few, many = (Datamodels(subsets=m)._masks(view()) for m in (5, 8))
    assert torch.equal(few, many[:5])
    assert not torch.equal(few, Datamodels(subsets=5)._masks(view(seed=1)))
    truth = {tuple(row) for row in small.subset_masks().tolist()}
    assert truth.isdisjoint(map(tuple, many.tolist()))


@pytest.mark.parametrize(("subsets", "per_seed"), [(100, 25), (101, 25), (2, 25), (49, 25), (7, 2)])
def test_every_seed_has_as_many_models_as_asked_or_all_there_are(view, subsets, per_seed):
    method = EmpiricalInfluence(subsets=subsets, per_seed=per_seed)
    sizes = [len(rows) for rows in method._by_seed(torch.zeros(subsets, 1))]
    assert sum(sizes) == subsets
    assert min(sizes) >= min(per_seed, subsets)
    assert all(a - b in (0, 1) for a, b in pairwise(sizes))


def test_retraining_predicts_retraining(view, small, small_data):
    """Against a ground truth of its own: other subsets, other seeds."""
    masks = replace(small, plan=replace(small.plan, n_subsets=40)).subset_masks()
    truth = [train_replicas(small, small_data, masks, "ground-truth", seed) for seed in range(8)]
    mean = torch.stack([target_outputs(small, small_data, t) for t in truth]).mean(0).numpy()

    def quality(method) -> float:
        return float(lds_per_query(execute(method, None, view()).numpy(), masks.numpy(), mean)[0].mean())

    assert quality(Datamodels(subsets=300)) > 0.4
    assert quality(EmpiricalInfluence(subsets=300)) > 0.4
    assert abs(quality(Random())) < 0.1


@pytest.mark.parametrize("method", [Datamodels(subsets=400), EmpiricalInfluence(subsets=400)], ids=repr)
def test_a_copy_of_a_query_ranks_first_and_with_another_label_last(view, small, small_data, method):
    """Known answers, by retraining: what the models that saw the copy say of the query, and those that did not."""
    longer = replace(small, recipe=replace(small.recipe, epochs=20))
    inputs, labels = small_data.training.inputs.clone(), small_data.training.labels.clone()
    inputs[[17, 18]], labels[17] = small_data.queries.inputs[[3, 4]], small_data.queries.labels[3]
    labels[18] = (small_data.queries.labels[4] + 1) % 10
    data = replace(small_data, training=replace(small_data.training, inputs=inputs, labels=labels))
    scores = execute(method, None, view(longer, data))
    assert scores[3].argmax() == 17
    assert scores[4].argmin() == 18
