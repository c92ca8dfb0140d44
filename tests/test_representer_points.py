from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from tdabench import (
    MEAN_LOG_PROBABILITY,
    Declined,
    Examples,
    Recipe,
    TaskData,
    UsageError,
    cross_entropy,
    log_odds,
    token_cross_entropy,
)
from tdabench.baselines import representer_points
from tdabench.baselines.representer_points import LastLayer, RepresenterPoints, curvature_products, derivatives
from tdabench.ensembles import Dropout, Independent, Lora
from tdabench.execution import execute
from tdabench.tasks.transformers import nano_gpt
from tdabench.trainer import target_outputs, train_replicas

PLANTED, QUERY = 17, 3
VOCABULARY, LENGTH = 11, 6


@pytest.fixture
def sequences(small, view):
    """Return a view of a task on random tokens."""
    random = torch.Generator().manual_seed(0)

    def made_up(n: int, split: str) -> Examples:
        tokens = torch.randint(VOCABULARY, (n, LENGTH + 1), generator=random)
        return Examples(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous(), split)

    task = replace(
        small,
        name="sequences",
        make_model=lambda: nano_gpt(VOCABULARY, LENGTH, layers=1, width=8, heads=2, p=0.1),
        loss=token_cross_entropy,
        target=MEAN_LOG_PROBABILITY,
        recipe=Recipe(lr=0.01, momentum=0.9, batch_size=4, epochs=2, optimizer="adamw", beta2=0.99),
    )
    return view(task, TaskData(made_up(30, "train"), made_up(7, "queries")), store="sequences")


def with_ones(member, examples):
    rows = member.representations(examples, pooled=False).double()
    return torch.cat([rows, torch.ones(*rows.shape[:-1], 1)], -1)


@pytest.mark.parametrize("l2", [0.001, 0.03, 1.0])
def test_representers_add_up_to_the_logits_of_the_re_fitted_layer(view, l2):
    """The representer theorem, on queries that the layer never saw."""
    member = view().member()
    state = RepresenterPoints(l2).fit(member)
    training, queries = (with_ones(member, e) for e in (member.task.training, member.task.queries))
    logits = queries @ state.weights
    sums = (queries @ training.T) @ state.alphas.double()
    assert logits.std() > 0.1
    torch.testing.assert_close(sums, logits, rtol=1e-4, atol=1e-4)


def test_representers_add_up_to_the_logits_on_sequences(sequences):
    member = sequences.member()
    state = RepresenterPoints(0.1).fit(member)
    queries = with_ones(member, sequences.queries)
    weights = state.features.double().sum(0).view(VOCABULARY, -1).T  # the sum of the examples' terms
    assert (queries @ state.weights).std() > 0.01
    torch.testing.assert_close(queries @ weights, queries @ state.weights, rtol=1e-4, atol=1e-4)


