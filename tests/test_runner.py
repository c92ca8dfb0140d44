"""One fresh process per run: what it measures, and what becomes of methods that misbehave."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from tdabench import errors, provenance, runner, worker
from tdabench.errors import DataError, UnknownNameError
from tdabench.jobs import Job, Plan, plan
from tdabench.records import Record, read_record
from tdabench.runner import find_run, is_at_work, run
from tdabench.scores import read_scores
from tdabench.view import TaskView

METHODS = Path(__file__).parent / "methods_for_runner.py"
MB = 2**20


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep models of this process's own: one that another process of the session has trained would not be trained."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TDABENCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def planned(small_reference: str):
    def make(method: str, ensemble: str | None = None, seed: int = 0, **options) -> Plan:
        return plan(Job(small_reference, f"{METHODS}:{method}", options, ensemble, seed))

    return make


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def alive(pid: int) -> bool:
    """Whether a process runs; a zombie that nobody has collected yet does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def dies(pid: int, within_s: float = 10) -> bool:
    end = time.monotonic() + within_s
    while alive(pid) and time.monotonic() < end:
        time.sleep(0.02)
    return not alive(pid)


# --- a run that ends well


@pytest.fixture(scope="module")
def two_attempts(planned, runs, tmp_path_factory):
    """Return the same job run twice, from a folder whose files are called like the standard library's."""
    folder = tmp_path_factory.mktemp("cwd")
    for name in ("random", "select", "json", "torch"):
        (folder / f"{name}.py").write_text("raise SystemExit('a file of the user stands in for a library')")
    job = planned("Good", seed=5)  # whose model no other test has trained
    events = []
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        first = run(job, runs, on_event=events.append)
        before = {path.name: path.read_bytes() for path in first[0].iterdir()}
        second = run(job, runs)
    return SimpleNamespace(job=job, first=first, second=second, before=before, events=events)


def test_a_run_folder_holds_record_scores_and_log_alone(two_attempts, small):
    folder, record = two_attempts.first
    assert folder.name == record.run_id == two_attempts.job.run_id
    assert names(folder) == ["log.txt", "record.json", "scores.safetensors"]
    assert read_record(folder) == record
    assert (record.status, record.reason, record.method) == ("ok", None, "methods_for_runner.py:Good")
    assert (record.task, record.task_version) == ("small", small.version)
    assert record.options == {"skew": 0.0}
    assert record.ingredients.models_trained == 1
    scores = read_scores(folder)
    assert record.scores.shape == list(scores.shape) == [small.n_queries, small.n_train]
    assert np.isfinite(scores).all()


def test_an_attempt_never_overwrites_another(two_attempts, runs):
    folder, record = two_attempts.second
    assert folder.name == record.run_id == f"{two_attempts.job.run_id}-attempt-2"
    first = two_attempts.first[0]
    assert {path.name: path.read_bytes() for path in first.iterdir()} == two_attempts.before
    assert find_run(two_attempts.job, runs) == folder
    np.testing.assert_array_equal(read_scores(folder), read_scores(first))


def test_the_tenth_attempt_comes_after_the_second_and_one_that_ended_well_before_all(two_attempts, tmp_path):
    job, record = two_attempts.job, two_attempts.first[1]

    def write(number: int, **changes) -> None:
        folder = tmp_path / f"{job.run_id}-attempt-{number}"
        folder.mkdir(exist_ok=True)
        (folder / "record.json").write_text(record.model_copy(update=changes).to_json())

    assert find_run(job, tmp_path) is None
    stopped = {"status": "timeout", "reason": "stopped", "costs": None, "scores": None, "ingredients": None}
    write(10, **stopped)
    write(2, **stopped)
    assert find_run(job, tmp_path).name.endswith("-attempt-10")
    write(2)
    assert find_run(job, tmp_path).name.endswith("-attempt-2")
    write(10)
    assert find_run(job, tmp_path).name.endswith("-attempt-10")


