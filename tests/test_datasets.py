"""Data sets from a folder, and through real downloads from a server on this machine."""

from __future__ import annotations

import gzip
import hashlib
import http.server
import io
import os
import pickle
import struct
import subprocess
import sys
import tarfile
import threading
import zipfile
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from tdabench import datasets, downloads
from tdabench.datasets import sources
from tdabench.downloads import Source
from tdabench.errors import DataError, StorageError

MNIST_FILES = {
    "train-images-idx3-ubyte": np.arange(6 * 28 * 28, dtype=np.uint32).astype(np.uint8).reshape(6, 28, 28),
    "train-labels-idx1-ubyte": np.arange(6, dtype=np.uint8),
    "t10k-images-idx3-ubyte": np.full((2, 28, 28), 7, dtype=np.uint8),
    "t10k-labels-idx1-ubyte": np.array([1, 2], dtype=np.uint8),
}


def idx(array: np.ndarray) -> bytes:
    """Write an array in MNIST's own format."""
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def files_in(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file() and p.suffix != ".lock")


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        """Say nothing."""


class Server:
    """A folder on loopback, whose files become the published ones."""

    def __init__(self, folder: Path, address: str) -> None:
        self.folder, self.address = folder, address

    def publish(self, file: str, content: bytes) -> Source:
        (self.folder / file).write_bytes(content)
        return Source(file, (self.address + file,), hashlib.sha256(content).hexdigest(), len(content))

    def close(self) -> None:
        """Take everything down: whoever downloads again fails."""
        for file in self.folder.iterdir():
            file.unlink()


@pytest.fixture
def server(tmp_path, monkeypatch):
    """Serve a folder; no folder is named, and nothing waits between attempts."""
    monkeypatch.setattr(downloads, "PAUSE_S", 0.0)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.delenv("TDABENCH_OFFLINE", raising=False)
    monkeypatch.delenv("TDABENCH_DATA", raising=False)
    folder = tmp_path / "server"
    folder.mkdir()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder)) as listening:
        threading.Thread(target=listening.serve_forever, args=(0.01,), daemon=True).start()
        yield Server(folder, f"http://127.0.0.1:{listening.server_port}/")
        listening.shutdown()


@pytest.fixture
def data():
    """Return the folder of the real data sets, if there is one."""
    folder = os.environ.get("TDABENCH_DATA")
    if not folder:
        pytest.skip("set TDABENCH_DATA to a folder that holds the data sets to run this test")
    return Path(folder)


def needs(folder: Path, place: str) -> None:
    if not (folder / place).exists():
        pytest.skip(f"TDABENCH_DATA holds no {place}")


