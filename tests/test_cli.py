"""The command line: results on stdout, progress on stderr, and nothing measured twice."""

from __future__ import annotations

import errno
import importlib.metadata
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tdabench import building, cli, filling, planning, registry, runner
from tdabench.ceiling import noise_ceiling
from tdabench.errors import StorageError
from tdabench.files import read_arrays, read_metadata, write_arrays
from tdabench.ground_truth import ARRAYS_FILE, read_ground_truth, write_ground_truth
from tdabench.records import read_record
from tdabench.results import reading
from tdabench.retraining import compute_slice
from tdabench.scores import read_scores
from tdabench.slices import Slice
from tdabench.suites import find_suite
from tdabench.task import TaskData
from tdabench.verification import Check, Places

METHODS = Path(__file__).parent / "methods_for_runner.py"
GOOD, RAISES = f"{METHODS}:Good", f"{METHODS}:Raises"


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str

    @property
    def json(self):
        return json.loads(self.out)


@pytest.fixture
def tdabench(capfd):
    """Return a function that runs a command in this process."""

    def call(*words: object) -> Result:
        code = 0
        capfd.readouterr()
        try:
            cli.main([str(word) for word in words])
        except SystemExit as done:
            code = done.code or 0
        return Result(code, *capfd.readouterr())

    return call


@pytest.fixture(scope="module", autouse=True)
def _fresh_evaluators():
    reading._evaluator.cache_clear()


@pytest.fixture(scope="module")
def suite_file(tmp_path_factory, small_reference) -> Path:
    path = tmp_path_factory.mktemp("suite") / "mine.toml"
    methods = json.dumps([GOOD, RAISES, "random"])
    block = f'[[run]]\ntasks = ["{small_reference}"]\nmethods = {methods}\nensembles = [""]\n'
    path.write_text(f'title = "Three"\n{block}{block}')  # blocks may overlap
    return path


@pytest.fixture(scope="module")
def measured(suite_file, small_truth_folder, tmp_path_factory) -> Path:
    """Return a folder of three runs, the second of which failed, made by the suite command."""
    folder = tmp_path_factory.mktemp("measured")
    words = [sys.executable, "-m", "tdabench", "suite", str(suite_file), "--runs", "runs", "--board", "board"]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    (folder / "out.txt").write_text(done.stdout)
    (folder / "err.txt").write_text(done.stderr)
    return folder


@pytest.fixture
def runs(measured, tmp_path) -> Path:
    """Return a copy of the runs of this test's own."""
    return Path(shutil.copytree(measured / "runs", tmp_path / "runs"))


def one(runs: Path, word: str) -> Path:
    (found,) = [path for path in runs.iterdir() if word in path.name]
    return found


