"""Options are chosen on the tuning queries alone, stored with the task, and charged for."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tdabench import ground_truth
from tdabench.errors import FileFormatError, UsageError
from tdabench.ground_truth import read_ground_truth, write_ground_truth
from tdabench.jobs import Job, plan
from tdabench.registry import find_method
from tdabench.runner import find_run
from tdabench.tuning import Candidate, Tuned, grid_of, read_tuned, search, tune, with_tuned_options, write_tuned

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
    assert tuned.tune_s == pytest.approx(sum(c.serve_s for c in tuned.candidates))
    assert tuned.tune_s > 0


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
    assert tune(Job(small_reference, GOOD, {}), runs, on_candidate=seen.append) == tuned
    assert seen == tuned.candidates
    assert {path: path.stat().st_mtime_ns for path in runs.rglob("*")} == before


def test_the_choice_is_stored_without_folders_and_used(tuned, own_task, small_reference):
    path = write_tuned(own_task, GOOD, tuned)
    assert path == own_task.folder / "tuned.json"
    assert list(json.loads(path.read_text())) == [SHOWN]
    job = with_tuned_options(Job(small_reference, GOOD, {}), own_task)
    assert (job.options, job.tune_s) == (tuned.options, tuned.tune_s)
    other = tuned.model_copy(update={"tune_s": 1.0})
    write_tuned(own_task, "trak", other)
    assert read_tuned(own_task) == {SHOWN: tuned, "trak": other}


def test_a_tuned_run_is_not_the_candidate_that_won(tuned, runs, own_task, small_reference):
    """The candidate was measured with nothing charged for tuning; taking it for the tuned run would be free tuning."""
    write_tuned(own_task, GOOD, tuned)
    candidate = plan(Job(small_reference, GOOD, tuned.options))
    assert find_run(candidate, runs) is not None
    assert find_run(plan(with_tuned_options(Job(small_reference, GOOD, {}), own_task)), runs) is None


def test_options_that_are_given_win_and_cost_no_tuning(tuned, own_task, small_reference):
    write_tuned(own_task, GOOD, tuned)
    job = Job(small_reference, GOOD, {"skew": "0.3"})
    assert with_tuned_options(job, own_task) == job
    untouched = Job(small_reference, "trak", {})
    assert with_tuned_options(untouched, own_task) == untouched


def test_a_choice_for_another_version_of_the_task_is_ignored(tuned, own_task, small_reference):
    write_tuned(own_task, GOOD, tuned.model_copy(update={"task_version": "0" * 16}))
    assert read_tuned(own_task) == {}
    job = Job(small_reference, GOOD, {})
    assert with_tuned_options(job, own_task) == job


@pytest.mark.parametrize("text", ["", "[]", '{"trak": 1}', '{"trak": {}}', '{"trak": {"options": {"a": []}}}'])
def test_a_broken_file_of_choices_says_what_to_do(own_task, text):
    own_task.folder.mkdir()
    (own_task.folder / "tuned.json").write_text(text)
    with pytest.raises(FileFormatError, match=r"tuned.json is not a .*Tune again with `tdabench tune small METHOD`"):
        read_tuned(own_task)


def test_a_failed_candidate_is_not_chosen(tuned, runs, small_reference, monkeypatch):
    from tdabench import records

    real = records.read_record
    broken = {"status": "failed", "reason": "it broke", "costs": None}

    def read(folder):
        record = real(folder)
        return record.model_copy(update=broken) if record.options["skew"] == 0.0 else record

    monkeypatch.setattr(records, "read_record", read)
    again = tune(Job(small_reference, GOOD, {}), runs)
    assert [c.tuning_lds is None for c in again.candidates] == [False, True, False]
    assert again.options == {"skew": 0.5}


def test_tuning_ends_where_nothing_works(tuned, runs, small_reference, monkeypatch):
    from tdabench import records

    real = records.read_record
    broken = {"status": "failed", "reason": "it broke", "costs": None}
    monkeypatch.setattr(records, "read_record", lambda folder: real(folder).model_copy(update=broken))
    with pytest.raises(UsageError, match="Tuning stopped: none of 3 candidates ended as ok"):
        tune(Job(small_reference, GOOD, {}), runs)


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
        return Candidate(options=options, tuning_lds=score(**options), serve_s=1.0)

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