def test_importing_the_data_sets_is_light():
    code = """
import sys, tdabench.datasets, tdabench.prepared
print([m for m in ("torch", "torchvision", "numpy", "urllib.request", "rich") if m in sys.modules])"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_source_has_a_whole_checksum_and_an_encrypted_address():
    for source in (*sources.MNIST, sources.CIFAR10, sources.CIFAR10N, sources.MAESTRO, sources.SHAKESPEARE):
        assert len(bytes.fromhex(source.sha256)) == 32
        assert all(url.startswith("https://") and url.endswith(f"/{source.file}") for url in source.urls)


def test_the_variable_names_the_folder_too(monkeypatch, tmp_path):
    monkeypatch.setenv("TDABENCH_DATA", str(tmp_path))
    assert datasets.data_folder(None) == tmp_path
    assert datasets.data_folder(tmp_path / "other") == tmp_path / "other"


# MNIST


@pytest.fixture
def mnist_server(server, monkeypatch):
    published = [server.publish(f"{name}.gz", gzip.compress(idx(a), mtime=0)) for name, a in MNIST_FILES.items()]
    monkeypatch.setattr(sources, "MNIST", tuple(published))
    return server


def test_a_download_lands_in_the_cache_and_is_not_repeated(mnist_server, cache):
    train, test = datasets.mnist(None)
    np.testing.assert_array_equal(train.data.numpy(), MNIST_FILES["train-images-idx3-ubyte"])
    np.testing.assert_array_equal(test.targets.numpy(), MNIST_FILES["t10k-labels-idx1-ubyte"])
    assert files_in(cache / "data") == sorted(f"MNIST/raw/{name}" for name in MNIST_FILES)
    mnist_server.close()
    again, _ = datasets.mnist(None)
    np.testing.assert_array_equal(again.data.numpy(), MNIST_FILES["train-images-idx3-ubyte"])


def test_a_damaged_download_is_one_clear_error_and_is_tried_anew(mnist_server, cache):
    damaged = mnist_server.folder / "train-labels-idx1-ubyte.gz"
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[:-5] + b"12345")
    with pytest.raises(DataError, match=r"could not be downloaded into .*not the published file.* Check the network"):
        datasets.mnist(None)
    damaged.write_bytes(whole)
    train, _ = datasets.mnist(None)
    assert train.targets.tolist() == [0, 1, 2, 3, 4, 5]


def test_a_missing_file_on_the_server_is_the_same_error(mnist_server, cache):
    (mnist_server.folder / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(DataError, match=r"t10k-labels-idx1-ubyte\.gz could not be downloaded into .*HTTP 404"):
        datasets.mnist(None)


def test_a_damaged_file_in_the_cache_says_what_to_remove(mnist_server, cache):
    datasets.mnist(None)
    raw = cache / "data" / "MNIST" / "raw"
    (raw / "train-labels-idx1-ubyte").write_bytes(b"")
    with pytest.raises(DataError, match=f"No readable MNIST in .* Remove {raw} to have it downloaded again from http"):
        datasets.mnist(None)


@pytest.mark.parametrize("content", [b"", b"no archive"])
def test_what_an_old_torchvision_left_damaged_is_named(mnist_server, tmp_path, content):
    (tmp_path / "MNIST" / "raw").mkdir(parents=True)
    for name, array in MNIST_FILES.items():
        (tmp_path / "MNIST" / "raw" / name).write_bytes(idx(array))
    assert datasets.mnist(tmp_path)[1].targets.tolist() == [1, 2]
    old = tmp_path / "MNIST" / "processed"
    old.mkdir()
    for name in ("training.pt", "test.pt"):
        (old / name).write_bytes(content)
    with pytest.raises(DataError, match=rf"No readable MNIST in .* Remove {old}, which torchvision reads first"):
        datasets.mnist(tmp_path)


def test_a_named_folder_is_read_and_never_written(mnist_server, tmp_path, cache):
    empty = tmp_path / "data"
    empty.mkdir()
    with pytest.raises(DataError, match="No readable MNIST in"):
        datasets.mnist(empty)
    assert list(empty.iterdir()) == []
    raw = empty / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name, array in MNIST_FILES.items():
        (raw / name).write_bytes(idx(array))
    train, _ = datasets.mnist(empty)
    assert len(train.data) == 6
    assert not cache.exists()


# CIFAR-10


def make_batches(folder: Path, per_batch: int = 6) -> None:
    """Write six batches like the published ones, with random images of random classes."""
    random = np.random.default_rng(0)
    folder.mkdir(parents=True)
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        images = random.integers(0, 256, (per_batch, 3072), dtype=np.uint8)
        labels = random.choice([0, 3, 5], per_batch).tolist()
        (folder / name).write_bytes(pickle.dumps({"data": images, "labels": labels}, protocol=2))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}, protocol=2))


@pytest.fixture
def batches(tmp_path, monkeypatch):
    """Return a folder with small batches, whose MD5 torchvision takes for the published ones."""
    folder = tmp_path / "official"
    made = folder / "cifar-10-batches-py"
    make_batches(made)
    md5 = {path.name: hashlib.md5(path.read_bytes()).hexdigest() for path in made.iterdir()}
    official = datasets.import_torchvision().datasets.CIFAR10
    monkeypatch.setattr(official, "train_list", [[f"data_batch_{i}", md5[f"data_batch_{i}"]] for i in range(1, 6)])
    monkeypatch.setattr(official, "test_list", [["test_batch", md5["test_batch"]]])
    monkeypatch.setattr(official, "meta", official.meta | {"md5": md5["batches.meta"]})
    return folder


@pytest.fixture
def packed(batches, tmp_path):
    """Return a folder with the cats and dogs of the same batches as .npz files, made without tdabench."""
    folder = tmp_path / "packed"
    (folder / "cifar10").mkdir(parents=True)
    for split, names in (("train", [f"data_batch_{i}" for i in range(1, 6)]), ("test", ["test_batch"])):
        loaded = [pickle.loads((batches / "cifar-10-batches-py" / name).read_bytes()) for name in names]
        y = np.concatenate([np.array(batch["labels"], dtype=np.uint8) for batch in loaded])
        x = np.concatenate([batch["data"] for batch in loaded]).reshape(-1, 3, 32, 32)
        index = np.flatnonzero((y == 3) | (y == 5)).astype(np.int32)
        np.savez(folder / "cifar10" / f"cat_dog_{split}.npz", x=x[index], y=y[index], index=index)
    return folder


def assert_equal(left: datasets.Cifar10, right: datasets.Cifar10) -> None:
    for name, array in vars(left).items():
        other = getattr(right, name)
        assert (array.dtype, array.flags.c_contiguous) == (other.dtype, other.flags.c_contiguous), name
        np.testing.assert_array_equal(array, other, err_msg=name)


def test_batches_are_read_as_they_were_written(batches):
    whole = datasets.cifar10(batches)
    assert (whole.train_x.shape, whole.test_x.shape) == ((30, 3, 32, 32), (6, 3, 32, 32))
    assert (whole.train_x.dtype, whole.train_y.dtype, whole.train_index.dtype) == (np.uint8, np.uint8, np.int32)
    assert whole.train_index.tolist() == list(range(30))
    second = pickle.loads((batches / "cifar-10-batches-py" / "data_batch_2").read_bytes())
    np.testing.assert_array_equal(whole.train_x[6:12].reshape(6, 3072), second["data"])
    assert whole.train_y[6:12].tolist() == second["labels"]


def test_both_routes_give_the_same_cats_and_dogs(batches, packed):
    official = datasets.cats_and_dogs(batches)
    assert_equal(official, datasets.cats_and_dogs(packed))
    assert set(official.train_y.tolist()) == {3, 5}
    assert (np.diff(official.train_index) > 0).all()
    whole = datasets.cifar10(batches)
    np.testing.assert_array_equal(official.train_x, whole.train_x[official.train_index])
    np.testing.assert_array_equal(official.test_y, whole.test_y[official.test_index])


def test_the_published_archive_is_downloaded_once_and_read_like_a_folder(server, batches, cache, monkeypatch):
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as tar:
        tar.add(batches / "cifar-10-batches-py", "cifar-10-batches-py")
    monkeypatch.setattr(sources, "CIFAR10", server.publish("cifar-10-python.tar.gz", archive.getvalue()))
    assert_equal(datasets.cats_and_dogs(None), datasets.cats_and_dogs(batches))
    root = cache / "data"
    assert [p.name for p in root.iterdir() if p.suffix != ".lock"] == ["cifar-10-batches-py"]
    server.close()
    assert_equal(datasets.cifar10(None), datasets.cifar10(batches))
    (root / "cifar-10-batches-py" / "test_batch").unlink()
    with pytest.raises(DataError, match=f"Remove {root / 'cifar-10-batches-py'} to have it downloaded again from http"):
        datasets.cifar10(None)


class Trap:
    """Creates a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


