"""Timing: seconds and memory of a call, and how fast the machine is at what all methods do."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache

import torch

from tdabench.devices import synchronize
from tdabench.memory import peak_bytes, release_unused, reset_peak, resident_bytes

SHORT_S = 0.25
"""What a measurement may take, roughly."""
_REPEATS = 5
# Calls that a device is given at once, or it would be their launching that is timed.
_QUEUED = 64


@cache
def machine_speed(threads: int, device: str) -> tuple[float, float]:
    """Return the seconds of a multiply-add in a matrix product, and of a number written to memory."""
    where = torch.device(device)
    # A GPU is not filled by what fills a CPU's thread, and keeps it in its cache.
    side, rows = (768, 128) if where.type == "cpu" else (4096, 2048)
    square = torch.ones(side, side, device=device)
    left, right = torch.ones(rows, 64, 1, device=device), torch.ones(rows, 1, 512, device=device)
    product_s = _seconds_of_one(lambda: square @ square, where)
    moving_s = _seconds_of_one(lambda: left * right, where)
    return product_s / side**3, moving_s / (rows * 64 * 512)


def _seconds_of_one(run: Callable[[], object], device: torch.device) -> float:
    times = 1 if device.type == "cpu" else _QUEUED

    def queue() -> None:
        for _ in range(times):
            run()

    return seconds_of(queue, device) / times


def peak_of(run: Callable[[], object], device: torch.device) -> int:
    """Return the memory that a call takes at its peak: on a CUDA device, or resident; 0 where it cannot be measured."""
    if device.type == "cuda":
        return _allocated_peak_of(run, device)
    release_unused()
    if not reset_peak():
        return 0
    before = resident_bytes()
    run()
    return max(0, peak_bytes() - before)


def _allocated_peak_of(run: Callable[[], object], device: torch.device) -> int:
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    run()
    return max(0, torch.cuda.max_memory_allocated(device) - before)


def seconds_of(run: Callable[[], object], device: torch.device) -> float:
    """Return the seconds of a call; of the fastest of a few where they are short, because others disturb them."""
    best, left = float("inf"), SHORT_S
    for _ in range(_REPEATS):
        synchronize(device)
        start = time.perf_counter()
        run()
        synchronize(device)
        seconds = time.perf_counter() - start
        best, left = min(best, seconds), left - seconds
        if left < seconds:
            break
    return best
