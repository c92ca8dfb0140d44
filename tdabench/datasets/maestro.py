"""MAESTRO v3.0.0 (Hawthorne et al., ICLR 2019): piano performances as MIDI, CC BY-NC-SA 4.0."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from tdabench.datasets import sources
from tdabench.datasets.archives import extracted
from tdabench.datasets.folders import data_folder, download_folder, what_next
from tdabench.errors import DataError

FOLDER = "maestro-v3.0.0"
METADATA = "maestro-v3.0.0.csv"


def maestro(folder: Path | None, files: Sequence[str]) -> list[Path]:
    """Return the paths of performances.

    Parameters
    ----------
    folder
        Where ``maestro-v3.0.0`` is; None to use ``TDABENCH_DATA``, and without that to download into the cache.
    files
        Performances as the metadata name them: ``2008/<name>.midi``.

    Raises
    ------
    DataError
        If one is not there, or they cannot be downloaded.
    """
    base = _base(folder)
    absent = [file for file in files if not (base / file).is_file()]
    if absent:
        raise DataError(
            f"{len(absent)} of {len(files)} performances of MAESTRO are not in {base}, the first: {absent[0]}. "
            f"{_what_next(folder)}"
        )
    return [base / file for file in files]


def maestro_metadata(folder: Path | None) -> list[dict[str, str]]:
    """Return one row per performance: composer, title, split, year, ``midi_filename``, duration in seconds.

    The table is of all 1,276 performances; a folder may hold the files of some only.

    Raises
    ------
    DataError
        If the table is not there or has no column ``midi_filename``, or cannot be downloaded.
    """
    path = _base(folder) / METADATA
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"No readable metadata of MAESTRO at {path} ({error}). {_what_next(folder)}") from error
    if not rows or "midi_filename" not in rows[0]:
        raise DataError(f"{path} is not the metadata of MAESTRO: no column midi_filename. {_what_next(folder)}")
    return rows


def _base(folder: Path | None) -> Path:
    root = data_folder(folder)
    return extracted(sources.MAESTRO, download_folder(), FOLDER) if root is None else root / FOLDER


def _what_next(folder: Path | None) -> str:
    return what_next(folder, FOLDER, sources.MAESTRO.urls[0])
