from __future__ import annotations

import time
from dataclasses import replace

import pytest
import torch
from torch import nn

from tdabench import MemberMethod, Method, TaskData, precision, trained_models
from tdabench.ensembles import Checkpoints, Independent, Lora
from tdabench.errors import StorageError, UsageError
from tdabench.execution import execute
from tdabench.member import Member
from tdabench.memory import PeakMemory, reset_peak
from tdabench.meter import FIT, TRAIN, Meter
from tdabench.model_store import ModelStore
from tdabench.trainer import train_replicas


@pytest.fixture
def trainings(monkeypatch):
    """Count real trainings."""
    calls = []

    def counted(*args, **kwargs):
        calls.append(args)
        return really_fit(*args, **kwargs)

    really_train = trained_models.train_replicas
    really_fit = trained_models.fit_stacked
    monkeypatch.setattr(trained_models, "fit_stacked", counted)
    monkeypatch.setattr(trained_models, "train_replicas", lambda *a, **k: calls.append(a) or really_train(*a, **k))
    return calls


def same(a, b) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_a_model_is_trained_once_and_charged_to_every_run(view, trainings):
    first, second = view(), view()
    assert same(first.train(0), second.train(0))
    assert len(trainings) == 1
    assert first.meter.models == second.meter.models
    assert second.meter.train_s > 0
    assert second.meter.storage_bytes >= 4 * (65 * 32 + 33 * 10)


def test_a_model_asked_for_twice_in_a_run_is_charged_once(view):
    task = view()
    task.train(0)
    once = task.meter.train_s
    task.train(0)
    task.member(0)
    assert task.meter.train_s == once
    task.train(1)
    assert task.meter.train_s > once
    assert task.meter.extra_train_s == pytest.approx(task.meter.train_s - once)


def test_training_is_the_phase_train_and_loading_is_not(view):
    fresh, cached = view(), view()
    fresh.train(0)
    cached.train(0)
    assert "train" in fresh.meter.stopwatch.phases
    assert "train" not in cached.meter.stopwatch.phases


@pytest.fixture
def loads(monkeypatch):
    """List the checkpoints that are loaded."""
    names = []
    load = ModelStore.load

    def noted(store, name):
        found = load(store, name)
        if found is not None:
            names.append(name)
        return found

    monkeypatch.setattr(ModelStore, "load", noted)
    return names


ASKED = {
    "a model": lambda task: task.train(0),
    "checkpoints": lambda task: task.train_run(0, [1, 3]),
    "an adapter": lambda task: task.train_adapter(0, 0, rank=2, epochs=1),
    "a bank": lambda task: task.retrain(torch.eye(task.n_train, dtype=torch.bool)[:4] == 0, "bank"),
}


@pytest.mark.parametrize("what", ASKED)
def test_what_was_just_trained_is_loaded_like_what_was_there(what, view, loads):
    ASKED[what](view())
    cold = list(loads)
    ASKED[what](view())
    assert cold == loads[len(cold) :] != []


@pytest.mark.parametrize("ensemble", [Independent(2), Lora(2, 2, rank=2, epochs=1), Checkpoints(2, 2)])
def test_a_first_run_has_the_phases_of_the_next_and_training(view, ensemble):
    seen = []
    for _ in range(2):
        seen.append([])
        execute(KeepsEverything(), ensemble, view(meter=Meter(on_phase=seen[-1].append)))
    cold, warm = seen
    assert cold.count(TRAIN) == (6 if isinstance(ensemble, Lora) else 2)
    assert [phase for phase in cold if phase != TRAIN] == warm
    assert warm.count(FIT) == ensemble.size


def test_the_memory_of_training_is_not_that_of_fit(view, monkeypatch):
    if not reset_peak():
        pytest.skip("the kernel does not let this process reset its high-water mark")
    train = trained_models.train_replicas
    monkeypatch.setattr(
        trained_models, "train_replicas", lambda *a, **k: torch.ones(2**24) is not None and train(*a, **k)
    )
    memory = PeakMemory()
    task = view(meter=Meter(memory=memory))
    with task.meter.phase(FIT):
        task.member(0)
    assert memory.peaks["train"] > 60 * 2**20
    assert memory.peaks["fit"] < 30 * 2**20


