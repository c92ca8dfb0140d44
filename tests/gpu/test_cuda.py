"""The trainer keeps a CUDA device busy, and what a run costs on one is measured.

Run on a machine with one: ``python -m pytest tests/gpu``.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import nn

from tdabench import planning, precision, trained_models, trainer
from tdabench.baselines.grad_dot import GradDot
from tdabench.ensembles import Checkpoints, Independent, Lora
from tdabench.execution import execute
from tdabench.jobs import Job, plan
from tdabench.memory import PeakMemory
from tdabench.meter import FIT, TRAIN, Meter
from tdabench.runner import run
from tdabench.timing import peak_of
from tdabench.trainer import target_outputs, train_replicas
from tdabench.view import TaskView

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device that torch can use"),
]

MB = 2**20
MODELS = ["mlp", "sequences", "images"]


# Training


def test_making_a_model_leaves_the_devices_generator_alone(setting):
    task, _ = setting("mlp")
    torch.cuda.manual_seed(3)
    before = torch.cuda.get_rng_state()
    task.initial_model("x")
    assert torch.equal(torch.cuda.get_rng_state(), before)


# The device is never waited for


@pytest.fixture
def watched(monkeypatch) -> Iterator[list[int]]:
    """Make every synchronisation an error, from when an epoch's order and masks are on the device to its last step."""
    with warnings.catch_warnings():  # torch says once a process that this is a prototype
        warnings.simplefilter("ignore")
        torch.cuda.set_sync_debug_mode("default")
    steps: list[int] = []
    unwatched = trainer._steps

    def watch(*args):
        for number, step in enumerate(unwatched(*args)):
            steps.append(number)
            torch.cuda.set_sync_debug_mode("error")
            yield step
        torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(trainer, "_steps", watch)
    yield steps
    torch.cuda.set_sync_debug_mode("default")


def test_the_watch_notices_a_synchronisation(setting, watched):
    task, data = setting("mlp")

    def waiting(logits, labels):
        assert logits.sum().item() < float("inf")
        return task.loss(logits, labels)

    with pytest.raises(RuntimeError, match="synchroniz"):
        train_replicas(replace(task, loss=waiting), data.to("cuda"), task.subset_masks()[:1], "x")


