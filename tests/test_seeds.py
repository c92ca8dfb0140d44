from __future__ import annotations

import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from tdabench.registry import TASKS, find_task
from tdabench.registry import names as names_of
from tdabench.seeds import derive_seed, generator

names = st.lists(st.text(max_size=5) | st.integers(), max_size=4).map(tuple)


@given(names, names)
def test_different_names_give_different_seeds(a, b):
    assume(a != b)
    assert derive_seed(*a) != derive_seed(*b)


@given(names)
def test_seeds_fit_into_63_bits(name):
    assert 0 <= derive_seed(*name) < 2**63


def test_a_seed_is_the_same_on_every_machine_and_in_every_version():
    assert derive_seed() == 456294878752975271
    assert derive_seed("digits-mlp", "ground-truth", 0) == 4930964453829574919


def test_neither_boundaries_nor_types_of_the_words_are_lost():
    different = [("a", "b"), ("ab",), ("a,b",), ('a","b',), (1,), ("1",), (1, 0), (10,), ("a", "b", "")]
    assert len({derive_seed(*name) for name in different}) == len(different)


def test_generators_of_one_name_draw_the_same_and_touch_no_global_state():
    before = torch.get_rng_state()
    a, b, c = (torch.rand(5, generator=generator("x", i)) for i in (1, 1, 2))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    assert torch.equal(torch.get_rng_state(), before)


def test_streams_of_ground_truth_and_attribution_are_disjoint():
    truth = {derive_seed("t", "ground-truth", s, "order", e) for s in range(50) for e in range(50)}
    attribution = {
        derive_seed("t", "attribution", s, m, "order", e) for s in range(10) for m in range(10) for e in range(50)
    }
    assert not truth & attribution


def streams_of(task):
    yield (task.name, "query-split")
    yield from ((task.name, "subset", subset) for subset in range(task.plan.n_subsets))
    trainings = [("ground-truth", seed) for seed in range(task.plan.n_seeds)]
    trainings += [("attribution", seed, model) for seed in range(5) for model in range(20)]
    for training in trainings:
        yield (task.name, *training, "init")
        yield from ((task.name, *training, "order", epoch) for epoch in range(task.recipe.epochs))


def test_torch_tells_all_streams_of_the_shipped_tasks_apart():
    """Its generator uses 32 bits of a seed, so two streams of other names could be the same."""
    streams = [stream for name in names_of(TASKS) for stream in streams_of(find_task(name))]
    assert len({derive_seed(*stream) % 2**32 for stream in streams}) == len(streams) > 20_000
