"""``tdabench seed-variance``: what is stored with a task is what its published runs say."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from tdabench import cli
from tdabench.registry import find_task
from tdabench.results import seed_variance

ROOT = Path(__file__).parent.parent
RUNS = ROOT / "leaderboard" / "elsewhere" / "6d9fcc556c65"
"""Of mnist-lr, no other runs have several seeds."""


@pytest.fixture
def of_one_task(tmp_path):
    folders = sorted(RUNS.glob("mnist-lr--*"))
    assert len(folders) > 40
    for folder in folders:
        shutil.copytree(folder, tmp_path / "runs" / folder.name)
    return tmp_path / "runs"


def test_what_is_stored_with_a_task_is_what_its_published_runs_say(of_one_task, capsys):
    cli.main(["seed-variance", str(of_one_task), "--json"])
    stored = json.loads((find_task("mnist-lr").folder / seed_variance.SEED_VARIANCE_FILE).read_text())
    found = json.loads(capsys.readouterr().out)["mnist-lr"]
    rounded = {name: pytest.approx(value, abs=2e-6) for name, value in stored.items() if isinstance(value, float)}
    assert found == stored | rounded


def test_it_is_stored_when_asked_for_and_shown(of_one_task, capsys, monkeypatch, tmp_path):
    task = find_task("mnist-lr")
    elsewhere = replace(task, folder=tmp_path)
    monkeypatch.setattr("tdabench.registry.find_task", lambda _: elsewhere)
    cli.main(["seed-variance", str(of_one_task), "--write"])
    assert seed_variance.read_seed_variance(elsewhere) == seed_variance.read_seed_variance(task)
    said = capsys.readouterr()
    assert "mnist-lr" in said.out
    assert "0.0024" in said.out
    assert f"Stored: {tmp_path / 'seed_variance.json'}" in said.err


def test_runs_of_one_seed_tell_nothing(of_one_task, capsys):
    for folder in of_one_task.iterdir():
        if json.loads((folder / "record.json").read_text())["seed"] > 0:
            shutil.rmtree(folder)
    with pytest.raises(SystemExit) as done:
        cli.main(["seed-variance", str(of_one_task)])
    assert done.value.code == 2
    assert "No configuration among these runs has several seeds. Run one with" in capsys.readouterr().err
