"""Our methods beside their peers, job by job: ``python -m tdabench.baselines.peers.bench`` (or ``make bench-peers``).

Every run is a fresh process of one thread, made by the same runner, at the same trained model. The entries take turns
in every repeat, so that a slower minute of the machine meets all of them. A bar that is missed is printed as missed,
and the exit status is 1.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from tdabench import provenance
from tdabench.baselines.peers.contests import (
    CONTESTS,
    LDS_JOBS,
    Contest,
    Entry,
    Measured,
    Verdict,
    elsewhere,
    judge,
    median,
    ratios,
)
from tdabench.building import build
from tdabench.cli.output import note, print_table
from tdabench.errors import MissingGroundTruthError, TdabenchError
from tdabench.ground_truth import has_ground_truth
from tdabench.jobs import Job, plan
from tdabench.records import Record
from tdabench.registry import METHODS, find_task, names
from tdabench.results.reading import evaluate_run
from tdabench.runner import run

WIDE = f"{Path(__file__).with_name('wide.py')}:TASK"
LIBRARIES = ("captum", "dattri", "kronfluence", "traker")


@click.command()
@click.option("--task", default=WIDE, help="Task. Default: digits-mlp-wide, which the bars were set on.")
@click.option("--repeats", type=click.IntRange(1), default=3, show_default=True)
@click.option("--runs", type=click.Path(path_type=Path, file_okay=False), default=Path("out/peers"), show_default=True)
@click.option("--json", "json_file", type=click.Path(path_type=Path, dir_okay=False), help="Write all numbers there.")
@click.option("--timeout", "timeout_s", type=float, default=900.0, show_default=True, help="Seconds a run may take.")
@click.option(
    "--against", "libraries", type=click.Choice(LIBRARIES), multiple=True, help="Only these libraries; repeatable."
)
def main(
    task: str, repeats: int, runs: Path, json_file: Path | None, timeout_s: float, libraries: tuple[str, ...]
) -> None:
    """Measure our methods and their peers on TASK and hold them against the bars."""
    contests = [contest for contest in (*CONTESTS, *LDS_JOBS) if not libraries or library_of(contest) in libraries]
    methods = [contest for contest in contests if contest not in LDS_JOBS]
    try:
        _build_truth(task)
        records = measure_all(task, _entries(methods), repeats, runs, timeout_s)
        measured = {entry: summarise(found) for entry, found in records.items()}
    except TdabenchError as error:
        raise click.ClickException(str(error)) from error
    metrics = [contest for contest in contests if contest in LDS_JOBS]
    measured |= {entry: time_metric(entry, repeats) for entry in _entries(metrics)}
    # Made-up scores are the same whatever the task, and so is their bar.
    held = [contest if task == WIDE or contest in LDS_JOBS else elsewhere(contest) for contest in contests]
    rows = [(c, measured[c.ours], measured[c.theirs]) for c in held]
    judged = [judge(*row) for row in rows]
    print_table(_COLUMNS, [_cells(*row, verdicts) for row, verdicts in zip(rows, judged, strict=True)])
    if json_file is not None:
        json_file.write_text(json.dumps(_facts(task, repeats, rows, judged), indent=2) + "\n", encoding="utf-8")
    sys.exit(any(verdict.met is False for verdicts in judged for verdict in verdicts))


def _build_truth(reference: str) -> None:
    """Build the ground truth of the wide task where it is missing; other tasks ship theirs."""
    task = find_task(reference)
    if reference == WIDE and not has_ground_truth(task):
        note(f"Building the ground truth of {task.name} (once).")
        build(reference)


def library_of(contest: Contest) -> str:
    """Return the library that a contest holds ours against."""
    return next(library for library in LIBRARIES if contest.theirs.method.startswith(library))


def _entries(contests: Iterable[Contest]) -> list[Entry]:
    return list(dict.fromkeys(entry for contest in contests for entry in (contest.ours, contest.theirs)))


def measure_all(
    task: str, entries: Iterable[Entry], repeats: int, runs: Path, timeout_s: float
) -> dict[Entry, list[tuple[Path, Record]]]:
    """Run every entry ``repeats`` times, taking turns; an entry that is not registered has no runs."""
    found: dict[Entry, list[tuple[Path, Record]]] = {entry: [] for entry in entries}
    registered = set(names(METHODS))
    for repeat in range(repeats):
        for entry in (e for e in found if e.method in registered):
            planned = plan(Job(task, entry.method, dict(entry.options)))
            found[entry].append(run(planned, runs, timeout_s=timeout_s))
            record = found[entry][-1][1]
            took = f"{record.costs.serve_s:.3f} s" if record.costs else record.reason
            note(f"{repeat + 1}/{repeats} {entry.label}: {record.status}, {took}")
    return found


def summarise(runs: list[tuple[Path, Record]]) -> Measured:
    """Return what an entry's runs came to; the quality is the first run's, as all have one seed.

    Costs stand also where the task has no ground truth yet, and so no run an LDS.
    """
    if not runs:
        return Measured(reason="not registered")
    for _, record in runs:
        if record.status != "ok":
            return Measured(reason=f"{record.status}: {record.reason}")
    costs = [record.costs for _, record in runs if record.costs is not None]
    try:
        evaluation = evaluate_run(*runs[0])
    except MissingGroundTruthError:
        evaluation = None
    return Measured(
        serve_s=tuple(c.serve_s for c in costs),
        peak_bytes=tuple(c.peak_host_bytes for c in costs),
        lds=evaluation.lds if evaluation else None,
        low=evaluation.low if evaluation else None,
        high=evaluation.high if evaluation else None,
        versions=runs[0][1].provenance.packages,
    )


def time_metric(entry: Entry, repeats: int) -> Measured:
    """Time an implementation of the LDS, a process a repeat."""
    which = "dattri" if entry.method.startswith("dattri") else "ours"
    sizes = dict(entry.options)
    command = [sys.executable, "-m", "tdabench.baselines.peers.metric", which]
    command += [str(sizes["examples"]), str(sizes["queries"])]
    threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    results = []
    for _ in range(repeats):
        done = subprocess.run(command, env={**os.environ, **threads}, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            said = done.stderr.strip().splitlines() or [f"the process ended with code {done.returncode}"]
            return Measured(reason=f"failed: {said[-1]}")
        results.append(json.loads(done.stdout))
    seconds, peaks = tuple(r["serve_s"] for r in results), tuple(r["peak_bytes"] for r in results)
    return Measured(seconds, peaks, results[0]["lds"])


_COLUMNS = ["job", "ours", "theirs", "s, ours / theirs", "ratio", "MB, ours / theirs", "LDS, ours / theirs"]


def _cells(contest: Contest, ours: Measured, theirs: Measured, verdicts: list[Verdict]) -> list[str]:
    bars = {verdict.of: f"\n{_WORDS[verdict.met]}: {verdict.bar}" for verdict in verdicts}
    known = ours.reason is None and theirs.reason is None
    return [
        contest.job,
        contest.ours.label,
        contest.theirs.label,
        " / ".join(m.reason or f"{median(m.serve_s):.3f}" for m in (ours, theirs)),
        (_spread(ratios(ours, theirs)) if known else "") + bars.get("time", ""),
        " / ".join("-" if m.reason else f"{median(m.peak_bytes) / 1e6:.0f}" for m in (ours, theirs)) + bars["memory"],
        " / ".join(_lds(m) for m in (ours, theirs)) + bars.get("lds", ""),
    ]


_WORDS = {True: "met", False: "MISSED", None: "not judged"}


def _spread(values: tuple[float, ...]) -> str:
    return f"{median(values):.1f} ({min(values):.1f} to {max(values):.1f})"


def _lds(measured: Measured) -> str:
    if measured.lds is None:
        return "-"
    interval = "" if measured.low is None else f" ({measured.low:.3f} to {measured.high:.3f})"
    return f"{measured.lds:.3f}{interval}"


def _facts(
    task: str, repeats: int, rows: list[tuple[Contest, Measured, Measured]], judged: list[list[Verdict]]
) -> dict[str, Any]:
    return {
        "task": find_task(task).name,
        "task_version": find_task(task).version,
        "repeats": repeats,
        "machine": provenance.machine(1, "cpu").model_dump(mode="json"),
        "contests": [
            {
                "contest": asdict(contest),
                "ours": asdict(ours),
                "theirs": asdict(theirs),
                "ratios": [] if ours.reason or theirs.reason else list(ratios(ours, theirs)),
                "verdicts": [asdict(verdict) for verdict in verdicts],
            }
            for (contest, ours, theirs), verdicts in zip(rows, judged, strict=True)
        ],
    }


if __name__ == "__main__":
    main()
