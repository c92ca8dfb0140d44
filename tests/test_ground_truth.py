from __future__ import annotations

import hashlib
import json
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load, save

from tdabench.errors import FileFormatError, GroundTruthError, MissingGroundTruthError
from tdabench.files import json_bytes, sha256_arrays, write_arrays, write_json
from tdabench.ground_truth import (
    ARRAYS_FILE,
    MANIFEST_FILE,
    ground_truth_folder,
    has_ground_truth,
    read_ground_truth,
    read_manifest,
    write_ground_truth,
)

KEEPS_FILES = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
SMALL_TASK = f"{Path(__file__).parent / 'small_task.py'}:TASK"
BUILD_AGAIN = f"Build it with `tdabench ground-truth build {shlex.quote(SMALL_TASK)}`."


@pytest.fixture
def copy(small_truth_folder, tmp_path):
    return shutil.copytree(small_truth_folder, tmp_path / "copy")


def flip(path, position: int, change: int = 1) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= change
    path.write_bytes(content)


def place_of(path, name: str) -> tuple[int, int]:
    """Return where an array starts and stops in a safetensors file."""
    content = path.read_bytes()
    header_size = int.from_bytes(content[:8], "little")
    start, stop = json.loads(content[8 : 8 + header_size])[name]["data_offsets"]
    return 8 + header_size + start, 8 + header_size + stop


def edit_manifest(folder, **changes) -> None:
    """Change fields as a careful forger would: with a hash that matches."""
    path = folder / MANIFEST_FILE
    changed = json.loads(path.read_text()) | changes | {"manifest_sha256": ""}
    write_json(path, changed | {"manifest_sha256": hashlib.sha256(json_bytes(changed)).hexdigest()})


def test_what_is_written_is_what_is_read(small, small_truth_folder, tmp_path):
    rng = np.random.default_rng(0)
    masks, outputs = small.subset_masks().numpy(), rng.normal(size=(8, 4, 40)).astype(np.float32)
    facts = read_manifest(small_truth_folder, "").model_dump()
    written = write_ground_truth(tmp_path / "new", masks, outputs, facts)
    truth = read_ground_truth(small, tmp_path / "new")
    np.testing.assert_array_equal(truth.masks, masks)
    np.testing.assert_array_equal(truth.outputs, outputs)
    np.testing.assert_allclose(truth.mean, outputs.astype(np.float64).mean(1))
    assert truth.masks.dtype == bool
    assert truth.manifest == written
    assert written.subset_spread == pytest.approx(outputs.astype(np.float64).std(0).mean())
    assert sorted([*truth.tuning, *truth.reported]) == list(range(40))


def test_the_task_s_own_folder_is_the_default(small, small_truth_folder):
    assert small_truth_folder == small.folder / "ground_truth"
    np.testing.assert_array_equal(read_ground_truth(small).masks, read_ground_truth(small, small_truth_folder).masks)


def test_equal_builds_give_equal_bytes(small, small_truth_folder, tmp_path):
    truth = read_ground_truth(small, small_truth_folder)
    write_ground_truth(tmp_path / "again", truth.masks, truth.outputs, truth.manifest.model_dump())
    for name in (ARRAYS_FILE, MANIFEST_FILE):
        assert (tmp_path / "again" / name).read_bytes() == (small_truth_folder / name).read_bytes()


def test_nothing_is_half_written(small, small_truth_folder, tmp_path, monkeypatch):
    truth = read_ground_truth(small, small_truth_folder)
    monkeypatch.setattr("tdabench.ground_truth.write_json", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_ground_truth(tmp_path / "new", truth.masks, truth.outputs, truth.manifest.model_dump())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["masks", "outputs", "builders"])
