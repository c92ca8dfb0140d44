"""MNIST from a folder, and through a real download from a server on this machine."""

from __future__ import annotations

import gc
import gzip
import hashlib
import http.server
import struct
import threading
import warnings
from functools import partial

import numpy as np
import pytest

from tdabench import datasets
from tdabench.errors import DataError

FILES = {
    "train-images-idx3-ubyte": np.arange(6 * 28 * 28, dtype=np.uint32).astype(np.uint8).reshape(6, 28, 28),
    "train-labels-idx1-ubyte": np.arange(6, dtype=np.uint8),
    "t10k-images-idx3-ubyte": np.full((2, 28, 28), 7, dtype=np.uint8),
    "t10k-labels-idx1-ubyte": np.array([1, 2], dtype=np.uint8),
}


def idx(array: np.ndarray) -> bytes:
    """Write an array in MNIST's own format."""
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def server(tmp_path, monkeypatch):
    """Serve the four files on loopback, and let torchvision know their checksums and address."""
    folder = tmp_path / "server"
    folder.mkdir()
    resources = []
    for name, array in FILES.items():
        packed = gzip.compress(idx(array), mtime=0)
        (folder / f"{name}.gz").write_bytes(packed)
        resources.append((f"{name}.gz", hashlib.md5(packed).hexdigest()))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder)) as listening:
        threading.Thread(target=listening.serve_forever, daemon=True).start()
        mnist = datasets.import_torchvision().datasets.MNIST
        monkeypatch.setattr(mnist, "mirrors", [f"http://127.0.0.1:{listening.server_port}/"])
        monkeypatch.setattr(mnist, "resources", resources)
        monkeypatch.delenv("TDABENCH_DATA", raising=False)
        with warnings.catch_warnings():  # torchvision leaves the connection of a refused download to the collector
            warnings.simplefilter("ignore", ResourceWarning)
            yield folder
            gc.collect()
        listening.shutdown()


def test_a_download_lands_in_the_cache_and_is_not_repeated(server, cache):
    train, test = datasets.mnist(None)
    np.testing.assert_array_equal(train.data.numpy(), FILES["train-images-idx3-ubyte"])
    np.testing.assert_array_equal(test.targets.numpy(), FILES["t10k-labels-idx1-ubyte"])
    assert (cache / "data" / "MNIST" / "raw" / "train-images-idx3-ubyte").exists()
    for file in server.iterdir():
        file.unlink()
    again, _ = datasets.mnist(None)
    np.testing.assert_array_equal(again.data.numpy(), FILES["train-images-idx3-ubyte"])


def test_a_damaged_download_is_one_clear_error_and_is_tried_anew(server, cache):
    damaged = server / "train-labels-idx1-ubyte.gz"
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[:-5])
    with pytest.raises(DataError, match=r"could not be downloaded into .* Check the network, or put the files"):
        datasets.mnist(None)
    damaged.write_bytes(whole)
    train, _ = datasets.mnist(None)
    assert train.targets.tolist() == [0, 1, 2, 3, 4, 5]


def test_a_missing_file_on_the_server_is_the_same_error(server, cache):
    (server / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(DataError, match="could not be downloaded"):
        datasets.mnist(None)


def test_a_named_folder_is_read_and_never_written(server, tmp_path, cache):
    empty = tmp_path / "data"
    empty.mkdir()
    with pytest.raises(DataError, match="No readable MNIST in"):
        datasets.mnist(empty)
    assert list(empty.iterdir()) == []
    raw = empty / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name, array in FILES.items():
        (raw / name).write_bytes(idx(array))
    train, _ = datasets.mnist(empty)
    assert len(train.data) == 6


def test_the_variable_names_the_folder_too(monkeypatch, tmp_path):
    monkeypatch.setenv("TDABENCH_DATA", str(tmp_path))
    assert datasets.data_folder(None) == tmp_path
    assert datasets.data_folder(tmp_path / "other") == tmp_path / "other"
