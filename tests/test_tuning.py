"""Options are chosen on the tuning queries alone, stored with the task, and charged for."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tdabench import ground_truth, runner, tuning
from tdabench import tuned as tuned_module
from tdabench.errors import FileFormatError, OptionError, UsageError
from tdabench.ground_truth import read_ground_truth, write_ground_truth
from tdabench.jobs import Job, plan
from tdabench.options import make
from tdabench.records import read_record
from tdabench.registry import METHODS as METHOD_GROUP
from tdabench.registry import TASKS, find_method, find_task, names
from tdabench.results.reading import find_runs
from tdabench.runner import find_run, run
from tdabench.scores import read_run_scores, read_scores
from tdabench.tuned import Candidate, Remark, Tuned, lines, read_tuned, with_tuned_options, write_tuned
from tdabench.tuning import grid_of, search, tune

METHODS = Path(__file__).parent / "methods_for_runner.py"
GOOD = f"{METHODS}:Good"
SHOWN = "methods_for_runner.py:Good"


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("tuning-runs")


@pytest.fixture(scope="module")
def tuned(runs, small_reference, small_truth_folder) -> Tuned:
    """Return the choice between three values, of which more is worse; measured once."""
    return tune(Job(small_reference, GOOD, {}), runs)


@pytest.fixture
def own_task(small, tmp_path):
    """Return the small task with a folder of this test's own."""
    return replace(small, folder=tmp_path / "task")


def test_every_value_is_tried_and_the_best_is_chosen(tuned, small):
    assert [c.options["skew"] for c in tuned.candidates] == [1.0, 0.0, 0.5]
    best = max(tuned.candidates, key=lambda c: c.tuning_lds)
    assert tuned.options == best.options
    assert tuned.options == {"skew": 0.0}, "gradients are better than noise"
    assert tuned.task_version == small.version
    assert tuned.tune_s == pytest.approx(sum(c.charged_s for c in tuned.candidates), abs=1e-9)
    assert all(c.charged_s > 0 for c in tuned.candidates)
    assert tuned.grid == {"skew": [1.0, 0.0, 0.5]}


def test_candidates_are_where_no_board_reads_them(tuned, runs):
    """They attribute the tuning queries alone, so they are no results."""
    assert find_runs(runs) == []
    assert len(list((runs / ".tuning").glob("*/record.json"))) == 3
    with pytest.raises(UsageError, match=r"\.tuning holds what `tdabench tune` tried, which is no result. Give .*runs"):
        find_runs(runs / ".tuning")


def test_candidates_attribute_the_tuning_queries_alone_and_score_them_as_a_run_does(
    tuned, runs, small, small_reference, tmp_path
):
    folder, record = run(plan(Job(small_reference, GOOD, tuned.options)), tmp_path / "runs")
    whole = read_run_scores(folder, record)
    assert len(whole) == small.n_queries
    (winner,) = (f for f in (runs / ".tuning").iterdir() if read_record(f).options == tuned.options)
    np.testing.assert_allclose(read_scores(winner), whole[small.tuning_queries.numpy()], rtol=1e-4)
    assert tuned.attributed == "tuning"
    assert read_record(winner).command.startswith(f"tdabench run small_task.py:TASK {SHOWN} --set skew=0.0")


def test_a_choice_that_does_not_say_which_queries_were_attributed_paid_for_all(tuned):
    assert Tuned.model_validate(tuned.model_dump(exclude={"attributed"})).attributed == "all"


def test_a_candidate_is_charged_with_its_serving_time(tuned, runs):
    served = {r.options["skew"]: r.costs.serve_s for r in map(read_record, (runs / ".tuning").iterdir())}
    assert {c.options["skew"]: c.charged_s for c in tuned.candidates} == pytest.approx(served, abs=1e-6)


