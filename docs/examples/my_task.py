"""Tumours, benign or malignant: a task of one's own, complete, on a table that scikit-learn brings along."""

from pathlib import Path

import torch
from sklearn.datasets import load_breast_cancer
from torch import nn

import tdabench

N_TRAIN, N_QUERIES = 400, 169


def load_data(folder: Path | None) -> tdabench.TaskData:
    """Split the table once, by a named stream; ``folder`` is where a data set that is not embedded would be."""
    table = load_breast_cancer()
    inputs = torch.from_numpy(table.data)  # [569, 30] float64
    labels = torch.from_numpy(table.target).to(torch.int64)
    order = torch.randperm(len(labels), generator=tdabench.generator("tumours-mlp", "split"))
    train, queries = order[:N_TRAIN], order[N_TRAIN : N_TRAIN + N_QUERIES]
    # To 0 .. 1 by least and greatest value, which every machine computes alike; the last bit of a mean may differ.
    low, high = inputs[train].amin(0), inputs[train].amax(0)
    inputs = ((inputs - low) / (high - low)).to(torch.float32)
    return tdabench.TaskData(
        training=tdabench.Examples(inputs[train], labels[train], "train"),
        queries=tdabench.Examples(inputs[queries], labels[queries], "queries"),
    )


def make_model() -> nn.Module:
    """Return the MLP 30-64-2 with dropout 0.1, freshly initialised from torch's generator."""
    return nn.Sequential(nn.Linear(30, 64), nn.ReLU(), nn.Dropout(0.1), nn.Linear(64, 2))


TASK = tdabench.Task(
    name="tumours-mlp",
    title="Tumours, dropout MLP",
    description="scikit-learn's breast cancer table, 30 measurements of a tumour; MLP 30-64-2 with dropout 0.1.",
    licence="CC BY 4.0 (UCI breast cancer Wisconsin, diagnostic, Wolberg et al. 1995)",
    n_train=N_TRAIN,
    n_queries=N_QUERIES,
    load_data=load_data,
    data_sha256="eb24f2ab74160123ca3913d6060c8c794c0a46d3c9298964e4af48dbceb8a0bc",
    make_model=make_model,
    loss=tdabench.cross_entropy,
    target=tdabench.LOG_ODDS,
    recipe=tdabench.Recipe(lr=0.1, momentum=0.9, batch_size=20, epochs=20, schedule="linear"),
    folder=Path(__file__).parent,  # its ground truth will stand here, in ground_truth/
    plan=tdabench.SubsetPlan(n_subsets=100, n_seeds=5),
)