@pytest.mark.parametrize("name", ["data_batch_1", "data_batch_5", "test_batch", "batches.meta"])
def test_a_tampered_batch_is_refused_before_it_is_unpickled(batches, tmp_path, name):
    marker = tmp_path / "ran"
    tampered = pickle.dumps(Trap(marker))
    pickle.loads(tampered)
    assert marker.exists()
    marker.unlink()
    (batches / "cifar-10-batches-py" / name).write_bytes(tampered)
    with pytest.raises(DataError, match=r"No readable CIFAR-10 in .* with their published MD5"):
        datasets.cats_and_dogs(batches)
    assert not marker.exists()


def test_a_pickle_inside_an_npz_is_refused(packed, tmp_path):
    marker = tmp_path / "ran"
    path = packed / "cifar10" / "cat_dog_test.npz"
    with np.load(path) as arrays:
        y, index = arrays["y"], arrays["index"]
    np.savez(path, x=np.array([Trap(marker)], dtype=object), y=y, index=index)
    with pytest.raises(DataError, match=r"cat_dog_test\.npz is not a readable \.npz file with x, y, index"):
        datasets.cats_and_dogs(packed)
    assert not marker.exists()


def test_a_truncated_npz_is_one_clear_error(packed):
    path = packed / "cifar10" / "cat_dog_train.npz"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"cat_dog_train\.npz is not a readable \.npz file.* Point --data or"):
        datasets.cats_and_dogs(packed)


