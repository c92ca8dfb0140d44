"""Reports of runs: one run, and the table with its front."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from tdabench.board.rows import AXES, Row, TaskInfo, format_bytes, format_seconds, in_order, on_fronts
from tdabench.cli.output import Live, print_facts, print_json, print_table
from tdabench.evaluation import Evaluation
from tdabench.records import LOG_FILE, Record

_LETTERS = {"train": "T", "serve": "S", "memory": "M", "storage": "B"}


def print_run(folder: Path, record: Record, evaluation: Evaluation | None, as_json: bool) -> None:
    """Print one run: quality, costs, where it is."""
    if as_json:
        quality = None if evaluation is None else {**evaluation.to_dict(), "warnings": evaluation.warnings()}
        return print_json({"folder": str(folder), "record": record.model_dump(mode="json"), "evaluation": quality})
    rows = [["run", record.label], ["task", record.task], ["status", record.status]]
    if record.reason:
        rows.append(["reason", record.reason])
    if evaluation is not None:
        rows.append(["LDS", _interval(evaluation)])
        rows += wrong_labels_rows(evaluation)
    rows += _cost_rows(record)
    rows.append(["folder", str(folder)])
    if record.status == "failed":
        rows.append(["log", str(folder / LOG_FILE)])
    print_facts(rows)
    for warning in evaluation.warnings() if evaluation else []:
        click.echo(f"Warning: {warning}", err=True)
    return None


def _interval(evaluation: Any) -> str:
    ceiling = "unknown" if evaluation.ceiling is None else f"{evaluation.ceiling:.3f}"
    return f"{evaluation.lds:.3f}, 95 % interval {evaluation.low:.3f} to {evaluation.high:.3f} (ceiling {ceiling})"


def wrong_labels_rows(evaluation: Evaluation) -> list[list[str]]:
    """Return a row that says how well wrong labels are found, where they are known."""
    auroc = evaluation.mislabel_auroc
    return [] if auroc is None else [["finds wrong labels", f"AUROC {auroc:.4f} (chance 0.5)"]]


def _cost_rows(record: Record) -> list[list[str]]:
    costs, made_of = record.costs, record.ingredients
    if costs is None or made_of is None:
        return []
    return [
        [
            "training",
            f"{format_seconds(costs.train_s)} from nothing, {format_seconds(costs.extra_train_s)} given a model",
        ],
        [
            "serving",
            f"{format_seconds(costs.serve_s)} (fit {format_seconds(costs.fit_s)}, "
            f"attribute {format_seconds(costs.attribute_s)})",
        ],
        ["peak memory", format_bytes(costs.peak_host_bytes)],
        ["storage", format_bytes(costs.storage_bytes)],
        [
            "made of",
            f"{made_of.models_trained} models, {made_of.adapters_trained} adapters, "
            f"{made_of.forward_examples:,} forward and {made_of.backward_examples:,} backward examples",
        ],
    ]


def finish_board(folders: Sequence[Path], out: Path, as_json: bool) -> None:
    """Evaluate runs, write their page and print the table."""
    from tdabench.board.page import render, write
    from tdabench.results import read_rows

    with Live(len(folders), "evaluations") as live:
        live.now("evaluating")
        rows, tasks = read_rows(folders, on_row=lambda _: live.skip(1))
    page = write(render(rows, tasks), out, rows)
    if as_json:
        from tdabench.board.table import json_text, results_frame

        return click.echo(json_text(results_frame(in_order(rows))), nl=False)
    print_board(rows, tasks)
    return click.echo(f"\nThe page: {page.resolve()}")


def print_board(rows: Sequence[Row], tasks: Sequence[TaskInfo]) -> None:
    """Print a table per task, best first, and its fronts."""
    ordered = in_order(rows)
    fronts = on_fronts(ordered)
    for task in tasks:
        chosen = [(r, f) for r, f in zip(ordered, fronts, strict=True) if r.record.task == task.name]
        ceiling = "unknown" if task.ceiling is None else f"{task.ceiling:.3f}"
        title = f"{task.title} ({task.name}), {len(chosen)} runs, noise ceiling {ceiling}"
        columns = ("rank", "run", "LDS", "95 % interval", "training", "serving", "memory", "storage", "front")
        print_table(columns, [_cells(row, front) for row, front in chosen if row.evaluation is not None], title)
        for row, _ in chosen:
            if row.evaluation is None:
                click.echo(f"{row.record.label}: {row.record.status}, {row.record.reason or 'older task version'}")
        _print_fronts(chosen)


def _cells(row: Row, front: frozenset[str]) -> list[str]:
    record, evaluation = row.record, row.evaluation
    assert evaluation is not None
    costs = [axis.text(axis.value(row)) for axis in AXES if axis.key in _LETTERS]
    marks = "".join(letter for key, letter in _LETTERS.items() if key in front)
    lds = [f"{evaluation.lds:.3f}", f"{evaluation.low:.3f} to {evaluation.high:.3f}"]
    return [str(row.rank_group or ""), record.label, *lds, *costs, marks]


def _print_fronts(chosen: Sequence[tuple[Row, frozenset[str]]]) -> None:
    click.echo("\nRuns of one rank are not distinguishable from the best of their rank (paired bootstrap, 95 %).")
    click.echo("On the front (no other run is better on LDS and this cost):")
    for axis in AXES:
        if axis.key in _LETTERS:
            on_it = [r for r, front in chosen if axis.key in front]
            on_it.sort(key=lambda r: axis.value(r) or 0.0)
            names = "; ".join(f"{r.record.label} ({axis.text(axis.value(r))}, {r.lds:.3f})" for r in on_it)
            click.echo(f"  {_LETTERS[axis.key]}  {axis.name.lower()}: {names}")
    click.echo("")
