"""CIFAR-10 (Krizhevsky): 50,000 training and 10,000 test images of ten classes, 32 x 32, RGB; and CIFAR-10N.

Cite "Learning Multiple Layers of Features from Tiny Images" (2009), and for the human labels of CIFAR-10N Wei et al.,
"Learning with Noisy Labels Revisited" (ICLR 2022).
"""

from __future__ import annotations

import codecs
import hashlib
import io
import tokenize
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tdabench.datasets import sources
from tdabench.datasets.archives import extracted
from tdabench.datasets.folders import data_folder, download_folder, what_next
from tdabench.datasets.torchvision_import import import_torchvision
from tdabench.downloads import fetch
from tdabench.errors import DataError

if TYPE_CHECKING:
    import numpy as np

CAT, DOG = 3, 5
_N_TRAIN = 50_000

BATCHES = "cifar-10-batches-py"
CAT_DOG_TRAIN, CAT_DOG_TEST = "cifar10/cat_dog_train.npz", "cifar10/cat_dog_test.npz"
HUMAN_LABELS = "cifar10/cifar10n.npz"

LABEL_SETS = ("clean_label", "aggre_label", "worse_label", "random_label1", "random_label2", "random_label3")
"""The label sets of CIFAR-10N; ``clean_label`` is CIFAR-10's own."""

# NumPy reads an array's header as a Python literal.
_BAD_HEADERS = (SyntaxError, tokenize.TokenError)


@dataclass(frozen=True, eq=False)
class Cifar10:
    """Images, labels and positions of a part of CIFAR-10, in the original order.

    Attributes
    ----------
    train_x, test_x
        Images, RGB, channel first, uint8 ``[n, 3, 32, 32]``.
    train_y, test_y
        Classes 0 to 9, uint8 ``[n]``.
    train_index, test_index
        Positions in the original training and test set, int32 ``[n]``.
    """

    train_x: np.ndarray
    train_y: np.ndarray
    train_index: np.ndarray
    test_x: np.ndarray
    test_y: np.ndarray
    test_index: np.ndarray


def cifar10(folder: Path | None) -> Cifar10:
    """Return the whole of CIFAR-10.

    Parameters
    ----------
    folder
        Where ``cifar-10-batches-py`` is; None to use ``TDABENCH_DATA``, and without that to download into the cache.

    Raises
    ------
    DataError
        If the files are not there, are not the published ones, or cannot be downloaded.
    """
    return Cifar10(*_official(folder, train=True), *_official(folder, train=False))


def cats_and_dogs(folder: Path | None) -> Cifar10:
    """Return the cats (3) and dogs (5) of CIFAR-10: 10,000 training and 2,000 test images, in the original order.

    Parameters
    ----------
    folder
        Where ``cifar-10-batches-py`` is, or else ``cifar10/cat_dog_train.npz`` and ``cat_dog_test.npz`` with the
        arrays ``x``, ``y`` and ``index`` of :class:`Cifar10`; both give the same arrays. None to use
        ``TDABENCH_DATA``, and without that to download into the cache.

    Raises
    ------
    DataError
        If the files are not there, are not the published ones, or cannot be downloaded.
    """
    root = data_folder(folder)
    if root is None or (root / BATCHES).is_dir():
        return Cifar10(*_pets(*_official(folder, train=True)), *_pets(*_official(folder, train=False)))
    if not (root / CAT_DOG_TRAIN).exists():
        raise DataError(
            f"No CIFAR-10 in {root}: expected {root / BATCHES / 'data_batch_1'} and the batches beside it, or "
            f"{root / CAT_DOG_TRAIN} and {Path(CAT_DOG_TEST).name}. {what_next(folder, BATCHES, _address())}"
        )
    hint = what_next(folder, CAT_DOG_TRAIN, _address())
    return Cifar10(*_pets(*_packed(root / CAT_DOG_TRAIN, hint)), *_pets(*_packed(root / CAT_DOG_TEST, hint)))


def cifar10n(folder: Path | None) -> dict[str, np.ndarray]:
    """Return the human labels of the 50,000 training images, CIFAR-10N: six label sets, uint8 ``[50000]``.

    Parameters
    ----------
    folder
        Where ``cifar10/cifar10n.npz`` or the published ``CIFAR-10_human.pt`` is; None to use ``TDABENCH_DATA``, and
        without that to download into the cache.

    Raises
    ------
    DataError
        If the file is not there, is not the published one, or cannot be downloaded.
    """
    source, root = sources.CIFAR10N, data_folder(folder)
    if root is None:
        return _human_labels(fetch(source, download_folder()), folder)
    if (root / source.file).exists():
        return _human_labels(root / source.file, folder)
    if (root / HUMAN_LABELS).exists():
        return _packed_labels(root / HUMAN_LABELS, what_next(folder, HUMAN_LABELS, source.urls[0]))
    raise DataError(
        f"No CIFAR-10N labels in {root}: expected {root / HUMAN_LABELS} or {root / source.file}. "
        f"{what_next(folder, source.file, source.urls[0])}"
    )


