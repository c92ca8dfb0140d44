"""Estimates: what is counted in advance is what a run counts."""

from __future__ import annotations

import json
import pickle
import re
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tdabench import MemberMethod, Method, gradients, member, pieces, planning
from tdabench.baselines import astra, data_inf
from tdabench.baselines.influence import definition
from tdabench.calibration import Bench, Rates, Training, sizes_of
from tdabench.ensembles import parse_ensemble
from tdabench.errors import DataError, Declined, UsageError
from tdabench.estimates import Total
from tdabench.execution import execute
from tdabench.jobs import Job
from tdabench.options import make
from tdabench.records import EnsembleRecord
from tdabench.registry import METHODS, find_method, names
from tdabench.sizes import Blocks, Layer, Sizes
from tdabench.view import TaskView
from tdabench.work import Counts, Parts, Work

SMALL = f"{Path(__file__).parent / 'small_task.py'}:TASK"
MODULE = f"{Path(__file__)}"
METHOD_CLASSES = {name: find_method(name) for name in names(METHODS)}
PEERS = {name for name, cls in METHOD_CLASSES.items() if ".peers." in cls.__module__}
# Options that make a method quick here; none takes away what is counted.
OPTIONS = {
    "trak": {"projection": 16},
    "grass": {"size": 8},
    "logra": {"rank": 3},
    "astra": {"steps": 2, "batch": 30},
    "if-explicit": {"layers": "last"},
    "if-cg": {"iterations": 2, "tolerance": 0.0, "sample": 20},
    "if-lissa": {"depth": 3, "batch": 10, "damping": 100.0},
    "if-arnoldi": {"iterations": 4, "rank": 2, "layers": "last"},
    "datamodels": {"subsets": 4, "per_seed": 2},
    "empirical-influence": {"subsets": 4, "per_seed": 2},
}
ENSEMBLES = [
    None,
    "independent(models=2)",
    "dropout(models=1, masks=2)",
    "dropout(models=1, masks=2, mask=per-sample)",
    "dropout(models=2, masks=2, scope=q-only)",
    "lora(models=1, adapters=2, rank=2, epochs=1)",
    "checkpoints(models=1, last=2)",
    "checkpoints(models=1, last=2, q_masks=2)",
    "projections(models=1, seeds=2)",
]


VARIANT = f"{Path(__file__).parent.parent / 'docs' / 'examples' / 'ek_fac_redrawn.py'}:EkFacRedrawn"


class Silent(MemberMethod):
    """A third party's method, without counts."""

    def attribute(self, member, state):
        return torch.zeros(member.task.n_queries, member.task.n_train)


class SilentWhole(Method):
    """The same on the whole task."""

    def attribute(self, task, state):
        return torch.zeros(task.n_queries, task.n_train)


class Counting(Bench):
    """A bench that measures nothing: for tests of counts."""

    def rates(self, parts, *, curved):
        return Rates(1.0, 1.0, 1.0, 1.0, 1.0)

    def training(self, rank=0):
        return Training(1.0, 0.5)

    @property
    def bank_step_s(self):
        return 1.0


@pytest.fixture(scope="module")
def bench(small, small_data) -> Bench:
    return Counting(small, small_data)


def declines(name: str, ensemble: str | None) -> bool:
    """Return whether a method has nothing that an ensemble varies: a Q factor, a projection. All else must run."""
    text = ensemble or ""
    q_alone = "q-only" in text or "q_masks" in text
    return (q_alone and name != "trak") or ("projections" in text and name not in ("trak", "grass", "logra"))


def counted(name: str, ensemble: str | None, view: TaskView) -> tuple[int, int, int]:
    """Run a method and return what the meter has counted: forward, backward, bytes stored."""
    method = make(find_method(name), name, OPTIONS.get(name, {}))
    execute(method, parse_ensemble(ensemble) if ensemble else None, view)
    return view.meter.forward_examples, view.meter.backward_examples, view.meter.storage_bytes


def estimated(name: str, ensemble: str | None, bench: Bench) -> planning.Estimate:
    planned = planning.plan(Job(SMALL, name, OPTIONS.get(name, {}), ensemble))
    return planning._estimate(planned, bench, stored=False)


