"""MAESTRO's piano performances and a small Music Transformer: the music setting that two CPU cores can retrain."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from tdabench.recipe import Recipe, SubsetPlan
from tdabench.targets import MEAN_LOG_PROBABILITY, token_cross_entropy
from tdabench.task import Task, TaskData
from tdabench.tasks import maestro
from tdabench.tasks.piano_events import VOCABULARY
from tdabench.tasks.transformers import music_transformer

LENGTH = 64
TRAIN, QUERIES = (125, 8), (50, 5)  # performances, windows of each


def load_data(folder: Path | None) -> TaskData:
    """Take eight windows of 125 performances, and five of 50 others."""
    return maestro.load_windows(folder, LENGTH, train=TRAIN, queries=QUERIES)


def make_model() -> nn.Module:
    """Return the Music Transformer with 2 layers of width 64, 4 heads and dropout 0.1."""
    return music_transformer(len(VOCABULARY), LENGTH, layers=2, width=64, heads=4, p=0.1)


TASK = Task(
    name="maestro-music-transformer-small",
    title="MAESTRO, small Music Transformer",
    description="1,000 windows of 64 events from 125 performances of MAESTRO; Music Transformer, 2 layers of width 64.",
    licence=maestro.LICENCE,
    n_train=TRAIN[0] * TRAIN[1],
    n_queries=QUERIES[0] * QUERIES[1],
    load_data=load_data,
    data_sha256="a0a7b3a00114265867c68e20f852946dea6ddc9a18c8250e4ea25d19c3281058",
    make_model=make_model,
    loss=token_cross_entropy,
    target=MEAN_LOG_PROBABILITY,
    recipe=Recipe(
        lr=3e-3,
        momentum=0.9,
        batch_size=32,
        epochs=10,
        weight_decay=0.1,
        optimizer="adamw",
        beta2=0.99,
        schedule="linear",
        warmup=0.05,
    ),
    folder=Path(__file__).parent,
    plan=SubsetPlan(n_subsets=100, n_seeds=5),
)
