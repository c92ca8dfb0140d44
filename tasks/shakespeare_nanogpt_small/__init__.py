"""Tiny Shakespeare and a small nanoGPT: the text setting that two CPU cores can retrain."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from tdabench.recipe import Recipe, SubsetPlan
from tdabench.targets import MEAN_LOG_PROBABILITY, token_cross_entropy
from tdabench.task import Task, TaskData
from tdabench.tasks import shakespeare
from tdabench.tasks.transformers import nano_gpt

N_TRAIN, N_QUERIES, LENGTH = 1000, 250, 64


def load_data(folder: Path | None) -> TaskData:
    """Take 1,000 and 250 sequences of 64 characters."""
    return shakespeare.load_sequences(folder, LENGTH, N_TRAIN, N_QUERIES)


def make_model() -> nn.Module:
    """Return nanoGPT with 2 layers of width 64, 4 heads and dropout 0.1."""
    return nano_gpt(shakespeare.N_CHARACTERS, LENGTH, layers=2, width=64, heads=4, p=0.1)


TASK = Task(
    name="shakespeare-nanogpt-small",
    title="Shakespeare, small nanoGPT",
    description="1,000 training sequences of 64 characters of tiny Shakespeare; nanoGPT, 2 layers of width 64.",
    licence=shakespeare.LICENCE,
    n_train=N_TRAIN,
    n_queries=N_QUERIES,
    load_data=load_data,
    data_sha256="ef5a97b01920f70812949a770406d27400dc2a124a8ca2470733cdfcfdd6c74d",
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
