"""The cache, the folder that the user's data sets are in, and what an error says about them."""

from __future__ import annotations

import os
from pathlib import Path

from tdabench.errors import UsageError
from tdabench.files import encodable, unusable

DATA_VARIABLE = "TDABENCH_DATA"
CACHE_VARIABLE = "TDABENCH_CACHE"


def cache_folder() -> Path:
    """Return where downloads and trained models are kept: ``TDABENCH_CACHE``, else the user's cache folder."""
    named = _named(CACHE_VARIABLE)
    if named is not None:
        if (written := encodable(str(named.absolute()))) != str(named.absolute()):
            raise UsageError(
                f"{CACHE_VARIABLE} leads to {written}, and no trained model can be kept below a name that is not UTF-8."
                " Write the path of another folder."
            )
        return named.absolute()  # a method may go to another folder
    import platformdirs

    try:
        return Path(platformdirs.user_cache_dir("tdabench"))
    except RuntimeError:  # nobody knows of a home
        raise UsageError(f"There is no home folder. Set {CACHE_VARIABLE} to a folder for what is kept.") from None


def data_folder(named: Path | None) -> Path | None:
    """Return the folder that the user's data sets are in: ``named``, else ``TDABENCH_DATA``, else None."""
    return _named(DATA_VARIABLE) if named is None else named


def _named(variable: str) -> Path | None:
    """Return the folder that a variable of the environment names; None where it names none.

    Raises
    ------
    UsageError
        If it begins with the home folder of a user that there is not, or can be the name of no folder.
    """
    said = os.environ.get(variable)
    if not said:
        return None
    try:
        folder = Path(said).expanduser()
        why = unusable(folder)
    except RuntimeError:
        why = "there is no home folder of that user"
    if why:
        raise UsageError(f"{variable} is {said!r}, and {why}. Write the path of another folder.")
    return folder


def download_folder() -> Path:
    """Return where data sets are downloaded to."""
    return cache_folder() / "data"


def what_next(folder: Path | None, place: str, address: str) -> str:
    """Return the end of a message about a set that is missing or damaged: what to do next.

    Parameters
    ----------
    folder
        What the caller named; None where ``TDABENCH_DATA`` or the cache decides.
    place
        The file or folder of the set, relative to the folder that data sets are in.
    address
        Where it is downloaded from.
    """
    if data_folder(folder) is None:
        return f"Remove {download_folder() / place} to have it downloaded again from {address}."
    return (
        f"Point --data or {DATA_VARIABLE} at the folder that holds {place}, "
        f"or unset {DATA_VARIABLE} and leave --data out to download it from {address}."
    )
