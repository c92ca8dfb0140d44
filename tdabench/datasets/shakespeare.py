"""Tiny Shakespeare (Karpathy, char-rnn): 40,000 lines of the plays in one text of 1,115,394 characters."""

from __future__ import annotations

import hashlib
from pathlib import Path

from tdabench.datasets import sources
from tdabench.datasets.folders import data_folder, download_folder, what_next
from tdabench.downloads import fetch
from tdabench.errors import DataError

FOLDER = "tinyshakespeare"


def shakespeare(folder: Path | None) -> str:
    """Return the text.

    Parameters
    ----------
    folder
        Where ``tinyshakespeare/input.txt`` is; None to use ``TDABENCH_DATA``, and without that to download into the
        cache.

    Raises
    ------
    DataError
        If the file is not there, is not the published one, or cannot be downloaded.
    """
    source, root = sources.SHAKESPEARE, data_folder(folder)
    path = fetch(source, download_folder() / FOLDER) if root is None else root / FOLDER / source.file
    hint = what_next(folder, f"{FOLDER}/{source.file}", source.urls[0])
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"No tiny Shakespeare in {root}: cannot read {path} ({error.strerror}). {hint}") from error
    got = hashlib.sha256(content).hexdigest()
    if got != source.sha256:
        raise DataError(f"{path} is not the published text: expected SHA-256 {source.sha256}, got {got}. {hint}")
    return content.decode("utf-8")
