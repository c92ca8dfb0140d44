"""A task in a process of one's own: the models are those of runs, and scores get the LDS that a run's would."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import tdabench
from tdabench.errors import ScoresError
from tdabench.jobs import Job, plan
from tdabench.records import read_record
from tdabench.results.reading import evaluate_run
from tdabench.runner import run
from tdabench.scores import read_run_scores

EXAMPLE = Path(__file__).parent.parent / "docs" / "examples" / "own_scores.py"


@pytest.fixture(scope="module")
def folder(tmp_path_factory, small_truth_folder, small_reference) -> Path:
    """Return a run of Grad-Dot on the small task, seed 3."""
    assert small_truth_folder.is_dir()
    folder, record = run(plan(Job(small_reference, "grad-dot", {}, seed=3)), tmp_path_factory.mktemp("runs"))
    assert record.status == "ok"
    return folder


def test_models_are_those_that_a_run_has_trained_and_scores_weigh_the_same(folder, small_reference, monkeypatch):
    monkeypatch.setattr("tdabench.view.train_replicas", lambda *_, **__: pytest.fail("trained again"))
    task = tdabench.open_task(small_reference, seed=3)
    member = task.member(0)
    scores = -member.gradients(task.queries, of="target").dot(member.gradients(task.training, of="loss"))
    measured = evaluate_run(folder, read_record(folder))
    torch.testing.assert_close(scores, torch.from_numpy(read_run_scores(folder, read_record(folder))))
    for mine in (scores, scores.numpy(), scores.double()):
        found = tdabench.score(mine, small_reference)
        assert (found.lds, found.low, found.high) == pytest.approx((measured.lds, measured.low, measured.high))
    assert tdabench.score(scores.bfloat16(), small_reference).lds == pytest.approx(measured.lds, abs=0.1)


def test_scores_of_another_shape_are_refused(folder, small_reference):
    with pytest.raises(ScoresError, match=r"\[40, 120\]"):
        tdabench.score(np.zeros((120, 40)), small_reference)


def test_nothing_leads_from_it_to_the_ground_truth(small_truth_folder, small_reference):
    task = tdabench.open_task(small_reference)
    assert str(small_truth_folder) not in repr({name: getattr(task, name) for name in vars(task)})


def test_the_walk_shows_the_whole_example():
    assert EXAMPLE.read_text(encoding="utf-8") in (EXAMPLE.parents[1] / "new-method.md").read_text(encoding="utf-8")


def test_the_example_in_plain_pytorch_has_the_lds_of_the_engine():
    done = subprocess.run([sys.executable, EXAMPLE], capture_output=True, text=True, check=True)
    task = tdabench.open_task("digits-mlp")
    member = task.member(0)
    scores = -member.gradients(task.queries, of="target").dot(member.gradients(task.training, of="loss"))
    said = re.fullmatch(r"LDS (0\.\d{3}), 95 % interval .*, noise ceiling 0\.974\n", done.stdout)
    assert float(said[1]) == pytest.approx(tdabench.score(scores, "digits-mlp").lds, abs=0.002)
