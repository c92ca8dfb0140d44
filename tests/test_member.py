from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call
from torch.nn import functional

from tdabench import Declined, Examples, OptionError, UsageError
from tdabench.lora import adapter_names

MASKS = {"none": None, "shared": (0, False), "per-sample": (0, True)}


@pytest.fixture
def member(view):
    task = view()
    return lambda mask=None, model=0: task.member(model, mask=mask)


def test_without_a_mask_dropout_is_off(member, small):
    mine = member()
    plain = small.make_model().eval()
    plain.load_state_dict(mine.parameters)
    batch = mine.task.queries.all()
    torch.testing.assert_close(mine.logits(mine.parameters, batch), plain(batch.inputs).detach())


def test_a_shared_mask_is_one_sub_network_for_training_examples_and_queries(member):
    mine = member((0, False))
    rows = [mine.mask_rows(s.all())["2.mask"] for s in (mine.task.training, mine.task.queries)]
    assert rows[0].shape == (120, 32)
    assert all(torch.equal(row, rows[0][0]) for row in torch.cat(rows))
    assert (rows[0] == 0).any()


def test_a_per_sample_mask_differs_between_examples_and_between_the_sets(member):
    mine = member((0, True))
    training, queries = (mine.mask_rows(s.all())["2.mask"] for s in (mine.task.training, mine.task.queries))
    assert len({tuple(row) for row in training.tolist()}) > 110
    assert not torch.equal(training[:40], queries)


def test_masks_differ_by_number_and_by_model(member):
    rows = [
        member(mask, model).mask_rows(member().task.queries.all())
        for mask, model in (((0, False), 0), ((1, False), 0), ((0, False), 1))
    ]
    first, other_mask, other_model = (r["2.mask"] for r in rows)
    assert not torch.equal(first, other_mask)
    assert not torch.equal(first, other_model)


