from __future__ import annotations

import gc
import math
import weakref
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tdabench import MemberMethod
from tdabench.baselines.grad_dot import GradDot, TracIn
from tdabench.baselines.trak import Trak
from tdabench.ensembles import (
    SIZES,
    Checkpoints,
    Dropout,
    Independent,
    Lora,
    Projections,
    format_ensemble,
    kind_of,
    parse_ensemble,
    recorded,
)
from tdabench.errors import Declined, OptionError, ScoresError, UnknownNameError, UsageError
from tdabench.execution import execute
from tdabench.member import _table, forget_masks
from tdabench.method import Method, mean
from tdabench.options import values

counts = st.integers(1, 1000)
ensembles = (
    st.builds(Independent, models=counts)
    | st.builds(
        Dropout,
        models=counts,
        masks=counts,
        scope=st.sampled_from(["all", "q-only"]),
        mask=st.sampled_from(["shared", "per-sample"]),
    )
    | st.builds(Lora, models=counts, adapters=counts, rank=counts, epochs=counts)
    | st.builds(
        Checkpoints,
        models=counts,
        last=counts,
        every=st.none() | counts,
        span=st.sampled_from(["half", "whole"]),
        q_masks=st.none() | counts,
    )
    | st.builds(Projections, models=counts, seeds=counts)
)


@given(ensembles)
def test_what_is_formatted_is_parsed_back(ensemble):
    assert parse_ensemble(format_ensemble(kind_of(ensemble), values(ensemble))) == ensemble


@given(ensembles)
def test_the_size_is_the_number_of_pairs(ensemble):
    assert ensemble.size == math.prod(count for name, count in values(ensemble).items() if name in SIZES)


@pytest.mark.parametrize(
    ("text", "ensemble"),
    [
        ("independent", Independent()),
        ("independent()", Independent()),
        (" dropout ( models = 5 , masks=3, ) ", Dropout(5, 3)),
        ("dropout(mask=per-sample,scope=q-only)", Dropout(scope="q-only", mask="per-sample")),
        ("lora(rank=2)", Lora(rank=2)),
        ("checkpoints(last=3, every=2)", Checkpoints(last=3, every=2)),
        ("checkpoints(every=none)", Checkpoints()),
        ("checkpoints(q_masks=4)", Checkpoints(q_masks=4)),
        ("projections(models=2, seeds=4)", Projections(2, 4)),
    ],
)
def test_ensembles_are_written_freely(text, ensemble):
    assert parse_ensemble(text) == ensemble


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("dropout(models=5", UsageError, r"Cannot read the ensemble .*Write KIND\(option=value, ...\)"),
        ("", UsageError, "Cannot read the ensemble ''"),
        ("5", UsageError, "Cannot read the ensemble '5'"),
        ("dropout(5)", UsageError, r"Cannot read '5' in the ensemble .*Write option=value, as in dropout\(models=5"),
        ("dropout(models=)", UsageError, "Cannot read 'models='"),
        ("dropout(models=5, models=6)", UsageError, "gives models twice. Give it once"),
        ("dropuot(models=5)", UnknownNameError, "Unknown ensemble 'dropuot'. Did you mean 'dropout'"),
        ("dropout(model=5)", UnknownNameError, "Unknown option of ensemble dropout 'model'. Did you mean 'models'"),
        ("dropout(models=five)", OptionError, "ensemble dropout's models must be of type int; got 'five'"),
        ("dropout(models=0)", OptionError, "ensemble dropout's models must be between 1 and inf; got 0"),
        ("independent(models=10000000000000000000)", OptionError, r"\)' has more than 1000000 members. Ask for fewer."),
        ("dropout(models=1001, masks=1000)", OptionError, "has more than 1000000 members"),
        ("checkpoints(every=0)", OptionError, "ensemble checkpoints's every must be between 1 and inf; got 0"),
        ("dropout(scope=some)", OptionError, "ensemble dropout's scope must be one of all, q-only; got 'some'"),
    ],
)
def test_what_cannot_be_read_is_explained(text, error, message):
    with pytest.raises(error, match=message):
        parse_ensemble(text)


