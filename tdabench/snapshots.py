"""Snapshots of trainings under way, so that one that takes hours goes on after a kill where it was.

A snapshot holds what training changes and what its optimizer remembers, at the end of an epoch: what the next epochs
see is derived from names, so a training that goes on from there ends at the same values: to the bit on a CPU, which
adds in one order.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tdabench.errors import FileFormatError, StorageError
from tdabench.files import read_arrays, read_metadata, sha256_arrays, write_arrays

State = dict[str, Tensor]

_EVERY_S = 120.0
# So many times as long as a snapshot takes to write, training goes on before the next.
_LEAST_BETWEEN = 20


@dataclass
class Snapshots:
    """The last snapshot of one training, in a file.

    Attributes
    ----------
    path
        The file.
    of
        What the training is: everything that decides its values. A snapshot of another is not used.
    every_s
        Epochs that end sooner after the last snapshot are not kept; nor are those that end before the training has
        gone on for 20 times as long as the last one took to write.
    """

    path: Path
    of: str
    every_s: float = _EVERY_S
    _spent_s: float = field(default=0.0, init=False)
    _began: float = field(default_factory=time.perf_counter, init=False)
    _kept: float = field(default_factory=time.perf_counter, init=False)
    _took: float = field(default=0.0, init=False)

    @property
    def seconds(self) -> float:
        """How long the training has taken, before the last kill too."""
        return self._spent_s + time.perf_counter() - self._began

    def last(self) -> tuple[int, State] | None:
        """Return the number of finished epochs and the state then; None if there is no snapshot that can be used.

        One that is damaged is not used either: the training starts anew, and loses nothing but time.
        """
        try:
            metadata = read_metadata(self.path, "snapshot", "")
            arrays = read_arrays(self.path, "snapshot", "")
            epochs, spent = int(metadata["epochs"]), float(metadata["seconds"])
        except (FileFormatError, StorageError, KeyError, ValueError):
            return None
        if metadata.get("of") != self.of or metadata.get("sha256") != sha256_arrays(arrays):
            return None
        self._spent_s = spent
        return epochs, {name: torch.from_numpy(array) for name, array in arrays.items()}

    def offer(self, epochs: int, state: Callable[[], State]) -> None:
        """Keep the state after so many epochs, if the last snapshot is old enough and there is room on the disk."""
        start = time.perf_counter()
        if start - self._kept < max(self.every_s, _LEAST_BETWEEN * self._took):
            return
        arrays = {name: _array(value) for name, value in state().items()}
        metadata = {
            "of": self.of,
            "epochs": str(epochs),
            "seconds": repr(self.seconds),
            "sha256": sha256_arrays(arrays),
        }
        with contextlib.suppress(StorageError):  # a disk too full for a snapshot may hold the outputs
            write_arrays(self.path, arrays, metadata)
        self._kept = time.perf_counter()
        self._took = self._kept - start

    def remove(self) -> None:
        """Remove the snapshot: the training is over."""
        self.path.unlink(missing_ok=True)


def _array(value: Tensor) -> np.ndarray:
    # NumPy has no bfloat16; float32 holds all of its values.
    value = value.float() if value.dtype == torch.bfloat16 else value
    return value.detach().cpu().numpy()
