"""Every method, run as the runner runs it, stays below the memory budget: on the embedded tasks, at its defaults.

Accepted runs are held to the same on all tasks by what their records say (``test_accepted_runs.py``); these are run.
"""

from __future__ import annotations

import pytest

from tdabench.budgets import BUDGET_BYTES
from tdabench.jobs import Job, plan
from tdabench.registry import METHODS, find_method, names
from tdabench.runner import run

OWN = [name for name in names(METHODS) if find_method(name).library is None]
MINUTES = {"if-arnoldi", "if-cg", "if-lissa", "astra", "datamodels"}
"""What takes minutes on sequences."""
RUNS = [("digits-mlp", name, None) for name in OWN]
RUNS += [("etudes-music-transformer", name, None) for name in OWN if name not in MINUTES]
RUNS += [("etudes-music-transformer", "trak", text) for text in ("independent(models=2)", "lora(models=1, adapters=2)")]
DECLINED = {("etudes-music-transformer", "if-explicit"), ("etudes-music-transformer", "knn-shapley")}


@pytest.mark.slow
@pytest.mark.parametrize(("task", "method", "ensemble"), RUNS)
def test_a_run_and_its_process_stay_below_the_budget(tmp_path, task, method, ensemble):
    _, record = run(plan(Job(task, method, {}, ensemble)), tmp_path)
    if (task, method) in DECLINED:
        assert record.status == "declined"
        return
    assert record.status == "ok", record.reason
    process, own = record.costs.baseline_host_bytes, record.costs.peak_host_bytes
    assert process > 100_000_000, "Python and torch alone take more"
    assert process + own < BUDGET_BYTES
