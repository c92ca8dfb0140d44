from __future__ import annotations

import os
import re
import shutil
import time
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from filelock import FileLock

from tdabench import building, filling, provenance, retraining
from tdabench.building import build, merge, work_folder
from tdabench.ceiling import noise_ceiling
from tdabench.errors import DataError, GroundTruthError, MissingGroundTruthError, StorageError, UsageError
from tdabench.files import write_json
from tdabench.filling import Options, Progress
from tdabench.ground_truth import ARRAYS_FILE, MANIFEST_FILE, ground_truth_folder, read_ground_truth
from tdabench.grouping import Grouping
from tdabench.registry import find_task
from tdabench.retraining import choose_group_in_worker, retrain
from tdabench.retraining import local_pool as real_pool
from tdabench.slices import Slice, read_slices, remember_group, remembered_group


class InlineExecutor(ThreadPoolExecutor):
    """One thread that notes which slices were asked for."""

    def __init__(self) -> None:
        super().__init__(1)
        self.slices: list[Slice] = []

    def submit(self, function, /, *args, **kwargs) -> Future:
        self.slices += [a for a in args if isinstance(a, Slice)]
        return super().submit(function, *args, **kwargs)


class UnhurriedExecutor(InlineExecutor):
    """One that lets the build look at every slice before it computes the next."""

    def submit(self, function, /, *args, **kwargs) -> Future:
        def later(*args, **kwargs):
            time.sleep(0.1)
            return function(*args, **kwargs)

        return super().submit(later, *args, **kwargs)


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


def test_a_second_build_of_the_task_at_the_same_time_is_refused(small_reference, small, cache, tmp_path):
    work_folder(small).mkdir(parents=True)
    with FileLock(work_folder(small) / "build.lock"), pytest.raises(UsageError, match="Another build of small is"):
        build(small_reference, tmp_path / "truth")
    assert not (tmp_path / "truth").exists()


def test_an_executor_that_is_given_does_all_the_work_and_stays_open(small_reference, cache, tmp_path, monkeypatch):
    monkeypatch.setattr(filling, "local_pool", lambda workers: pytest.fail("made a pool of its own"))
    with InlineExecutor() as executor:
        build(small_reference, tmp_path / "truth", executor=executor)
        assert [(s.seed, s.subsets) for s in executor.slices] == [(seed, tuple(range(8))) for seed in range(4)]
        assert executor.submit(int, "3").result() == 3


def test_threads_of_one_process_train_one_at_a_time_and_on_one_thread_each(
    small_reference, small, small_truth_folder, cache, tmp_path, monkeypatch
):
    """Models are initialised from the generator of the process, which two at once would share."""
    at_work, seen = [], set()

    def watched(*words):
        at_work.append(words)
        seen.add((len(at_work), torch.get_num_threads()))
        time.sleep(0.05)
        outputs = retrain(*words)
        at_work.pop()
        return outputs

    monkeypatch.setattr(retraining, "retrain", watched)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with ThreadPoolExecutor(4) as executor:
            manifest = build(small_reference, tmp_path / "truth", executor=executor)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    truth, other = read_ground_truth(small, tmp_path / "truth"), read_ground_truth(small, small_truth_folder)
    np.testing.assert_array_equal(truth.outputs, other.outputs)
    assert seen == {(1, 1)}
    assert manifest.built_on[0].threads_per_worker == 1


def test_workers_are_told_paths_that_name_the_same_from_anywhere(small_reference, cache, tmp_path, monkeypatch):
    """A worker of another machine starts in a folder of its own."""
    file, _, name = small_reference.rpartition(":")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    told = []
    monkeypatch.setattr(filling, "compute_slice", lambda work, part: told.append(work) or pytest.fail("stop here"))
    options = Options(Path("data"), slices=Path("slices"))
    with InlineExecutor() as executor, pytest.raises(pytest.fail.Exception):
        build(f"{os.path.relpath(file)}:{name}", tmp_path / "truth", options, executor=executor)
    (work, *_) = told
    assert (work.data_folder, work.folder) == (tmp_path / "here" / "data", tmp_path / "here" / "slices")
    monkeypatch.chdir(tmp_path)
    assert find_task(work.reference).name == "small"


