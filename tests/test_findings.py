"""Findings: savings and winners computed from runs, and written as a pure function of them."""

from __future__ import annotations

import itertools
import json
import math
import os
import re
import shutil
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tdabench import cli
from tdabench.bootstrap import Draws
from tdabench.ensembles import kind_of, parse_ensemble
from tdabench.evaluation import Evaluator, compare
from tdabench.files import write_arrays
from tdabench.findings import Source, contests_of, document, numbers, write
from tdabench.findings.agreement import growths
from tdabench.findings.beyond import beyond
from tdabench.findings.curves import (
    ABOVE,
    BELOW,
    INSIDE,
    SERVING_TOLERANCE,
    Bounded,
    cost_at,
    reach,
    saving,
    share_saved,
)
from tdabench.findings.entries import Entry, difference
from tdabench.findings.kinds import PAIRS, _bound, _saved, matched
from tdabench.findings.markdown import share, signed
from tdabench.findings.redrawn import of_models, redrawn
from tdabench.findings.savings import CLAIMS, gains, verdicts
from tdabench.findings.sections import _duel
from tdabench.findings.winners import best_so_far, duel, winners
from tdabench.findings.words import contender, ensemble, flavour
from tdabench.formats import format_score
from tdabench.jobs import Job, plan
from tdabench.options import values
from tdabench.records import Record
from tdabench.registry import find_task
from tdabench.results import reading
from tdabench.results.axes import AXES
from tdabench.results.rows import rows_of
from tdabench.results.runs import Run
from tdabench.results.seed_draws import over_seeds
from tdabench.results.tasks import TaskInfo
from tdabench.saturation import predicted_lds
from tdabench.suites import LeftOut, Suite, find_suite
from tdabench.tuned import with_tuned_options

GOLDEN = Path(__file__).parent / "golden" / "findings.md"
RECORD = json.loads((Path(__file__).parent / "golden" / "record.json").read_text())
N_SUBSETS, N_TRAIN, N_QUERIES = 40, 60, 24
VERSION = RECORD["task_version"]
TASK = TaskInfo("digits-mlp", "Digits", VERSION, "Made up.", N_TRAIN, N_QUERIES, N_SUBSETS, 2, 0.9, 0.8)
OTHER = replace(TASK, name="mnist-mlp", title="More digits")
SOURCE = Source("tdabench findings runs --out findings.md")
PLANNED = plan(with_tuned_options(Job("digits-mlp", "trak", {}), find_task("digits-mlp"))[0])
"""What a suite would run: the runs that are made up here have its options and its code."""


def seen(entry, **found):
    """Return an entry as if its draws or costs were these."""
    made = copy(entry)
    vars(made).update(found)
    return made


def render(runs, tasks, source):
    """Return a document with its pages, one after another, and each point in one line with what is below it."""
    return whole(document.render(runs, tasks, source)).replace("\n  - ", " ")


def whole(found):
    return "\n".join([found.text, *found.pages.values()])


# --- curves


@st.composite
def curves(draw):
    """Return increasing sizes and as many LDS values, none so close that a rounding error tells them apart."""
    n = draw(st.integers(1, 5))
    sizes = np.cumsum(draw(st.lists(st.integers(1, 5), min_size=n, max_size=n))).astype(float)
    lds = np.array(draw(st.lists(st.integers(-900, 900), min_size=n, max_size=n))) / 1000
    return sizes, lds


def reach_slowly(sizes, lds, target):
    """Walk along the curve until it has the target."""
    best = -np.inf
    for i, (size, value) in enumerate(zip(sizes, lds, strict=True)):
        if value >= target:
            if i == 0:
                return size, BELOW if target < value else INSIDE
            share = (target - best) / (value - best)
            return np.exp((1 - share) * np.log(sizes[i - 1]) + share * np.log(size)), INSIDE
        best = max(best, value)
    return sizes[-1], ABOVE


@given(curves(), st.lists(st.floats(-1, 1), min_size=1, max_size=6))
def test_reach_is_the_first_size_that_has_the_target(curve, targets):
    sizes, lds = curve
    found, places = reach(sizes, np.tile(lds, (len(targets), 1)), np.array(targets))
    expected = [reach_slowly(sizes, lds, target) for target in targets]
    np.testing.assert_allclose(found, [size for size, _ in expected])
    assert places.tolist() == [place for _, place in expected]


@given(curves())
def test_reach_is_exact_at_knots_and_monotone(curve):
    sizes, lds = curve
    rising = [i for i in range(len(lds)) if (lds[:i] < lds[i]).all()]
    found, places = reach(sizes, np.tile(lds, (len(rising), 1)), lds[rising])
    assert found.tolist() == sizes[rising].tolist()
    assert not places.any()
    grid = np.linspace(-1, 1, 301)
    along, _ = reach(sizes, np.tile(lds, (301, 1)), grid)
    assert (np.diff(along) >= 0).all()
    assert sizes[0] <= along[0] <= along[-1] <= sizes[-1]


def test_cost_is_linear_in_size_and_free_things_have_a_share():
    assert cost_at([1, 2, 10], [3.0, 6.0, 30.0], [1.0, 1.5, 6.0, 20.0]).tolist() == [3.0, 4.5, 18.0, 30.0]
    assert share_saved(1.0, [4.0, 0.5]).tolist() == [0.75, -1.0]
    assert share_saved(0.0, [4.0, 0.0]).tolist() == [1.0, 0.0]
    assert share_saved(1.0, 0.0) == -np.inf


@st.composite
def measured(draw):
    """Return the arguments of `saving`: a curve, its draws and costs, and a run's LDS, draws and cost."""
    sizes, lds = draw(curves())
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    target = draw(st.integers(-900, 900)) / 1000
    costs = np.cumsum(rng.uniform(0.5, 2, len(sizes)))
    draws = lds + rng.normal(0, 0.05, (50, len(lds)))
    return [sizes, lds, draws, costs, target, target + rng.normal(0, 0.05, 50), float(rng.uniform(0, 5))]


@given(measured(), st.floats(1e-3, 1e6))
def test_a_saving_does_not_depend_on_the_unit_of_cost(arguments, factor):
    *start, costs, target, targets, cost = arguments
    one, other = saving(*arguments), saving(*start, costs * factor, target, targets, cost * factor)
    assert other.value == pytest.approx(one.value)
    assert (other.low, other.high) == pytest.approx((one.low, one.high))
    assert other.place == one.place


@given(measured())
def test_a_dearer_run_saves_less_and_a_better_one_more(arguments):
    sizes, lds, draws, costs, target, targets, cost = arguments
    one = saving(*arguments)
    assert saving(sizes, lds, draws, costs, target, targets, cost + 1).value < one.value
    assert saving(sizes, lds, draws, costs, target + 0.1, targets + 0.1, cost).value >= one.value
    assert one.low <= one.high


def test_below_the_curve_is_the_bad_end_of_an_interval():
    lds, targets = np.array([0.2, 0.4]), np.linspace(0.15, 0.3, 200)
    found = saving([1, 2], lds, np.tile(lds, (200, 1)), [9.0, 9.0], 0.25, targets, 3.0)
    assert (found.low_place, found.high_place) == (BELOW, INSIDE)
    assert share(found).startswith("67 % [worse than one model, ")


def test_what_more_models_have_less_of_counts_as_the_most_up_to_there():
    """Of peak memory, a single model may take more than several: a better run saves no less for that."""
    lds, targets = np.array([0.2, 0.4]), np.linspace(0.1, 0.5, 200)
    found = saving([1, 2], lds, np.tile(lds, (200, 1)), [9.0, 3.0], 0.3, targets, 3.0)
    assert found.value == found.high == pytest.approx(1 - 3 / 9)
    assert (found.place, found.low_place, found.high_place) == (INSIDE, BELOW, ABOVE)


@given(measured())
def test_draws_that_do_not_vary_give_an_interval_of_the_estimate_alone(arguments):
    sizes, lds, _, costs, target, _, cost = arguments
    one = saving(sizes, lds, np.tile(lds, (50, 1)), costs, target, np.full(50, target), cost)
    assert one.low == one.high == one.value
    assert one.place == one.low_place == one.high_place


@pytest.mark.parametrize(
    ("found", "reaches", "misses", "text"),
    [
        (Bounded(0.85, 0.8, 0.9), True, False, "85 % [80 %, 90 %]"),
        (Bounded(0.8, 0.795, 0.81), True, False, "80 % [80 %, 81 %]"),
        (Bounded(0.785, 0.78, 0.789), False, True, "78 % [78 %, 79 %]"),
        (Bounded(0.785, 0.78, 0.795), False, False, "78 % [78 %, 80 %]"),
        (Bounded(0.7, 0.6, 0.75), False, True, "70 % [60 %, 75 %]"),
        (Bounded(0.7, 0.6, 0.9), False, False, "70 % [60 %, 90 %]"),
        (Bounded(0.7, 0.6, 0.75, INSIDE, INSIDE, ABOVE), False, False, "70 % [60 %, ≥ 75 %]"),
        (Bounded(0.9, 0.9, 0.9, ABOVE, ABOVE, ABOVE), True, False, "≥ 90 %"),
        (Bounded(0.7, 0.6, 0.75, INSIDE, BELOW, ABOVE), False, False, "70 % [worse than one model, ≥ 75 %]"),
        (Bounded(0.9, 0.9, 0.9, BELOW, BELOW, INSIDE), False, False, "no better than one model [at best 90 %]"),
        (Bounded(0.9, 0.9, 0.9, BELOW, BELOW, BELOW), False, True, "worse than one model"),
        (Bounded(-3.0, -np.inf, -0.52), False, True, "4.0 × the cost [∞ ×, 1.52 ×]"),
        (Bounded(-3.0, -3.0, -3.0, ABOVE, ABOVE, ABOVE), False, False, "≤ 4.0 × the cost"),
    ],
)
def test_a_claim_is_held_against_what_the_interval_leaves_open(found, reaches, misses, text):
    """A cost may be 5 % above what the claim leaves, so 79 % will do for 80 %."""
    assert (found.surely_reaches(0.8), found.surely_misses(0.8)) == (reaches, misses)
    assert share(found) == text


@pytest.mark.parametrize(
    ("difference", "text"),
    [
        ((0.0204, 0.0101, 0.0312), "+0.020 [0.010, 0.031]"),
        ((0.0004, 0.0001, 0.0006), "+0.0004 [0.0001, 0.0006]"),
        ((-0.0062, -0.0119, -0.0003), "−0.0062 [−0.0119, −0.0003]"),
        ((0.0, 0.0, 0.0), "0.000 [0.000, 0.000]"),
    ],
)
def test_an_end_beside_0_is_not_written_as_0(difference, text):
    assert signed(difference) == text


# --- runs of a made-up task


@dataclass(frozen=True, eq=False)
class MadeUpTruth:
    masks: np.ndarray
    outputs: np.ndarray
    reported: np.ndarray
    tuning: np.ndarray
    mislabelled: None = None


@pytest.fixture(scope="module")
def world():
    """Return the scores that outputs are made from, and the evaluator of these outputs."""
    rng = np.random.default_rng(0)
    perfect = rng.normal(size=(N_QUERIES, N_TRAIN))
    masks = np.argsort(rng.random((N_SUBSETS, N_TRAIN)), axis=1) < N_TRAIN // 2
    outputs = (masks @ perfect.T)[:, None] + 2 * rng.normal(size=(N_SUBSETS, 2, N_QUERIES))
    truth = MadeUpTruth(masks, outputs.astype(np.float32), np.arange(N_QUERIES), np.arange(0))
    return perfect, Evaluator.of(truth, n_resamples=200)