def state(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


@pytest.fixture
def launched(monkeypatch, measured) -> list[str]:
    """Put earlier results in place of measuring, and return the list of what was asked for."""
    asked: list[str] = []

    def copy_instead(planned, runs, **_):
        asked.append(planned.method)
        folder = runner._next_folder(planned, runs)
        shutil.copytree(measured / "runs" / planned.run_id, folder)
        return folder, read_record(folder)

    monkeypatch.setattr(runner, "run", copy_instead)
    return asked


# --- suite


def test_suite_measures_everything_and_goes_on_after_a_failure(measured):
    out, err = (measured / "out.txt").read_text(), (measured / "err.txt").read_text()
    assert len(list((measured / "runs").iterdir())) == 3
    statuses = {read_record(p).method: read_record(p).status for p in (measured / "runs").iterdir()}
    assert statuses == {
        "methods_for_runner.py:Good": "ok",
        "methods_for_runner.py:Raises": "failed",
        "random": "ok",
    }
    assert "methods_for_runner.py:Raises: failed, ValueError: broken" in out
    assert "The page: " in out
    assert "3 of 3 runs to measure" in err
    assert "[3/3] small: random: ok" in err
    assert "1 of 3 runs did not end well, first small--methods-for-runner.py-Raises--" in err
    assert "(failed: ValueError: broken). Its folder has its log; `--retry-failed` tries such runs again." in err
    assert "A few digits (small), 3 runs" in out
    assert sorted(p.name for p in (measured / "board").iterdir() if p.is_file()) == [
        "index.html",
        "results.csv",
        "results.json",
    ]


def test_a_second_call_measures_nothing(tdabench, suite_file, runs, tmp_path, launched):
    before = state(runs)
    done = tdabench("suite", suite_file, "--runs", runs, "--board", tmp_path / "board")
    assert done.code == 1, "a run that failed stays one"
    assert "all 3 runs are measured; nothing to do" in done.err
    assert launched == []
    assert state(runs) == before


def test_an_interrupted_suite_goes_on_with_what_is_missing(tdabench, suite_file, tmp_path, launched, monkeypatch):
    words = ("suite", suite_file, "--runs", tmp_path / "runs", "--board", tmp_path / "board")
    copy = runner.run

    def interrupted(planned, runs, **options):
        if launched:
            raise KeyboardInterrupt
        return copy(planned, runs, **options)

    monkeypatch.setattr(runner, "run", interrupted)
    done = tdabench(*words)
    assert done.code == 130
    assert done.err.splitlines()[-1] == ("Interrupted. What was finished is kept; give the same command to go on.")
    assert not (tmp_path / "board").exists()
    monkeypatch.setattr(runner, "run", copy)
    done = tdabench(*words)
    assert done.code == 1, "one of them failed"
    assert "2 of 3 runs to measure" in done.err
    assert launched == ["methods_for_runner.py:Good", "methods_for_runner.py:Raises", "random"]


@pytest.mark.parametrize(
    ("said", "option", "limit"),
    [("", (), 3600.0), ("timeout_s = 50\n", (), 50.0), ("timeout_s = 50\n", ("--timeout", "3600"), 3600.0)],
)
def test_a_suite_may_say_when_its_runs_are_stopped(
    tdabench, suite_file, tmp_path, launched, monkeypatch, said, option, limit
):
    path = tmp_path / "mine.toml"
    path.write_text(suite_file.read_text().replace("[[run]]", f"{said}[[run]]", 1))
    limits, copy = [], runner.run

    def noting(planned, runs, *, timeout_s, **options):
        limits.append(timeout_s)
        return copy(planned, runs, **options)

    monkeypatch.setattr(runner, "run", noting)
    done = tdabench("suite", path, "--runs", tmp_path / "runs", "--board", tmp_path / "board", *option)
    assert done.code == 1, "one of them failed"
    assert limits == [limit] * 3


def test_a_suite_can_be_measured_task_by_task(tdabench, suite_file, tmp_path, launched):
    both = tmp_path / "both.toml"
    both.write_text(
        suite_file.read_text() + '\n[[run]]\ntasks = ["digits-mlp"]\nmethods = ["random"]\nensembles = [""]\n'
    )
    small = next(job.task for job in find_suite(str(suite_file)).jobs)
    words = ("suite", both, "--runs", tmp_path / "runs", "--board", tmp_path / "board")
    done = tdabench(*words, "--task", small)
    assert done.code == 1
    assert "3 of 3 runs to measure" in done.err
    assert launched == ["methods_for_runner.py:Good", "methods_for_runner.py:Raises", "random"]
    done = tdabench(*words, "--task", "mnist-mpl")
    assert done.code == 2
    assert "Unknown task of the suite both 'mnist-mpl'." in done.err


@pytest.mark.usefixtures("cache")
def test_data_that_are_not_there_are_named_before_anything_is_measured(
    tdabench, small_reference, tmp_path, launched, monkeypatch
):
    monkeypatch.setattr(planning, "estimate_jobs", lambda _: pytest.fail("estimated"))
    (tmp_path / "empty").mkdir()
    block = '[[run]]\ntasks = ["{}"]\nmethods = ["random"]\nensembles = [""]\n'
    suite = tmp_path / "two.toml"
    suite.write_text('title = "Two tasks"\n' + block.format(small_reference) + block.format("mnist-mlp"))
    done = tdabench("suite", suite, "--data", tmp_path / "empty", "--runs", tmp_path / "runs")
    assert (done.code, launched) == (2, [])
    assert "--data" in done.err


@pytest.mark.parametrize("retry", [(), ("--retry-failed",)])
def test_what_another_suite_does_meanwhile_is_left_to_it(
    tdabench, suite_file, runs, tmp_path, launched, monkeypatch, retry
):
    """It has measured the second run by the time that the first ends, and is at work on the third."""
    here, copy = tmp_path / "here", runner.run

    def meanwhile(planned, folder, **options):
        shutil.copytree(one(runs, "Raises"), here / one(runs, "Raises").name)
        return copy(planned, folder, **options)

    monkeypatch.setattr(runner, "run", meanwhile)
    monkeypatch.setattr(runner, "is_at_work", lambda planned, _: planned.method == "random")
    done = tdabench("suite", suite_file, "--runs", here, "--board", tmp_path / "board", *retry)
    assert done.code == 1
    assert launched == ["methods_for_runner.py:Good"]
    assert "[2/3] small: methods_for_runner.py:Raises: measured by another command" in done.err
    assert "[3/3] small: random: another command measures it" in done.err


def test_failed_runs_are_tried_again_only_when_asked(tdabench, suite_file, runs, tmp_path, launched):
    done = tdabench("suite", suite_file, "--runs", runs, "--board", tmp_path / "board", "--retry-failed")
    assert done.code == 1
    assert launched == ["methods_for_runner.py:Raises"]
    assert len(list(runs.glob("*-attempt-2"))) == 1


# --- run


def test_run_reports_what_was_measured_before(tdabench, small_reference, runs, launched):
    done = tdabench("run", small_reference, GOOD, "--runs", runs)
    assert done.code == 0
    assert "Measured before; pass --again" in done.err
    assert launched == []
    for word in ("LDS", "training", "serving", "peak memory", "storage", "folder"):
        assert f"\n{word} " in f"\n{done.out}"


def test_run_again_is_a_new_attempt(tdabench, small_reference, runs, launched):
    done = tdabench("run", small_reference, GOOD, "--runs", runs, "--again", "--json")
    assert done.code == 0
    assert launched == ["methods_for_runner.py:Good"]
    assert done.json["folder"].endswith("-attempt-2")


def test_a_failed_run_exits_with_1_and_says_where_its_log_is(tdabench, small_reference, runs, launched):
    done = tdabench("run", small_reference, RAISES, "--runs", runs)
    assert done.code == 1
    assert "ValueError: broken" in done.out
    assert "log.txt" in done.out


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_interrupting_a_run_leaves_nothing(tmp_path, small_reference, sent, code):
    pids = tmp_path / "pids"
    words = ["run", small_reference, f"{METHODS}:Fails", "--set", "how=hang", "--runs", "runs"]
    process = subprocess.Popen(
        [sys.executable, "-m", "tdabench", *words],
        cwd=tmp_path,
        env={**os.environ, "TDABENCH_TEST_PIDS": str(pids)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # jobs in the background ignore it
    )
    try:
        end = time.monotonic() + 120
        while not pids.exists() and process.poll() is None and time.monotonic() < end:
            time.sleep(0.05)
        process.send_signal(sent)
        out, err = process.communicate(timeout=120)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == code
    assert out == ""
    assert err.strip().splitlines()[-1].startswith("Interrupted.")
    assert "Traceback" not in err
    assert list((tmp_path / "runs").iterdir()) == []
    worker, child = map(int, pids.read_text().split())
    assert not Path(f"/proc/{worker}").exists()
    assert not Path(f"/proc/{child}").exists() or " Z " in Path(f"/proc/{child}/stat").read_text()


# --- score, compare, board


def test_score_of_a_folder_and_of_its_file_are_the_same(tdabench, small_reference, runs, tmp_path):
    folder = one(runs, "Good")
    from_run = tdabench("run", small_reference, GOOD, "--runs", runs, "--json").json["evaluation"]
    np.save(tmp_path / "scores.npy", read_scores(folder))
    for scores in (folder, folder / "record.json", folder / "scores.safetensors", tmp_path / "scores.npy"):
        done = tdabench("score", scores, "--task", small_reference, "--json")
        assert (done.code, done.json) == (0, from_run)
    for known in (folder, folder / "record.json"):
        assert tdabench("score", known, "--json").json == from_run, "a run knows its own task"
    other = tdabench("score", folder / "record.json", "--task", "digits-mlp")
    assert other.code == 2
    assert "is of small version" in other.err
    shown = tdabench("score", folder, "--task", small_reference)
    assert f"{from_run['lds']:.4f}" in shown.out


def test_score_warns_of_a_turned_sign(tdabench, small, small_reference, small_truth_folder, tmp_path):
    truth = read_ground_truth(small)
    masks = truth.masks - truth.masks.mean(axis=0)
    scores = -(np.linalg.pinv(masks) @ (truth.mean - truth.mean.mean(axis=0))).T
    write_arrays(tmp_path / "turned.safetensors", {"scores": scores.astype(np.float32)})
    done = tdabench("score", tmp_path / "turned.safetensors", "--task", small_reference)
    assert done.code == 0
    assert "Warning: The negated scores do better" in done.err


def test_compare(tdabench, small_reference, runs):
    good, random = one(runs, "Good"), one(runs, "random")
    there, back = (tdabench("compare", *pair, "--json").json for pair in ((good, random), (random, good)))
    assert there["difference"] == pytest.approx(there["lds"][0] - there["lds"][1])
    assert there["difference"] == pytest.approx(-back["difference"])
    assert there["low"] <= there["difference"] <= there["high"]
    assert there["cost_ratios"]["storage"] == pytest.approx(1 / back["cost_ratios"]["storage"])
    done = tdabench("compare", good, good, "--task", small_reference)
    assert "+0.0000" in done.out
    assert "not significant" in done.out
    assert there["same_models"]
    assert "The interval holds subsets and queries, not the luck of the trained models. For that, run both" in done.err


def test_compare_says_that_other_seeds_are_other_models(tdabench, small_reference, runs, tmp_path):
    good = one(runs, "Good")
    other = tmp_path / "other"
    shutil.copytree(good, other)
    facts = json.loads((other / "record.json").read_text())
    (other / "record.json").write_text(json.dumps(facts | {"seed": 1}))
    done = tdabench("compare", good, other, "--task", small_reference)
    assert "The runs are of different models (seed, machine or torch), whose luck does not cancel. For" in done.err


def test_board_in_a_process_of_its_own_needs_the_file_of_an_own_task(runs, small_reference, tmp_path):
    words = [sys.executable, "-m", "tdabench", "board", str(runs), "--out", str(tmp_path / "board"), "--json"]
    done = subprocess.run([*words, "--task", small_reference], capture_output=True, text=True, check=True)
    rows = json.loads(done.stdout)
    assert sorted(row["status"] for row in rows) == ["failed", "ok", "ok"]
    assert all(isinstance(row["lds"], float) for row in rows if row["status"] == "ok")


def test_a_board_without_the_file_of_an_own_task_says_what_it_leaves_out_and_what_to_type(runs, tmp_path):
    words = [sys.executable, "-m", "tdabench", "board", str(runs), "--out", str(tmp_path / "board")]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    warning = (
        "Warning: 3 runs of small left out of the tables, without an LDS: no task of that name is registered. "
        "Name its file with --task FILE.py:NAME.\n"
    )
    assert done.stderr.endswith(warning)
    assert "Warning" not in done.stdout


def test_a_board_says_which_task_has_no_ground_truth_yet(tdabench, registered, runs, tmp_path, monkeypatch):
    for path in runs.glob("*/record.json"):
        path.write_text(path.read_text().replace('"small"', '"bare"'))
    monkeypatch.setattr(reading, "find_task", registry.find_task)
    done = tdabench("board", runs, "--out", tmp_path / "board", "--json")
    assert done.code == 0
    assert len(done.json) == 3
    assert "Warning: 3 runs of bare left out of the tables, without an LDS: bare has no ground truth in" in done.err
    assert "Build it with `tdabench ground-truth build bare`." in done.err


def test_a_board_on_which_everything_stands_warns_of_nothing(tdabench, runs, tmp_path):
    assert "Warning" not in tdabench("board", runs, "--out", tmp_path / "board").err


def test_board_is_the_same_bytes_each_time(tdabench, runs, tmp_path):
    pages = []
    for name in ("first", "second"):
        done = tdabench("board", runs, "--out", tmp_path / name)
        assert done.code == 0
        pages.append({p.relative_to(tmp_path / name): p.read_bytes() for p in (tmp_path / name).rglob("*.*")})
    assert pages[0] == pages[1]


# --- tune


def test_tuning_that_could_not_be_stored_is_refused_before_it_measures(tdabench, small, small_reference, monkeypatch):
    def refuse(folder: Path, instead: str) -> None:
        raise StorageError(f"Cannot write to {folder}. {instead}")

    monkeypatch.setattr("tdabench.files.check_writable", refuse)
    monkeypatch.setattr("tdabench.tuning.tune", None)
    done = tdabench("tune", small_reference, GOOD)
    assert done.code == 2
    assert f"Cannot write to {small.folder}. Tune with --dry-run, and run with the options that it prints." in done.err


def test_tuned_options_are_stored_used_charged_and_replayed(
    tdabench, small, small_reference, small_truth_folder, tmp_path, monkeypatch
):
    stored = small.folder / "tuned.json"
    words = ("--runs", tmp_path / "runs", "--json")
    try:
        dry = tdabench("tune", small_reference, GOOD, "--dry-run", *words)
        assert (dry.code, dry.json["stored"], stored.exists()) == (0, None, False)
        assert dry.err.count("on the tuning queries") == 3
        tuned = tdabench("tune", small_reference, GOOD, *words).json
        assert tuned["stored"] == str(stored)
        assert reading.find_runs(tmp_path / "runs") == []
        record = tdabench("run", small_reference, GOOD, *words).json["record"]
        assert record["options"] == tuned["options"]
        assert record["options_from"] == "tuned"
        assert record["costs"]["tune_s"] == tuned["tune_s"] > 0
        assert record["command"] == tuned["command"] == dry.json["command"]
        plain = tdabench("run", small_reference, GOOD, "--defaults", *words).json["record"]
        assert (plain["costs"]["tune_s"], plain["options_from"]) == (0, "defaults")
        monkeypatch.chdir(METHODS.parent)
        for there_is_a_choice in (True, False):
            if not there_is_a_choice:
                stored.unlink()
            for measured in (record, plain):
                again = tdabench(*shlex.split(measured["command"])[1:], *words)
                assert "Measured before" in again.err
                assert again.json["record"] == measured
    finally:
        stored.unlink(missing_ok=True)


def test_a_run_without_tuning_says_so(tdabench, small_reference, runs, launched):
    done = tdabench("run", small_reference, GOOD, "--runs", runs)
    assert f"small: not tuned, so at the defaults: {GOOD}. Choose with `tdabench tune " in done.err
    assert "not tuned" not in tdabench("run", small_reference, GOOD, "--defaults", "--runs", runs).err


def test_a_suite_says_once_which_methods_are_at_their_defaults(measured, tdabench, suite_file, runs, tmp_path):
    said = "small: not tuned, so at the defaults: "
    lines = [line for line in (measured / "err.txt").read_text().splitlines() if line.startswith(said)]
    assert len(lines) == 1
    assert lines[0].startswith(f"{said}{GOOD}. Choose with ")
    done = tdabench("suite", suite_file, "--runs", runs, "--board", tmp_path / "board")
    assert done.err.count(said) == 1
    assert "methods_for_runner.py:Good (at defaults)" in done.out
    assert "random (at defaults)" not in done.out


@pytest.mark.parametrize("text", ["-1", "nan", "inf", "1e300", "soon", ""])
def test_seconds_that_are_none_are_refused(tdabench, small_reference, text):
    done = tdabench("run", small_reference, GOOD, "--tune-s", text)
    assert done.code == 2
    assert f"Cannot read --tune-s {text!r}. Write seconds, or unknown." in done.err


# --- ground truth


def test_ground_truth_is_built_shown_and_verified(tdabench, small, small_reference, tmp_path, cache):
    built = tdabench("ground-truth", "build", small_reference, "--out", tmp_path / "truth", "--workers", 1, "--json")
    assert built.code == 0, built.err
    assert built.json["folder"] == str(tmp_path / "truth")
    assert (built.json["n_subsets"], built.json["n_seeds"]) == (8, 4)
    assert "[32/32]" in built.err
    words = ("ground-truth", "verify", small_reference, "--folder", tmp_path / "truth")
    checked = tdabench(*words, "--replicas", 2, "--json")
    assert checked.code == 0
    assert checked.json["passed"] is True
    assert len(checked.json["checks"]) == 2
    again = tdabench("ground-truth", "build", small_reference, "--out", tmp_path / "truth")
    assert again.code == 2
    assert "Pass --replace" in again.err
    assert list((cache / "ground_truth").iterdir()) == []


def test_verify_exits_with_1_when_rows_differ(tdabench, small, small_reference, small_truth_folder, tmp_path):
    truth = read_ground_truth(small)
    noise = np.random.default_rng(0).normal(size=truth.outputs.shape).astype(np.float32)
    write_ground_truth(tmp_path / "wrong", truth.masks, noise, truth.manifest.model_dump())
    done = tdabench("ground-truth", "verify", small_reference, "--folder", tmp_path / "wrong", "--replicas", 2)
    assert done.code == 1
    assert done.err.count("DIFFERS") == 2
    assert "0 of 2 replicas agree" in done.out


def test_show(tdabench, small_reference, small_truth_folder):
    facts = tdabench("ground-truth", "show", small_reference, "--json").json
    assert facts["folder"] == str(small_truth_folder)
    assert facts["seeds"] == [0, 1, 2, 3]
    assert -1 <= facts["reliability"] <= 1
    assert "noise_ceiling" in tdabench("ground-truth", "show", small_reference).out


@pytest.fixture
def in_threads(monkeypatch) -> None:
    """Build in a thread of this process, slowly enough that every slice is reported before the next is done."""

    def slowly(work, part):
        time.sleep(0.1)
        return compute_slice(work, part)

    monkeypatch.setattr(filling, "compute_slice", slowly)
    monkeypatch.setattr(filling, "local_pool", ThreadPoolExecutor)


def test_shares_are_built_and_merged(tdabench, small_reference, tmp_path, cache, in_threads):
    command = ("ground-truth", "build", small_reference, "--workers", 1, "--out", tmp_path / "truth")
    first = tdabench(*command, "--shard", "0/2", "--slices", tmp_path / "a")
    assert (first.code, first.out) == (0, "16 of 16 replicas of small are done.\n"), first.err
    early = tdabench("ground-truth", "merge", small_reference, tmp_path / "a", "--out", tmp_path / "truth")
    assert early.code == 2
    assert f"16 of 32 replicas of small are missing in {tmp_path / 'a'}, first subset 1 under seed 0" in early.err
    second = tdabench(*command, "--shard", "1/2", "--slices", tmp_path / "b", "--json")
    assert (second.code, second.json) == (0, {"task": "small", "complete": False})
    assert not (tmp_path / "truth").exists()
    words = ("ground-truth", "merge", small_reference, tmp_path / "a", tmp_path / "b", "--out", tmp_path / "truth")
    merged = tdabench(*words)
    assert (merged.code, merged.out) == (0, f"Ground truth of small: {tmp_path / 'truth'}\n")
    assert tdabench(*words).code == 2
    again = tdabench(*words, "--replace", "--json")
    assert (again.code, again.json["complete"]) == (0, True)
    assert [b["n_replicas"] for b in again.json["built_on"]] == [32]
    checked = tdabench("ground-truth", "verify", small_reference, "--folder", tmp_path / "truth")
    assert (checked.code, checked.out) == (0, "small: 3 of 3 replicas agree.\n")


def test_a_share_beside_ground_truth_goes_where_it_is_told(
    tdabench, small_reference, small_truth_folder, tmp_path, cache, in_threads
):
    command = ("ground-truth", "build", small_reference, "--workers", 1, "--shard", "0/2")
    refused = tdabench(*command)
    assert refused.code == 2
    assert "exists already. Pass --slices DIR to build a share" in refused.err
    done = tdabench(*command, "--slices", tmp_path / "slices")
    assert (done.code, done.out) == (0, "16 of 16 replicas of small are done.\n")


def test_a_build_stops_when_its_minutes_are_up_and_the_same_command_goes_on(
    tdabench, small_reference, tmp_path, cache, in_threads
):
    command = ("ground-truth", "build", small_reference, "--workers", 1, "--out", tmp_path / "truth")
    stopped = tdabench(*command, "--minutes", "1e-9")
    done = re.fullmatch(r"(\d+) of 32 replicas of small are done\.\n", stopped.out)
    assert done is not None, stopped
    assert 0 < int(done[1]) < 32
    finished = tdabench(*command, "--minutes", 10)
    assert (finished.code, finished.out) == (0, f"Ground truth of small: {tmp_path / 'truth'}\n")
    assert [line.split()[0] for line in finished.err.splitlines()] == [
        f"[{n}/32]" for n in range(int(done[1]) + 8, 33, 8)
    ]


def test_progress_of_a_build_shows_its_reliability_from_two_seeds_on(
    tdabench, small_reference, tmp_path, cache, in_threads
):
    command = ("ground-truth", "build", small_reference, "--workers", 1, "--out", tmp_path / "truth", "--json")
    done = tdabench(*command)
    lines = done.err.splitlines()
    pattern = r"\[{}/32\] [\d.e-]+ s a replica{} \(\d+ s left\)"
    assert re.fullmatch(pattern.format(8, ""), lines[0])
    for line, n in zip(lines[1:], (16, 24, 32), strict=True):
        assert re.fullmatch(pattern.format(n, r", reliability 0\.\d{3}"), line)
    outputs = read_arrays(tmp_path / "truth" / ARRAYS_FILE, "", "")["outputs"]
    assert f", reliability {noise_ceiling(outputs).reliability:.3f} " in lines[-1]


@pytest.mark.parametrize("share", ["4/4", "5/4", "0/0", "-1/4", "1", "1/2/3", "a/b", ""])
def test_a_share_that_is_none_is_a_usage_error(tdabench, small_reference, share):
    done = tdabench("ground-truth", "build", small_reference, f"--shard={share}")
    assert done.code == 2
    assert f"{share!r} is not a share. Write i/n with i from 0 to n - 1, as in 0/4." in done.err


@pytest.mark.parametrize("minutes", ["0", "-1", "soon"])
def test_minutes_that_are_none_are_a_usage_error(tdabench, small_reference, minutes):
    done = tdabench("ground-truth", "build", small_reference, f"--minutes={minutes}")
    assert done.code == 2
    assert "Invalid value for '--minutes'" in done.err


@pytest.fixture
def registered(monkeypatch, small, small_truth_folder, tmp_path) -> None:
    """Put three tasks in place of the registered ones: one without ground truth, and one for an accelerator."""
    tasks = {
        "bare": replace(small, name="bare", folder=tmp_path / "bare"),
        "huge": replace(small, name="huge", needs_cuda=True),
        "small": small,
    }
    monkeypatch.setattr(registry, "names", lambda _: list(tasks))
    monkeypatch.setattr(registry, "find_task", tasks.__getitem__)


def test_a_damaged_slice_of_one_task_hides_no_other(tdabench, registered, small, tmp_path, cache):
    bare = replace(small, name="bare", folder=tmp_path / "bare")
    building.work_folder(bare).mkdir(parents=True)
    (building.work_folder(bare) / Slice(0, (0, 1)).file_name).write_bytes(b"half a file")
    done = tdabench("tasks")
    assert done.code == 0
    assert "not built (8 subsets x 4 seeds); " in done.out
    assert "is not a readable slice" in done.out
    assert "small" in done.out


def test_verify_all_on_a_gpu_takes_the_tasks_that_need_one_too(tdabench, registered, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(TaskData, "to", lambda data, device: data)
    done = tdabench("ground-truth", "verify", "--all", "--replicas", 1, "--device", "cuda", "--json")
    assert [o["task"] for o in json.loads(done.out)] == ["bare", "huge", "small"]


@pytest.mark.parametrize("words", [["verify"], ["build", "--out", "truth"], ["merge", ".", "--out", "truth"]])
def test_a_gpu_that_is_not_there_is_one_error(tdabench, small_reference, monkeypatch, words):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    done = tdabench("ground-truth", words[0], small_reference, *words[1:], "--device", "cuda")
    assert (done.code, done.err) == (
        2,
        "Error: There is no CUDA device that torch can use. Leave out --device cuda.\n",
    )


def test_verify_all_goes_on_after_a_task_that_cannot_be_verified_and_exits_with_1(tdabench, registered, tmp_path):
    done = tdabench("ground-truth", "verify", "--all", "--replicas", 2)
    reason = (
        f"bare: not verified: bare has no ground truth in {tmp_path / 'bare' / 'ground_truth'}. "
        "Build it with `tdabench ground-truth build bare`."
    )
    assert (done.code, done.out) == (1, f"{reason}\nsmall: 2 of 2 replicas agree.\n")
    lines = done.err.splitlines()
    assert f"[2/4] {reason}" in lines[0]
    assert [line.startswith(f"[{n}/4] small: subset ") for n, line in zip((3, 4), lines[1:], strict=True)] == [True] * 2


def test_verify_all_as_json_says_why_a_task_was_not_verified(tdabench, registered):
    done = tdabench("ground-truth", "verify", "--all", "--json")
    assert done.code == 1
    bare, small = done.json
    assert (bare["task"], bare["passed"], bare["checks"]) == ("bare", False, [])
    assert bare["error"].startswith("bare has no ground truth in ")
    assert (small["task"], small["passed"], "error" in small) == ("small", True, False)
    assert [check["passed"] for check in small["checks"]] == [True] * 3


def test_verify_all_exits_with_0_when_every_task_agrees(tdabench, registered, monkeypatch):
    monkeypatch.setattr(registry, "names", lambda _: ["huge", "small"])
    done = tdabench("ground-truth", "verify", "--all", "--replicas", 1, "--json")
    assert (done.code, [task["task"] for task in done.json]) == (0, ["small"])


@pytest.fixture
def broken_entry_point(monkeypatch) -> None:
    """Register a task and a method of a package that is gone, beside those that are there."""
    real = registry.entry_points

    def entry_points(group):
        gone = importlib.metadata.EntryPoint("a-broken-one", "gone_package:THING", group)
        return importlib.metadata.EntryPoints([gone, *(e for e in real(group) if e.name in ("digits-mlp", "trak"))])

    monkeypatch.setattr(registry, "entry_points", entry_points)


BROKEN = "cannot be loaded from gone_package:THING"


def test_verify_all_goes_on_past_an_entry_point_that_does_not_load_and_exits_with_1(tdabench, broken_entry_point):
    done = tdabench("ground-truth", "verify", "--all", "--replicas", 1)
    assert done.err.startswith(f"Warning: a-broken-one is left out. The task a-broken-one {BROKEN}")
    broken, digits = done.out.splitlines()
    assert broken.startswith(f"a-broken-one: not verified: The task a-broken-one {BROKEN}")
    assert (done.code, digits) == (1, "digits-mlp: 1 of 1 replicas agree.")


@pytest.mark.parametrize(("command", "there"), [("tasks", "digits-mlp"), ("methods", "trak")])
def test_catalogues_go_on_past_an_entry_point_that_does_not_load(tdabench, broken_entry_point, command, there):
    done = tdabench(command, "--json")
    assert (done.code, [row["name"] for row in done.json]) == (0, [there])
    assert done.err.startswith("Warning: a-broken-one is left out. ")
    assert BROKEN in done.err
    alone = tdabench(command, "a-broken-one")
    assert (alone.code, alone.out) == (2, "")
    assert BROKEN in alone.err


def test_a_retraining_that_diverges_is_null_in_json(tdabench, small_reference, small_truth_folder, monkeypatch):
    monkeypatch.setattr("tdabench.verification.retrain", lambda *_: torch.full((1, 40), torch.nan))
    done = tdabench("ground-truth", "verify", small_reference, "--replicas", 1, "--json")
    assert (done.code, done.json["passed"]) == (1, False)
    assert done.json["checks"][0]["difference"] is None


def test_verify_says_which_subset_the_rows_are_like_where_rounding_moves_them_far(
    tdabench, small_reference, small_truth_folder, monkeypatch
):
    places = Places(retrained=1, shipped=7, last=2)
    check = Check(subset=3, seed=1, difference=0.8, tolerance=2.15, places=places)

    def verified(*_, on_check, **__):
        on_check(check)
        return [check]

    monkeypatch.setattr("tdabench.verification.verify", verified)
    done = tdabench("ground-truth", "verify", small_reference, "--replicas", 1)
    assert done.code == 1
    assert "subset 3, seed 1: DIFFERS, difference 0.8 of the spread between subsets (tolerance 2.15, " in done.err
    assert "its own is at place 1 for the retrained row and 7 for the shipped one (up to 2 agree)" in done.err
    (shown,) = tdabench("ground-truth", "verify", small_reference, "--json").json["checks"]
    assert (shown["passed"], shown["places"]) == (False, {"retrained": 1, "shipped": 7, "last": 2})


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "Name a TASK, or pass --all."),
        (["digits-mlp", "--all"], "Name a TASK, or pass --all."),
        (["--all", "--folder", "somewhere"], "--folder goes with one TASK"),
    ],
    ids=["neither", "both", "folder"],
)
def test_verify_takes_either_a_task_or_all(tdabench, words, message):
    done = tdabench("ground-truth", "verify", *words)
    assert (done.code, done.out) == (2, "")
    assert message in done.err


