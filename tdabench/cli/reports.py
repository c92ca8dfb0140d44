"""Reports of runs: one run, the table with its front, and ``tdabench findings``."""

from __future__ import annotations

import shlex
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tdabench.board.names import names
from tdabench.cli.caveats import note_other_sources
from tdabench.cli.options import json_option, own_tasks_option, seeds_from_option
from tdabench.cli.output import Live, note, print_facts, print_json, print_table, say, warn
from tdabench.errors import UnknownNameError, UsageError
from tdabench.evaluation import Evaluation
from tdabench.formats import count, format_bytes, format_seconds, listing
from tdabench.records import LOG_FILE, RECORD_FILE, Record
from tdabench.results.axes import AXES, peak_bytes
from tdabench.results.rows import Row, in_order, on_fronts
from tdabench.results.runs import Run
from tdabench.results.tasks import TaskInfo
from tdabench.results.words import describe_machine, seeds_used

if TYPE_CHECKING:
    from tdabench.suites import Suite

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
        warn(warning)
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
        ["peak memory", format_bytes(peak_bytes(costs))],
        ["storage", format_bytes(costs.storage_bytes)],
        [
            "made of",
            f"{count(made_of.models_trained, 'model')}, {count(made_of.adapters_trained, 'adapter')}, "
            f"{made_of.forward_examples:,} forward and {made_of.backward_examples:,} backward examples",
        ],
    ]


def read_with_seeds(folders: Sequence[Path], seeds_from: Sequence[Path]) -> tuple[list[Run], list[Run], list[TaskInfo]]:
    """Evaluate runs; return them, what other machine classes lend them, and their tasks."""
    from tdabench.results.lending import lend
    from tdabench.results.reading import read_runs

    lenders = run_folders(seeds_from) if seeds_from else []
    with Live(len(folders) + len(lenders), "evaluations") as live:
        live.now("evaluating")
        runs, tasks = read_runs(folders, on_run=lambda _: live.skip(1))
        offered, _ = read_runs(lenders, on_run=lambda _: live.skip(1))
    note_copies(folders, runs)
    lent = lend(runs, offered)
    if lenders:
        _note_lent(lent, runs, offered)
    return runs, lent, tasks


def _note_lent(lent: Sequence[Run], runs: Sequence[Run], offered: Sequence[Run]) -> None:
    """Say how many seeds are lent, and, where that is none or scores differ, what a lender must have."""
    from tdabench.results.lending import agreement

    same, other = agreement(runs, offered)
    made = f"both have made {count(same + other, 'run')}, {same} with equal scores and {other} with others"
    told = (
        f"{len(lent)} of {count(len(offered), 'run')} of --seeds-from count for an LDS, at seeds that lack here: {made}"
    )
    if lent and not other:
        return note(f"{told}.")
    return warn(
        f"{told}. Of a task, a method and a kind of ensemble, --seeds-from must have made a run that is here, too, on"
        " another machine class, and all such runs must have the same scores, bit for bit."
    )


def finish_board(
    folders: Sequence[Path], out: Path, as_json: bool, suite: Suite | None = None, seeds_from: Sequence[Path] = ()
) -> None:
    """Evaluate runs, write their page and print the table; the page says what ``suite`` leaves out."""
    from tdabench.board.page import render, write
    from tdabench.results.rows import rows_of

    runs, lent, tasks = read_with_seeds(folders, seeds_from)
    if suite is not None:
        tasks = [replace(task, left_out=suite.left_out_of(task.name)) for task in tasks]
    rows = rows_of([*runs, *lent], tasks)
    page = write(render(rows, tasks), out, rows)
    note_other_sources([run.record for run in runs])
    tasks = [task for task in tasks if task.has_truth]
    warn_of_unknown(runs, tasks)
    warn_of_other_truth(runs)
    if as_json:
        from tdabench.board.table import json_text, results_frame

        return click.echo(json_text(results_frame(in_order(rows))), nl=False)
    print_board(rows, tasks)
    return click.echo(f"\nThe page: {page.resolve()}")


