from __future__ import annotations

import json
import shlex
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from safetensors.numpy import load, save_file

from tdabench import provenance
from tdabench.errors import FileFormatError, UsageError
from tdabench.slices import (
    LOCK,
    Slice,
    builder_facts,
    check_complete,
    holds_only_slices,
    plan_slices,
    read_slices,
    remove_slices,
    write_slice,
)

M, S, Q = 8, 4, 40
OUTPUTS = np.random.default_rng(0).normal(size=(M, S, Q)).astype(np.float32)


def facts_of(task, **changes) -> dict[str, object]:
    began = {"replicas_per_group": 8, "seconds_by_group": {"1": 0.2, "8": 0.1}}
    return {**builder_facts(task, torch.device("cpu")), **began, **changes}


@pytest.fixture
def write(small):
    """Return a function that writes a slice of ``OUTPUTS``, two seconds for each replica, and returns its path."""

    def write(folder, seed, subsets, outputs=OUTPUTS, **facts):
        part = Slice(seed, tuple(subsets))
        rows = outputs[list(subsets), min(seed, S - 1)]
        write_slice(small, part, rows, 2.0 * len(subsets), facts_of(small, **facts), folder)
        return folder / part.file_name

    return write


@given(arrays(bool, array_shapes(min_dims=2, max_dims=2, max_side=30)), st.integers(1, 12))
def test_every_missing_replica_is_planned_once_in_groups_of_the_size(missing, size):
    slices = plan_slices(missing, size)
    planned = [(m, part.seed) for part in slices for m in part.subsets]
    assert sorted(planned) == sorted(map(tuple, np.argwhere(missing).tolist()))
    assert all(1 <= len(part.subsets) <= size for part in slices)
    assert all(list(part.subsets) == sorted(part.subsets) for part in slices)
    fewest = sum(-(-int(n) // size) for n in missing.sum(axis=0))
    assert len(slices) == fewest, "groups are as full as they can be"
    assert len({part.file_name for part in slices}) == len(slices)


@given(arrays(bool, (10, 3)), arrays(bool, (10, 3)), st.integers(1, 5), st.integers(1, 5))
def test_slices_of_a_later_plan_never_overwrite_earlier_ones(missing, done, size, later):
    first = plan_slices(missing, size)
    kept = [part for i, part in enumerate(first) if done.flat[i % done.size]]
    left = np.ones_like(missing)
    for part in kept:
        left[list(part.subsets), part.seed] = False
    assert not {part.file_name for part in kept} & {part.file_name for part in plan_slices(left, later)}


def test_what_is_written_is_what_is_read(small, write, tmp_path):
    for seed in range(S):
        write(tmp_path, seed, [5, 0, 3])
        write(tmp_path, seed, [1, 2, 4, 6, 7])
    found = read_slices(small, [tmp_path])
    np.testing.assert_array_equal(found.outputs, OUTPUTS)
    assert found.outputs.dtype == np.float32
    assert (found.n_done, found.missing.any(), found.builders.max()) == (32, False, 0)
    (builder,) = found.built_on
    assert (builder.n_replicas, builder.seconds_per_replica) == (32, 2.0)
    expected = facts_of(small)
    assert builder.model_dump(include=expected.keys()) == expected
    assert found.seconds_per_replica == 2.0
    check_complete(small, found, [tmp_path])


def test_no_slices_are_nothing_done(small, tmp_path):
    found = read_slices(small, [tmp_path, tmp_path / "nowhere"])
    assert (found.n_done, found.built_on, found.seconds_per_replica) == (0, [], 0)
    assert found.missing.all()


def test_a_file_that_was_not_finished_is_no_slice(small, write, tmp_path):
    path = write(tmp_path, 0, [0])
    path.rename(tmp_path / f".{path.name}.x1y2")
    assert read_slices(small, [tmp_path]).n_done == 0


def test_where_two_folders_have_a_replica_the_first_one_counts_and_counts_once(small, write, tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    write(a, 1, range(5))
    write(b, 1, range(3, 8), outputs=OUTPUTS + 1)
    found = read_slices(small, [a, b])
    np.testing.assert_array_equal(found.outputs[:5, 1], OUTPUTS[:5, 1])
    np.testing.assert_array_equal(found.outputs[5:, 1], OUTPUTS[5:, 1] + 1)
    (builder,) = found.built_on
    assert (builder.n_replicas, found.n_done) == (8, 8)
    assert builder.seconds_per_replica == 2.0
    np.testing.assert_array_equal(read_slices(small, [b, a]).outputs[3:5, 1], OUTPUTS[3:5, 1] + 1)


def test_the_replicas_of_two_machines_name_the_machine_that_made_them(small, write, tmp_path, monkeypatch):
    write(tmp_path / "a", 0, range(8))
    write(tmp_path / "a", 1, [0, 1])
    monkeypatch.setattr(provenance, "cpu_name", lambda: "another processor")
    write(tmp_path / "b", 1, range(8))
    write(tmp_path / "b", 2, range(8))
    found = read_slices(small, [tmp_path / "a", tmp_path / "b"])
    assert [b.cpu == "another processor" for b in found.built_on] == [False, True]
    assert [b.n_replicas for b in found.built_on] == [10, 14]
    np.testing.assert_array_equal(found.builders[:, 0], 0)
    np.testing.assert_array_equal(found.builders[:, 1], [0, 0, 1, 1, 1, 1, 1, 1])
    np.testing.assert_array_equal(found.builders[:, 2], 1)
    assert (found.n_done, found.missing[:, 3].all()) == (24, True)


def test_a_machine_all_of_whose_replicas_were_there_before_is_no_builder(small, write, tmp_path, monkeypatch):
    write(tmp_path / "a", 0, range(8))
    monkeypatch.setattr(provenance, "cpu_name", lambda: "another processor")
    write(tmp_path / "b", 0, range(4))
    (builder,) = read_slices(small, [tmp_path / "a", tmp_path / "b"]).built_on
    assert builder.cpu != "another processor"


def test_a_machine_that_was_started_again_is_one_builder(small, write, tmp_path):
    write(tmp_path, 0, range(8), seconds_by_group={"1": 0.2, "8": 0.1})
    write(tmp_path, 1, range(8), seconds_by_group={"1": 0.3, "8": 0.15})
    (builder,) = read_slices(small, [tmp_path]).built_on
    assert builder.n_replicas == 16
    assert builder.seconds_by_group == {"1": 0.2, "8": 0.1}, "the first start's"


@pytest.mark.parametrize(
    "change", [{"replicas_per_group": 4}, {"commit": "0" * 40}, {"packages": {"torch": "9.9"}}, {"device": "a GPU"}]
)
def test_whatever_else_differs_is_another_builder(small, write, tmp_path, change):
    write(tmp_path, 0, range(8))
    write(tmp_path, 1, range(8), **change)
    assert [b.n_replicas for b in read_slices(small, [tmp_path]).built_on] == [8, 8]


# --- slices that do not belong here


def refused(task, path, message: str) -> None:
    with pytest.raises(FileFormatError, match=message) as caught:
        read_slices(task, [path.parent])
    assert str(caught.value).startswith(f"{path} ")
    assert str(caught.value).endswith(f"Remove {path} and start the build again.")


def test_a_slice_of_another_version_is_named(small, write, tmp_path):
    path = write(tmp_path, 0, range(8))
    other = replace(small, revision=2)
    refused(other, path, f"is a slice of version {small.version}, not of small version {other.version}")


@pytest.mark.parametrize(
    "plan",
    [{"n_seeds": 3}, {"n_subsets": 7}, {"fraction": 0.25}],
    ids=["fewer-seeds", "fewer-subsets", "other-fraction"],
)
def test_a_slice_of_another_plan_is_named(small, write, tmp_path, plan):
    path = write(tmp_path, 3, range(8))
    other = replace(small, plan=replace(small.plan, **plan))
    message = "keep 0.5 of the training set; those of small keep 0.25" if "fraction" in plan else "not of the plan of"
    refused(other, path, message)


def test_a_plan_of_more_replicas_takes_the_slices_of_a_smaller_one(small, write, tmp_path):
    write(tmp_path, 0, range(8))
    larger = replace(small, plan=replace(small.plan, n_subsets=9, n_seeds=5))
    assert (read_slices(larger, [tmp_path]).n_done, larger.subset_masks()[:8].equal(small.subset_masks())) == (8, True)


def test_a_slice_that_says_neither_fraction_nor_hash_is_taken_for_the_plan_s(small, write, tmp_path):
    path = write(tmp_path, 0, range(8))
    rewrite(path, metadata={"fraction": None})
    assert read_slices(small, [tmp_path]).n_done == 8


def rewrite(path, metadata=None, **changes) -> None:
    """Write a slice anew, without its hash, with some of its arrays or metadata changed, or left out where None."""
    content = path.read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    changed_metadata = {**header["__metadata__"], "sha256": None, **(metadata or {})}
    keep = {k: v for k, v in changed_metadata.items() if v is not None}
    changed = {k: v for k, v in {**load(content), **changes}.items() if v is not None}
    save_file({k: np.ascontiguousarray(v) for k, v in changed.items()}, path, keep)


@pytest.mark.parametrize(
    "changes",
    [
        {"outputs": OUTPUTS[:7, 0]},
        {"outputs": OUTPUTS[:, 0, :39]},
        {"outputs": OUTPUTS[:, 0, 0]},
        {"subsets": np.arange(1, 9)},
        {"subsets": np.arange(-1, 7)},
        {"subsets": np.zeros(8, dtype=np.int64)},
        {"subsets": np.zeros(0, dtype=np.int64), "outputs": OUTPUTS[:0, 0]},
        {"seed": np.array([4])},
        {"seed": np.array([-1])},
        {"seed": np.array([0, 1])},
        {"seconds": np.zeros(0)},
    ],
    ids=lambda changes: " ".join(f"{k} {v.shape} {v.flat[:2]}" for k, v in changes.items()),
)
def test_arrays_that_do_not_fit_the_plan_are_named(small, write, tmp_path, changes):
    path = write(tmp_path, 0, range(8))
    rewrite(path, **changes)
    refused(small, path, r"not of the plan of small \(8 subsets, 4 seeds, 40 queries\)")


@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_outputs_that_are_not_finite_are_named(small, write, tmp_path, number):
    path = write(tmp_path, 0, range(8))
    rewrite(path, outputs=np.full((8, 40), number, dtype=np.float32))
    refused(small, path, "holds outputs that are not finite")


@pytest.mark.parametrize("name", ["outputs", "subsets", "seed", "seconds"])
def test_an_array_that_is_missing_is_named(small, write, tmp_path, name):
    path = write(tmp_path, 0, range(8))
    rewrite(path, **{name: None})
    refused(small, path, r"holds \[.*\], expected \['outputs', 'seconds', 'seed', 'subsets'\]")


@pytest.mark.parametrize("text", [None, "{", "[]", "{}", '{"cpu": 3}'])
def test_a_slice_without_its_builder_is_named(small, write, tmp_path, text):
    path = write(tmp_path, 0, range(8))
    rewrite(path, metadata={"builder": text})
    refused(small, path, "does not say which machine made it")


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999])
def test_a_truncated_slice_is_named(small, write, tmp_path, share):
    path = write(tmp_path, 0, range(8))
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    refused(small, path, "is not a readable slice of ground truth")


@pytest.mark.parametrize("from_end", [1, 100, 1000])
def test_a_slice_with_a_changed_bit_is_named(small, write, tmp_path, from_end):
    path = write(tmp_path, 0, range(8))
    content = bytearray(path.read_bytes())
    content[-from_end] ^= 1
    path.write_bytes(content)
    refused(small, path, "does not match its own hash")


# --- completeness


@pytest.mark.parametrize(
    ("left_out", "message"),
    [
        ([(7, 3)], "1 of 32 replicas of small are missing .* first subset 7 under seed 3"),
        ([(1, 2), (6, 1), (0, 3)], "3 of 32 replicas of small are missing .* first subset 6 under seed 1"),
    ],
)
def test_missing_replicas_are_counted_and_the_first_is_named(
    small, small_reference, write, tmp_path, left_out, message
):
    a, b = tmp_path / "a", tmp_path / "b"
    for seed in range(S):
        write(a if seed % 2 else b, seed, [m for m in range(M) if (m, seed) not in left_out])
    with pytest.raises(UsageError, match=message) as caught:
        check_complete(small, read_slices(small, [a, b]), [a, b])
    assert f"in {a}, {b}, first" in str(caught.value)
    assert f"`tdabench ground-truth build {shlex.quote(small_reference)} --slices DIR`" in str(caught.value)


def test_a_copy_of_a_folder_adds_nothing(small, write, tmp_path):
    write(tmp_path / "a", 2, [1, 4])
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    once, twice = read_slices(small, [tmp_path / "a"]), read_slices(small, [tmp_path / "a", tmp_path / "b"])
    assert once.built_on == twice.built_on
    np.testing.assert_array_equal(once.outputs, twice.outputs)


# --- whose a folder is


def test_a_folder_of_slices_is_one_that_holds_nothing_else(small, write, tmp_path):
    folder = tmp_path / "slices"
    assert not holds_only_slices(folder)
    folder.mkdir()
    assert not holds_only_slices(folder), "an empty folder is whoever's made it"
    (folder / ".gitkeep").touch()
    assert holds_only_slices(folder)
    whole = write(folder, 0, [0, 1])
    whole = whole.rename(folder / Slice(12345, (100000, 100001)).file_name)  # of a plan with more digits
    (folder / f".{whole.name}.a1_b2c3d").touch()  # what a killed worker leaves
    (folder / LOCK).touch()
    assert holds_only_slices(folder)
    for name in ("notes.txt", "seed-corpus.safetensors", f"{whole.name}.bak", "more"):
        (folder / name).touch()
        assert not holds_only_slices(folder), name
        (folder / name).unlink()
    assert not holds_only_slices(whole)


def test_slices_are_removed_and_nothing_else(small, write, tmp_path):
    folder = tmp_path / "slices"
    path = write(folder, 0, [0, 1])
    (folder / f".{path.name}.a1_b2c3d").touch()
    (folder / LOCK).touch()
    others = {"notes.txt", "seed-corpus.safetensors", ".gitkeep"}
    for name in others:
        (folder / name).touch()
    remove_slices(folder)
    assert {p.name for p in folder.iterdir()} == others
    for name in others:
        (folder / name).unlink()
    write(folder, 0, [0, 1])
    remove_slices(folder)
    assert not folder.exists()