def agree(name: str, ensemble: str | None, bench: Bench, view: TaskView) -> None:
    estimate = estimated(name, ensemble, bench)
    forward, backward, stored = counted(name, ensemble, view)
    total = estimate.work.fit + estimate.work.attribute
    assert (total.forward_examples, total.backward_examples) == (forward, backward)
    assert estimate.storage_bytes == pytest.approx(stored, rel=0.03)


def agree_or_decline(name: str, ensemble: str | None, bench: Bench, view: TaskView) -> None:
    if not declines(name, ensemble):
        return agree(name, ensemble, bench, view)
    with pytest.raises(Declined) as planned:
        agree(name, ensemble, bench, view)
    with pytest.raises(Declined, match=f"^{re.escape(str(planned.value))}$"):
        counted(name, ensemble, view)
    return None


@pytest.mark.parametrize("ensemble", ENSEMBLES)
@pytest.mark.parametrize("name", sorted(set(names(METHODS)) - PEERS - {"datamodels", "empirical-influence"}))
def test_every_method_under_every_ensemble_counts_what_its_run_counts(name, ensemble, bench, view):
    agree_or_decline(name, ensemble, bench, view())


def test_a_documents_variant_counts_what_its_run_counts(bench, view):
    agree(VARIANT, None, bench, view())


@pytest.mark.parametrize("name", ["datamodels", "empirical-influence"])
def test_methods_that_retrain_count_what_their_runs_count(name, bench, view):
    agree(name, None, bench, view())
    assert [t.kind for t in estimated(name, None, bench).trainings] == ["bank"]


WAYS = {"data-inf by pairs": True, "data-inf by sums": False}
CUT = ["grad-dot", "grad-cos", "gradient-norm", "trak", "ek-fac", "astra", *WAYS, "if-cg", "logra", VARIANT]


def gone(name: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return a method's name, and have DataInf go the way that is said, whatever costs less."""
    if name in WAYS:
        monkeypatch.setattr(data_inf, "_takes_pairs", lambda *_: WAYS[name])
    return name.split(" by ")[0]


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("name", CUT, ids=lambda name: name.rpartition(":")[2])
def test_counts_follow_the_engine_when_it_cuts_its_work_small(name, kept, small, small_data, view, monkeypatch):
    monkeypatch.setattr(gradients, "BLOCK_BYTES", 40_000)
    monkeypatch.setattr(gradients, "HELD_BYTES", 20_000 if name in ("grad-dot", "grad-cos") else 60_000)
    monkeypatch.setattr(gradients, "BATCH", 7)
    if not kept:
        monkeypatch.setattr(gradients, "KEPT_BYTES", 0)
    monkeypatch.setattr(astra, "_VECTOR_BYTES", 100_000)
    monkeypatch.setattr(definition, "_BLOCK_BYTES", 100_000)
    agree(gone(name, monkeypatch), None, Counting(small, small_data), view())


def convolutional() -> nn.Module:
    """Return a model with positions, norms and a loose parameter."""
    return nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.PReLU(), nn.Flatten(), nn.Linear(144, 10)
    )


@pytest.mark.parametrize("cut", [False, True])
@pytest.mark.parametrize("name", [*CUT, "grass", "rep-sim", "knn-shapley", "representer-points"])
def test_layers_with_positions_are_counted_as_well(name, cut, small, small_data, view, monkeypatch):
    if cut:
        monkeypatch.setattr(gradients, "BLOCK_BYTES", 100_000)
        monkeypatch.setattr(gradients, "HELD_BYTES", 20_000)
    task = replace(small, name="small-convolutional", make_model=convolutional)
    bench = Counting(task, small_data)
    assert {layer.positions for layer in bench.sizes(Parts(1, 1)).layers} == {0, 1, 36}
    agree(gone(name, monkeypatch), None, bench, view(task, small_data))


def twice_convolutional() -> nn.Module:
    """Return a model most of whose parameters are those of a convolution."""
    convolutions = nn.Conv2d(1, 8, 3), nn.Conv2d(8, 8, 3)
    return nn.Sequential(nn.Unflatten(1, (1, 8, 8)), *convolutions, nn.AvgPool2d(4), nn.Flatten(), nn.Linear(8, 10))