def test_sizes_are_always_shown_and_other_options_where_they_differ():
    assert format_ensemble("dropout", values(Dropout(5, 3))) == "dropout(models=5, masks=3)"
    assert format_ensemble("lora", values(Lora(rank=2))) == "lora(models=1, adapters=5, rank=2)"
    assert format_ensemble("checkpoints", values(Checkpoints(2, 3))) == "checkpoints(models=2, last=3)"
    assert format_ensemble("checkpoints", values(Checkpoints(every=4))) == "checkpoints(models=1, last=5, every=4)"
    whole = Checkpoints(span="whole")
    assert format_ensemble("checkpoints", values(whole)) == "checkpoints(models=1, last=5, span=whole)"
    masked = Checkpoints(span="whole", q_masks=4)
    assert format_ensemble("checkpoints", values(masked)) == "checkpoints(models=1, last=5, span=whole, q_masks=4)"
    assert format_ensemble("projections", values(Projections())) == "projections(models=1, seeds=5)"
    assert format_ensemble("newer", {"size": 3}) == "newer(size=3)"


def test_an_option_that_came_after_published_runs_is_recorded_only_where_it_is_not_at_its_default():
    """Else what is measured today would not be known for what was published."""
    assert recorded(Checkpoints(2, 3)) == {"models": 2, "last": 3, "every": None}
    assert recorded(Checkpoints(2, 3, span="whole")) == {"models": 2, "last": 3, "every": None, "span": "whole"}
    assert recorded(Checkpoints(2, 3, q_masks=4)) == {"models": 2, "last": 3, "every": None, "q_masks": 4}
    assert recorded(Dropout()) == values(Dropout())


@dataclass(frozen=True)
class Spy(MemberMethod):
    """Score every pair with the member's number, and remember the members."""

    uses_q = True

    def attribute(self, member, state):
        SEEN.append(member)
        return torch.full((member.task.n_queries, member.task.n_train), float(member.number))


SEEN: list = []


@pytest.fixture
def members(view):
    """Return the members that a method sees under an ensemble, and the scores."""

    def run(ensemble):
        SEEN.clear()
        scores = execute(Spy(), ensemble, view())
        return list(SEEN), scores

    return run


def same(a, b) -> bool:
    return all(torch.equal(a[k], b[k]) for k in a)


def test_member_i_really_is_model_i(members, view):
    seen, scores = members(Independent(3))
    assert [m.number for m in seen] == [0, 1, 2]
    assert all(same(m.parameters, view().train(i)) for i, m in enumerate(seen))
    assert not same(seen[0].parameters, seen[1].parameters)
    assert torch.equal(scores, torch.ones(40, 120))  # the mean of 0, 1 and 2