def corrupted_truth(small, folder: Path, queries: np.ndarray) -> None:
    """Write the ground truth anew, with the outputs of some queries replaced by noise."""
    truth = read_ground_truth(small)
    outputs = truth.outputs.copy()
    noise = np.random.default_rng(1).normal(size=outputs.shape).astype(np.float32)
    outputs[:, :, queries] = 100 * noise[:, :, queries]
    write_ground_truth(folder, truth.masks, outputs, truth.manifest.model_dump())


@pytest.mark.parametrize(("which", "same"), [("reported_queries", True), ("tuning_queries", False)])
def test_only_the_tuning_queries_decide(
    tuned, runs, small, small_reference, small_truth_folder, tmp_path, monkeypatch, which, same
):
    folder = tmp_path / "corrupted"
    corrupted_truth(small, folder, getattr(small, which).numpy())
    monkeypatch.setattr(ground_truth, "ground_truth_folder", lambda task: folder)
    again = tune(Job(small_reference, GOOD, {}), runs)
    assert (again == tuned) is same


def test_candidates_measured_before_are_not_measured_again(tuned, runs, small_reference, small_truth_folder):
    before = {path: path.stat().st_mtime_ns for path in runs.rglob("*")}
    seen = []
    again = tune(Job(small_reference, GOOD, {}), runs, on_candidate=lambda *tried: seen.append(tried))
    assert again == tuned
    assert [candidate for candidate, _ in seen] == tuned.candidates
    assert [record.options for _, record in seen] == [candidate.options for candidate in tuned.candidates]
    assert {path: path.stat().st_mtime_ns for path in runs.rglob("*")} == before


def test_the_choice_is_stored_without_folders_and_used(tuned, own_task, small_reference):
    path = write_tuned(own_task, GOOD, tuned)
    assert path == own_task.folder / "tuned.json"
    assert list(json.loads(path.read_text())) == [SHOWN]
    job, remark = with_tuned_options(Job(small_reference, GOOD, {}), own_task)
    assert (job.options, job.tune_s, remark) == (tuned.options, tuned.tune_s, None)
    other = tuned.model_copy(update={"tune_s": 1.0})
    write_tuned(own_task, "trak", other)
    assert read_tuned(own_task) == {SHOWN: tuned, "trak": other}


def test_the_file_has_a_line_a_fact_and_a_line_a_candidate(tuned, own_task):
    stored = write_tuned(own_task, GOOD, tuned).read_text().splitlines()
    assert '    "options": {"skew": 0.0},' in stored
    assert sum('"tuning_lds"' in line for line in stored) == 3
    assert len(stored) < 20


def test_choices_stored_at_the_same_time_are_all_kept(tuned, own_task, monkeypatch):
    read = read_tuned

    def read_slowly(task):
        stored = read(task)
        time.sleep(0.02)
        return stored

    monkeypatch.setattr(tuned_module, "read_tuned", read_slowly)
    methods = {f"method-{i}" for i in range(4)}
    with ThreadPoolExecutor(4) as executor:
        list(executor.map(lambda method: write_tuned(own_task, method, tuned), methods))
    assert read(own_task).keys() == methods


def test_a_tuned_run_is_not_the_candidate_that_won(tuned, runs, own_task, small_reference):
    """The candidate was measured with nothing charged for tuning; taking it for the tuned run would be free tuning."""
    write_tuned(own_task, GOOD, tuned)
    candidate = plan(Job(small_reference, GOOD, tuned.options, queries="tuning"))
    assert find_run(candidate, runs / ".tuning") is not None
    job, _ = with_tuned_options(Job(small_reference, GOOD, {}), own_task)
    assert find_run(plan(job), runs / ".tuning") is None


def test_a_job_whose_method_has_nothing_to_tune_is_left_alone(own_task, small_reference):
    job = Job(small_reference, "random", {})
    assert with_tuned_options(job, own_task) == (job, None)
    assert plan(job).options_from is None