def test_the_re_fitted_layer_is_the_minimum_found_by_another_solver(view):
    """Gradient descent on the objective as the paper writes it."""
    member = view().member()
    features, labels = with_ones(member, member.task.training), member.task.training.labels
    penalty = 0.1 * float(features.square().mean())
    weights = torch.zeros(features.shape[1], 10, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.SGD([weights], lr=0.05, momentum=0.9)
    for _ in range(1500):
        optimizer.zero_grad()
        (cross_entropy(features @ weights, labels).mean() + penalty * weights.square().sum()).backward()
        optimizer.step()
    torch.testing.assert_close(RepresenterPoints(0.1).fit(member).weights, weights.detach(), rtol=1e-4, atol=1e-4)


def test_scores_are_alphas_times_similarities_in_the_direction_of_the_target(view):
    """Written out: for one query, one example, class by class."""
    task, method = view(), RepresenterPoints(0.03)
    member = task.member()
    scores, weights = execute(method, None, task), method.fit(member).weights
    training, queries = (with_ones(member, e) for e in (task.training, task.queries))
    penalty = 0.03 * float(training.square().mean())
    i, q = 11, 5
    one_hot = torch.nn.functional.one_hot(task.training.labels[i], 10)
    alpha = ((training[i] @ weights).softmax(0) - one_hot) / (-2 * penalty * 120)
    z = (queries[q] @ weights).requires_grad_()
    (direction,) = torch.autograd.grad(log_odds(z[None], task.queries.labels[q : q + 1]).sum(), z)
    expected = (direction @ alpha) * (training[i] @ queries[q])
    assert scores[q, i].item() == pytest.approx(expected.item(), rel=1e-3)


def test_scores_on_sequences_are_sums_over_pairs_of_positions(sequences):
    method, member = RepresenterPoints(0.1), sequences.member()
    scores, weights = execute(method, None, sequences), method.fit(member).weights
    training, queries = (with_ones(member, e) for e in (sequences.training, sequences.queries))
    penalty = 0.1 * float(training.float().square().mean())
    _, slopes = derivatives(token_cross_entropy, training @ weights, sequences.training.labels)
    _, directions = derivatives(MEAN_LOG_PROBABILITY.function, queries @ weights, sequences.queries.labels)
    alphas = -slopes / (2 * penalty * len(training))
    expected = torch.einsum("qsc,itc,qsd,itd->qi", directions, alphas, queries, training)
    torch.testing.assert_close(scores, expected.float(), rtol=1e-3, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("shape", [(5, 4), (5, 3, 4)])
def test_derivatives_and_curvature_are_those_of_autograd_in_any_blocks(monkeypatch, shape):
    random = torch.Generator().manual_seed(0)
    logits, moves = (torch.randn(shape, generator=random, dtype=torch.float64) for _ in range(2))
    labels = torch.randint(4, shape[:-1], generator=random)
    loss = cross_entropy if len(shape) == 2 else token_cross_entropy
    _, products = torch.autograd.functional.vhp(lambda z: loss(z, labels).sum(), logits, moves)
    for block_bytes in (1, 10**6):
        monkeypatch.setattr(representer_points, "_BLOCK_BYTES", block_bytes)
        values, slopes = derivatives(loss, logits, labels)
        torch.testing.assert_close(values, loss(logits, labels))
        z = logits.clone().requires_grad_()
        torch.testing.assert_close(slopes, torch.autograd.grad(loss(z, labels).sum(), z)[0])
        torch.testing.assert_close(curvature_products(loss, logits, labels, moves), products)


def test_a_copy_of_the_query_ranks_first(view, small, small_data):
    longer = replace(small, recipe=replace(small.recipe, epochs=10))
    training = small.load_data(None).training
    training.inputs[PLANTED] = small_data.queries.inputs[QUERY]
    training.labels[PLANTED] = small_data.queries.labels[QUERY]
    task = view(longer, TaskData(training, small_data.queries))
    assert execute(RepresenterPoints(), Independent(3), task)[QUERY].argmax() == PLANTED


def test_what_scores_high_helps_and_what_scores_low_harms(view, small, small_data):
    longer = replace(small, recipe=replace(small.recipe, epochs=10))
    order = execute(RepresenterPoints(), Independent(3), view(longer, small_data))[QUERY].argsort()
    masks = torch.ones(2, longer.n_train, dtype=torch.bool)
    masks[0, order[-12:]] = False
    masks[1, order[:12]] = False
    outputs = [
        target_outputs(longer, small_data, train_replicas(longer, small_data, masks, "groups", s)) for s in range(5)
    ]
    without_best, without_worst = torch.stack(outputs).mean(0)[:, QUERY]
    assert without_best < without_worst - 0.3


def test_a_layer_that_cannot_be_fitted_says_what_to_do(monkeypatch):
    monkeypatch.setattr(representer_points, "_MAX_NEWTON", 1)
    random = torch.Generator().manual_seed(0)
    features, labels = torch.randn(30, 4, generator=random), torch.randint(3, (30,), generator=random)
    with pytest.raises(UsageError, match=r"not fitted after 1 steps of Newton's method.*--set l2=0.1"):
        LastLayer(features, labels, cross_entropy, 1e-6).fitted(3)


def test_models_whose_logits_are_not_made_from_representations_are_declined(view, small, small_data):
    plain = replace(
        small, make_model=lambda: nn.Sequential(nn.Unflatten(1, (1, 64)), nn.Conv1d(1, 10, 64), nn.Flatten())
    )
    with pytest.raises(Declined, match="the model of small has no linear layer to re-fit"):
        execute(RepresenterPoints(), None, view(plain, small_data))
    early = replace(small, make_model=lambda: nn.Sequential(nn.Unflatten(1, (8, 8)), nn.Linear(8, 5), nn.Flatten()))
    with pytest.raises(Declined, match="the logits of small are not made one by one from representations"):
        execute(RepresenterPoints(), None, view(early, small_data, store="early"))


@pytest.mark.parametrize("after", [nn.LogSoftmax(-1), nn.ReLU(inplace=True)])
def test_models_that_change_what_their_last_layer_gives_are_declined_and_only_here(view, small, small_data, after):
    """Another re-fitted layer would be linear where the model is not; similarities of what it is given are fine."""
    changed = view(replace(small, make_model=lambda: nn.Sequential(nn.Linear(64, 10), after)), small_data)
    with pytest.raises(Declined, match="what the last linear layer of the model of small, 0, gives is not the model's"):
        execute(RepresenterPoints(), None, changed)
    assert changed.member().representations(changed.queries).shape == (len(changed.queries), 64)


@pytest.mark.parametrize(
    "ensemble", [None, Independent(2), Dropout(1, 2), Dropout(1, 2, mask="per-sample"), Lora(1, 2, rank=2, epochs=1)]
)
def test_every_ensemble_is_deterministic_and_forward_only(view, ensemble):
    task = view()
    first, second = execute(RepresenterPoints(), ensemble, task), execute(RepresenterPoints(), ensemble, view())
    assert torch.equal(first, second)
    assert first.isfinite().all()
    assert task.meter.backward_examples == 0


def test_ensembles_on_sequences_are_scored_end_to_end(sequences):
    for ensemble in (Dropout(1, 2), Lora(1, 2, rank=2, epochs=1)):
        scores = execute(RepresenterPoints(0.1), ensemble, sequences)
        assert scores.shape == (7, 30)
        assert scores.std() > 0
