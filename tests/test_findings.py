"""Findings: savings and winners computed from runs, and written as a pure function of them."""

from __future__ import annotations

import itertools
import json
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tdabench import cli, results
from tdabench.board.rows import AXES, Row, TaskInfo
from tdabench.ensembles import kind_of, parse_ensemble
from tdabench.evaluation import Evaluator, compare
from tdabench.files import write_arrays
from tdabench.findings import Source, contests_of, document, render
from tdabench.findings.agreement import growths
from tdabench.findings.curves import ABOVE, BELOW, INSIDE, Bounded, cost_at, reach, saving, share_saved
from tdabench.findings.entries import difference
from tdabench.findings.markdown import share
from tdabench.findings.savings import CLAIMS, gains, verdicts
from tdabench.findings.summary import PAIRS, matched
from tdabench.findings.winners import TOLERANCE, duel, winners
from tdabench.jobs import Job
from tdabench.options import values
from tdabench.records import Record
from tdabench.saturation import predicted_lds
from tdabench.suites import LeftOut, Suite

GOLDEN = Path(__file__).parent / "golden" / "findings.md"
RECORD = json.loads((Path(__file__).parent / "golden" / "record.json").read_text())
N_SUBSETS, N_TRAIN, N_QUERIES = 40, 60, 24
VERSION = RECORD["task_version"]
TASK = TaskInfo("digits-mlp", "Digits", VERSION, "Made up.", N_TRAIN, N_QUERIES, N_SUBSETS, 2, 0.9, 0.8)
SOURCE = Source("tdabench findings runs --out findings.md")


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
        (Bounded(0.7, 0.6, 0.79), False, True, "70 % [60 %, 79 %]"),
        (Bounded(0.7, 0.6, 0.9), False, False, "70 % [60 %, 90 %]"),
        (Bounded(0.7, 0.6, 0.75, INSIDE, INSIDE, ABOVE), False, False, "70 % [60 %, ≥ 75 %]"),
        (Bounded(0.9, 0.9, 0.9, ABOVE, ABOVE, ABOVE), True, False, "≥ 90 % [≥ 90 %, ≥ 90 %]"),
        (Bounded(0.9, 0.9, 0.9, BELOW, BELOW, INSIDE), False, False, "none [none, 90 %]"),
        (Bounded(-1.5, -np.inf, -1.0), False, True, "−150 % [−∞ %, −100 %]"),
    ],
)
def test_a_claim_is_held_against_what_the_interval_leaves_open(found, reaches, misses, text):
    assert (found.surely_reaches(0.8), found.surely_misses(0.8)) == (reaches, misses)
    assert share(found) == text


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
    """Return a factory of rows: noise of the given amount on perfect scores, costs as a multiple of one model's."""
    perfect, evaluator = world

    def make(method="trak", ensemble=None, noise=None, train=1.0, serve=1.0, storage=100, stream=1, **changes) -> Row:
        costs = RECORD["costs"] | {"train_s": train, "extra_train_s": max(train - 1.0, 0.0), "storage_bytes": storage}
        value = RECORD | {"method": method, "ensemble": ensemble_record(ensemble), "correlations": None} | changes
        value["run_id"] = f"{method}-{ensemble}-{value['seed']}"
        value["costs"] = costs | {"fit_s": serve / 2, "attribute_s": serve / 2} if noise is not None else None
        record = Record.model_validate(value)
        if noise is None:
            return Row(record)
        added = np.random.default_rng(stream).normal(size=perfect.shape)
        return Row(record, evaluator.evaluate((perfect + noise * added).astype(np.float32)))

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
    assert share(below.savings["storage"]).startswith("none")


def test_the_claim_is_judged_for_dropout_and_lora_alone(contest):
    found = {verdict.axis: verdict for verdict in verdicts(contest)}
    assert set(found) == set(CLAIMS)
    assert {verdict.n for verdict in found.values()} == {4}, "checkpoints are not among them"
    assert found["serve"].outcome == "met"
    assert found["serve"].best.entry.kind == "lora"
    assert found["storage"].outcome == "cannot be told"
    assert found["storage"].n_beyond == 1


