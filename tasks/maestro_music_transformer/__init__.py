"""MAESTRO's piano performances and a Music Transformer of full size: that of the literature's music setting."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from tdabench.recipe import Recipe, SubsetPlan
from tdabench.targets import MEAN_LOG_PROBABILITY, token_cross_entropy
from tdabench.task import Task, TaskData
from tdabench.tasks import maestro
from tdabench.tasks.piano_events import VOCABULARY
from tdabench.tasks.transformers import music_transformer

LENGTH = 256
TRAIN, QUERIES = (500, 10), (178, 1)  # performances, windows of each


def load_data(folder: Path | None) -> TaskData:
    """Take ten windows of 500 performances, and one of 178 others."""
    return maestro.load_windows(folder, LENGTH, train=TRAIN, queries=QUERIES)


def make_model() -> nn.Module:
    """Return the Music Transformer with 6 layers of width 512, 8 heads and dropout 0.1."""
    return music_transformer(len(VOCABULARY), LENGTH, layers=6, width=512, heads=8, p=0.1)


TASK = Task(
    name="maestro-music-transformer",
    title="MAESTRO, Music Transformer",
    description="5,000 windows of 256 events from 500 performances of MAESTRO; Music Transformer, 13 M parameters.",
    licence=maestro.LICENCE,
    n_train=TRAIN[0] * TRAIN[1],
    n_queries=QUERIES[0] * QUERIES[1],
    load_data=load_data,
    data_sha256="3fd26bb9171d64ab6c031ae033e92181cd29e90942bf193c436cd74116a52cb4",
    make_model=make_model,
    loss=token_cross_entropy,
    target=MEAN_LOG_PROBABILITY,
    recipe=Recipe(
        lr=3e-4,
        momentum=0.9,
        batch_size=64,
        epochs=20,
        weight_decay=0.1,
        optimizer="adamw",
        beta2=0.98,
        schedule="linear",
        warmup=0.05,
        precision="bfloat16",
    ),
    folder=Path(__file__).parent,
    plan=SubsetPlan(n_subsets=100, n_seeds=5),
    needs_cuda=True,
)
