"""What a CUDA device computes is what the CPU computes, and the trainer keeps the device busy.

Run on a machine with one: ``python -m pytest tests/gpu``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import nn

from tdabench import planning, precision, snapshots, trainer
from tdabench import view as view_module
from tdabench.baselines.grad_dot import GradDot
from tdabench.baselines.trak import Trak
from tdabench.ensembles import Checkpoints, Dropout, Independent, Lora, Projections
from tdabench.examples import Examples
from tdabench.execution import execute
from tdabench.jobs import Job, plan
from tdabench.memory import PeakMemory
from tdabench.meter import FIT, TRAIN, Meter
from tdabench.precision import exact_float32
from tdabench.registry import METHODS, find_method, names
from tdabench.runner import run
from tdabench.seeds import generator
from tdabench.targets import MEAN_LOG_PROBABILITY, token_cross_entropy
from tdabench.task import Recipe, Task, TaskData
from tdabench.tasks.networks import resnet9
from tdabench.tasks.transformers import music_transformer
from tdabench.timing import peak_of
from tdabench.trainer import target_outputs, train_replicas
from tdabench.view import TaskView

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device that torch can use"),
]

MB = 2**20
N_TRAIN, N_QUERIES, VOCABULARY, LENGTH = 48, 12, 11, 16
SGD = Recipe(lr=0.02, momentum=0.9, batch_size=8, epochs=2, weight_decay=1e-3, schedule="linear")
ADAMW = replace(SGD, lr=1e-3, optimizer="adamw", beta2=0.99, warmup=0.2)
# Other kernels add in another order, and a few steps of training amplify that.
OUTPUTS = {"rtol": 1e-2, "atol": 1e-2}
MODELS = ["mlp", "sequences", "images"]


@pytest.fixture(autouse=True)
def _exact_products() -> Iterator[None]:
    """Multiply float32 as a run and a build do, so that the CPU can be compared with."""
    with exact_float32():
        yield


def sequences() -> TaskData:
    tokens = torch.randint(VOCABULARY, (N_TRAIN + N_QUERIES, LENGTH + 1), generator=generator("cuda", "sequences"))
    inputs, labels = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
    return TaskData(
        Examples(inputs[:N_TRAIN], labels[:N_TRAIN], "train"), Examples(inputs[N_TRAIN:], labels[N_TRAIN:], "queries")
    )


def images() -> TaskData:
    random = generator("cuda", "images")
    labels = torch.randint(3, (N_TRAIN + N_QUERIES,), generator=random)
    pixels = torch.randn(N_TRAIN + N_QUERIES, 3, 16, 16, generator=random) + labels.view(-1, 1, 1, 1)
    return TaskData(
        Examples(pixels[:N_TRAIN], labels[:N_TRAIN], "train"), Examples(pixels[N_TRAIN:], labels[N_TRAIN:], "queries")
    )


def music_model() -> nn.Module:
    return music_transformer(VOCABULARY, LENGTH, layers=2, width=16, heads=2, p=0.1)


def image_model() -> nn.Module:
    return resnet9(3, width=8, strides=(2, 2, 2), p=0.1)


@pytest.fixture
def setting(small, small_data):
    """Return a factory of small tasks with their data on the CPU: an MLP, a transformer, a model with statistics."""

    def make(name: str) -> tuple[Task, TaskData]:
        if name == "mlp":
            return small, small_data
        task = replace(small, name=f"cuda-{name}", n_train=N_TRAIN, n_queries=N_QUERIES, recipe=SGD)
        if name == "images":
            return replace(task, make_model=image_model), images()
        task = replace(task, make_model=music_model, loss=token_cross_entropy, target=MEAN_LOG_PROBABILITY)
        return replace(task, recipe=ADAMW), sequences()

    return make


# Training


@pytest.mark.parametrize("replicas", [1, 3])
@pytest.mark.parametrize("name", MODELS)
def test_training_on_cuda_agrees_with_the_cpu(setting, name, replicas):
    task, data = setting(name)
    masks, there = task.subset_masks()[:replicas], data.to("cuda")
    here, found = (train_replicas(task, d, masks, "ground-truth", 0) for d in (data, there))
    assert all(p.device.type == "cuda" for p in found.values())
    outputs = target_outputs(task, there, found)
    assert (outputs.device.type, outputs.dtype, outputs.shape) == ("cuda", torch.float32, (replicas, task.n_queries))
    torch.testing.assert_close(outputs.cpu(), target_outputs(task, data, here), **OUTPUTS)
    for key, value in here.items():
        torch.testing.assert_close(found[key].cpu(), value, rtol=2e-2, atol=5e-3)


@pytest.mark.parametrize("name", MODELS)
def test_replicas_on_cuda_do_not_depend_on_who_trains_beside(setting, name):
    task, data = setting(name)
    masks, there = task.subset_masks()[:3], data.to("cuda")
    together = target_outputs(task, there, train_replicas(task, there, masks, "ground-truth", 0))
    apart = [target_outputs(task, there, train_replicas(task, there, m, "ground-truth", 0)) for m in masks.split(1)]
    torch.testing.assert_close(together, torch.cat(apart), **OUTPUTS)


@pytest.mark.parametrize("name", MODELS)
def test_a_training_that_goes_on_from_a_snapshot_ends_where_it_would_have(setting, tmp_path, monkeypatch, name):
    monkeypatch.setattr(snapshots, "_LEAST_BETWEEN", 0)
    task, data = setting(name)
    masks, there = task.subset_masks()[:1], data.to("cuda")
    alone = train_replicas(task, there, masks, "x")
    kept = snapshots.Snapshots(tmp_path / "s", "x", every_s=0.0)
    train_replicas(task, there, masks, "x", snapshots=kept)
    assert kept.last()[0] == task.recipe.epochs - 1
    ended = train_replicas(task, there, masks, "x", snapshots=snapshots.Snapshots(tmp_path / "s", "x"))
    for key, value in alone.items():
        torch.testing.assert_close(ended[key], value, rtol=2e-2, atol=5e-3)


def test_masks_of_a_bank_may_be_on_the_device(setting, tmp_path):
    task, data = setting("mlp")
    view = TaskView(task, data.to("cuda"), tmp_path)
    masks = task.subset_masks()[:4]
    there, here = (view.outputs(view.retrain(m, "x"), view.queries) for m in (masks.cuda(), masks))
    assert torch.equal(there, here), "the same models"


def test_making_a_model_leaves_the_devices_generator_alone(setting):
    task, _ = setting("mlp")
    torch.cuda.manual_seed(3)
    before = torch.cuda.get_rng_state()
    task.initial_model("x")
    assert torch.equal(torch.cuda.get_rng_state(), before)


def test_the_same_streams_start_from_the_same_values_on_both(setting):
    task, data = setting("images")
    masks, still = task.subset_masks()[:2], replace(task.recipe, lr=0.0, weight_decay=0.0)
    here, there = (train_replicas(task, d, masks, "ground-truth", 0, recipe=still) for d in (data, data.to("cuda")))
    for name, _ in task.make_model().named_parameters():
        assert torch.equal(here[name], there[name].cpu())


# The device is never waited for


@pytest.fixture
def watched(monkeypatch) -> Iterator[list[int]]:
    """Make every synchronisation an error, from when an epoch's order and masks are on the device to its last step."""
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
    if not precision.has_bfloat16("cuda"):
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


