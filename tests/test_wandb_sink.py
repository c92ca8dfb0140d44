from __future__ import annotations

import pytest
from board.conftest import make_evaluation, make_record

from tdabench.board import Run
from tdabench.errors import UsageError
from tdabench.wandb_sink import send, summary


def test_offline_runs_are_written_without_a_network(tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="install the wandb extra: pip install 'tdabench[wandb]'")
    monkeypatch.setenv("WANDB_SILENT", "true")
    runs = [Run(make_record(), make_evaluation(0.4)), Run(make_record(status="failed"), None)]
    assert send(runs, "test", tmp_path) == 2
    assert len(list((tmp_path / "wandb").glob("offline-run-*/*.wandb"))) == 2


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