# --- the rest


@pytest.mark.parametrize("value", ["nan", "inf", "0", "-1"])
def test_a_time_is_a_number_above_zero(tdabench, value):
    done = tdabench("run", "digits-mlp", "random", "--timeout", value)
    assert done.code == 2
    assert "--timeout" in done.err
    assert "Traceback" not in done.err


COMMANDS = [[], ["ground-truth"], ["ground-truth", "show"]]
COMMANDS += [["ground-truth", "build"], ["ground-truth", "merge"], ["ground-truth", "verify"]]
COMMANDS += [[name] for name in cli._COMMANDS if name != "ground-truth"]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_every_command_has_help(tdabench, command, flag):
    done = tdabench(*command, flag)
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith(f"Usage: {' '.join(['tdabench', *command])}")


def test_help_lists_every_command_with_its_line(tdabench):
    out = tdabench("--help").out
    for name in cli._COMMANDS:
        assert f"  {name} " in out
    assert set(cli._HELP) == set(cli._COMMANDS)


@pytest.mark.parametrize(
    "words",
    [
        ["tasks"],
        ["tasks", "SMALL"],
        ["methods"],
        ["methods", "trak"],
        ["methods", GOOD],
        ["run", "SMALL", GOOD, "--runs", "RUNS"],
        ["run", "SMALL", RAISES, "--runs", "RUNS"],
        ["suite", "SUITE", "--runs", "RUNS", "--board", "OUT"],
        ["score", "RUN"],
        ["compare", "RUN", "RUN"],
        ["board", "RUNS", "--out", "OUT"],
        ["ground-truth", "show", "SMALL"],
    ],
    ids=lambda words: " ".join(w.rpartition("/")[2] for w in words[:3]),
)
def test_json_is_alone_on_stdout(tdabench, words, small_reference, runs, tmp_path, suite_file, launched):
    places = {
        "SMALL": small_reference,
        "RUNS": runs,
        "RUN": one(runs, "Good"),
        "SUITE": suite_file,
        "OUT": tmp_path / "out",
    }
    done = tdabench(*[places.get(word, word) for word in words], "--json")
    assert done.code == (1 if RAISES in words or "suite" in words else 0)
    assert done.json
    assert launched == []


