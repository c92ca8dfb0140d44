"""A user's mistake is one line on stderr that ends with what to do, and exit code 2."""

from __future__ import annotations

import errno
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tdabench import cli
from tdabench.cli.output import print_table
from tdabench.errors import UnknownNameError
from tdabench.files import write_arrays
from tdabench.records import SCORES_FILE, parse_record
from tdabench.registry import find_task
from tdabench.results import reading

METHODS = Path(__file__).parent / "methods_for_runner.py"
GOLDEN = Path(__file__).parent / "golden" / "record.json"
LONG = "x" * 300


@pytest.fixture
def mistake(capfd, tmp_path, monkeypatch):
    """Return a function that runs a command which must fail, from an empty folder, and gives its one line."""
    monkeypatch.chdir(tmp_path)
    reading._evaluator.cache_clear()

    def call(*words: object) -> str:
        capfd.readouterr()
        with pytest.raises(SystemExit) as done:
            cli.main([str(word) for word in words])
        out, err = capfd.readouterr()
        assert done.value.code == 2
        assert out == ""
        lines = err.splitlines()
        assert len(lines) == 1, err
        assert lines[0].startswith("Error: ")
        assert lines[0].endswith((".", "`.")), "a message ends with what to do"
        assert "Traceback" not in err
        assert list(tmp_path.rglob(".partial-*")) == []
        return lines[0]

    return call


@pytest.fixture
def task(small_reference, small_truth_folder) -> str:
    return small_reference


