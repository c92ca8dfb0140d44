"""Peak resident memory of this process, per phase, from the kernel's own high-water mark.

``ru_maxrss`` of a child starts at its parent's size and a sampler misses short peaks; ``VmHWM`` does neither, and
writing 5 to ``clear_refs`` starts it anew (proc(5)).
"""

from __future__ import annotations

import ctypes
import gc
from pathlib import Path

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


def _status_bytes(field: str) -> int:
    for line in _STATUS.read_text(encoding="ascii").splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"{_STATUS} has no {field}; memory is measured on Linux only.")


def resident_bytes() -> int:
    """Return the resident memory now."""
    return _status_bytes("VmRSS")


def peak_bytes() -> int:
    """Return the highest resident memory since the start, or since :func:`reset_peak`."""
    return _status_bytes("VmHWM")


def reset_peak() -> bool:
    """Start the high-water mark anew at the present size; False where the kernel does not allow it."""
    try:
        _CLEAR.write_text("5", encoding="ascii")
    except OSError:
        return False
    return True


def release_unused() -> None:
    """Collect garbage and give freed memory back to the kernel, so that one phase's rest is not another's peak."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


class PeakMemory:
    """Highest resident memory of each phase, less the baseline.

    The baseline is taken once, after warm-up. Where the high-water mark cannot be reset, every phase reports the
    highest so far, which never flatters.
    """

    def __init__(self) -> None:
        release_unused()
        reset_peak()
        self.baseline = resident_bytes()
        self.peaks: dict[str, int] = {}

    def note(self, phase: str) -> None:
        """Charge the mark since the last call to ``phase`` and start it anew."""
        self.peaks[phase] = max(self.peaks.get(phase, 0), peak_bytes() - self.baseline, 0)
        if phase == "train":
            release_unused()
        reset_peak()
