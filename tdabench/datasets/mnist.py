"""MNIST (LeCun, Cortes and Burges): 60,000 training and 10,000 test images of digits, 28 x 28."""

from __future__ import annotations

import gzip
import pickle
from pathlib import Path

from filelock import FileLock

from tdabench.datasets import sources
from tdabench.datasets.folders import data_folder, download_folder, what_next
from tdabench.datasets.torchvision_import import import_torchvision
from tdabench.downloads import Source, fetch
from tdabench.errors import DataError
from tdabench.files import storage_errors, write_bytes

# torchvision has no error of its own for a file that is something else: what stumbles first depends on its bytes.
# Beside the raw files it may find those that its old versions left in MNIST/processed, which it then prefers: it loads
# them by torch.load, which since torch 2.6 calls nothing in them (weights_only).
_UNREADABLE = (
    RuntimeError,
    OSError,
    ValueError,
    AssertionError,
    TypeError,
    KeyError,
    EOFError,
    pickle.UnpicklingError,
)


def mnist(folder: Path | None) -> tuple[object, object]:
    """Return torchvision's MNIST, training and test set.

    Parameters
    ----------
    folder
        Where ``MNIST/raw`` is; None to use ``TDABENCH_DATA``, and without that to download into the cache.

    Raises
    ------
    DataError
        If the files are not there, or cannot be downloaded.
    """
    root = data_folder(folder)
    if root is None:
        root = download_folder()
        _download(root / "MNIST" / "raw")
    datasets = import_torchvision().datasets
    try:
        return datasets.MNIST(str(root), train=True), datasets.MNIST(str(root), train=False)
    except _UNREADABLE as error:
        old = root / "MNIST" / "processed"
        # torch's own words advise to load such a file in a way that runs what is in it.
        why = "" if isinstance(error, pickle.UnpicklingError) else str(error)
        remove = f"Remove {old}, which torchvision reads first. " if old.exists() else ""
        raise DataError(
            f"No readable MNIST in {root}: expected {root / 'MNIST' / 'raw' / 'train-images-idx3-ubyte'} and the three "
            f"files beside it ({why or type(error).__name__}). "
            f"{remove}{what_next(folder, 'MNIST/raw', sources.MNIST[0].urls[0])}"
        ) from error


def _download(raw: Path) -> None:
    """Fetch and decompress what is not there yet; torchvision reads the decompressed files."""
    if not _absent(raw):
        return
    with storage_errors(raw):
        raw.mkdir(parents=True, exist_ok=True)
        with FileLock(raw / ".mnist.lock"):
            for source in _absent(raw):  # another process may have been faster
                packed = fetch(source, raw)
                write_bytes(_unpacked(raw, source), gzip.decompress(packed.read_bytes()))
                packed.unlink()


def _absent(raw: Path) -> list[Source]:
    return [source for source in sources.MNIST if not _unpacked(raw, source).exists()]


def _unpacked(raw: Path, source: Source) -> Path:
    return raw / source.file.removesuffix(".gz")
