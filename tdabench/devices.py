"""Devices: whether one is there, and the end of the work that it was given."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tdabench.errors import UsageError

if TYPE_CHECKING:
    import torch

MOST_THREADS = 1024
"""Of a process; torch crashes at more than it can count."""


def check_device(device: str) -> None:
    """Refuse a device that is not there.

    Raises
    ------
    UsageError
        If it is neither the CPU nor CUDA's, or CUDA's, and torch can use none.
    """
    if not isinstance(device, str) or device.partition(":")[0] not in ("cpu", "cuda"):
        raise UsageError(f"The device is 'cpu' or 'cuda'; got {device!r}.")
    if device.startswith("cuda"):
        import torch

        if not torch.cuda.is_available():
            raise UsageError("There is no CUDA device that torch can use. Leave out --device cuda.")


def synchronize(device: torch.device) -> None:
    """Wait until a device has done what it was given; only then does a clock tell how long it took."""
    if device.type == "cuda":
        import torch

        torch.cuda.synchronize(device)
