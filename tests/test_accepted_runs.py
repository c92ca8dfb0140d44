"""What stands in ``leaderboard/runs``: runs of the tasks as they are, evidence that holds, memory under the budget."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tdabench.board.rows import TaskInfo
from tdabench.board.runs import Run
from tdabench.budgets import BUDGET_BYTES
from tdabench.ensembles import format_ensemble, kind_of, parse_ensemble
from tdabench.findings import Source, render
from tdabench.findings.entries import contests_of
from tdabench.ground_truth import has_ground_truth
from tdabench.jobs import Job
from tdabench.options import values
from tdabench.records import Record, read_record
from tdabench.registry import TASKS, find_task, names
from tdabench.results import find_runs, read_runs
from tdabench.suites import find_suite

ROOT = Path(__file__).parent.parent
FOLDERS = find_runs(ROOT / "leaderboard" / "runs")
RECORDS = [read_record(folder) for folder in FOLDERS]
Standing = tuple[str, str, str, int]
NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?")


def standing(record: Record) -> Standing:
    text = format_ensemble(record.ensemble.kind, record.ensemble.options) if record.ensemble else ""
    return record.task, record.method, text, record.seed


def wanted(job: Job) -> Standing:
    ensemble = parse_ensemble(job.ensemble) if job.ensemble else None
    text = format_ensemble(kind_of(ensemble), values(ensemble)) if ensemble else ""
    return job.task, job.method, text, job.seed


def test_every_run_of_the_standard_suite_is_there_once_and_ended_as_ok_or_with_a_reason():
    found = [standing(record) for record in RECORDS]
    assert {wanted(job) for job in find_suite("standard").jobs} - set(found) == set()
    assert len(found) == len(set(found))
    assert {record.status for record in RECORDS} == {"ok", "declined"}


def test_every_task_that_a_cpu_can_retrain_has_runs():
    assert {name for name in names(TASKS) if has_ground_truth(find_task(name))} <= {record.task for record in RECORDS}


def test_runs_are_of_the_tasks_as_they_are_and_on_one_machine_class():
    assert [r.run_id for r in RECORDS if r.task_version != find_task(r.task).version] == []
    assert len({record.machine.machine_class for record in RECORDS}) == 1


def test_runs_are_of_a_commit_without_changes():
    assert [record.run_id for record in RECORDS if record.provenance.dirty] == []


def test_the_counts_in_the_readme_are_those_of_the_findings():
    """Written by hand, so that they can be read; each stands in the findings, which are computed."""
    readme, findings = (
        " ".join((ROOT / name).read_text(encoding="utf-8").split()) for name in ("README.md", "docs/findings.md")
    )
    answer = readme.partition("## The answer so far")[2].partition("## What you get")[0]
    counts = set(re.findall(r"\d+ of \d+|[\d.]+ × the cost|one of [A-Za-z ]+ on \d+", answer))
    assert len(counts) > 10
    assert sorted(count for count in counts if not re.search(rf"(?<!\d){re.escape(count)}(?!\d)", findings)) == []
    assert f"{len(RECORDS):,} runs" in answer


def test_no_method_takes_more_host_memory_than_the_budget():
    """What a run adds to its process and the process itself, together."""
    taken = {
        record.run_id: record.costs.peak_host_bytes + record.costs.baseline_host_bytes
        for record in RECORDS
        if record.costs is not None
    }
    assert {run: peak for run, peak in taken.items() if peak >= BUDGET_BYTES} == {}


@pytest.mark.slow(minutes=1)
def test_evidence_and_the_findings_in_the_documents_are_those_of_the_runs():
    """One test, as the runs are evaluated for it, which takes minutes."""
    runs, tasks = read_runs(FOLDERS)
    check_lds(runs, tasks)
    check_sources(runs, tasks)
    check_findings(runs, tasks)


def check_sources(runs: list[Run], tasks: list[TaskInfo]) -> None:
    """What ensembles save is not what the engine has gained meanwhile."""
    families = [(c.task.name, family) for c in contests_of(runs, tasks) for family in c.families]
    assert [(task, family.name) for task, family in families if len(family.sources) > 1] == []


def check_lds(runs: list[Run], tasks: list[TaskInfo]) -> None:
    """Evidence gives every run that ended as ok, and no other, an LDS below the ceiling."""
    ceilings = {task.name: task.ceiling for task in tasks}
    for run in runs:
        assert (run.lds is None) == (run.record.status != "ok"), run.record.run_id
        assert run.lds is None or run.lds < ceilings[run.record.task], run.record.run_id


def check_findings(runs: list[Run], tasks: list[TaskInfo]) -> None:
    """Word for word, and the numbers to a percent: another processor may round the last digit elsewhere."""
    kept = (ROOT / "docs" / "findings.md").read_text(encoding="utf-8")
    command = "tdabench findings leaderboard/runs --suite standard --out docs/findings.md"
    again = render(runs, tasks, Source(command, (find_suite("standard"),)))
    assert NUMBER.sub("#", again) == NUMBER.sub("#", kept)
    numbers = [[float(n.replace(",", "")) for n in NUMBER.findall(text)] for text in (again, kept)]
    assert numbers[0] == pytest.approx(numbers[1], rel=0.01, abs=0.0021)
