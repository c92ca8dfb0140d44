"""What fit returned is counted by walking it, wherever in it an array or a number is."""

from __future__ import annotations

from array import array as python_array
from collections import UserDict, deque
from dataclasses import dataclass, field
from functools import cached_property, partial
from threading import Lock
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tdabench.errors import UsageError
from tdabench.storage import state_bytes


@dataclass(frozen=True)
class Inner:
    array: Any
    scale: float = 1.0


@dataclass(frozen=True)
class Outer:
    inner: Inner
    more: Any


class Plain:
    def __init__(self, **values: Any) -> None:
        self.__dict__.update(values)

    def method(self) -> None:
        """Hold nothing."""


def size(state: Any) -> int:
    return state_bytes(state, set())


def test_nothing_takes_no_bytes_and_a_number_eight():
    assert [size(x) for x in (None, {}, [], (), "", Plain(), torch.float32, torch.device("cpu"))] == [0] * 8
    assert [size(x) for x in (1, 1.5, True, np.float32(1), np.bool_(1))] == [8] * 5
    assert size(torch.zeros(1000).tolist()) == 8000
    assert size({1: [2.0, None], "two": {3}}) == 8 + 8 + 3 + 8


def test_a_tensor_counts_its_bytes_and_text_its_characters():
    assert size(torch.zeros(10, 3)) == 120
    assert size(np.zeros(10, dtype=np.float16)) == 20
    assert size("abc") == 3


def test_every_storage_counts_once():
    tensor, array = torch.zeros(10), np.zeros(10)
    assert size([tensor, tensor, {"": tensor}]) == 40
    assert size([array, array]) == 80
    assert size([tensor, tensor.numpy()]) == 40


def test_a_view_keeps_its_whole_storage_alive():
    tensor, array = torch.zeros(10, 10), np.zeros((10, 10))
    assert size(tensor[0]) == 400
    assert size([tensor[0], tensor[1], tensor.T]) == 400
    assert size(array[0]) == 800
    assert size([array[0], array[1:3].T]) == 800


def test_an_expanded_tensor_counts_what_it_stores():
    assert size(torch.zeros(10).expand(500, 10)) == 40


def test_containers_and_objects_are_walked_to_any_depth():
    state = Outer(Inner(torch.zeros(5)), {"a": [np.zeros(2), (torch.zeros(3),)], "bc": Plain(x=torch.zeros(7), n=3)})
    assert size(state) == 20 + 8 + 1 + 16 + 12 + 2 + 28 + 8


def test_a_module_counts_its_weights_although_it_can_be_called():
    assert size(nn.Linear(3, 4)) >= 64
    assert size([nn.Linear(3, 4).weight]) == 48
    assert size(Net(4)) >= 48, "a dataclass, too"


def test_functions_classes_and_methods_count_nothing():
    assert size([len, lambda x: x, Plain, Plain(x=torch.zeros(3)).method, np]) == 0


@dataclass(frozen=True, slots=True)
class SlottedFields:
    array: Any


class Slotted:
    __slots__ = ("__hidden", "shown", "unset")

    def __init__(self, **values: Any) -> None:
        self.shown, self.__hidden = values.values()


class Extended(Slotted):
    """A class with slots below and a dict of its own."""


class Labelled(list):
    """A list with attributes."""


def test_every_place_that_can_hold_an_array_is_looked_into():
    array = torch.zeros(5)  # 20 bytes
    labelled = Labelled([array])
    labelled.note = "abc"
    extended = Extended(a=array, b=1)
    extended.more = torch.zeros(2)
    assert size(deque([array])) == 20
    assert size(MappingProxyType({"a": array})) == 21
    assert size(UserDict({"a": array})) == 21, "found once, as its attribute"
    assert size({"a": array}.values()) == 20
    assert size(SlottedFields(array)) == 20
    assert size(Slotted(a=array, b=torch.zeros(1))) == 24
    assert size(extended) == 20 + 8 + 8
    assert size(labelled) == 23
    assert size(partial(max, array, key=torch.zeros(1))) == 20 + 3 + 4
    assert size(np.array([array, None], dtype=object)) == 20
    assert size(bytearray(7)) == 7
    assert size(python_array("d", [1, 2])) == 16


@dataclass
class Solved:
    """Fields, and what is found from them."""

    array: Any
    later: Any = field(init=False)

    def __post_init__(self) -> None:
        self.inverse = torch.zeros(6)

    @cached_property
    def root(self) -> Any:
        return torch.zeros(7)


@dataclass
class Named(dict):
    array: Any


@dataclass(eq=False)
class Net(nn.Module):
    width: int

    def __post_init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(self.width, 3, bias=False)


def test_a_dataclass_counts_more_than_its_fields():
    array = torch.zeros(5)
    solved = Solved(array)
    assert size(solved) == 20 + 24
    assert solved.root.numel() == 7
    assert size(solved) == 20 + 24 + 28
    named = Named(array)
    named["a"] = torch.zeros(2)
    assert size(named) == 20 + 1 + 8


@pytest.mark.filterwarnings("ignore:Sparse")
def test_a_sparse_tensor_counts_its_indices_and_values():
    dense = torch.eye(4)
    assert size(dense.to_sparse()) == 2 * 4 * 8 + 4 * 4
    ends, places = torch.arange(3), torch.arange(2)
    for layout, values in [
        (torch.sparse_csr, torch.ones(2)),
        (torch.sparse_csc, torch.ones(2)),
        (torch.sparse_bsr, torch.ones(2, 2, 2)),
        (torch.sparse_bsc, torch.ones(2, 2, 2)),
    ]:
        sparse = torch.sparse_compressed_tensor(ends, places, values, layout=layout)
        assert size(sparse) == 3 * 8 + 2 * 8 + values.numel() * 4
    coo = dense.to_sparse()
    assert size([coo, coo._values()]) == size(coo), "each storage once"


@pytest.mark.parametrize("state", [object(), iter([torch.zeros(3)]), torch.Generator(), Lock()])
def test_what_cannot_be_looked_into_is_named_and_not_taken_for_nothing(state):
    name = type(state).__name__
    with pytest.raises(UsageError, match=rf"Cannot count the storage of a {name}\. Return tensors, arrays,"):
        size({"a": [state]})


def test_circles_end():
    state: dict[str, Any] = {"a": torch.zeros(3)}
    state["b"] = state
    assert size(state) == 14
