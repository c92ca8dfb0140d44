"""A bank: models retrained on subsets, for methods that learn from retraining what an example is worth.

The models are kept, not their outputs: a query that comes later needs them. Parts are files, so that a bank that was
interrupted goes on where it was.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tdabench.errors import UsageError
from tdabench.examples import FORWARD_BATCH, Examples
from tdabench.files import sha256_arrays
from tdabench.grouping import choose_group
from tdabench.seeds import derive_seed
from tdabench.task import Task, TaskData
from tdabench.trainer import Parameters, target_outputs, train_replicas

# A part is held twice while it is written; it is as large as a group of the trainer where models are small.
_PART_BYTES = 256 << 20
_MAX_PART = 50


@dataclass(frozen=True)
class Part:
    """Some subsets of a bank, and the name that their models are kept under."""

    name: str
    masks: Tensor  # [R, n_train]


def check_masks(masks: Tensor, n_train: int) -> None:
    """Raise :class:`UsageError` unless ``masks`` are subsets of equal size, ``[M, n_train]`` bool."""
    if masks.dtype != torch.bool or masks.dim() != 2 or masks.shape[1] != n_train:
        raise UsageError(
            f"Subsets are a bool tensor [M, n_train] = [M, {n_train}]; got {masks.dtype} {list(masks.shape)}. "
            "Give True where an example is kept."
        )
    sizes = masks.sum(1).unique().tolist()
    if len(sizes) != 1 or sizes[0] == 0:
        raise UsageError(
            f"Subsets must be of one size, at least one example; got the sizes {sizes}. Draw as many for each."
        )


def parts_of(task: Task, masks: Tensor, *stream: str | int) -> Iterator[Part]:
    """Yield a bank's parts; names follow from the subsets and the stream, sizes from the model alone."""
    model = task.initial_model("plan")
    model_bytes = sum(v.numel() * v.element_size() for v in model.state_dict().values())
    size = max(1, min(_MAX_PART, _PART_BYTES // max(1, model_bytes)))
    bank = derive_seed(*stream, sha256_arrays({"masks": masks.cpu().numpy()}))
    for start in range(0, len(masks), size):
        yield Part(f"bank-{bank:016x}-{start}", masks[start : start + size])


def group_for(task: Task, data: TaskData) -> int:
    """Return how many models train at once fastest here: measured, which is no part of what training costs."""
    return choose_group(task, data).size


def train_part(task: Task, data: TaskData, masks: Tensor, group: int, *stream: str | int) -> Parameters:
    """Train the models of a part ``[R, ...]`` from one stream, ``group`` at once."""
    groups = [train_replicas(task, data, rows, *stream) for rows in masks.split(group)]
    return {k: torch.cat([g[k] for g in groups]) for k in groups[0]}


def outputs(task: Task, data: TaskData, models: Sequence[Parameters], examples: Examples) -> Tensor:
    """Return the target of every example under every model, dropout off: ``[M, n]`` float32."""
    asked = TaskData(data.training, examples)
    return torch.cat([target_outputs(task, asked, stacked, FORWARD_BATCH) for stacked in models])