def test_sums_in_bfloat16_take_half_the_room_and_are_cut_as_they_are_counted(small, small_data, view, monkeypatch):
    monkeypatch.setattr(TaskView, "trained_in", "bfloat16")
    monkeypatch.setattr(pieces, "LONG", 1)
    monkeypatch.setattr(gradients, "BLOCK_BYTES", 100_000)
    monkeypatch.setattr(gradients, "HELD_BYTES", 20_000)
    task = replace(small, name="small-convolutional", make_model=twice_convolutional)
    bench = Counting(task, small_data)
    sizes = bench.sizes(Parts(1, 1))
    passes = [replace(sizes, short=short).dot(sizes.n_queries, sizes.n_train).gradients for short in (True, False)]
    assert sizes.short
    assert passes[0] < passes[1]
    agree("grad-dot", None, bench, view(task, small_data))


@pytest.mark.parametrize("rank", [0, 3])
def test_sizes_are_those_of_the_gradients(rank, bench):
    member = bench.member(rank)
    sizes = sizes_of(member)
    engine = member.gradients(member.task.training, of="loss")
    assert sizes.n_parameters == engine.n_parameters
    assert sizes.batch == engine.batch_size()
    assert {layer.key: (layer.p, layer.q) for layer in sizes.layers} == {one.key: one.shape for one in engine._one}


def test_the_last_layer_alone_has_sizes_too(bench):
    sizes = bench.sizes(Parts(1, 1))
    assert sizes.last is not None
    assert (sizes.last.n_parameters, sizes.representation, sizes.n_outputs) == (330, (1, 32), 10)


counts = st.builds(Counts, *[st.integers(0, 10**9)] * 7)
works = st.builds(Work, counts, counts, st.integers(0, 10**9), st.integers(0, 100))
DONE = ("forward", "gradients", "curved", "products", "moved")


@given(counts, counts, counts)
def test_counts_add_in_any_order(a, b, c):
    assert (a + b) + c == a + (b + c)
    assert a + b == b + a
    assert a + Counts() == a


@given(works, st.integers(1, 6))
def test_times_a_number_is_adding_so_often(work, n):
    assert work * n == sum([work] * (n - 1), work)


@given(works, works)
def test_a_bank_keeps_its_share_beside_work_that_retrains_nothing(bank, other):
    half, nothing = replace(bank, retrained=10, share=0.5), replace(other, retrained=0)
    assert (half + nothing).share == (nothing + half).share == 0.5
    assert (nothing + nothing).share == 1.0


@given(counts, counts)
def test_what_is_done_adds_up_and_what_is_held_does_not(a, b):
    total = a + b
    assert all(getattr(total, name) == getattr(a, name) + getattr(b, name) for name in DONE)
    assert (total.held, total.blocks) == (max(a.held, b.held), max(a.blocks, b.blocks))


side = st.integers(1, 9)
layers = st.lists(st.builds(Layer, st.just("layer"), side, side, st.integers(0, 5)), min_size=1)
BLOCKS = Blocks(4_000, 2_000, 1_000, 50, 8)


GROWING = ("gradient-norm", "grad-dot", "grad-cos", "trak", "ek-fac", "rep-sim", "knn-shapley")


@pytest.mark.parametrize("name", GROWING)
@settings(max_examples=20)
@given(layers, side, side, side, side)
def test_estimates_grow_with_the_sizes(name, parts, n_train, n_queries, more_train, more_queries):
    check_growth(METHOD_CLASSES[name](), parts, n_train, n_queries, more_train, more_queries)


@pytest.mark.parametrize("takes_pairs", [True, False])
@settings(max_examples=20)
@given(layers, side, side, side, side)
def test_estimates_of_data_inf_grow_whichever_way_it_goes(
    takes_pairs, parts, n_train, n_queries, more_train, more_queries
):
    with pytest.MonkeyPatch.context() as patch:  # it chooses by multiply-adds alone, not by passes
        patch.setattr(data_inf, "_takes_pairs", lambda *_: takes_pairs)
        check_growth(METHOD_CLASSES["data-inf"](), parts, n_train, n_queries, more_train, more_queries)


