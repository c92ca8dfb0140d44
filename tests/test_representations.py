from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tdabench import MEAN_LOG_PROBABILITY, Declined, Examples, Recipe, TaskData, representations, token_cross_entropy
from tdabench.baselines.representations import RepSim, similarities
from tdabench.ensembles import Dropout, Independent, Lora
from tdabench.execution import execute
from tdabench.tasks.networks import dropout_mlp, resnet9
from tdabench.tasks.transformers import music_transformer, nano_gpt
from tdabench.trainer import target_outputs, train_replicas

VOCABULARY, LENGTH = 11, 8
PLANTED, QUERY = 17, 3


def transformer(make) -> nn.Module:
    return make(VOCABULARY, LENGTH, layers=1, width=8, heads=2, p=0.1)


#: Model, and width of the last linear layer's input.
NETWORKS = {
    "MLP": (lambda: dropout_mlp(64, 16, 12, 10, p=0.1), 12),
    "logistic regression": (lambda: nn.Sequential(nn.Linear(64, 10)), 64),
    "ResNet-9": (lambda: resnet9(3, width=8, strides=(2, 2, 2), p=0.1), 64),
    "nanoGPT": (lambda: transformer(nano_gpt), 8),
    "Music Transformer": (lambda: transformer(music_transformer), 8),
}
SEQUENCES = ("nanoGPT", "Music Transformer")


@pytest.fixture
def network_view(small, small_data, view):
    """Return a factory of views of a task with a small network of each kind that tasks train."""

    def make(name: str):
        random = torch.Generator().manual_seed(0)

        def made_up(n: int, split: str) -> Examples:
            if name in SEQUENCES:
                tokens = torch.randint(VOCABULARY, (n, LENGTH + 1), generator=random)
                return Examples(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous(), split)
            images = torch.randn(n, 3, 16, 16, generator=random)
            return Examples(images, torch.randint(3, (n,), generator=random), split)

        task = replace(small, name=name, make_model=NETWORKS[name][0], recipe=replace(small.recipe, epochs=1))
        if name in ("MLP", "logistic regression"):
            return view(task, small_data, store=name)
        if name in SEQUENCES:
            recipe = Recipe(lr=0.01, momentum=0.9, batch_size=4, epochs=2, optimizer="adamw", beta2=0.99)
            task = replace(task, loss=token_cross_entropy, target=MEAN_LOG_PROBABILITY, recipe=recipe)
        task = replace(task, n_train=20, n_queries=6)
        return view(task, TaskData(made_up(20, "train"), made_up(6, "queries")), store=name)

    return make


def last_linear(model: nn.Module) -> str:
    return [name for name, m in model.named_modules() if isinstance(m, nn.Linear)][-1]


def head(member) -> tuple[Tensor, Tensor | float]:
    """Return weight and bias of the last linear layer as the member has them, adapters included."""
    name = last_linear(member.model)
    own = {**dict(member.model.named_parameters()), **member.parameters}
    weight, bias = own.get(f"{name}.weight"), own.get(f"{name}.bias")
    if weight is None:
        start = f"{name}.parametrizations.weight"
        weight = own[f"{start}.original"] + own[f"{start}.0.up"] @ own[f"{start}.0.down"]
    return weight, 0.0 if bias is None else bias


MEMBERS = {
    "plain": lambda task: task.member(),
    "shared mask": lambda task: task.member(mask=(0, False)),
    "own masks": lambda task: task.member(mask=(0, True)),
    "adapter": lambda task: task.adapter_member(0, 0, number=0, rank=2, epochs=1),
}


WITHOUT_DROPOUT = "logistic regression"
PAIRS = [(n, k) for n in NETWORKS for k in MEMBERS if n != WITHOUT_DROPOUT or "mask" not in k]


@pytest.mark.parametrize(("name", "kind"), PAIRS)
def test_the_last_layer_of_the_representations_gives_the_member_s_logits(network_view, name, kind):
    member = MEMBERS[kind](network_view(name))
    for examples in (member.task.training, member.task.queries):
        rows = member.representations(examples, pooled=False)
        weight, bias = head(member)
        logits = member.logits(member.parameters, examples.all())
        torch.testing.assert_close(rows @ weight.T + bias, logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NETWORKS)
def test_representations_are_pooled_over_positions_and_counted_as_forward_passes(network_view, name):
    task = network_view(name)
    member = task.member()
    rows = member.representations(task.training)
    assert rows.shape == (task.n_train, NETWORKS[name][1])
    assert not rows.requires_grad
    assert (task.meter.forward_examples, task.meter.backward_examples) == (task.n_train, 0)
    if name in SEQUENCES:
        apart = member.representations(task.training, pooled=False)
        assert apart.shape == (task.n_train, LENGTH, NETWORKS[name][1])
        torch.testing.assert_close(rows, apart.mean(1))


def test_a_model_of_one_linear_layer_represents_an_example_by_itself(network_view):
    task = network_view("logistic regression")
    assert torch.equal(task.member().representations(task.queries), task.queries.inputs)


def test_batches_do_not_change_representations(view):
    member = view().member(mask=(0, True))
    whole = member.representations(member.task.training)
    parts = representations.representations(member, member.task.training, pooled=True, batch_size=7)
    torch.testing.assert_close(parts, whole)


def test_the_model_is_left_without_hooks(view):
    member = view().member()
    member.representations(member.task.queries)
    assert not any(m._forward_pre_hooks for m in member.model.modules())