def test_a_copy_of_an_attempt_is_no_attempt(two_attempts, tmp_path):
    for name in ("", "-attempt-2", "-attempt-2.bak", "-attempt-", "-attempt-9 copy", "-attempt-2.bak-attempt-3"):
        shutil.copytree(two_attempts.first[0], tmp_path / f"{two_attempts.job.run_id}{name}")
    assert find_run(two_attempts.job, tmp_path).name == f"{two_attempts.job.run_id}-attempt-2"


def test_progress_names_the_phases_in_order(two_attempts):
    phases = [event["phase"] for event in two_attempts.events if "phase" in event]
    assert phases[0] == "harness"
    assert phases.index("attribute") < phases.index("fit") < phases.index("train"), "members are fitted one by one"
    assert {"done": 1, "total": 1} in two_attempts.events


def test_a_record_names_no_folder_of_this_machine(two_attempts):
    text = (two_attempts.first[0] / "record.json").read_text()
    for folder in (Path.home(), METHODS.parent, two_attempts.first[0].parent):
        assert str(folder) + "/" not in text


def test_a_models_training_is_charged_to_every_run_that_uses_it(two_attempts):
    first, second = (r.costs for _, r in (two_attempts.first, two_attempts.second))
    assert first.train_s == second.train_s > 0
    assert (first.extra_train_s, second.extra_train_s) == (0, 0)
    assert first.storage_bytes == second.storage_bytes > 0


def test_checkpoints_are_charged_one_training_and_their_members_are_compared(planned, runs):
    _, record = run(planned("Good", "checkpoints(models=2, last=2)", seed=5), runs)
    assert (record.status, record.members, record.ingredients.models_trained) == ("ok", 4, 2)
    assert record.costs.extra_train_s == record.costs.train_s > 0
    found = record.correlations
    assert (found.n_within_pairs, found.n_between_pairs) == (2, 4)
    assert 0 < found.between < found.within < 1
    _, alone = run(planned("Good", "independent(models=1)", seed=5), runs)
    assert alone.correlations is None
    assert alone.costs.train_s < record.costs.train_s


# --- time


@pytest.fixture(scope="module")
def slow_run(planned, runs) -> Record:
    return run(planned("Slow", "independent(models=2)", seed=3), runs)[1]


@pytest.fixture(scope="module")
def training_run(planned, runs) -> Record:
    return run(planned("TrainsInside", seed=7), runs)[1]


def check_sum(record: Record) -> None:
    assert sum(record.phases.values()) == pytest.approx(record.costs.wall_s, rel=0.02)
    assert record.costs.fit_s == record.phases["fit"]
    assert record.costs.attribute_s == record.phases["attribute"]


def test_phases_of_a_fast_method_add_up(two_attempts):
    records = [record for _, record in (two_attempts.first, two_attempts.second)]
    off = [abs(sum(r.phases.values()) / r.costs.wall_s - 1) for r in records]
    assert min(off) < 0.02, "of a few milliseconds; one of the two may have been interrupted between its clocks"


def test_phases_of_a_slow_method_add_up_and_are_right(slow_run):
    check_sum(slow_run)
    assert slow_run.costs.fit_s == pytest.approx(0.4, abs=0.1)
    assert slow_run.costs.attribute_s == pytest.approx(0.2, abs=0.1)
    assert slow_run.members == 2


def test_training_inside_a_phase_is_not_counted_in_it(training_run):
    check_sum(training_run)
    assert training_run.phases["train"] > 0
    assert training_run.costs.fit_s == pytest.approx(0.1, abs=0.08)
    assert training_run.costs.attribute_s == pytest.approx(0.1, abs=0.08)
    assert training_run.ingredients.models_trained == 2
    assert training_run.costs.train_s > training_run.costs.extra_train_s > 0


# --- warm-up


def test_what_torch_imports_at_a_first_gradient_or_step_is_not_the_methods(planned, runs):
    folder, record = run(planned("Imports"), runs)
    assert record.status == "ok"
    said, _, count = (folder / "log.txt").read_text().rpartition(": ")
    assert (said, int(count) < 10) == ("modules imported", True), "hundreds otherwise"