def test_an_npz_of_another_shape_says_what_was_expected(packed):
    path = packed / "cifar10" / "cat_dog_train.npz"
    np.savez(path, x=np.zeros((4, 28, 28), dtype=np.uint8), y=np.zeros(4, dtype=np.uint8), index=np.arange(4))
    with pytest.raises(DataError, match=r"expected uint8 images x \[n, 3, 32, 32\].* got uint8 \[4, 28, 28\]"):
        datasets.cats_and_dogs(packed)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"y": lambda y: y[:, None], "index": lambda i: i[:, None]}, r"labels y \[n\] and integer positions"),
        ({"index": lambda i: i.astype(float)}, "integer positions"),
        ({"index": lambda i: i + 50_000}, "positions index from 0 to 49,999"),
        ({"y": np.zeros_like}, "labels y of 3 and 5"),
    ],
)
def test_an_npz_of_something_else_says_what_was_expected(packed, change, said):
    path = packed / "cifar10" / "cat_dog_train.npz"
    with np.load(path) as arrays:
        held = dict(arrays)
    np.savez(path, **{name: change.get(name, np.asarray)(array) for name, array in held.items()})
    with pytest.raises(DataError, match=rf"cat_dog_train\.npz does not hold .*{said}.* Point --data or"):
        datasets.cats_and_dogs(packed)


@pytest.mark.parametrize(
    "header", [b"{'descr': '|u1', 'fortran_order': False, 'shape': (4,", b"{'descr: (" + b" " * 40]
)
def test_an_array_whose_header_is_damaged_is_the_same_error(packed, header):
    path = packed / "cifar10" / "cat_dog_test.npz"
    array = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header) + 1) + header + b"\n"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", array)
    with pytest.raises(DataError, match=r"cat_dog_test\.npz is not a readable \.npz file"):
        datasets.cats_and_dogs(packed)


def test_half_of_the_packed_files_is_not_enough(packed):
    (packed / "cifar10" / "cat_dog_test.npz").unlink()
    with pytest.raises(DataError, match=r"There is no .*cat_dog_test\.npz\. Point --data or TDABENCH_DATA"):
        datasets.cats_and_dogs(packed)


def test_a_folder_without_cifar10_names_both_layouts_and_how_to_download(tmp_path):
    with pytest.raises(DataError) as caught:
        datasets.cats_and_dogs(tmp_path)
    assert str(caught.value) == (
        f"No CIFAR-10 in {tmp_path}: expected {tmp_path / 'cifar-10-batches-py' / 'data_batch_1'} and the batches "
        f"beside it, or {tmp_path / 'cifar10' / 'cat_dog_train.npz'} and cat_dog_test.npz. Point --data or "
        "TDABENCH_DATA at the folder that holds cifar-10-batches-py, or unset TDABENCH_DATA and leave --data out to "
        "download it from https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz."
    )
    with pytest.raises(DataError, match="No readable CIFAR-10 in"):
        datasets.cifar10(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.data
def test_the_real_cats_and_dogs_are_complete_and_in_order(data):
    needs(data, "cifar10" if not (data / "cifar-10-batches-py").exists() else "cifar-10-batches-py")
    pets = datasets.cats_and_dogs(data)
    assert (np.diff(pets.train_index[:5000]) > 0).all()
    assert (np.bincount(pets.train_y)[[3, 5]].tolist(), np.bincount(pets.test_y)[[3, 5]].tolist()) == (
        [5000, 5000],
        [1000, 1000],
    )
    assert (len(pets.train_x), len(pets.test_x)) == (10000, 2000)
    assert (np.diff(pets.train_index) > 0).all()
    assert (np.diff(pets.test_index) > 0).all()


@pytest.mark.data
def test_both_real_layouts_give_the_same_cats_and_dogs(data, tmp_path):
    needs(data, "cifar-10-batches-py")
    needs(data, "cifar10/cat_dog_train.npz")
    (tmp_path / "cifar10").symlink_to(data / "cifar10")
    assert_equal(datasets.cats_and_dogs(data), datasets.cats_and_dogs(tmp_path))


# CIFAR-10N


def human_labels() -> dict[str, np.ndarray]:
    random = np.random.default_rng(1)
    names = ("clean_label", "worse_label", "aggre_label", "random_label1", "random_label2", "random_label3")
    return {name: random.integers(0, 10, 50_000) for name in names}


def saved(value: object, module: str = "numpy._core.multiarray") -> bytes:
    """Return what torch.save writes, with NumPy's rebuilding function under the name it had at the time."""
    content, renamed = io.BytesIO(), io.BytesIO()
    torch.save(value, content)
    with zipfile.ZipFile(content) as old, zipfile.ZipFile(renamed, "w", zipfile.ZIP_STORED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name).replace(np.empty(0).__reduce__()[0].__module__.encode(), module.encode()))
    return renamed.getvalue()


