from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock

from tdabench import building, retraining
from tdabench.building import Options, build, total_replicas, work_folder
from tdabench.errors import StorageError, UsageError
from tdabench.files import write_json
from tdabench.ground_truth import ARRAYS_FILE, MANIFEST_FILE, read_ground_truth
from tdabench.registry import find_task
from tdabench.retraining import retrain
from tdabench.slices import Slice, plan_slices, read_slices

BUILD = """
    import sys
    from pathlib import Path
    from tdabench.building import Options, build

    if __name__ == "__main__":
        show = lambda p: print(p.done, p.fresh, flush=True)
        build(sys.argv[1], Path(sys.argv[2]), Options(workers=1), on_progress=show)
"""


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "build.py"
    path.write_text(textwrap.dedent(BUILD))
    return path


def start(script: Path, reference: str, out: Path) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, str(script), reference, str(out)], stdout=subprocess.PIPE, text=True)


def children(pid: int) -> list[int]:
    return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def has_ended(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


class InlineExecutor(ThreadPoolExecutor):
    """One thread that notes which slices were asked for."""

    def __init__(self) -> None:
        super().__init__(1)
        self.slices: list[Slice] = []

    def submit(self, function, /, *args, **kwargs) -> Future:
        self.slices += [a for a in args if isinstance(a, Slice)]
        return super().submit(function, *args, **kwargs)


def test_the_process_pool_builds_what_a_thread_builds(small_reference, small, small_truth_folder, cache, tmp_path):
    seen = []
    manifest = build(small_reference, tmp_path / "truth", Options(workers=1), on_progress=seen.append)
    truth, other = read_ground_truth(small, tmp_path / "truth"), read_ground_truth(small, small_truth_folder)
    np.testing.assert_array_equal(truth.outputs, other.outputs)
    np.testing.assert_array_equal(truth.masks, small.subset_masks().numpy())
    assert truth.outputs.shape == (8, 4, 40)
    assert [(p.done, p.fresh, p.total) for p in (seen[0], seen[-1])] == [(0, 0, 32), (32, 32, 32)]
    (builder,) = manifest.built_on
    assert builder.n_replicas == 32
    assert builder.seconds_per_replica > 0
    assert str(builder.replicas_per_group) == min(builder.seconds_by_group, key=builder.seconds_by_group.__getitem__)
    assert not work_folder(small).exists()


def test_killed_again_and_again_a_build_ends_with_the_bytes_of_an_undisturbed_one(
    slow_reference, cache, script, tmp_path
):
    task, out = find_task(slow_reference), tmp_path / "killed"
    kept = 0
    for _ in range(3):
        process = start(script, slow_reference, out)
        assert process.stdout is not None
        assert process.stdout.readline().split() == [str(kept), "0"], "finished slices are not repeated"
        process.stdout.readline()  # one more slice is done, others are being computed
        workers = children(process.pid)
        assert workers
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        deadline = time.monotonic() + 20
        while not all(map(has_ended, workers)):
            assert time.monotonic() < deadline, "workers outlive a killed build"
            time.sleep(0.05)
        assert not out.exists()
        before, kept = kept, read_slices(task, [work_folder(task)]).n_done
        assert before < kept < total_replicas(task)
    with InlineExecutor() as executor:
        build(slow_reference, out, executor=executor)
    assert sum(len(s.subsets) for s in executor.slices) == total_replicas(task) - kept
    with ThreadPoolExecutor(1) as plain:
        build(slow_reference, tmp_path / "undisturbed", executor=plain)
    assert (out / ARRAYS_FILE).read_bytes() == (tmp_path / "undisturbed" / ARRAYS_FILE).read_bytes()


def test_a_second_build_of_the_task_at_the_same_time_is_refused(small_reference, small, cache, tmp_path):
    work_folder(small).mkdir(parents=True)
    with FileLock(work_folder(small) / "build.lock"), pytest.raises(UsageError, match="Another build of small is"):
        build(small_reference, tmp_path / "truth")
    assert not (tmp_path / "truth").exists()


def test_an_executor_that_is_given_does_all_the_work_and_stays_open(small_reference, cache, tmp_path, monkeypatch):
    monkeypatch.setattr(building, "local_pool", lambda workers: pytest.fail("made a pool of its own"))
    with InlineExecutor() as executor:
        build(small_reference, tmp_path / "truth", executor=executor)
        assert [(s.seed, s.subsets) for s in executor.slices] == [(seed, tuple(range(8))) for seed in range(4)]
        assert executor.submit(int, "3").result() == 3


def test_a_replica_retrained_alone_or_in_any_group_is_the_same_to_the_bit(small, small_data):
    whole = retrain(small, small_data, 0, range(8), 8)
    for part in ([3], [3, 5], [0, 3, 4, 7]):
        assert torch.equal(retrain(small, small_data, 0, part, 8), whole[part])


def test_the_size_of_groups_changes_nothing_but_rounding(small, small_data):
    expected = retrain(small, small_data, 0, range(8), 8)
    for size in (1, 3, 7):
        torch.testing.assert_close(retrain(small, small_data, 0, range(8), size), expected, rtol=1e-4, atol=1e-4)


def test_a_failing_slice_stops_the_rest_also_on_an_executor_that_is_given(
    small_reference, cache, tmp_path, monkeypatch
):
    def fail(*_):
        raise RuntimeError("worker broke")

    monkeypatch.setattr(retraining, "retrain", fail)
    with ThreadPoolExecutor(1) as executor:
        futures: list[Future] = []
        submit = executor.submit
        monkeypatch.setattr(executor, "submit", lambda *a: futures.append(submit(*a)) or futures[-1])
        with pytest.raises(RuntimeError, match="worker broke"):
            build(small_reference, tmp_path / "truth", executor=executor)
    assert all(f.done() for f in futures)
    assert not (tmp_path / "truth").exists()


def test_training_that_diverges_is_named_and_not_taken_for_missing(small_reference, cache, tmp_path, monkeypatch):
    monkeypatch.setattr(retraining, "target_outputs", lambda *_: torch.full((8, 40), torch.inf))
    with ThreadPoolExecutor(1) as executor, pytest.raises(UsageError, match=r"training of small diverged.*seed 0"):
        build(small_reference, tmp_path / "truth", executor=executor)


def test_what_exists_is_not_overwritten_unless_asked_for(small_reference, small_truth_folder, cache):
    with pytest.raises(UsageError, match=r"exists already\. Pass --replace"):
        build(small_reference, small_truth_folder)


def old_truth(folder: Path) -> Path:
    folder.mkdir()
    (folder / MANIFEST_FILE).write_text("old")
    return folder


def test_replace_keeps_the_old_one_until_the_new_one_is_complete(small_reference, small, cache, tmp_path):
    out = old_truth(tmp_path / "truth")

    def still_old(_):
        assert (out / MANIFEST_FILE).read_text() == "old"

    with ThreadPoolExecutor(1) as executor:
        build(small_reference, out, executor=executor, replace=True, on_progress=still_old)
    assert read_ground_truth(small, out).outputs.shape == (8, 4, 40)
    assert [p.name for p in tmp_path.iterdir() if p.name != "cache"] == ["truth"]


def test_replace_keeps_the_old_one_if_the_new_one_cannot_be_written(
    small_reference, small, cache, tmp_path, monkeypatch
):
    out = old_truth(tmp_path / "truth")

    def full(*_):
        raise StorageError("the disk is full")

    monkeypatch.setattr("tdabench.ground_truth.write_json", full)
    with ThreadPoolExecutor(1) as executor, pytest.raises(StorageError):
        build(small_reference, out, executor=executor, replace=True)
    assert (out / MANIFEST_FILE).read_text() == "old"
    monkeypatch.setattr("tdabench.ground_truth.write_json", write_json)
    with InlineExecutor() as executor:
        build(small_reference, out, executor=executor, replace=True)
    assert executor.slices == [], "the slices were kept: nothing is computed twice"


def test_a_damaged_slice_is_named(small_reference, small, cache, tmp_path):
    work_folder(small).mkdir(parents=True)
    path = work_folder(small) / Slice(0, (0, 1)).file_name
    path.write_bytes(b"half a file")
    with pytest.raises(Exception, match=rf"{path.name} is not a readable slice.*Remove"):
        build(small_reference, tmp_path / "truth")


def test_slices_of_other_subsets_are_never_mixed_in(small):
    plans = [small.plan, replace(small.plan, fraction=0.3), replace(small.plan, n_subsets=5)]
    assert len({work_folder(replace(small, plan=plan)) for plan in plans}) == 3


def test_only_missing_replicas_are_planned_each_once(small):
    missing = np.random.default_rng(0).random((8, 4)) < 0.5
    planned = [(m, s.seed) for s in plan_slices(missing, 3) for m in s.subsets]
    assert sorted(planned) == sorted(zip(*map(np.ndarray.tolist, np.nonzero(missing)), strict=True))