def test_a_method_that_ships_with_tdabench_is_measured_without_it(planned, small_reference, monkeypatch):
    loaded = []
    monkeypatch.setattr(worker, "_load_transforms", loaded.append)
    for job in (planned("Good"), plan(Job(small_reference, "random", {}))):
        worker._prepare(job.job, job.key, worker.Events(-1))
    assert loaded == ["cpu"]


# --- memory


LAUNCHER = """
import json, sys
from pathlib import Path
import numpy as np
from tdabench.jobs import Job, plan
from tdabench.runner import run
held = np.ones(2**30, dtype=np.uint8)
_, record = run(plan(Job(sys.argv[1], sys.argv[2], {}, None, 11)), Path(sys.argv[3]))
print(record.to_json())
"""


def test_a_known_allocation_is_measured(planned, runs):
    """Loading the methods' file takes and frees 400 MB, which must not be what the 256 MB are found in."""
    record = run(planned("Allocates"), runs)[1]
    assert record.costs.peak_host_bytes == pytest.approx(256 * MB, rel=0.05)
    assert record.costs.peak_device_bytes is None


def test_a_large_launcher_is_not_measured_with_it(small_reference, runs):
    words = [sys.executable, "-c", LAUNCHER, small_reference, f"{METHODS}:Allocates", str(runs)]
    costs = json.loads(subprocess.run(words, capture_output=True, text=True, check=True).stdout)["costs"]
    assert costs["peak_host_bytes"] == pytest.approx(256 * MB, rel=0.05)
    assert costs["baseline_host_bytes"] < 800 * MB


# --- methods that misbehave


@pytest.fixture(scope="module")
def failed(planned, runs):
    """Return a function that runs ``Fails`` in one way, once."""
    done: dict[str, tuple[Path, Record]] = {}

    def fail(how: str) -> tuple[Path, Record]:
        if how not in done:
            done[how] = run(planned("Fails", how=how), runs)
        return done[how]

    return fail


@pytest.mark.parametrize(
    ("how", "status", "reason"),
    [
        ("raise", "failed", "ZeroDivisionError: a line and another"),
        ("nan", "failed", "Scores are not finite: 1 NaN"),
        ("shape", "failed", "Scores have shape [40, 119], expected [n_queries, n_train] = [40, 120]."),
        ("transpose", "failed", "got the transpose, [120, 40]. Return scores.T."),
        ("type", "failed", "attribute must return a torch.Tensor; got ndarray."),
        ("integers", "failed", "Scores have type torch.int64, expected floats."),
        ("surrogate", "failed", "FileNotFoundError: no file caf\\udce9"),
        ("writing", "failed", "The data of small was changed in place while the method ran"),
        ("junk", "failed", "ZeroDivisionError: after all that"),
        ("exit", "failed", "the process ended with code 3 and left no result; see its log"),
        ("kill", "failed", "killed by SIGKILL"),
        ("memory", "out-of-memory", "MemoryError"),
        ("allocation", "out-of-memory", "can't allocate memory"),
        ("decline", "declined", "it never works and never will"),
        ("silence", "declined", "it gave no reason"),
        ("blank", "declined", "it gave no reason"),
        ("saying_nothing", "failed", "UsageError"),
        ("answer true", "failed", "supports returns True. Return None where the method can run, else a text"),
        ("answer nothing", "failed", "supports returns ''. Return None where the method can run, else a text"),
    ],
)
def test_whatever_a_method_does_is_a_row_with_a_reason_and_a_log(failed, how, status, reason):
    folder, record = failed(how)
    assert record.status == status
    assert reason in record.reason
    assert "\n" not in record.reason
    assert (record.costs, record.scores) == (None, None)
    assert names(folder) == ["log.txt", "record.json"]
    if status != "declined" and not how.startswith("answer"):
        assert f"going to {how}" in (folder / "log.txt").read_text()


