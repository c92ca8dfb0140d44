"""Results: run folders with their quality, recomputed from the scores each time they are read."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import cache
from pathlib import Path

from tdabench.errors import MissingGroundTruthError, OtherGroundTruthError, UnknownNameError, UsageError
from tdabench.evaluation import Evaluation, Evaluator
from tdabench.evidence import EVIDENCE_FILE, Evidence, read_evidence
from tdabench.files import reading_errors
from tdabench.ground_truth import MANIFEST_FILE, GroundTruth, ground_truth_folder, read_ground_truth
from tdabench.lora import highest_ranks
from tdabench.records import RECORD_FILE, SCORES_FILE, Record, read_record
from tdabench.registry import find_task
from tdabench.results.runs import Run
from tdabench.results.seed_variance import read_seed_variance
from tdabench.results.tasks import TaskInfo
from tdabench.scores import read_run_scores
from tdabench.task import Task
from tdabench.tuned import CANDIDATES_FOLDER

OTHER_TRUTH = "no LDS: its evidence is of other ground truth than there is"
"""Why an archived run has no LDS where the ground truth, or the choice of queries, has changed since."""


def _known(reference: str) -> tuple[Task, GroundTruth, Evaluator]:
    """Return a task as it is now, its ground truth, and the evaluator of its reported queries."""
    task = find_task(reference)
    manifest = ground_truth_folder(task) / MANIFEST_FILE
    written = manifest.stat().st_mtime_ns if manifest.exists() else None
    return task, *_evaluator(reference, task.version, written)


@cache
def _evaluator(reference: str, version: str, written: int | None) -> tuple[GroundTruth, Evaluator]:
    """Read and prepare once in a process what does not change; an edited task, or a new build, is another."""
    truth = read_ground_truth(find_task(reference))
    return truth, Evaluator.of(truth)


def evaluator_of(task: str) -> Evaluator:
    """Return the evaluator of a task's reported queries; made once for each state of the task and its ground truth."""
    return _known(task)[2]


def refuse_candidate(folder: Path) -> None:
    """Raise :class:`UsageError` if a run folder is of a tuning: it attributes the tuning queries alone."""
    if folder.resolve().parent.name == CANDIDATES_FOLDER:
        raise UsageError(
            f"{folder} is what `tdabench tune` tried, which is no result: options are chosen on the tuning queries "
            "alone. Run the method with the options that you mean."
        )


def find_runs(folder: Path) -> list[Path]:
    """Return the run folders in ``folder``, sorted by name; unfinished ones start with a dot and are left out.

    Raises
    ------
    UsageError
        If there is no such folder, or it holds the candidates of tunings, which are no results.
    StorageError
        If a folder cannot be looked into.
    """
    if folder.resolve().name == CANDIDATES_FOLDER:
        raise UsageError(
            f"{folder} holds what `tdabench tune` tried, which is no result. Give {folder.parent}, where the runs are."
        )
    if not folder.is_dir():
        raise UsageError(f"There is no folder of runs at {folder}. Run `tdabench suite quick` or `tdabench run` first.")
    with reading_errors(folder):
        inside = [path for path in folder.iterdir() if not path.name.startswith(".")]
    found = []
    for path in inside:
        with reading_errors(path):  # a run that cannot be looked into is not left out in silence
            if (path / RECORD_FILE).exists():
                found.append(path)
    return sorted(found)


def evaluate_run(folder: Path, record: Record) -> Evaluation | None:
    """Return the quality of a run on its task's reported queries; None unless it ended as ok on this task version.

    Raises
    ------
    OtherGroundTruthError
        If what is kept of it was made for other ground truth; it is named.
    UsageError
        If it is what a tuning tried, or its scores are not the task's; it is named.
    FileFormatError
        If what is kept of it is damaged, or not what its record says.
    UnknownNameError, MissingGroundTruthError
        If its task, or the ground truth of that, is not at hand.
    """
    refuse_candidate(folder)
    if record.status != "ok":
        return None
    task, _, evaluator = _known(record.task)
    if record.task_version != task.version:
        return None
    evidence = evidence_of(folder, record, evaluator)
    try:
        return evaluator.weigh(evidence)
    except UsageError as error:
        raise type(error)(f"The run in {folder} cannot be evaluated. {error}") from error


def evidence_of(folder: Path, record: Record, evaluator: Evaluator) -> Evidence:
    """Return what of a run its quality depends on: from its scores, or as it was kept in their place.

    Raises
    ------
    FileFormatError
        If the run has neither, or a file is damaged or not the record's.
    """
    if record.scores is not None and not (folder / SCORES_FILE).exists() and (folder / EVIDENCE_FILE).exists():
        return read_evidence(folder, record.scores.sha256)
    return evaluator.evidence(read_run_scores(folder, record))


def read_runs(
    folders: Iterable[Path], on_run: Callable[[Record], None] = lambda _: None
) -> tuple[list[Run], list[TaskInfo]]:
    """Read and evaluate runs, and return them with what is known of their tasks.

    A run whose evidence is of other ground truth than there is has no LDS, and says so. Folders whose records are equal
    hold one run (the original and the archive's, a copy), which is returned once, with its LDS if one of them has it.
    """
    found: dict[str, Run] = {}
    for folder in folders:
        record = read_record(folder)
        text = record.to_json()
        if text not in found or found[text].lds is None:
            found[text] = _evaluated(folder, record)
        on_run(record)
    runs = list(found.values())
    tasks = [info for name in dict.fromkeys(r.record.task for r in runs) if (info := _task_info(name)) is not None]
    return runs, tasks


def _evaluated(folder: Path, record: Record) -> Run:
    """Evaluate, but let runs whose task, or its ground truth, is not at hand through without a quality."""
    try:
        return Run(record, evaluate_run(folder, record))
    except (UnknownNameError, MissingGroundTruthError):
        return Run(record)
    except OtherGroundTruthError:
        return Run(record, no_score=OTHER_TRUTH)


def _task_info(name: str) -> TaskInfo | None:
    """Return what the board says about a task; None if it is not installed."""
    try:
        task = find_task(name)
        _, truth, evaluator = _known(name)
    except UnknownNameError:
        return None
    except MissingGroundTruthError:
        return _without_truth(task)
    return replace(
        _without_truth(task),
        n_subsets=truth.outputs.shape[0],
        n_seeds=truth.outputs.shape[1],
        ceiling=evaluator.ceiling.value,
        reliability=evaluator.ceiling.reliability,
        no_score="",
    )


def _without_truth(task: Task) -> TaskInfo:
    """Return what is known of a task whose ground truth is still to be built."""
    return TaskInfo(
        name=task.name,
        title=task.title,
        version=task.version,
        description=task.description,
        n_train=task.n_train,
        n_queries=len(task.reported_queries),
        n_subsets=0,
        n_seeds=0,
        no_score="no LDS: this version of the task has no ground truth yet",
        adapter_ranks=highest_ranks(task.initial_model("architecture")),
        seed_variance=read_seed_variance(task),
    )
