"""Where files are written and read: through links, never over devices, and never left out in silence."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from tdabench.datasets.folders import cache_folder
from tdabench.errors import FileFormatError, StorageError, UsageError
from tdabench.files import read_arrays, read_json, write_text
from tdabench.model_store import ModelStore
from tdabench.records import read_record
from tdabench.registry import find_method
from tdabench.results.reading import find_runs
from tdabench.suites import find_suite


def refuse(monkeypatch, what: Path, call: str) -> None:
    """Let the operating system refuse a path, as it does to those who are not the superuser."""
    really = getattr(Path, call)

    def refused(path, *args, **kwargs):
        if path == what:
            raise PermissionError(13, "Permission denied", str(path))
        return really(path, *args, **kwargs)

    monkeypatch.setattr(Path, call, refused)


def test_what_a_link_leads_to_is_written(tmp_path):
    (tmp_path / "real.md").write_text("old")
    (tmp_path / "link.md").symlink_to("real.md")
    (tmp_path / "new.md").symlink_to("made.md")
    for name in ("link.md", "new.md"):
        write_text(tmp_path / name, "new")
        assert (tmp_path / name).is_symlink()
    assert [(tmp_path / name).read_text() for name in ("real.md", "made.md")] == ["new", "new"]


def test_no_device_or_pipe_is_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(StorageError, match=r"pipe: it is a device or a pipe. Give the name of a file"):
        write_text(tmp_path / "pipe", "text")
    assert (tmp_path / "pipe").is_fifo()


def test_a_model_that_cannot_be_read_is_no_missing_one(tmp_path, monkeypatch):
    store = ModelStore(tmp_path, torch.device("cpu"))
    store.train("model-0-0", lambda: {"w": torch.ones(2)})
    refuse(monkeypatch, tmp_path / "model-0-0.safetensors", "open")
    with pytest.raises(StorageError, match=r"Cannot read .*model-0-0.*Permission denied. Make it readable"):
        store.find("model-0-0")


def test_a_model_that_goes_while_it_is_looked_at_is_one_error(tmp_path, monkeypatch):
    store = ModelStore(tmp_path, torch.device("cpu"))
    store.train("model-0-0", lambda: {"w": torch.ones(2)})

    def gone(path, *_):
        raise FileNotFoundError(2, "No such file or directory", str(path))

    monkeypatch.setattr(Path, "open", gone)
    with pytest.raises(StorageError, match=r"Cannot read .*model-0-0.*No such file"):
        store.find("model-0-0")


def test_a_run_that_cannot_be_looked_into_is_not_left_out(tmp_path, monkeypatch):
    for name in ("a", "b"):
        write_text(tmp_path / name / "record.json", "{}")
    (tmp_path / "notes.txt").write_text("beside")
    assert [folder.name for folder in find_runs(tmp_path)] == ["a", "b"]
    refuse(monkeypatch, tmp_path / "b" / "record.json", "exists")
    with pytest.raises(StorageError, match=r"Cannot read .*b: Permission denied"):
        find_runs(tmp_path)


@pytest.mark.parametrize("text", ["[" * 100_000, "[" + "9" * 5000 + "]"])
def test_absurd_json_is_one_error(tmp_path, text):
    (tmp_path / "tuned.json").write_text(text)
    with pytest.raises(FileFormatError, match="is not a readable file of options"):
        read_json(tmp_path / "tuned.json", "file of options", "Remove it.")


@pytest.mark.parametrize("text", ["x = " + "[" * 3000, "seeds = [" + "9" * 5000 + "]"])
def test_an_absurd_suite_is_one_error(tmp_path, text):
    (tmp_path / "own.toml").write_text(text)
    with pytest.raises(FileFormatError, match="is not a suite"):
        find_suite(str(tmp_path / "own.toml"))


def test_what_cannot_be_read_is_not_said_to_be_damaged(tmp_path, monkeypatch):
    """Its owner would remove it, as the advice about damaged files says."""
    file = tmp_path / "file"
    file.write_bytes(b"{}")
    readers = {
        "read_text": (lambda: read_json(file, "file", "Remove it."), lambda: read_record(tmp_path)),
        "read_bytes": (lambda: read_arrays(file, "file", "Remove it."),),
    }
    (tmp_path / "record.json").symlink_to(file)
    for call, reads in readers.items():
        for what in (file, tmp_path / "record.json"):
            refuse(monkeypatch, what, call)
        for read in reads:
            with pytest.raises(StorageError, match=r"Cannot read .*: Permission denied. Make it readable"):
                read()


def test_a_file_below_a_file_is_a_missing_one(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FileFormatError, match="There is no file of options at"):
        read_json(tmp_path / "file" / "options.json", "file of options", "")


def test_who_has_no_home_is_told_what_to_set(monkeypatch):
    monkeypatch.delenv("TDABENCH_CACHE", raising=False)

    def homeless(_):
        raise RuntimeError("could not determine the home directory")

    monkeypatch.setattr("platformdirs.user_cache_dir", homeless)
    with pytest.raises(UsageError, match=r"There is no home folder. Set TDABENCH_CACHE"):
        cache_folder()


def test_a_cache_whose_name_is_not_utf8_is_refused(monkeypatch, tmp_path):
    """Safetensors cannot open a file below it: a model that was just trained would be missing."""
    monkeypatch.setenv("TDABENCH_CACHE", os.fsdecode(bytes(tmp_path) + b"/\xff"))
    with pytest.raises(UsageError, match=r"TDABENCH_CACHE leads to .*udcff, and no trained model can be kept"):
        cache_folder()


def test_what_a_file_prints_on_import_is_not_among_results(tmp_path, capsys):
    path = tmp_path / "printing.py"
    path.write_text("print('hello')\n\n\nclass Printing:\n    pass\n")
    with pytest.raises(UsageError, match="Printing"):
        find_method(f"{path}:Printing")
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", "hello\n")
