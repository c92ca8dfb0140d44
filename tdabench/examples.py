"""Examples: inputs and labels of a training set or of the queries, and batches that remember where they came from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tdabench.errors import DataError, UsageError

FORWARD_BATCH = 256
"""Examples of a pass without gradients; more are no faster, and a sequence's logits are many numbers."""


def consecutive(n: int, size: int) -> Iterator[slice]:
    """Yield slices of at most ``size`` that make up ``range(n)``, in order."""
    for start in range(0, n, size):
        yield slice(start, min(start + size, n))


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
    """A set, or a part of it, in memory, on one device.

    Attributes
    ----------
    inputs
        ``[n, ...]`` float32 (or int64 tokens).
    labels
        ``[n, ...]`` int64.
    split
        ``"train"`` or ``"queries"``.
    index
        ``[n]`` int64, positions in the whole set; None for the whole set.
    """

    inputs: Tensor
    labels: Tensor
    split: str
    index: Tensor | None = None

    def __len__(self) -> int:
        return self.inputs.shape[0]

    @property
    def positions(self) -> Tensor:
        """Where the examples are in the whole set, ``[n]`` int64."""
        return torch.arange(len(self), device=self.inputs.device) if self.index is None else self.index

    def part(self, rows: Tensor | slice) -> Examples:
        """Return the examples at ``rows`` (``[r]`` int64, or a slice), which keep what is drawn for each of the set.

        Raises
        ------
        UsageError
            If ``rows`` are neither: of a number, torch would return the parts of one example.
        """
        if not isinstance(rows, slice | Tensor) or (isinstance(rows, Tensor) and rows.dim() != 1):
            raise UsageError(f"A part of a set is examples.part(slice(3, 5)) or a tensor of rows; got {rows!r}.")
        return Examples(self.inputs[rows], self.labels[rows], self.split, self.positions[rows])

    def take(self, index: Tensor) -> Batch:
        """Return the examples at ``index`` ``[B]``."""
        inputs, labels = self.inputs.index_select(0, index), self.labels.index_select(0, index)
        return Batch(inputs, labels, index if self.index is None else self.index[index], self.split)

    def all(self) -> Batch:
        """Return all of them as one batch, without a copy."""
        return Batch(self.inputs, self.labels, self.positions, self.split)

    def batches(self, size: int, rows: range | None = None) -> Iterator[Batch]:
        """Yield consecutive batches of at most ``size`` examples, as views; of ``rows`` only, if given."""
        rows = range(len(self)) if rows is None else rows
        index = self.positions
        for start in range(rows.start, rows.stop, size):
            part = slice(start, min(start + size, rows.stop))
            yield Batch(self.inputs[part], self.labels[part], index[part], self.split)

    def to(self, device: torch.device | str) -> Examples:
        """Return the same examples on another device."""
        index = None if self.index is None else self.index.to(device)
        return Examples(self.inputs.to(device), self.labels.to(device), self.split, index)


def check_examples(examples: Examples, what: str) -> None:
    """Refuse what a model, a loss or a target would stumble over later, in torch's words.

    Parameters
    ----------
    examples
        What a task's ``load_data`` gives.
    what
        What they are, for the message: ``queries of mnist-mlp``.

    Raises
    ------
    DataError
        If inputs are neither float32 nor int64, labels are not int64, their numbers differ, or inputs are not finite.
    """
    inputs, labels = examples.inputs, examples.labels
    _check_type(inputs, "inputs", what, {"float32": "", "int64": " for tokens"})
    _check_type(labels, "labels", what, {"int64": ""})
    if not inputs.ndim or not labels.ndim or not len(inputs) == len(labels) > 0:
        raise DataError(
            f"The inputs of the {what} have shape {list(inputs.shape)}, their labels {list(labels.shape)}; expected "
            "[n, ...] for both, with the same n above 0. Change load_data."
        )
    finite = inputs.isfinite().reshape(len(inputs), -1).all(dim=1)  # [n]
    if not finite.all():
        raise DataError(
            f"The inputs of the {what} are not finite in {int((~finite).sum())} of {len(inputs)}, first in number "
            f"{int((~finite).nonzero()[0])}. Replace NaN and infinite values in load_data."
        )


def _check_type(value: object, name: str, what: str, expected: dict[str, str]) -> None:
    got = str(value.dtype).removeprefix("torch.") if isinstance(value, Tensor) else f"a {type(value).__name__}"
    if got not in expected:
        types = " or ".join(f"{dtype}{note}" for dtype, note in expected.items())
        change = f"Write torch.as_tensor({name}, dtype=torch.{next(iter(expected))}) in load_data."
        if name == "labels" and _would_be_cut(value):
            change = "Labels are classes or tokens; the targets of a regression go with the inputs."
        raise DataError(f"The {name} of the {what} are {got}, expected a tensor of {types}. {change}")


def _would_be_cut(value: object) -> bool:
    """Return whether a cast to whole numbers would change a value."""
    numbers = torch.as_tensor(value) if isinstance(value, Tensor | np.ndarray) else torch.zeros(0)
    return numbers.is_floating_point() and bool((numbers != numbers.trunc()).any())