@pytest.fixture(scope="module")
def run(world):
    """Return a factory of runs: noise of the given amount on perfect scores, costs as a multiple of one model's."""
    perfect, evaluator = world

    def make(
        method="trak", ensemble=None, noise=None, train=1.0, serve=1.0, storage=100, stream=1,
        sha256=PLANNED.method_sha256, **changes
    ):  # fmt: skip
        wrapped = ensemble_record(ensemble)
        kind, options = (wrapped["kind"], wrapped["options"]) if wrapped else ("", {})
        # A model gives neither the checkpoints of its past nor a bank: both are charged to its owner as well.
        bank = any(name.startswith("bank") for name in changes.get("trainings", {}))
        extra = train if kind == "checkpoints" or bank else max(train - 1.0, 0.0)
        costs = RECORD["costs"] | {"train_s": train, "extra_train_s": extra, "storage_bytes": storage}
        seed, models = changes.get("seed", 0), options.get("models", 1)
        took = {f"model-{seed}-{i}": (1.0 if kind == "lora" else train / models) for i in range(models)}
        if kind == "lora":
            took[f"adapter-{seed}-0-0-rank-8-epochs-5"] = train - models
        trainings = {"trainings": {name: {"wall_s": s, "cpu_s": s} for name, s in took.items()}}
        named = {"method": method, "options": PLANNED.options, "ensemble": wrapped}
        value = RECORD | trainings | named | {"correlations": None} | changes
        value["run_id"] = f"{method}-{ensemble}-{value['seed']}"
        value["costs"] = costs | {"fit_s": serve / 2, "attribute_s": serve / 2} if noise is not None else None
        value["provenance"] = RECORD["provenance"] | changes.get("provenance", {}) | {"method_sha256": sha256}
        record = Record.model_validate(value)
        if noise is None:
            return Run(record)
        added = np.random.default_rng(stream).normal(size=perfect.shape)
        return Run(record, evaluator.evaluate((perfect + noise * added).astype(np.float32)))

    return make


def ensemble_record(text):
    if text is None:
        return None
    made = parse_ensemble(text)
    return {"kind": kind_of(made), "options": values(made), "members": made.size}


@pytest.fixture(scope="module")
def rows(run):
    """Return one model, independent ensembles of 2 and 5, cheap ensembles, and runs without an LDS."""
    correlations = {"within": 0.6, "between": None, "n_within_pairs": 190, "n_between_pairs": 0}
    between = {"within": None, "between": 0.3, "n_within_pairs": 0, "n_between_pairs": 10}
    declined = {"status": "declined", "reason": "it | has <no> `labels`", "scores": None}
    big = "independent(models=5)"
    return [
        run(noise=6.0, stream=1),
        run(ensemble="independent(models=2)", noise=4.0, train=2.0, serve=2.0, storage=200, stream=2),
        run(ensemble=big, noise=2.5, train=5.0, serve=5.0, storage=500, stream=3, correlations=between),
        run(ensemble="dropout(models=1, masks=5)", noise=3.5, serve=5.0, stream=4),
        run(ensemble="dropout(models=1, masks=20)", noise=2.5, serve=20.0, stream=3, correlations=correlations),
        run(ensemble="dropout(models=1, masks=5, scope=q-only)", noise=4.5, serve=1.2, stream=5),
        run(ensemble="lora(models=1, adapters=5)", noise=1.0, train=2.0, serve=0.5, storage=110, stream=6),
        run(ensemble="checkpoints(models=1, last=5)", noise=9.0, serve=5.0, storage=500, stream=7),
        run("grad-dot", noise=7.0, serve=0.5, storage=10, stream=8),
        run("grad-dot", ensemble="dropout(models=1, masks=5)", **declined),
        run("trak", noise=5.0, stream=9, task="a-task-that-is-not-here"),
    ]  # fmt: skip


@pytest.fixture(scope="module")
def all_rows(rows, run):
    """Return the same, and another task where TRAK was run with three seeds and its Q-only dropout is the best."""
    made = [
        (None, 5.0, 1.0),
        ("independent(models=5)", 3.0, 5.0),
        ("dropout(models=1, masks=10, scope=q-only)", 0.7, 1.0),
    ]
    return [
        *rows,
        *(
            run(
                ensemble=text,
                noise=noise,
                train=5.0 if text == "independent(models=5)" else 1.0,
                serve=serve,
                storage=100 * int(serve),
                stream=10 * seed + len(str(text)),
                seed=seed,
                task="mnist-mlp",
            )
            for text, noise, serve in made
            for seed in range(3)
        ),
    ]


@pytest.fixture(scope="module")
def contest(rows):
    (only,) = contests_of(rows, [TASK])
    return only


@pytest.fixture(scope="module")
def trak(contest):
    return next(family for family in contest.families if family.name == "trak")


def gain_of(family, ensemble):
    return next(gain for gain in gains(family) if gain.entry.ensemble == ensemble)


def test_runs_are_grouped(contest, trak):
    assert [entry.members for entry in trak.curve] == [1, 2, 5]
    assert [e.flavour for e in trak.others] == ["dropout", "dropout", "dropout(scope=q-only)", "lora", "checkpoints"]
    assert [row.record.status for row in contest.without] == ["declined"]
    assert contest.title == "digits-mlp"


def test_the_saving_at_the_lds_of_a_measured_size_is_that_of_its_costs(trak):
    """The dropout ensemble of 20 masks has the very scores of five models."""
    gain = gain_of(trak, "dropout(models=1, masks=20)")
    assert (gain.size.value, gain.size.place) == (5.0, INSIDE)
    assert gain.savings["train"].value == pytest.approx(1 - 1 / 5)
    assert gain.savings["serve"].value == pytest.approx(1 - 20 / 5)
    assert gain.savings["storage"].value == pytest.approx(1 - 100 / 500)
    assert gain.savings["extra"].value == 1.0, "nothing more is trained"
    assert gain.savings["train"].low <= 0.8 <= gain.savings["train"].high


def test_beyond_the_curve_a_saving_is_a_bound(trak):
    above, below = (gain_of(trak, text) for text in ("lora(models=1, adapters=5)", "checkpoints(models=1, last=5)"))
    assert (above.savings["serve"].place, above.savings["serve"].value) == (ABOVE, pytest.approx(0.9))
    assert below.savings["serve"].place == BELOW
    assert share(below.savings["storage"]).startswith("no better than one model [at best ")


def test_the_claim_is_judged_for_dropout_and_lora_alone(contest):
    found = {verdict.axis: verdict for verdict in verdicts(contest)}
    assert set(found) == set(CLAIMS)
    assert {len(verdict.tried) for verdict in found.values()} == {4}, "checkpoints are not among them"
    assert found["serve"].outcome == "reached"
    assert found["serve"].best.entry.kind == "lora"
    assert found["storage"].outcome == "cannot be told"
    assert found["storage"].n_beyond == 1


def claimed_of(rows, task=TASK):
    """Return the outcomes of the only method's claims, by cost, and those of the whole claim, by ensemble."""
    (contest,) = contests_of(rows, [task])
    found = verdicts(contest)
    return {v.axis: v.outcome for v in found}, {gain.entry.kind: gain.whole for gain in found[0].tried}


def test_all_three_savings_are_asked_of_one_ensemble(run):
    """LoRA serves fast and dropout trains and stores little: no user can have the best of both.

    All three have the scores of five models.
    """
    curve = [run(noise=6.0), run(ensemble="independent(models=5)", noise=4.0, train=5.0, serve=5.0, storage=500)]
    lora = run(ensemble="lora(models=5, adapters=1)", noise=4.0, train=6.0, serve=0.5, storage=600)
    dropout = run(ensemble="dropout(models=1, masks=20)", noise=4.0, serve=20.0)
    alone, whole = claimed_of([*curve, lora, dropout])
    assert set(alone.values()) == {"reached"}
    assert whole == {"lora": "not reached", "dropout": "not reached"}
    text = render([*curve, lora, dropout], [TASK], SOURCE)
    assert "training time on 1 of 1, serving time on 1 of 1 and storage on 1 of 1. All three at once: by 0 of 2" in text
    both = run(ensemble="dropout(models=1, masks=20, scope=q-only)", noise=4.0)
    assert claimed_of([*curve, both])[1] == {"dropout": "reached"}
    text = render([*curve, both], [TASK], SOURCE)
    assert "All three at once: by 1 of 1 ensemble." in text
    assert "reached on 1 of 1 pair: digits-mlp (`trak`). It rests on one seed. Of 1 ensemble of dropout" in text
    assert "by 1 of 1 dropout or LoRA ensemble: `trak` with 20 dropout masks" in text


def trained(**seconds):
    """Return the trainings of a record: ``model_0_0=1.5`` and the like."""
    return {name.replace("_", "-"): {"wall_s": s, "cpu_s": s} for name, s in seconds.items()}


@pytest.mark.parametrize("first", [0.98, 1.02, 3.0])
def test_the_time_of_one_training_decides_no_verdict(run, first):
    """Where the ladder ends at five models, one in place of five saves 80 % of training, neither more nor less."""
    one = trained(model_0_0=first)
    five = one | trained(**{f"model_0_{i}": 1.0 for i in range(1, 5)})
    rows = [
        run(noise=6.0, train=first, serve=1.0, trainings=one),
        run("trak", "independent(models=5)", noise=4.0, train=4 + first, serve=5.0, storage=500, trainings=five),
        run(ensemble="dropout(models=1, masks=5)", noise=1.0, train=first, serve=5.0, trainings=one),
    ]
    assert claimed_of(rows)[0]["train"] == "reached"
    (contest,) = contests_of(rows, [TASK])
    assert (contest.price.seconds, contest.price.n) == (1.0, 5)
    assert [entry.costs["train"] for entry in contest.entries] == [1.0, 5.0, 1.0]


@pytest.mark.parametrize(("cpu_s", "price", "n"), [(9.0, 1.5, 3), (1.1, 1.25, 2)])
def test_what_a_busy_machine_took_is_no_price_where_an_idle_one_tells(run, cpu_s, price, n):
    took = trained(model_0_0=1.0, model_0_1=1.5) | {"model-0-2": {"wall_s": 9.0, "cpu_s": cpu_s}}
    rows = [run(ensemble="independent(models=3)", noise=4.0, train=11.5, trainings=took)]
    (contest,) = contests_of(rows, [TASK])
    assert (contest.price.seconds, contest.price.n) == (price, n)
    assert f", the median of {n} models; every model" in render(rows, [TASK], SOURCE)
    busy = [run(noise=4.0, train=9.0, trainings={"model-0-2": {"wall_s": 9.0, "cpu_s": 1.1}})]
    assert contests_of(busy, [TASK])[0].price.seconds == 9.0, "nothing else is known"


