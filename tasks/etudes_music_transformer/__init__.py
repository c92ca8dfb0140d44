"""Etudes by six rule-based composers and a small Music Transformer: the music setting that needs no download."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from tdabench.examples import Examples
from tdabench.recipe import Recipe, SubsetPlan
from tdabench.targets import MEAN_LOG_PROBABILITY, token_cross_entropy
from tdabench.task import Task, TaskData
from tdabench.tasks.etudes_music_transformer.composers import COMPOSERS, perform
from tdabench.tasks.piano_events import VOCABULARY
from tdabench.tasks.transformers import music_transformer

PIECES, TAKES, QUERY_TAKES, LENGTH = 20, 4, 2, 64
N_TRAIN = len(COMPOSERS) * PIECES * TAKES
N_QUERIES = len(COMPOSERS) * PIECES * QUERY_TAKES


def load_data(folder: Path | None) -> TaskData:
    """Perform every piece four times for training and twice for the queries; ``folder`` is not needed."""
    return TaskData(_performances(range(TAKES), "train"), _performances(range(TAKES, TAKES + QUERY_TAKES), "queries"))


def _performances(takes: range, split: str) -> Examples:
    played = [
        perform(composer, piece, take, LENGTH + 1)
        for composer in range(len(COMPOSERS))
        for piece in range(PIECES)
        for take in takes
    ]
    tokens = torch.from_numpy(np.stack(played))  # [n, LENGTH + 1]
    return Examples(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous(), split)


def who_composed(split: str) -> Tensor:
    """Return who composed each example of a split, ``[n]``: indices of ``COMPOSERS``."""
    takes = TAKES if split == "train" else QUERY_TAKES
    return torch.arange(len(COMPOSERS)).repeat_interleave(PIECES * takes)


def make_model() -> nn.Module:
    """Return the Music Transformer with 2 layers of width 64, 4 heads and dropout 0.1."""
    return music_transformer(len(VOCABULARY), LENGTH, layers=2, width=64, heads=4, p=0.1)


RECIPE = Recipe(
    lr=3e-3,
    momentum=0.9,
    batch_size=16,
    epochs=8,
    weight_decay=0.1,
    optimizer="adamw",
    beta2=0.99,
    schedule="linear",
    warmup=0.05,
)

TASK = Task(
    name="etudes-music-transformer",
    title="Etudes, small Music Transformer",
    description="480 performances of 120 etudes by six rule-based composers; Music Transformer, 2 layers of width 64.",
    licence="MIT (made by this project)",
    n_train=N_TRAIN,
    n_queries=N_QUERIES,
    load_data=load_data,
    data_sha256="6a0629db438404489e27e79ccd332a3eb8776a9740e58f8a351a0355850b61a0",
    make_model=make_model,
    loss=token_cross_entropy,
    target=MEAN_LOG_PROBABILITY,
    recipe=RECIPE,
    folder=Path(__file__).parent,
    plan=SubsetPlan(n_subsets=100, n_seeds=5),
)