def test_one_changed_bit_is_named(small, copy, name):
    flip(copy / ARRAYS_FILE, sum(place_of(copy / ARRAYS_FILE, name)) // 2)
    with pytest.raises(GroundTruthError, match=rf"The {name} in .*{ARRAYS_FILE} do not match the manifest") as caught:
        read_ground_truth(small, copy)
    assert str(caught.value).endswith(BUILD_AGAIN)


def refuse_changed_byte(task, folder, name: str, position: int, change: int) -> None:
    """Change one byte, see that the error names the file, and change it back."""
    path = folder / name
    whole = path.read_bytes()
    flip(path, position, change)
    try:
        with pytest.raises(FileFormatError) as caught:
            read_ground_truth(task, folder)
    finally:
        path.write_bytes(whole)
    assert str(path) in str(caught.value)
    assert str(caught.value).endswith(BUILD_AGAIN)


def test_no_changed_byte_of_the_header_goes_unnoticed(small, copy):
    header = 8 + int.from_bytes((copy / ARRAYS_FILE).read_bytes()[:8], "little")
    for position in range(header):
        refuse_changed_byte(small, copy, ARRAYS_FILE, position, 1)


@KEEPS_FILES
@given(data=st.data())
def test_no_changed_byte_of_the_arrays_goes_unnoticed(small, copy, data):
    start = 0
    if name := data.draw(st.sampled_from(["masks", "outputs", "builders", None])):
        start, stop = place_of(copy / ARRAYS_FILE, name)
    else:
        stop = (copy / ARRAYS_FILE).stat().st_size
    position, change = data.draw(st.integers(start, stop - 1)), data.draw(st.integers(1, 255))
    refuse_changed_byte(small, copy, ARRAYS_FILE, position, change)


def test_no_changed_byte_of_the_manifest_goes_unnoticed(small, copy):
    for position in range((copy / MANIFEST_FILE).stat().st_size):
        refuse_changed_byte(small, copy, MANIFEST_FILE, position, 1)


@KEEPS_FILES
@given(data=st.data())
def test_no_changed_byte_of_the_manifest_goes_unnoticed_whatever_it_becomes(small, copy, data):
    position = data.draw(st.integers(0, (copy / MANIFEST_FILE).stat().st_size - 1))
    refuse_changed_byte(small, copy, MANIFEST_FILE, position, data.draw(st.integers(1, 255)))


@KEEPS_FILES
@given(data=st.data())
def test_no_changed_digit_of_the_manifest_goes_unnoticed(small, copy, data):
    content = (copy / MANIFEST_FILE).read_bytes()
    position = data.draw(st.sampled_from([i for i, byte in enumerate(content) if chr(byte).isdigit()]))
    other = data.draw(st.sampled_from(sorted(set(b"0123456789") - {content[position]})))
    refuse_changed_byte(small, copy, MANIFEST_FILE, position, content[position] ^ other)


def test_a_manifest_that_was_only_written_otherwise_is_told_from_one_that_says_something_else(small, copy):
    path = copy / MANIFEST_FILE
    path.write_text(path.read_text() + "\n")
    with pytest.raises(GroundTruthError, match=r"holds what was written, in other bytes: another order, .* restore it"):
        read_ground_truth(small, copy)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_a_truncated_file_is_named(small, copy, share):
    whole = (copy / ARRAYS_FILE).read_bytes()
    (copy / ARRAYS_FILE).write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(FileFormatError, match=rf"{ARRAYS_FILE} is not a readable ground-truth file"):
        read_ground_truth(small, copy)


def test_a_missing_file_is_named(small, copy, tmp_path):
    (copy / ARRAYS_FILE).unlink()
    with pytest.raises(FileFormatError, match=rf"There is no ground-truth file at .*{ARRAYS_FILE}"):
        read_ground_truth(small, copy)
    (copy / MANIFEST_FILE).unlink()
    for folder in (tmp_path / "nowhere", copy):
        with pytest.raises(MissingGroundTruthError, match=rf"small has no ground truth in .*{folder.name}") as caught:
            read_ground_truth(small, folder)
        assert str(caught.value).endswith(BUILD_AGAIN)


def test_what_stands_in_the_way_of_a_new_build_is_to_be_replaced(digits, tmp_path):
    own = replace(digits, folder=tmp_path)
    shutil.copytree(digits.folder / "ground_truth", tmp_path / "ground_truth")
    read_ground_truth(own)
    (tmp_path / "ground_truth" / ARRAYS_FILE).write_bytes(b"")
    with pytest.raises(FileFormatError, match=r"Build it with `tdabench ground-truth build digits-mlp --replace`\.$"):
        read_ground_truth(own)
    with pytest.raises(FileFormatError, match=r"Build it with `tdabench ground-truth build digits-mlp`\.$"):
        read_ground_truth(digits, tmp_path / "ground_truth")  # a copy; the original must not go for it
    shutil.rmtree(tmp_path / "ground_truth")
    with pytest.raises(MissingGroundTruthError, match=r"Build it with `tdabench ground-truth build digits-mlp`\.$"):
        read_ground_truth(own)


def test_missing_or_extra_arrays_are_named(small, copy):
    arrays = load((copy / ARRAYS_FILE).read_bytes())
    (copy / ARRAYS_FILE).write_bytes(save({"masks": arrays["masks"]}))
    with pytest.raises(GroundTruthError, match=r"holds \['masks'\], expected \['builders', 'masks', 'outputs'\]"):
        read_ground_truth(small, copy)


def test_numbers_that_are_none_are_refused_although_the_hash_matches(small, copy):
    arrays = load((copy / ARRAYS_FILE).read_bytes())
    arrays["outputs"][4, 3, 0] = np.nan
    file_sha256 = write_arrays(copy / ARRAYS_FILE, arrays)
    edit_manifest(copy, outputs_sha256=sha256_arrays({"outputs": arrays["outputs"]}), arrays_sha256=file_sha256)
    with pytest.raises(GroundTruthError, match="the task and the arrays say nan"):
        read_ground_truth(small, copy)


def test_ground_truth_of_another_version_is_refused(small, copy):
    other = replace(small, recipe=replace(small.recipe, lr=0.1))
    message = f"belongs to small version {small.version}, not to small version {other.version}"
    with pytest.raises(MissingGroundTruthError, match=message):
        read_ground_truth(other, copy)
    assert (has_ground_truth(small), has_ground_truth(other)) == (True, False)


def test_a_manifest_that_is_no_json_is_one_clear_error(small, copy):
    (copy / MANIFEST_FILE).write_text("{")
    with pytest.raises(FileFormatError, match=rf"{MANIFEST_FILE} is not a readable ground-truth manifest"):
        read_ground_truth(small, copy)
    there = replace(small, folder=copy.parent)
    copy.rename(ground_truth_folder(there))
    assert has_ground_truth(there), "which a list of tasks asks: what is wrong with it shows when it is read"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"n_seeds": "4"}, "n_seeds"),
        ({"n_train": 10**400}, "n_train"),
        ({"seeds": [0, -1]}, "seeds.1"),
        ({"fraction": 1e308}, "fraction"),
        ({"fraction": 0.0}, "fraction"),
        ({"rounding_difference": -1.0}, "rounding_difference"),
        ({"note": "more"}, "note"),
    ],
)
def test_a_field_of_the_wrong_kind_is_named(small, copy, change, named):
    edit_manifest(copy, **change)
    with pytest.raises(GroundTruthError, match=f"{MANIFEST_FILE} is not a valid manifest: {named}: "):
        read_ground_truth(small, copy)


