"""Builds that are killed at any moment end with the bytes of an undisturbed one."""

from __future__ import annotations

import multiprocessing
import random
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import killable_build
import pytest

from tdabench.building import total_replicas
from tdabench.ground_truth import ARRAYS_FILE, read_ground_truth
from tdabench.registry import find_task
from tdabench.slices import read_slices

# Importing torch takes seconds: processes that are forked from one that has it start at once.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["tdabench.building", "tdabench.tasks.digits_mlp"])
GIVE_UP_S = 60.0


@dataclass
class Build:
    """A build in a process of its own, its clock, and the folders that its successors share."""

    reference: str
    folder: Path
    number: int = 0

    @property
    def out(self) -> Path:
        return self.folder / "truth"

    @property
    def slices(self) -> Path:
        return self.folder / "slices"

    @property
    def log(self) -> Path:
        return self.folder / f"log-{self.number}"

    def start(self, program: bool) -> None:
        self.number += 1
        self.began = time.monotonic()
        words = (self.reference, self.out, self.slices, self.log)
        if program:
            command = [sys.executable, killable_build.__file__, *map(str, words)]
            self.process = subprocess.Popen(command, start_new_session=True)
            self.pid, self.wait, self.code = self.process.pid, self.process.wait, self.process.poll
        else:
            self.process = FORKS.Process(target=killable_build.run, args=words)
            self.process.start()
            self.pid, self.wait, self.code = self.process.pid, self.process.join, lambda: self.process.exitcode

    def lines(self) -> list[tuple[int, int]]:
        """Return (done, fresh) of each progress so far."""
        whole = self.log.read_text().rpartition("\n")[0] if self.log.exists() else ""
        return [(int(done), int(fresh)) for done, fresh in (line.split() for line in whole.splitlines())]

    def wait_until(self, happened: Callable[[list[tuple[int, int]]], bool]) -> float:
        """Return how many seconds after the start it happened, or the process ended."""
        while not happened(self.lines()) and self.code() is None:
            assert time.monotonic() < self.began + GIVE_UP_S
            time.sleep(0.005)
        return time.monotonic() - self.began

    def kill(self) -> bool:
        """Kill it, and return whether it was still at work."""
        self.process.kill()
        self.wait()
        return self.code() == -9


def processes_of(session: int) -> list[int]:
    """Return the processes of a session that have not ended."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, its_session = stat.read_text().rpartition(")")[2].split()[:4]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(its_session) == session and state != "Z":
            found.append(int(stat.parent.name))
    return found


def files(folder: Path) -> dict[str, tuple[int, int]]:
    """Return what tells a file that was written again from one that was not."""
    return {p.name: (p.stat().st_ino, p.stat().st_mtime_ns) for p in folder.glob("seed-*")}


def started(lines):
    return len(lines) >= 1


def slices_done(n: int):
    return lambda lines: len(lines) > n


def all_done(total: int):
    return lambda lines: bool(lines) and lines[-1][0] == total


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for workers in /proc")
def test_killed_twenty_times_a_build_ends_with_the_bytes_of_an_undisturbed_one(slow_reference, tmp_path):
    rng = random.Random(0)
    task = find_task(slow_reference)
    total = total_replicas(task)
    task.data()  # prepared once, so that the clock below does not count it

    undisturbed = Build(slow_reference, tmp_path / "undisturbed")
    undisturbed.folder.mkdir()
    undisturbed.start(program=False)
    begun = undisturbed.wait_until(started)
    first, second = undisturbed.wait_until(slices_done(1)), undisturbed.wait_until(slices_done(5))
    last = undisturbed.wait_until(all_done(total))
    undisturbed.wait()
    assert undisturbed.code() == 0
    writing_s = time.monotonic() - undisturbed.began - last
    measuring_s, slice_s = first - begun, (second - first) / 4
    expected = (undisturbed.out / ARRAYS_FILE).read_bytes()

    build = Build(slow_reference, tmp_path / "killed")
    build.folder.mkdir()
    kept: dict[str, tuple[int, int]] = {}
    n_kept, n_killed, kills_by_n_kept = 0, 0, []

    def kill(program: bool, happened, delay_s: float) -> float:
        """Start a build, kill it some time after something has happened, and look at what it left."""
        nonlocal kept, n_kept, n_killed
        build.start(program)
        seconds = build.wait_until(happened)
        time.sleep(rng.uniform(0, delay_s))
        if program and len(build.lines()) > 1:
            assert len(processes_of(build.pid)) > 1, "a worker is at it"
        n_killed += build.kill()
        assert build.code() in (0, -9)
        while program and processes_of(build.pid):
            assert time.monotonic() < build.began + GIVE_UP_S, "workers outlive a killed build"
            time.sleep(0.05)
        if build.lines():
            assert build.lines()[0] == (n_kept, 0), "a build begins with every slice that was finished"
        now = files(build.slices)
        assert kept.items() <= now.items(), "finished slices are never computed again"
        found = read_slices(task, [build.slices])
        assert found.n_done == sum(b.n_replicas for b in found.built_on) >= n_kept
        if build.out.exists():
            assert found.n_done == total
            assert (build.out / ARRAYS_FILE).read_bytes() == expected, "it is whole or not there"
        kept, n_kept = now, found.n_done
        kills_by_n_kept.append(n_kept)
        return seconds

    def anything(_):
        return True

    import_s = kill(True, started, measuring_s)
    for _ in range(3):
        kill(True, anything, import_s)
    for _ in range(3):
        kill(False, started, measuring_s)
    kill(True, started, measuring_s + import_s)  # while its worker is started
    kill(True, slices_done(1), slice_s)
    for _ in range(6):
        kill(False, slices_done(rng.randint(1, 3)), slice_s)
    print(f"import {import_s:.2f}, measuring {measuring_s:.2f}, slice {slice_s:.2f}, writing {writing_s:.2f} s")
    print(f"replicas there after each kill: {kills_by_n_kept}")
    assert 0 < n_kept < total, "killed in the middle"
    while n_killed < 20:
        kill(False, all_done(total), writing_s)

    build.start(program=False)
    build.wait()
    assert build.code() == 0
    assert build.lines() == [(total, 0)]
    assert (build.out / ARRAYS_FILE).read_bytes() == expected
    assert read_ground_truth(task, build.out).outputs.shape == (8, 30, 40)
    found = read_slices(task, [build.slices])
    assert (found.n_done, [b.n_replicas for b in found.built_on]) == (total, [total])
    rows = sum(int(name.split("-")[4].split(".")[0]) - int(name.split("-")[3]) + 1 for name in kept)
    assert rows == total, "no replica was computed twice"
