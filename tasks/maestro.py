"""MAESTRO as its tasks prepare it: windows of event tokens from an explicit list of performances.

The list (``maestro_performances.csv``, beside this module) names the performances in the order in which they are
used, so the prepared tokens are the same for whoever holds the whole set and for whoever holds these files only.
"""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import torch

from tdabench import datasets
from tdabench.examples import Examples
from tdabench.task import TaskData
from tdabench.tasks.piano_events import midi_tokens

LICENCE = "CC BY-NC-SA 4.0 (MAESTRO v3.0.0, Hawthorne et al. 2019)"
PERFORMANCES = Path(__file__).with_name("maestro_performances.csv")


def performances(split: str) -> list[str]:
    """Return the files of a split (``train`` or ``queries``), in order, as MAESTRO's metadata name them."""
    with PERFORMANCES.open(encoding="utf-8", newline="") as file:
        return [row["file"] for row in csv.DictReader(file) if row["split"] == split]


def load_windows(folder: Path | None, length: int, *, train: tuple[int, int], queries: tuple[int, int]) -> TaskData:
    """Cut windows from the first performances of each split.

    Parameters
    ----------
    folder
        Where MAESTRO is.
    length
        Tokens of a window; the labels are the events that follow.
    train, queries
        (performances, windows of each); windows are evenly spread over a performance and do not overlap.
    """
    return TaskData(_cut(folder, length, "train", *train), _cut(folder, length, "queries", *queries))


def _cut(folder: Path | None, length: int, split: str, n_performances: int, n_windows: int) -> Examples:
    paths = datasets.maestro(folder, performances(split)[:n_performances])
    windows = [_windows(midi_tokens(path), length + 1, n_windows) for path in paths]
    tokens = torch.from_numpy(np.concatenate(windows))  # [n, length + 1]
    return Examples(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous(), split)


def _windows(tokens: np.ndarray, size: int, n: int) -> np.ndarray:
    starts = np.arange(n) * (len(tokens) // size) // n * size
    return tokens[starts[:, None] + np.arange(size)]  # [n, size]