def test_dropout_members_are_the_pairs_of_model_and_mask(members, view):
    seen, _ = members(Dropout(2, 3))
    assert [m.number for m in seen] == list(range(6))
    assert all(same(m.parameters, view().train(m.number // 3)) for m in seen)
    streams = [m.masks.stream for m in seen]
    assert [s[3] for s in streams] == [0, 0, 0, 1, 1, 1]
    assert len(set(streams)) == 6
    assert not any(m.masks.per_sample for m in seen)
    seen, _ = members(Dropout(1, 2, mask="per-sample"))
    assert all(m.masks.per_sample for m in seen)


def test_q_only_has_one_member_a_model_and_all_its_masks_for_q(members):
    seen, _ = members(Dropout(2, 3, scope="q-only"))
    assert [m.number for m in seen] == [0, 1]
    for member in seen:
        assert member.masks is None
        assert [m.number for m in member.q_members] == [3 * member.number + i for i in range(3)]
        assert all(m.masks is not None and same(m.parameters, member.parameters) for m in member.q_members)


def test_lora_members_are_the_pairs_of_model_and_adapter(members, view):
    seen, _ = members(Lora(2, 2, rank=2, epochs=1))
    assert [m.number for m in seen] == [0, 1, 2, 3]
    for member in seen:
        expected = view().train_adapter(member.number // 2, member.number % 2, rank=2, epochs=1)[1]
        assert same(member.parameters, expected)
    assert len({m.parameters["0.parametrizations.weight.0.up"].sum().item() for m in seen}) == 4


@pytest.mark.parametrize(
    ("ensemble", "n", "epochs"),
    [
        (Checkpoints(last=5), 30, [30, 27, 24, 21, 18]),
        (Checkpoints(last=4), 50, [50, 44, 38, 32]),
        (Checkpoints(last=4), 5, [5, 4, 3, 2]),
        (Checkpoints(last=3, every=4), 9, [9, 5, 1]),
        (Checkpoints(last=1), 1, [1]),
        (Checkpoints(last=5, span="whole"), 30, [30, 24, 18, 12, 6]),
        (Checkpoints(last=4, span="whole"), 10, [10, 8, 5, 3]),
        (Checkpoints(last=8, span="whole"), 8, [8, 7, 6, 5, 4, 3, 2, 1]),
        (Checkpoints(last=1, span="whole"), 8, [8]),
    ],
)
def test_checkpoints_are_spread_over_the_second_half_or_as_asked(ensemble, n, epochs):
    assert ensemble.epochs(n) == epochs


@given(st.integers(1, 200), st.data())
def test_checkpoints_by_default_are_different_epochs_of_the_second_half_where_it_has_enough(n, data):
    epochs = Checkpoints(last=data.draw(st.integers(1, n))).epochs(n)
    assert epochs[0] == n
    assert all(a > b >= 1 for a, b in pairwise(epochs))
    assert len(epochs) > n / 2 or epochs[-1] >= n / 2


@given(st.integers(1, 200), st.data())
def test_checkpoints_of_the_whole_training_are_different_epochs_as_far_apart_as_they_can_be(n, data):
    last = data.draw(st.integers(1, n))
    epochs = Checkpoints(last=last, span="whole").epochs(n)
    assert (epochs[0], len(epochs)) == (n, last)
    assert epochs[-1] >= 1
    gaps = {a - b for a, b in pairwise([*epochs, 0])}
    assert min(gaps) >= 1
    assert max(gaps) - min(gaps) <= 1


def test_checkpoint_members_are_the_models_on_their_way(members, view):
    ensemble = Checkpoints(2, 3)
    seen, _ = members(ensemble)
    assert [m.number for m in seen] == list(range(6))
    assert [m.model_number for m in seen] == [0, 0, 0, 1, 1, 1]
    for member, epoch in zip(seen, 2 * [3, 2, 1], strict=True):
        assert same(member.parameters, view().train_run(member.model_number, [epoch])[epoch])
    assert all(same(seen[3 * i].parameters, view().train(i)) for i in range(2))
    assert [m.weight for m in seen] == pytest.approx([1.0] * 6)


def test_every_checkpoint_has_masks_of_its_own_for_its_q_factor(members, view):
    seen, _ = members(Checkpoints(2, 2, q_masks=3))
    assert all(member.masks is None and len(member.q_members) == 3 for member in seen)
    assert all(same(q.parameters, member.parameters) for member in seen for q in member.q_members)
    assert len({q.masks.stream for member in seen for q in member.q_members}) == 2 * 2 * 3
    assert not any(q.masks.per_sample for member in seen for q in member.q_members)
    plain = [member for member in Checkpoints(2, 2).members(view()) if member.q_members == (member,)]
    assert len(plain) == 4


def test_checkpoints_weigh_as_their_learning_rates(members, view, small, small_data):
    sloping = view(replace(small, recipe=replace(small.recipe, schedule="linear", batch_size=50)), small_data)
    weights = [m.weight for m in Checkpoints(1, 3).members(sloping)]
    assert sum(weights) == pytest.approx(3)
    # Three steps an epoch, nine in all: the rates of the middle steps are 8, 5 and 2 ninths of the highest.
    assert weights == pytest.approx([3 * rate / 15 for rate in (2, 5, 8)])


def test_tracin_is_the_sum_of_grad_dots_by_learning_rate(view, small, small_data):
    def task():
        return view(replace(small, recipe=replace(small.recipe, schedule="linear", batch_size=50)), small_data)

    ensemble = Checkpoints(1, 3)
    parts = torch.stack([GradDot().attribute(m, None) for m in ensemble.members(task())])
    rates = torch.tensor([task().learning_rate(epoch) for epoch in (3, 2, 1)])
    expected = (rates[:, None, None] * parts).sum(0) / rates.sum()
    torch.testing.assert_close(execute(TracIn(), ensemble, task()), expected, rtol=1e-4, atol=1e-6)
    assert torch.equal(execute(TracIn(), None, task()), execute(GradDot(), None, task()))


def test_too_few_epochs_for_the_checkpoints_is_declined_before_anything_is_trained(view):
    task = view()
    with pytest.raises(Declined, match=r"a model of small is trained for 3 epochs: too few for 5 checkpoints$"):
        execute(GradDot(), Checkpoints(), task)
    with pytest.raises(Declined, match="too few for 2 checkpoints, 4 epochs apart"):
        execute(GradDot(), Checkpoints(last=2, every=4), task)
    with pytest.raises(Declined, match="every and span=whole both say where checkpoints are taken: give one"):
        execute(GradDot(), Checkpoints(last=2, every=1, span="whole"), task)
    assert not task.meter.runs


def test_more_checkpoints_than_epochs_are_declined_without_counting_them(view, monkeypatch):
    monkeypatch.setattr(Checkpoints, "epochs", lambda *_: pytest.fail("listed"))
    with pytest.raises(Declined, match="too few for 1000000 checkpoints"):
        execute(GradDot(), Checkpoints(1, 10**6), view())


def test_checkpoints_cost_one_training_a_model_also_for_who_has_it(view):
    task, alone = view(), view()
    execute(GradDot(), Checkpoints(2, 3), task)
    execute(GradDot(), Independent(2), alone)
    assert sorted(task.meter.runs) == ["model-0-0", "model-0-1"]
    assert task.meter.train_s == alone.meter.train_s == task.meter.extra_train_s
    assert task.meter.storage_bytes == pytest.approx(3 * alone.meter.storage_bytes, rel=0.01)


def test_projections_differ_in_the_projection_alone(members, view):
    seen = list(Projections(2, 3).members(view()))
    assert [m.number for m in seen] == list(range(6))
    assert [m.model_number for m in seen] == [0, 0, 0, 1, 1, 1]
    assert all(same(m.parameters, view().train(m.model_number)) for m in seen)
    states = [Trak(16).fit(m) for m in seen]
    assert len({s.features.sum().item() for s in states}) == 6
    assert all(torch.equal(a.q, b.q) for a, b in pairwise(states[:3]))


def test_projections_are_charged_one_model(view):
    task = view()
    execute(Trak(16), Projections(1, 4), task)
    assert list(task.meter.models) == ["model-0-0"]
    assert task.meter.extra_train_s == 0


def test_projections_are_declined_for_a_method_that_does_not_project(view):
    task = view()
    with pytest.raises(Declined, match="projections need a method that projects at random"):
        execute(GradDot(), Projections(), task)
    assert not task.meter.models


def test_more_projections_come_closer_to_a_large_one(view):
    """The mean over members removes the projection's own noise, and nothing else."""
    large = execute(Trak(4096), None, view())

    def likeness(ensemble):
        scores = execute(Trak(64), ensemble, view())
        return torch.corrcoef(torch.stack([scores.flatten(), large.flatten()]))[0, 1]

    assert likeness(Projections(1, 8)) > likeness(Projections(1, 1)) + 0.02


@pytest.mark.parametrize("ensemble", [Independent(2), Dropout(2, 2), Lora(2, 2, epochs=1)])
def test_members_know_their_model(members, ensemble):
    seen, _ = members(ensemble)
    assert [m.model_number for m in seen] == [m.number * 2 // len(seen) for m in seen]


ALL = [
    Independent(3),
    Dropout(2, 2),
    Dropout(2, 2, mask="per-sample"),
    Dropout(2, 2, scope="q-only"),
    Lora(2, 2, rank=2, epochs=1),
    Checkpoints(2, 2),
    Checkpoints(2, 2, q_masks=2),
    Projections(2, 2),
]


@pytest.mark.parametrize("ensemble", ALL)
def test_members_are_made_when_they_are_asked_for(ensemble, view):
    task = view()
    next(ensemble.members(task))
    assert task.meter.models_trained == 1
    assert len(task.meter.adapters) == isinstance(ensemble, Lora)


class Held:
    """What a run holds of tensors that were noted, as long as somebody has them."""

    def __init__(self):
        self.models, self.rest, self.bytes_of_models = [], [], []

    def bytes_of(self, references):
        storages = [storage for r in references if (storage := r()) is not None]
        return sum({s.data_ptr(): s.nbytes() for s in storages}.values())

    def note(self, member):
        """Note a member that starts; nothing may be there of what members before it have returned."""
        tensors = (*member.parameters.values(), *member.statistics.values(), *member.model.parameters())
        self.models += [weakref.ref(s) for s in (*(t.untyped_storage() for t in tensors), *member.task.loaded())]
        self.bytes_of_models.append(self.bytes_of(self.models))
        assert self.bytes_of(self.rest) == 0
        assert _table.cache_info().currsize == 0

    def result(self):
        tensor = torch.zeros(40, 120)
        self.rest.append(weakref.ref(tensor.untyped_storage()))
        return tensor


@dataclass(frozen=True)
class Watch(MemberMethod):
    """Notes what is there when a member starts."""

    held: Held
    uses_q = uses_projection = True

    def fit(self, member):
        self.held.note(member)
        return self.held.result()

    def attribute(self, member, state):
        for one in member.q_members:
            one.targets(member.task.training)  # draws masks
        return self.held.result()


@pytest.fixture
def _no_collection():
    """Free only what nobody has: garbage that waits to be collected is memory."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("_no_collection")
@pytest.mark.parametrize("ensemble", ALL)
def test_memory_does_not_grow_with_the_ensemble(ensemble, view):
    forget_masks()
    held = Held()
    execute(Watch(held), ensemble, view())
    assert len(held.bytes_of_models) == ensemble.parts().members > 1
    assert len(set(held.bytes_of_models)) == 1


class Hiding(MemberMethod):
    def fit(self, member):
        self.kept = torch.zeros(3)

    def attribute(self, member, state):
        pytest.fail("went on")


@dataclass(frozen=True)
class Caching(MemberMethod):
    size: int = 2

    @cached_property
    def doubled(self):
        return 2 * self.size

    def fit(self, member):
        return torch.zeros(self.doubled)

    def attribute(self, member, state):
        return torch.rand(member.task.n_queries, member.task.n_train) * len(state)


def test_a_cached_property_may_stay_and_is_counted(view):
    method, task, alone = Caching(), view(), view()
    execute(method, Independent(2), task)
    assert vars(method) == {"size": 2, "doubled": 4}
    execute(Spy(), Independent(2), alone)
    assert task.meter.storage_bytes > alone.meter.storage_bytes


@dataclass(frozen=True)
class Deriving(MemberMethod):
    size: int = 2

    def __post_init__(self):
        object.__setattr__(self, "_doubled", 2 * self.size)

    def attribute(self, member, state):
        return torch.rand(member.task.n_queries, member.task.n_train) * self._doubled


def test_what_the_options_are_made_into_at_the_start_is_no_state(view):
    assert execute(Deriving(), Independent(2), view()).shape == (40, 120)


class HidingWhole(Method):
    fit, attribute = Hiding.fit, Hiding.attribute


@pytest.mark.parametrize("method", [Hiding(), HidingWhole()], ids=["per member", "on the whole task"])
def test_what_fit_leaves_on_the_method_itself_is_refused_as_it_would_not_be_counted(view, method):
    with pytest.raises(UsageError, match=r"keeps kept on itself\. Return from fit what attribute needs"):
        execute(method, None, view())


def test_q_only_is_declined_for_a_method_without_a_q_factor(view):
    with pytest.raises(Declined, match="scope=q-only needs a method with a Q factor"):
        execute(GradDot(), Dropout(scope="q-only"), view())
    with pytest.raises(Declined, match="q_masks needs a method with a Q factor"):
        execute(GradDot(), Checkpoints(1, 2, q_masks=2), view())


def test_dropout_is_declined_on_a_model_without_dropout_before_anything_is_trained(small, small_data, view):
    plain = replace(small, make_model=lambda: nn.Sequential(nn.Linear(64, 10)))
    task = view(plain, small_data)
    with pytest.raises(Declined, match="the model of small has no dropout layer"):
        execute(GradDot(), Dropout(), task)
    with pytest.raises(Declined, match="the model of small has no dropout layer"):
        execute(Trak(16), Checkpoints(1, 2, q_masks=2), task)
    assert not task.meter.models


def test_lora_is_declined_on_a_model_without_linear_layers():
    task = SimpleNamespace(name="small", has_linear_layers=False, computed_weight=None)
    assert Lora().supports(GradDot(), task) == "the model of small has no linear layer to adapt"


class Shifted(nn.Module):
    def forward(self, bias):
        return bias + 1


def with_parametrized_bias() -> nn.Module:
    layer = nn.Linear(8, 10)
    nn.utils.parametrize.register_parametrization(layer, "bias", Shifted())
    return nn.Sequential(nn.Linear(64, 8), nn.ReLU(), layer)


def with_older_spectral_norm() -> nn.Module:
    convolution = nn.utils.spectral_norm(nn.Conv2d(1, 2, 3))
    return nn.Sequential(nn.Unflatten(1, (1, 8, 8)), nn.ReLU(), convolution, nn.Flatten(), nn.Linear(72, 10))


@pytest.mark.parametrize(
    "make_model",
    [
        lambda: nn.Sequential(nn.Linear(64, 8), nn.ReLU(), nn.utils.parametrizations.weight_norm(nn.Linear(8, 10))),
        with_parametrized_bias,
        with_older_spectral_norm,
    ],
)
@pytest.mark.filterwarnings("ignore:.*spectral_norm:FutureWarning")
def test_lora_is_declined_where_a_weight_or_bias_is_made_of_other_parameters(view, small, small_data, make_model):
    mine = view(replace(small, make_model=make_model), small_data)
    with pytest.raises(Declined, match=r"a weight or bias of 2 in the model of small is made of other parameters"):
        execute(GradDot(), Lora(models=1, adapters=2), mine)
    assert not mine.meter.models


@pytest.mark.parametrize("ensemble", [Dropout(1, 4, scope="q-only"), Checkpoints(1, 1, q_masks=4)])
def test_q_only_averages_q_over_the_masks(view, ensemble):
    (member,) = ensemble.members(view())
    q = torch.stack([1 - m.right_probability(m.task.training) for m in member.q_members])
    torch.testing.assert_close(Trak(16).fit(member).q, q.mean(0))
    assert not torch.allclose(q[0], q[1])


@pytest.mark.parametrize(
    "ensemble",
    [
        Independent(3),
        Dropout(2, 2),
        Dropout(2, 3, scope="q-only"),
        Lora(1, 2, epochs=1),
        Checkpoints(1, 2),
        Checkpoints(1, 2, q_masks=3),
        Projections(2, 2),
    ],
)
def test_trak_multiplies_the_mean_kernel_by_the_mean_q(view, ensemble):
    scores = execute(Trak(16), ensemble, view())
    kernels, factors = [], []
    for member in ensemble.members(view()):
        state = Trak(16).fit(member)
        kernel, q = Trak(16).attribute(member, state)
        kernels.append(kernel)
        factors.append(q)
    expected = torch.stack(kernels).mean(0) * torch.stack(factors).mean(0)
    torch.testing.assert_close(scores, expected, rtol=1e-4, atol=1e-6)
    means_of_products = torch.stack([k * q for k, q in zip(kernels, factors, strict=True)]).mean(0)
    assert not torch.allclose(expected, means_of_products, rtol=1e-3)


def test_other_methods_average_scores(view):
    ensemble = Independent(3)
    parts = [GradDot().attribute(m, None) for m in ensemble.members(view())]
    torch.testing.assert_close(execute(GradDot(), ensemble, view()), torch.stack(parts).mean(0))


@pytest.mark.parametrize(("dtype", "value"), [(torch.float16, 60000.0), (torch.bfloat16, 1.0)])
def test_a_mean_does_not_saturate_in_the_format_of_the_members_scores(dtype, value):
    part = torch.full((4, 12), value, dtype=dtype)
    assert torch.equal(mean([part] * 300), torch.full((4, 12), value))
    assert torch.equal(part, torch.full((4, 12), value, dtype=dtype)), "nothing is added to what a member returned"
    assert mean([part.double()]).dtype == torch.float64


@pytest.mark.parametrize("parts", [[(4, 12), (1, 12)], [(4, 12), (12,)], [(1, 12), (4, 12)]])
def test_members_of_other_shapes_are_refused_though_torch_would_add_them(parts):
    with pytest.raises(ScoresError, match=r"A member's part has shapes \[\[.*the first member's \[\["):
        mean(torch.zeros(shape) for shape in parts)
    with pytest.raises(ScoresError, match="Return the same for each"):
        mean((torch.zeros(4, 12), torch.zeros(shape)) for shape in parts)


class Writing(MemberMethod):
    def attribute(self, member, state):
        next(iter(member.parameters.values())).zero_()
        return torch.rand(member.task.n_queries, member.task.n_train)


def test_parameters_that_a_method_writes_to_are_noticed(view):
    with pytest.raises(UsageError, match="The parameters of model 0 were changed in place while the method ran"):
        execute(Writing(), Dropout(1, 2), view())


class Odd(MemberMethod):
    def attribute(self, member, state):
        return torch.rand(member.task.n_queries, member.task.n_train)

    def combine(self, parts):
        return next(iter(parts)).to_sparse()


def test_sparse_scores_are_refused_by_the_name_of_who_returns_them(view):
    with pytest.raises(ScoresError, match=r"combine returns a tensor of layout torch\.sparse_coo\. Return it dense"):
        execute(Odd(), None, view())


def test_an_ensemble_is_charged_for_its_models_once(view):
    task = view()
    execute(GradDot(), Dropout(2, 5), task)
    assert sorted(task.meter.models) == ["model-0-0", "model-0-1"]
