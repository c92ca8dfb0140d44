from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from made_up import Choosing, padded_lookup
from torch import nn

from tdabench import bank, grouping, precision
from tdabench.calibration import Bench
from tdabench.errors import UsageError
from tdabench.grouping import candidates, choose_group, threads
from tdabench.trainer import group_size

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def with_subsets(task, n: int):
    return replace(task, plan=replace(task.plan, n_subsets=n))


@pytest.fixture
def big(small):
    """Return a task whose model fills the cache alone: 24 MB with its gradients and momentum."""
    return replace(small, make_model=lambda: nn.Linear(64, 1 << 15))


@pytest.fixture
def timed(monkeypatch):
    """Return a function that puts seconds, or an error, in place of timing each size; and the sizes that were timed."""

    def put(seconds: dict[int, float | Exception]) -> list[int]:
        asked: list[int] = []

        def look_up(task, data, size) -> float:
            asked.append(size)
            if isinstance(seconds[size], Exception):
                raise seconds[size]
            return seconds[size]

        monkeypatch.setattr(grouping, "candidates", lambda *_: sorted(seconds))
        monkeypatch.setattr(grouping, "_seconds_per_replica", look_up)
        return asked

    return put


@given(st.integers(1, 200), st.sampled_from([CPU, CUDA]))
def test_no_more_replicas_than_subsets_are_tried_and_always_one_alone(small, n_subsets, device):
    sizes = candidates(with_subsets(small, n_subsets), device)
    assert sizes == sorted(set(sizes))
    assert (sizes[0], sizes[-1] <= n_subsets) == (1, True)


def test_the_cache_bounds_a_processor_s_groups_and_not_an_accelerator_s(small, big):
    fits = group_size(dict(small.make_model().named_parameters()))
    assert candidates(with_subsets(small, 100), CPU) == [1, fits]
    assert candidates(with_subsets(small, 100), CUDA) == [1, 8, 32, 64]
    assert candidates(with_subsets(big, 100), CPU) == [1]
    assert candidates(with_subsets(big, 20), CUDA) == [1, 8, 20]


def recurrent() -> nn.Module:
    return nn.Sequential(nn.LSTM(4, 4, batch_first=True))


@pytest.mark.parametrize("device", [CPU, CUDA])
def test_replicas_that_are_passed_one_by_one_are_not_grouped(small, monkeypatch, device):
    monkeypatch.setattr(precision, "bfloat16_pays", lambda kind: True)
    assert candidates(replace(small, recipe=replace(small.recipe, precision="bfloat16")), device) == [1]
    assert candidates(replace(small, make_model=recurrent), device) == [1]
    monkeypatch.setattr(precision, "bfloat16_pays", lambda kind: False)
    assert len(candidates(replace(small, recipe=replace(small.recipe, precision="bfloat16")), device)) > 1


def test_one_candidate_is_not_timed(big, small_data, monkeypatch):
    monkeypatch.setattr(grouping, "_seconds_per_replica", lambda *_: pytest.fail("timed"))
    chosen = choose_group(big, small_data)
    assert (chosen.size, chosen.seconds) == (1, {})


@pytest.mark.parametrize("fastest", [1, 8, 32])
def test_the_fastest_is_chosen(small, small_data, timed, fastest):
    seconds = {size: 0.1 if size == fastest else 0.2 for size in (1, 8, 32)}
    asked = timed(seconds)
    chosen = choose_group(small, small_data)
    assert (chosen.size, chosen.seconds, asked) == (fastest, seconds, [1, 8, 32])


@pytest.mark.parametrize("words", ["too large", "CUDA error: CUBLAS_STATUS_ALLOC_FAILED"])
def test_a_group_that_does_not_fit_into_memory_is_not_chosen(small, small_data, timed, words):
    kind = torch.OutOfMemoryError if words == "too large" else RuntimeError
    asked = timed({1: 0.3, 8: 0.2, 64: kind(words)})
    chosen = choose_group(small, small_data)
    assert (chosen.size, chosen.seconds, asked) == (8, {1: 0.3, 8: 0.2}, [1, 8, 64])


