from __future__ import annotations

from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tdabench import MemberMethod
from tdabench.baselines.grad_dot import GradDot
from tdabench.baselines.trak import Trak
from tdabench.ensembles import Dropout, Independent, Lora, format_ensemble, kind_of, parse_ensemble
from tdabench.errors import Declined, OptionError, UnknownNameError, UsageError
from tdabench.execution import execute
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
)


@given(ensembles)
def test_what_is_formatted_is_parsed_back(ensemble):
    assert parse_ensemble(format_ensemble(kind_of(ensemble), values(ensemble))) == ensemble


@given(ensembles)
def test_the_size_is_the_number_of_pairs(ensemble):
    assert ensemble.size == ensemble.models * getattr(ensemble, "masks", 1) * getattr(ensemble, "adapters", 1)


@pytest.mark.parametrize(
    ("text", "ensemble"),
    [
        ("independent", Independent()),
        ("independent()", Independent()),
        (" dropout ( models = 5 , masks=3, ) ", Dropout(5, 3)),
        ("dropout(mask=per-sample,scope=q-only)", Dropout(scope="q-only", mask="per-sample")),
        ("lora(rank=2)", Lora(rank=2)),
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
        ("dropout(scope=some)", OptionError, "ensemble dropout's scope must be one of all, q-only; got 'some'"),
    ],
)
def test_what_cannot_be_read_is_explained(text, error, message):
    with pytest.raises(error, match=message):
        parse_ensemble(text)


def test_sizes_are_always_shown_and_other_options_where_they_differ():
    assert format_ensemble("dropout", values(Dropout(5, 3))) == "dropout(models=5, masks=3)"
    assert format_ensemble("lora", values(Lora(rank=2))) == "lora(models=1, adapters=5, rank=2)"
    assert format_ensemble("newer", {"size": 3}) == "newer(size=3)"


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


def test_q_only_is_declined_for_a_method_without_a_q_factor(view):
    with pytest.raises(Declined, match="scope=q-only needs a method with a Q factor"):
        execute(GradDot(), Dropout(scope="q-only"), view())


def test_dropout_is_declined_on_a_model_without_dropout_before_anything_is_trained(small, small_data, view):
    plain = replace(small, make_model=lambda: nn.Sequential(nn.Linear(64, 10)))
    task = view(plain, small_data)
    with pytest.raises(Declined, match="the model of small has no dropout layer"):
        execute(GradDot(), Dropout(), task)
    assert not task.meter.models


def test_lora_is_declined_on_a_model_without_linear_layers():
    task = SimpleNamespace(name="small", has_linear_layers=False)
    assert Lora().supports(GradDot(), task) == "the model of small has no linear layer to adapt"


def test_q_only_averages_q_over_the_masks(view):
    ensemble = Dropout(1, 4, scope="q-only")
    (member,) = ensemble.members(view())
    q = torch.stack([1 - m.right_probability(m.task.training) for m in member.q_members])
    torch.testing.assert_close(Trak(16).fit(member).q, q.mean(0))
    assert not torch.allclose(q[0], q[1])


@pytest.mark.parametrize(
    "ensemble", [Independent(3), Dropout(2, 2), Dropout(2, 3, scope="q-only"), Lora(1, 2, epochs=1)]
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


def test_an_ensemble_is_charged_for_its_models_once(view):
    task = view()
    execute(GradDot(), Dropout(2, 5), task)
    assert sorted(task.meter.models) == ["model-0-0", "model-0-1"]
