"""Suites: lists of runs from TOML."""

from __future__ import annotations

import re
from dataclasses import replace
from importlib.metadata import entry_points

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tdabench.cli.measure import note_without_truth
from tdabench.ensembles import KINDS, Dropout, parse_ensemble
from tdabench.errors import FileFormatError, UnknownNameError, UsageError
from tdabench.jobs import plan
from tdabench.method import MemberMethod
from tdabench.registry import METHODS, TASKS, find_method, find_task, names
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


def test_what_is_left_out_of_a_task_in_a_file_is_known_by_the_name_of_the_task(tmp_path, small_reference):
    text = TEXT.replace('"mnist-mlp"', f'"{small_reference}"')
    left_out = f'[[left_out]]\ntasks = ["{small_reference}"]\nwhat = "datamodels"\nreason = "they take long"\n'
    assert find_suite(write(tmp_path, text + left_out)).left_out_of("small") == (("datamodels", "they take long"),)


@pytest.mark.parametrize("name", suite_names())
def test_shipped_suites_name_what_exists_and_no_run_twice(name):
    suite = find_suite(name)
    assert suite.title
    for job in suite.jobs:
        assert job.task in names(TASKS)
        assert job.method in names(METHODS)
        assert job.ensemble is None or parse_ensemble(job.ensemble).size >= 1
    assert len({(j.task, j.method, j.ensemble, j.seed) for j in suite.jobs}) == len(suite.jobs)


def pairs_of(suite, task):
    return {(job.method, job.ensemble or "") for job in suite.jobs if job.task == task}


def left_out_by(what):
    """Read ``METHODS`` or ``METHODS under ENSEMBLES``, where an ensemble may be a kind; return a test of pairs."""
    words = re.compile(r"[a-z][\w-]*(?:\([^)]*\))?")
    methods, _, ensembles = (words.findall(part) for part in what.partition(" under "))

    def covers(method, ensemble):
        if method not in methods or bool(ensemble) != bool(ensembles):
            return False
        return not ensemble or bool({"any", ensemble, ensemble.partition("(")[0]} & {*ensembles})

    return covers


def left_out(suite, task):
    return [left_out_by(what) for what, _ in suite.left_out_of(task)]


OWN_METHODS = {point.name for point in entry_points(group=METHODS) if ".peers." not in point.value}
CPU_TASKS = [name for name in names(TASKS) if not find_task(name).needs_cuda]
GPU_TASKS = [name for name in names(TASKS) if find_task(name).needs_cuda]
LARGEST_SUITES = [*(("standard", task) for task in CPU_TASKS), *(("reference", task) for task in GPU_TASKS)]


@pytest.mark.parametrize("task", CPU_TASKS)
@pytest.mark.parametrize("name", ["standard", "tasks"])
def test_what_runs_on_the_lightest_task_runs_everywhere_or_is_left_out_with_a_reason(name, task):
    suite = find_suite(name)
    missing = pairs_of(suite, "digits-mlp") - pairs_of(suite, task)
    entries = left_out(suite, task)
    assert sorted(pair for pair in missing if not any(covers(*pair) for covers in entries)) == []


@pytest.mark.parametrize(("name", "task"), LARGEST_SUITES)
def test_every_method_is_run_alone_and_under_every_kind_of_ensemble_or_left_out_with_a_reason(name, task):
    """Which the lightest task's runs do not say: what is missing there, too."""
    suite = find_suite(name)
    run = {(method, ensemble.partition("(")[0]) for method, ensemble in pairs_of(suite, task)}
    wrapped = [method for method in OWN_METHODS if issubclass(find_method(method), MemberMethod)]
    missing = {(method, kind) for method in wrapped for kind in KINDS} - run
    alone = OWN_METHODS - {"tracin"}  # which is Grad-Dot on one checkpoint
    missing |= {(method, "") for method in alone - {method for method, _ in run}}
    assert sorted(pair for pair in missing if not any(covers(*pair) for covers in left_out(suite, task))) == []


