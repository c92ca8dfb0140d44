"""What another device computes is what the CPU computes.

Without a CUDA device a pretended one takes its place, which finds what forgets where its tensors are.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tdabench import kronecker, pieces, snapshots
from tdabench.baselines.ek_fac import EkFac
from tdabench.baselines.grad_dot import GradDot
from tdabench.baselines.influence import lissa
from tdabench.baselines.trak import Trak
from tdabench.calibration import Bench
from tdabench.ensembles import Checkpoints, Dropout, Independent, Lora, Projections
from tdabench.execution import execute
from tdabench.grouping import candidates, choose_group
from tdabench.options import make
from tdabench.registry import METHODS, find_method, names
from tdabench.retraining import retrain, rounding_difference
from tdabench.trainer import target_outputs, train_replicas
from tdabench.view import TaskView
from tdabench.work import Parts

# Other kernels add in another order, and a few steps of training amplify that.
OUTPUTS = {"rtol": 1e-2, "atol": 1e-2}
MODELS = ["mlp", "sequences", "images"]


# Training


@pytest.mark.parametrize("replicas", [1, 3])
@pytest.mark.parametrize("name", MODELS)
def test_training_there_agrees_with_the_cpu(setting, place, name, replicas):
    task, data = setting(name)
    masks, there = task.subset_masks()[:replicas], data.to(place)
    here, found = (train_replicas(task, d, masks, "ground-truth", 0) for d in (data, there))
    assert all(p.device.type == place.type for p in found.values())
    outputs = target_outputs(task, there, found)
    assert (outputs.device.type, outputs.dtype) == (place.type, torch.float32)
    assert outputs.shape == (replicas, task.n_queries)
    torch.testing.assert_close(outputs.cpu(), target_outputs(task, data, here), **OUTPUTS)
    for key, value in here.items():
        torch.testing.assert_close(found[key].cpu(), value, rtol=2e-2, atol=5e-3)


@pytest.mark.parametrize("name", MODELS)
def test_replicas_there_do_not_depend_on_who_trains_beside(setting, place, name):
    task, data = setting(name)
    masks, there = task.subset_masks()[:3], data.to(place)
    together = target_outputs(task, there, train_replicas(task, there, masks, "ground-truth", 0))
    apart = [target_outputs(task, there, train_replicas(task, there, m, "ground-truth", 0)) for m in masks.split(1)]
    torch.testing.assert_close(together, torch.cat(apart), **OUTPUTS)


@pytest.mark.parametrize("name", MODELS)
def test_a_training_that_goes_on_from_a_snapshot_ends_where_it_would_have(setting, place, tmp_path, monkeypatch, name):
    monkeypatch.setattr(snapshots, "_LEAST_BETWEEN", 0)
    task, data = setting(name)
    masks, there = task.subset_masks()[:1], data.to(place)
    alone = train_replicas(task, there, masks, "x")
    kept = snapshots.Snapshots(tmp_path / "s", "x", every_s=0.0)
    train_replicas(task, there, masks, "x", snapshots=kept)
    assert kept.last()[0] == task.recipe.epochs - 1
    ended = train_replicas(task, there, masks, "x", snapshots=snapshots.Snapshots(tmp_path / "s", "x"))
    for key, value in alone.items():
        torch.testing.assert_close(ended[key], value, rtol=2e-2, atol=5e-3)


def test_masks_of_a_bank_may_be_on_the_device(setting, place, tmp_path):
    task, data = setting("mlp")
    view = TaskView(task, data.to(place), tmp_path)
    masks = task.subset_masks()[:4]
    there, here = (view.outputs(view.retrain(m, "x"), view.queries) for m in (masks.to(place), masks))
    assert torch.equal(there, here), "the same models"


def test_the_same_streams_start_from_the_same_values_on_both(setting, place):
    task, data = setting("images")
    masks, still = task.subset_masks()[:2], replace(task.recipe, lr=0.0, weight_decay=0.0)
    here, there = (train_replicas(task, d, masks, "ground-truth", 0, recipe=still) for d in (data, data.to(place)))
    for name, _ in task.make_model().named_parameters():
        assert torch.equal(here[name], there[name].cpu())


# Ground truth and plans


def test_outputs_of_retrained_replicas_come_back_to_the_cpu(setting, place):
    task, data = setting("images")
    here, there = (retrain(task, d, 0, range(3), 2) for d in (data, data.to(place)))
    assert there.device.type == "cpu"
    torch.testing.assert_close(there, here, **OUTPUTS)


def test_how_much_training_amplifies_rounding_is_found_there(setting, place):
    task, data = setting("mlp")
    assert 0 < rounding_difference(task, data.to(place), 1) < 0.1


def test_replicas_are_grouped_and_plans_are_measured_there(setting, place):
    task, data = setting("mlp")
    there = data.to(place)
    assert choose_group(task, there).size in candidates(task, place)
    bench, same = Bench(task, there), Bench(task, data)
    bench.view.warm_up()
    rates = bench.rates(Parts(1, 1), curved=True)
    assert min(rates.forward_s, rates.gradients_s, rates.curved_s, bench.training().step_s) > 0
    assert bench.file_bytes() == same.file_bytes()
    found, expected = (b.sizes(Parts(1, 1)) for b in (bench, same))
    assert replace(found, blocks=expected.blocks, last=expected.last) == expected


# Scores


@pytest.mark.parametrize(
    "ensemble",
    [
        Independent(models=2),
        Dropout(models=1, masks=2),
        Lora(models=1, adapters=2, rank=2, epochs=1),
        Checkpoints(models=1, last=2),
        Projections(models=1, seeds=2),
    ],
    ids=["independent", "dropout", "lora", "checkpoints", "projections"],
)
@pytest.mark.parametrize("name", MODELS)
def test_scores_there_agree_with_the_cpu(setting, place, tmp_path, name, ensemble):
    task, data = setting(name)
    # One store: the same checkpoints, and adapters, trained on the CPU and loaded on either device.
    here, there = (TaskView(task, d, tmp_path / "models") for d in (data, data.to(place)))
    expected, found = (execute(Trak(projection=16), ensemble, view) for view in (here, there))
    assert all(m.device.type == place.type for m in there.train(0).values())
    assert (found.device.type, found.dtype) == ("cpu", torch.float32)
    scale = expected.abs().max()
    torch.testing.assert_close(found / scale, expected / scale, rtol=1e-2, atol=1e-3)


OURS = [name for name in names(METHODS) if find_method(name).library is None]
# What iterates or retrains does it a few times.
OPTIONS = {
    "astra": {"steps": 2, "batch": 8},
    "datamodels": {"subsets": 4, "per_seed": 2},
    "empirical-influence": {"subsets": 4, "per_seed": 2},
    "if-arnoldi": {"iterations": 4, "rank": 3},
    "if-cg": {"iterations": 3},
    "if-explicit": {"layers": "last"},
    "if-lissa": {"depth": 2, "batch": 6},
}


@pytest.mark.parametrize("method", OURS)
@pytest.mark.parametrize("name", MODELS)
def test_every_method_agrees_with_the_cpu(setting, place, tmp_path, monkeypatch, name, method):
    monkeypatch.setattr(lissa, "_POWER_STEPS", 2)
    task, data = setting(name)
    here, there = (TaskView(task, d, tmp_path / "models") for d in (data, data.to(place)))
    instance = make(find_method(method), method, OPTIONS.get(method, {}))
    reason = instance.supports(here)
    if reason is not None:
        pytest.skip(f"declined: {reason}")
    check_alike(instance, here, there)


def check_alike(method, here, there) -> None:
    """Hold a method's scores on two devices against each other.

    Inverses amplify how the two round: the scores are the same up to a part that no ranking notices.
    """
    expected, found = (execute(method, None, view).double() for view in (here, there))
    assert torch.corrcoef(torch.stack([expected.flatten(), found.flatten()]))[0, 1] > 0.99
    assert found.std().item() == pytest.approx(expected.std().item(), rel=0.05)


@pytest.mark.parametrize("method", [GradDot(), EkFac()], ids=["grad-dot", "ek-fac"])
@pytest.mark.parametrize("name", ["sequences", "images"])
def test_products_in_bfloat16_agree_with_the_cpu(setting, place, tmp_path, monkeypatch, name, method):
    monkeypatch.setattr(TaskView, "trained_in", "bfloat16")
    monkeypatch.setattr(pieces, "LONG", 1)
    task, data = setting(name)
    here, there = (TaskView(task, d, tmp_path / "models") for d in (data, data.to(place)))
    check_alike(method, here, there)


def test_eigenvectors_that_a_device_s_library_does_not_find_are_the_cpu_s(place, monkeypatch):
    rows = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    moment, eigh = rows.T @ rows, torch.linalg.eigh

    def on_the_cpu_alone(matrix):
        if matrix.device.type != "cpu":
            raise torch.linalg.LinAlgError("the algorithm failed to converge")
        return eigh(matrix)

    monkeypatch.setattr(torch.linalg, "eigh", on_the_cpu_alone)
    found = kronecker._eigenvectors(moment.to(place))
    assert (found.device.type, found.dtype) == (place.type, torch.float32)
    assert torch.equal(found.cpu(), kronecker._eigenvectors(moment))