def warn_of_unknown(runs: Sequence[Run], tasks: Sequence[TaskInfo]) -> None:
    """Say which runs have no quality because nothing is known of their task, and what to type to make it known."""
    from tdabench.errors import TdabenchError
    from tdabench.results.reading import evaluator_of

    known = {task.name for task in tasks}
    for name in sorted({run.record.task for run in runs} - known):
        n_runs = sum(run.record.task == name for run in runs)
        left_out = f"{count(n_runs, 'run')} of {name} left out of the tables, without an LDS"
        try:
            evaluator_of(name)
        except UnknownNameError:
            warn(f"{left_out}: no task of that name is registered. Name its file with --task FILE.py:NAME.")
        except TdabenchError as error:
            warn(f"{left_out}: {error}")


def note_copies(folders: Sequence[Path], runs: Sequence[Run]) -> None:
    """Say how many folders are left out, as each holds a run that another one holds too."""
    copies = len(folders) - len(runs)
    if copies:
        left_out = count(copies, "folder is", "folders are")
        note(f"{left_out} left out, as another holds the same record: a run counts once.")


def warn_of_other_truth(runs: Sequence[Run]) -> None:
    """Say which archived runs have no LDS because their evidence is of other ground truth, and what to do."""
    found = [run.record.run_id for run in runs if run.no_score]
    if found:
        warn(
            f"{count(len(found), 'run')} without an LDS, as the evidence is of other ground truth than there is:"
            f" {listing(found)}. Archive them again from their scores, or run the method again."
        )


def print_board(rows: Sequence[Row], tasks: Sequence[TaskInfo]) -> None:
    """Print a table per task, best first, and its fronts."""
    ordered = in_order(rows)
    fronts = on_fronts(ordered)
    for task in tasks:
        chosen = [(r, f) for r, f in zip(ordered, fronts, strict=True) if r.record.task == task.name]
        ceiling = "unknown" if task.ceiling is None else f"{task.ceiling:.3f}"
        n_runs = sum(len(row.runs) for row, _ in chosen)
        title = f"{task.title} ({task.name}), {count(n_runs, 'run')}, noise ceiling {ceiling}"
        columns = ("rank", "configuration", "LDS", "95 % interval", "training", "serving", "memory", "storage", "front")
        scored = [(row, front) for row, front in chosen if row.lds is not None]
        called = names([row for row, _ in scored])
        cells = [_cells(row, name, front) for (row, front), name in zip(scored, called, strict=True)]
        print_table(columns, cells, title)
        for row, _ in chosen:
            _print_without(row)
        _print_fronts(scored)


def _cells(row: Row, name: str, front: frozenset[str]) -> list[str]:
    (low, high), costs = row.interval, [axis.text(row.cost(axis)) for axis in AXES if axis.key in _LETTERS]
    marks = "".join(letter for key, letter in _LETTERS.items() if key in front)
    lds = [f"{row.lds:.3f}", ", ".join(filter(None, (f"{low:.3f} to {high:.3f}", row.seeds)))]
    return [str(row.rank_group or ""), f"{name} ({row.untuned})" if row.untuned else name, *lds, *costs, marks]


def _print_without(row: Row) -> None:
    """Print the runs of a row that have no LDS, a line each."""
    for run in row.runs:
        if run.lds is None:
            seed = f", seed {run.record.seed}" if len(row.runs) > 1 else ""
            say(f"{run.record.label}{seed}: {run.record.status}, {run.reason or 'older task version'}")


