"""The task that the bars of the comparison were set on: digits with a wider MLP, 50,826 parameters, and 200 queries.

It is not a task of the board: its ground truth (100 subsets, 5 seeds) is built into the cache when it is first needed,
within a minute.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from torch import nn

import tdabench
from tdabench.datasets import cache_folder
from tdabench.tasks import digits_mlp

N_QUERIES = 200


def load_data(folder: Path | None) -> tdabench.TaskData:
    """Return the data of digits-mlp with the first 200 of its queries."""
    whole = digits_mlp.load_data(folder)
    first = whole.queries.inputs[:N_QUERIES].clone(), whole.queries.labels[:N_QUERIES].clone()
    return tdabench.TaskData(whole.training, tdabench.Examples(*first, "queries"))


def make_model() -> nn.Module:
    """Return the MLP 64-256-128-10: 50,826 parameters."""
    return nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 10))


TASK = replace(
    digits_mlp.TASK,
    name="digits-mlp-wide",
    title="Digits, wide MLP",
    description="digits-mlp with an MLP 64-256-128-10 without dropout and 200 queries.",
    n_queries=N_QUERIES,
    load_data=load_data,
    data_sha256="dbca53d16016be302624448844d4aa3c908f2fc531f5d9ebdf9144ef5c8d5f26",
    make_model=make_model,
    folder=cache_folder() / "peers" / "digits-mlp-wide",
    plan=tdabench.SubsetPlan(n_subsets=100, n_seeds=5),
)