def check_growth(method, parts, n_train, n_queries, more_train, more_queries) -> None:
    """Hold the estimate of some sizes against that of larger ones."""
    rates = Rates(1.0, 2.0, 3.0, 1e-3, 1e-3)
    sizes = Sizes(n_train, n_queries, tuple(parts), 10, BLOCKS, (1, 4), 3)
    larger = replace(sizes, n_train=n_train + more_train, n_queries=n_queries + more_queries)
    small, large = method.work(sizes), method.work(larger)
    times = [planning.seconds(work.fit + work.attribute, rates) for work in (small, large)]
    assert times[0] < times[1]
    assert small.state <= large.state


@given(layers, st.integers(1, 200), st.integers(1, 200))
def test_all_pairs_take_every_example_once_or_more(parts, n, m):
    found = Sizes(n, m, tuple(parts), 10, BLOCKS).dot(n, m)
    assert found == Sizes(n, m, tuple(parts), 10, BLOCKS).dot(m, n)
    assert n + m <= found.gradients
    assert found.products >= n * m


def test_an_ensemble_multiplies_and_its_models_are_named(bench):
    alone, six = (
        estimated("trak", None, bench),
        estimated("trak", "lora(models=2, adapters=3, rank=2, epochs=1)", bench),
    )
    assert [t.kind for t in alone.trainings] == ["model"]
    assert [t.name for t in six.trainings][:3] == ["model-0-0", "model-0-1", "adapter-0-0-0-rank-2-epochs-1"]
    assert len(six.trainings) == 8
    assert six.extra_train_s == pytest.approx(six.train_s - six.trainings[0].seconds)
    assert alone.extra_train_s == 0
    assert alone.train_s == 3 * (0.5 + 6 * 1.0), "three epochs of six steps"
    run = estimated("tracin", "checkpoints(models=1, last=2)", bench)
    assert run.extra_train_s == run.train_s > 0, "a model does not give its checkpoints"


def test_a_training_that_was_measured_is_taken_as_it_was(small, view, cache):
    job = Job(SMALL, "trak", {}, "checkpoints(models=1, last=2)")
    before = planning.estimate_job(job)
    assert not any(t.measured for t in before.trainings)
    folder = before.plan.models_folder
    own = TaskView(small, small.data(), folder)
    own.train_run(0, [2, 3])
    after = planning.estimate_job(job)
    assert [(t.kind, t.measured) for t in after.trainings] == [("run", True)]
    assert after.train_s == own.meter.train_s
    assert not any(t.measured for t in planning.estimate_job(job, stored=False).trainings)


@pytest.mark.parametrize(("name", "trained"), [("Silent", ["model"]), ("SilentWhole", None)])
def test_a_method_without_counts_still_has_what_is_known(name, trained, small):
    found = planning.estimate_job(Job(SMALL, f"{MODULE}:{name}", {}))
    assert (found.work, found.serve_s, found.peak_bytes, found.storage_bytes) == (None, None, None, None)
    assert (found.trainings and [t.kind for t in found.trainings]) == trained
    assert (found.models_bytes is None) == (trained is None)


class BrokenWork(Silent):
    """Its author made a mistake."""

    def work(self, sizes):
        return 1 / 0


class OtherWork(Silent):
    """Its author took a number for counts."""

    def work(self, sizes):
        return 3


@pytest.mark.parametrize(
    ("name", "said"),
    [("BrokenWork", "fails: ZeroDivisionError: division by zero"), ("OtherWork", "returns 3. Return a tdabench.Work")],
)
def test_a_mistake_in_what_a_method_says_of_its_work_is_named(name, said, small):
    with pytest.raises(UsageError, match=rf"^work\(sizes\) of \S+:{name} {re.escape(said)}"):
        planning.estimate_job(Job(SMALL, f"{MODULE}:{name}", {}))