@pytest.mark.parametrize("words", [["tasks"], ["methods"], ["tasks", "digits-mlp"], ["methods", "trak"]], ids=" ".join)
def test_catalogue_for_people(tdabench, words):
    done = tdabench(*words)
    assert (done.code, done.err) == (0, "")
    assert {"tasks": "digits-mlp", "methods": "trak"}[words[0]] in done.out


def test_torch_is_kept_from_compiling_kernels_before_it_is_imported():
    script = """
import atexit, os, sys
from tdabench import cli
atexit.register(lambda: print(os.environ.get("TORCH_DISABLE_NATIVE_JIT"), "torch" in sys.modules))
cli.main(["--version"])
"""
    clean = {name: value for name, value in os.environ.items() if name != "TORCH_DISABLE_NATIVE_JIT"}
    for given, expected in ({}, "1"), ({"TORCH_DISABLE_NATIVE_JIT": "0"}, "0"):
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=clean | given)
        assert done.stdout.splitlines()[-1] == f"{expected} False", done.stderr


def test_version(tdabench):
    import tdabench as package

    assert tdabench("--version").out == f"tdabench, version {package.__version__}\n"


LIGHT = """
import sys
{action}
print([m for m in ("torch", "pandas", "scipy", "numpy", "sklearn", "pydantic") if m in sys.modules])
"""