@pytest.mark.parametrize("asked", ["float32", "bfloat16"])
@pytest.mark.parametrize("replicas", [1, 3])
@pytest.mark.parametrize("name", MODELS)
def test_the_steps_of_an_epoch_wait_for_nothing(setting, watched, name, replicas, asked):
    task, data = setting(name)
    recipe = replace(task.recipe, precision=asked)
    there, masks = data.to("cuda"), task.subset_masks()[:replicas]
    train_replicas(task, there, masks, "x", recipe=recipe)
    per_epoch = -(-int(masks[0].sum()) // recipe.batch_size)
    assert watched == list(range(per_epoch)) * recipe.epochs


# bfloat16


@pytest.mark.parametrize("name", MODELS)
def test_bfloat16_is_computed_in_where_the_recipe_asks_for_it(setting, monkeypatch, name):
    if not precision.bfloat16_pays("cuda"):
        pytest.skip("this CUDA device does not multiply bfloat16 in hardware")
    task, data = setting(name)
    there, masks, make_model = data.to("cuda"), task.subset_masks()[:2], task.make_model
    kinds: set[torch.dtype] = set()

    def noting() -> nn.Module:
        model = make_model()
        for module in model.modules():
            if isinstance(module, nn.Linear):
                module.register_forward_hook(lambda _, __, out: kinds.add(out.dtype))
        return model

    task = replace(task, make_model=noting)
    outputs = {}
    for asked, kind in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        recipe = replace(task.recipe, precision=asked)
        kinds.clear()
        trained = train_replicas(task, there, masks, "x", recipe=recipe)
        assert kind in kinds
        assert (torch.bfloat16 in kinds) == (asked == "bfloat16")  # float32 is always there: a dry pass on the CPU
        assert all(p.dtype in (torch.float32, torch.int64) for p in trained.values())
        outputs[asked] = target_outputs(task, there, trained)
        assert outputs[asked].dtype == torch.float32
    assert precision.used("bfloat16", torch.device("cuda")) == "bfloat16"
    assert not torch.equal(outputs["float32"], outputs["bfloat16"])
    spread = outputs["float32"].std()
    assert (outputs["float32"] - outputs["bfloat16"]).abs().mean() < 0.3 * spread


# Scores and costs


def test_peak_device_bytes_are_recorded(small_reference, tmp_path):
    _, record = run(plan(Job(small_reference, "grad-dot", {}, device="cuda")), tmp_path)
    assert (record.status, record.reason) == ("ok", None)
    assert record.costs.peak_device_bytes is not None
    assert record.costs.reserved_device_bytes >= record.costs.peak_device_bytes > 120 * 64 * 4  # the training inputs
    assert record.costs.peak_host_bytes >= 0


@pytest.mark.usefixtures("cache")  # an empty one: the first run trains
def test_a_first_run_has_the_peak_of_the_next(small_reference, tmp_path):
    ensemble = "lora(models=2, adapters=2, rank=2)"
    planned = plan(Job(small_reference, "trak", {"projection": 16}, ensemble, device="cuda"))
    cold, warm = (run(planned, tmp_path / name)[1] for name in ("cold", "warm"))
    assert (cold.status, warm.status) == ("ok", "ok")
    assert cold.phases.keys() - warm.phases.keys() == {TRAIN}
    assert cold.costs.peak_device_bytes == pytest.approx(warm.costs.peak_device_bytes, rel=0.02)
    # The allocator reserves blocks of 2 and 20 MB.
    assert cold.costs.reserved_device_bytes == pytest.approx(warm.costs.reserved_device_bytes, abs=24 * MB)


def test_the_memory_of_training_is_not_that_of_fit(setting, tmp_path, monkeypatch):
    task, data = setting("mlp")
    train = trained_models.train_replicas

    def large(*args, **options):
        torch.empty(256 * MB, dtype=torch.uint8, device="cuda")
        return train(*args, **options)

    monkeypatch.setattr(trained_models, "train_replicas", large)
    view = TaskView(task, data.to("cuda"), tmp_path)
    view.warm_up()
    memory = PeakMemory("cuda")
    before = torch.cuda.memory_allocated(), torch.cuda.memory_reserved()
    view.meter = Meter("cuda", memory)
    with view.meter.phase(FIT):
        view.member(0)
    assert memory.allocated[TRAIN] >= 256 * MB
    assert memory.reserved[TRAIN] >= 256 * MB
    assert memory.allocated[FIT] < before[0] + 32 * MB
    assert memory.reserved[FIT] < before[1] + 64 * MB


def test_device_memory_does_not_grow_with_the_ensemble(setting, tmp_path):
    task, data = setting("mlp")
    wide = replace(task, name="cuda-wide", make_model=lambda: nn.Sequential(nn.Linear(64, 2**16), nn.Linear(2**16, 10)))
    wide, there = replace(wide, recipe=replace(wide.recipe, epochs=2, lr=1e-4)), data.to("cuda")
    model_bytes = 4 * 75 * 2**16  # 20 MB

    def peak(ensemble) -> int:
        view = TaskView(wide, there, tmp_path)
        view.warm_up()
        memory = PeakMemory("cuda")
        view.meter = Meter("cuda", memory)
        execute(GradDot(), ensemble, view)
        return max(peak for phase, peak in memory.allocated.items() if phase != TRAIN)

    for one, more in [
        (Independent(models=1), Independent(models=4)),
        (Lora(models=1, adapters=1, rank=2, epochs=1), Lora(models=2, adapters=3, rank=2, epochs=1)),
        (Checkpoints(models=1, last=1), Checkpoints(models=2, last=2)),
    ]:
        assert peak(more) < peak(one) + model_bytes / 2


def test_the_peak_of_a_call_is_that_of_the_device():
    torch.cuda.init()  # before it, torch has no marks to start anew; elsewhere the data is on the device already
    torch.cuda.empty_cache()  # a kept block that is a little larger would be given whole
    assert peak_of(lambda: torch.empty(64 * MB, dtype=torch.uint8, device="cuda"), torch.device("cuda")) == 64 * MB


def test_estimating_runs_leaves_nothing_on_the_device(small_reference):
    before = torch.cuda.memory_reserved()
    total = planning.estimate_jobs([Job(small_reference, "grad-dot", {}, device="cuda")])
    assert (total.runs, total.unknown) == (1, 0)
    assert torch.cuda.memory_reserved() == before
    assert planning._bench.cache_info().currsize == 0