def test_a_run_that_would_be_declined_is_not_estimated(small):
    found = planning.estimate_job(Job(SMALL, "grad-dot", {}, "projections(models=1, seeds=2)"))
    assert found.declined == "projections need a method that projects at random"
    assert found.work is None


GROWN = [
    ("independent(models=2)", "independent(models=9)"),
    ("dropout(models=1, masks=2)", "dropout(models=4, masks=5)"),
    ("projections(models=1, seeds=2)", "projections(models=3, seeds=3)"),
    ("checkpoints(models=1, last=2)", "checkpoints(models=2, last=3)"),
    ("lora(models=1, adapters=2, rank=2, epochs=1)", "lora(models=3, adapters=3, rank=2, epochs=1)"),
]


@pytest.mark.parametrize(("small_one", "large_one"), GROWN)
def test_the_peak_does_not_grow_with_the_ensemble(small_one, large_one, bench):
    alone, *ensembles = (estimated("trak", kind, bench) for kind in (None, small_one, large_one))
    assert ensembles[0].peak_bytes == ensembles[1].peak_bytes
    adapted = "lora" in small_one
    mean = 4 * 120 * 40
    if not adapted:
        assert ensembles[0].peak_bytes == alone.peak_bytes + mean
    else:  # gradients are smaller, but the model is there all the same
        assert ensembles[0].peak_bytes > bench.file_bytes() + bench.file_bytes(2) + mean


def test_a_bank_is_held_as_a_whole(bench):
    assert estimated("datamodels", None, bench).peak_bytes > 4 * bench.file_bytes()


def test_the_size_of_a_checkpoint_is_known_before_it_is_trained(bench, view):
    task = view()
    task.train_adapter(0, 0, rank=2, epochs=1)
    (model,), (adapter,) = task.meter.models.values(), task.meter.adapters.values()
    # Seconds are written with as many digits as they have.
    assert bench.file_bytes() == pytest.approx(model.storage_bytes, abs=24)
    assert bench.file_bytes(2) == pytest.approx(adapter.storage_bytes, abs=24)


def test_a_device_that_no_process_can_use_is_one_error_with_what_it_said():
    with pytest.raises(
        UsageError, match=r"^A process of a run cannot start on the device nowhere: RuntimeError: .*[^.]\.$"
    ):
        planning.start_s.__wrapped__("nowhere")


def test_several_runs_are_charged_for_a_model_once(small, cache, monkeypatch):
    monkeypatch.setattr(planning, "start_s", lambda _: 2.0)
    one = Job(SMALL, "grad-dot", {})
    jobs = [one, replace(one, method="trak"), replace(one, method=f"{MODULE}:Silent"), replace(one, task="unknown")]
    alone = planning.estimate_job(one)  # with what the others are estimated with, too
    total = planning.estimate_jobs(jobs)
    assert (total.runs, total.unknown, total.start_s) == (4, 2, 8.0)
    assert total.train_s == alone.train_s
    assert total.seconds == total.train_s + total.serve_s + total.start_s
    assert total.serve_s > alone.serve_s
    assert total.each[0] == pytest.approx(2.0 + alone.serve_s + alone.train_s)
    assert sum(total.each[:2]) == pytest.approx(4.0 + total.serve_s + total.train_s), "one training for both"
    assert total.each[2:] == pytest.approx([sum(total.each[:2]) / 2] * 2), "what is not known is as the others are"


def test_data_that_are_not_there_are_looked_for_once(monkeypatch):
    monkeypatch.setattr(planning, "start_s", lambda _: 2.0)
    asked = []

    def absent(job):
        asked.append(job.task)
        raise DataError("no data")

    monkeypatch.setattr(planning, "estimate_job", absent)
    jobs = [Job(task, method, {}) for method in ("trak", "random") for task in ("mnist-mlp", "mnist-lr")]
    assert planning.estimate_jobs(jobs).unknown == 4
    assert asked == ["mnist-lr", "mnist-mlp"]


def test_estimating_several_runs_leaves_nothing_behind(small, monkeypatch):
    monkeypatch.setattr(planning, "start_s", lambda _: 2.0)
    planning.estimate_jobs([Job(SMALL, "grad-dot", {}, "dropout(models=1, masks=2, mask=per-sample)")])
    assert planning._bench.cache_info().currsize == 0
    assert member._table.cache_info().currsize == 0