@pytest.mark.parametrize("kind", MASKS)
@given(order=st.permutations(range(40)), size=st.integers(1, 40))
def test_results_follow_the_example_through_any_order_and_batching(members_by_kind, kind, order, size):
    mine = members_by_kind[kind]
    whole = mine.target(mine.parameters, mine.task.queries.all())
    parts = [mine.target(mine.parameters, mine.task.queries.take(i)) for i in torch.tensor(order).split(size)]
    torch.testing.assert_close(torch.cat(parts), whole[torch.tensor(order)], rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module")
def members_by_kind(small, small_data, tmp_path_factory):
    from tdabench.view import TaskView

    task = TaskView(small, small_data, tmp_path_factory.mktemp("models"))
    return {kind: task.member(mask=mask) for kind, mask in MASKS.items()}


def test_masked_logits_are_those_of_the_model_with_the_mask(member):
    mine = member((3, True))
    batch = mine.task.training.all()
    values = {**mine.parameters, "2.mask": mine.mask_rows(batch)["2.mask"]}
    torch.testing.assert_close(
        mine.logits(mine.parameters, batch), functional_call(mine.model, values, (batch.inputs,))
    )


def test_targets_are_the_target_function_in_batches_and_counted(member, small):
    mine = member()
    expected = small.target.function(mine.logits(mine.parameters, mine.task.training.all()), mine.task.training.labels)
    torch.testing.assert_close(mine.targets(mine.task.training, batch_size=17), expected, rtol=1e-4, atol=1e-5)
    assert (mine.task.meter.forward_examples, mine.task.meter.backward_examples) == (120, 0)


def test_right_probability_is_the_softmax_of_the_right_class(member):
    mine = member()
    training = mine.task.training
    p = mine.logits(mine.parameters, training.all()).softmax(1)
    torch.testing.assert_close(mine.right_probability(training), p.gather(1, training.labels[:, None])[:, 0])


def test_the_q_factor_is_taken_at_the_member_itself_unless_said_otherwise(member):
    mine, others = member(), (member((0, False)), member((1, False)))
    assert mine.q_members == (mine,)
    assert mine.with_q(others).q_members == others
    assert mine.q_members == (mine,)


class HeadFirst(nn.Module):
    """Defines its last layer first."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.body = nn.Linear(32, 10), nn.Linear(64, 32)

    def forward(self, x):
        return self.head(self.body(x).relu())


class Shared(nn.Module):
    """A head that has the weight of the first layer; by a module, or in a function without one of its own."""

    def __init__(self, where: str) -> None:
        super().__init__()
        if where == "head first":
            self.head, self.first = nn.Linear(64, 64), nn.Linear(64, 64)
        else:
            self.first, self.middle, self.head = nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 64)
        if where == "in a function":
            del self.head
        else:
            self.head.weight = self.first.weight

    def forward(self, x):
        h = self.first(x).relu()
        h = self.middle(h).relu() if hasattr(self, "middle") else h
        return self.head(h) if hasattr(self, "head") else functional.linear(h, self.first.weight)


class Convolved(nn.Module):
    """A linear layer in the middle; the outputs are made by a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.last = nn.Linear(1, 1), nn.Conv2d(1, 10, 8)

    def forward(self, x):
        x = x.view(-1, 1, 8, 8)
        return self.last(x * self.gate(x.mean((2, 3)))[:, :, None, None]).flatten(1)


@pytest.mark.parametrize("ensemble", ["plain", "lora"])
def test_the_last_layer_is_the_one_that_is_called_last(view, small, ensemble):
    task = view(replace(small, make_model=HeadFirst))
    mine = task.member() if ensemble == "plain" else task.adapter_member(0, 0, number=0, rank=2, epochs=1)
    last = mine.last_layer()
    wanted = ["head.weight", "head.bias"] if ensemble == "plain" else list(adapter_names("head"))
    assert sorted(last.parameters) == sorted(wanted)
    assert {*last.parameters, *last.statistics} == {*mine.parameters, *mine.statistics}
    whole, part = (m.gradients(task.queries, "target") for m in (mine, last))
    assert last.last_layer().parameters.keys() == last.parameters.keys()
    places = torch.cat([torch.arange(s.start, s.stop) for k, s in whole._places.items() if k in last.parameters])
    torch.testing.assert_close(part.dense(), whole.dense()[:, places])


@pytest.mark.parametrize(
    ("make_model", "reason"),
    [
        (lambda: Shared("head last"), "small, head, shares its weight with another part of the model"),
        (lambda: Shared("head first"), "small, head, shares its weight with another part of the model"),
        (lambda: Shared("in a function"), r"small, middle, is not all .*: first.weight comes beside or after it"),
        (Convolved, r"small, gate, is not all .*: last.weight comes beside or after it"),
    ],
    ids=["tied", "tied, head first", "in a function", "convolution"],
)
def test_a_last_layer_that_cannot_be_taken_alone_is_declined(view, small, make_model, reason):
    mine = view(replace(small, make_model=make_model)).member()
    with pytest.raises(Declined, match=reason):
        mine.last_layer()


def normalised_model() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 10))


STATISTICS = {"1.running_mean", "1.running_var", "1.num_batches_tracked"}


@pytest.fixture
def normalised(small, small_data, view):
    """Return the view of a task whose model has running statistics."""
    task = replace(small, name="normalised", make_model=normalised_model)
    return view(task, small_data, store="normalised")


def test_running_statistics_stand_apart_from_parameters(normalised):
    mine = normalised.member()
    assert set(mine.parameters) == {name for name, _ in normalised_model().named_parameters()}
    assert set(mine.statistics) == STATISTICS
    assert mine.statistics["1.num_batches_tracked"].item() == 18  # 120 examples, 20 a step, 3 epochs
    fresh = normalised_model()[1]
    assert not torch.allclose(mine.statistics["1.running_mean"], fresh.running_mean, atol=1e-3)


