"""Quality is recomputed from the scores, each time it is read."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from tdabench.archive import archive_runs
from tdabench.errors import FileFormatError, OtherGroundTruthError, UsageError
from tdabench.files import read_arrays, write_arrays
from tdabench.ground_truth import read_ground_truth
from tdabench.lds import lds_per_query
from tdabench.records import read_record
from tdabench.results import reading
from tdabench.results.reading import evaluate_run, evaluator_of, find_runs, read_runs

GOLDEN = Path(__file__).parent / "golden" / "record.json"


@pytest.fixture(autouse=True)
def _fresh_evaluators():
    reading._evaluator.cache_clear()
    yield
    reading._evaluator.cache_clear()


@pytest.fixture
def write_run(tmp_path, small):
    """Return a factory of run folders with the scores that are given."""

    def write(name: str, scores: np.ndarray | None, **changes) -> Path:
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        value = json.loads(GOLDEN.read_text()) | {"run_id": name, "task": "small", "task_version": small.version}
        value["scores"] = None
        if scores is not None:
            sha256 = write_arrays(folder / "scores.safetensors", {"scores": scores.astype(np.float32)})
            value["scores"] = {"sha256": sha256, "shape": list(scores.shape), "dtype": "float32"}
        (folder / "record.json").write_text(json.dumps(value | changes))
        return folder

    return write


def perfect_scores(truth) -> np.ndarray:
    """Return scores whose subset sums are the outputs: the masks' pseudo-inverse on the centred mean outputs."""
    masks = truth.masks.astype(float)
    centred = truth.mean - truth.mean.mean(axis=0)
    return (np.linalg.pinv(masks - masks.mean(axis=0)) @ centred).T


def test_quality_is_the_lds_of_the_reported_queries(write_run, small, small_truth_folder):
    truth = read_ground_truth(small)
    scores = np.random.default_rng(0).normal(size=(small.n_queries, small.n_train)).astype(np.float32)
    folder = write_run("a", scores)
    evaluation = evaluate_run(folder, read_record(folder))
    rho, _ = lds_per_query(scores[truth.reported], truth.masks, truth.mean[:, truth.reported])
    assert evaluation.lds == pytest.approx(rho.mean(), abs=1e-12)
    assert evaluation.n_queries == len(truth.reported) == 32
    scores[truth.tuning] = 0
    other = write_run("b", scores)
    assert evaluate_run(other, read_record(other)).lds == evaluation.lds, "tuning queries do not count"


def test_runs_without_quality(write_run, small, small_truth_folder):
    failed = write_run("failed", None, status="failed", reason="it broke", costs=None)
    older = write_run("older", np.zeros((40, 120)), task_version="0" * 16)
    for folder in (failed, older):
        assert evaluate_run(folder, read_record(folder)) is None


def test_runs_are_evaluated_and_unknown_tasks_pass(write_run, small, small_truth_folder):
    truth = read_ground_truth(small)
    perfect = perfect_scores(truth)
    best, worst = write_run("best", perfect), write_run("worst", -perfect)
    failed = write_run("failed", None, status="failed", reason="it broke", costs=None)
    stranger = write_run("stranger", np.zeros((2, 2)), task="a-task-that-is-not-here")
    seen = []
    runs, tasks = read_runs([worst, best, failed, stranger], on_run=seen.append)
    assert [run.record.run_id for run in runs] == ["worst", "best", "failed", "stranger"]
    assert [run.evaluation is None for run in runs] == [False, False, True, True]
    assert runs[1].evaluation.lds == pytest.approx(1)
    assert [t.name for t in tasks] == ["small"]
    assert (tasks[0].n_subsets, tasks[0].n_seeds, tasks[0].n_queries) == (8, 4, 32)
    assert len(seen) == 4


def test_a_run_that_lies_in_several_folders_is_one(write_run, small_truth_folder, tmp_path):
    """As where runs and their archive are given, or a folder was copied; and with its LDS where any of them has it."""
    first, other = (write_run(name, np.random.default_rng(n).normal(size=(40, 120))) for n, name in enumerate("ab"))
    archive_runs([first], tmp_path / "archive")
    copied = Path(shutil.copytree(first, tmp_path / "runs" / "copy"))
    seen = []
    runs, _ = read_runs([first, other, copied, tmp_path / "archive" / "a"], on_run=seen.append)
    assert ([run.record.run_id for run in runs], len(seen)) == (["a", "b"], 4)
    evidence = tmp_path / "archive" / "a" / "evidence.safetensors"
    arrays = read_arrays(evidence, "file of evidence", "")
    write_arrays(evidence, arrays, {"basis": "other", "scores_sha256": runs[0].record.scores.sha256})
    for folders in ([first, evidence.parent], [evidence.parent, first]):
        ((run,), _) = read_runs(folders)
        assert (run.lds, run.no_score) == (runs[0].lds, "")


