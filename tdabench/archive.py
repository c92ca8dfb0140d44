"""The archive: runs as a repository keeps them, with evidence in place of scores and without logs."""

from __future__ import annotations

from pathlib import Path

from tdabench.errors import UsageError
from tdabench.evidence import write_evidence
from tdabench.files import new_folder, write_bytes
from tdabench.records import RECORD_FILE, read_record
from tdabench.registry import find_task
from tdabench.results import evaluator_of, evidence_of, refuse_candidate


def archive_run(folder: Path, archive: Path) -> bool:
    """Keep one run in an archive, in a folder of the same name.

    Returns
    -------
    bool
        False if it was there already.

    Raises
    ------
    UsageError
        If another run is there under that name, or the run is of an older version of its task or what a tuning tried.
    MissingGroundTruthError
        If its task has no ground truth to make evidence for.
    """
    refuse_candidate(folder)
    target = archive / folder.name
    record, content = read_record(folder), (folder / RECORD_FILE).read_bytes()
    if target.exists():
        if (target / RECORD_FILE).is_file() and (target / RECORD_FILE).read_bytes() == content:
            return False
        raise UsageError(f"{target} holds another run. Remove it, or choose another folder with --out.")
    if record.scores is not None and record.task_version != find_task(record.task).version:
        raise UsageError(f"The run in {folder} is of an older version of {record.task}. Measure it again.")
    with new_folder(target) as made:
        write_bytes(made / RECORD_FILE, content)
        if record.scores is not None:
            evidence = evidence_of(folder, record, evaluator_of(record.task))
            write_evidence(made, evidence, record.scores.sha256)
    return True
