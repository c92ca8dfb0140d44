"""Prepared arrays: what a task makes of its raw files, kept in the cache under the checksum of the result.

Tokenizing a corpus or reading an archive takes long; its result is small and its SHA-256 is part of the task. With a
prepared file at hand the raw files are not needed at all.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from tdabench.datasets import cache_folder
from tdabench.errors import FileFormatError, StorageError
from tdabench.files import read_arrays, sha256_arrays, write_arrays

if TYPE_CHECKING:
    import numpy as np


def prepared(name: str, sha256: str, make: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Return the arrays of that SHA-256 from the cache; where they are not there, make and keep them.

    Parameters
    ----------
    name
        What they are, as the beginning of a file name: ``cifar10-cats-dogs``.
    sha256
        What :func:`tdabench.files.sha256_arrays` gives for them. A file with other values is made anew.
    make
        Makes them from the raw files. Its result is returned whatever its checksum is, so that the caller can say
        what differs, and kept only if that is the expected one.
    """
    path = cache_folder() / "prepared" / f"{name}-{sha256[:16]}.safetensors"
    kept = _read(path)
    if kept is not None and sha256_arrays(kept) == sha256:
        return kept
    arrays = make()
    if sha256_arrays(arrays) == sha256:
        with contextlib.suppress(StorageError, OSError):  # a cache that cannot be written costs time, not the result
            write_arrays(path, arrays)
    return arrays


def _read(path: Path) -> dict[str, np.ndarray] | None:
    try:
        return read_arrays(path, "prepared data set", "It is made anew.")
    except (FileFormatError, StorageError):
        return None