@pytest.mark.parametrize("module", ["numpy._core.multiarray", "numpy.core.multiarray"])
def test_the_published_human_labels_are_read_from_folder_and_download(server, tmp_path, cache, monkeypatch, module):
    labels = human_labels()
    source = server.publish("CIFAR-10_human.pt", saved(labels, module))
    monkeypatch.setattr(sources, "CIFAR10N", source)
    downloaded = datasets.cifar10n(None)
    assert files_in(cache / "data") == ["CIFAR-10_human.pt"]
    (tmp_path / "cifar10").mkdir()
    np.savez(tmp_path / "cifar10" / "cifar10n.npz", **{k: v.astype(np.uint8) for k, v in labels.items()})
    for read in (downloaded, datasets.cifar10n(cache / "data"), datasets.cifar10n(tmp_path)):
        assert set(read) == set(labels)
        for name, array in read.items():
            assert array.dtype == np.uint8
            np.testing.assert_array_equal(array, labels[name])


@pytest.mark.parametrize("labels", [np.zeros(10, np.uint8), np.zeros((50_000, 2), np.uint8), np.zeros(50_000)])
def test_human_labels_of_another_shape_or_type_say_what_was_expected(tmp_path, labels):
    (tmp_path / "cifar10").mkdir()
    np.savez(tmp_path / "cifar10" / "cifar10n.npz", **dict.fromkeys(human_labels(), labels))
    with pytest.raises(DataError, match=r"cifar10n\.npz does not hold CIFAR-10N: expected uint8 \[50000\] for"):
        datasets.cifar10n(tmp_path)


def test_human_labels_that_are_a_folder_are_one_clear_error(tmp_path):
    (tmp_path / "CIFAR-10_human.pt").mkdir()
    with pytest.raises(DataError, match=r"CIFAR-10_human\.pt cannot be read \(Is a directory\)\. Point --data"):
        datasets.cifar10n(tmp_path)


def test_other_human_labels_are_refused_before_they_are_loaded(tmp_path, monkeypatch):
    (tmp_path / "CIFAR-10_human.pt").write_bytes(saved(human_labels()))
    monkeypatch.setattr(torch, "load", None)
    with pytest.raises(DataError, match=r"CIFAR-10_human\.pt is not the published file: expected SHA-256 873e69c3"):
        datasets.cifar10n(tmp_path)


def test_human_labels_may_call_nothing_but_numpy(tmp_path, monkeypatch):
    marker = tmp_path / "ran"
    content = saved(human_labels() | {"trap": Trap(marker)})
    (tmp_path / "CIFAR-10_human.pt").write_bytes(content)
    monkeypatch.setattr(sources, "CIFAR10N", Source("CIFAR-10_human.pt", ("",), hashlib.sha256(content).hexdigest()))
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        datasets.cifar10n(tmp_path)
    assert not marker.exists()


def test_a_folder_without_human_labels_names_both_files(tmp_path):
    with pytest.raises(
        DataError, match=r"expected .*cifar10n\.npz or .*CIFAR-10_human\.pt\. Point --data or .* from https"
    ):
        datasets.cifar10n(tmp_path)


@pytest.mark.data
def test_the_real_human_labels_differ_from_the_clean_ones_as_published(data):
    if not (data / "CIFAR-10_human.pt").exists():
        needs(data, "cifar10/cifar10n.npz")
    labels = datasets.cifar10n(data)
    wrong = {name: round(100 * float((array != labels["clean_label"]).mean()), 2) for name, array in labels.items()}
    assert wrong == {
        "clean_label": 0.0,
        "aggre_label": 9.01,
        "worse_label": 40.21,
        "random_label1": 17.23,
        "random_label2": 18.12,
        "random_label3": 17.64,
    }


# MAESTRO


PERFORMANCES = ["2008/a.midi", "2008/b.midi", "2011/c.midi"]
METADATA = "canonical_composer,canonical_title,split,year,midi_filename,duration\n" + "".join(
    f'Frédéric Chopin,"Étude, Op. 10",train,{file[:4]},{file},12.5\n' for file in PERFORMANCES
)


