"""Data flows one way: task, trained models, method, run folder, evaluation, results, board and findings."""

import ast
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import tdabench
from tdabench.provenance import READERS

PACKAGE = Path(tdabench.__file__).parent
FILES = {
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in PACKAGE.rglob("*.py")
}


def _named(node: ast.stmt) -> list[str]:
    """Return the modules that an import asks for, without the packages around them."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    assert isinstance(node, ast.ImportFrom)
    inside = [f"{node.module}.{alias.name}" for alias in node.names]
    return [name if name in FILES else str(node.module) for name in inside]


@cache
def imports() -> dict[str, set[str]]:
    """Return what each module of the package imports of it, also inside of functions; not what types alone need."""
    found: dict[str, set[str]] = {}
    for module, path in FILES.items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for_types = [n for n in ast.walk(tree) if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING"]
        apart = {id(inner) for block in for_types for inner in ast.walk(block)}
        nodes = [n for n in ast.walk(tree) if isinstance(n, (ast.Import, ast.ImportFrom)) and id(n) not in apart]
        found[module] = {name for node in nodes for name in _named(node) if name in FILES} - {module}
    return found


def part(module: str) -> str:
    """Return the part of the package that a module belongs to: ``board`` of ``tdabench.board.chart``."""
    return module.split(".")[1] if "." in module else ""


def parts_imported(name: str) -> set[str]:
    return {part(other) for module, others in imports().items() if part(module) == name for other in others} - {name}


def test_no_module_stands_on_itself():
    try:
        order = list(TopologicalSorter(imports()).static_order())
    except CycleError as error:
        pytest.fail(" imports ".join(reversed(error.args[1])))
    assert len(order) == len(FILES) > 100


@pytest.mark.parametrize(
    ("lower", "higher"),
    [
        ("evaluation", {"results", "archive", "board", "findings", "wandb_sink", "cli", "runner", "suites"}),
        ("results", {"archive", "board", "findings", "wandb_sink", "cli", "runner", "suites"}),
        ("board", {"findings", "cli", "runner", "suites"}),
        ("findings", {"board", "cli", "runner"}),
        ("runner", {"results", "archive", "board", "findings", "cli"}),
    ],
)
def test_what_comes_earlier_knows_nothing_of_what_is_made_of_it(lower, higher):
    assert {part(module) for module in FILES} >= {lower} | higher, "a name that is no part guards nothing"
    assert not parts_imported(lower) & higher


def test_the_process_of_a_run_holds_nothing_that_reads_results():
    reached, ahead = set(), ["tdabench.worker"]
    while ahead:
        module = ahead.pop()
        if module not in reached:
            reached.add(module)
            ahead += imports()[module]
    assert len(reached) > 30
    assert not {part(module) for module in reached} & READERS
