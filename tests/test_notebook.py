"""A task in a process of one's own: the models are those of runs, and scores get the LDS that a run's would."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

import tdabench
from tdabench.errors import MissingGroundTruthError, OptionError, ScoresError, UsageError
from tdabench.ground_truth import MANIFEST_FILE
from tdabench.jobs import Job, plan
from tdabench.records import read_record
from tdabench.results.reading import evaluate_run, evaluator_of
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
    monkeypatch.setattr("tdabench.trained_models.train_replicas", lambda *_, **__: pytest.fail("trained again"))
    task = tdabench.open_task(small_reference, seed=3)
    member = task.member(0)
    scores = -member.gradients(task.queries, of="target").dot(member.gradients(task.training, of="loss"))
    measured = evaluate_run(folder, read_record(folder))
    torch.testing.assert_close(scores, torch.from_numpy(read_run_scores(folder, read_record(folder))))
    for mine in (scores, scores.numpy(), scores.double()):
        found = tdabench.score(mine, small_reference)
        assert (found.lds, found.low, found.high) == pytest.approx((measured.lds, measured.low, measured.high))
    assert tdabench.score(scores.bfloat16(), small_reference).lds == pytest.approx(measured.lds, abs=0.1)


@contextmanager
def disturbed(how):
    """Be in a state of torch that a notebook, or a method, may be in."""
    with {
        "autocast": torch.autocast("cpu", dtype=torch.bfloat16),
        "no_grad": torch.no_grad(),
        "inference_mode": torch.inference_mode(),
    }[how]:
        yield


@pytest.mark.parametrize("how", ["autocast", "no_grad", "inference_mode"])
def test_a_model_is_the_same_whatever_is_switched_on_around_its_training(view, how):
    alone, around = view(store="alone"), view(store="around")
    plain = [alone.train(), *alone.train_run(1, [1, 3]).values(), alone.train_adapter(0, 0, rank=2, epochs=1)[1]]
    with disturbed(how):
        found = [around.train(), *around.train_run(1, [1, 3]).values(), around.train_adapter(0, 0, rank=2, epochs=1)[1]]
    masks = torch.arange(120).expand(2, -1) % 2 == torch.arange(2).unsqueeze(1)
    with disturbed(how):
        found += around.retrain(masks, "bank")
    plain += alone.retrain(masks, "bank")
    for one, other in zip(plain, found, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)
        assert not any(value.is_inference() for value in other.values())


def test_numbers_of_any_type_name_the_same_model_and_text_none(view, small_reference):
    task = view(seed=np.int64(3))
    assert (task.seed, type(task.seed)) == (3, int)
    task.train(np.int64(1))
    task.charge_run(torch.tensor(1), [np.int32(2)])
    assert [*task.meter.models, *task.meter.runs] == ["model-3-1", "model-3-1"]
    for wrong in ("1", -1, 1.5, True, None):
        for ask in (task.train, task.member, lambda n: task.train_run(n, [1]), lambda n: view(seed=n)):
            with pytest.raises(OptionError, match="must be a whole number, at least 0"):
                ask(wrong)
    with pytest.raises(OptionError, match="seed must be a whole number, at least 0 and at most 9007199254740991"):
        tdabench.open_task(small_reference, seed=2**64)


@pytest.mark.parametrize("how", ["autocast", "no_grad", "inference_mode"])
def test_a_task_is_opened_whatever_is_switched_on_around(small_reference, how):
    with disturbed(how):
        task = tdabench.open_task(small_reference)
    assert task.member(0).module()(task.queries.inputs).requires_grad


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"threads": 0}, "threads must be at least 1; got 0"),
        ({"threads": -1}, "threads must be a whole number"),
        ({"device": "tpu"}, "The device is 'cpu' or 'cuda'; got 'tpu'"),
        ({"device": torch.device("cpu")}, "The device is 'cpu' or 'cuda'; got device"),
        ({"device": "cuda"}, "no CUDA device"),
    ],
)
def test_what_a_task_cannot_be_opened_with_is_said(small_reference, monkeypatch, given, said):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UsageError, match=said):
        tdabench.open_task(small_reference, **given)


def test_scores_are_held_against_the_ground_truth_that_there_is(small_truth_folder, small_reference):
    """A notebook lives long, and ground truth may be built anew, or be gone."""
    manifest, away = small_truth_folder / MANIFEST_FILE, small_truth_folder / "away"
    before = evaluator_of(small_reference)
    assert evaluator_of(small_reference) is before
    os.utime(manifest, ns=(1, 1))
    assert evaluator_of(small_reference) is not before
    manifest.rename(away)
    try:
        with pytest.raises(MissingGroundTruthError):
            tdabench.score(np.zeros((40, 120)), small_reference)
    finally:
        away.rename(manifest)


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
