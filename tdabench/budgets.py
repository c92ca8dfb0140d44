"""How much memory work that is done in blocks may take: sized for 2 GB on a CPU, and with what a GPU has on a GPU."""

from __future__ import annotations

import math
import os
from functools import cache
from typing import TYPE_CHECKING

from tdabench.errors import UsageError

if TYPE_CHECKING:
    import torch

BUDGET_BYTES = 2_000_000_000
"""What a run on a CPU should stay below by default; the budgets of single blocks are sized so that it does."""

BUDGET_VARIABLE = "TDABENCH_MEMORY_GB"

# Of a GPU's memory, how much stands for the 2 GB: the model, what a method holds and the allocator need the rest.
_SHARE = 0.5
# Python, torch and a task's data take up to half a gigabyte; what is left for blocks should not be next to nothing.
_LEAST_GB, _MOST_GB = 1.0, 1e5


def budget_bytes() -> int:
    """Return what a run on a CPU should stay below: 2 GB, or the gigabytes that ``TDABENCH_MEMORY_GB`` gives.

    Raises
    ------
    UsageError
        If the variable is no number, or too small or too large a one.
    """
    said = os.environ.get(BUDGET_VARIABLE, "").strip()
    if not said:
        return BUDGET_BYTES
    try:
        gigabytes = float(said)
    except ValueError:
        gigabytes = math.nan
    if not _LEAST_GB <= gigabytes <= _MOST_GB:
        raise UsageError(
            f"{BUDGET_VARIABLE} is {said!r}. Give the gigabytes that a run may take, from {_LEAST_GB:g} to "
            f"{_MOST_GB:g}, as in {BUDGET_VARIABLE}=8."
        )
    return int(gigabytes * 1e9)


def block_bytes(on_cpu: int, device: torch.device) -> int:
    """Return what a block may take that may take ``on_cpu`` bytes of 2 GB on a CPU.

    What a method works on in blocks of its own is sized by it, so that a run follows the memory that the user gives.
    On a GPU blocks of that size would keep little of it at work, so there it is a share of the device's memory.

    Parameters
    ----------
    on_cpu
        Bytes of a block on a CPU, of a run that takes 2 GB.
    device
        Where the block will be.

    Raises
    ------
    UsageError
        If ``TDABENCH_MEMORY_GB`` is no number, or too small or too large a one.
    """
    if device.type != "cuda":
        return int(on_cpu * budget_bytes() / BUDGET_BYTES)
    return max(on_cpu, int(on_cpu * _SHARE * _total_bytes(device) / BUDGET_BYTES))


@cache
def _total_bytes(device: torch.device) -> int:
    import torch

    return int(torch.cuda.get_device_properties(device).total_memory)