def test_a_missing_field_is_named(small, copy):
    manifest = json.loads((copy / MANIFEST_FILE).read_text())
    del manifest["target"]
    (copy / MANIFEST_FILE).write_text(json.dumps(manifest))
    with pytest.raises(GroundTruthError, match="not a valid manifest: target: "):
        read_ground_truth(small, copy)


@pytest.mark.parametrize(
    "change",
    [
        {"masks_sha256": "0" * 64},
        {"outputs_sha256": "0" * 64},
        {"data_sha256": "0" * 64},
        {"target": "margin"},
        {"recipe": {"lr": 0.1}},
        {"n_train": 119},
        {"n_queries": 41},
        {"n_subsets": 9},
        {"n_seeds": 3},
        {"seeds": [0, 1, 2, 4]},
        {"fraction": 0.6},
        {"subset_spread": 1e9},
        {"arrays_sha256": "0" * 64},
        {"builders_sha256": "0" * 64},
        {"task": "smell"},
        {"task_version": "0" * 16},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_manifest_that_contradicts_the_task_or_the_arrays_is_refused(small, copy, change):
    edit_manifest(copy, **change)
    with pytest.raises(GroundTruthError):
        read_ground_truth(small, copy)


# --- which labels are wrong


@pytest.mark.parametrize("n_train", [101, 99, 113, 999, 401])
def test_half_of_an_odd_number_of_examples_is_read_back(small, small_truth_folder, tmp_path, n_train):
    truth, odd = read_ground_truth(small, small_truth_folder), replace(small, n_train=n_train)
    masks, facts = odd.subset_masks().numpy(), {**truth.manifest.model_dump(), "n_train": n_train}
    write_ground_truth(tmp_path / "odd", masks, truth.outputs, facts)
    np.testing.assert_array_equal(read_ground_truth(odd, tmp_path / "odd").masks, masks)
    masks[3, np.flatnonzero(masks[3])[0]] = False
    write_ground_truth(tmp_path / "unequal", masks, truth.outputs, facts)
    half = round(0.5 * n_train)
    with pytest.raises(GroundTruthError, match=f"which is {half} of {n_train} examples; subset 3 has {half - 1}"):
        read_ground_truth(odd, tmp_path / "unequal")


@pytest.fixture
def noisy(small, small_truth_folder, tmp_path):
    """Return ground truth that knows which labels are wrong, and which these are."""
    truth = read_ground_truth(small, small_truth_folder)
    wrong = np.random.default_rng(0).random(small.n_train) < 0.1
    facts = truth.manifest.model_dump()
    write_ground_truth(tmp_path / "noisy", truth.masks, truth.outputs, facts, mislabelled=wrong)
    return tmp_path / "noisy", wrong


def test_wrong_labels_that_are_written_are_read(small, small_truth_folder, noisy):
    folder, wrong = noisy
    truth = read_ground_truth(small, folder)
    np.testing.assert_array_equal(truth.mislabelled, wrong)
    assert truth.mislabelled.dtype == bool
    assert truth.manifest.mislabelled_sha256 is not None
    assert read_ground_truth(small, small_truth_folder).mislabelled is None
    assert read_manifest(small_truth_folder, "").mislabelled_sha256 is None


def test_a_changed_bit_of_the_wrong_labels_is_named(small, noisy):
    path = noisy[0] / ARRAYS_FILE
    flip(path, place_of(path, "mislabelled")[0])
    with pytest.raises(GroundTruthError, match=rf"The mislabelled in .*{ARRAYS_FILE} do not match the manifest"):
        read_ground_truth(small, noisy[0])


def test_wrong_labels_cannot_be_left_out_or_slipped_in(small, copy, noisy):
    with_them, without = (noisy[0] / ARRAYS_FILE, copy / ARRAYS_FILE)
    content = with_them.read_bytes()
    with_them.write_bytes(without.read_bytes())
    with pytest.raises(GroundTruthError, match=r"expected \['builders', 'masks', 'mislabelled', 'outputs'\]"):
        read_ground_truth(small, noisy[0])
    without.write_bytes(content)
    with pytest.raises(GroundTruthError, match=r"holds \['builders', 'masks', 'mislabelled', 'outputs'\], expected"):
        read_ground_truth(small, copy)


# --- which machine made what


def test_the_builder_of_each_replica_is_read_and_must_be_in_the_manifest(small, small_truth_folder, tmp_path):
    truth = read_ground_truth(small, small_truth_folder)
    facts = truth.manifest.model_dump()
    (one,) = facts["built_on"]
    builders = (np.arange(32) % 2).reshape(8, 4)
    write_ground_truth(
        tmp_path / "two", truth.masks, truth.outputs, {**facts, "built_on": [one, one]}, builders=builders
    )
    np.testing.assert_array_equal(read_ground_truth(small, tmp_path / "two").builders, builders)
    write_ground_truth(tmp_path / "one", truth.masks, truth.outputs, facts, builders=builders)
    with pytest.raises(GroundTruthError, match=rf"{MANIFEST_FILE} names 1 builders; the replicas name others"):
        read_ground_truth(small, tmp_path / "one")
