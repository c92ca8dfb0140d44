"""Peak memory comes from the kernel's own mark."""

from __future__ import annotations

import mmap
import subprocess
import sys

import numpy as np
import pytest
import torch

from tdabench import memory
from tdabench.memory import PeakMemory, peak_bytes, ran_out, release_unused, reset_peak, resident_bytes
from tdabench.timing import peak_of
from tdabench.worker import _highest

MB = 2**20


def touch(size: int) -> np.ndarray:
    """Return memory with a mapping of its own, which goes back to the kernel when freed; a heap may keep it."""
    array = np.frombuffer(mmap.mmap(-1, size), dtype=np.uint8)
    array[:] = 1
    return array


def test_peak_remembers_what_was_freed_and_can_start_anew():
    release_unused()
    if not reset_peak():
        pytest.skip("the kernel does not let this process reset its high-water mark")
    before = resident_bytes()
    touch(64 * MB)
    assert peak_bytes() - before == pytest.approx(64 * MB, rel=0.1)
    assert reset_peak()
    assert peak_bytes() - before < 16 * MB


def test_each_phase_has_its_own_peak():
    reset_peak() or pytest.skip("the kernel does not let this process reset its high-water mark")
    peaks = PeakMemory()
    touch(96 * MB)
    peaks.note("train")
    touch(32 * MB)
    peaks.note("fit")
    touch(8 * MB)
    peaks.note("fit")
    assert peaks.peaks["train"] == pytest.approx(96 * MB, rel=0.1)
    assert peaks.peaks["fit"] == pytest.approx(32 * MB, rel=0.2)


def test_what_is_held_counts_in_later_phases():
    peaks = PeakMemory()
    held = touch(64 * MB)
    peaks.note("fit")
    peaks.note("attribute")
    assert peaks.peaks["attribute"] == pytest.approx(len(held), rel=0.15)


def test_where_the_mark_cannot_be_reset_no_phase_is_flattered(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "_CLEAR", tmp_path)  # a folder: writing fails
    assert not reset_peak()
    peaks = PeakMemory()
    touch(64 * MB)
    peaks.note("fit")
    peaks.note("attribute")
    assert peaks.peaks["attribute"] >= peaks.peaks["fit"] > 0


def test_no_phase_is_below_zero():
    peaks = PeakMemory()
    peaks.baseline *= 2
    peaks.note("fit")
    assert peaks.peaks == {"fit": 0}


def test_without_the_kernels_file_the_error_says_so(monkeypatch, tmp_path):
    status = tmp_path / "status"
    status.write_text("Name:\tpython\n")
    monkeypatch.setattr(memory, "_STATUS", status)
    with pytest.raises(RuntimeError, match="measured on Linux only"):
        resident_bytes()


class Device:
    """Counts as a CUDA device does: what is reserved stays so until the cache is emptied."""

    def __init__(self, monkeypatch):
        self.now = self.most = self.cached = self.most_cached = 0
        counters = {
            "memory_allocated": lambda _: self.now,
            "max_memory_allocated": lambda _: self.most,
            "max_memory_reserved": lambda _: self.most_cached,
            "reset_peak_memory_stats": lambda _: self.reset(),
            "empty_cache": self.empty,
        }
        for name, counter in counters.items():
            monkeypatch.setattr(torch.cuda, name, counter)

    def use(self, size: int, keep: int = 0) -> None:
        """Allocate, and free all but a part."""
        self.most = max(self.most, self.now + size)
        self.cached = max(self.cached, self.now + size)
        self.most_cached = max(self.most_cached, self.cached)
        self.now += keep

    def reset(self) -> None:
        self.most, self.most_cached = self.now, self.cached

    def empty(self) -> None:
        self.cached = self.now


def test_each_phase_has_its_own_peak_on_a_device(monkeypatch):
    device = Device(monkeypatch)
    device.use(5_000)  # warm-up
    device.now = 40  # the data
    peaks = PeakMemory("cuda")
    for phase, size, keep in [("fit", 60, 10), ("train", 900, 0), ("fit", 70, 0), ("attribute", 30, 0)]:
        device.use(size, keep)
        peaks.note(phase)
    assert peaks.allocated == {"fit": 120, "train": 950, "attribute": 80}
    assert peaks.reserved == {"fit": 120, "train": 950, "attribute": 120}


def test_without_a_device_none_is_asked(monkeypatch):
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda *_: 1 / 0)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: 1 / 0)
    peaks = PeakMemory()
    peaks.note("train")
    assert (peaks.allocated, peaks.reserved) == ({}, {})


def test_a_run_s_peak_is_that_of_fit_and_attribute():
    assert _highest({"train": 9, "harness": 8, "fit": 5, "attribute": 3}) == 5
    assert _highest({"train": 9, "fit": 5, "attribute": 6}) == 6
    assert _highest({}) == 0


def test_the_peak_of_a_call_is_that_of_the_device_it_runs_on(monkeypatch):
    device = Device(monkeypatch)
    device.use(5_000)
    device.now = 40
    assert peak_of(lambda: device.use(70, 20), torch.device("cuda")) == 70
    assert peak_of(lambda: None, torch.device("cuda")) == 0


def test_the_peak_of_a_call_on_the_processor_is_resident_memory():
    if not reset_peak():
        pytest.skip("the kernel does not let this process reset its high-water mark")
    assert peak_of(lambda: touch(32 * MB), torch.device("cpu")) == pytest.approx(32 * MB, rel=0.2)


BATCHES = """
import resource

import torch

from tdabench.memory import keep_freed, release_unused, resident_bytes


def batch():
    blocks = [torch.ones(4 << 20) for _ in range(14)]  # 16 MB each; left alone, the allocator mostly gives them back


kept = keep_freed()
for _ in range(5):  # until small blocks no longer come to lie between large ones
    batch()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
batch()
fetched = (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) * resource.getpagesize()
held = resident_bytes()
release_unused()
print(int(kept), fetched, held - resident_bytes())
"""


def test_freed_memory_is_kept_for_the_next_batch():
    """In a process of its own: what others left on a heap decides where blocks of this size come to lie."""
    done = subprocess.run([sys.executable, "-c", BATCHES], capture_output=True, text=True, check=True)
    kept, fetched, released = map(int, done.stdout.split())
    if not kept:
        pytest.skip("the allocator is not that of the GNU C library")
    assert fetched < 8 * MB, "of 224"
    assert released > 64 * MB


@pytest.mark.parametrize(
    ("error", "says_so"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp] can't allocate memory: you tried to allocate 8 bytes"), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("GET was unable to find an engine to execute this computation"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("a word out of memory"), False),
    ],
)
def test_torch_says_in_several_ways_that_memory_ran_out(error, says_so):
    assert ran_out(error) is says_so