def test_adapters_and_banks_are_charged_as_measured_and_checkpoints_as_a_model(run):
    """An adapter costs what it took; a model does not give the checkpoints of its past; copying them is no price."""
    adapter = "adapter-0-0-0-rank-8-epochs-5"
    rows = [
        run(noise=6.0, train=1.5, trainings=trained(model_0_0=1.5)),
        run(noise=6.0, train=0.5, trainings=trained(model_1_0=0.5), seed=1),
        run(ensemble="lora(models=1, adapters=1)", noise=5.0, train=1.9, trainings=trained(model_0_0=1.5)
            | {adapter: {"wall_s": 0.4, "cpu_s": 0.4}}),
        run(ensemble="checkpoints(models=1, last=5)", noise=5.0, train=9.0, trainings=trained(model_0_0=9.0)),
        run("a-bank", noise=5.0, train=70.0, trainings=trained(bank_0=70.0)),
    ]  # fmt: skip
    (contest,) = contests_of(rows, [TASK])
    assert contest.price.seconds == 1.0
    costs = {e.name: (e.costs["train"], e.costs["extra"], e.costs["total"]) for e in contest.entries}
    assert costs["trak + lora(models=1, adapters=1)"] == pytest.approx((1.4, 0.4, 2.4))
    assert costs["trak + checkpoints(models=1, last=5)"] == pytest.approx((1.0, 1.0, 2.0))
    assert costs["a-bank"] == pytest.approx((70.0, 70.0, 71.0))


def test_what_the_machine_did_beside_a_training_does_not_count_against_those_for_checkpoints(run):
    plain, copied = (trained(model_0_0=t, model_0_1=t) for t in (1.0, 1.2))
    rows = [
        run(noise=6.0, trainings=trained(model_0_0=1.0)),
        run("trak", "independent(models=2)", noise=4.0, train=2.0, trainings=plain),
        run(ensemble="checkpoints(models=2, last=2)", noise=3.0, train=2.4, trainings=copied),
    ]
    (contest,) = contests_of(rows, [TASK])
    costs = {entry.ensemble: entry.costs["train"] for entry in contest.entries}
    assert costs["checkpoints(models=2, last=2)"] == costs["independent(models=2)"] == pytest.approx(2.0)


def test_what_no_run_of_independent_models_could_show_is_told_from_what_intervals_leave_open(run):
    """Ensembles of five models cost as many as were run, so nothing can be seen to be saved, whatever their LDS."""
    curve = [run(noise=6.0), run(ensemble="independent(models=5)", noise=4.0, train=5.0, serve=5.0, storage=500)]
    five = run(ensemble="dropout(models=5, masks=5)", noise=1.0, train=5.0, serve=25.0, storage=500)
    (contest,) = contests_of([*curve, five], [TASK])
    verdict = verdicts(contest)[0]
    assert (verdict.axis, verdict.outcome, verdict.too_short) == ("train", "cannot be told", True)
    assert not verdict.tried[0].could("train")
    text = render([*curve, five], [TASK], SOURCE)
    assert "open on 1). On 1 of the open ones more independent models would have to be run to tell" in text
    assert "Of 1 ensemble of dropout masks 0 reach it and 1 is open; 0 cost little enough for it." in text
    one = run(ensemble="dropout(models=1, masks=5)", noise=4.0, serve=5.0, stream=3)
    (contest,) = contests_of([*curve, five, one], [TASK])
    verdict = verdicts(contest)[0]
    assert verdict.outcome == "cannot be told"
    assert not verdict.too_short, "an interval is at fault"
    lines = render([*curve, one], [TASK], SOURCE).splitlines()
    (training,) = (line for line in lines if line.startswith("- **Training time, claimed"))
    assert "more independent models would have to be run" not in training


def test_independent_models_win_where_nothing_else_had_several_models(run):
    """With one model only, dropout could not use the budget."""
    curve = [run(noise=6.0), run(ensemble="independent(models=5)", noise=1.0, train=5.0, serve=5.0, storage=500)]
    one, five = (run(ensemble=f"dropout(models={n}, masks=2)", noise=6.0, train=1.0 * n, serve=2.0 * n) for n in (1, 5))
    alone = "the best ensemble is independent models on 1 (on 1 of them no other ensemble of several models was run)."
    assert alone in render([*curve, one], [TASK], SOURCE)
    assert "no other ensemble of several" not in render([*curve, one, five], [TASK], SOURCE)


def test_what_an_adapter_takes_is_said_in_models(run):
    rows = [run(noise=6.0, trainings=trained(model_0_0=2.0))]
    for epochs, seconds in ((1, 0.2), (5, 1.0)):
        took = trained(model_0_0=2.0) | {
            f"adapter-0-0-{i}-epochs-{epochs}": {"wall_s": seconds, "cpu_s": 1.0} for i in (0, 1)
        }
        rows.append(run(ensemble=f"lora(models=1, adapters=2, epochs={epochs})", noise=5.0, trainings=took))
    text = render(rows, [TASK], SOURCE)
    assert (
        "Fine-tuning an adapter takes, in models (medians): 0.5 for LoRA adapters, 0.1 for LoRA adapters (1 epoch)."
        in text
    )


def test_a_run_that_was_measured_again_sets_no_price(run):
    """The first had a busy machine while it trained and served."""
    day = {"busy": "2026-01-02T03:04:05Z", "again": "2026-01-03T03:04:05Z"}
    slow, quick = (trained(model_0_0=seconds) for seconds in (9.0, 1.0))
    busy = run(noise=6.0, train=9.0, created=day["busy"], trainings=slow, phases={"fit": 1.0}, cpu_phases={"fit": 0.1})
    again = run(noise=6.0, created=day["again"], trainings=quick)
    (contest,) = contests_of([busy, again], [TASK])
    assert (contest.price.seconds, contest.entries[0].costs["train"]) == (1.0, 1.0)
    (row,) = rows_of([busy, again])
    assert row.price == contest.price, "as on the board"


def test_a_run_without_an_lds_tells_the_price_of_a_model_as_on_the_board(run):
    able = run(noise=6.0, trainings=trained(model_0_0=1.0))
    unable = replace(run(noise=6.0, seed=1, train=9.0, trainings=trained(model_1_0=9.0)), evaluation=None, no_score="x")
    old = replace(run(noise=6.0, task_version="before", trainings=trained(model_0_0=99.0)), evaluation=None)
    (contest,) = contests_of([able, unable, old], [TASK])
    assert (contest.price.seconds, contest.entries[0].costs["train"]) == (5.0, 5.0)
    prices = {row.record.task_version: row.price for row in rows_of([able, unable, old])}
    assert prices[VERSION] == contest.price


def test_models_that_took_no_time_are_no_measure_of_an_adapter(run):
    took = trained(model_0_0=0.0)
    adapted = took | {"adapter-0-0-0-epochs-5": {"wall_s": 0.0, "cpu_s": 0.0}}
    rows = [run(noise=6.0, train=0.0, trainings=took)]
    rows += [run(ensemble="lora(models=1, adapters=1)", noise=5.0, train=0.0, trainings=adapted)]
    text = render(rows, [TASK], SOURCE)
    assert "Training one model takes 0 s, as measured once" in text
    assert "Fine-tuning an adapter" not in text


def test_winners_stay_within_the_budget_and_name_who_is_level(trak):
    first, second, third = winners(trak.entries, trak.curve, "train")
    assert first.best.ensemble == "dropout(models=1, masks=20)"
    assert {e.costs["train"] for e in (first.best, *first.level)} == {1.0}
    assert second.best.kind == third.best.kind == "lora"
    assert third.n == 8
    assert third.level == (), "all others are significantly worse"
    serving = winners(trak.entries, trak.curve[:1], "serve")[0]
    assert serving.best.kind == "lora"
    assert serving.n == 2, f"1.2 is more than {1 + SERVING_TOLERANCE} times 1.0"


@pytest.mark.parametrize(("axis", "cost", "able"), [("serve", 1.08, 2), ("serve", 1.12, 1), ("train", 1.08, 1)])
def test_serving_times_count_as_equal_within_what_the_same_work_differs_by(trak, axis, cost, able):
    one = trak.curve[0]
    slower = seen(trak.others[0], costs={**one.costs, axis: cost * one.costs[axis]})
    assert winners([one, slower], [one], axis)[0].n == able


def still(by_seed):
    """Return draws that do not vary, of an LDS by seed."""
    return over_seeds({seed: [Draws(value, *[np.full(200, value)] * 3)] for seed, value in by_seed.items()})


def test_no_winner_is_worse_than_another_at_the_seeds_that_both_have(trak):
    """Of one model's three seeds the masks have the lucky one alone, and are worse there."""
    one = seen(trak.curve[0], draws=still({0: 0.30, 1: 0.20, 2: 0.22}))
    masks = seen(trak.others[0], draws=still({0: 0.285}))
    assert masks.lds > one.lds
    assert difference(masks, one)[0] == pytest.approx(-0.015)
    (winner,) = winners([one, masks], [one], "train")
    assert (winner.best, winner.level, winner.n) == (one, (), 2)


def test_level_is_what_the_best_is_not_better_than(trak):
    """Where each has one that is better the highest LDS wins, and the one that is better than it makes it a tie."""
    lds = ({(0, 1): 0.3, (4, 5): 0.1}, {(0, 1): 0.2, (2, 3): 0.21}, {(2, 3): 0.1, (4, 5): 0.2})
    of_seeds = [{seed: value for seeds, value in one.items() for seed in seeds} for one in lds]
    circle = [seen(replace(trak.curve[0], name=f"{i}"), draws=still(one)) for i, one in enumerate(of_seeds)]
    (winner,) = winners(circle, circle[:1], "train")
    assert (winner.best.name, [entry.name for entry in winner.level]) == ("1", ["0"])


def test_a_duel_is_fought_at_the_same_cost(trak):
    entries = {entry.ensemble: entry for entry in trak.others}
    lora = entries["lora(models=1, adapters=5)"]
    assert duel(lora, trak, "train").outcome == "better"
    assert duel(lora, trak, "train").size == 2.0
    assert duel(lora, trak, "train").difference == difference(lora, trak.curve[1])
    assert duel(entries["checkpoints(models=1, last=5)"], trak, "serve").outcome == "worse"


def test_beyond_the_largest_ensemble_as_good_for_more_is_no_draw(trak):
    """Twenty masks have the LDS of five models and serve at four times their cost: nobody would take them."""
    entries = {entry.ensemble: entry for entry in trak.others}
    dear = duel(entries["dropout(models=1, masks=20)"], trak, "serve")
    assert (dear.outcome, dear.size, dear.excess) == ("no better and dearer", 5.0, 4.0)
    assert dear.difference == (0.0, 0.0, 0.0)
    lora, checkpoints = entries["lora(models=1, adapters=5)"], entries["checkpoints(models=1, last=5)"]
    assert duel(seen(lora, costs={"serve": 9.0}), trak, "serve").outcome == "better but dearer"
    assert duel(seen(checkpoints, costs={"serve": 9.0}), trak, "serve").outcome == "worse"


@pytest.mark.parametrize(("cost", "excess", "said"), [(0.0, 1.0, ""), (1.0, math.inf, " at inf times the cost")])
def test_what_is_free_costs_as_much_as_what_is_free(trak, cost, excess, said):
    free = replace(trak, curve=tuple(seen(knot, costs={"train": 0.0}) for knot in trak.curve))
    lora = next(entry for entry in trak.others if entry.kind == "lora")
    found = duel(seen(lora, costs={"train": cost}), free, "train")
    assert found.excess == excess
    assert _duel(found).endswith(f" against 5 models{said}")


def test_cheaper_than_a_single_model_is_no_victory_by_itself(trak):
    entries = {entry.ensemble: entry for entry in trak.others}
    lora, masks = entries["lora(models=1, adapters=5)"], entries["dropout(models=1, masks=5)"]
    worst = seen(lora, draws=trak.curve[0].draws - lora.draws)
    found = [duel(seen(entry, costs={"serve": 0.9}), trak, "serve").outcome for entry in (lora, masks, worst)]
    assert found == [f"cheaper than one model and {word}" for word in ("better", "level", "worse")]