def test_a_task_without_ground_truth_is_known_and_says_so(write_run, small, monkeypatch, tmp_path):
    unbuilt = replace(small, folder=tmp_path / "no-truth")
    monkeypatch.setattr(reading, "find_task", lambda name: unbuilt)
    runs, (info,) = read_runs([write_run("a", np.zeros((40, 120)))])
    assert (runs[0].record.status, runs[0].lds) == ("ok", None)
    assert (info.name, info.version, info.n_queries, info.ceiling) == ("small", small.version, 32, None)
    assert not info.has_truth
    assert info.no_score == "no LDS: this version of the task has no ground truth yet"


def test_scores_that_changed_are_not_evaluated(write_run, small_truth_folder):
    folder = write_run("a", np.zeros((40, 120)))
    write_arrays(folder / "scores.safetensors", {"scores": np.ones((40, 120), dtype=np.float32)})
    with pytest.raises(FileFormatError, match="not the file that its record was written for"):
        read_runs([folder])


def test_unfinished_folders_are_left_out(write_run, tmp_path):
    write_run("b", None)
    write_run("a", None)
    write_run(".partial-x", None)
    (tmp_path / "runs" / "notes").mkdir()
    assert [p.name for p in find_runs(tmp_path / "runs")] == ["a", "b"]
    with pytest.raises(UsageError, match=r"There is no folder of runs at .*gone. Run `tdabench"):
        find_runs(tmp_path / "gone")


def test_an_evaluator_is_made_once(small, small_truth_folder):
    assert evaluator_of("small") is evaluator_of("small")


def test_what_a_tuning_tried_is_no_result(write_run, tmp_path):
    write_run("a", None)
    write_run(".tuning/candidate", None)
    assert [p.name for p in find_runs(tmp_path / "runs")] == ["a"]
    with pytest.raises(UsageError, match=r"\.tuning holds what `tdabench tune` tried, .*Give .*runs,"):
        find_runs(tmp_path / "runs" / ".tuning")
    candidate = write_run(".tuning/scored", np.zeros((40, 120)))
    with pytest.raises(UsageError, match=r"scored is what `tdabench tune` tried, which is no result"):
        read_runs([candidate])
    with pytest.raises(UsageError, match=r"candidate is what `tdabench tune` tried, which is no result"):
        archive_runs([tmp_path / "runs" / ".tuning" / "candidate"], tmp_path / "archive")


def test_a_run_that_was_kept_for_other_ground_truth_is_named(write_run, small_truth_folder, monkeypatch):
    folder = write_run("a", np.random.default_rng(0).normal(size=(40, 120)))
    monkeypatch.setattr(reading, "evidence_of", lambda *_: SimpleNamespace(basis="other"))
    with pytest.raises(
        OtherGroundTruthError, match=rf"The run in {folder} cannot be evaluated. The evidence was made on basis"
    ):
        evaluate_run(folder, read_record(folder))
    ((run,), _) = read_runs([folder])
    assert (run.evaluation, run.lds) == (None, None)
    assert run.reason == "no LDS: its evidence is of other ground truth than there is"


def test_runs_are_archived_all_or_none(write_run, small, small_truth_folder, tmp_path):
    """What stands in the way of the last is found before the first is written."""
    scores, archive = np.random.default_rng(0).normal(size=(40, 120)), tmp_path / "archive"
    first, second, third = (write_run(name, scores) for name in "abc")
    for taken in (second, third):
        (archive / taken.name).mkdir(parents=True)
        (archive / taken.name / "record.json").write_text("another")
    both = (
        rf"{archive / 'b'} holds another run. Remove it, or choose another folder with --out. So does {archive / 'c'}."
        " Nothing was written."
    )
    with pytest.raises(UsageError, match=f"^{both}$"):
        archive_runs([first, second, third], archive)
    older = write_run("older", scores, task_version="0" * 16)
    with pytest.raises(UsageError, match=r"older is of an older version of small"):
        archive_runs([first, older], archive)
    other = tmp_path / "others" / "a"
    other.mkdir(parents=True)
    (other / "record.json").write_text((first / "record.json").read_text() + " ")
    with pytest.raises(UsageError, match=r"There are different runs of the name a among those given"):
        archive_runs([first, other], archive)
    assert sorted(path.name for path in archive.iterdir()) == ["b", "c"]
    assert archive_runs([first], archive) == 1
    assert archive_runs([first], archive) == 0


def test_evidence_of_another_shape_is_an_error(write_run, small_truth_folder, monkeypatch):
    folder = write_run("a", np.random.default_rng(0).normal(size=(40, 120)))
    broken = SimpleNamespace(basis=evaluator_of("small").basis, sums=np.zeros((2, 2)))
    monkeypatch.setattr(reading, "evidence_of", lambda *_: broken)
    with pytest.raises(UsageError, match=rf"The run in {folder} cannot be evaluated. The evidence has ranks of shape"):
        read_runs([folder])
