from __future__ import annotations

import pytest
from board.conftest import make_evaluation, make_record

from tdabench.board import Run
from tdabench.errors import StorageError, UsageError
from tdabench.wandb_sink import send, summary


def test_offline_runs_are_written_without_a_network(tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="install the wandb extra: pip install 'tdabench[wandb]'")
    monkeypatch.setenv("WANDB_SILENT", "true")
    runs = [Run(make_record(), make_evaluation(0.4)), Run(make_record(run_id="other", status="failed"), None)]
    assert send(runs, "test", tmp_path) == 2
    assert len(list((tmp_path / "wandb").glob("offline-run-*/*.wandb"))) == 2


def test_a_run_that_is_sent_again_is_the_same_run_there_and_one_measured_again_is_not(ok_run, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_SILENT", "true")
    wandb, given = pytest.importorskip("wandb"), []
    init = wandb.init

    def noted(**settings):
        given.append((settings["id"], settings["resume"]))
        return init(**settings)

    monkeypatch.setattr(wandb, "init", noted)
    later = Run(replace_record(ok_run.record, created="2027-01-01T00:00:00Z"), ok_run.evaluation)
    for one in (ok_run, ok_run, later):
        send([one], "test", tmp_path)
    ids = [identity for identity, _ in given]
    assert ids[0] == ids[1] != ids[2]
    assert {resume for _, resume in given} == {None}
    assert all(list((tmp_path / "wandb").glob(f"offline-run-*-{identity}")) for identity in ids)


def test_what_was_not_measured_is_left_out():
    failed = summary(Run(make_record(status="failed"), None))
    assert failed == {"status": "failed"}
    ok = summary(Run(make_record(), make_evaluation(0.4)))
    assert ok["lds"] == 0.4
    assert ok["train_s"] == 12.5


def test_a_missing_package_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "wandb", None)
    with pytest.raises(UsageError, match="pip install"):
        send([], "test", tmp_path)


@pytest.fixture
def ok_run() -> Run:
    pytest.importorskip("wandb", reason="install the wandb extra: pip install 'tdabench[wandb]'")
    return Run(make_record(), make_evaluation(0.4))


def test_a_long_name_of_a_method_is_cut_to_a_tag(ok_run, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_SILENT", "true")
    long = Run(replace_record(ok_run.record, method=f"{'a_long_name_' * 8}.py:Mine"), ok_run.evaluation)
    assert send([long], "test", tmp_path) == 1


def replace_record(record, **changes):
    return record.model_copy(update=changes)


@pytest.mark.parametrize("project", ["a/b c", "p" * 129])
def test_what_wandb_refuses_is_one_error_that_counts_what_was_sent(ok_run, tmp_path, project):
    with pytest.raises(UsageError, match=r"^Weights & Biases refuses \S+: .* 0 of 1 runs were sent before it\.$"):
        send([ok_run], project, tmp_path)


def test_settings_that_wandb_itself_refuses_are_the_same_error_after_what_was_sent(ok_run, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_SILENT", "true")
    wandb, calls = pytest.importorskip("wandb"), []
    init = wandb.init

    def once(**given):
        calls.append(given)
        if len(calls) > 1:
            raise ValueError("1 validation error for Settings\n  silent")
        return init(**given)

    monkeypatch.setattr(wandb, "init", once)
    with pytest.raises(UsageError, match=r"1 validation error for Settings silent\. 1 of 2 runs were sent before it"):
        send([ok_run, ok_run], "test", tmp_path)


def test_a_folder_that_cannot_be_written_is_refused_rather_than_another_used(ok_run, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"Cannot write to .*file/below: .* Name another folder with --dir"):
        send([ok_run], "test", tmp_path / "file" / "below")
