"""Methods, run as a suite runs them, stay below the memory budget: on embedded tasks, and where they take most.

Accepted runs are held to the same on all tasks by what their records say (``test_accepted_runs.py``); these are run,
at the options that were tuned for their task.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tdabench.budgets import BUDGET_BYTES
from tdabench.errors import DataError
from tdabench.jobs import Job, plan
from tdabench.registry import METHODS, find_method, find_task, names
from tdabench.runner import run
from tdabench.tuned import with_tuned_options

OWN = [name for name in names(METHODS) if find_method(name).library is None]
ONE_STEP = {"astra": {"steps": 1}, "if-cg": {"iterations": 1}, "if-lissa": {"depth": 2}}
"""Iterations hold the same however many there are, so one will do."""
MINUTES = {*ONE_STEP, "if-arnoldi", "datamodels", "empirical-influence"}
"""What takes minutes on sequences."""
RUNS = [("digits-mlp", name, None) for name in OWN]
RUNS += [("etudes-music-transformer", name, None) for name in OWN if name not in MINUTES]
RUNS += [("etudes-music-transformer", "trak", text) for text in ("independent(models=2)", "lora(models=1, adapters=2)")]
DECLINED = {("etudes-music-transformer", "if-explicit"), ("etudes-music-transformer", "knn-shapley")}
LARGEST = [
    ("mnist-mlp", "data-inf"),
    ("mnist-mlp", "ek-fac"),
    *(("mnist-mlp", name) for name in ONE_STEP),
    ("cifar2-resnet9-small", "data-inf"),
    ("cifar2-resnet9-small", "ek-fac"),
    ("cifar2-resnet9-small", "trak"),
    ("shakespeare-nanogpt-small", "data-inf"),
    ("shakespeare-nanogpt-small", "grad-cos"),
]
"""Methods that hold most, on the largest models and training sets of images and text that a CPU can retrain."""
BRIEF = f"{Path(__file__).parent / 'brief_solvers.py'}"
BRIEF_RUNS = [
    (task, method, options)
    for task in ("CIFAR2", "MAESTRO", "SHAKESPEARE", "etudes-music-transformer")
    for method, options in {
        "BriefArnoldi": {},
        "BriefAstra": ONE_STEP["astra"],
        "BriefConjugateGradient": ONE_STEP["if-cg"],
        "BriefLissa": ONE_STEP["if-lissa"],
    }.items()
]
"""Methods that take from minutes to hours on images and sequences, without most of what takes the time."""


def skip_without_data(task):
    if not os.environ.get("TDABENCH_DATA"):
        pytest.skip("set TDABENCH_DATA to a folder that holds the data sets to run this test")
    try:
        find_task(task).data()
    except DataError as error:
        pytest.skip(str(error))


def peaks_of_run(tmp_path, task, method, ensemble=None, options=None) -> tuple[int, int] | None:
    """Return the peaks of a process before its run and of the run itself, bytes; None where it was declined."""
    job, _ = with_tuned_options(Job(task, method, options or ONE_STEP.get(method, {}), ensemble), find_task(task))
    _, record = run(plan(job), tmp_path)
    if record.status == "declined":
        return None
    assert record.status == "ok", record.reason
    process, own = record.costs.baseline_host_bytes, record.costs.peak_host_bytes
    assert process > 100_000_000, "Python and torch alone take more"
    return process, own


@pytest.mark.slow
@pytest.mark.parametrize(("task", "method", "ensemble"), RUNS)
def test_a_run_and_its_process_stay_below_the_budget(tmp_path, task, method, ensemble):
    peaks = peaks_of_run(tmp_path, task, method, ensemble)
    assert (peaks is None) == ((task, method) in DECLINED)
    assert peaks is None or sum(peaks) < BUDGET_BYTES


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.parametrize(("task", "method"), LARGEST)
def test_so_do_those_that_hold_most_on_the_largest_tasks(tmp_path, task, method):
    skip_without_data(task)
    peaks = peaks_of_run(tmp_path, task, method)
    assert peaks is not None
    assert peaks[1] > 150_000_000, "what is held is seen"
    assert sum(peaks) < BUDGET_BYTES


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.parametrize(("task", "method", "options"), BRIEF_RUNS)
def test_so_do_solvers_of_which_a_run_takes_hours(tmp_path, task, method, options):
    task = f"{BRIEF}:{task}" if task.isupper() else task
    skip_without_data(task)
    peaks = peaks_of_run(tmp_path, task, f"{BRIEF}:{method}", options=options)
    assert peaks is not None
    assert peaks[1] > 200_000_000, "what is held is seen"
    assert sum(peaks) < BUDGET_BYTES
