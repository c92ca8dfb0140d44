"""Archives: downloaded, extracted whole or not at all, and removed."""

from __future__ import annotations

import shutil
import tarfile
import zipfile
import zlib
from pathlib import Path

from filelock import FileLock

from tdabench.downloads import Source, fetch
from tdabench.errors import DataError
from tdabench.files import storage_errors, sync_file


def extracted(source: Source, root: Path, folder: str) -> Path:
    """Return ``root / folder``, which the archive ``source`` holds; download and extract it where it is not there.

    Raises
    ------
    DataError
        If it cannot be downloaded, or the archive is damaged, unsafe or without that folder.
    StorageError
        If the disk is full or ``root`` is not writable.
    """
    target = root / folder
    if target.is_dir():
        return target
    with storage_errors(target):
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / f".{folder}.lock"):
            if not target.is_dir():
                archive = fetch(source, root)
                _extract(archive, target)
                archive.unlink()
    return target


def _extract(archive: Path, target: Path) -> None:
    """Extract aside, flush, and rename; whoever calls holds the lock."""
    aside = target.with_name(f".{target.name}.part")
    shutil.rmtree(aside, ignore_errors=True)  # a killed process may have left it
    aside.mkdir()
    try:
        _unpack(archive, aside)
        if not (aside / target.name).is_dir():
            raise DataError(f"{archive} holds no folder {target.name}. Remove it and start again.")
        for path in aside.rglob("*"):
            if path.is_file():
                sync_file(path)
        (aside / target.name).rename(target)
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise DataError(f"{archive} cannot be extracted ({error}). Remove it and start again.") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _unpack(archive: Path, folder: Path) -> None:
    """Extract every member, refusing one that would land outside ``folder``."""
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive) as members:
            for name in members.namelist():
                if not (folder / name).resolve().is_relative_to(folder.resolve()):
                    raise zipfile.BadZipFile(f"its member {name!r} would be written outside the folder")
            members.extractall(folder)
    else:
        with tarfile.open(archive) as tar:
            tar.extractall(folder, filter="data")