def test_a_member_evaluates_with_its_running_statistics_and_leaves_them_alone(normalised):
    mine = normalised.member()
    before = {k: v.clone() for k, v in mine.statistics.items()}
    plain = normalised_model().eval()
    plain.load_state_dict({**mine.parameters, **mine.statistics})
    batch = normalised.queries.all()
    torch.testing.assert_close(mine.logits(mine.parameters, batch), plain(batch.inputs).detach())
    alone = torch.cat([mine.logits(mine.parameters, b) for b in normalised.queries.batches(1)])
    torch.testing.assert_close(alone, plain(batch.inputs).detach(), rtol=1e-4, atol=1e-5)
    mine.gradients(normalised.training, "loss").norms()
    assert all(torch.equal(mine.statistics[k], before[k]) for k in before)


def test_members_of_different_models_have_statistics_of_their_own(normalised):
    first, second = normalised.member(0), normalised.member(1)
    assert not torch.equal(first.statistics["1.running_mean"], second.statistics["1.running_mean"])
    masked = normalised.member(0, mask=(0, True))
    assert all(masked.statistics[k] is first.statistics[k] for k in STATISTICS)


def test_a_part_of_the_training_set_has_the_masks_of_its_examples(view):
    task = view()
    member = task.member(mask=(0, True))
    rows = torch.tensor([70, 3, 41])
    part = task.training.part(rows)
    for of in ("loss", "target"):
        whole = member.gradients(task.training, of).dense()
        torch.testing.assert_close(member.gradients(part, of).dense(), whole[rows], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(member.targets(part), member.targets(task.training)[rows])
    torch.testing.assert_close(member.representations(part), member.representations(task.training)[rows])


def test_a_part_that_does_not_say_which_is_refused_where_every_example_has_a_mask_of_its_own(view):
    task = view()
    part = Examples(task.training.inputs[:3], task.training.labels[:3], "train")
    member = task.member(mask=(0, True))
    for ask in (
        lambda: member.gradients(part, "loss"),
        lambda: member.hessian(part),
        lambda: member.targets(part),
        lambda: member.representations(part),
    ):
        with pytest.raises(UsageError, match=r"3 of 120 examples were given.*examples\.part\(rows\)"):
            ask()
    assert task.member(mask=(0, False)).gradients(part, "loss").dense().shape[0] == 3


@pytest.mark.parametrize("of", ["Loss", "logits"])
def test_gradients_of_what_there_is_not_are_refused(view, of):
    """Else they would be those of the target, of another sign than the loss's."""
    task = view()
    with pytest.raises(OptionError, match=f"of must be one of 'loss', 'target'; got '{of}'"):
        task.member().gradients(task.training, of)
    with pytest.raises(OptionError, match="curvature must be one of 'gauss-newton', 'hessian'; got 'gn'"):
        task.member().hessian(task.training, "gn")
    with pytest.raises(OptionError, match="kind must be one of 'auto', 'dense', 'sparse', 'rank-one'; got 'tensor'"):
        task.member().gradients(task.training, "loss").project(8, "x", kind="tensor")


class Keeping(nn.Module):
    """Keeps an activation for who wants to look at it; with a parameter of its own, examples go through ``vmap``."""

    def __init__(self, *, own: bool) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(64, 16), nn.Linear(16, 10)
        self.scale = nn.Parameter(torch.ones(16)) if own else 1.0
        self.kept: dict[str, torch.Tensor] = {}

    def forward(self, x):
        self.features = self.first(x).tanh() * self.scale
        self.kept["features"] = self.features
        return self.last(self.features)


@pytest.mark.parametrize("own", [False, True])
def test_a_model_that_keeps_an_activation_is_copied_also_after_a_pass(view, small, own):
    task = view(replace(small, make_model=lambda: Keeping(own=own)), store=f"keeping-{own}")
    mine = task.member(0)
    mine.gradients(task.training, "loss").norms()
    module, batch = mine.module(), task.queries.all()
    assert module.features is module.kept["features"]
    assert module.features is None if own else not module.features.requires_grad
    torch.testing.assert_close(module(batch.inputs).detach(), mine.logits(mine.parameters, batch))
    adapted = task.adapter_member(0, 0, number=0, rank=2, epochs=1)
    assert adapted.gradients(task.queries, "target").norms().isfinite().all()