@pytest.mark.parametrize(
    "action",
    [
        "import tdabench; dir(tdabench)",
        "import tdabench.cli",
        """
from contextlib import redirect_stdout, suppress; from io import StringIO; from tdabench.cli import main
with suppress(SystemExit), redirect_stdout(StringIO()) as out: main(["--help"])
assert "ground-truth" in out.getvalue()""",
    ],
    ids=["import", "import-cli", "help"],
)
def test_import_and_help_are_light(action):
    done = subprocess.run([sys.executable, "-c", LIGHT.format(action=action)], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_a_reader_that_goes_away_is_no_error():
    process = subprocess.Popen(
        [sys.executable, "-m", "tdabench", "methods"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    process.stdout.close()
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (141, b"")


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.EMFILE, "ulimit -n"),
        (errno.EIO, "Choose a folder on another one"),
        (errno.ENOENT, "Give the command again"),
        (errno.ENOSPC, "Free some space"),
    ],
)
def test_what_the_system_says_of_a_disk_is_one_line_with_advice(tdabench, tmp_path, monkeypatch, number, advice):
    def fail(_):
        raise OSError(number, os.strerror(number), "some file")

    monkeypatch.setattr("tdabench.suites.find_suite", fail)
    done = tdabench("suite", "quick", "--runs", tmp_path / "runs")
    assert done.code == 2
    assert done.err.startswith(f"Error: [Errno {number}] {os.strerror(number)}: 'some file'. ")
    assert advice in done.err
    assert len(done.err.splitlines()) == 1