def test_winners_stay_within_the_budget_and_name_who_is_level(trak):
    first, second, third = winners(trak.entries, trak.curve, "train")
    assert first.best.ensemble == "dropout(models=1, masks=20)"
    assert {e.costs["train"] for e in (first.best, *first.level)} == {1.0}
    assert second.best.kind == third.best.kind == "lora"
    assert third.n == 8
    assert third.level == (), "all others are significantly worse"
    serving = winners(trak.entries, trak.curve[:1], "serve")[0]
    assert serving.best.kind == "lora"
    assert serving.n == 2, f"1.2 is more than {1 + TOLERANCE} times 1.0"


def test_a_duel_is_fought_at_the_same_cost(trak):
    entries = {entry.ensemble: entry for entry in trak.others}
    lora, masks20 = entries["lora(models=1, adapters=5)"], entries["dropout(models=1, masks=20)"]
    assert duel(lora, trak, "train").outcome == "ahead"
    assert duel(lora, trak, "train").size == 2.0
    assert duel(lora, trak, "train").difference == difference(lora, trak.curve[1])
    assert duel(lora, trak, "serve").outcome == "alone"
    dear = duel(masks20, trak, "serve")
    assert (dear.outcome, dear.size, dear.excess, dear.difference) == ("level", 5.0, 4.0, (0.0, 0.0, 0.0))
    assert duel(replace(lora, costs={"serve": 9.0}), trak, "serve").outcome == "beyond"
    assert duel(entries["checkpoints(models=1, last=5)"], trak, "serve").outcome == "behind"


def test_a_duel_between_measured_sizes_mixes_their_lds(trak):
    lora = next(entry for entry in trak.others if entry.kind == "lora")
    found = duel(replace(lora, costs={"train": 3.0}), trak, "train")
    share = np.log(3 / 2) / np.log(5 / 2)
    lds = (1 - share) * trak.curve[1].lds + share * trak.curve[2].lds
    assert found.size == 3.0
    assert found.difference[0] == pytest.approx(lora.lds - lds)
    assert found.difference[1] < found.difference[0] < found.difference[2]


def test_differences_are_those_of_compare(rows, trak):
    found = compare(rows[6].evaluation, rows[1].evaluation)
    lora = next(entry for entry in trak.others if entry.kind == "lora")
    assert difference(lora, trak.curve[1]) == (found.value, found.low, found.high)


def test_repetitions_are_one_entry_with_the_mean(run):
    seeds = [run(noise=4.0, train=1.0 + seed, stream=seed, seed=seed) for seed in range(3)]
    (only,) = contests_of(seeds, [TASK])
    (entry,) = only.entries
    assert len(entry.records) == 3
    assert entry.lds == pytest.approx(np.mean([row.evaluation.lds for row in seeds]))
    assert entry.costs["train"] == 2.0
    low, high = entry.interval
    assert low < entry.lds < high


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
    assert gains(other.families[0]) == [], "the CPU's independent ensembles are no curve for it"


def test_growth_is_predicted_from_the_smallest_ensemble(trak):
    found = {growth.flavour: growth for growth in growths(trak)}
    dropout, independent = found["dropout"], found["independent"]
    assert dropout.at_last == predicted_lds(dropout.first.lds, (1, 5), (1, 20), 0.6, None)
    assert independent.at_last == predicted_lds(trak.curve[0].lds, (1, 1), (5, 1), None, 0.3)
    assert set(found) == {"dropout", "independent"}, "the others' records carry no correlations"


@pytest.mark.parametrize("flavour", sorted({flavour for pair in PAIRS for flavour in pair[:2]}))
def test_the_flavours_that_are_compared_exist(run, flavour):
    kind, _, options = flavour.removesuffix(")").partition("(")
    sizes = {"dropout": "masks=2", "lora": "adapters=2", "checkpoints": "last=2", "projections": "seeds=2"}[kind]
    row = run(ensemble=f"{kind}(models=1, {sizes}{', ' if options else ''}{options})", noise=1.0)
    assert contests_of([row], [TASK])[0].entries[0].flavour == flavour


