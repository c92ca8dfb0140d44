"""Writing files so that nothing is ever half-written, and reading arrays so that a bad file is one clear error.

A file is written aside, flushed to the disk and renamed into place; a folder likewise. Arrays are safetensors: no
code runs on load, and a truncated file is recognised by its header.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tdabench.errors import FileFormatError, StorageError

if TYPE_CHECKING:
    import numpy as np

#: Numbers of the system's errors that say that no more can be written, with words for them.
FULL = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "files may not become so large here (ulimit -f)",
}
_CLOSED = {
    errno.EACCES: "permission denied",
    errno.EPERM: "permission denied",
    errno.EROFS: "the disk is read-only",
    errno.ENOTDIR: "a part of the path is a file",
    errno.EISDIR: "it is a folder",
    errno.EEXIST: "a file of that name is in the way",
}
#: Numbers of those that say that there can be nothing of that name.
UNUSABLE = {errno.ENAMETOOLONG: "a name in it is too long", errno.ELOOP: "its links lead back to where they begin"}

#: What the system raises where there is no file of that name.
MISSING = (FileNotFoundError, NotADirectoryError)

_ASIDE = ".partial-"
_FRESH_S = 60.0


@contextlib.contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn the operating system's complaints about ``path`` into a :class:`StorageError` that says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            raise StorageError(
                f"Cannot write {path}: {FULL[error.errno]}. Nothing was half-written; "
                "free some space, or choose another folder, and start again."
            ) from error
        if error.errno in _CLOSED:
            raise StorageError(
                f"Cannot write {path}: {_CLOSED[error.errno]}. Choose a folder that you can write to."
            ) from error
        if error.errno in UNUSABLE:
            raise StorageError(f"Cannot write {path}: {UNUSABLE[error.errno]}. Choose another path.") from error
        if error.errno == errno.ENOTEMPTY:  # a folder was renamed to one that exists
            raise StorageError(
                f"Cannot write {path}: another command wrote it first. Nothing was replaced; give the command again."
            ) from error
        raise


def unusable(path: Path) -> str:
    """Return why there can be nothing of that name; empty where there can."""
    try:
        path.stat()
    except OSError as error:
        return UNUSABLE.get(error.errno or 0, "")
    return ""


def check_writable(folder: Path, instead: str) -> None:
    """Refuse a folder in which nothing could be written in the end, before long work that is for it.

    Parameters
    ----------
    folder
        It need not exist yet: then the nearest one above it counts.
    instead
        A sentence that says what to do instead.

    Raises
    ------
    StorageError
        If nothing can be written there.
    """
    nearest = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    try:
        with tempfile.TemporaryFile(dir=nearest):
            pass
    except OSError as error:
        why = {**FULL, **_CLOSED, **UNUSABLE}.get(error.errno or 0, error.strerror)
        raise StorageError(f"Cannot write to {folder}: {why}. Nothing was begun. {instead}") from error


@contextlib.contextmanager
def reading_errors(path: Path) -> Iterator[None]:
    """Turn the operating system's complaints about a file that is there into a :class:`StorageError`."""
    try:
        yield
    except OSError as error:
        why = error.strerror or str(error)
        raise StorageError(f"Cannot read {path}: {why}. Make it readable, and give the command again.") from error


def write_bytes(path: Path, content: bytes) -> None:
    """Write a whole file or none of it: aside, flushed, renamed. Through a link, what it leads to is written.

    Raises
    ------
    StorageError
        If it cannot be written, or there is something else than a file.
    """
    with storage_errors(path):
        path = path.resolve() if path.is_symlink() else path
        if path.exists() and not path.is_file() and not path.is_dir():  # a folder is told of below
            raise StorageError(f"Cannot write {path}: it is a device or a pipe. Give the name of a file.")
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, aside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            Path(aside).chmod(0o644)
            Path(aside).replace(path)
        except BaseException:
            Path(aside).unlink(missing_ok=True)
            raise
        _sync_folder(path.parent)


def encodable(text: str) -> str:
    """Write out what is no character, and no file can hold: the bytes of a file name that are not UTF-8, for one."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def write_text(path: Path, text: str) -> None:
    """Write a whole text file (UTF-8) or none of it."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file with sorted keys, so that equal values are equal bytes; NaN is refused."""
    write_bytes(path, json_bytes(value))