def test_a_duel_is_not_won_against_a_rung_that_nobody_would_take(trak):
    """Where two models happen to score below one, a budget of two buys one."""
    one, two, five = trak.curve
    dip = replace(trak, curve=(seen(one, draws=two.draws), seen(two, draws=one.draws), five))
    entry = seen(two, costs={"train": 2.0})
    assert duel(entry, dip, "train").difference == (0.0, 0.0, 0.0)
    assert best_so_far([two.draws, one.draws, five.draws]) == [two.draws, two.draws, five.draws]


def test_a_duel_between_measured_sizes_mixes_their_lds(trak):
    lora = next(entry for entry in trak.others if entry.kind == "lora")
    found = duel(seen(lora, costs={"train": 3.0}), trak, "train")
    share = np.log(3 / 2) / np.log(5 / 2)
    lds = (1 - share) * trak.curve[1].lds + share * trak.curve[2].lds
    assert found.size == 3.0
    assert found.difference[0] == pytest.approx(lora.lds - lds)
    assert found.difference[1] < found.difference[0] < found.difference[2]


def test_differences_are_those_of_compare(rows, trak):
    found = compare(rows[6].evaluation, rows[1].evaluation)
    lora = next(entry for entry in trak.others if entry.kind == "lora")
    assert difference(lora, trak.curve[1]) == (found.value, found.low, found.high)


def test_seeds_are_one_entry_with_their_mean_and_their_spread(run):
    seeds = [run(noise=noise, train=1.0 + seed, stream=1, seed=seed) for seed, noise in enumerate((3.0, 4.0, 6.0))]
    (only,) = contests_of(seeds, [TASK])
    (entry,) = only.entries
    assert (len(entry.records), entry.seeds) == (3, (0, 1, 2))
    assert entry.lds == pytest.approx(np.mean([row.evaluation.lds for row in seeds]))
    assert entry.costs["train"] == 2.0
    low, high = entry.interval
    within = entry.draws.sampled.interval()
    assert low < within[0] - 0.05 < within[1] + 0.05 < high, "models differ more than subsets and queries"


def test_a_seed_measured_twice_weighs_once(run):
    rows = [run(noise=3.0, serve=1.0), run(noise=3.0, serve=3.0, run_id="again"), run(noise=6.0, serve=6.0, seed=1)]
    (only,) = contests_of(rows, [TASK])
    (entry,) = only.entries
    assert entry.lds == pytest.approx((rows[0].evaluation.lds + rows[2].evaluation.lds) / 2)
    assert entry.costs["serve"] == 4.0


def test_costs_that_are_equal_are_so_to_the_last_bit(run):
    """Also of the mean of three that are the same."""
    rows = [run(noise=3.0, serve=0.22000000000000003, seed=seed) for seed in range(3)]
    (contest,) = contests_of([*rows, run("grad-dot", noise=3.0, serve=0.22000000000000003)], [TASK])
    assert len({entry.costs["serve"] for entry in contest.entries}) == 1
    (row,) = rows_of(rows)
    assert {axis.key: row.cost(axis) for axis in AXES} == contest.entries[1].costs


def test_a_cost_that_was_not_measured_is_not_zero(run):
    """Such runs do not count, so that none becomes an entry."""
    measured = run(noise=3.0)
    unmeasured = replace(measured, record=measured.record.model_copy(update={"costs": None}))
    with pytest.raises(ValueError, match="The costs of trak were not measured"):
        _ = Entry((unmeasured,)).costs
    (contest,) = contests_of([unmeasured], [TASK])
    assert (contest.entries, contest.without) == ((), (unmeasured,))


def test_savings_are_those_at_shared_seeds(run):
    """One model was run with three seeds, the rest with the first, which is lucky."""
    noises = {0: 2.0, 1: 6.0, 2: 9.0}
    curve = [run(noise=noise, seed=seed) for seed, noise in noises.items()]
    curve += [run(ensemble="independent(models=5)", noise=1.5, train=5.0, serve=5.0, storage=500)]
    (contest,) = contests_of([*curve, run(ensemble="dropout(models=1, masks=5)", noise=2.0, serve=5.0)], [TASK])
    (gain,) = gains(contest.families[0])
    assert gain.size.value == 1.0, "with the same model as the single one it is as good"
    assert gain.one_seed
    assert duel(gain.entry, contest.families[0], "train").difference == (0.0, 0.0, 0.0)


def test_versions_of_the_code_are_not_averaged(run):
    """A file is run, edited and run again: a repetition it is not, and no curve for what came later."""
    old = [
        run("mine", noise=6.0, sha256="0123456789"),
        run("mine", "independent(models=2)", noise=4.0, train=2.0, sha256="0123456789"),
    ]
    new = run("mine", noise=1.0, sha256="abcdef0123"), run("mine", "dropout(models=1, masks=5)", noise=1.0, sha256="ab")
    (only,) = contests_of([*old, *new], [TASK])
    assert [family.name for family in only.families] == [
        "mine (code 012345)",
        "mine (code ab)",
        "mine (code abcdef)",
    ]
    assert [entry.lds for entry in only.entries[:2]] == [old[0].evaluation.lds, new[0].evaluation.lds]
    assert [gains(family) for family in only.families] == [(), (), ()]
    assert "Run with several versions of their code, which are told apart by its hash: `mine`." in render(
        [*old, *new], [TASK], SOURCE
    )


def test_other_options_are_another_family_and_named(run):
    ridges = [run(noise=4.0, options={"projection": 512, "ridge": ridge}, stream=3) for ridge in (0.1, 0.2)]
    (only,) = contests_of(ridges, [TASK])
    assert [family.name for family in only.families] == ["trak (ridge=0.1)", "trak (ridge=0.2)"]


def test_machine_classes_are_kept_apart(rows, run):
    machine = RECORD["machine"] | {"machine_class": "other", "device": "cuda", "device_name": "A GPU"}
    gpu = run(ensemble="dropout(models=1, masks=5)", noise=1.0, train=0.001, serve=0.001, machine=machine)
    cpu, other = contests_of([*rows, gpu], [TASK])
    assert cpu.title == "digits-mlp, on A processor (family 1, model 2), 1 thread, CPU only"
    assert other.title == "digits-mlp, on A processor (family 1, model 2), 1 thread, A GPU"
    assert gains(other.families[0]) == (), "the CPU's independent ensembles are no curve for it"


def test_a_task_that_was_measured_on_two_machine_classes_counts_once(run):
    machine = RECORD["machine"] | {"machine_class": "other", "device": "cuda", "device_name": "A GPU"}
    made = [(None, 6.0, 1.0), ("independent(models=5)", 2.5, 5.0), ("dropout(models=1, masks=5)", 1.0, 1.0)]
    rows = [
        run("trak", text, noise=noise, train=cost, serve=cost, storage=100 * int(cost), stream=len(str(text)), **where)
        for text, noise, cost in made
        for where in ({}, {"machine": machine})
    ]
    rows += [run("grad-dot", noise=0.1, machine=machine)]
    text = render(rows, [TASK], SOURCE)
    for said in (
        "of 1 pair of a task and a method, the best ensemble is one of dropout masks on 1. At the training time of as"
        " many independent models of `trak`, another method is significantly better than all ensembles of `trak` that"
        " cost no more on 1 of 1 task: `grad-dot` with one model on digits-mlp, on",
        "reached on 1 of 1 pair: digits-mlp (`trak`). It rests on one seed. Of 2 ensembles of dropout masks 2 reach",
    ):
        assert said in text
    assert "A pair counts once" not in text, "its outcomes are the same"


@pytest.mark.parametrize("apart", ["options", "machine"])
def test_a_method_that_was_run_in_two_ways_is_one_pair_for_each_of_its_outcomes(run, apart):
    """With other options, or on another machine, the masks are level with five models, and with neither better."""
    changed = {
        "options": {"options": PLANNED.options | {"ridge": 77.0}},
        "machine": {"machine": RECORD["machine"] | {"machine_class": "other"}},
    }
    rows = [
        run(ensemble=text, noise=noise, train=train, serve=train, storage=100 * int(train), **where)
        for where, masks in (({}, 1.0), (changed[apart], 9.0))
        for text, noise, train in (
            (None, 6.0, 1.0),
            ("independent(models=5)", 4.0, 5.0),
            ("dropout(models=1, masks=5)", masks, 1.0),
        )
    ]
    counted = " A pair counts once for each outcome among its machine classes, options and versions of code and"
    text = render(rows, [TASK], SOURCE)
    top = text.partition("## Kinds of ensemble")[0]
    assert "Saved as claimed, by pairs of a task and a method: training time on 1 of 1, serving time on 1 of 1" in top
    assert f"reached on 1 of 1 pair (not on 1): digits-mlp (`trak`). It rests on one seed.{counted} libraries." in top
    (line,) = [line for line in top.splitlines() if line.startswith("- **At equal training time")]
    winners = "of 1 pair of a task and a method, the best ensemble is independent models on 1"
    assert winners in line
    assert f" and one of dropout masks on 1.{counted} libraries." in line
    assert "| dropout masks | 1 of 1 pair | digits-mlp" in text
    assert counted not in render(rows[:3], [TASK], SOURCE)


def test_growth_is_predicted_from_the_smallest_ensemble(trak):
    found = {growth.flavour: growth for growth in growths(trak)}
    dropout, independent = found["dropout"], found["independent"]
    assert dropout.at_last == predicted_lds(dropout.first.lds, (1, 5), (1, 20), 0.6, None)
    assert independent.at_last == predicted_lds(trak.curve[0].lds, (1, 1), (5, 1), None, 0.3)
    assert set(found) == {"dropout", "independent"}, "the others' records carry no correlations"


def test_growth_is_predicted_from_the_smallest_at_the_largest_s_seeds_and_never_from_itself(run):
    def sized(n, seed, noise, between=0.3):
        carried = {"within": None, "between": between, "n_within_pairs": 0, "n_between_pairs": n}
        return run(ensemble=f"independent(models={n})", noise=noise, seed=seed, stream=seed, correlations=carried)

    (contest,) = contests_of([sized(2, 0, 6.0), sized(2, 1, 1.0), sized(4, 0, 3.0)], [TASK])
    (growth,) = growths(contest.families[0])
    at_seed_0 = next(iter(growth.first.draws.by_seed.values())).estimate
    assert growth.at_last == predicted_lds(at_seed_0, (2, 1), (4, 1), None, 0.3)
    (contest,) = contests_of([sized(2, 0, 6.0)], [TASK])
    (alone,) = growths(contest.families[0])
    assert alone.at_last is None
    assert alone.limit > alone.first.lds


def test_nothing_is_predicted_of_an_ensemble_that_does_not_say_its_models(run):
    carried = {"within": 0.5, "between": 0.3, "n_within_pairs": 1, "n_between_pairs": 1}
    made = run(ensemble="dropout(models=1,masks=5)", noise=3.0, correlations=carried)
    (contest,) = contests_of([made], [TASK])
    assert len(growths(contest.families[0])) == 1
    record = made.record.model_copy(
        update={"ensemble": made.record.ensemble.model_copy(update={"kind": "their-own", "options": {"size": 5}})}
    )
    (contest,) = contests_of([replace(made, record=record)], [TASK])
    assert growths(contest.families[0]) == []