@pytest.mark.parametrize("task", CPU_TASKS)
@pytest.mark.parametrize("models", [1, 5])
@pytest.mark.parametrize("variant", ["", "mask=per-sample", "scope=q-only", "mask=per-sample, scope=q-only"])
def test_every_variant_of_dropout_is_run_on_one_model_and_on_several_or_left_out_with_a_reason(task, models, variant):
    def is_it(ensemble):
        found = parse_ensemble(ensemble)
        return type(found) is Dropout and replace(found, masks=1) == parse_ensemble(
            f"dropout({', '.join(filter(None, (f'models={models}', 'masks=1', variant)))})"
        )

    suite = find_suite("standard")
    run = [ensemble for method, ensemble in pairs_of(suite, task) if method == "trak" and ensemble]
    texts = {text for what, _ in suite.left_out_of(task) for text in re.findall(r"dropout\([^)]*\)", what)}
    named = [text for text in texts if any(covers("trak", text) for covers in left_out(suite, task))]
    assert any(map(is_it, run + named)) or any(covers("trak", "dropout") for covers in left_out(suite, task))


@pytest.mark.parametrize(("name", "task"), [*LARGEST_SUITES, *(("tasks", task) for task in CPU_TASKS)])
def test_nothing_is_said_to_be_left_out_that_runs(name, task):
    suite = find_suite(name)
    assert [pair for pair in pairs_of(suite, task) if any(covers(*pair) for covers in left_out(suite, task))] == []


@pytest.mark.parametrize("name", ["standard", "tasks"])
def test_suites_of_every_method_and_kind_of_ensemble_have_them(name):
    suite = find_suite(name)
    assert {job.task for job in suite.jobs} == {*CPU_TASKS}
    assert {method for method, _ in pairs_of(suite, "digits-mlp")} == OWN_METHODS
    for task in CPU_TASKS:
        kinds = {ensemble.partition("(")[0] for method, ensemble in pairs_of(suite, task)}
        assert name != "tasks" or {"", *KINDS} <= kinds


@pytest.mark.parametrize(("task", "n_seeds"), [("digits-mlp", 5), ("etudes-music-transformer", 3), ("mnist-mlp", 3)])
def test_the_luck_of_a_model_is_measured_where_ensembles_are_compared(task, n_seeds):
    suite = find_suite("standard")
    seeds = {}
    for job in (job for job in suite.jobs if job.task == task):
        if job.method == "trak" or (job.method in ("grad-dot", "logra") and not job.ensemble):
            seeds.setdefault((job.method, job.ensemble), []).append(job.seed)
    assert len(seeds) == 35
    assert {tuple(s) for s in seeds.values()} == {tuple(range(n_seeds))}


def test_tasks_without_ground_truth_are_named_before_a_suite_starts(small, small_truth_folder, tmp_path, capsys):
    changed = replace(small, recipe=replace(small.recipe, lr=0.1))
    for task in (replace(small, name="unbuilt", folder=tmp_path), changed):
        note_without_truth([small, task])
        start, _, said = capsys.readouterr().err.partition(": ")
        assert start == f"{task.name} has no ground truth of this version"
        assert said == "its runs will have costs, and no LDS until it has.\n"


