"""``tdabench score``, ``compare``, ``board`` and ``wandb``: what reads results."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import click

from tdabench.cli.options import json_option, own_tasks_option, seeds_from_option
from tdabench.cli.output import note, print_facts, print_json, warn
from tdabench.errors import UsageError

_PATH = click.Path(path_type=Path, exists=True)


@click.command()
@click.argument("scores", type=_PATH)
@click.option("--task", help="Task whose ground truth to evaluate against; a run folder knows its own.")
@json_option
def score(scores: Path, task: str | None, as_json: bool) -> None:
    """Evaluate SCORES: a run folder, or a .safetensors or .npy file of shape [n_queries, n_train]."""
    from tdabench.cli.reports import wrong_labels_rows
    from tdabench.records import RECORD_FILE, read_record
    from tdabench.results.reading import evaluator_of, evidence_of, refuse_candidate
    from tdabench.scores import read_scores

    folder = scores.parent if scores.name == RECORD_FILE else scores
    if folder.is_dir():
        refuse_candidate(folder)
        evaluator = evaluator_of(_task_of_run(folder, task))
        evaluation = evaluator.weigh(evidence_of(folder, read_record(folder), evaluator))
    elif task is None:
        raise UsageError(f"{scores} is a file: say which task its scores are of, with --task TASK.")
    else:
        evaluation = evaluator_of(task).evaluate(read_scores(scores))
    warnings = evaluation.warnings()
    if as_json:
        return print_json({**evaluation.to_dict(), "warnings": warnings})
    ceiling = "unknown" if evaluation.ceiling is None else f"{evaluation.ceiling:.4f}"
    rows = [
        ["LDS", f"{evaluation.lds:.4f}"],
        ["95 % interval", f"{evaluation.low:.4f} to {evaluation.high:.4f}"],
        ["noise ceiling", ceiling],
        ["queries, subsets", f"{evaluation.n_queries}, {evaluation.n_subsets}"],
        ["constant queries", f"{evaluation.constant_queries} (counted 0)"],
    ]
    print_facts(rows + wrong_labels_rows(evaluation))
    for warning in warnings:
        warn(warning)
    return None


def _task_of_run(folder: Path, given: str | None) -> str:
    """Return the task that a run is of, and check it: scores of another task would get a number, a wrong one."""
    from tdabench.records import read_record
    from tdabench.registry import find_task

    record = read_record(folder)
    task = find_task(given or record.task)
    if (record.task, record.task_version) != (task.name, task.version):
        raise UsageError(
            f"The run in {folder} is of {record.task} version {record.task_version}, "
            f"not of {task.name} version {task.version}. Run the method on the task that you mean."
        )
    return task.name


@click.command()
@click.argument("first", type=_PATH)
@click.argument("second", type=_PATH)
@own_tasks_option
@json_option
def compare(first: Path, second: Path, as_json: bool) -> None:
    """Compare two runs of one task: the LDS of FIRST less that of SECOND, paired, and their costs."""
    from tdabench.evaluation import compare as compare_evaluations
    from tdabench.records import read_record
    from tdabench.results.reading import evaluate_run

    records = [read_record(folder) for folder in (first, second)]
    if records[0].task != records[1].task:
        raise UsageError(f"These are runs of {records[0].task} and {records[1].task}. Compare runs of one task.")
    evaluations = []
    for folder, record in zip((first, second), records, strict=True):
        evaluation = evaluate_run(folder, record)
        if evaluation is None:
            why = record.reason or f"it is of an older version of {record.task}"
            raise UsageError(f"The run in {folder} has no LDS to compare: {record.status}, {why}.")
        evaluations.append(evaluation)
    difference = compare_evaluations(*evaluations)
    same = records[0].machine.machine_class == records[1].machine.machine_class
    # Models are trained anew under another seed, on another class of machine and with another torch.
    same_models = same and records[0].seed == records[1].seed and len({r.versions.get("torch") for r in records}) == 1
    facts = {
        "first": records[0].label,
        "second": records[1].label,
        "lds": [e.lds for e in evaluations],
        "difference": difference.value,
        "low": difference.low,
        "high": difference.high,
        "p_better": difference.p_better,
        "significant": difference.significant,
        "same_models": same_models,
        "cost_ratios": _ratios(records) if same else None,
    }
    note(_of_these_models(same=same_models))
    if as_json:
        return print_json(facts)
    return _print_comparison(facts)


def _of_these_models(same: bool) -> str:
    """Say what the interval leaves out, which with one run of each is most of the luck."""
    others = "" if same else " The runs are of different models (seed, machine or torch), whose luck does not cancel."
    return (
        f"The interval holds subsets and queries, not the luck of the trained models.{others} "
        "For that, run both with several seeds; `tdabench findings` and the board compare them over seeds."
    )


def _ratios(records: list[Any]) -> dict[str, float | None]:
    from tdabench.results.axes import AXES

    ratios = {}
    for axis in AXES:
        a, b = (axis.of(record) for record in records)
        ratios[axis.key] = a / b if a is not None and b else None
    return ratios


def _print_comparison(facts: dict[str, Any]) -> None:
    verdict = "significant" if facts["significant"] else "not significant"
    rows = [
        ["first", f"{facts['first']}: LDS {facts['lds'][0]:.4f}"],
        ["second", f"{facts['second']}: LDS {facts['lds'][1]:.4f}"],
        [
            "difference",
            f"{facts['difference']:+.4f}, 95 % interval {facts['low']:+.4f} to {facts['high']:+.4f}, {verdict}",
        ],
        ["first better in", f"{100 * facts['p_better']:.1f} % of resamples"],
    ]
    if facts["cost_ratios"] is None:
        rows.append(["costs", "measured on different machine classes, so not compared"])
    else:
        known = [f"{k} x{v:.2g}" for k, v in facts["cost_ratios"].items() if v is not None]
        rows.append(["costs, first over second", ", ".join(known)])
    print_facts(rows)


@click.command()
@click.argument("runs", type=click.Path(path_type=Path, file_okay=False), default=Path("runs"))
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("board"),
    show_default=True,
    help="Folder to write index.html, results.csv and results.json to.",
)
@click.option("--suite", "suite_name", metavar="NAME", help="Say on the page what this suite leaves out.")
@seeds_from_option
@own_tasks_option
@json_option
def board(runs: Path, out: Path, suite_name: str | None, seeds_from: tuple[Path, ...], as_json: bool) -> None:
    """Write the leaderboard of the run folders in RUNS as one self-contained page."""
    from tdabench.cli.reports import finish_board, run_folders
    from tdabench.suites import find_suite

    finish_board(run_folders([runs]), out, as_json, find_suite(suite_name) if suite_name else None, seeds_from)


@click.command("wandb")
@click.argument("runs", type=click.Path(path_type=Path, file_okay=False), default=Path("runs"))
@click.option("--project", default="tdabench", show_default=True, help="W&B project.")
@click.option("--mode", type=click.Choice(["offline", "online"]), default="offline", show_default=True)
@click.option(
    "--dir",
    "folder",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path(),
    help="Where W&B writes.",
)
@own_tasks_option
@json_option
def wandb(runs: Path, project: str, mode: Literal["offline", "online"], folder: Path, as_json: bool) -> None:
    """Copy the results of the run folders in RUNS to Weights & Biases; needs the wandb extra."""
    from tdabench.cli.reports import note_copies, run_folders
    from tdabench.formats import count
    from tdabench.results.reading import read_runs
    from tdabench.wandb_sink import send

    if not project.strip():
        raise UsageError("The project has no name. Give one with --project, or leave it out.")
    folders = run_folders([runs])
    found, _ = read_runs(folders)
    note_copies(folders, found)
    sent = send(found, project, folder, mode)
    if as_json:
        return print_json({"runs": sent, "project": project, "mode": mode})
    return click.echo(f"Sent {count(sent, 'run')} to the project {project} ({mode}).")