def archive_of(members: dict[str, bytes]) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return content.getvalue()


MAESTRO_MEMBERS = {f"maestro-v3.0.0/{file}": file.encode() for file in PERFORMANCES} | {
    "maestro-v3.0.0/maestro-v3.0.0.csv": METADATA.encode()
}


def test_performances_are_downloaded_once(server, cache, monkeypatch):
    source = server.publish("maestro-v3.0.0-midi.zip", archive_of(MAESTRO_MEMBERS))
    monkeypatch.setattr(sources, "MAESTRO", source)
    paths = datasets.maestro(None, PERFORMANCES[:2])
    assert [path.read_bytes() for path in paths] == [b"2008/a.midi", b"2008/b.midi"]
    assert files_in(cache / "data") == sorted(MAESTRO_MEMBERS)
    server.close()
    assert datasets.maestro(cache / "data", PERFORMANCES[:2]) == paths
    rows = datasets.maestro_metadata(None)
    assert [row["midi_filename"] for row in rows] == PERFORMANCES
    assert (rows[0]["canonical_composer"], rows[0]["canonical_title"]) == ("Frédéric Chopin", "Étude, Op. 10")


def test_missing_performances_are_one_error_with_the_first_and_their_number(tmp_path):
    (tmp_path / "maestro-v3.0.0" / "2008").mkdir(parents=True)
    (tmp_path / "maestro-v3.0.0" / "2008" / "a.midi").write_bytes(b"")
    with pytest.raises(DataError) as caught:
        datasets.maestro(tmp_path, PERFORMANCES)
    assert str(caught.value) == (
        f"2 of 3 performances of MAESTRO are not in {tmp_path / 'maestro-v3.0.0'}, the first: 2008/b.midi. Point "
        "--data or TDABENCH_DATA at the folder that holds maestro-v3.0.0, or unset TDABENCH_DATA and leave --data out "
        f"to download it from {sources.MAESTRO.urls[0]}."
    )


@pytest.mark.parametrize("content", [None, b"", b"a,b\n1,2\n", b"\xff"], ids=["absent", "empty", "other", "binary"])
def test_metadata_that_is_none_is_one_clear_error(tmp_path, content):
    (tmp_path / "maestro-v3.0.0").mkdir()
    if content is not None:
        (tmp_path / "maestro-v3.0.0" / "maestro-v3.0.0.csv").write_bytes(content)
    with pytest.raises(DataError, match=r"maestro-v3\.0\.0\.csv .* Point --data or TDABENCH_DATA"):
        datasets.maestro_metadata(tmp_path)


@pytest.mark.parametrize("member", ["../outside", "/tmp/tdabench-outside", "maestro-v3.0.0/../../outside"])
def test_a_zip_that_would_write_elsewhere_is_refused(server, cache, monkeypatch, member):
    content = archive_of(MAESTRO_MEMBERS | {member: b"x"})
    monkeypatch.setattr(sources, "MAESTRO", server.publish("maestro-v3.0.0-midi.zip", content))
    with pytest.raises(DataError, match=r"cannot be extracted \(its member .* would be written outside the folder\)"):
        datasets.maestro(None, PERFORMANCES)
    assert files_in(cache) == ["data/maestro-v3.0.0-midi.zip"]


def test_a_tar_that_would_write_elsewhere_is_refused(server, cache, monkeypatch):
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as tar:
        member = tarfile.TarInfo("../outside")
        tar.addfile(member, io.BytesIO())
    monkeypatch.setattr(sources, "CIFAR10", server.publish("cifar-10-python.tar.gz", content.getvalue()))
    with pytest.raises(DataError, match=r"cannot be extracted .*Remove it and start again"):
        datasets.cifar10(None)
    assert files_in(cache) == ["data/cifar-10-python.tar.gz"]


@pytest.mark.parametrize("content", [b"not a zip", archive_of({"other/file": b""})], ids=["no zip", "other folder"])
def test_an_archive_of_something_else_is_one_clear_error(server, cache, monkeypatch, content):
    monkeypatch.setattr(sources, "MAESTRO", server.publish("maestro-v3.0.0-midi.zip", content))
    with pytest.raises(DataError, match=r"maestro-v3\.0\.0-midi\.zip .* Remove it and start again"):
        datasets.maestro(None, PERFORMANCES)
    assert files_in(cache) == ["data/maestro-v3.0.0-midi.zip"]