def test_merging_what_needs_a_gpu_is_refused_on_a_cpu(small, monkeypatch, tmp_path):
    monkeypatch.setattr(building, "find_task", lambda _: replace(small, needs_cuda=True))
    with pytest.raises(UsageError, match=r"To merge small, .*needs a GPU.*`tdabench ground-truth merge .*cuda`"):
        merge("huge", [tmp_path], tmp_path / "truth")


def test_a_task_of_another_version_is_read_anew_by_a_worker_that_lives_on(small_reference, small, monkeypatch):
    retraining._cached_data.cache_clear()
    loads = []
    whole = small.data()
    monkeypatch.setattr(type(small), "data", lambda task, folder: loads.append(task.name) or whole)
    for version in ("a", "a", "b"):
        retraining._cached_data(small_reference, version, None, "cpu")
    assert loads == ["small", "small"]
    retraining._cached_data.cache_clear()


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


def test_slices_name_the_worker_that_trained_them_and_not_the_machine_that_asked(
    small_reference, cache, tmp_path, monkeypatch
):
    here = retraining.machine_facts
    monkeypatch.setattr(retraining, "machine_facts", lambda *a: {**here(*a), "cpu": "a node's processor"})
    with InlineExecutor() as executor:
        manifest = build(small_reference, tmp_path / "truth", executor=executor)
    assert [b.cpu for b in manifest.built_on] == ["a node's processor"]


def test_an_executors_accelerator_need_not_be_here(small_reference, small, tmp_path, monkeypatch):
    """Facts, the size of groups and what rounding does are found by its workers."""
    monkeypatch.setattr(filling, "builder_facts", lambda *_: pytest.fail("asked here"))
    monkeypatch.setattr(filling, "facts_in_worker", lambda *a: {"cpu": "a node's processor", "asked": a[1]})
    monkeypatch.setattr(filling, "choose_group_in_worker", lambda *a: Grouping(4, {4: 0.1}))
    with InlineExecutor() as executor:
        work = filling._plan(small_reference, small, tmp_path, Options(device="cuda"), executor, [])
    assert (work.group, work.facts["cpu"], work.facts["asked"]) == (4, "a node's processor", "cuda")
    monkeypatch.setattr(building, "rounding_in_worker", lambda work: (work.device, work.group))
    found = SimpleNamespace(built_on=[SimpleNamespace(replicas_per_group=4)], builders=np.zeros((1, 1), dtype=int))
    with InlineExecutor() as executor:
        assert building._rounding(small_reference, found, Options(device="cuda"), tmp_path, executor) == ("cuda", 4)


def test_a_worker_that_runs_out_of_memory_is_one_error_that_says_what_to_do(
    small_reference, cache, tmp_path, monkeypatch
):
    def fail(*_):
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(retraining, "retrain", fail)
    with ThreadPoolExecutor(1) as executor, pytest.raises(UsageError, match=r"ran out of memory\. Finished slices are"):
        build(small_reference, tmp_path / "truth", executor=executor)


class DyingExecutor(InlineExecutor):
    """One that computes one slice and then loses its worker."""

    def submit(self, function, /, *args, **kwargs) -> Future:
        if not self.slices:
            done = super().submit(function, *args, **kwargs)
            done.result()
            return done
        lost: Future = Future()
        lost.set_exception(BrokenProcessPool("A process in the process pool was terminated abruptly"))
        return lost


@pytest.mark.parametrize(
    ("workers", "advice"),
    [
        (4, "give the same command with --workers 2."),
        (1, "give the same command on a machine with more memory."),
        (None, "give the same command on fewer workers, or on a machine with more memory."),
    ],
)
def test_a_worker_that_is_killed_is_one_error_that_says_what_to_do(
    small_reference, small, cache, tmp_path, monkeypatch, workers, advice
):
    given = DyingExecutor() if workers is None else None
    monkeypatch.setattr(filling, "local_pool", lambda workers: DyingExecutor())
    with pytest.raises(UsageError, match=rf"worker process was killed, .* memory .* kept: {re.escape(advice)}"):
        build(small_reference, tmp_path / "truth", Options(workers=workers), executor=given)
    if given is not None:
        given.shutdown()
    assert read_slices(small, [work_folder(small)]).n_done == 8
    assert not (tmp_path / "truth").exists()


