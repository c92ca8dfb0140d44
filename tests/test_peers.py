"""Other libraries as rows: their definitions agree with ours where they should, and nothing of them leaks out."""

from __future__ import annotations

import json
import logging
import sys
import warnings
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from click.testing import CliRunner
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from tdabench import Declined, TaskData, eigenbases
from tdabench.baselines.ek_fac import EkFac
from tdabench.baselines.grad_dot import GradDot, TracIn
from tdabench.baselines.influence.explicit import ExplicitInfluence
from tdabench.baselines.peers import bench, metric
from tdabench.baselines.peers.bench import measure_all, summarise
from tdabench.baselines.peers.captum import CaptumTracIn
from tdabench.baselines.peers.contests import CONTESTS, LDS_JOBS, Contest, Entry, Measured, elsewhere, judge, ratios
from tdabench.baselines.peers.dattri import DattriEkFac, DattriGradDot, DattriTrak
from tdabench.baselines.peers.kronfluence import KronfluenceEkFac, KronfluenceIdentity
from tdabench.baselines.peers.library import model_of, quiet
from tdabench.baselines.peers.traker import TrakerTrak
from tdabench.baselines.trak import Trak
from tdabench.ensembles import Checkpoints, Dropout, Independent, Lora
from tdabench.errors import MissingGroundTruthError
from tdabench.execution import execute
from tdabench.jobs import Job, plan
from tdabench.lds import lds_per_query
from tdabench.records import parse_record
from tdabench.runner import run

PLANTED, QUERY = 17, 3
EXACT = [
    CaptumTracIn(),
    CaptumTracIn(hooks=False),
    DattriGradDot(),
    KronfluenceIdentity(),
]
# Damped, because the Fisher of a hundred examples has many small eigenvalues and TRAK's kernel is singular here.
DAMPED = [
    DattriTrak(256, damping=1e-3),
    TrakerTrak(256, damping=0.1),
    DattriEkFac(damping=0.1),
    KronfluenceEkFac(damping=None, fisher="empirical"),
]


def name_of(thing) -> str:
    return f"{type(thing).__name__}-{thing.hooks}" if isinstance(thing, CaptumTracIn) else type(thing).__name__


def need(method) -> None:
    if method.module is None:
        pytest.skip(f"{method.library} is not installed: pip install 'tdabench[peers]'")


def correlation(a, b) -> float:
    return float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]).double())[0, 1])


@pytest.mark.parametrize("method", [*EXACT, *DAMPED], ids=name_of)
def test_without_the_library_the_row_is_declined_and_names_the_extra(view, monkeypatch, method):
    monkeypatch.setattr(type(method), "module", None)
    with pytest.raises(Declined, match=rf"{method.library} is not installed: pip install 'tdabench\[peers\]'"):
        execute(method, None, view())


def with_statistics(small):
    def make_model() -> nn.Module:
        return nn.Sequential(nn.Linear(64, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 10))

    return replace(small, name="small-with-statistics", make_model=make_model)


@pytest.mark.parametrize("kind", ["plain", "mask", "adapter", "statistics"])
def test_the_module_that_a_library_gets_computes_what_the_member_does(view, small, kind):
    task = view(with_statistics(small)) if kind == "statistics" else view()
    if kind == "adapter":
        member = task.adapter_member(0, 0, number=0, rank=2, epochs=1)
    else:
        member = task.member(mask=(3, False) if kind == "mask" else None)
    model, batch = model_of(member), task.queries.all()
    torch.testing.assert_close(model(batch.inputs), member.logits(member.parameters, batch))
    assert [n for n, p in model.named_parameters() if p.requires_grad] == list(member.parameters)
    assert not [n for n, p in model_of(member, trainable=False).named_parameters() if p.requires_grad]
    if kind == "mask":
        assert not torch.equal(model(batch.inputs), model_of(task.member())(batch.inputs))


def test_masks_per_example_are_declined(view):
    with pytest.raises(Declined, match="mask=shared"):
        model_of(view().member(mask=(0, True)))