@pytest.fixture
def run_folder(tmp_path, small) -> Path:
    """Return a run folder of the small task with made-up scores."""
    folder = tmp_path / "a-run"
    folder.mkdir()
    sha256 = write_arrays(folder / SCORES_FILE, {"scores": np.ones((40, 120), dtype=np.float32)})
    text = GOLDEN.read_text().replace('"cc"', f'"{sha256}"').replace('"digits-mlp"', '"small"')
    (folder / "record.json").write_text(text.replace('"0123456789abcdef"', f'"{small.version}"'))
    return folder


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["run", "digits", "trak"], ["Unknown task 'digits'.", "Did you mean 'digits-mlp'?", "`tdabench tasks` lists"]),
        (["tasks", "digits"], ["Did you mean 'digits-mlp'?"]),
        (["run", "TASK", "track"], ["Unknown method 'track'.", "Did you mean 'trak'?", "`tdabench methods` lists"]),
        (["methods", "track"], ["Did you mean 'trak'?"]),
        (["suite", "quik"], ["Unknown suite 'quik'.", "Did you mean 'quick'?", "A suite of your own is a .toml file."]),
        (["run", "TASK", "trak", "--set", "rigde=1"], ["Unknown option of trak 'rigde'.", "Did you mean 'ridge'?"]),
        (["run", "TASK", "trak", "--set", "projection=x"], ["trak's projection must be", "got 'x'."]),
        (["run", "TASK", "trak", "--set", "projection=0"], ["must be between", "got 0."]),
        (["run", "TASK", "trak", "--set", "ridge=inf"], ["got inf."]),
        (["run", "TASK", "trak", "--set", "ridge"], ["Cannot read --set 'ridge'. Write --set option=value."]),
        (
            ["run", "TASK", "trak", "--set", "ridge=1", "--set", "ridge =0.5"],
            ["--set gives ridge twice. Give it once."],
        ),
        (["run", "TASK", "trak", "--ensemble", "dropuot(masks=2)"], ["Did you mean 'dropout'?"]),
        (["run", "TASK", "trak", "--ensemble", "dropout(mask=2)"], ["ensemble dropout's mask must be one of shared"]),
        (["run", "TASK", "trak", "--ensemble", "dropout(masks=0)"], ["must be between 1 and inf; got 0."]),
        (["run", "TASK", "trak", "--ensemble", "lora(models=1001, adapters=1000)"], ["has more than 1000000 members."]),
        (["run", "TASK", "./gone.py:Mine"], ["There is no file gone.py."]),
        (["run", "TASK", "./gone.py"], ["Write ./gone.py:NAME."]),
        (["tune", "TASK", "random"], ["random declares nothing to tune"]),
        (["board"], ["There is no folder of runs at runs.", "`tdabench suite quick`"]),
        (["board", "."], ["There is no run in ."]),
        (["compare", ".", "."], ["is not a run folder", "`tdabench run` printed."]),
        (["score", "."], ["is not a run folder"]),
        (["ground-truth", "build", "TASK"], ["exists already. Pass --replace"]),
        (["ground-truth", "build", "TASK", "--shard", "0/2"], ["exists already. Pass --slices DIR"]),
        (
            ["ground-truth", "verify", "TASK", "--folder", "gone"],
            ["has no ground truth in gone.", "small_task.py:TASK`."],
        ),
    ],
    ids=lambda value: " ".join(value) if value and value[0].islower() else "",
)
def test_what_was_asked_for_cannot_be_done(mistake, task, words, parts):
    line = mistake(*[task if word == "TASK" else word for word in words])
    for part in parts:
        assert part in line


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["nonsense"], "No such command 'nonsense'"),
        (["run"], "Missing argument 'TASK'"),
        (["run", "a", "b", "c"], "unexpected extra argument"),
        (["run", "a", "b", "--sed", "1"], "No such option"),
        (["run", "a", "b", "--seed", "x"], "'x' is not a valid integer"),
        (["run", "a", "b", "--seed", "-1"], "not in the range"),
        (["run", "a", "b", "--seed", "9007199254740992"], "not in the range 0<=x<=9007199254740991"),
        (["tune", "a", "b", "--seed", "9007199254740992"], "not in the range 0<=x<=9007199254740991"),
        (["plan", "a", "b", "--seed", "9007199254740992"], "not in the range 0<=x<=9007199254740991"),
        (["run", "a", "b", "--threads", "0"], "not in the range"),
        (["run", "a", "b", "--threads", "2147483648"], "not in the range 1<=x<=1024"),
        (["plan", "a", "b", "--threads", "2147483648"], "not in the range 1<=x<=1024"),
        (["run", "a", "b", "--timeout", "0"], "not in the range"),
        (["run", "a", "b", "--device", "tpu"], "'tpu' is not one of 'cpu', 'cuda'"),
        (["run", "a", "b", "--data", "gone"], "'gone' does not exist"),
        (["score", "gone.npy", "--task", "a"], "'gone.npy' does not exist"),
        (["ground-truth", "merge", "a", ".", "gone"], "'gone' does not exist"),
        (["ground-truth", "nonsense"], "No such command 'nonsense'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes_in_the_form_of_a_command(mistake, words, part):
    line = mistake(*words)
    assert part in line
    assert "--help`." in line


# --- files of scores


def scores_file(name: str, array: np.ndarray, folder: Path) -> Path:
    path = folder / name
    if path.suffix == ".npy":
        np.save(path, array)
    else:
        write_arrays(path, {"scores": array})
    return path


ONES = np.ones((40, 120), dtype=np.float32)
BAD = {
    "transposed": (ONES.T, "Scores have shape [120, 40], expected [n_queries, n_train] = [40, 120]."),
    "short": (ONES[:, :-1], "Scores have shape [40, 119]"),
    "flat": (ONES.ravel(), "Scores have shape [4800]"),
    "nan": (np.where(np.arange(120) == 7, np.nan, ONES), "Scores are not finite: 40 NaN"),
    "infinite": (np.where(np.arange(120) == 7, np.inf, ONES), "40 infinite values"),
    "integers": (ONES.astype(np.int64), "Scores have type int64, expected float32 or float64."),
    "complex": (ONES.astype(np.complex64), "Scores have type complex64"),
}


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize("suffix", [".npy", ".safetensors"])
def test_scores_that_cannot_be_evaluated(mistake, task, tmp_path, kind, suffix):
    array, part = BAD[kind]
    assert part in mistake("score", scores_file(f"scores{suffix}", array, tmp_path), "--task", task)


@pytest.mark.parametrize("suffix", [".npy", ".safetensors"])
@pytest.mark.parametrize("size", [0, 5, 1000])
def test_truncated_scores(mistake, task, tmp_path, suffix, size):
    path = scores_file(f"scores{suffix}", ONES, tmp_path)
    path.write_bytes(path.read_bytes()[:size])
    line = mistake("score", path, "--task", task)
    assert f"{path} is not a readable" in line
    assert "Write it again" in line


def test_pickled_scores(mistake, task, tmp_path):
    path = tmp_path / "scores.npy"
    np.save(path, np.array([None]), allow_pickle=True)
    assert "is not a readable .npy file" in mistake("score", path, "--task", task)


def test_scores_of_no_known_kind(mistake, task, tmp_path):
    (tmp_path / "scores.csv").write_text("1")
    assert "neither a run folder nor" in mistake("score", tmp_path / "scores.csv", "--task", task)


def test_a_file_of_scores_needs_a_task(mistake, tmp_path):
    path = scores_file("scores.npy", ONES, tmp_path)
    assert "say which task its scores are of, with --task TASK." in mistake("score", path)


# --- run folders


def test_a_run_is_scored_on_its_own_task_only(mistake, task, run_folder):
    line = mistake("score", run_folder, "--task", "digits-mlp")
    assert "is of small version" in line
    assert "not of digits-mlp version" in line


def test_a_run_of_an_older_task(mistake, task, run_folder, small):
    record = run_folder / "record.json"
    record.write_text(record.read_text().replace(small.version, "0" * 16))
    assert "is of small version 0000000000000000, not of small version" in mistake("score", run_folder)
    assert "has no LDS to compare: ok, it is of an older version" in mistake("compare", run_folder, run_folder)


def test_runs_of_different_tasks_are_not_compared(mistake, task, run_folder, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "record.json").write_text(GOLDEN.read_text())
    assert "These are runs of small and digits-mlp." in mistake("compare", run_folder, other)


def test_a_failed_run_is_not_compared(mistake, task, run_folder):
    record = parse_record((run_folder / "record.json").read_text(), run_folder)
    failed = record.model_copy(update={"status": "failed", "reason": "it broke"})
    (run_folder / "record.json").write_text(failed.to_json())
    assert "has no LDS to compare: failed, it broke." in mistake("compare", run_folder, run_folder)


def test_scores_changed_after_the_run(mistake, task, run_folder):
    write_arrays(run_folder / SCORES_FILE, {"scores": ONES * 2})
    assert "is not the file that its record was written for." in mistake("score", run_folder, "--task", task)


@pytest.mark.parametrize("command", ["score", "board"])
@pytest.mark.parametrize("size", [0, 1000])
def test_damaged_scores_of_a_run_are_in_the_way_of_another(mistake, task, run_folder, command, size):
    path = run_folder / SCORES_FILE
    path.write_bytes(path.read_bytes()[:size])
    line = mistake(command, run_folder if command == "score" else run_folder.parent, "--task", task)
    assert line.endswith(f"Remove {run_folder}, and run the method again.")


def test_what_a_tuning_tried_has_no_score(mistake, task, run_folder, tmp_path):
    (tmp_path / ".tuning").mkdir()
    candidate = run_folder.rename(tmp_path / ".tuning" / run_folder.name)
    assert "is what `tdabench tune` tried, which is no result" in mistake("score", candidate, "--task", task)


@pytest.mark.parametrize("command", ["score", "board"])
def test_a_broken_record(mistake, run_folder, command):
    record = run_folder / "record.json"
    record.write_text(record.read_text()[:100])
    place = run_folder if command == "score" else run_folder.parent
    line = mistake(command, place)
    assert f"{record} is not a valid record" in line
    assert line.endswith("Remove its folder, and run the method again.")


@pytest.mark.parametrize(
    "words",
    [
        ["score", "RUN"],
        ["compare", "RUN", "RUN"],
        ["board", "RUNS"],
        ["findings", "RUNS"],
        ["archive", "RUNS", "--out", "kept"],
        ["plan", "--against", "RUNS"],
    ],
    ids=lambda words: words[0],
)
@pytest.mark.parametrize("name", ["{}:TASK", "{}", "../small"])
def test_a_record_whose_task_is_a_file_runs_none(mistake, task, run_folder, tmp_path, words, name):
    code = tmp_path / "code.py"
    code.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    record = run_folder / "record.json"
    record.write_text(record.read_text().replace('"small"', f'"{name.format(code)}"'))
    line = mistake(*({"RUN": run_folder, "RUNS": run_folder.parent}.get(word, word) for word in words))
    assert f"{record} is not a valid record (task: Value error, a task's name is no path)." in line
    assert not (tmp_path / "ran").exists()


def test_a_broken_suite(mistake, tmp_path):
    (tmp_path / "mine.toml").write_text("title = 'x'\nrun = []\n")
    assert "mine.toml is not a suite: run: " in mistake("suite", "mine.toml")


def test_methods_that_cannot_be_loaded(mistake, task, tmp_path):
    (tmp_path / "mine.py").write_text("class Mine:\n    pass\nraise ValueError('a line\\nand another')\n")
    assert "mine.py fails on import: ValueError: a line and another." in mistake("run", task, "mine.py:Mine")
    (tmp_path / "mine.py").write_text("class Mine:\n    pass\n")
    assert "mine.py:Mine is not a method" in mistake("run", task, "mine.py:Mine")
    assert "Did you mean 'Mine'?" in mistake("run", task, "mine.py:Min")


@pytest.mark.parametrize("variable", ["TDABENCH_DATA", "TDABENCH_CACHE"])
def test_a_home_folder_of_nobody_is_no_failed_run(mistake, tmp_path, cache, monkeypatch, variable):
    monkeypatch.setenv(variable, "~nosuchuser/x")
    line = mistake("run", "mnist-mlp", "random")
    assert f"{variable} is '~nosuchuser/x', and there is no home folder of that user. Write the path of another" in line
    assert not list(tmp_path.glob("runs/*"))


@pytest.mark.parametrize("variable", ["TDABENCH_DATA", "TDABENCH_CACHE"])
@pytest.mark.parametrize(
    ("name", "why"), [(LONG, "a name in it is too long"), ("loop", "its links lead back to where")]
)
def test_a_name_of_no_folder_is_no_failed_run(mistake, tmp_path, cache, monkeypatch, variable, name, why):
    (tmp_path / "loop").symlink_to("loop")
    monkeypatch.setenv(variable, name)
    line = mistake("run", "mnist-mlp", "random")
    assert f"{variable} is '{name}', and {why}" in line
    assert line.endswith("Write the path of another folder.")
    assert not list(tmp_path.glob("runs/*"))


@pytest.mark.parametrize(
    "words",
    [
        ["board", "RUNS", "--out", LONG],
        ["board", LONG],
        ["findings", "RUNS", "--out", f"{LONG}.md"],
        ["archive", "RUNS", "--out", LONG],
        ["suite", LONG],
        ["suite", f"{LONG}.toml"],
        ["run", f"{LONG}.py:TASK", "random"],
        ["run", "TASK", f"{LONG}.py:Mine"],
        ["run", "TASK", "random", "--runs", LONG],
        ["ground-truth", "verify", "TASK", "--folder", LONG],
        ["board", "loop"],
        ["board", "RUNS", "--out", "loop"],
        ["findings", "RUNS", "--out", "loop/findings.md"],
        ["run", "loop/mine.py:TASK", "random"],
        ["run", "TASK", "random", "--runs", "loop/runs"],
    ],
    ids=lambda words: " ".join(words).replace(LONG, "LONG"),
)
def test_names_that_nothing_can_have(mistake, task, run_folder, tmp_path, words):
    (tmp_path / "loop").symlink_to("loop")
    find_task(task)
    places = {"RUNS": run_folder.parent, "TASK": task}
    assert re.search("too long|[Ll]oop", mistake(*(places.get(word, word) for word in words)))


def test_a_current_folder_that_was_removed(tmp_path):
    words = ["sh", "-c", 'mkdir gone && cd gone && rmdir ../gone && "$0" -m tdabench tasks', sys.executable]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    said = "Error: The folder that you are in was removed. Go to another one.\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", said)