def test_training_that_diverges_is_named_and_not_taken_for_missing(small_reference, cache, tmp_path, monkeypatch):
    monkeypatch.setattr(retraining, "target_outputs", lambda *_: torch.full((8, 40), torch.inf))
    with ThreadPoolExecutor(1) as executor, pytest.raises(UsageError, match=r"training of small diverged.*seed 0"):
        build(small_reference, tmp_path / "truth", executor=executor)


def test_what_exists_is_not_overwritten_unless_asked_for(small_reference, small_truth_folder, cache):
    with pytest.raises(UsageError, match=r"exists already\. Pass --replace"):
        build(small_reference, small_truth_folder)


@pytest.mark.parametrize("command", [build, merge])
@pytest.mark.parametrize("replace_it", [False, True])
def test_ground_truth_of_another_task_is_never_replaced(
    small_reference, small, small_truth_folder, cache, tmp_path, monkeypatch, command, replace_it
):
    theirs = tmp_path / "theirs"
    shutil.copytree(small_truth_folder, theirs)
    other = replace(small, name="other", folder=tmp_path)
    monkeypatch.setattr(building, "find_task", lambda _: other)
    folders = [[tmp_path / "slices"]] if command is merge else []
    said = r"theirs holds the ground truth of small\. Give other a folder of its own \(folder=\.\.\.\), or pass --out"
    with pytest.raises(UsageError, match=said):
        command(small_reference, *folders, out=theirs, replace=replace_it)
    theirs.rename(ground_truth_folder(other))
    with pytest.raises(MissingGroundTruthError, match=r"belongs to small .*; --replace would delete what small has\.$"):
        read_ground_truth(other)
    read_ground_truth(small, ground_truth_folder(other))


@pytest.mark.parametrize("command", [build, merge])
def test_replace_deletes_nothing_but_ground_truth(small_reference, small, small_truth_folder, cache, tmp_path, command):
    mine = tmp_path / "mine"
    shutil.copytree(small_truth_folder, mine)
    (mine / "thesis.tex").write_text("precious")
    folders = [[tmp_path / "slices"]] if command is merge else []
    with pytest.raises(UsageError, match=r"it holds thesis\.tex\. Nothing was replaced; pass --out DIR"):
        command(small_reference, *folders, out=mine, replace=True)
    assert (mine / "thesis.tex").read_text() == "precious"
    read_ground_truth(small, mine)
    assert not (cache / "ground_truth").exists(), "nothing was begun"


def test_a_share_into_a_folder_of_its_own_does_not_mind_that_there_is_ground_truth(
    small_reference, small, small_truth_folder, cache, grouped, tmp_path
):
    before = {p: p.stat().st_mtime_ns for p in small_truth_folder.iterdir()}
    options = Options(slices=tmp_path / "slices", shard=(0, 2))
    with ThreadPoolExecutor(1) as executor:
        assert build(small_reference, options=options, executor=executor) is None
    assert read_slices(small, [tmp_path / "slices"]).n_done == 16
    assert {p: p.stat().st_mtime_ns for p in small_truth_folder.iterdir()} == before


def test_a_share_of_what_there_is_already_is_asked_where_to_go(small_reference, small, small_truth_folder, cache):
    with pytest.raises(UsageError, match=r"exists already\. Pass --slices DIR to build a share"):
        build(small_reference, options=Options(shard=(0, 2)))
    assert not work_folder(small).exists()


def test_slices_of_one_s_own_are_no_leave_to_replace(small_reference, small_truth_folder, cache, tmp_path):
    with pytest.raises(UsageError, match=r"exists already\. Pass --replace"):
        build(small_reference, options=Options(slices=tmp_path / "slices"))


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


