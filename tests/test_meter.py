from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tdabench.meter import Meter, Trained, state_bytes


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


def test_nothing_and_numbers_take_no_bytes():
    assert [size(x) for x in (None, 1, 1.5, True, {}, [], (), "")] == [0] * 8


def test_a_tensor_counts_its_bytes_and_text_its_characters():
    assert size(torch.zeros(10, 3)) == 120
    assert size(np.zeros(10, dtype=np.float16)) == 20
    assert size("abc") == 3


def test_every_storage_counts_once():
    tensor, array = torch.zeros(10), np.zeros(10)
    assert size([tensor, tensor, {1: tensor}]) == 40
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
    assert size(state) == 20 + 1 + 16 + 12 + 2 + 28


def test_a_module_counts_its_weights_although_it_can_be_called():
    assert size(nn.Linear(3, 4)) >= 64
    assert size([nn.Linear(3, 4).weight]) == 48


def test_functions_classes_and_methods_count_nothing():
    assert size([len, lambda x: x, Plain, Plain(x=torch.zeros(3)).method, np]) == 0


def test_circles_end():
    state: dict[str, Any] = {"a": torch.zeros(3)}
    state["b"] = state
    assert size(state) == 14


def test_checkpoints_are_not_counted_again(view):
    task = view()
    member = task.member()
    known = {p.untyped_storage().data_ptr() for p in member.parameters.values()}
    stored = task.meter.storage_bytes
    task.meter.keep({"own": torch.zeros(4)} | {str(i): p for i, p in enumerate(member.parameters.values())}, known)
    assert task.meter.storage_bytes == stored + 4 * 4 + len("own") + 4


def test_times_and_bytes_of_models_and_adapters_add_up():
    meter = Meter()
    meter.models |= {"a": Trained(2.0, 10), "b": Trained(3.0, 10)}
    meter.adapters["c"] = Trained(0.5, 1)
    meter.keep(torch.zeros(25))
    assert meter.train_s == 5.5
    assert meter.extra_train_s == 3.5
    assert meter.storage_bytes == 121


def test_a_run_with_checkpoints_is_charged_also_to_who_has_its_model():
    meter = Meter()
    meter.runs |= {"a": Trained(2.0, 30), "b": Trained(3.0, 30)}
    assert (meter.train_s, meter.extra_train_s, meter.storage_bytes, meter.models_trained) == (5.0, 5.0, 60, 2)
    meter.models["a"] = Trained(2.1, 10)  # the end of the first run
    assert (meter.train_s, meter.extra_train_s, meter.storage_bytes, meter.models_trained) == (5.0, 5.0, 60, 2)
    meter.models["c"] = Trained(4.0, 10)
    assert (meter.train_s, meter.extra_train_s, meter.models_trained) == (9.0, 5.0, 3)


def test_passes_are_counted_and_phases_announced():
    seen = []
    meter = Meter(on_phase=seen.append)
    with meter.phase("fit"):
        meter.count(forward=3)
        meter.count(forward=1, backward=2)
        with meter.phase("train"):
            pass
    assert (meter.forward_examples, meter.backward_examples) == (4, 2)
    assert seen == ["fit", "train"]
    assert set(meter.stopwatch.phases) >= {"fit", "train"}


def test_a_run_that_trains_nothing_costs_nothing():
    meter = Meter()
    assert (meter.train_s, meter.extra_train_s, meter.storage_bytes) == (0, 0, 0)


@pytest.mark.parametrize("device", ["cpu", torch.device("cpu")])
def test_devices_are_named_either_way(device):
    meter = Meter(device)
    with meter.phase("fit"):
        pass
    assert set(meter.stopwatch.phases) == {"fit", "harness"}