def test_missing_data(mistake, tmp_path, cache):
    (tmp_path / "empty").mkdir()
    line = mistake("ground-truth", "verify", "mnist-mlp", "--replicas", "1", "--data", tmp_path / "empty")
    assert "train-images-idx3-ubyte" in line
    assert "--data" in line


def test_there_is_no_such_device(mistake, task):
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    assert "no CUDA device" in mistake("run", task, "random", "--device", "cuda")


# --- the disk


@pytest.fixture
def nearly_full_disk(tiny_disk: Path) -> Path:
    """Return a disk with a few kilobytes left."""
    (tiny_disk / "filler").write_bytes(bytes(48 * 1024))
    return tiny_disk


def test_full_disk_while_a_run_is_written(mistake, task, nearly_full_disk):
    """There is room for the log and the record, but not for the scores."""
    line = mistake("run", task, f"{METHODS}:Allocates", "--runs", nearly_full_disk / "runs")
    assert "the disk is full" in line
    assert list((nearly_full_disk / "runs").iterdir()) == []


def test_full_disk_while_a_model_is_kept(mistake, task, nearly_full_disk, tmp_path, monkeypatch):
    (nearly_full_disk / "more").write_bytes(bytes(12 * 1024))
    monkeypatch.setenv("TDABENCH_CACHE", str(nearly_full_disk / "cache"))
    line = mistake("run", task, "random", "--runs", tmp_path / "runs")
    assert "the disk is full" in line
    assert list((tmp_path / "runs").iterdir()) == [], "the disk's fault is no row of the method's"


