"""A job's key stands for everything that decides a run, and for nothing else."""

from __future__ import annotations

import re
import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from tdabench import provenance
from tdabench.errors import OptionError, UnknownNameError, UsageError
from tdabench.jobs import Job, plan

METHODS = Path(__file__).parent / "methods_for_runner.py"


@pytest.fixture
def job(small_reference: str) -> Job:
    return Job(small_reference, f"{METHODS}:Good", {"skew": "0.5"}, "independent(models=2)", seed=1)


@pytest.fixture
def key(job: Job) -> str:
    return plan(job).key


@pytest.mark.parametrize(
    "change",
    [
        {"options": {"skew": "0.25"}},
        {"options": {}},
        {"ensemble": None},
        {"ensemble": "independent(models=3)"},
        {"ensemble": "dropout(models=1, masks=2)"},
        {"seed": 2},
        {"method": f"{METHODS}:Slow", "options": {}},
        {"threads": 2},
        {"tune_s": 1.5},
        {"tune_s": None},
    ],
)
def test_key_changes_with_what_decides(job, key, change):
    assert plan(replace(job, **change)).key != key


@pytest.mark.parametrize(
    "change",
    [
        {"options": {"skew": 0.5}},
        {"options": {"skew": "5e-1"}},
        {"ensemble": "independent( models = 2 )"},
        {"data_folder": "/somewhere/else"},
    ],
)
def test_key_does_not_change_with_anything_else(job, key, change):
    assert plan(replace(job, **change)).key == key


def test_key_changes_with_the_task_version(job, key):
    planned = plan(job)
    recipe = replace(planned.task.recipe, epochs=4)
    assert replace(planned, task=replace(planned.task, recipe=recipe)).key != key
    assert replace(planned, task=replace(planned.task, title="Another title")).key == key


def test_key_changes_with_the_method_source_and_not_with_its_folder(job, tmp_path):
    copy = tmp_path / METHODS.name
    copy.write_text(METHODS.read_text())
    same = plan(replace(job, method=f"{copy}:Good"))
    assert same.key == plan(job).key
    copy.write_text(METHODS.read_text() + "\n# changed\n")
    assert plan(replace(job, method=f"{copy}:Good")).key != same.key


def test_key_changes_with_the_versions_of_torch_and_of_the_method_s_library(job, key, monkeypatch):
    found = {"torch": "2.99.0", "kronfluence": "1.0"}
    monkeypatch.setattr(provenance, "versions", lambda *names: {name: found[name] for name in names})
    newer = plan(job)
    assert newer.key != key
    found["kronfluence"] = "1.1"
    assert plan(job).key == newer.key, "it calls no library"
    peer = replace(job, method="kronfluence-ek-fac", options={})
    before = plan(peer).key
    found["kronfluence"] = "1.2"
    assert plan(peer).key != before


def test_models_of_another_version_of_torch_are_not_found(job):
    planned = plan(job)
    other = replace(planned, versions={"torch": "2.99.0"})
    assert other.models_folder != planned.models_folder
    assert other.models_folder.name == "torch-2.99.0"


def test_job_comes_back_from_its_file(job):
    assert Job.from_json(job.to_json()) == job


def test_run_id_is_a_readable_file_name(job):
    assert re.fullmatch(r"small--methods-for-runner.py-Good--independent-models-2--[0-9a-f]{10}", plan(job).run_id), (
        plan(job).run_id
    )
    assert len(plan(replace(job, ensemble="dropout(models=1, masks=1, scope=all, mask=shared)")).run_id) < 140


def test_an_ensemble_has_one_folder_however_it_is_written(job):
    written = ("dropout(models=1, masks=5)", "dropout(masks=5)", "dropout( masks=5,models=1, scope=all)")
    plans = [plan(replace(job, ensemble=text)) for text in written]
    assert {(p.key, p.run_id, p.label, p.command) for p in plans} == {
        (plans[0].key, plans[0].run_id, plans[0].label, plans[0].command)
    }
    assert "dropout(models=1, masks=5)" in plans[2].label


@pytest.mark.parametrize(
    ("options", "tune_s", "options_from"),
    [
        ({}, 0.0, "defaults"),
        ({"skew": "0"}, 0.0, "defaults"),
        ({"skew": "0.5"}, 0.0, "given"),
        ({"skew": "0.5"}, 1.5, "tuned"),
        ({}, None, "tuned"),
    ],
)
def test_a_plan_knows_where_its_options_come_from(job, options, tune_s, options_from):
    assert plan(replace(job, options=options, tune_s=tune_s)).options_from == options_from
    assert plan(replace(job, method="grad-dot", options={})).options_from is None


@pytest.mark.parametrize("tune_s", [0.0, 0.1 + 0.2, None])
@pytest.mark.parametrize("ensemble", [None, "dropout(models=1, masks=3, mask=per-sample)"])
@pytest.mark.parametrize(("method", "options"), [("trak", {}), ("random", {}), (f"{METHODS}:Good", {"skew": "1e-05"})])
def test_replay_command_gives_the_same_job(job, ensemble, method, options, tune_s, monkeypatch):
    from tdabench import cli
    from tdabench.cli import measure

    tune_s = 0.0 if method == "random" else tune_s  # it has nothing to tune
    planned = plan(replace(job, method=method, options=options, ensemble=ensemble, tune_s=tune_s))
    words = shlex.split(planned.command)
    assert words[:2] == ["tdabench", "run"]
    assert str(METHODS.parent) not in planned.command, "a command names no folder of this machine"
    parent = cli.cli.make_context("tdabench", words[1:2])
    given = measure.run.make_context("run", words[2:], parent=parent).params
    monkeypatch.chdir(METHODS.parent)
    settings = measure.parse_settings(given["settings"])
    again = Job(given["task"], given["method"], settings, given["ensemble"], given["seed"])
    charged = 0.0 if given["tune_s"] is None else measure.parse_seconds(given["tune_s"])
    assert plan(replace(again, threads=given["threads"], device=given["device"], tune_s=charged)).key == planned.key


def test_mistakes_are_found_before_anything_runs(job):
    for change, error, message in [
        ({"task": "smal"}, UnknownNameError, "Unknown task"),
        ({"method": "track"}, UnknownNameError, "Did you mean 'trak'"),
        ({"options": {"skw": "1"}}, UnknownNameError, "Did you mean 'skew'"),
        ({"options": {"skew": "2"}}, OptionError, "between 0 and 1"),
        ({"ensemble": "dropuot(masks=2)"}, UnknownNameError, "Did you mean 'dropout'"),
        ({"ensemble": "dropout(masks=0)"}, OptionError, "between 1 and inf"),
        ({"ensemble": "dropout(masks)"}, UsageError, "Write option=value"),
        ({"ensemble": "dropout("}, UsageError, "Write KIND"),
    ]:
        with pytest.raises(error, match=message):
            plan(replace(job, **change))


def test_a_method_on_the_whole_task_cannot_be_wrapped(job: Job):
    whole = replace(job, method=f"{METHODS}:TrainsInside", options={})
    assert plan(replace(whole, ensemble=None)).ensemble is None
    with pytest.raises(UsageError, match=r"no ensemble can wrap it\. Leave out --ensemble"):
        plan(whole)