def test_more_members_of_a_model_and_more_models_are_two_ways_to_grow(run):
    """Ten adapters, two of each of five models, are no longer a curve than ten of one: they are another."""

    def lora(models, adapters, noise, between=None):
        carried = {"within": 0.8, "between": between, "n_within_pairs": 10, "n_between_pairs": 10 * (models - 1)}
        text = f"lora(models={models}, adapters={adapters})"
        return run(ensemble=text, noise=noise, train=9.0, stream=models + adapters, correlations=carried)

    rows = [lora(1, 5, 5.0), lora(5, 2, 2.0, between=0.4), lora(1, 10, 4.0)]
    (contest,) = contests_of(rows, [TASK])
    alone, several = growths(contest.families[0])
    assert [(g.first.ensemble, g.last.ensemble) for g in (alone, several)] == [
        ("lora(models=1, adapters=5)", "lora(models=1, adapters=10)"),
        ("lora(models=1, adapters=5)", "lora(models=5, adapters=2)"),
    ]
    assert alone.at_last == predicted_lds(alone.first.lds, (1, 5), (1, 10), 0.8, None)
    assert alone.limit == predicted_lds(alone.first.lds, (1, 5), (1, math.inf), 0.8, None)
    assert several.at_last == predicted_lds(alone.first.lds, (1, 5), (5, 2), 0.8, 0.4)
    text = render(rows, [TASK], SOURCE)
    assert f"{format_score(several.last.lds)} at 10 of 5 models | {format_score(several.at_last)} |" in text
    assert f"{format_score(alone.last.lds)} at 10 | {format_score(alone.at_last)} |" in text


def test_members_correlate_by_their_mean_over_seeds(run):
    """A seed measured twice weighs once, and one whose record has none is left out."""

    def one(seed, within, **changes):
        carried = {"within": within, "between": None, "n_within_pairs": 10, "n_between_pairs": 0}
        found = carried if within is not None else None
        return run(ensemble="dropout(models=1, masks=5)", noise=3.0, stream=seed, seed=seed, correlations=found)

    (contest,) = contests_of([one(0, None), one(1, 0.2), one(1, 0.4), one(2, 0.6)], [TASK])
    (growth,) = growths(contest.families[0])
    assert growth.within == pytest.approx(0.45)
    assert growth.between is None


def test_runs_of_different_libraries_versions_are_different_entries(run):
    newer = {"packages": RECORD["provenance"]["packages"] | {"torch": "99.0"}}
    rows = [run(noise=3.0), run(noise=3.0, seed=1), run(noise=3.0, provenance=newer)]
    (contest,) = contests_of(rows, [TASK])
    assert sorted(len(entry.records) for entry in contest.entries) == [1, 2]
    assert len(contest.families) == 2
    assert len({entry.name for entry in contest.entries}) == 2
    assert "Run with several versions of torch, whose models" in render(rows, [TASK], SOURCE)


@pytest.mark.parametrize("flavour", sorted({flavour for pair in PAIRS for flavour in pair[:2]}))
def test_the_flavours_that_are_compared_exist(run, flavour):
    kind, _, options = flavour.removesuffix(")").partition("(")
    sizes = {"dropout": "masks=2", "lora": "adapters=2", "checkpoints": "last=2", "projections": "seeds=2"}[kind]
    row = run(ensemble=f"{kind}(models=1, {sizes}{', ' if options else ''}{options})", noise=1.0)
    assert contests_of([row], [TASK])[0].entries[0].flavour == flavour


@pytest.mark.parametrize(
    ("text", "words", "kind"),
    [
        (None, "one model", "one model"),
        ("independent(models=5)", "5 independent models", "independent models"),
        ("dropout(models=1, masks=20)", "20 dropout masks of one model", "dropout masks"),
        (
            "dropout(models=5, masks=2, scope=q-only, mask=per-sample)",
            "2 dropout masks of each of 5 models (Q factor only, one for every example)",
            "dropout masks (Q factor only, one for every example)",
        ),
        ("lora(models=1, adapters=1, rank=4)", "1 LoRA adapter of one model (rank 4)", "LoRA adapters (rank 4)"),
        ("lora(models=1, adapters=5, epochs=1)", "5 LoRA adapters of one model (1 epoch)", "LoRA adapters (1 epoch)"),
        ("checkpoints(models=1, last=5)", "5 checkpoints of one model", "checkpoints"),
        (
            "checkpoints(models=2, last=5, span=whole, q_masks=20)",
            "5 checkpoints of each of 2 models (whole training, Q factor under 20 masks)",
            "checkpoints (whole training, Q factor under 20 masks)",
        ),
        ("projections(models=1, seeds=5)", "5 projections of one model", "projections"),
    ],
)
def test_an_ensemble_is_named_so_that_no_legend_is_needed(run, text, words, kind):
    (entry,) = contests_of([run(ensemble=text, noise=1.0)], [TASK])[0].entries
    assert ensemble(entry) == words
    assert flavour(entry.flavour) == kind


def test_flavours_are_compared_at_equal_size(trak):
    (pair,) = matched(trak, "dropout(scope=q-only)", "dropout")
    assert [entry.ensemble for entry in pair] == [
        "dropout(models=1, masks=5, scope=q-only)",
        "dropout(models=1, masks=5)",
    ]


# --- the same ensemble, drawn anew


@pytest.fixture(scope="module")
def ranks(run):
    """Return LoRA ensembles of three ranks, the two higher of which a task whose layers allow rank 4 cannot tell."""
    made = [("", 3.0), (", rank=32", 3.2), (", rank=2", 6.0)]
    lora = [run(ensemble=f"lora(models=1, adapters=5{text})", noise=noise, stream=4) for text, noise in made]
    return [run(noise=9.0), run(ensemble="independent(models=5)", noise=2.0, train=5.0, serve=5.0), *lora]


def test_what_is_better_than_the_largest_independent_ensemble_and_faster_to_train_is_named(rows, run):
    """The dropout ensemble of 20 masks has the very scores of five models, so it is no better."""
    whole = "checkpoints(models=1, last=5, span=whole)"
    dearer = run(ensemble="projections(models=5, seeds=2)", noise=0.5, train=5.0, serve=10.0, stream=11)
    better = run(ensemble=whole, noise=1.0, serve=5.0, storage=500, stream=12)
    said = beyond(contests_of([*rows, dearer, better], [TASK]))
    assert said[0].startswith("**Better than the largest independent ensemble** that was run of the same method")
    _, _, lora, checkpoints = (line.split(" | ") for line in said if line.startswith("|"))
    assert lora[:2] == ["| LoRA adapters", "1 of 1 pair"]
    assert re.match(
        r"digits-mlp, `trak`: 5 LoRA adapters of one model against 5 independent models: \+0\.\d+ \[", lora[2]
    )
    fewer = ", {} of that of 2 independent models, which would do (one seed) |"
    assert lora[2].endswith(" at 40 % of their training time" + fewer.format("100 %"))
    assert checkpoints[:2] == ["| checkpoints (whole training)", "1 of 1 pair"]
    assert checkpoints[2].endswith(" at 20 % of their training time" + fewer.format("50 %"))


@pytest.mark.parametrize(("adapted", "share"), [(0.0, "100 %"), (1.0, "∞ %")])
def test_what_costs_nothing_is_a_share_of_what_costs_nothing(run, adapted, share):
    """One model that took no time to train is as good as five that took some."""
    runs = [
        run(noise=3.0, train=0.0, trainings={}),
        run(ensemble="independent(models=5)", noise=3.0, train=5.0, trainings={}),
        run(ensemble="lora(models=1, adapters=1)", noise=1.0, train=adapted, trainings={}),
    ]
    (line,) = (line for line in beyond(contests_of(runs, [TASK])) if line.startswith("| LoRA"))
    assert f" of their training time, {share} of that of one model, which would do" in line


def test_where_all_independent_models_are_needed_and_several_seeds_were_run_neither_is_said(run):
    runs = [
        run(ensemble=ensemble, noise=noise, train=train, serve=5.0, seed=seed, stream=stream)
        for ensemble, noise, train, stream in [
            (None, 9.0, 1.0, 1),
            ("independent(models=5)", 2.0, 5.0, 2),
            ("checkpoints(models=1, last=5)", 0.5, 1.0, 3),
        ]
        for seed in (0, 1)
    ]
    (line,) = (line for line in beyond(contests_of(runs, [TASK])) if line.startswith("| checkpoints"))
    assert line.endswith(" at 20 % of their training time |")


def test_how_far_an_lds_moves_from_seed_to_seed_is_said_of_single_models_and_of_ensembles(run):
    """Two of the configurations of one model are one method, and the deviation does not grow with the seeds."""
    runs = [
        run(ensemble=ensemble, noise=noise, seed=seed, stream=seed, task=task)
        for ensemble, task in (
            (None, "digits-mlp"), (None, "mnist-mlp"), ("dropout(models=1, masks=5)", "mnist-mlp"),
        )
        for seed, noise in ((0, 1.0), (1, 4.0), (2, 4.0))
    ]  # fmt: skip
    runs += [run("grad-dot", noise=4.0, seed=seed, stream=0) for seed in (0, 1)]
    moved = float(np.std([r.lds for r in runs[:3]], ddof=1))
    assert of_models(contests_of(runs, [TASK, OTHER])) == (
        "From run seed to run seed, and so from model to model, an LDS has a standard deviation of up to"
        f" {moved:.3f} (median {moved:.3f}) for 3 configurations of one model (2 methods on 2 tasks) and of up to"
        f" {moved:.3f} (median {moved:.3f}) for 1 ensemble."
    )
    assert of_models(contests_of(runs[:1], [TASK])) == ""


def test_where_no_ensemble_is_better_than_the_largest_independent_one_nothing_is_said(run):
    rows = [run(noise=6.0), run(ensemble="independent(models=5)", noise=1.0, train=5.0, serve=5.0)]
    contests = contests_of([*rows, run(ensemble="dropout(models=1, masks=5)", noise=3.5, serve=5.0)], [TASK])
    assert beyond(contests) == []


def test_ranks_that_no_layer_allows_are_the_same_ensemble(ranks):
    (contest,) = contests_of(ranks, [replace(TASK, adapter_ranks=(4, 2))])
    assert {entry.asked_rank: contest.rank(entry) for entry in contest.entries} == {None: None, 8: 4, 32: 4, 2: 2}
    found = redrawn([contest])
    assert [{a.asked_rank, b.asked_rank} for _, a, b in found.pairs] == [{8, 32}]
    assert found.most == pytest.approx(abs(difference(*found.pairs[0][1:])[0]))
    assert redrawn(contests_of(ranks, [TASK])).pairs == ()
    assert redrawn(contests_of(ranks, [replace(TASK, adapter_ranks=(64,))])).pairs == ()


def test_they_are_compared_as_luck_and_not_as_ranks(ranks):
    text = render(ranks, [replace(TASK, adapter_ranks=(4, 2))], SOURCE)
    assert "LoRA of rank 32 against rank 8" not in text
    assert "LoRA of rank 2 against rank 8: better in 0, level in 0, worse in 1 of 1 pair" in text
    assert "**Luck of the draw**: on digits-mlp (rank 4) no layer" in text
    assert "Of 1 such pair, LDS differ by up to " in text
    assert " of 1 pair of LoRA ensembles that differ in nothing but the draw have " in text
    assert "- LoRA adapters of rank 8 and 32 are of rank 4 here: no layer that takes one allows more." in text
    known = render(ranks, [replace(TASK, adapter_ranks=(64,))], SOURCE)
    assert "LoRA of rank 32 against rank 8" in known
    assert "Luck of the draw" not in known


