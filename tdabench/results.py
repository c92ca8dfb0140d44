"""Results: run folders with their quality, recomputed from the scores each time they are read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from tdabench.board.rows import Row, TaskInfo
from tdabench.errors import MissingGroundTruthError, UnknownNameError, UsageError
from tdabench.evaluation import Evaluation, Evaluator, rank_groups
from tdabench.ground_truth import GroundTruth, read_ground_truth
from tdabench.records import RECORD_FILE, Record, read_record
from tdabench.registry import find_task
from tdabench.scores import read_run_scores
from tdabench.task import Task


@lru_cache(maxsize=8)
def _evaluator(reference: str) -> tuple[Task, GroundTruth, Evaluator]:
    task = find_task(reference)
    truth = read_ground_truth(task)
    return task, truth, Evaluator.of(truth)


def evaluator_of(task: str) -> Evaluator:
    """Return the evaluator of a task's reported queries; made once per process."""
    return _evaluator(task)[2]


def find_runs(folder: Path) -> list[Path]:
    """Return the run folders in ``folder``, sorted by name; unfinished ones start with a dot and are left out."""
    if not folder.is_dir():
        raise UsageError(f"There is no folder of runs at {folder}. Run `tdabench suite quick` or `tdabench run` first.")
    return sorted(p.parent for p in folder.glob(f"*/{RECORD_FILE}") if not p.parent.name.startswith("."))


def evaluate_run(folder: Path, record: Record) -> Evaluation | None:
    """Return the quality of a run on its task's reported queries; None unless it ended as ok on this task version."""
    if record.status != "ok":
        return None
    task, _, evaluator = _evaluator(record.task)
    if record.task_version != task.version:
        return None
    return evaluator.evaluate(read_run_scores(folder, record))


def read_rows(
    folders: Iterable[Path], on_row: Callable[[Record], None] = lambda _: None
) -> tuple[list[Row], list[TaskInfo]]:
    """Read, evaluate and rank runs, for the board; runs are ranked within their task."""
    rows = []
    for folder in folders:
        record = read_record(folder)
        rows.append(Row(record, _evaluate_known(folder, record)))
        on_row(record)
    tasks = [info for name in dict.fromkeys(r.record.task for r in rows) if (info := _task_info(name)) is not None]
    return _ranked(rows), tasks


def _evaluate_known(folder: Path, record: Record) -> Evaluation | None:
    """Evaluate, but let runs of a task that is not installed, or not built yet, through without a quality."""
    try:
        return evaluate_run(folder, record)
    except (UnknownNameError, MissingGroundTruthError):
        return None


def _ranked(rows: Sequence[Row]) -> list[Row]:
    ranked = list(rows)
    for task in {r.record.task for r in rows}:
        places = [i for i, r in enumerate(rows) if r.record.task == task and r.evaluation is not None]
        evaluations = [e for i in places if isinstance(e := rows[i].evaluation, Evaluation)]
        for place, group in zip(places, rank_groups(evaluations), strict=True):
            ranked[place] = replace(ranked[place], rank_group=group)
    return ranked


def _task_info(name: str) -> TaskInfo | None:
    try:
        task, truth, evaluator = _evaluator(name)
    except (UnknownNameError, MissingGroundTruthError):
        return None
    return TaskInfo(
        name=task.name,
        title=task.title,
        version=task.version,
        description=task.description,
        n_train=task.n_train,
        n_queries=len(truth.reported),
        n_subsets=truth.outputs.shape[0],
        n_seeds=truth.outputs.shape[1],
        ceiling=evaluator.ceiling.value,
        reliability=evaluator.ceiling.reliability,
    )