class Apart:
    """Stands for a pool of one process: what goes in and out of it is copied."""

    def __init__(self, workers: int) -> None:
        self.workers = workers

    def __enter__(self):
        return self

    def __exit__(self, *_):
        """End."""

    def submit(self, run, jobs):
        assert self.workers == 1
        done = Future()
        run, jobs = pickle.loads(pickle.dumps((run, jobs)))
        if jobs[0].task == "killed":
            done.set_exception(BrokenProcessPool())
        else:
            done.set_result(pickle.loads(pickle.dumps(Total(len(jobs), 1.0, 2.0, 3.0, 0))))
        return done


def test_runs_on_a_device_are_estimated_in_a_process_of_their_own(monkeypatch):
    monkeypatch.setattr(planning, "local_pool", Apart)
    monkeypatch.setattr(planning, "_bench", lambda *_: pytest.fail("estimated in this process"))
    monkeypatch.setattr(planning, "start_s", lambda _: 5.0)
    there = Job(SMALL, "grad-dot", {}, device="cuda")
    assert planning.estimate_jobs([there, there]) == Total(2, 1.0, 2.0, 3.0, 0)
    killed = planning.estimate_jobs([replace(there, task="killed")])
    assert (killed.runs, killed.unknown, killed.seconds) == (1, 1, 5.0)


def test_a_suite_says_how_long_it_will_take(capsys, small, monkeypatch):
    from tdabench.cli.measure import note_estimate

    monkeypatch.setattr(planning, "start_s", lambda _: 2.0)
    note_estimate([Job(SMALL, "grad-dot", {}), Job(SMALL, f"{MODULE}:Silent", {})])
    said = capsys.readouterr().err
    assert re.match(r"Estimated: \d[\d.]* s for 1 runs \(training .*, serving .*, starting 4 s\); without 1 ", said)


@pytest.mark.parametrize(
    ("cores", "each", "said"),
    [
        (2, (500.0, 300.0, 250.0), "about 9.17 min: one with --task a, the other with --task b --task c\n"),
        (2, (100.0, 200.0, 250.0), None),
        (1, (500.0, 300.0, 250.0), None),
        (2, (), None),
    ],
    ids=["shared", "too short", "one core", "nothing known"],
)
def test_a_long_suite_says_how_two_commands_would_share_it(capsys, monkeypatch, cores, each, said):
    from tdabench import provenance
    from tdabench.cli.measure import _note_shared

    monkeypatch.setattr(provenance, "available_cores", lambda: cores)
    _note_shared([Job(task, "trak", {}) for task in "abc"], each)
    assert capsys.readouterr().err == (f"By two commands at once, {said}" if said else "")


def test_one_task_cannot_be_shared(capsys):
    from tdabench.cli.measure import _note_shared

    _note_shared([Job("a", "trak", {}), Job("a", "ek-fac", {})], (5000.0, 5000.0))
    assert capsys.readouterr().err == ""


def call(capsys, *words: str) -> tuple[int, str, str]:
    from tdabench import cli

    capsys.readouterr()
    code = 0
    try:
        cli.main(list(words))
    except SystemExit as done:
        code = done.code or 0
    return code, *capsys.readouterr()


def test_the_command_prints_estimates_and_what_they_are_made_of(capsys, small):
    code, out, _ = call(capsys, "plan", SMALL, "trak", "--ensemble", "dropout(models=1, masks=2)")
    assert code == 0
    lines = dict(line.split("  ", 1) for line in out.splitlines())
    assert list(lines) == ["run", "task", "training", "serving", "peak memory", "storage", "fit", "attribute"]
    assert "with the process itself below the budget of 2 GB" in lines["peak memory"]
    assert "240 examples forward, 240 gradients" in lines["fit"]


def test_json_holds_the_same(capsys, small):
    code, out, _ = call(capsys, "plan", SMALL, "grad-dot", "--json")
    facts = json.loads(out)
    assert code == 0
    assert facts["work"]["attribute"]["gradients"] == 160
    assert facts["parts"] == asdict(Parts(1, 1))
    assert facts["fits_budget"] is True