@pytest.mark.parametrize("method", EXACT, ids=name_of)
@pytest.mark.parametrize("ensemble", [None, Independent(2), Dropout(1, 2)], ids=["one", "independent", "dropout"])
def test_gradient_dot_products_of_every_library_are_ours(view, method, ensemble):
    need(method)
    expected = execute(GradDot(), ensemble, view())
    torch.testing.assert_close(execute(method, ensemble, view()), expected, rtol=1e-3, atol=1e-4)


def test_tracin_over_real_checkpoints_is_captum_s(view, small):
    """Captum adds up learning rate times dot product over checkpoints that it loads itself; ours is the mean member."""
    need(CaptumTracIn())
    recipe = replace(small.recipe, epochs=4, schedule="linear")
    task, members = view(replace(small, name="small-falling", recipe=recipe)), []

    class Kept(TracIn):
        def attribute(self, member, state):
            members.append(({n: p.clone() for n, p in model_of(member).state_dict().items()}, member.weight))
            return super().attribute(member, state)

    ours = execute(Kept(), Checkpoints(1, 3, every=1), task)
    assert len({weight for _, weight in members}) == 3, "each has a learning rate of its own"

    def load(model, checkpoint) -> float:
        model.load_state_dict(checkpoint[0])
        return checkpoint[1]

    with quiet():
        theirs = CaptumTracIn.module.TracInCP(
            model_of(task.member()),
            DataLoader(TensorDataset(task.training.inputs, task.training.labels), 50),
            checkpoints=members,
            checkpoints_load_func=load,
            loss_fn=lambda logits, labels: task.loss_function(logits, labels).sum(),
            test_loss_fn=lambda logits, labels: -task.target_function(logits, labels).sum(),
            sample_wise_grads_per_batch=True,
        ).influence((task.queries.inputs, task.queries.labels))
    assert correlation(ours, theirs) > 0.9999
    torch.testing.assert_close(3 * ours, theirs.detach(), rtol=1e-3, atol=1e-4)


def test_the_explicit_influence_function_is_captum_s(view, small):
    """Captum's Hessian is that of the summed loss, and its influence therefore ours."""
    need(CaptumTracIn())
    task = view(replace(small, name="small-one-layer", make_model=one_layer))
    method = ExplicitInfluence(damping=0.3)
    ours, member = execute(method, None, task), task.member()
    with quiet():
        theirs = CaptumTracIn.module.NaiveInfluenceFunction(
            model_of(member),
            DataLoader(TensorDataset(task.training.inputs, task.training.labels), 50),
            checkpoint=None,
            checkpoints_load_func=lambda *_: 1.0,
            loss_fn=SumOf(task.loss_function),
            test_loss_fn=SumOf(lambda logits, labels: -task.target_function(logits, labels)),
            sample_wise_grads_per_batch=True,
            projection_dim=650,
            hessian_reg=method.ridge(member) * task.n_train,
            hessian_inverse_tol=0.0,
        ).influence((task.queries.inputs, task.queries.labels))
    assert correlation(ours, theirs) > 0.9999
    torch.testing.assert_close(theirs / ours.abs().max(), ours / ours.abs().max(), rtol=1e-3, atol=1e-3)


def one_layer() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 10))


class SumOf(nn.Module):
    """A function of outputs and labels, summed, as captum wants a loss."""

    reduction = "sum"

    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, logits, labels):
        return self.function(logits, labels).sum()