def test_a_method_that_was_never_tuned_is_named(own_task, small_reference):
    job = Job(small_reference, GOOD, {})
    again, remark = with_tuned_options(job, own_task)
    assert again == job
    assert lines([remark]) == [
        f"small: not tuned, so at the defaults: {GOOD}. Choose with `tdabench tune small METHOD`."
    ]
    assert with_tuned_options(job, own_task, defaults=True) == (job, None)
    by_hand = replace(job, options={"skew": 0.5})
    assert with_tuned_options(by_hand, own_task) == (by_hand, None)


def test_options_that_are_given_win_and_cost_no_tuning(tuned, own_task, small_reference):
    write_tuned(own_task, GOOD, tuned)
    job = Job(small_reference, GOOD, {"skew": "0.3"})
    again, remark = with_tuned_options(job, own_task)
    assert again == job
    assert plan(again).options_from == "given"
    said = f"small: what is given differs from the tuned options, so none of these is used: {GOOD}."
    assert lines([remark]) == [said]


@pytest.mark.parametrize("defaults", [False, True])
def test_options_that_are_given_and_equal_the_tuned_ones_are_charged_like_them(
    tuned, own_task, small_reference, defaults
):
    write_tuned(own_task, GOOD, tuned)
    job, remark = with_tuned_options(Job(small_reference, GOOD, {"skew": "0"}), own_task, defaults)
    assert (job.tune_s, remark) == (tuned.tune_s, None)
    assert plan(job).options_from == "tuned"
    chosen, _ = with_tuned_options(Job(small_reference, GOOD, {}), own_task)
    assert plan(job).key == plan(chosen).key


def test_defaults_that_are_asked_for_cost_nothing_even_if_they_would_have_been_chosen(tuned, own_task, small_reference):
    write_tuned(own_task, GOOD, tuned)
    job, remark = with_tuned_options(Job(small_reference, GOOD, {}), own_task, defaults=True)
    assert (job.options, job.tune_s, remark) == ({}, 0, None)
    assert plan(job).options_from == "defaults"


def test_a_choice_is_used_whole_or_not_at_all(tuned, own_task, small_reference):
    """A ridge that was found beside one projection is not the best beside another."""
    job = Job(small_reference, "trak", {})
    grid = {k: list(v) for k, v in grid_of(find_method("trak"), "trak").items()}
    changed = {"method_sha256": plan(job).method_sha256, "grid": grid}
    write_tuned(own_task, "trak", tuned.model_copy(update={**changed, "options": {"projection": 1024, "ridge": 3.0}}))
    for said, options, charged in [
        ({}, {"projection": 1024, "ridge": 3.0}, True),
        ({"ridge": "3"}, {"projection": 1024, "ridge": "3"}, True),
        ({"ridge": "1"}, {"ridge": "1"}, False),
        ({"projection": "512", "ridge": "3"}, {"projection": "512", "ridge": "3"}, False),
    ]:
        again, _ = with_tuned_options(replace(job, options=said), own_task)
        assert (again.options, again.tune_s) == (options, tuned.tune_s if charged else 0)


def test_a_choice_is_not_used_beside_another_value_of_an_option_that_is_not_tuned(tuned, own_task, small_reference):
    job = Job(small_reference, "ek-fac", {})
    grid = {k: list(v) for k, v in grid_of(find_method("ek-fac"), "ek-fac").items()}
    changed = {"method_sha256": plan(job).method_sha256, "grid": grid, "options": {"damping": 0.3}}
    write_tuned(own_task, "ek-fac", tuned.model_copy(update=changed))
    again, remark = with_tuned_options(replace(job, options={"labels": "true"}), own_task)
    assert (again.options, again.tune_s) == ({"labels": "true"}, 0)
    assert "none of these is used" in remark.what
    again, remark = with_tuned_options(replace(job, options={"labels": "sampled"}), own_task)
    assert (again.options, again.tune_s, remark) == ({"damping": 0.3, "labels": "sampled"}, tuned.tune_s, None)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"task_version": "0" * 16}, "tuned for another version of the task"),
        ({"method_sha256": "0" * 64}, "tuned with other code of the method"),
        ({"grid": {"skew": [1.0, 0.0]}}, "tuned over other values"),
        ({"grid": {"skew": [1.0, 0.0, 0.5], "gone": [1]}}, "tuned over other values"),
        ({"grid": {}, "options": {}}, "tuned over other values"),
    ],
)
def test_a_choice_that_no_longer_holds_is_not_used_and_says_so(tuned, own_task, small_reference, change, problem):
    write_tuned(own_task, GOOD, tuned.model_copy(update=change))
    job = Job(small_reference, GOOD, {})
    again, remark = with_tuned_options(job, own_task)
    assert again == job
    expected = f"small: {problem}, so the choice is not used: {GOOD}. Choose with `tdabench tune small METHOD`."
    assert lines([remark]) == [expected]