class HeadFirst(nn.Module):
    """Declares its last layer first."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(32, 10)
        self.body = nn.Linear(64, 32)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).relu())


def test_the_last_layer_is_the_one_that_is_called_last(view, small, small_data):
    member = view(replace(small, make_model=HeadFirst), small_data).member()
    assert member.representations(member.task.queries).shape == (40, 32)


class Functional(nn.Module):
    """Makes its outputs by a function of a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(64, 32), nn.Parameter(torch.randn(10, 32) / 6)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(self.body(x).relu(), nn.functional.normalize(self.head))


def test_what_is_given_to_a_layer_before_the_last_weights_is_no_representation(view, small, small_data):
    member = view(replace(small, make_model=Functional), small_data).member()
    with pytest.raises(Declined, match=r"model of small, body, .*: head comes beside or after it"):
        member.representations(member.task.queries)


class RowsFirst(nn.Module):
    """Gives its last layer ``[8, B, 8]``."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.view(-1, 8, 8).transpose(0, 1)).mean(0)


@pytest.mark.parametrize("n", [5, 8])
def test_rows_that_are_not_examples_are_declined_whatever_their_number(view, small, small_data, n):
    member = view(replace(small, make_model=RowsFirst), small_data).member()
    queries = member.task.queries
    some = Examples(queries.inputs[:n], queries.labels[:n], "queries")
    with pytest.raises(Declined, match="no linear layer that is given one row per example"):
        member.representations(some)


def test_a_model_without_a_linear_layer_is_declined(view, small, small_data):
    plain = replace(
        small, make_model=lambda: nn.Sequential(nn.Unflatten(1, (1, 64)), nn.Conv1d(1, 10, 64), nn.Flatten())
    )
    with pytest.raises(Declined, match=r"the model of small has no linear layer that is given one row per example"):
        execute(RepSim(), None, view(plain, small_data))


# rep-sim


def brute(member, measure: str) -> np.ndarray:
    queries, training = (
        member.representations(e).double().numpy() for e in (member.task.queries, member.task.training)
    )
    dots = np.array([[float(q @ t) for t in training] for q in queries])
    if measure == "dot":
        return dots
    if measure == "cosine":
        return dots / np.outer(np.linalg.norm(queries, axis=1), np.linalg.norm(training, axis=1))
    return -np.array([[float(((q - t) ** 2).sum()) for t in training] for q in queries])


@pytest.mark.parametrize("measure", ["cosine", "dot", "l2"])
def test_similarities_are_their_formulas_up_to_a_constant_of_the_query(view, measure):
    scores = execute(RepSim(measure, same_label=False), None, view()).double().numpy()
    expected = brute(view().member(), measure)
    if measure == "l2":
        expected = expected - expected.min(1, keepdims=True)
    np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("measure", ["cosine", "dot", "l2"])
def test_a_similarity_counts_against_another_label(view, measure):
    task = view()
    plain = execute(RepSim(measure, same_label=False), None, task)
    signed = execute(RepSim(measure), None, task)
    same = task.queries.labels[:, None] == task.training.labels
    assert torch.equal(signed[same], plain[same])
    assert torch.equal(signed[~same], -plain[~same])
    assert (plain >= 0).all()  # or the sign would not mean what it says


@pytest.mark.parametrize("name", SEQUENCES)
def test_sequences_have_no_labels_to_agree(network_view, name):
    plain, signed = (execute(RepSim(same_label=same), None, network_view(name)) for same in (False, True))
    assert torch.equal(plain, signed)
    assert plain.std() > 0


def test_a_representation_of_zeros_is_like_nothing():
    rows = torch.tensor([[0.0, 0.0], [1.0, 1.0]])
    torch.testing.assert_close(similarities(rows, rows, "cosine"), torch.tensor([[0.0, 0.0], [0.0, 1.0]]))


def test_a_copy_of_the_query_is_the_nearest(view, small, small_data):
    training = small.load_data(None).training
    training.inputs[PLANTED], training.labels[PLANTED] = small_data.queries.inputs[QUERY], small_data.queries.labels[3]
    task = view(data=TaskData(training, small_data.queries))
    for measure in ("cosine", "l2"):
        assert execute(RepSim(measure), None, task)[QUERY].argmax() == PLANTED


@pytest.mark.parametrize("measure", ["cosine", "l2"])
def test_rep_sim_predicts_retraining_better_than_chance(view, small, small_data, measure):
    """The sign, by retraining: without the most similar examples the target is lower than without the least."""
    longer = replace(small, recipe=replace(small.recipe, epochs=10))
    order = execute(RepSim(measure), Independent(3), view(longer, small_data))[QUERY].argsort()
    masks = torch.ones(2, longer.n_train, dtype=torch.bool)
    masks[0, order[-12:]] = False
    masks[1, order[:12]] = False
    outputs = [
        target_outputs(longer, small_data, train_replicas(longer, small_data, masks, "groups", s)) for s in range(5)
    ]
    without_best, without_worst = torch.stack(outputs).mean(0)[:, QUERY]
    assert without_best < without_worst - 0.3


@pytest.mark.parametrize(
    "ensemble", [Independent(2), Dropout(1, 2), Dropout(1, 2, mask="per-sample"), Lora(1, 2, rank=2, epochs=1)]
)
def test_rep_sim_under_every_ensemble_is_deterministic(view, ensemble):
    first, second = (execute(RepSim(), ensemble, view()) for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, execute(RepSim(), None, view()))
