"""Prepared arrays: made once, checked on every use, never in the way."""

from __future__ import annotations

import numpy as np
import pytest

from tdabench.files import sha256_arrays, write_arrays
from tdabench.prepared import prepared

ARRAYS = {"tokens": np.arange(12, dtype=np.uint16).reshape(3, 4), "split": np.array([0, 1, 1], dtype=np.uint8)}
SHA256 = sha256_arrays(ARRAYS)


def never() -> dict[str, np.ndarray]:
    raise AssertionError("the raw files are not needed")


def path_in(cache):
    return cache / "prepared" / f"corpus-{SHA256[:16]}.safetensors"


def test_what_was_made_once_needs_no_raw_files(cache):
    assert prepared("corpus", SHA256, lambda: ARRAYS) is ARRAYS
    assert path_in(cache).exists()
    again = prepared("corpus", SHA256, never)
    assert sha256_arrays(again) == SHA256
    assert again["tokens"].flags.writeable  # torch.from_numpy warns otherwise


@pytest.mark.parametrize("damage", ["truncated", "other values", "empty"])
def test_a_damaged_file_is_made_anew(cache, damage):
    prepared("corpus", SHA256, lambda: ARRAYS)
    path = path_in(cache)
    if damage == "other values":
        write_arrays(path, ARRAYS | {"split": np.zeros(3, dtype=np.uint8)})
    else:
        path.write_bytes(path.read_bytes()[:-3] if damage == "truncated" else b"")
    assert prepared("corpus", SHA256, lambda: ARRAYS) is ARRAYS
    assert sha256_arrays(prepared("corpus", SHA256, never)) == SHA256


def test_arrays_of_another_checksum_are_returned_but_not_kept(cache):
    other = {"tokens": np.zeros(2)}
    assert prepared("corpus", SHA256, lambda: other) is other
    assert not path_in(cache).exists()


def test_a_cache_that_cannot_be_written_does_not_fail_the_load(cache):
    cache.write_text("a file where the folder should be")
    assert prepared("corpus", SHA256, lambda: ARRAYS) is ARRAYS


def test_a_full_disk_does_not_fail_the_load(tiny_disk, monkeypatch):
    monkeypatch.setenv("TDABENCH_CACHE", str(tiny_disk))
    large = {"x": np.zeros(1 << 20, dtype=np.uint8)}
    assert prepared("large", sha256_arrays(large), lambda: large) is large
    assert list((tiny_disk / "prepared").iterdir()) == []