def test_seconds_of_another_machine_class_are_left_out_and_not_zero(tuned, own_task, small_reference):
    write_tuned(own_task, GOOD, tuned.model_copy(update={"machine_class": "elsewhere"}))
    job, remark = with_tuned_options(Job(small_reference, GOOD, {}), own_task)
    assert (job.options, job.tune_s) == (tuned.options, None)
    assert plan(job).options_from == "tuned"
    assert "small: tuned on another machine class, so no tuning time is recorded: " in lines([remark])[0]


def test_a_choice_within_another_budget_is_used_and_told(tuned, own_task, small_reference):
    assert (tuned.budget, tuned.seed) == (12, 0)
    write_tuned(own_task, GOOD, tuned.model_copy(update={"budget": 2}))
    job, remark = with_tuned_options(Job(small_reference, GOOD, {}), own_task)
    assert (job.options, job.tune_s) == (tuned.options, tuned.tune_s)
    assert "small: tuned within 2 candidates, where others have 12: " in lines([remark])[0]


def test_methods_share_a_line_where_they_share_a_remark():
    remarks = [Remark("a: old", "x", "Do."), Remark("a: old", "y", "Do."), Remark("b: old", "x", ""), None]
    assert lines([r for r in [*remarks, remarks[0]] if r]) == ["a: old: x, y. Do.", "b: old: x."]


@pytest.mark.parametrize("text", ["", "[]", '{"trak": 1}', '{"trak": {}}', '{"trak": {"options": {"a": []}}}'])
def test_a_broken_file_of_choices_says_what_to_do(own_task, text):
    own_task.folder.mkdir()
    (own_task.folder / "tuned.json").write_text(text)
    with pytest.raises(FileFormatError, match=r"tuned.json is not a .*Remove the file, and tune again with `tdabench"):
        read_tuned(own_task)


def test_a_broken_choice_is_named(own_task):
    own_task.folder.mkdir()
    (own_task.folder / "tuned.json").write_text('{"trak": {"tune_s": "long"}}')
    with pytest.raises(FileFormatError, match=r"options: trak\.\w+: \w"):
        read_tuned(own_task)


def test_a_grid_that_nobody_could_list_is_searched_within_the_budget():
    grid = {f"option{i}": tuple(range(5)) for i in range(30)}
    seen = search(
        grid, dict.fromkeys(grid, 0), lambda options: Candidate(options=options, tuning_lds=0.0, charged_s=0.0), 7
    )
    assert len(seen) == 7


def broken(record):
    return record.model_copy(update={"status": "failed", "reason": "it broke", "costs": None, "process_s": 99.5})


@pytest.fixture
def breaking(monkeypatch):
    """Return a function that says of which options measuring breaks."""
    real = tuning._measured

    def put(breaks) -> None:
        def measured(planned, *rest):
            folder, record = real(planned, *rest)
            return folder, broken(record) if breaks(record.options) else record

        monkeypatch.setattr(tuning, "_measured", measured)

    return put