def test_a_model_that_was_forgotten_is_loaded_again_and_charged_once(view, loads):
    task = view()
    loaded, charged = task.train(0), dict(task.meter.models)
    assert {s.data_ptr() for s in task.loaded()} == {t.data_ptr() for t in loaded.values()}
    first = {k: v.clone() for k, v in loaded.items()}
    del loaded
    task.forget(0)
    assert not list(task.loaded())
    assert same(task.train(0), first)
    assert len(loads) == 2
    assert task.meter.models == charged


def test_charging_a_run_loads_nothing(view, loads):
    task, other = view(), view()
    task.charge_run(0, [1, 3])
    assert not loads
    other.train_run(0, [1, 3])
    assert task.meter.runs == other.meter.runs


def test_a_checkpoint_that_vanishes_during_the_run_is_one_clear_error(view, tmp_path):
    task = view()
    task.charge_run(0, [1, 3])
    (tmp_path / "models" / "model-0-0-epoch-1.safetensors").unlink()
    with pytest.raises(StorageError, match=r"model-0-0-epoch-1 in .* is gone or damaged\. Leave the folder alone"):
        task.checkpoint_member(0, 1, number=0)


def test_adapters_share_the_tensors_of_their_model(view):
    task = view()
    mine = [task.adapter_member(0, adapter, number=adapter, rank=2, epochs=1) for adapter in range(3)]
    originals = {m.model[0].parametrizations.weight.original.data_ptr() for m in mine}
    assert originals == {task.train(0)["0.weight"].data_ptr()}


class KeepsTheModel(Method):
    """Returns a model that is charged as a file, and as many bytes of its own."""

    def fit(self, task):
        return [*task.train(0).values(), torch.zeros(25)]

    def attribute(self, task, state):
        return torch.ones(task.n_queries, task.n_train)


def test_a_model_that_fit_returns_is_stored_once(view):
    task = view()
    execute(KeepsTheModel(), None, task)
    assert task.meter.state_bytes == 100


class KeepsCheckpoints(Method):
    """Keeps what the view does not: checkpoints, and views of an adapter's tensors."""

    def fit(self, task):
        adapter = task.train_adapter(0, 0, rank=2, epochs=1)[1]
        return [task.train_run(0, [1, 3])[1]["0.weight"], *(p.flatten() for p in adapter.values()), torch.zeros(25)]

    def attribute(self, task, state):
        return torch.ones(task.n_queries, task.n_train)


def test_checkpoints_and_adapters_that_fit_returns_are_stored_once(view):
    task = view()
    execute(KeepsCheckpoints(), None, task)
    assert task.meter.state_bytes == 100


def test_what_nobody_holds_is_forgotten(view):
    """Another tensor may come to lie where it was."""
    task = view()
    kept = task.train_run(0, [1, 2])
    del kept[2]
    assert {s.data_ptr() for s in task.loaded()} == {t.data_ptr() for t in kept[1].values()}


class KeepsItsModule(MemberMethod):
    """Keeps the module that is called, and with it what is under an adapter."""

    def fit(self, member):
        return list(member.model.state_dict().values())

    def attribute(self, member, state):
        return torch.ones(member.task.n_queries, member.task.n_train)


def test_the_model_under_an_adapter_is_stored_once(view):
    task = view()
    execute(KeepsItsModule(), Lora(1, 2, rank=2, epochs=1), task)
    assert task.meter.state_bytes == 2 * 4 * 2 * (64 + 32 + 32 + 10)  # the zero adapters that are in the two modules


