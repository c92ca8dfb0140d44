from __future__ import annotations

import pytest
import torch

from tdabench.meter import Meter, Trained


def test_checkpoints_are_not_counted_again(view):
    task = view()
    member = task.member()
    known = {p.untyped_storage().data_ptr() for p in member.parameters.values()}
    stored = task.meter.storage_bytes
    task.meter.keep({"own": torch.zeros(4)} | {str(i): p for i, p in enumerate(member.parameters.values())}, known)
    assert task.meter.storage_bytes == stored + 4 * 4 + len("own") + 4


def test_times_and_bytes_of_models_and_adapters_add_up():
    meter = Meter()
    meter.models |= {"a": Trained(2.0, 10, 2.0), "b": Trained(3.0, 10, 3.0)}
    meter.adapters["c"] = Trained(0.5, 1, 0.5)
    meter.keep(torch.zeros(25))
    assert meter.train_s == 5.5
    assert meter.extra_train_s == 3.5
    assert meter.storage_bytes == 121


def test_a_run_with_checkpoints_is_charged_also_to_who_has_its_model():
    meter = Meter()
    meter.runs |= {"a": Trained(2.0, 30, 2.0), "b": Trained(3.0, 30, 3.0)}
    assert (meter.train_s, meter.extra_train_s, meter.storage_bytes, meter.models_trained) == (5.0, 5.0, 60, 2)
    meter.models["a"] = Trained(2.1, 10, 2.1)  # the end of the first run
    assert (meter.train_s, meter.extra_train_s, meter.storage_bytes, meter.models_trained) == (5.0, 5.0, 60, 2)
    meter.models["c"] = Trained(4.0, 10, 4.0)
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