def test_two_commands_that_measure_the_same_at_once_both_keep_what_they_measured(planned, tmp_path):
    """The other one ends first and takes the name."""
    job, other = planned("Good"), []

    def meanwhile(event: dict) -> None:
        if not other:
            other.append(run(job, tmp_path))

    folder, record = run(job, tmp_path, on_event=meanwhile)
    assert other[0][0].name == other[0][1].run_id == job.run_id
    assert folder.name == record.run_id == f"{job.run_id}-attempt-2"
    assert names(tmp_path) == [job.run_id, f"{job.run_id}-attempt-2"]
    assert read_record(folder) == record


def test_a_job_is_at_work_while_a_command_measures_it(planned, tmp_path):
    job, other, seen = planned("Good"), planned("Good", seed=5), []
    run(job, tmp_path, on_event=lambda _: seen.append((is_at_work(job, tmp_path), is_at_work(other, tmp_path))))
    assert set(seen) == {(True, False)}
    assert not is_at_work(job, tmp_path)
    left = tmp_path / ".partial-killed"  # by a launcher that was killed
    left.mkdir()
    (left / "job.json").write_text(job.job.to_json())
    assert not is_at_work(job, tmp_path)


def test_memory_that_runs_out_before_the_method_began_is_not_the_methods(planned, tmp_path, monkeypatch, capfd):
    """A card that others use, for example."""
    job = planned("Good")

    def full(view: TaskView) -> None:
        raise RuntimeError("CUDA error: out of memory")

    monkeypatch.setattr(TaskView, "warm_up", full)
    result = worker._guarded(job.job, job.key, tmp_path, worker.Events(-1))
    assert (result["status"], result["kind"]) == ("refused", "UsageError")
    assert "does not fit into the memory of cpu: it ran out before the method began" in result["reason"]


def test_a_task_that_fails_before_the_method_began_is_not_the_method_s_failure(planned, tmp_path, monkeypatch, capfd):
    job = planned("Good")
    monkeypatch.setattr(TaskView, "warm_up", lambda view: 1 / 0)
    result = worker._guarded(job.job, job.key, tmp_path, worker.Events(-1))
    assert (result["status"], result["kind"]) == ("refused", "UsageError")
    assert "fails before the method begins: ZeroDivisionError: division by zero. Mend it; nothing" in result["reason"]
    assert "Traceback" in capfd.readouterr().err


def test_the_log_has_the_traceback(failed):
    folder, _ = failed("raise")
    log = (folder / "log.txt").read_text()
    assert "Traceback" in log
    assert "fail_by_raise" in log


@pytest.fixture
def hanging(planned, tmp_path, monkeypatch) -> Iterator[tuple[Plan, Path]]:
    """Return a job that hangs, and the file that it writes its process and its child to once it does."""
    pids = tmp_path / "pids"
    monkeypatch.setenv("TDABENCH_TEST_PIDS", str(pids))
    yield planned("Fails", how="hang"), pids
    for pid in map(int, pids.read_text().split()) if pids.exists() else []:
        if alive(pid):
            os.kill(pid, signal.SIGKILL)


def test_a_method_that_hangs_is_stopped_with_its_children(hanging, runs, monkeypatch):
    job, pids = hanging
    clock = SimpleNamespace(monotonic=lambda: time.monotonic() + (1000 if pids.exists() else 0))
    monkeypatch.setattr(runner, "time", clock)
    folder, record = run(job, runs, timeout_s=900)
    assert (record.status, record.reason) == ("timeout", "stopped after 900 s, the limit of --timeout or the suite")
    assert names(folder) == ["log.txt", "record.json"]
    assert all(dies(int(pid)) for pid in pids.read_text().split())


def test_a_thread_that_a_method_leaves_behind_does_not_hold_the_run(planned, tmp_path):
    _, record = run(planned("Fails", how="lingering"), tmp_path, timeout_s=200)
    assert (record.status, record.reason) == ("ok", None)


def test_interrupting_the_launcher_ends_the_worker_and_leaves_nothing(hanging, tmp_path):
    job, pids = hanging

    def interrupt(event: dict) -> None:
        if event.get("phase") == "attribute":
            while not pids.exists():
                time.sleep(0.01)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(job, tmp_path / "runs", on_event=interrupt)
    assert names(tmp_path / "runs") == []
    assert all(dies(int(pid)) for pid in pids.read_text().split())


