"""Tiny Shakespeare as its tasks prepare it: characters, in sequences that do not overlap."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from tdabench import datasets
from tdabench.examples import Examples
from tdabench.task import TaskData

TRAINING_SHARE = 0.9
LICENCE = "public domain (works of William Shakespeare; text collected by A. Karpathy)"
N_CHARACTERS = 65


def load_sequences(folder: Path | None, length: int, n_train: int, n_queries: int) -> TaskData:
    """Cut the first 90 % of the text into training sequences, and the rest into queries.

    Parameters
    ----------
    folder
        Where the text is.
    length
        Tokens of a sequence; the labels are the tokens that follow.
    n_train, n_queries
        How many, evenly spread over their part of the text.
    """
    text = datasets.shakespeare(folder)
    numbers = {c: i for i, c in enumerate(sorted(set(text)))}
    tokens = torch.tensor([numbers[c] for c in text])
    cut = int(TRAINING_SHARE * len(tokens))
    return TaskData(_cut(tokens[:cut], length, n_train, "train"), _cut(tokens[cut:], length, n_queries, "queries"))


def _cut(tokens: Tensor, length: int, n: int, split: str) -> Examples:
    places = (len(tokens) - 1) // length
    starts = torch.arange(n) * places // n * length
    windows = tokens[starts.unsqueeze(1) + torch.arange(length + 1)]  # [n, length + 1]
    return Examples(windows[:, :-1].contiguous(), windows[:, 1:].contiguous(), split)
