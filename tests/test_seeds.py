from __future__ import annotations

import torch
from hypothesis import assume, given
from hypothesis import strategies as st

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