def test_a_failed_candidate_is_not_chosen_and_its_time_counts(tuned, runs, small_reference, breaking):
    breaking(lambda options: options["skew"] == 0.0)
    again = tune(Job(small_reference, GOOD, {}), runs)
    assert [c.tuning_lds is None for c in again.candidates] == [False, True, False]
    assert again.options == {"skew": 0.5}
    assert again.candidates[1].charged_s == 99.5
    assert again.tune_s > 99.5


def test_a_candidate_that_was_stopped_or_broke_is_tried_again_and_one_that_was_declined_is_not(
    small_reference, small_truth_folder, tmp_path, monkeypatch
):
    asked, left = [], {}

    def run(planned, runs, timeout_s):
        asked.append((planned.options["skew"], timeout_s))
        folder, record = left.pop(planned.options["skew"], None) or runner_run(planned, runs, timeout_s=timeout_s)
        return folder, record

    runner_run = runner.run
    monkeypatch.setattr(runner, "run", run)
    tune(Job(small_reference, GOOD, {}), tmp_path)
    folders = {read_record(f).options["skew"]: f for f in (tmp_path / ".tuning").iterdir() if f.name[0] != "."}
    for skew, status in ((0.0, "timeout"), (0.5, "declined")):
        record = broken(read_record(folders[skew])).model_copy(update={"status": status})
        (folders[skew] / "record.json").write_text(record.to_json())
    asked.clear()
    found = tune(Job(small_reference, GOOD, {}), tmp_path, timeout_s=99.0)
    assert asked == [(0.0, 99.0)]
    assert {c.options["skew"]: c.tuning_lds is None for c in found.candidates} == {1.0: False, 0.0: False, 0.5: True}
    asked.clear()
    tune(Job(small_reference, GOOD, {}), tmp_path)
    assert asked == [], "the attempt that ended well counts"


def test_tuning_ends_where_nothing_works(tuned, runs, small_reference, breaking):
    breaking(lambda options: True)
    with pytest.raises(UsageError, match=r"none of 3 candidates ended as ok; their logs are in .*/\.tuning"):
        tune(Job(small_reference, GOOD, {}), runs)


@pytest.fixture
def instead(tuned, runs, monkeypatch):
    """Put results that are there in place of measuring; return the options that were asked for."""
    asked = []
    folder = next((runs / ".tuning").iterdir())

    def run(planned, runs, *, timeout_s):
        asked.append(planned.options)
        return folder, read_record(folder)

    monkeypatch.setattr(runner, "run", run)
    return asked


def test_what_was_set_is_stored_with_what_was_found(instead, small_reference, tmp_path):
    budget = 4
    found = tune(Job(small_reference, "trak", {"projection": "2048"}), tmp_path, budget=budget)
    assert {options["projection"] for options in instead} == {2048}
    assert [options["ridge"] for options in instead] == [0.01, 0.03, 0.1, 0.3]
    assert found.options == {"projection": 2048, "ridge": 0.01}
    assert found.grid.keys() == {"ridge"}


def test_what_was_tuned_with_an_option_set_is_used_with_it(instead, own_task, small_reference, tmp_path):
    write_tuned(own_task, "trak", tune(Job(small_reference, "trak", {"projection": "2048"}), tmp_path, budget=1))
    job, remark = with_tuned_options(Job(small_reference, "trak", {}), own_task)
    assert job.options == {"projection": 2048, "ridge": 0.01}
    assert "tuned within 1 candidates" in remark.what


def test_values_that_the_method_would_refuse_are_refused_before_any_is_measured(
    instead, small_reference, tmp_path, monkeypatch
):
    monkeypatch.setattr(tuning, "grid_of", lambda *_: {"ridge": (0.5, -1.0)})
    with pytest.raises(OptionError, match=r"ridge must be between .* got -1\.0\. It is among the values under tune="):
        tune(Job(small_reference, "trak", {}), tmp_path)
    assert instead == []