def json_bytes(value: Any) -> bytes:
    """Return the bytes that :func:`write_json` writes."""
    return (json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n").encode("utf-8")


@contextlib.contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Give a folder to fill that becomes ``target`` when the block ends well, and vanishes when it does not.

    What a killed process left beside ``target`` is removed first.
    """
    with storage_errors(target), folder_aside(target.parent) as aside:
        yield aside
        place_folder(aside, target)


@contextlib.contextmanager
def folder_aside(parent: Path) -> Iterator[Path]:
    """Give a folder in ``parent`` that vanishes when the block ends, unless it was placed in it.

    What a killed process left there is removed first.
    """
    with storage_errors(parent):
        parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(parent)
        aside = Path(tempfile.mkdtemp(dir=parent, prefix=_ASIDE))
        lock = os.open(aside, os.O_RDONLY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)  # held while this process lives: whoever can take it may remove the folder
            yield aside
        finally:
            shutil.rmtree(aside, ignore_errors=True)
            os.close(lock)


def folders_at_work(parent: Path) -> Iterator[Path]:
    """Yield the unfinished folders that living processes fill; those of killed ones have no lock any more."""
    for folder in parent.glob(f"{_ASIDE}*"):
        with contextlib.suppress(OSError):  # it is finished meanwhile, or not ours
            lock = os.open(folder, os.O_RDONLY)
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                yield folder
            finally:
                os.close(lock)


def place_folder(aside: Path, target: Path) -> None:
    """Rename a folder once its files are on the disk; a folder with content that is there already is an error."""
    for file in aside.iterdir():
        sync_file(file)
    aside.chmod(0o755)
    aside.rename(target)
    _sync_folder(target.parent)


def _remove_abandoned(parent: Path) -> None:
    """Remove unfinished folders whose process is gone; one that was made just now may not have its lock yet."""
    for folder in parent.glob(f"{_ASIDE}*"):
        with contextlib.suppress(OSError):  # another process is at it, or it is gone
            if time.time() - folder.stat().st_mtime < _FRESH_S:
                continue
            lock = os.open(folder, os.O_RDONLY)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(lock)


def sync_file(path: Path) -> None:
    """Flush a file to the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read_json(path: Path, what: str, hint: str) -> Any:
    """Read a JSON file; ``what`` and ``hint`` complete the error when it is missing or broken.

    Raises
    ------
    FileFormatError
        If the file is missing or not JSON.
    StorageError
        If the file is there and cannot be read.
    """
    with reading_errors(path):
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except MISSING:
            raise FileFormatError(f"There is no {what} at {path}. {hint}") from None
        except (IsADirectoryError, ValueError, RecursionError) as error:
            raise FileFormatError(f"{path} is not a readable {what} ({error}). {hint}") from error


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None) -> str:
    """Write named arrays as safetensors and return the file's SHA-256."""
    import numpy as np
    from safetensors.numpy import save

    content = save({k: np.ascontiguousarray(v) for k, v in arrays.items()}, metadata=dict(metadata or {}))
    write_bytes(path, content)
    return hashlib.sha256(content).hexdigest()


def read_arrays(path: Path, what: str, hint: str) -> dict[str, np.ndarray]:
    """Read named arrays from safetensors.

    Raises
    ------
    FileFormatError
        If the file is missing, truncated or not safetensors.
    StorageError
        If the file is there and cannot be read.
    """
    from safetensors.numpy import load

    with _reading_arrays(path, what, hint):
        return load(path.read_bytes())


def read_metadata(path: Path, what: str, hint: str) -> dict[str, str]:
    """Return the metadata of a safetensors file; errors as in :func:`read_arrays`."""
    from safetensors import safe_open

    with _reading_arrays(path, what, hint), safe_open(path, framework="np") as file:
        return dict(file.metadata() or {})


@contextlib.contextmanager
def _reading_arrays(path: Path, what: str, hint: str) -> Iterator[None]:
    from safetensors import SafetensorError

    with reading_errors(path):
        try:
            yield
        except MISSING:
            raise FileFormatError(f"There is no {what} at {path}. {hint}") from None
        except (IsADirectoryError, SafetensorError, ValueError, KeyError) as error:
            raise FileFormatError(f"{path} is not a readable {what}: {error}. {hint}") from error


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_arrays(arrays: Mapping[str, np.ndarray]) -> str:
    """Return a SHA-256 over names, types, shapes and values; independent of any file format."""
    import numpy as np

    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name}:{array.dtype.str}:{array.shape};".encode())
        digest.update(array.reshape(-1).view(np.uint8).data)  # no copy
    return digest.hexdigest()