def test_a_model_that_does_not_fit_at_all_is_one_clear_error(small, small_data, timed):
    timed({size: torch.OutOfMemoryError("too large") for size in (1, 8)})
    with pytest.raises(UsageError, match="small does not fit into the memory of cpu, not even 1 replica at a time"):
        choose_group(small, small_data)


@pytest.mark.parametrize("seconds", [{1: RuntimeError("broken")}, {1: 0.1, 8: ValueError("broken")}])
def test_another_error_is_not_taken_for_a_lack_of_memory(small, small_data, timed, seconds):
    timed(seconds | {32: 0.1})
    with pytest.raises((RuntimeError, ValueError), match="broken"):
        choose_group(small, small_data)


class Filling(nn.Module):
    """Writes to a tensor of its own, which ``vmap`` cannot."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(32, 5), nn.Linear(10, 10)

    def forward(self, x):
        h = torch.zeros(len(x), 2, 5)
        for i in range(2):
            h[:, i] = self.first(x[:, 32 * i : 32 * i + 32])
        return self.last(h.tanh().flatten(1))


@pytest.mark.parametrize(
    "make_model",
    [
        Filling,
        Choosing,
        lambda: nn.Sequential(nn.Linear(64, 8), nn.BatchNorm1d(8, momentum=None), nn.Linear(8, 10)),
        lambda: nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(64, 10))),
    ],
)
def test_replicas_of_what_vmap_has_no_rule_for_are_trained_one_at_a_time(small, small_data, make_model):
    task = replace(small, make_model=make_model)
    chosen = choose_group(task, small_data)
    assert (chosen.size, chosen.seconds.keys()) == (1, {1})
    assert bank.group_for(task, small_data) == 1
    assert Bench(task, small_data).bank_step_s > 0


class Padded(nn.Module):
    """Padding that ``vmap`` spares in the first replica alone; in all others its vector is trained."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.last = nn.Parameter(torch.randn(4, 6)), nn.Linear(6, 10)

    def forward(self, x):
        return self.last(padded_lookup((x > 0.5).long(), self.tokens).tanh().mean(1))


def test_a_group_whose_replicas_train_otherwise_than_alone_is_not_chosen(small, small_data, monkeypatch):
    monkeypatch.setattr(grouping, "_seconds_per_replica", lambda task, data, size: 1 / size)
    assert choose_group(small, small_data).size == 8
    assert choose_group(replace(small, make_model=Padded), small_data) == grouping.Grouping(1, {1: 1.0})


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_gradients_that_are_rounding_do_not_part_a_group(small, small_data, monkeypatch, optimizer):
    """A bias before batch normalisation changes nothing."""
    monkeypatch.setattr(grouping, "_seconds_per_replica", lambda task, data, size: 1 / size)
    recipe = replace(small.recipe, optimizer=optimizer, beta2=0.99)
    task = replace(
        small,
        make_model=lambda: nn.Sequential(nn.Linear(64, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 10)),
        recipe=recipe,
    )
    assert choose_group(task, small_data).size == 8


def test_each_candidate_is_really_timed_on_one_thread(small, small_data, monkeypatch):
    seen = []
    real = grouping.fit_stacked

    def fit(program, stacked, training, masks, *rest):
        seen.append((torch.get_num_threads(), len(masks)))
        return real(program, stacked, training, masks, *rest)

    monkeypatch.setattr(grouping, "fit_stacked", fit)
    with threads(2):
        chosen = choose_group(small, small_data)
        assert torch.get_num_threads() == 2
    assert seen[:6] == [(1, 1)] * 3 + [(1, 8)] * 3, "once to warm up, twice to measure"
    assert set(seen[6:]) <= {(1, 1), (1, 8)}, "to see whether a group trains as one alone"
    assert chosen.seconds.keys() == {1, 8}
    assert all(s > 0 for s in chosen.seconds.values())
    assert chosen.size == min(chosen.seconds, key=chosen.seconds.get)


def test_the_number_of_threads_is_given_back_also_after_an_error():
    before = torch.get_num_threads()
    with threads(3):
        assert torch.get_num_threads() == 3
        with pytest.raises(KeyError, match="2"), threads(2):
            {}[torch.get_num_threads()]
        assert torch.get_num_threads() == 3
    assert torch.get_num_threads() == before