def test_what_a_killed_extraction_left_is_not_taken_for_the_set(server, cache, monkeypatch):
    left = cache / "data" / ".maestro-v3.0.0.part" / "maestro-v3.0.0" / "2008"
    left.mkdir(parents=True)
    (left / "half.midi").write_bytes(b"")
    source = server.publish("maestro-v3.0.0-midi.zip", archive_of(MAESTRO_MEMBERS))
    monkeypatch.setattr(sources, "MAESTRO", source)
    datasets.maestro(None, PERFORMANCES)
    assert files_in(cache / "data") == sorted(MAESTRO_MEMBERS)


def test_a_disk_too_small_for_the_extracted_files_is_one_clear_error(server, tiny_disk, monkeypatch):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("maestro-v3.0.0/2008/large.midi", bytes(1 << 20))
    monkeypatch.setenv("TDABENCH_CACHE", str(tiny_disk))
    monkeypatch.setattr(sources, "MAESTRO", server.publish("maestro-v3.0.0-midi.zip", content.getvalue()))
    with pytest.raises(StorageError, match="the disk is full"):
        datasets.maestro(None, ["2008/large.midi"])
    assert files_in(tiny_disk / "data") == ["maestro-v3.0.0-midi.zip"]


@pytest.mark.data
def test_the_real_metadata_name_performances_that_are_there(data):
    needs(data, "maestro-v3.0.0")
    rows = datasets.maestro_metadata(data)
    assert len(rows) == 1276
    names = [row["midi_filename"] for row in rows if row["year"] == "2008"]
    assert len(datasets.maestro(data, names)) == len(names) == 147


# tiny Shakespeare


def test_the_text_is_downloaded_once_and_keeps_its_line_ends(server, cache, monkeypatch):
    monkeypatch.setattr(sources, "SHAKESPEARE", server.publish("input.txt", b"First Citizen:\r\nBefore\n"))
    assert datasets.shakespeare(None) == "First Citizen:\r\nBefore\n"
    assert files_in(cache / "data") == ["tinyshakespeare/input.txt"]
    server.close()
    assert datasets.shakespeare(None) == datasets.shakespeare(cache / "data") == "First Citizen:\r\nBefore\n"


def test_another_text_is_refused_and_the_folder_left_alone(tmp_path):
    with pytest.raises(DataError, match=r"No tiny Shakespeare in .* cannot read .*input\.txt \(No such file"):
        datasets.shakespeare(tmp_path)
    path = tmp_path / "tinyshakespeare" / "input.txt"
    path.parent.mkdir()
    path.write_bytes(b"To be")
    got = hashlib.sha256(b"To be").hexdigest()
    with pytest.raises(DataError) as caught:
        datasets.shakespeare(tmp_path)
    assert str(caught.value) == (
        f"{path} is not the published text: expected SHA-256 {sources.SHAKESPEARE.sha256}, got {got}. Point --data or "
        "TDABENCH_DATA at the folder that holds tinyshakespeare/input.txt, or unset TDABENCH_DATA and leave --data out "
        f"to download it from {sources.SHAKESPEARE.urls[0]}."
    )
    assert files_in(tmp_path) == ["tinyshakespeare/input.txt"]


@pytest.mark.data
def test_the_real_text_is_the_published_one(data):
    needs(data, "tinyshakespeare")
    text = datasets.shakespeare(data)
    assert (len(text), len(set(text))) == (1115394, 65)


def test_offline_every_set_names_its_address_and_the_folder(cache, monkeypatch):
    monkeypatch.setenv("TDABENCH_OFFLINE", "1")
    monkeypatch.delenv("TDABENCH_DATA", raising=False)
    loads = {
        sources.MNIST[0]: lambda: datasets.mnist(None),
        sources.CIFAR10: lambda: datasets.cats_and_dogs(None),
        sources.CIFAR10N: lambda: datasets.cifar10n(None),
        sources.MAESTRO: lambda: datasets.maestro(None, PERFORMANCES),
        sources.SHAKESPEARE: lambda: datasets.shakespeare(None),
    }
    for source, load in loads.items():
        with pytest.raises(
            DataError, match=f"TDABENCH_OFFLINE is set, so {source.urls[0]} was not downloaded"
        ) as caught:
            load()
        assert str(cache / "data") in str(caught.value)
