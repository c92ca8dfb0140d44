"""The archive: runs as a repository keeps them, with evidence in place of scores and without logs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tdabench.errors import UsageError
from tdabench.evidence import write_evidence
from tdabench.files import new_folder, write_bytes
from tdabench.ground_truth import read_ground_truth
from tdabench.records import RECORD_FILE, read_record
from tdabench.registry import find_task
from tdabench.results.reading import evaluator_of, evidence_of, refuse_candidate


def archive_runs(folders: Sequence[Path], archive: Path, on_run: Callable[[Path], None] = lambda _: None) -> int:
    """Keep runs in an archive, each in a folder of its own name; all are checked before any is written.

    Parameters
    ----------
    folders
        Run folders.
    on_run
        Called with each that is done with.

    Returns
    -------
    int
        How many were not there before.

    Raises
    ------
    UsageError
        If another run is there under the name of one, or has that name among those that are given; or if one is of an
        older version of its task, or what a tuning tried.
    MissingGroundTruthError
        If a task has no ground truth to make evidence for.
    FileFormatError
        If a run's scores are damaged, which is found when their turn comes.
    """
    for folder in folders:
        refuse_candidate(folder)
    places = {folder: archive / folder.resolve().name for folder in folders}  # "." has no name of its own
    _refuse_taken(places)
    new = {place: folder for folder, place in places.items() if not place.exists()}  # a copy is written once
    for task in sorted({task for folder in new.values() if (task := _scored(folder)) is not None}):
        read_ground_truth(find_task(task))
    for folder in folders:
        if new.get(places[folder]) is folder:
            _write(folder, places[folder])
        on_run(folder)
    return len(new)


def _refuse_taken(places: Mapping[Path, Path]) -> None:
    """Raise :class:`UsageError` if the place of a run is that of another one."""
    given: dict[Path, bytes] = {}
    twice, taken = [], []
    for folder, place in places.items():
        content = (folder / RECORD_FILE).read_bytes()
        twice += [place] if given.setdefault(place, content) != content else []
        taken += [place] if place.exists() and not _holds(place, content) else []
    if twice:
        raise UsageError(f"There are different runs of the name {twice[0].name} among those given. Leave one out.")
    if taken:
        first, *others = map(str, taken)
        more = f" So {'does' if len(others) == 1 else 'do'} {', '.join(others)}." if others else ""
        advice = "Remove it, or choose another folder with --out."
        raise UsageError(f"{first} holds another run. {advice}{more} Nothing was written.")


def _holds(target: Path, content: bytes) -> bool:
    return (target / RECORD_FILE).is_file() and (target / RECORD_FILE).read_bytes() == content


def _scored(folder: Path) -> str | None:
    """Return the task of a run that has scores, which evidence is made for; None for one without."""
    record = read_record(folder)
    if record.scores is None:
        return None
    if record.task_version != find_task(record.task).version:
        raise UsageError(f"The run in {folder} is of an older version of {record.task}. Measure it again.")
    return record.task


def _write(folder: Path, target: Path) -> None:
    record, content = read_record(folder), (folder / RECORD_FILE).read_bytes()
    with new_folder(target) as made:
        write_bytes(made / RECORD_FILE, content)
        if record.scores is not None:
            evidence = evidence_of(folder, record, evaluator_of(record.task))
            write_evidence(made, evidence, record.scores.sha256)