def test_adapters_of_the_last_layer_alone_are_counted_apart(ranks):
    """Where nobody knows which layers take adapters, they are not counted as those of several."""
    tasks = [replace(TASK, adapter_ranks=(64,)), replace(OTHER, adapter_ranks=(64, 10)), replace(TASK, name="unknown")]
    rows = [replace_task(row, task.name) for row in ranks for task in tasks]

    def said(rows):
        lines = render(rows, tasks, SOURCE).partition("## Kinds of ensemble")[0].splitlines()
        return next(line for line in lines if line.startswith("- **Better than independent models**"))

    count = r"LoRA adapters (\d) of 9 \(worse: (\d); where more layers than one take adapters (\d) of 3, worse: (\d)\)"
    better, worse, deep_better, deep_worse = map(int, re.search(count, said(rows)).groups())
    assert (better, worse) == (3 * deep_better, 3 * deep_worse)
    assert "where more layers" not in said([row for row in rows if row.record.task != "digits-mlp"])


def replace_task(row, name):
    return replace(row, record=row.record.model_copy(update={"task": name}))


def test_the_middle_of_savings_is_a_bound_where_one_below_it_is():
    exact, bound = Bounded(0.5, 0.4, 0.6), Bounded(0.3, 0.3, 0.3, ABOVE, ABOVE, ABOVE)
    assert _bound([exact, replace(exact, value=0.7)]).place == INSIDE
    assert _bound([bound, exact]) == replace(exact, place=ABOVE)
    below = replace(exact, place=BELOW)
    assert _bound([bound, below]) == below


def test_the_most_that_is_saved_is_a_bound_where_one_below_it_is(trak):
    """That one may save more, though its bound is lower."""
    exact, bound = Bounded(0.5, 0.4, 0.6), Bounded(0.3, 0.3, 0.3, ABOVE, ABOVE, ABOVE)
    gain = gains(trak)[0]

    def saved(*found):
        return _saved([replace(gain, savings={"train": one}) for one in found], "train")

    assert saved(bound, exact).startswith("≥ 50 % [≥ 30 % to ≥ 50 %]; claim ")
    assert saved(exact, replace(exact, value=0.6)).startswith("60 % [50 % to 60 %]; claim ")


# --- the document


@pytest.fixture
def source():
    jobs = [
        Job("digits-mlp", "trak", {}, text) for text in (None, "independent(models=2)", "dropout(models=5,masks=2)")
    ]
    left_out = LeftOut(tasks=["digits-mlp"], what="astra", reason="it takes a day")
    return Source(
        "tdabench findings runs --suite mine --out findings.md", (Suite("mine", "", tuple(jobs), (left_out,)),)
    )


def test_the_document_is_what_it_was(all_rows, source, monkeypatch):
    """To accept a change after looking at it: TDABENCH_GOLDEN=write pytest tests/test_findings.py."""
    monkeypatch.setattr(document, "__version__", "0.1.0")
    text = whole(document.render(all_rows, [TASK, OTHER], source))
    if os.environ.get("TDABENCH_GOLDEN") == "write":
        GOLDEN.write_text(text, encoding="utf-8")
    assert text == GOLDEN.read_text(encoding="utf-8")


@settings(max_examples=4)
@given(st.randoms())
def test_the_order_of_runs_does_not_matter(rows, random):
    shuffled = list(rows)
    random.shuffle(shuffled)
    assert render(shuffled, [TASK], SOURCE) == render(rows, [TASK], SOURCE)


def test_tables_hold_together_whatever_a_record_says(rows, run):
    hostile = "x | <b>`y`</b> \n| z"
    more = run(hostile, noise=3.0), run(hostile, noise=None, status="failed", reason=hostile, scores=None, seed=1)
    machine = RECORD["machine"] | {"machine_class": hostile, "cpu": hostile}
    made_with = {"tdabench_version": hostile, "packages": RECORD["provenance"]["packages"] | {"torch": hostile}}
    more += run(noise=3.0, machine=machine, provenance=made_with), run(noise=3.0, machine=machine)
    lines = render([*rows, *more], [TASK], SOURCE).splitlines()
    assert all(line.startswith("## digits-mlp, on ") for line in lines if line.startswith("## digits-mlp"))
    for above, line in itertools.pairwise(lines):
        if above.startswith("|") and line.startswith("|"):
            assert len(re.findall(r"(?<!\\)\|", above)) == len(re.findall(r"(?<!\\)\|", line))
    outside_code = re.sub(r"`[^`]*`", "", "\n".join(lines))
    assert r"\<b\>" in outside_code
    assert "<b>" not in outside_code


def test_nothing_to_compare_is_said(run):
    text = render([run(noise=3.0)], [TASK], SOURCE)
    assert "No dropout or LoRA ensemble can be held against the claim." in text
    assert "### Saved" not in text
    assert "### Who wins" not in text
    assert "No LDS for the runs of `digits-mlp`" in render([run(noise=3.0)], [], SOURCE)


def test_each_of_several_tasks_has_a_page(all_rows, run, source):
    found = document.render(all_rows, [TASK, OTHER], source, "my findings.md")
    assert [*found.pages] == ["my findings-by-task/digits-mlp.md", "my findings-by-task/mnist-mlp.md"]
    assert "[mnist-mlp](my%20findings-by-task/mnist-mlp.md)" in found.text
    assert "### LDS and costs" not in found.text
    page = found.pages["my findings-by-task/mnist-mlp.md"]
    head = "# mnist-mlp\n\nPart of [Findings of the suite `mine`](../my%20findings.md), which say how"
    assert page.startswith(head)
    assert "\n## LDS and costs\n" in page
    one = document.render([run(noise=3.0)], [TASK], source)
    assert not one.pages
    assert "\n## digits-mlp\n" in one.text
    assert "\n### LDS and costs\n" in one.text


def test_pages_have_names_of_their_own(run):
    tasks = [replace(TASK, name=name) for name in ("a/b", "a+b", "A b", "++")]
    rows = [replace_task(run(noise=3.0), task.name) for task in tasks]
    pages = document.render(rows, tasks, SOURCE).pages
    assert [*pages] == [f"findings-by-task/{name}.md" for name in ("task", "a-b", "a-b--2", "a-b--3")]
    assert [text.splitlines()[0] for text in pages.values()] == ["# ++", "# A b", "# a+b", "# a/b"]


def test_pages_that_a_document_had_before_go_and_no_other_file(all_rows, tmp_path):
    out, folder = tmp_path / "findings.md", tmp_path / "findings-by-task"
    pages = write(document.render(all_rows, [TASK, OTHER], SOURCE), out)
    assert pages == [folder / "digits-mlp.md", folder / "mnist-mlp.md"]
    (folder / "mine.md").write_text("# Mine\n\nPart of [my thesis](../thesis.md).\n")
    (folder / "short.md").write_text("# Mine\n")
    assert write(document.render(all_rows, [OTHER], SOURCE), out) == []
    assert sorted(path.name for path in folder.iterdir()) == ["mine.md", "short.md"]
    assert "\n## mnist-mlp\n" in out.read_text()


def test_the_document_says_whose_luck_its_intervals_leave_out(rows, all_rows):
    one = render(rows, [TASK], SOURCE)
    assert "Every configuration was run with one seed, so intervals hold no variation between trained models" in one
    assert "**reached** (one seed)" in one
    both = render(all_rows, [TASK, OTHER], SOURCE)
    assert "3 of 12 configurations were run with several seeds (0, 1, 2)" in both
    assert "Every configuration was run with several seeds (0, 1, 2), so intervals hold the variation" in both
    assert "`trak`, up to 60 % of serving time: **reached**; of those that reach it, at best" in both


def test_the_document_says_what_spoils_a_comparison(run):
    busy = {"cpu_phases": {"fit": 0.5, "attribute": 0.5}}
    rows = [
        run("tuned", noise=3.0),
        run("lazy", noise=3.0, options_from="defaults", **busy),
        run("own", noise=3.0, options_from="given"),
    ]
    text = render(rows, [TASK], SOURCE)
    assert "Options that can be tuned, but were not: at their defaults for `lazy`; set by hand for `own`." in text
    assert "Times of 1 of 3 runs are too long: the machine did other work." in text


def test_what_tuning_took_stands_beside_all_methods(run):
    def charged(made, tune_s):
        costs = made.record.costs.model_copy(update={"tune_s": tune_s})
        return replace(made, record=made.record.model_copy(update={"costs": costs}))

    rows = [
        charged(run("here", noise=3.0), 90.0),
        charged(run("there", noise=3.0), None),
        charged(run("lazy", noise=3.0, options_from="defaults"), 0.0),
        charged(run("nothing-to-tune", noise=3.0, options_from=None), 0.0),
    ]
    said = {}
    for line in render(rows, [TASK], SOURCE).partition("**All methods on one model**")[2].splitlines()[4:8]:
        name, *_, tuning = line.strip("| ").split(" | ")
        said[name.strip("`")] = tuning
    assert said == {"here": "1.5 min", "there": "elsewhere", "lazy": "–", "nothing-to-tune": "–"}


def test_what_finds_wrong_labels_is_told_apart_from_what_has_the_highest_lds(run):
    def finding(made, auroc):
        return replace(made, evaluation=replace(made.evaluation, mislabel_auroc=auroc))

    rows = [finding(run("first", noise=0.1), 0.61)]
    rows += [finding(run(name, noise=9.0), auroc) for name, auroc in [("b", 0.9), ("c", 0.8), ("d", 0.7), ("e", 0.5)]]
    rows += [finding(run("trak", "independent(models=2)", noise=9.0), 0.99)]
    text = render(rows, [TASK], SOURCE)
    assert (
        "methods on one model: on digits-mlp `b` 0.900, `c` 0.800, `d` 0.700, and `first` 0.610, whose LDS is the"
        " highest."
    ) in text
    head, _, *cells = text.partition("**All methods on one model**")[2].strip().splitlines()[:4]
    assert head.endswith("| AUROC of wrong labels |")
    assert cells[0].endswith("| 0.610 |")
    assert "wrong labels" not in render([run("first", noise=0.1)], [TASK], SOURCE)


def test_a_document_is_called_by_its_suites_and_links_its_tasks(run):
    suites = tuple(replace(find_suite("quick"), name=name) for name in ("one", "two"))
    rows = [run("trak", noise=1.0), run("trak", noise=1.0, task="mnist-mlp")]
    text = render(rows, [TASK, OTHER], replace(SOURCE, suites=suites))
    assert text.startswith("# Findings of the suites `one`, `two`\n")
    links = ", ".join(f"[{name}](findings-by-task/{name}.md)" for name in ("digits-mlp", "mnist-mlp"))
    assert f"By task, with every ensemble's LDS, costs and savings: {links}." in text
    assert {"# digits-mlp", "# mnist-mlp"} <= set(text.splitlines())


def test_ensembles_that_were_measured_with_another_engine_are_named(run):
    """The engine sets serving time and memory, so a family of two engines may save what the engine has gained."""
    pair = [(None, {}), ("independent(models=2)", {"provenance": {"sources_sha256": "f" * 16}})]
    mixed = [run("trak", ensemble, noise=3.0, **changes) for ensemble, changes in pair]
    alone = [run("grad-dot", noise=3.0, **pair[1][1]), run("rep-sim", noise=3.0)]
    said = "Measured with several versions of tdabench's own sources"
    (line,) = [line for line in render([*mixed, *alone], [TASK], SOURCE).splitlines() if said in line]
    assert line.endswith("may be theirs: `trak`.")
    assert said not in render([mixed[0], *alone], [TASK], SOURCE)