def test_unknown_suite():
    with pytest.raises(UnknownNameError, match=r"Unknown suite 'quik'. Did you mean 'quick'\?.*\.toml file\.$"):
        find_suite("quik")
    with pytest.raises(UsageError, match=r"There is no file gone\.toml\. A suite is named so, or by one of: .*quick"):
        find_suite("gone.toml")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('title = "Two methods"', "", "title: Field required"),
        ('title = "Two methods"', 'title = "Two methods"\ntimeout_s = 0', "timeout_s: "),
        ('title = "Two methods"', 'title = "Two methods"\ntimeout_s = inf', "timeout_s: "),
        ("seeds = [0, 1]", "seeds = [-1]", "run.0.seeds.0: "),
        ("seeds = [0, 1]", 'seeds = ["0"]', "run.0.seeds.0: "),
        ("seeds = [0, 1]", "seeds = [9007199254740992]", "run.0.seeds.0: "),
        ("seeds = [0, 1]", "options = {ridge = [1.0]}", "run.0.options.ridge."),
        ("seeds = [0, 1]", "seeds_by_task = {digits-mlp = [9007199254740992]}", "run.0.seeds_by_task.digits-mlp.0: "),
        ("seeds = [0, 1]", "seeds_by_task = {digits-mlp = []}", "run.0.seeds_by_task.digits-mlp: "),
        ("seeds = [0, 1]", "seeds_by_task = {mnist-mlp = [1]}", "run.0: Value error, seeds_by_task names mnist-mlp, "),
        ("seeds = [0, 1]", "option = {}", "run.0.option: "),
        ('methods = ["trak"]', "methods = []", "run.1.methods: "),
        ('methods = ["trak"]', 'methods = "trak"', "run.1.methods: "),
        (
            'ensembles = [""]\n',
            'ensembles = [""]\n[[left_out]]\ntasks = ["mnist-lr"]\nwhat = "all"\nreason = "none"\n',
            "left_out names mnist-lr, which is in no [[run]]",
        ),
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


def test_a_suite_that_an_editor_has_marked_as_utf8_is_one(tmp_path):
    (tmp_path / "mine.toml").write_text("\ufeff" + TEXT, encoding="utf-8")
    assert find_suite(str(tmp_path / "mine.toml")).title


def test_a_task_in_a_file_is_named_by_itself_or_by_its_file_from_here(tmp_path, small_reference, monkeypatch):
    file, name = small_reference.rsplit(":", 1)
    (tmp_path / "suites").mkdir()
    (tmp_path / "suites" / "small_task.py").symlink_to(file)
    (tmp_path / "suites" / "mine.toml").write_text(
        f'title = "Mine"\n[[run]]\ntasks = ["./small_task.py:{name}", "digits-mlp"]\nmethods = ["random"]\n'
        'ensembles = [""]\n'
    )
    monkeypatch.chdir(tmp_path / "suites")
    suite = find_suite("mine.toml")
    for typed in ("small", f"small_task.py:{name}", f"../suites/small_task.py:{name}", small_reference):
        assert [job.task for job in suite.only([typed]).jobs] == [f"./small_task.py:{name}"], typed
    with pytest.raises(UnknownNameError, match="task of the suite mine"):
        suite.only([f"other.py:{name}"])


def test_a_block_may_give_its_methods_options(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text(
        'title = "Mine"\n[[run]]\ntasks = ["digits-mlp"]\nmethods = ["trak"]\nensembles = [""]\n'
        "options = {projection = 64, ridge = 1}\n"
        '[[run]]\ntasks = ["digits-mlp"]\nmethods = ["trak"]\nensembles = [""]\n'
    )
    first, second = find_suite(str(file)).jobs
    assert (first.options, second.options) == ({"projection": 64, "ridge": 1}, {})
    assert plan(first).options == {"projection": 64, "ridge": 1.0}


def test_files_that_lie_beside_a_suite_are_found_from_any_folder(tmp_path, monkeypatch):
    beside = tmp_path / "suites"
    beside.mkdir()
    (beside / "mine.py").write_text("")
    (beside / "mine.toml").write_text(
        'title = "Mine"\n[[run]]\ntasks = ["digits-mlp"]\nmethods = ["./mine.py:Mine", "./gone.py:Gone"]\n'
        'ensembles = [""]\n'
    )
    monkeypatch.chdir(tmp_path)
    there, gone = find_suite("suites/mine.toml").jobs
    assert (there.method, gone.method) == ("suites/mine.py:Mine", "./gone.py:Gone")
    monkeypatch.chdir(beside)
    assert find_suite("mine.toml").jobs[0].method == "./mine.py:Mine"
