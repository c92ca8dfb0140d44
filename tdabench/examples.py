"""Examples: inputs and labels of a training set or of the queries, and batches that remember where they came from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """Some examples of a set.

    Attributes
    ----------
    inputs
        ``[B, ...]`` model inputs.
    labels
        ``[B, ...]`` labels.
    index
        ``[B]`` int64, positions in the set. Dropout masks are keyed by it, so a mask follows its example through any
        batching and order.
    split
        ``"train"`` or ``"queries"``.
    """

    inputs: Tensor
    labels: Tensor
    index: Tensor
    split: str

    def __len__(self) -> int:
        return self.index.shape[0]


@dataclass(frozen=True)
class Examples:
    """A whole set, in memory, on one device.

    Attributes
    ----------
    inputs
        ``[n, ...]`` float32 (or int64 tokens).
    labels
        ``[n, ...]`` int64.
    split
        ``"train"`` or ``"queries"``.
    """

    inputs: Tensor
    labels: Tensor
    split: str

    def __len__(self) -> int:
        return self.inputs.shape[0]

    def take(self, index: Tensor) -> Batch:
        """Return the examples at ``index`` ``[B]``."""
        return Batch(self.inputs.index_select(0, index), self.labels.index_select(0, index), index, self.split)

    def all(self) -> Batch:
        """Return the whole set as one batch, without a copy."""
        return Batch(self.inputs, self.labels, torch.arange(len(self), device=self.inputs.device), self.split)

    def batches(self, size: int, rows: range | None = None) -> Iterator[Batch]:
        """Yield consecutive batches of at most ``size`` examples, as views; of ``rows`` only, if given."""
        rows = range(len(self)) if rows is None else rows
        index = torch.arange(len(self), device=self.inputs.device)
        for start in range(rows.start, rows.stop, size):
            part = slice(start, min(start + size, rows.stop))
            yield Batch(self.inputs[part], self.labels[part], index[part], self.split)

    def to(self, device: torch.device | str) -> Examples:
        """Return the same examples on another device."""
        return Examples(self.inputs.to(device), self.labels.to(device), self.split)