def test_a_ladder_that_ends_before_is_no_ladder_of_five(run, all_rows):
    short = [
        run(noise=6.0),
        run(ensemble="independent(models=2)", noise=4.0, train=2.0, serve=2.0, storage=200),
        run(ensemble="dropout(models=1, masks=2)", noise=5.0, serve=2.0),
    ]
    assert "at most that of 5 independent models (of fewer where the ladder ends before) of the" in render(
        short, [TASK], SOURCE
    )
    assert "of fewer where" not in render(all_rows, [TASK, OTHER], SOURCE)


def test_without_a_single_model_nothing_is_held_against_the_curve(run):
    """The masks are below two models, and nobody knows whether below one."""
    pair = [
        run(ensemble="independent(models=2)", noise=3.5, train=2.0, serve=2.0, storage=200, stream=2),
        run(ensemble="independent(models=5)", noise=2.5, train=5.0, serve=5.0, storage=500, stream=3),
    ]
    rows = [*pair, run(ensemble="dropout(models=1, masks=5)", noise=6.0, serve=5.0, stream=4)]
    (contest,) = contests_of(rows, [TASK])
    assert (gains(contest.families[0]), verdicts(contest)) == ((), [])
    text = render(rows, [TASK], SOURCE)
    section = text[text.index("## digits-mlp") :]
    assert "- Not held against anything, as no single model was run: `trak`." in section
    assert "no independent ensembles were run" not in text
    assert "No dropout or LoRA ensemble can be held against the claim." in text
    for untrue in ("**not reached**", "as good as a single model", "cheaper than one model", "at its own cost**"):
        assert untrue not in text
    assert "Ensembles of `trak`**, within 5 % (serving time: 10 %): the best at that cost" in section, (
        "who wins at a cost needs no single model"
    )
    (found,) = numbers(rows, [TASK])[0]["methods"]
    assert {entry["equal_lds"] for entry in found["ensembles"]} == {None}
    of_one = [run(ensemble="independent(models=1)", noise=6.0), *rows]
    assert len(gains(contests_of(of_one, [TASK])[0].families[0])) == 1, "an ensemble of one is a single model"


def test_without_independent_ensembles_the_document_says_that_there_are_none(run):
    rows = [run(noise=6.0), run(ensemble="dropout(models=1, masks=5)", noise=3.0, serve=5.0)]
    text = render(rows, [TASK], SOURCE)
    assert "- Not held against anything, as no independent ensembles were run: `trak`." in text
    assert "no single model was run" not in text


def test_a_ladder_that_starts_beyond_the_budget_is_not_headed_by_it(run):
    rows = [
        run(ensemble="independent(models=10)", noise=3.0, train=10.0, serve=10.0, storage=1000, stream=2),
        run(ensemble="independent(models=20)", noise=2.5, train=20.0, serve=20.0, storage=2000, stream=3),
        run(ensemble="dropout(models=1, masks=5)", noise=6.0, serve=5.0, stream=4),
    ]
    text = render(rows, [TASK], SOURCE)
    assert "5 independent models" not in text
    assert "| 10 independent models, LDS " in text, "the section has the ladder's own budgets"
    other = [
        run("logra", noise=6.0),
        run("logra", "independent(models=2)", noise=4.0, train=2.0, serve=2.0, storage=200),
        run("logra", "dropout(models=1, masks=2)", noise=5.0, serve=2.0),
    ]
    assert "| digits-mlp, `logra`, at the cost of 2 independent models |" in render([*rows, *other], [TASK], SOURCE)


def test_a_claim_of_up_to_so_much_is_quoted_as_that(rows):
    text = render(rows, [TASK], SOURCE)
    assert "save up to 80 % of training time, up to 60 % of serving time and up to 80 % of storage" in text
    assert len(re.findall(r"(?<!up to )(?:80|60) % of (?:training|serving|storage)", text)) == 0
    assert "gainst the claim:" not in text


def test_the_top_names_the_winner_at_equal_cost_and_what_is_level_with_it(all_rows):
    text = render(all_rows, [TASK, OTHER], SOURCE)
    top = text[: text.index("## Kinds of ensemble")]
    (line,) = [line for line in top.splitlines() if line.startswith("| mnist-mlp")]
    assert line.count("**10 dropout masks of one model (Q factor only)**") == 3
    assert line.count("Level: no other kind") == 3
    assert (
        "of 2 pairs of a task and a method, the best ensemble is one of LoRA adapters on 1 and one of dropout masks"
        " on 1."
    ) in top


def test_a_saving_where_more_models_do_not_help_or_another_method_is_the_better_buy_is_called_so(run):
    """Ten models are as good as one, and a single model of another method beats what saves."""
    rows = [
        run(noise=4.0),
        run(ensemble="independent(models=10)", noise=4.0, train=10.0, serve=10.0, storage=1000),
        run(ensemble="dropout(models=1, masks=20)", noise=3.0),
        run("ek-fac", noise=0.5, train=1.0, serve=0.5, storage=900),
    ]
    top = render(rows, [TASK], SOURCE).partition("## Kinds of ensemble")[0]
    (training,) = [line for line in top.splitlines() if line.startswith("- **Training time")]
    assert (
        "On 1 of the pairs that reach it, digits-mlp (`trak`), fewer independent models are as good as the most"
        in training
    )
    assert "(`trak`), whatever reaches it is beaten by `ek-fac` with one model: a higher LDS, at no more" in training
    (storage,) = [line for line in top.splitlines() if line.startswith("- **Storage")]
    assert "is beaten by" not in storage, "it stores more"
    helped = [run(noise=9.0), *rows[1:3], run("ek-fac", noise=0.5, serve=50.0)]
    top = render(helped, [TASK], SOURCE).partition("## Kinds of ensemble")[0]
    assert "reached on 1 of 1 pair: digits-mlp (`trak`)" in top
    assert "fewer independent models are as good" not in top
    assert "is beaten by" not in top, "it takes longer"


def test_a_saving_against_more_models_than_help_is_called_so(run):
    """Ten models have the scores of five, so that whatever is better saves against ten, and half as much for a user."""
    steep = [run(noise=9.0), run(ensemble="independent(models=5)", noise=4.0, train=5.0, serve=5.0, storage=500)]
    more = run(ensemble="independent(models=10)", noise=4.0, train=10.0, serve=10.0, storage=1000)
    cheap = run(ensemble="dropout(models=1, masks=5)", noise=1.0, serve=3.0, stream=2, train=1.9)
    said = {}
    for name, rows in {"five": [*steep, cheap], "ten": [*steep, more, cheap]}.items():
        lines = render(rows, [TASK], SOURCE).partition("## Kinds of ensemble")[0].splitlines()
        said[name] = next(line for line in lines if line.startswith("- **Serving time"))
    assert "reached on 0 of 1 pair" in said["five"]
    assert "reached on 1 of 1 pair" in said["ten"]
    assert "On 1 of the pairs that reach it, digits-mlp (`trak`), fewer independent models are as good" in said["ten"]
    assert "; 40 % against 5 independent models, more of which are not significantly better." in said["ten"]
    assert "not significantly better." not in said["five"]


def test_a_tie_of_two_kinds_is_not_counted_for_the_higher_estimate(run):
    rows = [
        run(noise=9.0),
        run(ensemble="independent(models=5)", noise=6.0, train=5.0, serve=5.0, storage=500),
        run(ensemble="dropout(models=1, masks=5)", noise=2.0, serve=5.0, stream=4),
        run(ensemble="checkpoints(models=1, last=5)", noise=2.0, serve=5.0, storage=500, stream=4),
    ]
    lines = render(rows, [TASK], SOURCE).partition("## Kinds of ensemble")[0].splitlines()
    (line,) = [line for line in lines if line.startswith("- **At equal serving time")]
    assert "the best ensemble is a tie of others than independent models on 1." in line


def test_what_leads_is_significantly_better(run):
    rows = [
        run(noise=6.0),
        run(ensemble="independent(models=5)", noise=4.0, train=5.0, serve=5.0, storage=500, stream=1),
        run(ensemble="dropout(models=1, masks=5)", noise=4.0, serve=5.0, stream=1),
        run("logra", noise=6.0),
        run("logra", "independent(models=5)", noise=4.0, train=5.0, serve=5.0, storage=500, stream=1),
        run("logra", "dropout(models=1, masks=5)", noise=0.5, serve=5.0, stream=2),
    ]
    top = render(rows, [TASK], SOURCE).partition("## Kinds of ensemble")[0]
    (line,) = [line for line in top.splitlines() if line.startswith("- **At equal training time")]
    assert "the best ensemble is a tie of independent models and others on 1 and one of dropout masks on 1." in line


def test_each_race_speaks_of_its_own_method(run):
    """On one task the weak method has the most ensembles, on the other one the other method, and is the weak one."""

    def two(weak, strong, task):
        curve = [(None, 1.0), ("independent(models=5)", 5.0)]
        more = [(f"dropout(models=1, masks={n})", 1.0) for n in (2, 5)]
        return [
            run(method, text, noise=noise, train=train, serve=train, stream=len(str(text)), task=task)
            for method, noise, made in ((weak, 9.0, [*curve, *more]), (strong, 0.5, [*curve, *more[:1]]))
            for text, train in made
        ]

    rows = [*two("mine", "trak", "digits-mlp"), *two("trak", "mine", "mnist-mlp")]
    top = render(rows, [TASK, OTHER], SOURCE).partition("## Kinds of ensemble")[0]
    (line,) = [line for line in top.splitlines() if line.startswith("- **At equal training time")]
    one, other = line.split(" At the training time of as many independent models of ")[1:]
    for text, weak, strong, task in ((one, "mine", "trak", "digits"), (other, "trak", "mine", "mnist")):
        lost = f"`{weak}`, another method is significantly better than all ensembles of `{weak}` that cost no more on"
        assert text.startswith(f"{lost} 1 of 1 task: `{strong}` with ")
        assert text.endswith(f"on {task}-mlp.")


@pytest.mark.parametrize(("sign", "beaten"), [(1, True), (-1, False)])
def test_what_beats_all_ensembles_is_better_than_each_and_not_than_their_winner_alone(run, sign, beaten):
    """The masks are level with the models, and where they vary the other way nobody knows what beats them."""

    def judged(method, text, lds, train, sign=1):
        made, ends = run(method, text, noise=1.0, train=train), lds + 0.02 * sign * np.resize([1.0, -1.0], 200)
        draws = Draws(lds, ends, np.full(200, lds), ends)
        return replace(made, evaluation=replace(made.evaluation, lds=lds, draws=draws))

    rows = [
        judged("trak", None, 0.20, 1.0),
        judged("trak", "independent(models=5)", 0.30, 5.0),
        judged("trak", "dropout(models=1, masks=5)", 0.295, 1.0, sign),
        judged("new", None, 0.31, 4.0),
    ]
    lines = render(rows, [TASK], SOURCE).partition("## Kinds of ensemble")[0].splitlines()
    (line,) = [line for line in lines if line.startswith("- **At equal training time")]
    assert ("than all ensembles of `trak` that cost no more on 1 of 1 task: `new` with one model" in line) == beaten


def test_a_method_that_was_run_on_the_task_is_missing_on_none_of_its_machine_classes(run):
    machine = RECORD["machine"] | {"machine_class": "other", "device": "cuda", "device_name": "A GPU"}
    rows = [run(noise=3.0), run("mine", noise=3.0, machine=machine)]
    assert "(run on another task)" not in render(rows, [TASK], SOURCE)
    text = render([*rows, run(noise=3.0, task="mnist-mlp")], [TASK, OTHER], SOURCE)
    assert "- mnist-mlp: `mine` (run on another task).\n" in text


