"""Gradients where training examples and queries are inputs of different shapes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from tdabench import Declined, TaskData, UsageError, eigenbases, projections, solved_dot
from tdabench.examples import Examples

CLOSE = {"rtol": 1e-5, "atol": 1e-5}
N_TRAIN, N_QUERIES = 9, 5


class Pooled(nn.Module):
    """Takes any number of tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.last = nn.Linear(12, 16), nn.Linear(16, 4)

    def forward(self, x):
        return self.last(self.inner(x).tanh().mean(1))


class Trimmed(nn.Module):
    """Cuts off what is padding in the whole batch, and averages over what is not in the example."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.inner, self.last = nn.Embedding(20, 8, padding_idx=0), nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x):
        x = x[:, : int((x != 0).sum(1).max())]
        there = (x != 0).unsqueeze(-1)
        return self.last((self.inner(self.tokens(x)).tanh() * there).sum(1) / there.sum(1))


@pytest.fixture
def member_of(small, view):
    """Return a factory of members, of any model, on given inputs."""

    def make(make_model, training, queries):
        labels = torch.arange(N_TRAIN) % 4
        data = TaskData(Examples(training, labels, "train"), Examples(queries, labels[: len(queries)], "queries"))
        recipe = replace(small.recipe, epochs=1)
        task = replace(small, make_model=make_model, n_train=N_TRAIN, n_queries=len(queries), recipe=recipe)
        return view(task, data, store=make_model.__name__).member()

    return make


def tokens(n: int, positions: int) -> torch.Tensor:
    return torch.randn(n, positions, 12, generator=torch.Generator().manual_seed(positions))


def sentences(*lengths: int, width: int) -> torch.Tensor:
    words = torch.randint(1, 20, (len(lengths), width), generator=torch.Generator().manual_seed(0))
    return words * (torch.arange(width) < torch.tensor(lengths).unsqueeze(1))


def explicit(member, examples, of):
    """Return the gradients ``[n, P]`` by one backward pass per example."""
    function, rows = getattr(member, of), []
    for i in range(len(examples)):
        leaves = {k: p.detach().clone().requires_grad_() for k, p in member.parameters.items()}
        value = function(leaves, examples.take(torch.tensor([i]))).sum()
        found = torch.autograd.grad(value, list(leaves.values()), materialize_grads=True)
        rows.append(torch.cat([g.flatten() for g in found]))
    return torch.stack(rows)


def check_products(member) -> None:
    training, queries = member.task.training, member.task.queries
    found = member.gradients(queries, "target").dot(member.gradients(training, "loss"))
    expected = explicit(member, queries, "target") @ explicit(member, training, "loss").T
    torch.testing.assert_close(found / expected.abs().max(), expected / expected.abs().max(), **CLOSE)


def check_alike(member) -> None:
    """Hold what is made of queries that have the training examples' gradients against what is made of those."""
    a, b = member.gradients(member.task.queries, "loss"), member.gradients(member.task.training, "loss")
    torch.testing.assert_close(a.dense(), b.dense()[: len(a)], **CLOSE)
    for kind in ("auto", "dense", "sparse", "rank-one"):
        found, expected = (g.project(32, "shapes", kind=kind) for g in (a, b))
        torch.testing.assert_close(found, expected[: len(a)], **CLOSE)
    for draw in (projections.kronecker_sketch(2, "shapes"), projections.masked_sketch(8, 0.5, "shapes")):
        expected = b.sketch(draw)
        for key, found in a.sketch(draw).items():
            torch.testing.assert_close(found, expected[key][: len(a)], **CLOSE)
    bases = eigenbases(b)
    ridges = {key: 0.1 * float(basis.values.mean()) for key, basis in bases.items()}
    found, expected = (solved_dot(g, b, bases, ridges) for g in (a, b))
    torch.testing.assert_close(found / expected.abs().max(), expected[: len(a)] / expected.abs().max(), **CLOSE)


@pytest.mark.parametrize(("of_training", "of_queries"), [(5, 9), (1, 2), (2, 1), (1, 3), (3, 1)])
def test_products_of_examples_with_different_numbers_of_tokens(member_of, of_training, of_queries):
    check_products(member_of(Pooled, tokens(N_TRAIN, of_training), tokens(N_QUERIES, of_queries)))