def _address() -> str:
    return sources.CIFAR10.urls[0]


def _official(folder: Path | None, *, train: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Read the published batches: images, labels and positions of one split."""
    import numpy as np

    root = data_folder(folder)
    if root is None:
        root = extracted(sources.CIFAR10, download_folder(), BATCHES).parent
    try:
        # The batches are pickles. torchvision compares all six, and batches.meta, with their published MD5 before it
        # unpickles the first byte of each (CIFAR10.__init__ and _load_meta); one that differs is never loaded.
        split = import_torchvision().datasets.CIFAR10(str(root), train=train)
    except (RuntimeError, OSError) as error:
        raise DataError(
            f"No readable CIFAR-10 in {root}: expected {root / BATCHES / 'data_batch_1'} and the files beside it with "
            f"their published MD5 ({error}). {what_next(folder, BATCHES, _address())}"
        ) from error
    images = np.ascontiguousarray(split.data.transpose(0, 3, 1, 2))  # [n, 3, 32, 32]
    return images, np.array(split.targets, dtype=np.uint8), np.arange(len(images), dtype=np.int32)


def _pets(x: np.ndarray, y: np.ndarray, index: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Keep the cats and dogs."""
    kept = (y == CAT) | (y == DOG)
    return x[kept], y[kept], index[kept]


def _packed(path: Path, hint: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Read images, labels and positions of one split from an .npz file."""
    arrays = _npz(path, ("x", "y", "index"), hint)
    x, y, index = arrays["x"], arrays["y"], arrays["index"]
    shapes = x.shape[1:] == (3, 32, 32) and x.shape[:1] == y.shape == index.shape
    if not shapes or (x.dtype, y.dtype, index.dtype.kind) != ("uint8", "uint8", "i"):
        raise DataError(
            f"{path} does not hold CIFAR-10: expected uint8 images x [n, 3, 32, 32], uint8 labels y [n] and integer "
            f"positions index [n], got {x.dtype} {list(x.shape)}, {y.dtype} {list(y.shape)} and {index.dtype} "
            f"{list(index.shape)}. {hint}"
        )
    if not ((y == CAT) | (y == DOG)).any() or not ((index >= 0) & (index < _N_TRAIN)).all():
        raise DataError(
            f"{path} does not hold the cats and dogs of CIFAR-10: expected labels y of {CAT} and {DOG} and positions "
            f"index from 0 to {_N_TRAIN - 1:,}. {hint}"
        )
    return x, y, index.astype("int32")


def _packed_labels(path: Path, hint: str) -> dict[str, np.ndarray]:
    """Read all label sets from an .npz file."""
    found = _npz(path, LABEL_SETS, hint)
    for name, labels in found.items():
        if labels.shape != (_N_TRAIN,) or labels.dtype != "uint8":
            raise DataError(
                f"{path} does not hold CIFAR-10N: expected uint8 [{_N_TRAIN}] for {name}, got {labels.dtype} "
                f"{list(labels.shape)}. {hint}"
            )
    return found


def _npz(path: Path, names: tuple[str, ...], hint: str) -> dict[str, np.ndarray]:
    """Read named arrays from an .npz file; nothing in it is unpickled."""
    import numpy as np

    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in names}
    except FileNotFoundError:
        raise DataError(f"There is no {path}. {hint}") from None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error, *_BAD_HEADERS) as error:
        raise DataError(f"{path} is not a readable .npz file with {', '.join(names)} ({error}). {hint}") from error


def _human_labels(path: Path, folder: Path | None) -> dict[str, np.ndarray]:
    """Read the published CIFAR-10N file, once its checksum is known to be right."""
    import numpy as np
    import torch

    source = sources.CIFAR10N
    try:
        content = path.read_bytes()
    except OSError as error:
        hint = what_next(folder, source.file, source.urls[0])
        raise DataError(f"{path} cannot be read ({error.strerror}). {hint}") from error
    got = hashlib.sha256(content).hexdigest()
    if got != source.sha256:
        raise DataError(
            f"{path} is not the published file: expected SHA-256 {source.sha256}, got {got}. "
            f"{what_next(folder, source.file, source.urls[0])}"
        )
    with torch.serialization.safe_globals(_numpy_globals()):
        labels = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    return {name: np.asarray(labels[name]).astype(np.uint8) for name in LABEL_SETS}


def _numpy_globals() -> list[Callable | tuple[Callable, str]]:
    """Return what a pickled NumPy array of integers is made of: all that may be called while the file is loaded."""
    import numpy as np

    rebuild: Any = np.empty(0).__reduce__()[0]  # its module has had two names
    names = ("numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct")
    allowed: list[Callable | tuple[Callable, str]] = [(rebuild, name) for name in names]
    types = [type(np.dtype(kind)) for kind in ("uint8", "int32", "int64")]
    return [*allowed, np.ndarray, np.dtype, codecs.encode, *types]