def _print_fronts(scored: Sequence[tuple[Row, frozenset[str]]]) -> None:
    click.echo("\nWhat shares a rank is not distinguishable from the best of that rank (paired bootstrap, 95 %).")
    if scored:
        found = [(row.seeds_counted, row.draws.knows_luck) for row, _ in scored if row.draws is not None]
        click.echo(seeds_used(found))
    classes: dict[str, list[tuple[Row, frozenset[str]]]] = defaultdict(list)
    for row, front in scored:
        classes[row.record.machine.machine_class].append((row, front))
    for key, members in sorted(classes.items()):
        machine = f", on {describe_machine(members[0][0].record.machine)}, class {key}" if len(classes) > 1 else ""
        say(f"On the front (nothing else is better on LDS and this cost{machine}):")
        _print_front(members)
    click.echo("")


def _print_front(members: Sequence[tuple[Row, frozenset[str]]]) -> None:
    """Print, for each cost, which of a machine class's rows are on its front; inside a class it need not be named."""
    called = names([row for row, _ in members])
    for axis in AXES:
        if axis.key in _LETTERS:
            pairs = zip(members, called, strict=True)
            on_it = [(row.cost(axis), row.lds, name) for (row, front), name in pairs if axis.key in front]
            on_it.sort(key=lambda found: found[0] or 0.0)
            said = "; ".join(f"{name} ({axis.text(cost)}, {lds:.3f})" for cost, lds, name in on_it)
            say(f"  {_LETTERS[axis.key]}  {axis.name.lower()}: {said}")


@click.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path, file_okay=False))
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("findings.md"),
    show_default=True,
    help="Markdown file to write; of several tasks, each has a page in a folder beside it.",
)
@click.option("suites", "--suite", multiple=True, metavar="NAME", help="Suite whose missing runs are to be told.")
@seeds_from_option
@own_tasks_option
@json_option
def findings(
    runs: tuple[Path, ...], out: Path, suites: tuple[str, ...], seeds_from: tuple[Path, ...], as_json: bool
) -> None:
    """Write what cheap ensembles save at equal LDS, and what wins at equal cost, from the run folders in RUNS."""
    from tdabench.findings import Source, numbers, render, write
    from tdabench.suites import find_suite

    source = Source(_command(runs, out, suites, seeds_from), tuple(find_suite(name) for name in sorted(set(suites))))
    found, lent, tasks = read_with_seeds(run_folders(runs), seeds_from)
    tasks = [task for task in tasks if task.has_truth]
    pages = write(render([*found, *lent], tasks, source, out.name), out)
    warn_of_unknown(found, tasks)
    warn_of_other_truth(found)
    if as_json:
        told = {"file": str(out), "pages": [*map(str, pages)], "runs": len(found), "tasks": [t.name for t in tasks]}
        return print_json({**told, "lent": len(lent), "findings": numbers([*found, *lent], tasks)})
    n_tasks, each = len({run.record.task for run in found}), f" and {pages[0].parent / '*.md'}" if pages else ""
    return click.echo(f"{count(len(found), 'run')} of {count(n_tasks, 'task')}: {out}{each}")


def run_folders(given: Sequence[Path]) -> list[Path]:
    """Return the run folders among, or in, those that are given; each once."""
    from tdabench.results.reading import find_runs, refuse_candidate

    folders = [f for path in given for f in ([path] if (path / RECORD_FILE).is_file() else find_runs(path))]
    for folder in folders:
        refuse_candidate(folder)
    if not folders:
        where = ", ".join(map(str, given))
        raise UsageError(f"There is no run in {where}. Run `tdabench suite quick` or `tdabench run` first.")
    return sorted({folder.resolve(): folder for folder in folders}.values())


def _command(runs: Sequence[Path], out: Path, suites: Sequence[str], seeds_from: Sequence[Path]) -> str:
    """Return the command without the folders of this machine; the order of the runs does not matter."""

    def shown(path: Path) -> str:
        return path.name if path.is_absolute() else path.as_posix()

    words = ["tdabench", "findings", *sorted({shown(path) for path in runs})]
    for folder in sorted({shown(path) for path in seeds_from}):
        words += ["--seeds-from", folder]
    for name in sorted(set(suites)):
        words += ["--suite", shown(Path(name))]
    return shlex.join([*words, "--out", shown(out)])