# --- in shares, and in several sittings


@pytest.fixture
def grouped(monkeypatch):
    """Spare a build the measuring of groups."""
    monkeypatch.setattr(filling, "choose_group", lambda *_: Grouping(4, {1: 0.2, 4: 0.1}))


def arrays_of(folder: Path) -> bytes:
    return (folder / ARRAYS_FILE).read_bytes()


@pytest.fixture
def undisturbed(small_reference, cache, grouped, tmp_path) -> bytes:
    """Return the arrays of a build that nothing disturbs, in groups of 4."""
    with ThreadPoolExecutor(1) as executor:
        build(small_reference, tmp_path / "undisturbed", executor=executor)
    return arrays_of(tmp_path / "undisturbed")


def build_shares(reference: str, tmp_path: Path, n: int) -> list[Path]:
    folders = [tmp_path / f"share-{i}" for i in range(n)]
    with ThreadPoolExecutor(1) as executor:
        for i, folder in enumerate(folders):
            done = build(reference, tmp_path / "truth", Options(slices=folder, shard=(i, n)), executor=executor)
            assert done is None, "a share is no ground truth"
    assert not (tmp_path / "truth").exists()
    return folders


def test_shares_that_are_merged_are_what_one_build_makes_to_the_byte(small_reference, small, undisturbed, tmp_path):
    folders = build_shares(small_reference, tmp_path, 3)
    found = [read_slices(small, [folder]) for folder in folders]
    assert [f.n_done for f in found] == [12, 12, 8]
    for i, f in enumerate(found):
        assert set(np.flatnonzero(~f.missing.any(axis=1)).tolist()) == set(range(i, 8, 3))
    manifest = merge(small_reference, folders, tmp_path / "truth")
    assert arrays_of(tmp_path / "truth") == undisturbed
    assert [b.n_replicas for b in manifest.built_on] == [32]
    backwards = merge(small_reference, folders[::-1], tmp_path / "backwards")
    assert arrays_of(tmp_path / "backwards") == undisturbed
    assert backwards.outputs_sha256 == manifest.outputs_sha256


def test_merging_without_one_share_names_what_is_missing(small_reference, undisturbed, tmp_path):
    folders = build_shares(small_reference, tmp_path, 3)
    with pytest.raises(UsageError, match=r"12 of 32 replicas of small are missing .* first subset 1 under seed 0"):
        merge(small_reference, [folders[0], folders[2]], tmp_path / "truth")
    assert not (tmp_path / "truth").exists()
    assert all(any(folder.glob("seed-*")) for folder in folders)


def test_merging_does_not_overwrite_unless_asked_for(small_reference, undisturbed, tmp_path):
    folders = build_shares(small_reference, tmp_path, 1)
    out = old_truth(tmp_path / "truth")
    with pytest.raises(UsageError, match=r"exists already\. Pass --replace"):
        merge(small_reference, folders, out)
    assert (out / MANIFEST_FILE).read_text() == "old"
    merge(small_reference, folders, out, replace=True)
    assert arrays_of(out) == undisturbed


def test_a_share_is_completed_by_a_build_of_the_rest_in_the_same_folder(small_reference, undisturbed, tmp_path):
    (folder,) = build_shares(small_reference, tmp_path, 3)[1:2]
    with InlineExecutor() as executor:
        build(small_reference, tmp_path / "truth", Options(slices=folder), executor=executor)
    assert {m for s in executor.slices for m in s.subsets} == {0, 2, 3, 5, 6}
    assert arrays_of(tmp_path / "truth") == undisturbed
    assert any(folder.glob("seed-*")), "a folder that was named is kept"


def test_when_the_time_is_up_a_build_stops_and_the_next_call_repeats_nothing(
    small_reference, small, undisturbed, tmp_path
):
    out, kept, calls = tmp_path / "truth", 0, 0
    while not out.exists():
        seen, calls = [], calls + 1
        with UnhurriedExecutor() as executor:
            manifest = build(small_reference, out, Options(minutes=1e-9), executor=executor, on_progress=seen.append)
        assert (seen[0].done, seen[0].fresh) == (kept, 0)
        assert kept < seen[-1].done == kept + seen[-1].fresh
        kept = seen[-1].done
        assert (manifest is None) == (kept < 32) == (not out.exists())
        assert kept == 32 or read_slices(small, [work_folder(small)]).n_done == kept
    assert calls >= 2
    assert kept == 32
    assert [b.n_replicas for b in manifest.built_on] == [32]
    assert arrays_of(out) == undisturbed


