from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import load, save

from tdabench.errors import FileFormatError, GroundTruthError
from tdabench.files import json_bytes, sha256_arrays, write_arrays, write_json
from tdabench.ground_truth import ARRAYS_FILE, MANIFEST_FILE, read_ground_truth, read_manifest, write_ground_truth

BUILD_AGAIN = "Build it with `tdabench ground-truth build small`."


@pytest.fixture
def copy(small_truth_folder, tmp_path):
    return shutil.copytree(small_truth_folder, tmp_path / "copy")


def flip(path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


def position_of(path, name: str) -> int:
    """Return where the middle byte of an array stands in a safetensors file."""
    content = path.read_bytes()
    header_size = int.from_bytes(content[:8], "little")
    start, stop = json.loads(content[8 : 8 + header_size])[name]["data_offsets"]
    return 8 + header_size + (start + stop) // 2


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


@pytest.mark.parametrize("name", ["masks", "outputs"])
def test_one_changed_bit_is_named(small, copy, name):
    flip(copy / ARRAYS_FILE, position_of(copy / ARRAYS_FILE, name))
    with pytest.raises(GroundTruthError, match=rf"The {name} in .*{ARRAYS_FILE} do not match the manifest") as caught:
        read_ground_truth(small, copy)
    assert str(caught.value).endswith(BUILD_AGAIN)


def test_no_changed_byte_of_the_arrays_goes_unnoticed(small, copy):
    whole = (copy / ARRAYS_FILE).read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    for position in [*range(header), *range(header, len(whole), 97)]:
        flip(copy / ARRAYS_FILE, position)
        with pytest.raises(FileFormatError):
            read_ground_truth(small, copy)
        (copy / ARRAYS_FILE).write_bytes(whole)


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
    with pytest.raises(GroundTruthError, match=r"small has no ground truth in .*nowhere") as caught:
        read_ground_truth(small, tmp_path / "nowhere")
    assert str(caught.value).endswith(BUILD_AGAIN)


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
    with pytest.raises(GroundTruthError, match=message):
        read_ground_truth(other, copy)


def test_a_manifest_that_is_no_json_is_one_clear_error(small, copy):
    (copy / MANIFEST_FILE).write_text("{")
    with pytest.raises(FileFormatError, match=rf"{MANIFEST_FILE} is not a readable ground-truth manifest"):
        read_ground_truth(small, copy)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"n_seeds": "4"}, "n_seeds"),
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
