from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from math import comb

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tdabench import MEAN_LOG_PROBABILITY, Declined, Examples, TaskData, token_cross_entropy
from tdabench.baselines import knn_shapley
from tdabench.baselines.knn_shapley import KnnShapley, distances, shapley_values
from tdabench.ensembles import Dropout, Independent, Lora
from tdabench.execution import execute
from tdabench.trainer import target_outputs, train_replicas

PLANTED, QUERY = 17, 3


def vote(subset: tuple[int, ...], far: list[float], same: list[bool], k: int) -> float:
    """Return the value of a set: the share of the k votes that go to the query's class."""
    nearest = sorted(subset, key=lambda i: (far[i], i))[:k]
    return sum(same[i] for i in nearest) / k


def by_enumeration(far: list[float], same: list[bool], k: int) -> list[float]:
    """Return the Shapley values by their definition: the mean contribution over all subsets of the others."""
    n, values = len(far), []
    for i in range(n):
        others = [j for j in range(n) if j != i]
        values.append(
            sum(
                (vote((*s, i), far, same, k) - vote(s, far, same, k)) / (n * comb(n - 1, size))
                for size in range(n)
                for s in combinations(others, size)
            )
        )
    return values


rows = st.integers(1, 8).flatmap(
    lambda n: st.tuples(
        st.lists(st.integers(0, 5).map(float), min_size=n, max_size=n),  # few values, so that there are ties
        st.lists(st.booleans(), min_size=n, max_size=n),
    )
)


@given(row=rows, k=st.integers(1, 10))
def test_values_equal_their_definition_by_enumeration(row, k):
    far, same = row
    found = shapley_values(torch.tensor([far]), torch.tensor([same]), k)[0]
    assert found.tolist() == pytest.approx(by_enumeration(far, same, k), abs=1e-6)


@given(row=rows, k=st.integers(1, 10), place=st.integers(0, 7))
def test_another_label_turns_the_sign_of_an_example_s_value(row, k, place):
    """A vote for the query's class never harms, and one against it never helps."""
    far, same = row
    place %= len(far)
    other = [label != (i == place) for i, label in enumerate(same)]
    before, after = (shapley_values(torch.tensor([far]), torch.tensor([s]), k)[0, place].item() for s in (same, other))
    helps, harms = (before, after) if same[place] else (after, before)
    assert helps >= -1e-6
    assert harms <= 1e-6
    assert helps > harms


@pytest.mark.parametrize("k", [1, 5, 200])
def test_values_of_a_query_add_up_to_its_share_of_right_votes(view, k):
    task = view()
    scores = execute(KnnShapley(k), None, task)
    far = distances(*(task.member().representations(e) for e in (task.queries, task.training)))
    nearest = far.argsort(dim=1, stable=True)[:, :k]
    right = (task.training.labels[nearest] == task.queries.labels[:, None]).sum(1) / k
    torch.testing.assert_close(scores.sum(1), right.float(), rtol=1e-4, atol=1e-5)


def test_queries_do_not_depend_on_one_another():
    random = torch.Generator().manual_seed(0)
    far, same = torch.rand(6, 40, generator=random), torch.rand(6, 40, generator=random) < 0.3
    whole = shapley_values(far, same, 5)
    alone = torch.cat([shapley_values(far[i : i + 1], same[i : i + 1], 5) for i in range(6)])
    assert torch.equal(whole, alone)


def test_blocks_of_queries_do_not_change_scores(view, monkeypatch):
    whole = execute(KnnShapley(), None, view())
    monkeypatch.setattr(knn_shapley, "_BLOCK_BYTES", 7 * 120 * knn_shapley._BYTES_PER_PAIR)
    torch.testing.assert_close(execute(KnnShapley(), None, view()), whole)


@given(n=st.integers(2, 40), d=st.integers(1, 50), seed=st.integers(0, 1000))
def test_equal_examples_are_equally_far(n, d, seed):
    random = torch.Generator().manual_seed(seed)
    one = torch.randn(1, d, generator=random)
    training = torch.cat([one.expand(n, -1), torch.randn(5, d, generator=random), one.expand(n, -1)])
    far = distances(torch.cat([torch.randn(3, d, generator=random), one]), training)
    copies = torch.cat([far[:, :n], far[:, -n:]], dim=1)
    assert (copies == copies[:, :1]).all()
    assert (far[3, :n] == 0).all()
    assert (far[3, n : n + 5] > 0).all()


def test_distances_are_in_the_order_of_exact_ones():
    random = torch.Generator().manual_seed(0)
    a, b = torch.randn(20, 30, generator=random), torch.randn(500, 30, generator=random)
    exact = (a.double()[:, None] - b.double()).square().sum(2)
    assert torch.equal(distances(a, b).argsort(1), exact.argsort(1))


def test_representations_of_zeros_are_all_equally_far():
    far = distances(torch.ones(2, 3), torch.zeros(4, 3))
    assert shapley_values(far, torch.ones(2, 4, dtype=torch.bool), 1).isfinite().all()


def test_a_copy_of_the_query_ranks_first(view, small, small_data):
    training = small.load_data(None).training
    training.inputs[PLANTED] = small_data.queries.inputs[QUERY]
    training.labels[PLANTED] = small_data.queries.labels[QUERY]
    task = view(data=TaskData(training, small_data.queries))
    assert execute(KnnShapley(), Independent(2), task)[QUERY].argmax() == PLANTED


def test_what_scores_high_helps_and_what_scores_low_harms(view, small, small_data):
    longer = replace(small, recipe=replace(small.recipe, epochs=10))
    order = execute(KnnShapley(), Independent(3), view(longer, small_data))[QUERY].argsort()
    masks = torch.ones(2, longer.n_train, dtype=torch.bool)
    masks[0, order[-12:]] = False
    masks[1, order[:12]] = False
    outputs = [
        target_outputs(longer, small_data, train_replicas(longer, small_data, masks, "groups", s)) for s in range(5)
    ]
    without_best, without_worst = torch.stack(outputs).mean(0)[:, QUERY]
    assert without_best < without_worst - 0.3


def test_sequences_have_no_class_to_vote_for(view, small, small_data):
    labels = [e.labels[:, None].expand(-1, 4) for e in (small_data.training, small_data.queries)]
    data = TaskData(
        Examples(small_data.training.inputs, labels[0], "train"),
        Examples(small_data.queries.inputs, labels[1], "queries"),
    )
    task = replace(
        small,
        make_model=lambda: nn.Sequential(nn.Linear(64, 40), nn.Unflatten(1, (4, 10))),
        loss=token_cross_entropy,
        target=MEAN_LOG_PROBABILITY,
    )
    with pytest.raises(Declined, match="vote for one label per example; the labels here are sequences"):
        execute(KnnShapley(), None, view(task, data))


@pytest.mark.parametrize(
    "ensemble", [None, Independent(2), Dropout(1, 2), Dropout(1, 2, mask="per-sample"), Lora(1, 2, rank=2, epochs=1)]
)
def test_every_ensemble_is_deterministic_and_forward_only(view, ensemble):
    task = view()
    first, second = execute(KnnShapley(), ensemble, task), execute(KnnShapley(), ensemble, view())
    assert torch.equal(first, second)
    assert task.meter.backward_examples == 0
    assert task.meter.forward_examples == (120 + 40) * (1 if ensemble is None else 2)
