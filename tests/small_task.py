"""A task that trains in a few hundredths of a second; found by reference as ``small_task.py:TASK``."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path

from torch import Tensor, nn

from tdabench import LOG_ODDS, Examples, Recipe, SubsetPlan, Task, TaskData, cross_entropy
from tdabench.tasks import digits_mlp

N_TRAIN, N_QUERIES = 120, 40
FOLDER = Path(os.environ.get("TDABENCH_TEST_TASK_FOLDER", Path(__file__).parent / "small_task_without_folder"))


def load_data(folder: Path | None) -> TaskData:
    whole = digits_mlp.TASK.data(folder)  # kept once prepared: scikit-learn takes longer to load than all of a run
    return TaskData(_first(whole.training, N_TRAIN), _first(whole.queries, N_QUERIES))


def _first(examples: Examples, n: int) -> Examples:
    return Examples(examples.inputs[:n].clone(), examples.labels[:n].clone(), examples.split)


def make_model() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Dropout(0.2), nn.Linear(32, 10))


def slow_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    time.sleep(0.01)
    return cross_entropy(logits, labels)


TASK = Task(
    name="small",
    title="A few digits",
    description="120 digits, an MLP with dropout, 3 epochs.",
    licence="CC BY 4.0",
    n_train=N_TRAIN,
    n_queries=N_QUERIES,
    load_data=load_data,
    data_sha256="bac2a0e6e1bb088251901b6a0bd1608f613234a9ff6d3ff9824ca58416a68996",
    make_model=make_model,
    loss=cross_entropy,
    target=LOG_ODDS,
    recipe=Recipe(lr=0.2, momentum=0.5, batch_size=20, epochs=3),
    folder=FOLDER,
    plan=SubsetPlan(n_subsets=8, n_seeds=4),
)

# Thirty slices of about a tenth of a second: time to be killed in the middle.
SLOW = replace(TASK, name="small-slow", loss=slow_cross_entropy, plan=SubsetPlan(n_subsets=8, n_seeds=30))
