"""Tiny Shakespeare and nanoGPT of full size: that of the literature's text setting."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from tdabench.recipe import Recipe, SubsetPlan
from tdabench.targets import MEAN_LOG_PROBABILITY, token_cross_entropy
from tdabench.task import Task, TaskData
from tdabench.tasks import shakespeare
from tdabench.tasks.transformers import nano_gpt

N_TRAIN, N_QUERIES, LENGTH = 3921, 435, 256


def load_data(folder: Path | None) -> TaskData:
    """Take the 3,921 and 435 sequences of 256 characters that the text has."""
    return shakespeare.load_sequences(folder, LENGTH, N_TRAIN, N_QUERIES)


def make_model() -> nn.Module:
    """Return nanoGPT with 6 layers of width 384, 6 heads and dropout 0.2."""
    return nano_gpt(shakespeare.N_CHARACTERS, LENGTH, layers=6, width=384, heads=6, p=0.2)


TASK = Task(
    name="shakespeare-nanogpt",
    title="Shakespeare, nanoGPT",
    description="3,921 training sequences of 256 characters of tiny Shakespeare; nanoGPT, 10.8 M parameters.",
    licence=shakespeare.LICENCE,
    n_train=N_TRAIN,
    n_queries=N_QUERIES,
    load_data=load_data,
    data_sha256="c2134f121f331ac0aaf56d8a43c840b9148c07a17528573e3fc73806727cdb9b",
    make_model=make_model,
    loss=token_cross_entropy,
    target=MEAN_LOG_PROBABILITY,
    recipe=Recipe(
        lr=1e-3,
        momentum=0.9,
        batch_size=32,
        epochs=20,
        weight_decay=0.1,
        optimizer="adamw",
        beta2=0.99,
        schedule="linear",
        warmup=0.05,
        precision="bfloat16",
    ),
    folder=Path(__file__).parent,
    plan=SubsetPlan(n_subsets=100, n_seeds=5),
    needs_cuda=True,
)