def test_runs_of_a_suite_that_were_not_made_as_it_would_make_them_are_not_there(run):
    """`tdabench suite` would measure them: of other options, or of other code."""
    source = Source("x", (Suite("mine", "", (Job("digits-mlp", "trak", {}),)),))
    there = "Suite `mine`: 1 of 1 run has an LDS."
    missing = "Suite `mine`: 0 of 1 run has an LDS; not there: 1, `digits-mlp trak`."
    other = run(noise=3.0, options=PLANNED.options | {"ridge": 77.0}), run(noise=3.0, sha256="c" * 64)
    assert there in render([run(noise=3.0), *other], [TASK], source)
    for row in other:
        assert missing in render([row], [TASK], source)
    gone = Source("x", (Suite("mine", "", (Job("digits-mlp", "gone.py:Mine", {}),)),))
    assert there in render([run("gone.py:Mine", noise=3.0)], [TASK], gone), "its code is not at hand"


def test_runs_of_a_suite_are_told_apart_by_the_options_that_it_gives(run):
    jobs = [Job("digits-mlp", "trak", options) for options in ({}, {"ridge": 77.0}, {"ridge": 78.0})]
    source = Source("x", (Suite("mine", "", tuple(jobs)),))
    given = [run(noise=3.0, options=plan(jobs[1]).options | {"ridge": ridge}) for ridge in (77.0, 79.0)]
    text = render([run(noise=3.0), *given], [TASK], source)
    assert "Suite `mine`: 2 of 3 runs have an LDS; not there: 1, `digits-mlp trak (ridge=78.0)`." in text


def test_runs_of_a_suite_that_failed_or_are_out_of_date_are_not_there(run):
    jobs = [Job("digits-mlp", "trak", {}, None, seed) for seed in range(4)]
    source = Source("x", (Suite("mine", "", tuple(jobs)),))
    rows = [
        run(noise=3.0),
        run(noise=None, status="failed", reason="it broke", scores=None, seed=1),
        replace(run(noise=3.0, task_version="before", seed=2), evaluation=None),
    ]
    text = render(rows, [TASK], source)
    assert (
        "Suite `mine`: 1 of 4 runs have an LDS; without one: 1, `digits-mlp trak, seed 1` (failed);"
        " not there: 2, `digits-mlp trak, seed 2`, `digits-mlp trak, seed 3`." in text
    )
    assert "of an older version of the task" in text
    other = replace(rows[0], evaluation=None, no_score="no LDS: its evidence is of other ground truth than there is")
    text = render([other, run(noise=3.0, seed=1)], [TASK], source)
    assert "without one: 1, `digits-mlp trak` (evidence of other ground truth);" in text


def test_ensembles_that_read_the_same_are_told_apart_and_keep_their_own_savings(run):
    """A record of another version has no such option, which is at its default and not written in the other."""
    text = "lora(models=1, adapters=2)"
    old = run(ensemble=text, noise=4.0, train=2.0, stream=2)
    options = {k: v for k, v in old.record.ensemble.options.items() if k != "epochs"}
    lacking = old.record.ensemble.model_copy(update={"options": options})
    old = replace(old, record=old.record.model_copy(update={"ensemble": lacking}))
    curve = [run(noise=6.0), run(ensemble="independent(models=5)", noise=2.5, train=5.0, serve=5.0, storage=500)]
    rows = [*curve, old, run(ensemble=text, noise=3.0, train=4.0, stream=3)]
    found = {e["name"]: e for e in numbers(rows, [TASK])[0]["methods"][0]["ensembles"]}
    names = [f"trak + {text}", f"trak + {text} (epochs=5)"]
    assert sorted(list(found)[2:]) == names
    shares = [found[name]["equal_lds"]["saved"]["extra"]["value"] for name in names]
    assert shares[0] > shares[1], "each at its own cost"
    document = render(rows, [TASK], SOURCE)
    for words in ("| 2 LoRA adapters of one model |", "| 2 LoRA adapters of one model (epochs=5) |"):
        assert words in document
    (contest,) = contests_of(rows, [TASK])
    named = {entry.name: contender(entry) for entry in contest.entries}
    assert named[names[1]] == "`trak` with 2 LoRA adapters of one model (epochs=5)"


def test_an_independent_ensemble_of_one_stands_beside_the_single_model(run):
    """It is no other size of the curve, and was run: tables have it."""
    rows = [
        run(noise=6.0),
        run(ensemble="independent(models=1)", noise=6.0),
        run(ensemble="independent(models=5)", noise=2.5, train=5.0, serve=5.0, storage=500),
        run(ensemble="dropout(models=1, masks=5)", noise=4.0, serve=5.0),
    ]
    (contest,) = contests_of(rows, [TASK])
    (family,) = contest.families
    assert family.entries == (family.curve[0], *family.doubles, family.curve[1], *family.others)
    assert [entry.ensemble for entry in family.curve] == ["one model", "independent(models=5)"]
    table = render(rows, [TASK], SOURCE).partition("### LDS and costs")[2].partition("### Saved")[0]
    assert [line.split(" | ")[0] for line in table.splitlines() if line.startswith("| ")][1:] == [
        "| :--", "| one model", "| 1 independent model", "| 5 independent models", "| 5 dropout masks of one model",
    ]  # fmt: skip
    (method,) = numbers(rows, [TASK])[0]["methods"]
    assert len(method["ensembles"]) == 4


def test_the_numbers_are_those_of_the_document(all_rows):
    found = json.loads(json.dumps(numbers(all_rows, [TASK, OTHER]), allow_nan=False))
    assert [contest["task"] for contest in found] == ["digits-mlp", "mnist-mlp"]
    method = next(m for m in found[0]["methods"] if m["method"] == "trak")
    assert method["claim"] == {"train": "cannot be told", "serve": "reached", "storage": "cannot be told"}
    by_name = {e["ensemble"]: e for e in method["ensembles"]}
    lora = by_name["lora(models=1, adapters=5)"]
    assert lora["equal_lds"]["saved"]["serve"] == {
        "value": 0.9, "low": 0.9, "high": 0.9, "bound": "at least", "low_bound": "at least", "high_bound": "at least",
    }  # fmt: skip
    assert lora["equal_lds"]["claim"]["all"] == "cannot be told"
    assert lora["equal_cost"]["serve"]["outcome"] == "cheaper than one model and better"
    assert by_name[None]["equal_lds"] is None
    assert by_name["checkpoints(models=1, last=5)"]["equal_lds"]["saved"]["train"]["bound"] == "below the curve"
    best = [winner["best"] for winner in found[1]["methods"][0]["winners"]]
    assert best == ["trak + dropout(models=1, masks=10, scope=q-only)"] * 6
    assert found[1]["methods"][0]["ensembles"][0]["seeds"] == [0, 1, 2]


# --- the command


@pytest.fixture
def tdabench(capfd):
    def call(*words):
        capfd.readouterr()
        code = 0
        try:
            cli.main([str(word) for word in words])
        except SystemExit as done:
            code = done.code or 0
        return code, *capfd.readouterr()

    return call


@pytest.fixture
def folders(tmp_path, small, small_truth_folder):
    """Return two folders of run folders on the small task."""
    reading._evaluator.cache_clear()
    rng = np.random.default_rng(0)
    made = {
        "a": None,
        "b": "independent(models=2)",
        "c": "dropout(models=1, masks=5)",
        "d": "lora(models=1, adapters=2)",
    }
    for name, wrapped in made.items():
        folder = tmp_path / ("one" if name in "ab" else "two") / name
        folder.mkdir(parents=True)
        scores = rng.normal(size=(small.n_queries, small.n_train)).astype(np.float32)
        sha256 = write_arrays(folder / "scores.safetensors", {"scores": scores})
        value = RECORD | {"run_id": name, "task": "small", "task_version": small.version, "correlations": None}
        value |= {"scores": {"sha256": sha256, "shape": list(scores.shape), "dtype": "float32"}}
        (folder / "record.json").write_text(json.dumps(value | {"ensemble": ensemble_record(wrapped)}))
    yield tmp_path / "one", tmp_path / "two"
    reading._evaluator.cache_clear()


def test_the_command_writes_the_same_bytes_in_any_order(tdabench, folders, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, _ = tdabench("findings", "one", "two", "--out", "docs/findings.md")
    assert (code, out) == (0, "4 runs of 1 task: docs/findings.md\n")
    text = Path("docs/findings.md").read_text()
    assert "tdabench findings one two --out docs/findings.md\n" in text
    for axis in AXES:
        assert f"| {axis.name.lower()} |" in text
    code, out, _ = tdabench("findings", "two", "one", "two/c", "--out", "docs/findings.md", "--json")
    told = json.loads(out)
    assert (told["file"], told["runs"], told["tasks"]) == ("docs/findings.md", 4, ["small"])
    assert [e["ensemble"] for e in told["findings"][0]["methods"][0]["ensembles"]][1] == "independent(models=2)"
    assert Path("docs/findings.md").read_text() == text.replace("one two --out", "one two two/c --out")


def test_the_command_counts_the_tasks_of_the_runs(tdabench, folders, tmp_path, monkeypatch):
    """As the document does, also those that are not at hand."""
    monkeypatch.chdir(tmp_path)
    folder = Path(shutil.copytree(folders[0] / "a", folders[0] / "e"))
    record = json.loads((folder / "record.json").read_text())
    (folder / "record.json").write_text(json.dumps(record | {"task": "a-task-that-is-not-here"}))
    _, out, _ = tdabench("findings", "one", "two")
    assert out == "5 runs of 2 tasks: findings.md\n"
    assert "- 5 runs of 2 tasks, of which 4 have an LDS;" in Path("findings.md").read_text()


def test_the_command_counts_a_run_once_however_often_it_is_given(tdabench, folders, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tdabench("findings", "one", "two")
    text = Path("findings.md").read_text()
    shutil.copytree(folders[0] / "a", folders[1] / "copy of a")
    _, out, err = tdabench("findings", "one", "two")
    assert out == "4 runs of 1 task: findings.md\n"
    assert "1 folder is left out, as another holds the same record: a run counts once.\n" in err
    assert Path("findings.md").read_text() == text
    (tmp_path / "both").mkdir()
    for name in ("a", "again"):
        shutil.copytree(folders[0] / "a", tmp_path / "both" / name)
    _, out, err = tdabench("board", "both", "--json")
    assert len(json.loads(out)) == 1
    assert "1 folder is left out" in err


def test_the_command_names_no_folder_of_the_machine(tdabench, folders, tmp_path):
    out = tmp_path / "findings.md"
    assert tdabench("findings", *folders, "--out", out)[0] == 0
    assert str(tmp_path) not in out.read_text()


def test_mistakes_leave_the_file_as_it_was(tdabench, folders, tmp_path):
    out = tmp_path / "findings.md"
    out.write_text("before")
    (tmp_path / "empty").mkdir()
    code, _, err = tdabench("findings", tmp_path / "empty", "--out", out)
    assert code == 2
    assert re.search(r"There is no run in .*empty. Run `tdabench suite quick`", err)
    assert tdabench("findings", tmp_path / "gone", "--out", out)[0] == 2
    assert tdabench("findings", folders[0], "--suite", "no-such-suite", "--out", out)[0] == 2
    write_arrays(folders[0] / "a" / "scores.safetensors", {"scores": np.ones((40, 120), dtype=np.float32)})
    assert tdabench("findings", *folders, "--out", out)[0] == 2
    assert out.read_text() == "before"