def test_when_the_time_is_up_worker_processes_finish_the_slices_at_work(small_reference, small, undisturbed, tmp_path):
    folder = tmp_path / "slices"
    assert build(small_reference, tmp_path / "truth", Options(workers=1, slices=folder, minutes=1e-9)) is None
    assert 0 < read_slices(small, [folder]).n_done < 32
    assert build(small_reference, tmp_path / "truth", Options(workers=1, slices=folder)) is not None
    assert arrays_of(tmp_path / "truth") == undisturbed


def stop_early(reference: str, out: Path | None, **options: object) -> None:
    with UnhurriedExecutor() as executor:
        assert build(reference, out, Options(minutes=1e-9, **options), executor=executor) is None


def test_a_resumed_build_keeps_the_group_that_this_machine_began_with(
    small_reference, small, undisturbed, tmp_path, monkeypatch
):
    stop_early(small_reference, tmp_path / "truth")
    monkeypatch.setattr(filling, "choose_group", lambda *_: pytest.fail("measured again"))
    with InlineExecutor() as executor:
        manifest = build(small_reference, tmp_path / "truth", executor=executor)
    assert {len(s.subsets) for s in executor.slices} == {4}
    (builder,) = manifest.built_on
    assert (builder.replicas_per_group, builder.seconds_by_group) == (4, {"1": 0.2, "4": 0.1})


def test_another_machine_measures_for_itself_and_is_another_builder(
    small_reference, small, undisturbed, tmp_path, monkeypatch
):
    stop_early(small_reference, tmp_path / "truth")
    begun = ~read_slices(small, [work_folder(small)]).missing
    monkeypatch.setattr(provenance, "cpu_name", lambda: "another processor")
    monkeypatch.setattr(filling, "choose_group", lambda *_: Grouping(2, {2: 0.1, 4: 0.3}))
    with InlineExecutor() as executor:
        manifest = build(small_reference, tmp_path / "truth", executor=executor)
    assert {len(s.subsets) for s in executor.slices} == {2}
    assert [(b.replicas_per_group, b.n_replicas) for b in manifest.built_on] == [
        (4, begun.sum()),
        (2, 32 - begun.sum()),
    ]
    np.testing.assert_array_equal(read_ground_truth(small, tmp_path / "truth").builders, np.where(begun, 0, 1))


def test_progress_tells_the_reliability_once_two_seeds_are_there(small_reference, small, undisturbed, tmp_path):
    seen: list[Progress] = []
    with ThreadPoolExecutor(1) as executor:
        build(small_reference, tmp_path / "truth", executor=executor, on_progress=seen.append)
    assert [p.done for p in seen] == list(range(0, 33, 4))
    assert [p.reliability is None for p in seen] == [p.done < 12 for p in seen]
    outputs = read_ground_truth(small, tmp_path / "truth").outputs
    assert seen[4].reliability == noise_ceiling(outputs[:, :2]).reliability
    assert seen[-1].reliability == noise_ceiling(outputs).reliability


def test_the_reliability_of_a_share_is_that_of_its_subsets(small_reference, small, undisturbed, tmp_path):
    seen: list[Progress] = []
    options = Options(slices=tmp_path / "slices", shard=(1, 2))
    with ThreadPoolExecutor(1) as executor:
        build(small_reference, tmp_path / "truth", options, executor=executor, on_progress=seen.append)
        assert [(p.done, p.total) for p in (seen[0], seen[-1])] == [(0, 16), (16, 16)]
        outputs = read_slices(small, [tmp_path / "slices"]).outputs[1::2]
        assert seen[-1].reliability == noise_ceiling(outputs).reliability
        build(small_reference, tmp_path / "truth", options, executor=executor, on_progress=seen.append)
    assert (seen[-1].done, seen[-1].fresh, seen[-1].total) == (16, 0, 16)
    assert seen[-1].reliability == noise_ceiling(outputs).reliability, "also of what was done before"


