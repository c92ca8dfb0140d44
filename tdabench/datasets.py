"""Where data sets come from: a folder the user names, else a download into the cache.

``--data DIR`` or ``TDABENCH_DATA`` names a folder that already holds the files; it is only read. Without it, data
sets are downloaded once into the cache, under a lock, by the library that publishes their checksums.
"""

from __future__ import annotations

import os
from pathlib import Path
from types import ModuleType

from filelock import FileLock

from tdabench.errors import DataError

DATA_VARIABLE = "TDABENCH_DATA"
CACHE_VARIABLE = "TDABENCH_CACHE"


def cache_folder() -> Path:
    """Return where downloads and trained models are kept: ``TDABENCH_CACHE``, else the user's cache folder."""
    named = os.environ.get(CACHE_VARIABLE)
    if named:
        return Path(named).expanduser()
    import platformdirs

    return Path(platformdirs.user_cache_dir("tdabench"))


def data_folder(named: Path | None) -> Path | None:
    """Return the folder that the user's data sets are in: ``named``, else ``TDABENCH_DATA``, else None."""
    if named is not None:
        return named
    variable = os.environ.get(DATA_VARIABLE)
    return Path(variable).expanduser() if variable else None


def import_torchvision() -> ModuleType:
    """Import torchvision, also where it was built for CUDA and torch for the CPU.

    Such a pair fails to import because torchvision registers fake kernels for operators that only its compiled
    library declares. Data sets need none of its operators, so declaring their schemas is enough.
    """
    import torch

    if not hasattr(torch.ops.torchvision, "nms"):
        try:
            import torchvision
        except RuntimeError:
            library = torch.library.Library("torchvision", "FRAGMENT")
            _declare(library, "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            _declare(library, "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            import torchvision
        return torchvision
    import torchvision

    return torchvision


def _declare(library: object, schema: str) -> None:
    """Declare an operator unless it is there already."""
    try:
        library.define(schema)  # type: ignore[attr-defined]
    except RuntimeError as error:
        if "already" not in str(error) and "duplicate" not in str(error).lower():
            raise


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
    datasets = import_torchvision().datasets
    root = data_folder(folder)
    if root is None:
        return _download_mnist(datasets)
    try:
        return datasets.MNIST(str(root), train=True), datasets.MNIST(str(root), train=False)
    except (RuntimeError, OSError, ValueError) as error:
        raise DataError(
            f"No readable MNIST in {root}: expected {root / 'MNIST' / 'raw' / 'train-images-idx3-ubyte'} and the three "
            f"files beside it ({error}). Point --data or {DATA_VARIABLE} at the folder that holds MNIST/raw, "
            f"or unset {DATA_VARIABLE} to download them."
        ) from error


def _download_mnist(datasets: ModuleType) -> tuple[object, object]:
    root = cache_folder() / "data"
    root.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(root / "mnist.lock"):
            return datasets.MNIST(str(root), train=True, download=True), datasets.MNIST(str(root), train=False)
    except (RuntimeError, OSError) as error:
        why = " ".join(str(error).split())
        raise DataError(
            f"MNIST could not be downloaded into {root} ({why}). Check the network, or put the files "
            f"train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte and t10k-labels-idx1-ubyte "
            f"into DIR/MNIST/raw and pass --data DIR (or set {DATA_VARIABLE}=DIR)."
        ) from error
