from __future__ import annotations

import time

import pytest
import torch

from tdabench.errors import StorageError
from tdabench.model_store import ModelStore

PARAMETERS = {"0.weight": torch.randn(4, 3), "0.bias": torch.randn(4).double()}


@pytest.fixture
def store(tmp_path):
    return ModelStore(tmp_path / "models", torch.device("cpu"))


def test_what_is_trained_is_what_is_loaded(store):
    trained = store.train("model-0-0", lambda: PARAMETERS)
    loaded, again = store.load("model-0-0")
    assert again == trained
    assert loaded.keys() == PARAMETERS.keys()
    assert all(torch.equal(loaded[k], PARAMETERS[k]) and loaded[k].dtype == PARAMETERS[k].dtype for k in loaded)


def test_seconds_are_those_of_training_and_bytes_those_of_the_file(store):
    def slow():
        time.sleep(0.05)
        return PARAMETERS

    trained = store.train("model-0-0", slow)
    assert 0.05 <= trained.seconds < 5
    assert trained.storage_bytes == (store.folder / "model-0-0.safetensors").stat().st_size
    assert trained.storage_bytes >= 4 * 12 + 8 * 4


def test_processor_seconds_are_kept_beside_the_wall_clock(store):
    def slow():
        end = time.process_time() + 0.03
        while time.process_time() < end:
            pass
        time.sleep(0.05)
        return PARAMETERS

    trained = store.train("model-0-0", slow)
    assert 0.03 <= trained.cpu_seconds <= trained.seconds - 0.04
    assert store.find("model-0-0") == trained


def test_what_is_not_there_is_none(store):
    assert store.load("model-0-0") is None


@pytest.mark.parametrize("damage", [lambda b: b"", lambda b: b[:7], lambda b: b[:-1], lambda b: b"\0" * len(b)])
def test_a_damaged_checkpoint_counts_as_none(store, damage):
    store.train("model-0-0", lambda: PARAMETERS)
    path = store.folder / "model-0-0.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    assert store.load("model-0-0") is None
    assert store.find("model-0-0") is None


def test_other_tensors_than_were_written_are_noticed(store):
    store.train("model-0-0", lambda: PARAMETERS)
    assert store.is_intact("model-0-0")
    path = store.folder / "model-0-0.safetensors"
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    assert store.find("model-0-0") is not None, "its header says nothing is wrong"
    assert not store.is_intact("model-0-0")
    path.write_bytes(b"")
    assert not store.is_intact("model-0-0")
    assert not store.is_intact("model-0-1")


@pytest.mark.parametrize("header", [b"[]", b"{}", b'{"__metadata__": null}', b"\xff", b"[" * 100_000])
def test_whatever_a_header_holds_it_is_read_and_found_damaged(store, header):
    store.folder.mkdir()
    path = store.folder / "model-0-0.safetensors"
    for length in (len(header), 1 << 50):
        path.write_bytes(length.to_bytes(8, "little") + header)
        assert not store.is_intact("model-0-0")
        assert store.find("model-0-0") is None


def test_a_checkpoint_without_its_seconds_counts_as_none(store):
    from safetensors.torch import save_file

    store.folder.mkdir()
    save_file(PARAMETERS, store.folder / "model-0-0.safetensors")
    assert store.load("model-0-0") is None


def test_slices_of_larger_arrays_are_stored_alone(store):
    whole = torch.randn(1000, 4)
    trained = store.train("row", lambda: {"w": whole[3], "t": whole[:4].T})
    assert trained.storage_bytes < 500
    assert torch.equal(store.load("row")[0]["t"], whole[:4].T)


def test_a_failing_training_leaves_nothing(store):
    with pytest.raises(ZeroDivisionError):
        store.train("model-0-0", lambda: 1 / 0)
    assert store.load("model-0-0") is None
    assert list(store.folder.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_a_clear_error_before_the_training(tmp_path):
    (tmp_path / "file").write_text("")
    trained = []
    with pytest.raises(StorageError, match=r"Cannot write .*Choose a folder that you can write to"):
        ModelStore(tmp_path / "file" / "models", torch.device("cpu")).train("m", lambda: trained.append(1))
    assert trained == []
