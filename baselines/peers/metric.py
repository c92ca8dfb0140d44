"""The evaluation itself beside dattri's: ``python -m tdabench.baselines.peers.metric ours|dattri N_TRAIN N_QUERIES``.

One implementation a process, on made-up scores and 100 subsets. Prints JSON: the median time of five calls.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable

import numpy as np
import torch

from tdabench.baselines.peers.library import optional, quiet
from tdabench.lds import lds_per_query
from tdabench.memory import PeakMemory

N_SUBSETS = 100
CALLS = 5
"""Calls that are timed; of a few milliseconds one alone says little."""


def case(n_train: int, n_queries: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return scores ``[n_queries, n_train]``, masks ``[n_subsets, n_train]``, outputs ``[n_subsets, n_queries]``."""
    random = np.random.default_rng(0)
    masks = np.zeros((N_SUBSETS, n_train), dtype=bool)
    for row in masks:
        row[random.permutation(n_train)[: n_train // 2]] = True
    scores = random.normal(size=(n_queries, n_train)).astype(np.float32)
    return scores, masks, random.normal(size=(N_SUBSETS, n_queries))


def ours(scores: np.ndarray, masks: np.ndarray, outputs: np.ndarray) -> np.ndarray:
    """Return the LDS of each query."""
    return lds_per_query(scores, masks, outputs)[0]


def dattri(scores: np.ndarray, masks: np.ndarray, outputs: np.ndarray) -> np.ndarray:
    """Return the LDS of each query; dattri takes scores by training example, and subsets as indices."""
    kept = torch.from_numpy(np.stack([np.flatnonzero(row) for row in masks]))
    metric = optional("dattri.metric")
    with quiet():
        return metric.lds(torch.from_numpy(scores).T, (torch.from_numpy(outputs), kept))[0].numpy()


IMPLEMENTATIONS: dict[str, Callable[..., np.ndarray]] = {"ours": ours, "dattri": dattri}


def main() -> None:
    """Time one implementation, after a first call on a few queries."""
    torch.set_num_threads(1)
    compute = IMPLEMENTATIONS[sys.argv[1]]
    scores, masks, outputs = case(int(sys.argv[2]), int(sys.argv[3]))
    compute(scores[:2], masks, outputs[:, :2])
    memory = PeakMemory()
    seconds = []
    for _ in range(CALLS):
        start = time.perf_counter()
        values = compute(scores, masks, outputs)
        seconds.append(time.perf_counter() - start)
    memory.note("lds")
    facts = {"serve_s": statistics.median(seconds), "peak_bytes": memory.peaks["lds"], "lds": float(values.mean())}
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