def test_killing_the_launcher_ends_the_worker(hanging, tmp_path, small_reference):
    _, pids = hanging
    words = ["run", small_reference, f"{METHODS}:Fails", "--set", "how=hang", "--runs", str(tmp_path / "runs")]
    launcher = subprocess.Popen([sys.executable, "-m", "tdabench", *words], stderr=subprocess.DEVNULL)
    end = time.monotonic() + 60
    while not pids.exists() and time.monotonic() < end:
        time.sleep(0.05)
    worker = int(pids.read_text().split()[0])
    assert alive(worker)
    launcher.kill()
    launcher.wait()
    assert dies(worker)
    assert [n for n in names(tmp_path / "runs") if not n.startswith(".")] == []


def test_a_worker_whose_launcher_is_gone_runs_nothing(planned, tmp_path):
    job = tmp_path / "job.json"
    job.write_text(planned("Good").job.to_json())
    words = [sys.executable, "-m", "tdabench.worker", str(job), str(tmp_path), "2", "1", "key"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert names(tmp_path) == ["job.json"]


# --- what is not the method's fault


def test_missing_data_is_an_error_and_no_row(tmp_path, cache):
    job = Job("mnist-mlp", "random", {}, data_folder=str(tmp_path / "empty"))
    with pytest.raises(DataError, match="--data"):
        run(plan(job), tmp_path / "runs")
    assert names(tmp_path / "runs") == []


def test_an_error_of_the_worker_is_raised_as_its_kind():
    assert type(runner._refusal("DataError", "text")) is DataError
    assert type(runner._refusal("UnknownNameError", "text")) is errors.UsageError
    assert type(runner._refusal("FromAPackage", "text")) is errors.TdabenchError
    assert str(runner._refusal("UnknownNameError", "text")) == "text"


def test_an_unknown_option_is_found_before_a_process_starts(planned):
    with pytest.raises(UnknownNameError, match="Did you mean 'how'"):
        planned("Fails", hwo="raise")


@pytest.fixture
def kernel(monkeypatch, tmp_path) -> Path:
    """Put a folder in place of /proc and /sys/fs/cgroup, for a process in the group user/session."""
    monkeypatch.setattr(runner, "_PROC", tmp_path / "proc")
    monkeypatch.setattr(runner, "_CGROUPS", tmp_path / "groups")
    (tmp_path / "proc" / "self").mkdir(parents=True)
    (tmp_path / "groups" / "user" / "session").mkdir(parents=True)
    (tmp_path / "proc" / "self" / "cgroup").write_text("4:memory:/elsewhere\n0::/user/session\n")
    return tmp_path


@pytest.mark.parametrize("counter", ["proc/vmstat", "groups/memory.events", "groups/user/session/memory.events"])
def test_memory_kills_are_counted_wherever_the_kernel_tells(kernel, counter):
    assert runner._out_of_memory_kills() == 0
    (kernel / counter).write_text("low 0\noom 3\noom_kill 2\noom_kill_x 9\n")
    assert runner._out_of_memory_kills() == 2


def test_a_run_that_was_killed_for_memory_is_told_from_one_that_was_killed(tmp_path):
    assert runner._result(tmp_path, -9, out_of_memory=True)["status"] == "out-of-memory"
    assert runner._result(tmp_path, -9, out_of_memory=False)["status"] == "failed"


def test_a_signal_without_a_name_has_its_number(tmp_path):
    reasons = [runner._result(tmp_path, -n, out_of_memory=False)["reason"] for n in (signal.SIGTERM, 45)]
    assert [r.split(";")[0] for r in reasons] == ["killed by SIGTERM", "killed by signal 45"]


@pytest.mark.skipif(not Path("/proc/vmstat").exists(), reason="the kernel keeps no counts here")
def test_this_kernel_tells_of_memory_kills():
    assert "oom_kill " in runner._text(runner._PROC / "vmstat")


# --- code that changes


def test_a_method_that_is_edited_after_the_plan_is_refused_and_leaves_no_row(small_reference, tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(METHODS.read_text())
    job = plan(Job(small_reference, f"{file}:Good", {}))
    file.write_text(METHODS.read_text() + "\n# edited while a suite runs\n")
    with pytest.raises(
        errors.UsageError, match=r"code of mine.py:Good or of small, .* changed .* give the command again"
    ):
        run(job, tmp_path / "runs")
    assert names(tmp_path / "runs") == []


def test_the_record_names_the_sources_that_ran(two_attempts):
    made = two_attempts.first[1].provenance
    assert made.sources_sha256 == provenance.sources_sha256()
    assert made.commit


def test_a_folder_that_was_given_the_name_of_another_run_is_not_taken_for_it(small_reference, tmp_path):
    planned, other = (plan(Job(small_reference, method, {})) for method in ("random", "gradient-norm"))
    folder, _ = run(planned, tmp_path)
    assert find_run(planned, tmp_path) == folder
    folder.rename(tmp_path / other.run_id)
    with pytest.raises(errors.UsageError, match=f"holds the run {planned.run_id}. Give it that name, or remove it"):
        find_run(other, tmp_path)


def test_a_method_s_file_may_have_a_name_like_an_attempt(small_reference, tmp_path):
    file = tmp_path / "my_attempt_2.py"
    file.write_text(METHODS.read_text())
    planned = plan(Job(small_reference, f"{file}:Good", {}))
    runs = tmp_path / "runs"
    assert "-attempt-" in planned.run_id
    first, _ = run(planned, runs)
    assert find_run(planned, runs) == first
    second, _ = run(planned, runs)
    assert find_run(planned, runs) == second


def test_the_record_names_the_commit_that_the_run_s_process_read(small_reference, tmp_path, monkeypatch):
    """A suite takes hours, and a commit made meanwhile is what its later runs are of."""
    monkeypatch.setattr(provenance, "commit", lambda: ("0" * 40, True))
    _, record = run(plan(Job(small_reference, "random", {})), tmp_path)
    assert record.provenance.commit not in (None, "0" * 40)


def test_processor_seconds_stand_beside_the_wall_clock(two_attempts, training_run, slow_run):
    record = two_attempts.first[1]
    assert record.cpu_phases.keys() == record.phases.keys()
    assert set(record.trainings) == {"model-5-0"}
    assert sum(t.wall_s for t in training_run.trainings.values()) == pytest.approx(training_run.costs.train_s)
    assert set(training_run.trainings) == {"model-7-0", "model-7-1"}
    for trained in training_run.trainings.values():
        assert 0 < trained.cpu_s < 1.05 * trained.wall_s
    assert slow_run.busy()["serving"] < 0.5, "it sleeps, which looks like waiting for the processor"


# --- what a method is handed


def reachable(root: object) -> Iterator[object]:
    """Yield everything that attributes, containers, closures and bound arguments lead to from a task view."""
    seen, todo = set(), [root]
    while todo:
        thing = todo.pop()
        if id(thing) in seen or isinstance(thing, (type, str, bytes, int, float)):
            continue
        seen.add(id(thing))
        yield thing
        if isinstance(thing, dict):
            todo += [*thing.keys(), *thing.values()]
        elif isinstance(thing, (list, tuple, set, frozenset)):
            todo += list(thing)
        elif isinstance(thing, partial):
            todo += [thing.func, *thing.args, *thing.keywords.values()]
        else:
            todo += list(getattr(thing, "__dict__", {}).values())
            todo += [cell.cell_contents for cell in getattr(thing, "__closure__", None) or ()]
            todo += [getattr(thing, "__self__", None), *(getattr(thing, "__defaults__", None) or ())]


def test_nothing_a_method_is_handed_leads_to_the_ground_truth(view, small, small_truth_folder):
    paths = [thing for thing in reachable(view()) if isinstance(thing, Path)]
    assert paths, "the walk finds the folder of trained models"
    for path in paths:
        assert small.folder not in (path.resolve(), *path.resolve().parents)
        assert not (path / "ground_truth").exists()