@pytest.mark.parametrize("times", [(1, 2), (2, 1), (1, 3), (3, 1), (2, 4)])
def test_examples_of_any_number_of_tokens_with_one_gradient_are_treated_alike(member_of, times):
    """A token more than once is averaged to itself."""
    once = tokens(N_TRAIN, 1)
    training, queries = (once.expand(-1, n, -1).contiguous() for n in times)
    check_alike(member_of(Pooled, training, queries[:N_QUERIES]))


def test_sets_whose_layers_are_called_differently_are_treated_alike(member_of):
    """Training examples are as long as their inputs; the queries' inputs are cut off where the longest of them ends."""
    training = sentences(*[6] * N_TRAIN, width=6)
    queries = torch.cat([training[:N_QUERIES], torch.zeros(N_QUERIES, 3, dtype=torch.int64)], dim=1)
    longer = torch.cat([training[:1], training[:1, :3]], dim=1)
    member = member_of(Trimmed, training, torch.cat([queries[:-1], longer]))
    layouts = [member.gradients(part, "loss").layout for part in (member.task.training, member.task.queries)]
    assert layouts[0].layers.keys() == layouts[1].layers.keys()
    check_products(member)
    some = member.task.queries.part(torch.arange(N_QUERIES - 1))
    found, expected = (member.gradients(part, "loss").project(32, "x") for part in (some, member.task.training))
    torch.testing.assert_close(found, expected[: N_QUERIES - 1], **CLOSE)


@pytest.mark.parametrize("lengths", [(4, 3, 5, 3, 4), (6, 6, 2, 6, 6)], ids=["all", "one"])
def test_short_queries_of_inputs_of_one_shape_are_not_declined(member_of, lengths):
    """No training example shows that the model cuts padding off, nor a query that is passed with a long one."""
    member = member_of(Trimmed, sentences(*[6] * N_TRAIN, width=6), sentences(*lengths, width=6))
    gradients = [member.gradients(part, "loss") for part in (member.task.training, member.task.queries)]
    assert gradients[0].layout is gradients[1].layout
    check_products(member)
    for rows, layers in gradients[1].by_layer(most_bytes=1):  # one after another
        found = gradients[1].flatten(layers)
        torch.testing.assert_close(found, explicit(member, member.task.queries, "loss")[rows], **CLOSE)


def test_inputs_of_a_third_shape_are_not_projected_otherwise_without_a_word(member_of):
    member = member_of(Pooled, tokens(N_TRAIN, 1), tokens(N_QUERIES, 1))
    other = Examples(tokens(3, 2), torch.arange(3), "queries")
    found = member.gradients(other, "loss")
    with pytest.raises(UsageError, match=r"inputs of shape \[2, 12\] may be projected otherwise than the task's"):
        found.project(32, "x")
    assert found.project(32, "x", kind="sparse").shape == (3, 32)


def test_inputs_of_a_third_shape_that_go_through_other_layers_are_declined(member_of):
    training = sentences(*[6] * N_TRAIN, width=6)
    member = member_of(Trimmed, training, training[:N_QUERIES])
    member.gradients(member.task.training, "loss").norms()
    other = Examples(sentences(3, 8, 5, width=8), torch.arange(3), "queries")
    with pytest.raises(Declined, match=r"does otherwise with inputs of shape \[8\] than with those of the training"):
        member.gradients(other, "loss").norms()


class Choosing(nn.Module):
    """Sends every example to an expert or past it, by an ``if``, as it is positive or not."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.expert, self.last = nn.Linear(12, 12), nn.Linear(12, 12), nn.Linear(12, 4)

    def forward(self, x):
        h = self.first(x.squeeze(1)).tanh()
        chosen = x[:, 0, 0] > 0
        if bool(chosen.any()):
            h = h.index_put((chosen,), self.expert(h[chosen]))
        return self.last(h)


@pytest.mark.parametrize("positive", [[], [4], [0, 3], [0, 1, 2, 3, 5, 6, 7, 8]])
def test_a_model_that_chooses_by_an_if_has_gradients_of_all_its_examples(member_of, positive):
    """Of nine training examples, the fifth is none of those that are tried."""
    training, queries = -tokens(N_TRAIN, 1).abs(), -tokens(N_QUERIES, 1).abs()
    training[positive] *= -1
    queries[2] *= -1
    check_products(member_of(Choosing, training, queries))