def test_the_budget_is_no_measure_of_a_gpu(small):
    found = planning.estimate_job(Job(SMALL, "grad-dot", {}))
    assert found.fits_budget is True
    assert 50e6 < found.process_bytes < 2e9, "this process"
    assert replace(found, peak_bytes=1_999_000_000).fits_budget is False, "it holds more than a megabyte itself"
    gpu = replace(found.plan, machine=found.plan.machine.model_copy(update={"device": "cuda"}))
    assert replace(found, plan=gpu).fits_budget is None


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["grad-dot", "--ensemble", "projections"], "declined  projections need a method that projects at random"),
        ([f"{MODULE}:SilentWhole"], "not known: the method trains what it needs itself and does not say it"),
        ([f"{MODULE}:Silent"], "test_planning.py:Silent does not say its work"),
    ],
)
def test_what_is_not_known_is_said(words, said, capsys, small):
    code, out, err = call(capsys, "plan", SMALL, *words)
    assert code == 0
    assert said in " ".join((out + err).split("\n")).replace("    ", "")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([SMALL], "Give a task and a method, as in `tdabench plan digits-mlp trak`, or --against RUNS."),
        ([SMALL, "trak", "--against", "runs"], "Leave out TASK and METHOD."),
        ([SMALL, "trakk"], "Unknown method 'trakk'. Did you mean 'trak'?"),
    ],
)
def test_mistakes_are_one_line(words, message, capsys, small):
    code, _, err = call(capsys, "plan", *words)
    assert code == 2
    assert err.count("\n") == 1
    assert message in err


def test_estimates_stand_beside_measurements(capsys, small, tmp_path, monkeypatch):
    from tdabench.runner import run

    monkeypatch.chdir(tmp_path)
    (tmp_path / "here.py").write_text("open('ran', 'w')\n")
    _, record = run(planning.plan(Job(SMALL, "random", {})), tmp_path)
    for name, change in {
        "other-machine": {"machine": record.machine.model_copy(update={"machine_class": "another"})},
        "other-task": {"task_version": "0123456789abcdef"},
        "declined": {"status": "declined", "reason": "so it is"},
        "in-a-file": {"method": "here.py:Here"},
        "no-longer": {"method": "grad-dot", "ensemble": EnsembleRecord(kind="projections", members=1, options={})},
    }.items():
        (tmp_path / name).mkdir()
        changed = record.model_copy(update={"run_id": name, **change})
        (tmp_path / name / "record.json").write_text(changed.to_json())
    code, out, err = call(capsys, "plan", "--against", str(tmp_path))
    assert code == 0
    assert not (tmp_path / "ran").exists()
    rows = [line.strip("| ").split(" | ") for line in out.splitlines()]
    assert [row[:2] for row in rows if row[0] == "small"] == [["small", "random"]]
    assert rows[-1][-2] == rows[-1][-1], "storage"
    summary = {row[0]: row[1:] for row in rows if len(row) == 7 and row[1] == "1"}
    assert {name.partition(",")[0] for name in summary} == {"training", "serving", "memory", "storage"}
    assert all(len(set(values)) == 1 for _, *values in summary.values()), "one run is its own least and most"
    assert summary["storage"] == ["1", *["1.00"] * 5]
    for said in (
        "other-machine: it was measured on another",
        "other-task: its task has",
        "declined: it ended as",
        "no-longer: it would be declined now: projections need a method that projects at random.",
        "in-a-file: its method is from a file, and no file is run because a record names it.",
    ):
        assert f"Left out: {said}" in err
    code, _, err = call(capsys, "plan", "--against", str(tmp_path / "declined"))
    assert code == 2
    assert "None of these runs can be compared with an estimate" in err
    candidate = tmp_path / ".tuning" / "candidate"
    candidate.mkdir(parents=True)
    (candidate / "record.json").write_text(record.to_json())
    code, _, err = call(capsys, "plan", "--against", str(candidate))
    assert code == 2
    assert "is what `tdabench tune` tried, which is no result" in err