def test_slices_that_are_shipped_beside_the_task_are_used_and_go_when_they_are_complete(
    small_reference, small, undisturbed, tmp_path, monkeypatch
):
    own = replace(small, folder=tmp_path / "task")
    monkeypatch.setattr(building, "find_task", lambda _: own)
    assert work_folder(own) != own.folder / "slices"
    stop_early(small_reference, tmp_path / "elsewhere", slices=tmp_path / "begun")
    shutil.copytree(tmp_path / "begun", own.folder / "slices")
    assert work_folder(own) == own.folder / "slices"
    shipped = read_slices(own, [own.folder / "slices"]).n_done
    with InlineExecutor() as executor:
        build(small_reference, executor=executor)
    assert sum(len(s.subsets) for s in executor.slices) == 32 - shipped < 32
    assert arrays_of(own.folder / "ground_truth") == undisturbed
    assert [p.name for p in own.folder.iterdir()] == ["ground_truth"]


def test_slices_that_are_shipped_stay_when_the_ground_truth_goes_elsewhere(
    small_reference, small, undisturbed, tmp_path, monkeypatch
):
    own = replace(small, folder=tmp_path / "task")
    slices = own.folder / "slices"
    slices.mkdir(parents=True)
    (slices / ".gitkeep").touch()
    monkeypatch.setattr(building, "find_task", lambda _: own)
    with InlineExecutor() as executor:
        build(small_reference, tmp_path / "elsewhere", executor=executor)
        assert arrays_of(tmp_path / "elsewhere") == undisturbed
        assert read_slices(own, [slices]).n_done == 32
        # Complete at home, they go; what a build did not write stays.
        executor.slices.clear()
        build(small_reference, executor=executor)
    assert executor.slices == []
    assert [p.name for p in slices.iterdir()] == [".gitkeep"]


@pytest.mark.parametrize("names", [[], ["notes.txt"], [".gitkeep", "cut.wav"], ["seed-corpus.safetensors"]], ids=str)
def test_a_folder_of_the_user_s_that_is_called_slices_is_left_as_it_is(
    small_reference, small, undisturbed, tmp_path, monkeypatch, names
):
    own = replace(small, folder=tmp_path / "task")
    mine = own.folder / "slices"
    mine.mkdir(parents=True)
    for name in names:
        (mine / name).write_text("precious")
    monkeypatch.setattr(building, "find_task", lambda _: own)
    stop_early(small_reference, None)
    assert work_folder(own) != mine
    assert read_slices(own, [work_folder(own)]).n_done > 0
    with ThreadPoolExecutor(1) as executor:
        build(small_reference, executor=executor)
    assert arrays_of(own.folder / "ground_truth") == undisturbed
    assert {p.name: p.read_text() for p in mine.iterdir()} == dict.fromkeys(names, "precious")
    assert not work_folder(own).exists()


def test_what_else_is_in_the_folder_of_slices_by_then_is_kept(
    small_reference, small, undisturbed, tmp_path, monkeypatch
):
    own = replace(small, folder=tmp_path / "task")
    monkeypatch.setattr(building, "find_task", lambda _: own)
    stop_early(small_reference, None, slices=own.folder / "slices")
    note = own.folder / "slices" / "note.txt"
    with ThreadPoolExecutor(1) as executor:
        build(small_reference, executor=executor, on_progress=lambda _: note.write_text("precious"))
    assert [p.name for p in note.parent.iterdir()] == ["note.txt"]


