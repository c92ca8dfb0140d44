"""The evaluation itself beside dattri's: ``python -m tdabench.baselines.peers.metric ours|dattri``.

One implementation a process, on made-up scores of 100 subsets, 5,000 training examples and 1,000 queries. Prints JSON.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable

import numpy as np
import torch

from tdabench.baselines.peers.library import optional, quiet
from tdabench.lds import lds_per_query
from tdabench.memory import PeakMemory

N_SUBSETS, N_TRAIN, N_QUERIES = 100, 5_000, 1_000


def case() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return scores ``[n_queries, n_train]``, masks ``[n_subsets, n_train]``, outputs ``[n_subsets, n_queries]``."""
    random = np.random.default_rng(0)
    masks = np.zeros((N_SUBSETS, N_TRAIN), dtype=bool)
    for row in masks:
        row[random.permutation(N_TRAIN)[: N_TRAIN // 2]] = True
    scores = random.normal(size=(N_QUERIES, N_TRAIN)).astype(np.float32)
    return scores, masks, random.normal(size=(N_SUBSETS, N_QUERIES))


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
    scores, masks, outputs = case()
    compute(scores[:2], masks, outputs[:, :2])
    memory = PeakMemory()
    start = time.perf_counter()
    values = compute(scores, masks, outputs)
    seconds = time.perf_counter() - start
    memory.note("lds")
    print(json.dumps({"serve_s": seconds, "peak_bytes": memory.peaks["lds"], "lds": float(values.mean())}))


if __name__ == "__main__":
    main()