@pytest.mark.parametrize("method", [GradDot(), Trak(projection=16)], ids=["grad-dot", "trak"])
@pytest.mark.parametrize(
    "ensemble",
    [Independent(models=2), Dropout(models=1, masks=2), Lora(models=1, adapters=2, rank=2, epochs=1)],
    ids=["independent", "dropout", "lora"],
)
@pytest.mark.parametrize("name", MODELS)
def test_scores_on_cuda_agree_with_the_cpu(setting, tmp_path, name, method, ensemble):
    task, data = setting(name)
    # One store: the same checkpoints, and adapters, trained on the CPU and loaded on either device.
    here, there = (TaskView(task, d, tmp_path / "models") for d in (data, data.to("cuda")))
    expected = execute(method, ensemble, here)
    found = execute(method, ensemble, there)
    assert all(m.device.type == "cuda" for m in there.train(0).values())
    assert (found.device.type, found.dtype) == ("cpu", torch.float32)
    scale = expected.abs().max()
    torch.testing.assert_close(found / scale, expected / scale, rtol=1e-2, atol=1e-3)


OURS = [name for name in names(METHODS) if not hasattr(find_method(name), "library")]


@pytest.mark.parametrize("method", OURS)
@pytest.mark.parametrize("name", MODELS)
def test_every_method_agrees_with_the_cpu(setting, tmp_path, name, method):
    task, data = setting(name)
    here, there = (TaskView(task, d, tmp_path / "models") for d in (data, data.to("cuda")))
    instance = find_method(method)()
    reason = instance.supports(here)
    if reason is not None:
        pytest.skip(f"declined: {reason}")
    expected, found = (execute(instance, None, view).double() for view in (here, there))
    # Inverses amplify how the two round: the scores are the same up to a part that no ranking notices.
    joint = torch.stack([expected.flatten(), found.flatten()])
    assert torch.corrcoef(joint)[0, 1] > 0.99
    assert found.std() == pytest.approx(expected.std(), rel=0.05)


@pytest.mark.parametrize("kind", [Checkpoints(models=1, last=2), Projections(models=1, seeds=2)])
@pytest.mark.parametrize("name", MODELS)
def test_checkpoints_and_projections_agree_with_the_cpu(setting, tmp_path, name, kind):
    task, data = setting(name)
    here, there = (TaskView(task, d, tmp_path / "models") for d in (data, data.to("cuda")))
    expected, found = (execute(Trak(projection=16), kind, view) for view in (here, there))
    scale = expected.abs().max()
    torch.testing.assert_close(found / scale, expected / scale, rtol=1e-2, atol=1e-3)


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
    train = view_module.train_replicas

    def large(*args, **options):
        torch.empty(256 * MB, dtype=torch.uint8, device="cuda")
        return train(*args, **options)

    monkeypatch.setattr(view_module, "train_replicas", large)
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
    assert peak_of(lambda: torch.empty(64 * MB, dtype=torch.uint8, device="cuda"), torch.device("cuda")) == 64 * MB


def test_estimating_runs_leaves_nothing_on_the_device(small_reference):
    before = torch.cuda.memory_reserved()
    total = planning.estimate_jobs([Job(small_reference, "grad-dot", {}, device="cuda")])
    assert (total.runs, total.unknown) == (1, 0)
    assert torch.cuda.memory_reserved() == before
    assert planning._bench.cache_info().currsize == 0
