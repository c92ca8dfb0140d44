"""Peak memory comes from the kernel's own mark."""

from __future__ import annotations

import mmap

import numpy as np
import pytest

from tdabench import memory
from tdabench.memory import PeakMemory, peak_bytes, release_unused, reset_peak, resident_bytes

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
