"""Nothing is ever half-written, and a bad file is one clear error."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tdabench.errors import FileFormatError, StorageError
from tdabench.files import (
    check_writable,
    new_folder,
    read_arrays,
    read_json,
    sha256_arrays,
    sha256_file,
    write_arrays,
    write_bytes,
    write_json,
    write_text,
)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_file_is_written_whole_readable_by_all_and_alone(tmp_path):
    path = tmp_path / "new" / "folder" / "file.txt"
    write_text(path, "Grüße\n")
    assert path.read_bytes() == "Grüße\n".encode()
    assert path.stat().st_mode & 0o777 == 0o644
    assert names(path.parent) == ["file.txt"]


def test_json_of_equal_values_is_equal_bytes_and_nan_is_refused(tmp_path):
    write_json(tmp_path / "a.json", {"b": 1, "a": [1.5, None]})
    write_json(tmp_path / "b.json", {"a": [1.5, None], "b": 1})
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", {"a": float("nan")})
    assert json.loads((tmp_path / "a.json").read_text()) == {"b": 1, "a": [1.5, None]}


def test_crash_between_writing_and_renaming_leaves_the_old_file(tmp_path):
    path = tmp_path / "file.txt"
    write_text(path, "old")
    crash = """
import os, sys
from pathlib import Path
from tdabench.files import write_text
Path.replace = lambda self, target: os._exit(9)
write_text(Path(sys.argv[1]), "new")
"""
    done = subprocess.run([sys.executable, "-c", crash, str(path)], check=False)
    assert done.returncode == 9
    assert path.read_text() == "old"


def test_error_before_renaming_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "file.txt"
    write_text(path, "old")

    def interrupt(self, target):
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert names(tmp_path) == ["file.txt"]


@pytest.mark.parametrize("code", ["ENOSPC", "EDQUOT", "EFBIG", "EACCES", "EPERM", "EROFS", "ENAMETOOLONG", "ELOOP"])
@pytest.mark.parametrize("call", ["fsync", "mkstemp"])
def test_what_the_disk_refuses_is_one_clear_error_and_leaves_nothing(tmp_path, monkeypatch, code, call):
    path = tmp_path / "file.txt"
    write_text(path, "old")

    def refuse(*args, **kwargs):
        raise OSError(getattr(errno, code), "refused")

    monkeypatch.setattr(os if call == "fsync" else tempfile, call, refuse)
    with pytest.raises(StorageError) as caught:
        write_text(path, "new")
    monkeypatch.undo()
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith((".", "again."))
    assert path.read_text() == "old"
    assert names(tmp_path) == ["file.txt"]


def test_errors_that_are_not_the_disks_pass_through(tmp_path, monkeypatch):
    def broken(*args):
        raise OSError(errno.EIO, "input/output error")

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(OSError, match="input/output") as caught:
        write_text(tmp_path / "file.txt", "new")
    assert not isinstance(caught.value, StorageError)
    assert names(tmp_path) == []


def test_a_file_where_a_folder_is_needed(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="part of the path is a file"):
        write_text(tmp_path / "file" / "below" / "new.txt", "new")


def test_full_disk_keeps_the_old_file(tiny_disk):
    path = tiny_disk / "file.bin"
    write_bytes(path, b"old")
    with pytest.raises(StorageError, match=r"disk is full.*free some space"):
        write_bytes(path, bytes(200_000))
    assert path.read_bytes() == b"old"
    assert names(tiny_disk) == ["file.bin"]


def test_full_disk_leaves_no_new_folder(tiny_disk):
    def write_run():
        with new_folder(tiny_disk / "run") as aside:
            write_text(aside / "small.txt", "fits")
            write_bytes(aside / "large.bin", bytes(200_000))

    with pytest.raises(StorageError, match="disk is full"):
        write_run()
    assert names(tiny_disk) == []


def test_read_only_disk(tmp_path):
    folder = tmp_path / "closed"
    folder.mkdir()
    try:
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(folder)], capture_output=True)
    except FileNotFoundError:
        pytest.skip("there is no mount command")
    if done.returncode != 0:
        pytest.skip("needs the right to mount a tmpfs")
    try:
        with pytest.raises(StorageError, match=r"read-only.*Choose a folder"):
            write_text(folder / "file.txt", "new")
        with pytest.raises(StorageError, match="read-only"), new_folder(folder / "run"):
            pass
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_new_folder_appears_when_the_block_ends(tmp_path):
    target = tmp_path / "deep" / "run"
    with new_folder(target) as aside:
        assert not target.exists()
        write_text(aside / "file.txt", "content")
    assert names(tmp_path / "deep") == ["run"]
    assert (target / "file.txt").read_text() == "content"
    assert target.stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_new_folder_vanishes_on_an_error(tmp_path, error):
    def write_run():
        with new_folder(tmp_path / "run") as aside:
            write_text(aside / "file.txt", "content")
            raise error

    with pytest.raises(error):
        write_run()
    assert names(tmp_path) == []


def test_new_folder_never_replaces_a_folder_with_content(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "file.txt").write_text("first")
    with pytest.raises(StorageError, match="another command wrote it first"), new_folder(tmp_path / "run") as aside:
        write_text(aside / "file.txt", "second")
    assert (tmp_path / "run" / "file.txt").read_text() == "first"
    assert names(tmp_path) == ["run"]


def test_what_a_killed_process_left_is_removed_and_what_is_at_work_is_not(tmp_path):
    abandoned = tmp_path / ".partial-abandoned"
    abandoned.mkdir()
    with new_folder(tmp_path / "first") as at_work:
        for folder in (abandoned, at_work):
            os.utime(folder, (0, 0))
        with new_folder(tmp_path / "second"):
            assert at_work.exists()
            assert not abandoned.exists()
    assert names(tmp_path) == ["first", "second"]


def test_a_folder_made_just_now_is_left_alone(tmp_path):
    (tmp_path / ".partial-fresh").mkdir()
    with new_folder(tmp_path / "run"):
        assert (tmp_path / ".partial-fresh").exists()


def test_a_file_in_the_way_of_a_folder_is_named(tmp_path):
    (tmp_path / "runs").write_text("a file")
    with (
        pytest.raises(StorageError, match=r"in the way|part of the path is a file"),
        new_folder(tmp_path / "runs" / "run"),
    ):
        pass


def test_arrays_come_back_and_their_hash_is_the_files(tmp_path):
    arrays = {"a": np.arange(6, dtype=np.float32).reshape(2, 3).T, "b": np.array([True, False])}
    sha256 = write_arrays(tmp_path / "a.safetensors", arrays)
    assert sha256 == sha256_file(tmp_path / "a.safetensors")
    back = read_arrays(tmp_path / "a.safetensors", "file", "Hint.")
    assert set(back) == {"a", "b"}
    for name, array in arrays.items():
        np.testing.assert_array_equal(back[name], array)
        assert back[name].dtype == array.dtype


def test_hash_of_arrays_depends_on_name_type_shape_and_value_only():
    a = np.arange(6, dtype=np.float32)
    base = sha256_arrays({"a": a})
    assert sha256_arrays({"a": np.asfortranarray(a)}) == base
    others = [{"b": a}, {"a": a.astype(np.float64)}, {"a": a.reshape(2, 3)}, {"a": a + 1}, {"a": a, "b": a}]
    assert len({base, *map(sha256_arrays, others)}) == 6


@pytest.mark.parametrize("read", [read_json, read_arrays])
def test_missing_file_says_what_and_what_to_do(tmp_path, read):
    with pytest.raises(FileFormatError, match=r"There is no thing at .*gone\. Make it\."):
        read(tmp_path / "gone", "thing", "Make it.")


@pytest.mark.parametrize("read", [read_json, read_arrays])
def test_folder_in_place_of_a_file(tmp_path, read):
    with pytest.raises(FileFormatError, match=r"not a readable thing.*Make it\."):
        read(tmp_path, "thing", "Make it.")


@given(st.data())
def test_damaged_arrays_are_one_error_or_arrays(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "damaged.safetensors"
    write_arrays(path, {"a": np.arange(6, dtype=np.float32), "b": np.zeros((2, 2), dtype=np.uint8)})
    content = bytearray(path.read_bytes())
    if data.draw(st.booleans(), "cut"):
        content = content[: data.draw(st.integers(0, len(content) - 1), "length")]
    for _ in range(data.draw(st.integers(0, 4), "flips")):
        if content:
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    check_reads_or_says_what_to_do(read_arrays, path)


@given(st.binary(max_size=64))
def test_any_bytes_are_json_or_one_error(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "any.json"
    path.write_bytes(content)
    check_reads_or_says_what_to_do(read_json, path)


def check_reads_or_says_what_to_do(read, path):
    error = None
    try:
        read(path, "thing", "Make it.")
    except FileFormatError as raised:
        error = raised
    assert error is None or str(error).endswith("Make it.")


@pytest.mark.parametrize("below", ["", "not/there/yet"])
def test_a_folder_that_can_be_written_is_left_as_it_is(tmp_path, below):
    check_writable(tmp_path / below, "Never.")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.ENOSPC])
def test_a_folder_that_cannot_be_written_says_why_and_what_to_do(tmp_path, monkeypatch, number):
    def refuse(**given):
        raise OSError(number, "no")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    why = {errno.EACCES: "permission denied", errno.EROFS: "the disk is read-only", errno.ENOSPC: "the disk is full"}
    with pytest.raises(StorageError) as caught:
        check_writable(tmp_path / "x", "Go elsewhere.")
    assert str(caught.value) == f"Cannot write to {tmp_path / 'x'}: {why[number]}. Nothing was begun. Go elsewhere."