def test_wrong_labels_that_the_task_knows_are_written_by_build_and_merge(
    small_reference, small, undisturbed, tmp_path, monkeypatch
):
    wrong = torch.arange(small.n_train) % 7 == 0
    noisy = replace(small, mislabelled=lambda _: wrong)
    monkeypatch.setattr(building, "find_task", lambda _: noisy)
    with ThreadPoolExecutor(1) as executor:
        build(small_reference, tmp_path / "built", Options(slices=tmp_path / "slices"), executor=executor)
    merge(small_reference, [tmp_path / "slices"], tmp_path / "merged")
    for name in ("built", "merged"):
        np.testing.assert_array_equal(read_ground_truth(noisy, tmp_path / name).mislabelled, wrong.numpy())


@pytest.mark.parametrize("wrong", [torch.zeros(120, dtype=torch.bool), torch.arange(119) < 5, torch.arange(120)])
def test_wrong_labels_that_tell_nothing_are_refused_before_anything_is_trained(
    small_reference, small, cache, tmp_path, monkeypatch, wrong
):
    monkeypatch.setattr(building, "find_task", lambda _: replace(small, mislabelled=lambda _: wrong))
    with InlineExecutor() as executor:
        with pytest.raises(GroundTruthError, match=r"mislabelled examples of small: expected \[120\] bool, some"):
            build(small_reference, tmp_path / "truth", executor=executor)
        assert executor.slices == []


def test_wrong_labels_that_are_no_tensor_are_refused_before_anything_is_trained(
    small_reference, small, cache, tmp_path, monkeypatch
):
    for given, message in (
        (lambda _: [True] * 120, r"mislabelled of small returns a list, expected a tensor \[n_train\] of bool"),
        (lambda _: {}["wrong"], "mislabelled of small fails: KeyError: 'wrong'"),
    ):
        monkeypatch.setattr(building, "find_task", lambda _, given=given: replace(small, mislabelled=given))
        with InlineExecutor() as executor:
            with pytest.raises(DataError, match=message):
                build(small_reference, tmp_path / "truth", executor=executor)
            assert executor.slices == []


def test_subsets_that_are_all_the_same_are_refused_before_anything_is_trained(
    small_reference, small, cache, tmp_path, monkeypatch
):
    same = replace(small, plan=replace(small.plan, fraction=0.999))
    monkeypatch.setattr(building, "find_task", lambda _: same)
    monkeypatch.setattr(building, "fill", lambda *_: pytest.fail("began"))
    with pytest.raises(UsageError, match="A subset of small keeps 120 of 120 training examples"):
        build(small_reference, tmp_path / "truth")


def test_a_place_that_cannot_be_written_is_refused_before_anything_is_trained(small_reference, cache, tmp_path):
    (tmp_path / "file").write_text("")
    with InlineExecutor() as executor:
        with pytest.raises(
            StorageError, match=r"Cannot write to .*file: a part of the path is a file.* Pass --out DIR"
        ):
            build(small_reference, tmp_path / "file" / "truth", executor=executor)
        assert executor.slices == []


def test_shares_are_merged_nowhere_that_cannot_be_written(small_reference, small, undisturbed, tmp_path):
    (folder,) = build_shares(small_reference, tmp_path, 1)
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"Cannot write to .*file: a part of the path is a file.* Pass --out DIR"):
        merge(small_reference, [folder], tmp_path / "file" / "truth")


def test_what_a_link_leads_to_is_replaced_each_time(small_reference, small, undisturbed, tmp_path):
    (folder,) = build_shares(small_reference, tmp_path, 1)
    real, link = tmp_path / "real" / "truth", tmp_path / "link"
    real.parent.mkdir()
    old_truth(real)
    link.symlink_to(real)
    for _ in range(2):
        merge(small_reference, [folder], link, replace=True)
        assert link.is_symlink()
        assert arrays_of(real) == undisturbed
    assert sorted(path.name for path in real.parent.iterdir()) == ["truth"]


def test_the_current_folder_is_replaced(small_reference, small, undisturbed, tmp_path, monkeypatch):
    (folder,) = build_shares(small_reference, tmp_path, 1)
    monkeypatch.chdir(old_truth(tmp_path / "here"))
    merge(small_reference, [folder], Path(), replace=True)
    assert arrays_of(tmp_path / "here") == undisturbed


