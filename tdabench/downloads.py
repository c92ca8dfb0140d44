"""Fetching a published file: resumed after an interruption, checked against its SHA-256, renamed into place.

Nothing unchecked ever has the file's own name: what is on its way is ``<file>.part``, which the next call continues.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from tdabench.errors import DataError
from tdabench.files import sha256_file, storage_errors

if TYPE_CHECKING:
    from http.client import HTTPResponse

OFFLINE_VARIABLE = "TDABENCH_OFFLINE"

ATTEMPTS = 5
"""How often one address is tried."""

PAUSE_S = 1.0
"""Pause before the second attempt; each further one is twice as long."""

TIMEOUT_S = 30.0
"""How long a server may stay silent."""

_CHUNK_BYTES = 1 << 18
_WORTH_ANOTHER_TRY = {408, 416, 429}  # of the answers that blame the request

OnBytes = Callable[[int, int | None], None]
"""Called with the bytes that are there and the bytes there will be (None where the server does not say)."""


@dataclass(frozen=True)
class Source:
    """A file as its publisher gives it out.

    Attributes
    ----------
    file
        Its name on disk.
    urls
        Addresses of the same bytes, the official one first.
    sha256
        SHA-256 of its content.
    bytes
        Its size, where it is known.
    """

    file: str
    urls: tuple[str, ...]
    sha256: str
    bytes: int | None = None


class _Failed(Exception):  # noqa: N818 - caught here, tried again
    """One attempt came to nothing; ``final`` where another one would, too."""

    def __init__(self, why: object, *, final: bool = False) -> None:
        super().__init__(" ".join(str(why).split()))
        self.final = final


def fetch(source: Source, folder: Path, on_bytes: OnBytes | None = None) -> Path:
    """Return the path of ``source`` in ``folder``, downloading it where it is not there yet.

    Safe to call from several processes at once: one downloads, the others wait.

    Parameters
    ----------
    source
        What to fetch.
    folder
        Where to; made if need be. A file that is there and has the right checksum is returned without a connection.
    on_bytes
        Told about progress; by default a bar on standard error where that is a terminal.

    Raises
    ------
    DataError
        If no address gave the published file, or ``TDABENCH_OFFLINE`` is set.
    StorageError
        If the disk is full or ``folder`` is not writable.
    """
    path = folder / source.file
    if _is_whole(path, source):
        return path
    if os.environ.get(OFFLINE_VARIABLE, "") not in ("", "0"):
        raise DataError(_offline_message(source, folder))
    with storage_errors(path):
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f".{source.file}.lock"):
            if not _is_whole(path, source):
                part = folder / f"{source.file}.part"
                with _reporting(source.file, on_bytes) as report:
                    _download(source, part, report)
                part.replace(path)
    return path


def _is_whole(path: Path, source: Source) -> bool:
    return path.is_file() and sha256_file(path) == source.sha256


def _offline_message(source: Source, folder: Path) -> str:
    what = "is not the published file" if (folder / source.file).exists() else "is not there"
    return (
        f"{folder / source.file} {what}, and {OFFLINE_VARIABLE} is set, so {source.urls[0]} was not downloaded. "
        f"Unset {OFFLINE_VARIABLE}, {_by_hand(source, folder)}"
    )


def _by_hand(source: Source, folder: Path) -> str:
    return (
        f"put the file into {folder} as {source.file} yourself, "
        "or name a folder that holds the data set with --data or TDABENCH_DATA."
    )


def _download(source: Source, part: Path, report: OnBytes) -> None:
    """Fill ``part`` from the first address that gives the published file."""
    if _is_whole(part, source):  # the last call was killed just before the renaming
        return
    failures = []
    for url in source.urls:
        try:
            _download_from(url, source, part, report)
        except _Failed as error:
            failures.append(f"{url} ({error})")
        except OSError:
            with contextlib.suppress(OSError):  # most likely the disk is full: do not keep it so
                part.unlink()
            raise
        else:
            return
    raise DataError(
        f"{source.file} could not be downloaded into {part.parent} from {', nor from '.join(failures)}. "
        f"Check the network, {_by_hand(source, part.parent)}"
    )


def _download_from(url: str, source: Source, part: Path, report: OnBytes) -> None:
    """Try one address until it gives the published file or there is no hope."""
    failure = _Failed("no attempt was made")
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(PAUSE_S * 2 ** (attempt - 1))
        try:
            resumed = _transfer(url, source, part, report)
        except _Failed as error:
            failure = error
        else:
            got = sha256_file(part)
            if got == source.sha256:
                return
            part.unlink()
            # Half of one file and half of another may have met: once more, from the start.
            failure = _Failed(
                f"not the published file: expected SHA-256 {source.sha256}, got {got}; it was removed",
                final=not resumed,
            )
        if failure.final:
            break
    raise failure


def _transfer(url: str, source: Source, part: Path, report: OnBytes) -> bool:
    """Receive what ``part`` lacks; return whether it was continued rather than begun."""
    offset = part.stat().st_size if part.exists() else 0
    with _open(url, offset, part) as response:
        resumed = response.status == 206
        if resumed and not response.headers.get("Content-Range", "").startswith(f"bytes {offset}-"):
            part.unlink()
            raise _Failed("the server sent another range than it was asked for")
        done = offset if resumed else 0
        length = response.headers.get("Content-Length", "")
        total = done + int(length) if length.isdigit() else source.bytes
        with part.open("ab" if resumed else "wb") as file:
            report(done, total)
            while chunk := _receive(response):
                file.write(chunk)
                done += len(chunk)
                report(done, total)
                if source.bytes is not None and done > source.bytes:
                    return False  # some other file, perhaps without end; its checksum will say so
            file.flush()
            os.fsync(file.fileno())
    if total is not None and done < total:
        raise _Failed(f"the connection ended after {done:,} of {total:,} bytes")
    return resumed


def _open(url: str, offset: int, part: Path) -> HTTPResponse:
    import http.client
    import urllib.error
    import urllib.request

    headers = {"User-Agent": "tdabench"} | ({"Range": f"bytes={offset}-"} if offset else {})
    try:
        return urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416:  # there is nothing after what is here: it is too long, or not this file
            part.unlink(missing_ok=True)
        final = 400 <= error.code < 500 and error.code not in _WORTH_ANOTHER_TRY
        raise _Failed(f"HTTP {error.code} {error.reason}", final=final) from error
    except urllib.error.URLError as error:
        raise _Failed(error.reason) from error
    except (OSError, http.client.HTTPException) as error:
        raise _Failed(error) from error


def _receive(response: HTTPResponse) -> bytes:
    """Read what has come; only what the network does is an attempt that failed, a full disk is not."""
    import http.client

    try:
        return response.read1(_CHUNK_BYTES)  # read() waits for all of them, and loses what came before a failure
    except (OSError, http.client.HTTPException) as error:
        raise _Failed(error) from error


@contextlib.contextmanager
def _reporting(file: str, on_bytes: OnBytes | None) -> Iterator[OnBytes]:
    """Give what is to be told about progress: the caller's function, a bar on a terminal, or nobody."""
    if on_bytes is not None:
        yield on_bytes
    elif not sys.stderr.isatty():
        yield lambda done, total: None
    else:
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(file, total=None)
            yield lambda done, total: bar.update(task, completed=done, total=total)