def test_flavours_are_compared_at_equal_size(trak):
    (pair,) = matched(trak, "dropout(scope=q-only)", "dropout")
    assert [entry.ensemble for entry in pair] == [
        "dropout(models=1, masks=5, scope=q-only)",
        "dropout(models=1, masks=5)",
    ]


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


def test_the_document_is_what_it_was(rows, source, monkeypatch):
    """To accept a change after looking at it: TDABENCH_GOLDEN=write pytest tests/test_findings.py."""
    monkeypatch.setattr(document, "__version__", "0.1.0")
    text = render(rows, [TASK], source)
    if os.environ.get("TDABENCH_GOLDEN") == "write":
        GOLDEN.write_text(text, encoding="utf-8")
    assert text == GOLDEN.read_text(encoding="utf-8")


@settings(max_examples=8)
@given(st.randoms())
def test_the_order_of_runs_does_not_matter(rows, random):
    shuffled = list(rows)
    random.shuffle(shuffled)
    assert render(shuffled, [TASK], SOURCE) == render(rows, [TASK], SOURCE)


def test_tables_hold_together_whatever_a_record_says(rows, run):
    hostile = "x | <b>`y`</b> \n| z"
    more = run(hostile, noise=3.0), run(hostile, noise=None, status="failed", reason=hostile, scores=None, seed=1)
    lines = render([*rows, *more], [TASK], SOURCE).splitlines()
    for above, line in itertools.pairwise(lines):
        if above.startswith("|") and line.startswith("|"):
            assert len(re.findall(r"(?<!\\)\|", above)) == len(re.findall(r"(?<!\\)\|", line))
    outside_code = re.sub(r"`[^`]*`", "", "\n".join(lines))
    assert r"\<b\>" in outside_code
    assert "<b>" not in outside_code


def test_nothing_to_compare_is_said(run):
    text = render([run(noise=3.0)], [TASK], SOURCE)
    assert "No ensemble can be held against a curve of independent ones." in text
    assert "### Saving" not in text
    assert text.endswith("|\n")
    assert "No LDS for the runs of `digits-mlp`" in render([run(noise=3.0)], [], SOURCE)


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
    results._evaluator.cache_clear()
    rng = np.random.default_rng(0)
    made = {
        "a": None,
        "b": "independent(models=2)",
        "c": "dropout(models=1, masks=5)",
        "d": "lora(models=1, adapters=2)",
    }
    for name, ensemble in made.items():
        folder = tmp_path / ("one" if name in "ab" else "two") / name
        folder.mkdir(parents=True)
        scores = rng.normal(size=(small.n_queries, small.n_train)).astype(np.float32)
        sha256 = write_arrays(folder / "scores.safetensors", {"scores": scores})
        value = RECORD | {"run_id": name, "task": "small", "task_version": small.version, "correlations": None}
        value |= {"scores": {"sha256": sha256, "shape": list(scores.shape), "dtype": "float32"}}
        (folder / "record.json").write_text(json.dumps(value | {"ensemble": ensemble_record(ensemble)}))
    yield tmp_path / "one", tmp_path / "two"
    results._evaluator.cache_clear()


def test_the_command_writes_the_same_bytes_in_any_order(tdabench, folders, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, _ = tdabench("findings", "one", "two", "--out", "docs/findings.md")
    assert (code, out) == (0, "4 runs of 1 task: docs/findings.md\n")
    text = Path("docs/findings.md").read_text()
    assert "tdabench findings one two --out docs/findings.md\n" in text
    for axis in AXES:
        assert f"| saved: {axis.name.lower()} " in text
    code, out, _ = tdabench("findings", "two", "one", "two/c", "--out", "docs/findings.md", "--json")
    assert json.loads(out) == {"file": "docs/findings.md", "runs": 4, "tasks": ["small"]}
    assert Path("docs/findings.md").read_text() == text.replace("one two --out", "one two two/c --out")


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