def test_full_disk_while_the_board_is_written(nearly_full_disk, run_folder, task):
    words = ["board", run_folder.parent, "--out", nearly_full_disk / "board", "--task", task]
    done = subprocess.run(
        [sys.executable, "-m", "tdabench", *map(str, words)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.splitlines()[-1].startswith("Error: ")
    assert "the disk is full" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (nearly_full_disk / "board").exists() or list((nearly_full_disk / "board").rglob("*.html")) == []


def test_what_the_system_says_of_the_disk_ends_with_what_to_do(mistake, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("tdabench.registry.names", full)
    assert mistake("tasks").endswith("device. Free some space, or choose a folder that you can write to.")


# --- letters


def typed(*words: object, cwd: Path, **environment: str) -> subprocess.CompletedProcess[bytes]:
    words = [sys.executable, "-m", "tdabench", *map(str, words)]
    return subprocess.run(words, cwd=cwd, env=os.environ | environment, capture_output=True, check=False)


def test_a_terminal_without_all_letters_is_written_to(run_folder, task, tmp_path):
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = typed("board", run_folder.parent, "--task", task, cwd=tmp_path, **ascii_only)
    assert done.returncode == 0, done.stderr
    assert rb"trak \xb7 dropout" in done.stdout


def test_file_names_that_are_no_text_are_written_to(run_folder, task, tmp_path):
    name = os.fsdecode(b"out\xfc")
    for words in (["board"], ["findings"], ["archive"]):
        done = typed(*words, run_folder.parent, "--task", task, "--out", name + words[0], cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert rf"out\udcfc{words[0]}".encode() in done.stdout
        assert (tmp_path / (name + words[0])).exists()
    assert r"--out 'out\udcfcfindings'" in (tmp_path / f"{name}findings").read_text(encoding="utf-8")


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_nobody_has_to_read(closed):
    words = ["sh", "-c", f'"$0" -m tdabench tasks {closed}', sys.executable]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert ("digits-mlp" in done.stdout) == (closed == "2>&-")


# --- debug


def test_debug_shows_the_traceback():
    words = [sys.executable, "-m", "tdabench", "--debug", "tasks", "nope"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    with pytest.raises(UnknownNameError):
        cli.main(["--debug", "tasks", "nope"])
    plain = subprocess.run([words[0], *words[1:3], *words[4:]], capture_output=True, text=True, check=False)
    assert plain.returncode == 2
    assert plain.stderr.startswith("Error: Unknown task 'nope'.")
    assert len(plain.stderr.splitlines()) == 1


def test_our_own_defects_keep_their_traceback(monkeypatch):
    def broken(*args, **kwargs):
        raise ZeroDivisionError("a defect")

    monkeypatch.setattr("tdabench.registry.names", broken)
    with pytest.raises(ZeroDivisionError):
        cli.main(["tasks"])


def test_an_unknown_name_is_told_across_processes():
    error = UnknownNameError("method", "trac", ["trak", "tracin"], "See `tdabench methods`.")
    there = pickle.loads(pickle.dumps(error))
    assert (type(there), str(there)) == (UnknownNameError, str(error))
    assert "Did you mean 'tracin'" in str(there)


def test_a_title_is_printed_as_it_is(capsys):
    print_table(
        ("method",), [["[b]trak[/b], which has a name as long as the title"]], title="MNIST [small] with [/brackets]"
    )
    title, *rest = capsys.readouterr().out.splitlines()
    assert title.rstrip() == "MNIST [small] with [/brackets]"
    assert "[b]trak[/b]" in rest[-1]