def test_too_few_queries_to_keep_some_for_tuning_are_an_error(instead, small, small_reference, tmp_path, monkeypatch):
    monkeypatch.setattr("tdabench.registry.find_task", lambda _: replace(small, n_queries=4))
    with pytest.raises(UsageError, match=r"small has 4 queries\. A fifth of them are for tuning, so"):
        tune(Job(small_reference, "trak", {}), tmp_path)
    assert instead == []


def test_nothing_left_to_tune_is_an_error(instead, small_reference, tmp_path):
    with pytest.raises(UsageError, match=r"Nothing is left to tune: trak can tune projection, ridge\. Leave out"):
        tune(Job(small_reference, "trak", {"projection": "512", "ridge": "1"}), tmp_path)
    assert instead == []


def test_a_damaged_file_ends_the_tuning_before_anything_is_measured(instead, small, small_reference, tmp_path):
    stored = small.folder / "tuned.json"
    stored.write_text("{")
    try:
        with pytest.raises(FileFormatError, match="Remove the file"):
            tune(Job(small_reference, GOOD, {}), tmp_path)
    finally:
        stored.unlink()
    assert instead == []


def test_a_killed_candidate_is_charged_with_the_time_of_its_process(small_reference, small_truth_folder, tmp_path):
    _, record = runner.run(plan(Job(small_reference, f"{METHODS}:Slow", {})), tmp_path, timeout_s=0.3)
    assert record.status == "timeout"
    assert record.costs is None
    assert 0.3 <= record.process_s < 30


def test_choices_that_ship_are_of_methods_and_options_that_are_there():
    for name in names(TASKS):
        for method, tuned in read_tuned(find_task(name)).items():
            assert method in names(METHOD_GROUP)
            make(find_method(method), method, tuned.options)


def test_the_timeout_reaches_the_candidates(small_reference, small_truth_folder, tmp_path, monkeypatch):
    from tdabench import runner

    def fake_run(planned, runs, *, timeout_s):
        raise UsageError(f"timeout {timeout_s}")

    monkeypatch.setattr(runner, "run", fake_run)
    with pytest.raises(UsageError, match=r"timeout 7"):
        tune(Job(small_reference, GOOD, {}), tmp_path, timeout_s=7)


def test_grid():
    assert grid_of(find_method(GOOD), "good") == {"skew": (1.0, 0.0, 0.5)}


def searched(grid, start, score, budget):
    def measure(options):
        return Candidate(options=options, tuning_lds=score(**options), charged_s=1.0)

    return [c.options for c in search(grid, start, measure, budget)]


def test_all_of_a_grid_is_tried_if_the_budget_allows():
    grid = {"a": (1, 2), "b": (3, 4)}
    expected = [{"a": 1, "b": 3}, {"a": 1, "b": 4}, {"a": 2, "b": 3}, {"a": 2, "b": 4}]
    assert searched(grid, {"a": 1, "b": 3}, lambda a, b: 0.0, 4) == expected


def test_a_large_grid_is_searched_option_by_option_around_the_best():
    grid = {"a": (1, 2, 3), "b": (1, 2, 3)}
    tried = searched(grid, {"a": 1, "b": 2}, lambda a, b: -abs(a - 3) - abs(b - 1.0), 8)
    assert tried == [{"a": a, "b": 2} for a in (1, 2, 3)] + [{"a": 3, "b": b} for b in (1, 3)]


@given(budget=st.integers(1, 40), sizes=st.lists(st.integers(1, 4), min_size=1, max_size=3))
def test_no_search_exceeds_its_budget_or_repeats_a_candidate(budget, sizes):
    grid = {f"o{i}": tuple(range(n)) for i, n in enumerate(sizes)}
    tried = searched(grid, dict.fromkeys(grid, 0), lambda **options: float(sum(options.values())), budget)
    assert 1 <= len(tried) <= budget
    assert len({tuple(t.items()) for t in tried}) == len(tried)
    if budget >= 12:
        assert {k: v[-1] for k, v in grid.items()} in tried
