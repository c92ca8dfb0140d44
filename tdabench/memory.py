"""Peak memory of this process, per phase: resident, from the kernel's own high-water mark, and on a CUDA device.

``ru_maxrss`` of a child starts at its parent's size and a sampler misses short peaks; ``VmHWM`` does neither, and
writing 5 to ``clear_refs`` starts it anew (proc(5)).
"""

from __future__ import annotations

import ctypes
import gc
from functools import cache
from pathlib import Path

import torch

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")

# From malloc.h of the GNU C library.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
# Larger blocks have a mapping of their own and go back when freed: those that hold results, not those of a batch.
_OWN_MAPPING_BYTES = 32 << 20
# A batch's blocks take up to 128 MB.
_KEPT_BYTES = 256 << 20
# Of the host, of CUDA's driver, of its libraries (CUBLAS_STATUS_ALLOC_FAILED and its kin), and of cuDNN's, where no way
# to compute a convolution finds the memory that it needs.
_OUT_OF_MEMORY = ("can't allocate memory", "out of memory", "_ALLOC_FAILED", "unable to find an engine")


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


def ran_out(error: BaseException) -> bool:
    """Return whether an error says that memory ran out: torch has several ways to say it, some in words alone."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _OUT_OF_MEMORY)


def release_unused(device: torch.device | None = None) -> None:
    """Collect garbage and give freed memory back to the kernel and to a CUDA device.

    So one phase's rest is not another's peak.
    """
    gc.collect()
    if device is not None and device.type == "cuda":
        torch.cuda.empty_cache()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


@cache
def keep_freed() -> bool:
    """Let this process keep up to 256 MB of freed memory for what is allocated next; False if its allocator cannot.

    Work in batches frees and allocates the same blocks of some MB again and again. By default the GNU allocator gives
    them back each time, and touching fresh pages then costs more than what is computed in them: a sixth of EK-FAC's fit
    to a small convolutional network. :func:`release_unused` gives back all the same.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, _OWN_MAPPING_BYTES)) and bool(mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES))


class PeakMemory:
    """Highest memory of each phase.

    The baseline of resident memory is taken once, after warm-up. Where the high-water mark cannot be reset, every phase
    reports the highest so far, which never flatters.

    Parameters
    ----------
    device
        Whose memory is measured beside that of the process, if it is a CUDA device.

    Attributes
    ----------
    peaks
        Resident bytes of each phase, less the baseline.
    allocated, reserved
        Bytes of each phase on the device; empty where it is no CUDA device.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self._device = torch.device(device)
        release_unused(self._device)
        self._reset()
        self.baseline = resident_bytes()
        self.peaks: dict[str, int] = {}
        self.allocated: dict[str, int] = {}
        self.reserved: dict[str, int] = {}

    def note(self, phase: str) -> None:
        """Charge the marks since the last call to ``phase`` and start them anew."""
        self.peaks[phase] = max(self.peaks.get(phase, 0), peak_bytes() - self.baseline, 0)
        if self._device.type == "cuda":
            self.allocated[phase] = max(self.allocated.get(phase, 0), torch.cuda.max_memory_allocated(self._device))
            self.reserved[phase] = max(self.reserved.get(phase, 0), torch.cuda.max_memory_reserved(self._device))
        if phase == "train":
            release_unused(self._device)
        self._reset()

    def _reset(self) -> None:
        reset_peak()
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