def test_what_a_terminal_would_obey_is_written_out(tdabench, runs, tmp_path):
    """A record may come from a stranger: its words turn no screen black."""
    path = one(runs, "Raises") / "record.json"
    path.write_text(path.read_text().replace("ValueError: broken", "\\u001b[2J\\u202ebroken"))
    done = tdabench("board", runs, "--out", tmp_path / "board")
    assert done.code == 0
    assert "\\x1b[2J\\u202ebroken" in done.out
    assert "\x1b" not in done.out + done.err


# --- archive


def test_archived_runs_are_read_as_the_runs_are(tdabench, small_reference, runs, tmp_path):
    done = tdabench("archive", runs, "--out", tmp_path / "kept", "--task", small_reference, "--json")
    assert (done.code, done.json) == (0, {"kept": 3, "there_before": 0, "folder": str(tmp_path / "kept")})
    good, kept = one(runs, "Good"), one(tmp_path / "kept", "Good")
    assert sorted(path.name for path in kept.iterdir()) == ["evidence.safetensors", "record.json"]
    assert [path.name for path in one(tmp_path / "kept", "Raises").iterdir()] == ["record.json"]
    for words in (["score", good], ["compare", good, one(runs, "random")]):
        there = [one(tmp_path / "kept", "Good" if word is good else "random") for word in words[1:]]
        task = ["--task", small_reference, "--json"]
        assert tdabench(words[0], *there, *task).json == tdabench(*words, *task).json
    boards = [
        tdabench("board", folder, "--task", small_reference, "--out", tmp_path / name, "--json").json
        for folder, name in ((runs, "first"), (tmp_path / "kept", "second"))
    ]
    assert boards[0] == boards[1]


