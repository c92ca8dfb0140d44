"""The example of a task, as a newcomer meets it: written, built, verified, measured on, and on a board."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from torch import nn

import tdabench
from tdabench import cli, registry
from tdabench.ensembles import KINDS
from tdabench.errors import DataError

ROOT = Path(__file__).parent.parent
EXAMPLE = ROOT / "docs" / "examples" / "my_task.py"
PAGE = (ROOT / "docs" / "new-task.md").read_text(encoding="utf-8")
REFERENCE = "./my_task.py:TASK"

# An ensemble kind that is not here is measured at its defaults.
SMALL = {
    "independent": "independent(models=2)",
    "dropout": "dropout(models=1, masks=2)",
    "lora": "lora(models=1, adapters=2)",
}


# Adapters of a library that another one of it stands for.
ALIKE = {"dattri-grad-dot", "dattri-trak", "kronfluence-identity"}


def result(*words: str, cwd: Path):
    """Return what a command prints as JSON, in a process of its own, as a newcomer calls it."""
    command = [sys.executable, "-m", "tdabench", *words, "--json"]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def with_changes(text: str, *changes: tuple[str, str]) -> str:
    for old, new in changes:
        assert text.count(old) == 1, f"the example has {old!r} {text.count(old)} times"
        text = text.replace(old, new)
    return text


@pytest.fixture(scope="module")
def task() -> tdabench.Task:
    return registry.find_task(f"{EXAMPLE}:TASK")


# --- the file


def test_the_walk_shows_the_whole_example():
    assert EXAMPLE.read_text(encoding="utf-8") in PAGE


def test_the_example_is_about_sixty_lines():
    assert len(EXAMPLE.read_text(encoding="utf-8").splitlines()) <= 60


def test_the_example_is_on_the_public_api_alone():
    text = EXAMPLE.read_text(encoding="utf-8")
    assert set(re.findall(r"^(?:import|from) (tdabench\S*)", text, re.MULTILINE)) == {"tdabench"}
    assert set(re.findall(r"tdabench\.(\w+)", text)) <= set(tdabench.__all__)


def test_the_walk_names_only_what_the_public_api_has():
    code = re.findall(r"`([^`]*)`|```python\n(.*?)```", PAGE, re.DOTALL)
    named = set(re.findall(r"\btdabench\.(\w+)", " ".join(a + b for a, b in code)))
    assert named <= set(tdabench.__all__) | {"tasks"}  # the entry-point group is tdabench.tasks
    assert {"SequenceDropout", "MEAN_LOG_PROBABILITY", "token_cross_entropy", "Target"} <= named


def test_the_example_is_a_task_as_the_protocol_wants_it(task):
    assert task.plan.n_subsets >= 100
    assert task.plan.n_seeds >= 5
    assert task.folder == EXAMPLE.parent
    data = task.data()
    training = {row.numpy().tobytes() for row in data.training.inputs}
    assert not [row for row in data.queries.inputs if row.numpy().tobytes() in training]


# --- the hash of the data


@pytest.mark.parametrize("words", [["tasks", REFERENCE], ["ground-truth", "build", REFERENCE]])
def test_a_task_without_a_hash_is_told_the_whole_of_it(words, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_task.py").write_text(
        re.sub('data_sha256="[0-9a-f]{64}"', 'data_sha256=""', EXAMPLE.read_text(encoding="utf-8")), encoding="utf-8"
    )
    with pytest.raises(SystemExit) as done:
        cli.main(words)
    assert done.value.code == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith("Error: tumours-mlp does not say what its data is.")
    (line,) = re.findall('write (data_sha256="[0-9a-f]{64}") into its definition', err)
    assert line in EXAMPLE.read_text(encoding="utf-8")


def test_a_changed_load_data_is_told_the_whole_hash(task):
    with pytest.raises(DataError, match=rf'load_data was changed on purpose, write data_sha256="{task.data_sha256}"'):
        replace(task, data_sha256="0" * 64).data()


def test_numbers_of_examples_that_the_data_does_not_have_are_refused(task):
    with pytest.raises(DataError, match=r"n_train=400 and n_queries=168; its data has 400 .* and 169 queries\. Write"):
        replace(task, n_queries=168).data()


def test_a_model_may_normalise_batches_of_vectors(task):
    def make_model() -> nn.Module:
        return nn.Sequential(nn.Linear(30, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.1), nn.Linear(8, 2))

    model, sites = replace(task, make_model=make_model).template(task.data().training.inputs[:1])
    assert [site.shape for site in sites] == [(8,)]
    assert not model.training


# --- the walk


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Return a folder outside the repository with a smaller plan of the example, and its ground truth."""
    made = tmp_path_factory.mktemp("walk")
    text = with_changes(
        EXAMPLE.read_text(encoding="utf-8"),
        ("n_subsets=100, n_seeds=5", "n_subsets=12, n_seeds=4"),
        ("epochs=20", "epochs=10"),
    )
    (made / "my_task.py").write_text(text, encoding="utf-8")
    built = result("ground-truth", "build", REFERENCE, "--workers", "2", cwd=made)
    assert built["complete"]
    assert Path(built["folder"]) == made / "ground_truth"
    return made


@pytest.mark.slow
def test_ground_truth_has_a_ceiling_and_is_verified(folder):
    shown = result("ground-truth", "show", REFERENCE, cwd=folder)
    assert shown["noise_ceiling"] > 0.5
    verified = result("ground-truth", "verify", REFERENCE, cwd=folder)
    assert verified["passed"]
    assert len(verified["checks"]) == 3


@pytest.mark.slow(minutes=2)
def test_every_method_and_every_ensemble_runs_on_it_and_stands_on_the_board(folder):
    methods = [name for name in registry.names(registry.METHODS) if name not in ALIKE]
    ensembles = [SMALL.get(kind, kind) for kind in KINDS]
    (folder / "all.toml").write_text(
        'title = "All"\n'
        f"[[run]]\ntasks = [{json.dumps(REFERENCE)}]\nmethods = {json.dumps(methods)}\nensembles = ['']\n"
        f"[[run]]\ntasks = [{json.dumps(REFERENCE)}]\nmethods = ['trak']\nensembles = {json.dumps(ensembles)}\n",
        encoding="utf-8",
    )
    measured = result("suite", "./all.toml", cwd=folder)
    for row in measured:
        assert row["status"] == "ok" or (row["status"] == "declined" and row["reason"]), row
        assert (row["lds"] is None) == (row["status"] == "declined"), row
    assert {row["method"] for row in measured} == set(methods)
    assert {row["ensemble"] for row in measured} == {"none", *KINDS}

    # Another process knows the task of a run by name only, so it is told the file.
    listed = result("board", "runs", "--task", REFERENCE, "--out", "again", cwd=folder)
    assert len(listed) == len(methods) + len(KINDS)
    assert {row["task"] for row in listed} == {"tumours-mlp"}
    assert [row["lds"] for row in listed] == [row["lds"] for row in measured]
    page = (folder / "again" / "index.html").read_text(encoding="utf-8")
    assert "Tumours, dropout MLP" in page
    for name in methods:
        assert name in page
