"""Suites: lists of runs from TOML."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tdabench.ensembles import parse_ensemble
from tdabench.errors import FileFormatError, UnknownNameError
from tdabench.registry import METHODS, TASKS, names
from tdabench.suites import find_suite, suite_names

TEXT = """
title = "Two methods"
[[run]]
tasks = ["digits-mlp"]
methods = ["random", "trak"]
ensembles = ["", "independent(models=2)"]
seeds = [0, 1]
[[run]]
tasks = ["mnist-mlp"]
methods = ["trak"]
ensembles = [""]
"""


def write(tmp_path, text):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    return str(path)


def test_every_method_under_every_ensemble_and_seed(tmp_path):
    suite = find_suite(write(tmp_path, TEXT))
    assert (suite.name, suite.title, len(suite.jobs)) == ("mine", "Two methods", 9)
    assert {(j.method, j.ensemble, j.seed) for j in suite.jobs[:8]} == {
        (m, e, s) for m in ("random", "trak") for e in (None, "independent(models=2)") for s in (0, 1)
    }
    assert suite.jobs[8].task == "mnist-mlp"
    assert suite.jobs[8].seed == 0


def test_what_is_left_out_is_known_by_task(tmp_path):
    left_out = '[[left_out]]\ntasks = ["mnist-mlp"]\nwhat = "datamodels"\nreason = "they take long"\n'
    suite = find_suite(write(tmp_path, TEXT + left_out))
    assert suite.left_out_of("mnist-mlp") == (("datamodels", "they take long"),)
    assert suite.left_out_of("digits-mlp") == ()


@pytest.mark.parametrize("name", suite_names())
def test_shipped_suites_name_what_exists_and_no_run_twice(name):
    suite = find_suite(name)
    assert suite.title
    for job in suite.jobs:
        assert job.task in names(TASKS)
        assert job.method in names(METHODS)
        assert job.ensemble is None or parse_ensemble(job.ensemble).size >= 1
    assert len({(j.task, j.method, j.ensemble, j.seed) for j in suite.jobs}) == len(suite.jobs)


def test_unknown_suite():
    with pytest.raises(UnknownNameError, match=r"Unknown suite 'quik'. Did you mean 'quick'\?.*\.toml file\.$"):
        find_suite("quik")
    with pytest.raises(UnknownNameError, match=r"Unknown suite 'gone.toml'"):
        find_suite("gone.toml")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('title = "Two methods"', "", "title: Field required"),
        ("seeds = [0, 1]", "seeds = [-1]", "run.0.seeds.0: "),
        ("seeds = [0, 1]", 'seeds = ["0"]', "run.0.seeds.0: "),
        ("seeds = [0, 1]", "options = {}", "run.0.options: "),
        ('methods = ["trak"]', "methods = []", "run.1.methods: "),
        ('methods = ["trak"]', 'methods = "trak"', "run.1.methods: "),
        ("[[run]]", "[[run", "is not a suite: "),
    ],
)
def test_a_file_that_is_no_suite_says_where(tmp_path, old, new, message):
    path = write(tmp_path, TEXT.replace(old, new, 1))
    with pytest.raises(FileFormatError) as caught:
        find_suite(path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith("quick.toml.")


@given(st.binary(max_size=80))
def test_any_bytes_are_a_suite_or_one_error(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "any.toml"
    path.write_bytes(content)
    with pytest.raises(FileFormatError):
        find_suite(str(path))
