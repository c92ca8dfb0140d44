"""How much memory work that is done in blocks may take: sized for 2 GB on a CPU, and with what a GPU has on a GPU."""

from __future__ import annotations

from functools import cache

import torch

BUDGET_BYTES = 2_000_000_000
"""What a run on a CPU should stay below; the budgets of single blocks are sized so that it does."""

# Of a GPU's memory, how much stands for the 2 GB: the model, what a method holds and the allocator need the rest.
_SHARE = 0.5


def block_bytes(on_cpu: int, device: torch.device) -> int:
    """Return what a block may take that may take ``on_cpu`` bytes on a CPU; blocks of that size keep no GPU at work."""
    if device.type != "cuda":
        return on_cpu
    return max(on_cpu, int(on_cpu * _SHARE * _total_bytes(device) / BUDGET_BYTES))


@cache
def _total_bytes(device: torch.device) -> int:
    return int(torch.cuda.get_device_properties(device).total_memory)
