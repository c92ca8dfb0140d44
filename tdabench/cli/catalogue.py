"""``tdabench tasks`` and ``tdabench methods``: what there is."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import click

from tdabench.cli.options import json_option
from tdabench.cli.output import print_facts, print_json, print_table, say, warn_of_broken
from tdabench.errors import TdabenchError

if TYPE_CHECKING:
    from tdabench.task import Task


@click.command()
@click.argument("name", required=False)
@json_option
def tasks(name: str | None, as_json: bool) -> None:
    """List the tasks, or describe the task NAME. NAME may be FILE.py:NAME."""
    from tdabench import registry

    if name is not None:
        return _show(_describe_task(name), as_json)
    found = list(registry.find_all(registry.TASKS, _describe_task, warn_of_broken).values())
    if as_json:
        return print_json(found)
    columns = ("name", "title", "examples", "queries", "ground truth", "licence")
    return print_table(
        columns,
        [
            [t["name"], t["title"], str(t["n_train"]), str(t["n_queries"]), t["ground_truth"], t["licence"]]
            for t in found
        ],
    )


def _describe_task(name: str) -> dict[str, Any]:
    from tdabench.registry import find_task

    task = find_task(name)
    if not task.data_sha256:
        task.data()  # says what to write
    return {
        "name": task.name,
        "title": task.title,
        "description": task.description,
        "version": task.version,
        "n_train": task.n_train,
        "n_queries": task.n_queries,
        "target": task.target.name,
        "recipe": task.recipe.facts(),
        "needs": "a CUDA GPU" if task.needs_cuda else "a CPU",
        "ground_truth": _ground_truth_of(task),
        "wrong_labels_known": task.mislabelled is not None,
        "licence": task.licence,
        "data_sha256": task.data_sha256,
    }


def _ground_truth_of(task: Task) -> str:
    from tdabench.building import total_replicas, work_folder
    from tdabench.ground_truth import has_ground_truth
    from tdabench.slices import read_slices

    size = f"{task.plan.n_subsets} subsets x {task.plan.n_seeds} seeds"
    if has_ground_truth(task):
        return size
    try:
        done = read_slices(task, [work_folder(task)]).n_done
    except TdabenchError as error:  # one damaged file must not hide the other tasks
        return f"not built ({size}); {error}"
    return f"not built ({size})" if done == 0 else f"{done} of {total_replicas(task)} replicas ({size})"


def _show(facts: dict[str, Any], as_json: bool) -> None:
    if as_json:
        return print_json(facts)
    return print_facts([[k.replace("_", " "), _text(v)] for k, v in facts.items()])


def _text(value: Any) -> str:
    return ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else str(value)


@click.command()
@click.argument("name", required=False)
@json_option
def methods(name: str | None, as_json: bool) -> None:
    """List the methods, or describe the method NAME and its options. NAME may be FILE.py:CLASS."""
    from tdabench import registry

    if name is not None:
        return _show_method(_describe_method(name), as_json)
    found = list(registry.find_all(registry.METHODS, _describe_method, warn_of_broken).values())
    if as_json:
        return print_json(found)
    rows = [[m["name"], m["summary"], ", ".join(f"{o['name']}={o['default']}" for o in m["options"])] for m in found]
    print_table(("name", "summary", "options"), rows)
    return _print_ensembles()


def _describe_method(name: str) -> dict[str, Any]:
    from tdabench.registry import find_method

    cls = find_method(name)
    # What the file says at its top: what the method computes and why, its source and its cost.
    return {"name": name, **_describe_class(cls), "about": inspect.getdoc(inspect.getmodule(cls)) or ""}


def _describe_class(cls: type[Any]) -> dict[str, Any]:
    from dataclasses import asdict

    from tdabench.options import describe

    text = inspect.getdoc(cls) or "No description."
    return {"summary": text.splitlines()[0], "description": text, "options": [asdict(o) for o in describe(cls)]}


def _show_method(facts: dict[str, Any], as_json: bool) -> None:
    if as_json:
        return print_json(facts)
    say("\n\n".join(filter(None, (facts["name"], facts["description"], facts["about"]))) + "\n")
    return _print_options(facts["options"])


def _print_options(options: list[dict[str, Any]]) -> None:
    rows = [[o["name"], o["type"], str(o["default"]), o["help"]] for o in options]
    if not rows:
        return click.echo("It has no options.")
    return print_table(("option", "type", "default", ""), rows)


def _print_ensembles() -> None:
    from tdabench.ensembles import KINDS

    click.echo("\nEnsembles, for --ensemble 'KIND(option=value, ...)':\n")
    rows = []
    for kind, cls in KINDS.items():
        facts = _describe_class(cls)
        rows += [[kind, o["name"], o["type"], str(o["default"]), o["help"]] for o in facts["options"]]
    print_table(("kind", "option", "type", "default", ""), rows)
