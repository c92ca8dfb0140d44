"""Scores are read from run folders and bare files, and whatever is wrong with them is said."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tdabench.errors import FileFormatError, ScoresError
from tdabench.files import sha256_file, write_arrays
from tdabench.records import parse_record
from tdabench.scores import read_run_scores, read_scores

GOLDEN = Path(__file__).parent / "golden" / "record.json"
SCORES = np.arange(12, dtype=np.float32).reshape(3, 4)


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    sha256 = write_arrays(folder / "scores.safetensors", {"scores": SCORES})
    (folder / "record.json").write_text(GOLDEN.read_text().replace('"cc"', f'"{sha256}"'))
    return folder


def test_a_run_folder_and_its_record_file(run_folder):
    np.testing.assert_array_equal(read_scores(run_folder), SCORES)
    np.testing.assert_array_equal(read_scores(run_folder / "record.json"), SCORES)


def test_scores_changed_after_the_run(run_folder):
    write_arrays(run_folder / "scores.safetensors", {"scores": SCORES + 1})
    with pytest.raises(FileFormatError, match=r"record was written for. Remove .*run, and run the method again\.$"):
        read_scores(run_folder)


def test_scores_missing_or_never_made(run_folder):
    record = parse_record((run_folder / "record.json").read_text(), run_folder)
    failed = record.model_copy(update={"scores": None, "status": "failed", "reason": "it broke"})
    with pytest.raises(FileFormatError, match=r"has no scores: it ended as failed \(it broke\)"):
        read_run_scores(run_folder, failed)
    (run_folder / "scores.safetensors").unlink()
    with pytest.raises(FileFormatError, match=r"There is no file of scores.* Remove .*, and run the method again\.$"):
        read_scores(run_folder)


def test_safetensors_with_one_array_or_one_called_scores(tmp_path):
    path = tmp_path / "scores.safetensors"
    write_arrays(path, {"anything": SCORES})
    np.testing.assert_array_equal(read_scores(path), SCORES)
    write_arrays(path, {"scores": SCORES, "other": SCORES[0]})
    np.testing.assert_array_equal(read_scores(path), SCORES)
    write_arrays(path, {"a": SCORES, "b": SCORES})
    with pytest.raises(FileFormatError, match=r"holds \['a', 'b'\]; expected one array called scores"):
        read_scores(path)


def test_npy(tmp_path):
    np.save(tmp_path / "scores.npy", SCORES)
    np.testing.assert_array_equal(read_scores(tmp_path / "scores.npy"), SCORES)


def test_pickles_are_never_loaded(tmp_path):
    path = tmp_path / "scores.npy"
    np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(FileFormatError, match=r"not a readable .npy file .*allow_pickle.*numpy.save\."):
        read_scores(path)
    path.write_bytes(pickle.dumps(SCORES))
    with pytest.raises(FileFormatError, match=r"not a readable .npy file"):
        read_scores(path)


def test_an_archive_called_npy(tmp_path):
    np.savez(tmp_path / "scores.npz", SCORES)
    (tmp_path / "scores.npz").rename(tmp_path / "scores.npy")
    with pytest.raises(ScoresError, match="does not hold one array"):
        read_scores(tmp_path / "scores.npy")


@pytest.mark.parametrize("shape", ["(9**9**2,", "(99999999999, 9)", "(-3, 4)", "(9" * 30, f"({10**30}, 4)"])
def test_an_npy_header_that_promises_what_the_file_does_not_hold(tmp_path, shape):
    path = tmp_path / "scores.npy"
    np.save(path, SCORES)
    content = path.read_bytes().replace(b"(3, 4), }" + b" " * (len(shape) - 6), shape.encode() + b", }")
    path.write_bytes(content)
    with pytest.raises(FileFormatError, match=r"not a readable .npy file.*numpy.save\.$"):
        read_scores(path)


def test_bfloat16_says_to_convert(tmp_path):
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file

    save_file({"scores": torch.zeros(3, 4, dtype=torch.bfloat16)}, tmp_path / "scores.safetensors")
    with pytest.raises(FileFormatError, match=r"BF16.*scores\.float\(\)"):
        read_scores(tmp_path / "scores.safetensors")


@pytest.mark.parametrize("name", ["gone.npy", "gone.safetensors"])
def test_files_that_are_not_there(tmp_path, name):
    with pytest.raises(FileFormatError, match=rf"There is no file of scores at .*{name}"):
        read_scores(tmp_path / name)


def test_other_kinds_of_files(tmp_path):
    (tmp_path / "scores.csv").write_text("1,2")
    with pytest.raises(FileFormatError, match=r"neither a run folder nor a .safetensors or .npy file"):
        read_scores(tmp_path / "scores.csv")


@settings(max_examples=200)
@given(st.sampled_from(["npy", "safetensors"]), st.data())
def test_damaged_files_are_scores_or_one_error(tmp_path_factory, suffix, data):
    path = tmp_path_factory.getbasetemp() / f"damaged-scores.{suffix}"
    if suffix == "npy":
        np.save(path, SCORES)
    else:
        write_arrays(path, {"scores": SCORES})
    content = bytearray(path.read_bytes())
    content = content[: data.draw(st.integers(0, len(content)), "length")]
    for _ in range(data.draw(st.integers(0, 3), "changes")):
        if content:
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    try:
        found = read_scores(path)
    except FileFormatError as error:
        found = str(error)
    assert isinstance(found, np.ndarray) or str(path) in found


def test_hash_in_the_record_is_of_the_file(run_folder):
    record = parse_record((run_folder / "record.json").read_text(), run_folder)
    assert record.scores is not None
    assert record.scores.sha256 == sha256_file(run_folder / "scores.safetensors")