def test_archiving_again_keeps_what_is_there_and_never_replaces_it(tdabench, small_reference, runs, tmp_path):
    words = ("archive", runs, "--out", tmp_path / "kept", "--task", small_reference)
    tdabench(*words)
    before = state(tmp_path / "kept")
    assert tdabench(*words).out == f"0 runs kept in {tmp_path / 'kept'}; 3 there before.\n"
    assert state(tmp_path / "kept") == before
    record = one(tmp_path / "kept", "Good") / "record.json"
    record.write_text(record.read_text() + " ")
    done = tdabench(*words)
    assert done.code == 2
    assert "holds another run. Remove it, or choose another folder with --out." in done.err


@pytest.mark.parametrize("word", [".", "..", "link"])
def test_a_run_is_archived_under_its_own_name_whatever_it_was_called(
    tdabench, small_reference, runs, tmp_path, monkeypatch, word
):
    good = one(runs, "Good")
    (good / "below").mkdir()
    (good / "link").symlink_to(good)
    monkeypatch.chdir(good / "below" if word == ".." else good)
    words = ("archive", word, "--out", tmp_path / "kept", "--task", small_reference, "--json")
    for kept in (1, 0):
        done = tdabench(*words)
        assert (done.code, done.json["kept"], done.json["there_before"]) == (0, kept, 1 - kept), done.err
        assert [folder.name for folder in (tmp_path / "kept").iterdir()] == [good.name]
    (tmp_path / "kept" / good.name / "record.json").write_text("another")
    said = f"{tmp_path / 'kept' / good.name} holds another run. Remove it"
    assert said in tdabench(*words).err