def test_an_old_one_that_a_kill_left_aside_stays_until_the_new_one_stands(
    small_reference, small, undisturbed, tmp_path, monkeypatch
):
    """A kill between the two renames of a swap."""
    (folder,) = build_shares(small_reference, tmp_path, 1)
    aside = old_truth(tmp_path / ".truth.old")
    monkeypatch.setattr("tdabench.ground_truth.write_json", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        merge(small_reference, [folder], tmp_path / "truth")
    assert (aside / MANIFEST_FILE).read_text() == "old"
    monkeypatch.setattr("tdabench.ground_truth.write_json", write_json)
    merge(small_reference, [folder], tmp_path / "truth")
    assert not aside.exists()
    assert arrays_of(tmp_path / "truth") == undisturbed


def test_a_pool_of_processes_is_never_handed_more_than_it_works_at(small_reference, undisturbed, tmp_path, monkeypatch):
    """What it was handed it computes, whatever the time is."""
    at_work, most = [], []

    class Pool(UnhurriedExecutor):
        def submit(self, function, /, *args, **kwargs) -> Future:
            future = super().submit(function, *args, **kwargs)
            at_work.append(future)
            most.append(sum(not f.done() for f in at_work))
            return future

    monkeypatch.setattr(filling, "local_pool", lambda workers: Pool())
    build(small_reference, tmp_path / "truth", Options(workers=2))
    assert (max(most), len(at_work)) == (2, 8)
    at_work.clear()
    assert build(small_reference, tmp_path / "other", Options(workers=2, minutes=1e-9)) is None
    assert 1 <= sum(not f.cancelled() for f in at_work) <= len(at_work) == 2


def test_a_build_that_was_killed_before_its_first_slice_keeps_the_group(
    small_reference, small, undisturbed, tmp_path, monkeypatch
):
    """Snapshots are of groups: of another size they would be of no use."""
    monkeypatch.setattr(filling, "compute_slice", lambda *_: pytest.fail("killed"))
    with InlineExecutor() as executor, pytest.raises(pytest.fail.Exception):
        build(small_reference, tmp_path / "truth", executor=executor)
    monkeypatch.undo()
    monkeypatch.setenv("TDABENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(filling, "choose_group", lambda *_: pytest.fail("measured again"))
    with InlineExecutor() as executor:
        build(small_reference, tmp_path / "truth", executor=executor)
    assert {len(s.subsets) for s in executor.slices} == {4}
    assert arrays_of(tmp_path / "truth") == undisturbed
    assert not work_folder(small).exists()


@pytest.mark.parametrize("damage", ["", "[]", '{"builder": {}}', "other"])
def test_a_size_that_cannot_be_read_or_is_of_another_builder_is_not_used(tmp_path, damage):
    remember_group(tmp_path, {"cpu": "a"}, 4, {"4": 0.1})
    assert remembered_group(tmp_path, {"cpu": "a"}) == (4, {"4": 0.1})
    if damage != "other":
        (tmp_path / "group.json").write_text(damage)
    assert remembered_group(tmp_path, {"cpu": "b" if damage == "other" else "a"}) is None


def test_on_an_accelerator_the_group_is_measured_in_a_process_of_its_own(small_reference, small, monkeypatch):
    monkeypatch.setattr(filling, "choose_group", lambda *_: pytest.fail("measured here"))
    asked = []

    def there(reference, data_folder, device):
        asked.append(device)
        return choose_group_in_worker(reference, data_folder, "cpu")

    monkeypatch.setattr(filling, "choose_group_in_worker", there)
    monkeypatch.setattr(filling, "local_pool", ThreadPoolExecutor)
    found = filling._grouping(small_reference, small, Options(device="cuda"), None)
    assert (asked, set(found.seconds)) == (["cuda"], {1, 8})
    monkeypatch.setattr(filling, "choose_group_in_worker", _die)
    monkeypatch.setattr(filling, "local_pool", real_pool)
    with pytest.raises(UsageError, match="A worker process was killed"):
        filling._grouping(small_reference, small, Options(device="cuda"), None)


def _die(*_: object) -> None:
    os._exit(1)