@pytest.mark.parametrize("method", [CaptumTracIn(), DattriGradDot()], ids=name_of)
def test_gradient_dot_products_of_adapters(view, method):
    need(method)
    ensemble = Lora(1, 2, rank=2, epochs=1)
    expected = execute(GradDot(), ensemble, view())
    torch.testing.assert_close(execute(method, ensemble, view()), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("method", [KronfluenceIdentity(), KronfluenceEkFac(), DattriEkFac()], ids=name_of)
def test_libraries_that_work_by_layer_decline_adapters(view, method):
    need(method)
    with pytest.raises(Declined, match="not adapters"):
        execute(method, Lora(1, 1, rank=2, epochs=1), view())


class Scaled(nn.Module):
    """A module with a parameter of its own and a layer in it."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(10))
        self.layer = nn.Linear(64, 10)

    def forward(self, x):
        return self.scale * self.layer(x)


@pytest.mark.parametrize("method", [CaptumTracIn(), DattriGradDot()], ids=name_of)
@pytest.mark.parametrize("model", ["statistics", "nested", "resnet", "transformer"])
def test_parameters_of_every_kind_are_taken_once(view, small, network_task, method, model):
    """Convolutions, norms, embeddings and attention, too: captum takes some by hooks, others an example at a time."""
    need(method)
    made = {"nested": replace(small, name="small-nested", make_model=Scaled), "statistics": with_statistics(small)}
    task = view(made[model]) if model in made else network_task(model)
    torch.testing.assert_close(execute(method, None, task), execute(GradDot(), None, task), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("network", "least"), [("statistics", 0.9), ("resnet", 0.999), ("transformer", 0.99)])
def test_kronfluence_takes_linear_and_convolutional_layers_and_leaves_others_out(
    view, small, network_task, network, least
):
    need(KronfluenceIdentity())
    task = view(with_statistics(small)) if network == "statistics" else network_task(network)
    scores, whole = execute(KronfluenceIdentity(), None, task), execute(GradDot(), None, task)
    part = products_of_linear_and_convolutional_layers(task.member())
    torch.testing.assert_close(scores / whole.abs().max(), part / whole.abs().max(), rtol=1e-3, atol=1e-4)
    assert least < correlation(scores, whole) < 1 - 1e-6
    assert (scores - whole).abs().max() > 0.005 * whole.abs().max()


def linear_and_convolutional_layers(member) -> set[str]:
    """Return the names of the layers that kronfluence takes."""
    return {n for n, m in member.model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}


def products_of_linear_and_convolutional_layers(member) -> torch.Tensor:
    """Return the part of Grad-Dot's scores that comes from these layers, from whole gradients."""
    taken = linear_and_convolutional_layers(member)
    columns = [torch.full((p.numel(),), k.rpartition(".")[0] in taken) for k, p in member.parameters.items()]
    gradients = member.gradients(member.task.queries, "target"), member.gradients(member.task.training, "loss")
    queries, training = (g.dense()[:, torch.cat(columns)] for g in gradients)
    return -queries @ training.T


def test_dattri_s_projection_of_one_run_does_not_leak_into_the_next(view):
    need(DattriGradDot())
    exact = execute(GradDot(), None, view())
    projected = execute(DattriGradDot(projection=512), None, view())
    assert 0.95 < correlation(projected, exact) < 0.9999
    torch.testing.assert_close(execute(DattriGradDot(), None, view()), exact, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("method", [*EXACT, *DAMPED], ids=name_of)
def test_batches_and_repetition_change_nothing(view, method):
    need(method)
    whole, again = (execute(method, None, view()) for _ in range(2))
    assert torch.equal(whole, again)
    parts = execute(replace(method, batch_size=23), None, view())
    assert correlation(parts, whole) > 0.9999


def test_sampled_labels_are_drawn_from_the_run_s_seed(view):
    need(KronfluenceEkFac())
    method = KronfluenceEkFac(damping=None)
    before = torch.random.get_rng_state()
    first, again = (execute(method, None, view()) for _ in range(2))
    assert torch.equal(first, again)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert not torch.equal(first, execute(replace(method, fisher="empirical"), None, view()))


@pytest.mark.parametrize(("ridge", "least"), [(100.0, 0.99), (1.0, 0.96)])
def test_trak_of_both_libraries_and_ours_agree_at_a_large_projection_and_equal_damping(view, ridge, least):
    """The three scale their features differently, so equal damping is three numbers, from the gradients' norms."""
    need(DattriTrak())
    need(TrakerTrak())
    size, task = 2048, view()
    gradients = task.member().gradients(task.training, of="target")
    n_parameters = sum(p.numel() for p in task.member().parameters.values())
    total = float(gradients.norms().square().sum()) / n_parameters
    ours = execute(Trak(size, ridge=ridge), None, task)
    dattri = execute(DattriTrak(size, damping=ridge * total / size), None, task)
    traker = execute(TrakerTrak(size, damping=ridge * total), None, task)
    assert correlation(dattri, traker) > least
    assert correlation(dattri, ours) > least
    assert correlation(traker, ours) > least
    assert float((dattri * ours).sum() / (ours * ours).sum()) == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("ridge", [0.01, 1.0])
def test_trak_of_both_libraries_is_ours_where_nothing_is_projected(view, monkeypatch, ridge):
    """So what is left between the three at a small ridge is that each has a projection of its own."""
    need(DattriTrak())
    need(TrakerTrak())
    task, member = view(), view().member()
    monkeypatch.setattr(Trak, "_features", lambda _, m, examples: m.gradients(examples, of="target").dense())
    ours = execute(Trak(ridge=ridge), None, task)

    phi = member.gradients(task.training, of="target").dense()
    whole = {"proj_dim": phi.shape[1], "proj_type": "identity", "proj_max_batch_size": 32, "device": "cpu"}
    monkeypatch.setattr(DattriTrak, "_projector", lambda *_: whole)
    unprojected = TrakerTrak.module.projectors.NoOpProjector(proj_dim=phi.shape[1], device="cpu")
    monkeypatch.setattr(
        TrakerTrak, "module", SimpleNamespace(TRAKer=partial(TrakerTrak.module.TRAKer, projector=unprojected))
    )
    # Both divide a gradient by the square root of the number of parameters.
    damping = ridge * float(phi.square().sum(0).mean()) / phi.shape[1]
    for method in (DattriTrak(damping=damping), TrakerTrak(damping=damping)):
        assert correlation(execute(method, None, task), ours) > 0.9999


@pytest.mark.parametrize("method", [DattriTrak(64), TrakerTrak(64)], ids=name_of)
def test_trak_multiplies_means_as_the_libraries_do(view, method):
    need(method)
    parts = [method.attribute(m, method.fit(m)) for m in Independent(2).members(view())]
    kernel, q = ((a + b) / 2 for a, b in zip(*parts, strict=True))
    torch.testing.assert_close(execute(method, Independent(2), view()), kernel * q)
    assert not torch.allclose(parts[0][0], parts[1][0])
    expected_q = 1 - view().member().right_probability(view().training)
    torch.testing.assert_close(parts[0][1], expected_q, rtol=1e-4, atol=1e-5)


def test_ek_fac_of_kronfluence_is_ours_at_equal_damping_and_labels(view):
    need(KronfluenceEkFac())
    ours = execute(EkFac(damping=0.1, labels="true"), None, view())
    theirs = execute(KronfluenceEkFac(damping=None, fisher="empirical"), None, view())
    assert correlation(theirs, ours) > 0.999
    assert float((theirs * ours).sum() / (ours * ours).sum()) == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize(("network", "least"), [("resnet", 0.98), ("transformer", 0.95)])
def test_ek_fac_of_kronfluence_is_ours_on_the_linear_and_convolutional_layers_of_networks(network_task, network, least):
    need(KronfluenceEkFac())
    task = network_task(network)
    theirs = execute(KronfluenceEkFac(damping=None, fisher="empirical"), None, task)
    part = ek_fac_of_linear_and_convolutional_layers(task.member())
    torch.testing.assert_close(theirs / part.abs().max(), part / part.abs().max(), rtol=1e-3, atol=1e-4)
    whole = execute(EkFac(damping=0.1, labels="true"), None, task)
    assert least < correlation(theirs, whole) < 0.999, "it leaves the other layers out"


def ek_fac_of_linear_and_convolutional_layers(member) -> torch.Tensor:
    """Return the part of our EK-FAC's scores at damping 0.1 and true labels that comes from these layers."""
    taken = linear_and_convolutional_layers(member)
    queries = member.gradients(member.task.queries, "target")
    training = member.gradients(member.task.training, "loss")
    bases, parts = eigenbases(training), []
    for _, layers in queries.by_layer():
        solved = {k: bases[k].solve(v, 0.1 * float(bases[k].values.mean())) for k, v in layers.items()}
        parts.append(-training.times({k: v * (k in taken) for k, v in solved.items()}).T)
    return torch.cat(parts)


def test_dattri_s_ek_fac_rotates_by_the_transposed_eigenvectors(view):
    """What docs/agreement.md says is wrong with 0.3.0: a factor is diagonal in its eigenbasis, not in the one used."""
    need(DattriEkFac())
    task = view()
    basis = DattriEkFac().fit(task.member()).bases["0"][0]  # [65, 65]
    inputs = torch.cat([task.training.inputs, torch.ones(120, 1)], dim=1)
    factor = inputs.T @ inputs / 120

    def off_diagonal(matrix) -> float:
        return float((matrix - matrix.diag().diag()).norm() / matrix.norm())

    assert off_diagonal(basis.T @ factor @ basis) < 1e-4
    assert off_diagonal(basis @ factor @ basis.T) > 0.1


@pytest.mark.parametrize(("bias", "expected"), [(False, 0.77), (True, 0.69)])
def test_dattri_s_ek_fac_is_not_ek_fac_on_one_layer_at_equal_damping(view, small, bias, expected):
    """The figures of docs/agreement.md."""
    need(DattriEkFac())

    def make_model() -> nn.Module:
        return nn.Sequential(nn.Linear(64, 10, bias=bias))

    task = view(replace(small, name="small-layer", make_model=make_model))
    (basis,) = EkFac(labels="true").fit(task.member()).values()
    ours = execute(EkFac(damping=0.1, labels="true"), None, task)
    theirs = execute(DattriEkFac(damping=0.1 * float(basis.values.mean())), None, task)
    assert correlation(theirs, ours) == pytest.approx(expected, abs=0.03)


@pytest.fixture
def planted(small, small_data):
    """Return the small task's data with training example 17 replaced by a copy of query 3."""
    training, queries = small.load_data(None).training, small_data.queries
    training.inputs[PLANTED], training.labels[PLANTED] = queries.inputs[QUERY], queries.labels[QUERY]
    return TaskData(training, queries)


@pytest.mark.parametrize("method", [*EXACT, *DAMPED], ids=name_of)
def test_a_copy_of_the_query_in_the_training_set_ranks_first(view, small, planted, method):
    need(method)
    longer = replace(small, recipe=replace(small.recipe, epochs=10))
    assert execute(method, Independent(3), view(longer, planted))[QUERY].argmax() == PLANTED


@pytest.mark.parametrize("method", [*EXACT, *DAMPED], ids=name_of)
def test_state_is_counted_and_nothing_is_printed(view, capfd, method):
    need(method)
    task, level = view(), logging.getLogger().level
    handlers = list(logging.getLogger().handlers)
    execute(method, None, task)
    assert (task.meter.state_bytes > 10_000) == (method in DAMPED)
    assert task.meter.backward_examples >= 160
    assert capfd.readouterr() == ("", "")
    assert (logging.getLogger().level, logging.getLogger().handlers) == (level, handlers)


def test_warnings_go_to_the_log(caplog, capfd):
    with caplog.at_level(logging.INFO, "tdabench.peers"), quiet():
        warnings.warn("the loader is shuffled", stacklevel=1)
        sys.stderr.write("  10%|#         |\n")
    assert [r.message for r in caplog.records] == ["UserWarning: the loader is shuffled"]
    assert capfd.readouterr().err == ""


def test_the_record_names_the_library_s_version(small_reference, tmp_path):
    need(CaptumTracIn())
    folder, record = run(plan(Job(small_reference, "captum-tracin", {})), tmp_path)
    assert record.status == "ok", (folder / "log.txt").read_text()
    assert record.provenance.packages["captum"] == "0.9.0"
    _, other = run(plan(Job(small_reference, "grad-dot", {})), tmp_path)
    assert "captum" not in other.provenance.packages


OURS = Measured((1.0, 2.0, 1.0), (100, 90, 120), lds=0.3, low=0.2, high=0.4)
CONTEST = Contest("job", Entry("ours"), Entry("theirs"), 10)


@pytest.mark.parametrize(
    ("theirs", "met"),
    [
        (Measured((10.0, 20.0, 10.0), (100, 100, 100), lds=0.4), [True, True, True]),
        (Measured((10.0, 19.0, 9.0), (100, 100, 100), lds=0.4), [False, True, True]),
        (Measured((100.0, 19.0, 9.0), (100, 100, 100), lds=0.4), [False, True, True]),
        (Measured((10.0, 20.0, 10.0), (99, 99, 1000), lds=0.4), [True, False, True]),
        (Measured((10.0, 20.0, 10.0), (100, 100, 100), lds=0.41), [True, True, False]),
        (Measured(reason="not registered"), [None, None]),
    ],
)
def test_bars(theirs, met):
    assert [verdict.met for verdict in judge(CONTEST, OURS, theirs)] == met


def test_on_other_tasks_the_bar_on_time_is_another_where_there_is_one():
    theirs = Measured((3.0, 6.0, 3.0), (100, 100, 100))
    assert next((v.bar, v.met) for v in judge(elsewhere(CONTEST), OURS, theirs)) == ("at least 3", True)
    without = replace(CONTEST, times_faster=None)
    assert elsewhere(without) == without


def test_ratios_are_taken_within_a_repeat():
    assert ratios(OURS, Measured((10.0, 10.0, 30.0), (1, 1, 1))) == (10.0, 5.0, 30.0)


def test_a_method_that_is_not_there_is_said_to_be_so(small_reference, tmp_path):
    entry = Entry("nobody-s-method")
    found = measure_all(small_reference, [entry], 1, tmp_path, 60)
    assert summarise(found[entry]).reason == "not registered"


def test_costs_stand_where_a_task_has_no_ground_truth(tmp_path, monkeypatch):
    def missing(*_):
        raise MissingGroundTruthError("small has no ground truth")

    record = parse_record((Path(__file__).parent / "golden" / "record.json").read_text(), tmp_path)
    monkeypatch.setattr(bench, "evaluate_run", missing)
    measured = summarise([(tmp_path, record)])
    assert (measured.reason, measured.lds, measured.serve_s) == (None, None, (3.25,))
    assert [v.of for v in judge(CONTEST, measured, measured)] == ["time", "memory"]


@pytest.mark.parametrize(("said", "reason"), [("", "the process ended with code -9"), ("a\nb\n", "b")])
def test_a_metric_s_process_that_was_killed_is_a_reason(monkeypatch, said, reason):
    ended = SimpleNamespace(returncode=-9, stdout="", stderr=said)
    monkeypatch.setattr(bench.subprocess, "run", lambda *_, **__: ended)
    assert bench.time_metric(LDS_JOBS[0].ours, 1).reason == f"failed: {reason}"


@pytest.mark.parametrize("which", ["ours", "dattri"])
def test_the_evaluation_is_timed_at_the_sizes_asked_for(which, monkeypatch, capsys):
    if which == "dattri":
        pytest.importorskip("dattri")
    monkeypatch.setattr(sys, "argv", ["metric", which, "60", "7"])
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    metric.main()
    said = json.loads(capsys.readouterr().out)
    scores, masks, outputs = metric.case(60, 7)
    assert (scores.shape, masks.shape, outputs.shape) == ((7, 60), (100, 60), (100, 7))
    # dattri adds up in float32, so a near tie may fall the other way.
    assert said["lds"] == pytest.approx(lds_per_query(scores, masks, outputs)[0].mean(), abs=1e-3)
    assert said["serve_s"] > 0
    assert said["peak_bytes"] >= 0


def test_the_bench_measures_what_is_held_against_the_libraries_asked_for(monkeypatch):
    asked: list[Entry] = []

    def measured(task, entries, *_):
        asked.extend(entries)
        return {entry: [] for entry in entries}

    monkeypatch.setattr(bench, "measure_all", measured)
    done = CliRunner().invoke(bench.main, ["--task", "digits-mlp", "--against", "kronfluence", "--against", "traker"])
    assert {entry.method for entry in asked} == {
        "grad-dot", "kronfluence-identity", "trak", "traker-trak", "ek-fac", "kronfluence-ek-fac",
    }  # fmt: skip
    assert "dattri" not in done.output
    assert done.exit_code == 0, done.output  # nothing is judged that was not measured


def test_every_contest_is_against_a_library_of_the_bench():
    assert {bench.library_of(contest) for contest in (*CONTESTS, *LDS_JOBS)} == set(bench.LIBRARIES)