@pytest.mark.parametrize(
    "damage", [lambda whole: whole[: len(whole) // 2], lambda whole: whole[:-400] + bytes(400)], ids=["cut", "zeros"]
)
def test_a_damaged_checkpoint_is_trained_again(view, trainings, tmp_path, damage):
    expected = view().train(0)
    (path,) = (tmp_path / "models").iterdir()
    whole = path.read_bytes()
    path.unlink()  # what was loaded is read from the old file
    path.write_bytes(damage(whole))
    assert same(view().train(0), expected)
    assert len(trainings) == 2
    assert len(path.read_bytes()) == pytest.approx(len(whole), abs=16)


def test_a_checkpoint_with_a_header_of_any_length_is_trained_again(view, trainings, tmp_path):
    expected = view().train(0)
    (path,) = (tmp_path / "models").iterdir()
    whole = path.read_bytes()
    path.unlink()
    path.write_bytes((1 << 50).to_bytes(8, "little") + whole[8:])
    assert same(view().train(0), expected)
    assert len(trainings) == 2


def test_counting_the_state_is_the_harness_s_time(view, monkeypatch):
    task = view()
    task.member()
    monkeypatch.setattr(task.meter, "keep", lambda *_: time.sleep(0.5))
    execute(KeepsItsModule(), None, task)
    phases = task.meter.stopwatch.phases
    assert phases["harness"] >= 0.5 > phases["attribute"] + phases["fit"]


def test_models_are_trained_on_everything_from_a_stream_of_their_own(view, small, small_data):
    everything = torch.ones(1, small.n_train, dtype=torch.bool)
    expected = train_replicas(small, small_data, everything, "attribution", 5, 1)
    found = view(seed=5).train(1)
    assert all(torch.equal(found[k], expected[k][0]) for k in found)
    assert not same(found, view(seed=5).train(0))
    assert not same(found, view(seed=4).train(1))


def test_adapters_are_cached_and_charged_beside_their_model(view, trainings):
    first, second = view(), view()
    _, a = first.train_adapter(0, 1, rank=2, epochs=1)
    _, b = second.train_adapter(0, 1, rank=2, epochs=1)
    assert same(a, b)
    assert len(trainings) == 2  # the model and the adapter
    for task in (first, second):
        assert (len(task.meter.models), len(task.meter.adapters)) == (1, 1)
        assert task.meter.train_s == pytest.approx(
            sum(t.seconds for t in (*task.meter.models.values(), *task.meter.adapters.values()))
        )
        (adapter,), (model,) = task.meter.adapters.values(), task.meter.models.values()
        assert adapter.storage_bytes < model.storage_bytes


def test_every_adapter_rank_and_length_is_an_adapter_of_its_own(view):
    task = view()
    asked = [(0, 2, 1), (1, 2, 1), (0, 3, 1), (0, 2, 2)]
    for adapter, rank, epochs in asked:
        task.train_adapter(0, adapter, rank=rank, epochs=epochs)
    assert len(task.meter.adapters) == len(asked)


def test_an_adapter_is_fine_tuned_on_the_model_and_helps_it(view, small):
    task = view()
    model, adapter = task.train_adapter(0, 0, rank=4, epochs=20)
    whole, base = task.training.all(), task.member(0)
    mine = task.adapter_member(0, 0, number=0, rank=4, epochs=20)
    assert set(mine.parameters) == set(adapter)
    assert model is not base.model
    assert mine.loss(mine.parameters, whole).mean() < base.loss(base.parameters, whole).mean()


def test_adapters_do_not_change_their_model(view):
    task = view()
    before = {k: v.clone() for k, v in task.train(0).items()}
    task.train_adapter(0, 0, rank=2, epochs=1)
    assert same(task.train(0), before)


def test_warming_up_trains_nothing_that_counts(view, tmp_path):
    task = view()
    before = [p.clone() for p in task._template.parameters()]
    task.warm_up()
    assert not task.meter.models
    assert not (tmp_path / "models").exists()
    assert all(torch.equal(a, b) for a, b in zip(before, task._template.parameters(), strict=True))


def test_warming_up_takes_a_gradient_of_both_functions(view):
    """The first of a process loads libraries, which no method should be charged for."""
    task = view()
    task.warm_up()
    assert task.meter.backward_examples == 4


def test_a_model_without_gradients_is_warmed_up_too(view, monkeypatch):
    asked: list[Member] = []

    def fail(member: Member, *_: object, **__: object) -> None:
        asked.append(member)
        raise RuntimeError("vmap: no rule for this")

    monkeypatch.setattr(Member, "gradients", fail)
    view().warm_up()
    assert len(asked) == 1


def test_memory_that_runs_out_in_the_warm_up_is_no_secret(view, monkeypatch):
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:123] DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(Member, "gradients", fail)
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        view().warm_up()


@pytest.mark.parametrize("which", ["inputs", "labels"])
def test_nothing_is_trained_on_data_that_a_method_has_changed(view, small, small_data, tmp_path, which):
    """It would be kept in the store, for runs that changed nothing."""
    copies = [
        replace(examples, inputs=examples.inputs.clone(), labels=examples.labels.clone())
        for examples in (small_data.training, small_data.queries)
    ]
    data = TaskData(*copies)
    task = view(small, data, store="changed")
    task.train(0)
    getattr(task.training, which)[0] = 0
    for train in (
        lambda: task.train(1),
        lambda: task.train_run(1, [1]),
        lambda: task.train_adapter(0, 0, rank=2, epochs=1),
    ):
        with pytest.raises(UsageError, match=r"The data of small was changed in place.*Clone a tensor"):
            train()
    assert [path.stem for path in (tmp_path / "changed").iterdir()] == ["model-0-0"]


def test_a_training_that_diverges_is_named_and_nothing_is_kept_of_it(view, small, small_data, tmp_path):
    wild = replace(small, recipe=replace(small.recipe, lr=1e30))
    with pytest.raises(UsageError, match=r"training of small diverged: .* Lower the recipe's learning rate"):
        view(wild, small_data).train()
    assert not list((tmp_path / "models").glob("*.safetensors"))


def test_a_buffer_may_hold_what_is_infinite(view, small, small_data):
    class Masked(nn.Sequential):
        def __init__(self):
            super().__init__(*small.make_model())
            self.register_buffer("mask", torch.full((3, 3), -torch.inf).triu(1))

    task = replace(small, make_model=Masked)
    assert view(task, small_data).train()["mask"].isinf().any()
    task.check_initial_model()


def test_the_view_describes_the_model(view, small):
    assert [s.buffer for s in view().dropout_sites] == ["2.mask"]
    assert view().has_linear_layers
    plain = replace(
        small, make_model=lambda: nn.Sequential(nn.Unflatten(1, (1, 64)), nn.Conv1d(1, 10, 64), nn.Flatten())
    )
    assert view(plain, small.data()).dropout_sites == ()
    assert not view(plain, small.data()).has_linear_layers


def test_the_view_leads_to_no_ground_truth(view, small, small_truth_folder):
    task = view()
    assert (task.n_train, task.n_queries, task.name) == (120, 40, "small")
    assert not (task._task.folder / "ground_truth").exists()


def test_checkpoints_are_those_of_the_training_on_the_way(view, small):
    last = view().epochs
    assert last == 3
    run = view().train_run(1, [1, 2, 3])
    assert same(run[last], view(store="apart").train(1))
    early = replace(small, recipe=replace(small.recipe, epochs=2))
    assert same(run[2], view(early, small.data(), store="early").train(1))
    assert not same(run[1], run[2])


@pytest.mark.parametrize("epoch", [0, 4])
def test_an_epoch_that_no_training_ends_is_refused_before_it_starts(view, trainings, epoch):
    with pytest.raises(UsageError, match=rf"end of epoch {epoch}: a model of small is trained for 3 epochs, counted"):
        view().train_run(0, [3, epoch])
    assert not trainings


def test_one_training_serves_all_checkpoints_and_the_model(view, trainings):
    first, second = view(), view()
    run = first.train_run(0, [2, 3])
    assert same(first.train(0), run[3])
    assert len(trainings) == 1
    again = second.train_run(0, [2, 3])
    assert all(same(run[e], again[e]) for e in run)
    assert same(view().train(0), run[3])
    assert len(trainings) == 1
    assert first.meter.runs == second.meter.runs
    assert second.meter.train_s == first.meter.train_s > 0


def test_a_model_that_is_there_is_trained_again_for_its_checkpoints_and_kept(view, trainings, tmp_path):
    view().train(0)
    (file,) = (tmp_path / "models").iterdir()
    before = file.read_bytes()
    run = view().train_run(0, [1, 3])
    assert len(trainings) == 2
    assert file.read_bytes() == before
    assert sorted(f.name for f in file.parent.iterdir()) == ["model-0-0-epoch-1.safetensors", "model-0-0.safetensors"]
    assert same(run[3], view().train(0))


def test_a_run_is_charged_once_and_each_checkpoint_stored(view):
    task, alone = view(), view(store="apart")
    alone.train(0)
    task.train_run(0, [1, 3])
    task.train_run(0, [2])
    task.train(0)
    ((name, run),) = task.meter.runs.items()
    assert name == "model-0-0"
    assert task.meter.train_s == task.meter.extra_train_s == run.seconds
    assert task.meter.models_trained == 1
    assert task.meter.storage_bytes == pytest.approx(3 * alone.meter.storage_bytes, rel=0.01)


def test_a_damaged_checkpoint_is_made_again_from_the_whole_run(view, trainings, tmp_path):
    run = view().train_run(0, [1, 2, 3])
    file = tmp_path / "models" / "model-0-0-epoch-1.safetensors"
    file.unlink()  # what was loaded is read from the old file
    file.write_bytes(b"")
    again = view().train_run(0, [1, 2, 3])
    assert len(trainings) == 2
    assert all(same(run[e], again[e]) for e in run)


def test_the_learning_rate_of_an_epoch_is_the_mean_over_its_steps(view, small, small_data):
    assert view().learning_rate(1) == pytest.approx(0.2)
    sloping = replace(small, recipe=replace(small.recipe, schedule="linear", batch_size=50))  # 3 steps an epoch
    rates = [view(sloping, small_data).learning_rate(epoch) for epoch in (1, 2, 3)]
    assert rates == pytest.approx([0.2 * (1 - step / 9) for step in (1, 4, 7)])


STATISTICS = ["1.running_mean", "1.running_var", "1.num_batches_tracked"]


@pytest.fixture
def normalised(small):
    """Return a task whose model has running statistics."""
    return replace(
        small,
        name="normalised",
        make_model=lambda: nn.Sequential(nn.Linear(64, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 10)),
    )


def test_running_statistics_are_trained_kept_and_loaded_with_the_model(view, normalised, small_data, trainings):
    fresh = view(normalised, small_data)
    trained = fresh.train(0)
    assert set(trained) == set(normalised.make_model().state_dict())
    assert same(view(normalised, small_data).train(0), trained)
    assert len(trainings) == 1
    state_bytes = sum(v.numel() * v.element_size() for v in trained.values())
    assert state_bytes <= fresh.meter.storage_bytes < state_bytes + 2048  # the file has a header


def test_running_statistics_are_those_of_the_checkpoint(view, normalised, small_data):
    run = view(normalised, small_data).train_run(0, [1, 2, 3])
    steps = [int(run[epoch]["1.num_batches_tracked"]) for epoch in (1, 2, 3)]
    assert steps == [6, 12, 18]
    assert list(run[1]) == list(run[3]) == [*dict(normalised.make_model().named_parameters()), *STATISTICS]
    member = view(normalised, small_data).checkpoint_member(0, 1, number=0)
    assert same(member.statistics, {k: run[1][k] for k in STATISTICS})
    assert not same(run[1], run[2])


class KeepsEverything(MemberMethod):
    """Keeps the member's own tensors, and as many bytes of its own."""

    def fit(self, member):
        return [*member.parameters.values(), *member.statistics.values(), torch.zeros(25)]

    def attribute(self, member, state):
        return torch.ones(member.task.n_queries, member.task.n_train)


@pytest.mark.parametrize("cached", [False, True])
def test_running_statistics_are_counted_once_in_storage(view, normalised, small_data, cached):
    if cached:
        for model in range(2):
            view(normalised, small_data).train(model)
    task = view(normalised, small_data)
    execute(KeepsEverything(), Independent(models=2), task)
    models = sum(t.storage_bytes for t in task.meter.models.values())
    assert task.meter.state_bytes == 2 * 100
    assert task.meter.storage_bytes == models + 2 * 100


def test_warming_up_leaves_running_statistics_alone(view, normalised, small_data):
    task = view(normalised, small_data)
    before = {k: v.clone() for k, v in task._template.state_dict().items()}
    task.warm_up()
    assert same(task._template.state_dict(), before)
    assert not task._template.training


def test_a_loaded_model_has_the_order_of_a_trained_one(view, normalised, small_data):
    fresh, cached = (view(normalised, small_data).train(0) for _ in range(2))
    assert list(fresh) == list(cached) == [*dict(normalised.make_model().named_parameters()), *STATISTICS]
    adapters = [view(normalised, small_data).train_adapter(0, 0, rank=2, epochs=1)[1] for _ in range(2)]
    assert list(adapters[0]) == list(adapters[1])


@pytest.mark.parametrize("asked", ["float32", "bfloat16"])
@pytest.mark.parametrize("available", [False, True])
def test_the_precision_of_training_is_that_of_the_recipe_where_the_processor_gains(
    small, small_data, view, monkeypatch, asked, available
):
    monkeypatch.setattr(precision, "bfloat16_pays", lambda kind: available)
    task = view(replace(small, recipe=replace(small.recipe, precision=asked)), small_data)
    assert task.trained_in == (asked if available else "float32")