def test_two_copies_of_a_run_are_archived_once(tdabench, small_reference, runs, tmp_path):
    copied = shutil.copytree(runs, tmp_path / "copied")
    done = tdabench("archive", runs, copied, "--out", tmp_path / "kept", "--task", small_reference, "--json")
    assert (done.code, done.json["kept"], done.json["there_before"]) == (0, 3, 0)


def test_evidence_of_other_ground_truth_stops_no_board_of_the_others(tdabench, small_reference, runs, tmp_path):
    kept, task = tmp_path / "kept", ["--task", small_reference]
    tdabench("archive", runs, "--out", kept, *task)
    folder, path = one(kept, "Good"), one(kept, "Good") / "evidence.safetensors"
    arrays, facts = (read(path, "file", "") for read in (read_arrays, read_metadata))
    write_arrays(path, arrays, facts | {"basis": "another"})
    said = f"Warning: 1 run without an LDS, as the evidence is of other ground truth than there is: {folder.name}. Arch"
    board = tdabench("board", kept, "--out", tmp_path / "board", *task)
    assert (board.code, said in board.err) == (0, True)
    assert "no LDS: its evidence is of other ground truth than there is" in board.out
    rows = json.loads((tmp_path / "board" / "results.json").read_text())
    assert [row["lds"] is not None for row in rows] == [True, False, False]
    assert {row["run_id"]: row["reason"] for row in rows}[folder.name].startswith("no LDS: its evidence is of other")
    page = (tmp_path / "board" / "index.html").read_text()
    assert page.count("no LDS: its evidence is of other ground truth than there is") >= 3, "row, details and data"
    found = tdabench("findings", kept, "--out", tmp_path / "findings.md", *task)
    assert (found.code, said in found.err) == (0, True)
    assert (
        "| ok | no LDS: its evidence is of other ground truth than there is | 1 |"
        in (tmp_path / "findings.md").read_text()
    )
    for words in (["score", folder], ["compare", folder, one(kept, "random")]):
        done = tdabench(*words, *task)
        assert (done.code, "was made on basis another, and the ground truth here has basis" in done.err) == (2, True)


def test_the_time_left_follows_what_each_piece_should_take(monkeypatch):
    """A slow start of a suite whose rest is quick is no slow suite, and the other way round."""
    from tdabench.cli import output

    clock = [0.0]
    monkeypatch.setattr(output.time, "monotonic", lambda: clock[0])
    live = output.Live(4, "runs", (1.0, 1.0, 8.0, 10.0))
    live.skip(0)
    assert live.time_left() == "-"
    clock[0] = 2.0
    live.finish("the first, at half the speed")
    assert live.time_left() == "38 s"
    alike = output.Live(4, "runs")
    clock[0] += 2.0
    alike.finish("the first")
    assert alike.time_left() == "6 s"
