"""Downloads from a real server on this machine: whole, cut, refused, wrong, resumed, offline, on a full disk."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from filelock import FileLock

from tdabench import downloads
from tdabench.downloads import Source, fetch
from tdabench.errors import DataError, StorageError

CONTENT = bytes(range(256)) * 4096  # 1 MiB: several reads
STALLED = 100_000


@dataclass
class Site:
    """What the server does with the next requests, and what it was asked for."""

    url: str = ""
    content: bytes = CONTENT
    script: list[str] = field(default_factory=list)
    ranges: list[str | None] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)

    def source(self, **changes: object) -> Source:
        values = {
            "file": "set.bin",
            "urls": (self.url,),
            "sha256": hashlib.sha256(CONTENT).hexdigest(),
            "bytes": len(CONTENT),
        }
        return Source(**(values | changes))


class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        site: Site = self.server.site
        asked = self.headers.get("Range")
        site.ranges.append(asked)
        step = site.script.pop(0) if site.script else "serve"
        if step.isdigit():
            self.send_error(int(step))
            return
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and step != "no-range" else 0
        if start >= len(site.content):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        if start:
            first = start + 1 if step == "other-range" else start
            self.send_header("Content-Range", f"bytes {first}-{len(site.content) - 1}/{len(site.content)}")
        if step != "no-length":
            self.send_header("Content-Length", str(len(site.content) - start))
        self.end_headers()
        rest = site.content[start:]
        with contextlib.suppress(ConnectionError):  # the client may have seen enough
            if step == "stall":  # less than the client reads at once, and then silence
                self.wfile.write(rest[:STALLED])
                self.wfile.flush()
                site.over.wait(5)
                return
            self.wfile.write(rest[: len(rest) // 2] if step in ("cut", "no-length") else rest)


@pytest.fixture
def site(monkeypatch):
    """Serve CONTENT on loopback, without pauses between attempts."""
    monkeypatch.setattr(downloads, "PAUSE_S", 0.0)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.delenv("TDABENCH_OFFLINE", raising=False)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.site = Site(f"http://127.0.0.1:{server.server_port}/set.bin")
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server.site
        server.site.over.set()
        server.shutdown()


def visible(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(".lock"))


def test_a_file_is_downloaded_once(site, tmp_path):
    folder = tmp_path / "new" / "folder"
    path = fetch(site.source(), folder)
    assert path == folder / "set.bin"
    assert path.read_bytes() == CONTENT
    assert visible(folder) == ["set.bin"]
    assert fetch(site.source(), folder) == path
    assert site.ranges == [None]


def test_a_file_of_that_name_with_other_content_is_replaced(site, tmp_path):
    (tmp_path / "set.bin").write_bytes(b"old")
    assert fetch(site.source(), tmp_path).read_bytes() == CONTENT


def test_a_cut_connection_is_resumed_where_it_broke(site, tmp_path):
    site.script = ["cut"]
    assert fetch(site.source(), tmp_path).read_bytes() == CONTENT
    assert site.ranges == [None, f"bytes={len(CONTENT) // 2}-"]


def test_what_came_before_a_server_fell_silent_is_kept(site, tmp_path, monkeypatch):
    monkeypatch.setattr(downloads, "TIMEOUT_S", 0.3)
    site.script = ["stall", "stall"]
    assert fetch(site.source(), tmp_path).read_bytes() == CONTENT
    assert site.ranges == [None, f"bytes={STALLED}-", f"bytes={2 * STALLED}-"]


def test_what_an_earlier_call_left_is_resumed(site, tmp_path):
    (tmp_path / "set.bin.part").write_bytes(CONTENT[:1000])
    assert fetch(site.source(), tmp_path).read_bytes() == CONTENT
    assert site.ranges == ["bytes=1000-"]
    assert visible(tmp_path) == ["set.bin"]


def test_what_an_earlier_call_left_whole_needs_no_connection(site, tmp_path):
    (tmp_path / "set.bin.part").write_bytes(CONTENT)
    assert fetch(site.source(), tmp_path).read_bytes() == CONTENT
    assert site.ranges == []


@pytest.mark.parametrize("step", ["no-range", "other-range"])
def test_a_server_that_does_not_give_the_range_sends_all_of_it_again(site, tmp_path, step):
    (tmp_path / "set.bin.part").write_bytes(CONTENT[:1000])
    site.script = [step]
    assert fetch(site.source(), tmp_path).read_bytes() == CONTENT


@pytest.mark.parametrize("left", [b"x" * 1000, b"x" * (len(CONTENT) + 1)], ids=["shorter", "longer"])
def test_the_beginning_of_another_file_is_not_completed_but_replaced(site, tmp_path, left):
    (tmp_path / "set.bin.part").write_bytes(left)
    assert fetch(site.source(), tmp_path).read_bytes() == CONTENT
    assert site.ranges == [f"bytes={len(left)}-", None]


def test_a_connection_that_ends_early_without_a_length_is_noticed(site, tmp_path):
    site.script = ["no-length"]
    assert fetch(site.source(), tmp_path).read_bytes() == CONTENT
    assert site.ranges == [None, f"bytes={len(CONTENT) // 2}-"]


def test_a_busy_server_is_asked_again_after_growing_pauses(site, tmp_path, monkeypatch):
    pauses: list[float] = []
    monkeypatch.setattr(downloads, "PAUSE_S", 1.0)
    monkeypatch.setattr(downloads.time, "sleep", pauses.append)
    site.script = ["503", "429"]
    assert fetch(site.source(), tmp_path).read_bytes() == CONTENT
    assert pauses == [1.0, 2.0]


def test_a_server_that_stays_busy_is_given_up(site, tmp_path):
    site.script = ["503"] * 9
    with pytest.raises(DataError, match=r"HTTP 503 Service Unavailable\)\. Check the network"):
        fetch(site.source(), tmp_path)
    assert len(site.ranges) == downloads.ATTEMPTS


def test_a_file_that_is_not_there_is_not_asked_for_again(site, tmp_path):
    site.script = ["404"]
    with pytest.raises(DataError) as caught:
        fetch(site.source(), tmp_path)
    assert str(caught.value) == (
        f"set.bin could not be downloaded into {tmp_path} from {site.url} (HTTP 404 Not Found). Check the network, "
        f"put the file into {tmp_path} as set.bin yourself, or name a folder that holds the data set with --data or "
        "TDABENCH_DATA."
    )
    assert len(site.ranges) == 1


def test_wrong_bytes_are_removed_and_both_checksums_named(site, tmp_path):
    site.content = CONTENT[:-1] + b"x"
    got, expected = hashlib.sha256(site.content).hexdigest(), hashlib.sha256(CONTENT).hexdigest()
    with pytest.raises(DataError) as caught:
        fetch(site.source(), tmp_path)
    assert f"expected SHA-256 {expected}, got {got}" in str(caught.value)
    assert f"into {tmp_path} from {site.url} (not the published file" in str(caught.value)
    assert visible(tmp_path) == []
    assert len(site.ranges) == 1


def test_a_file_without_end_is_not_received_to_the_end(site, tmp_path):
    site.content = CONTENT * 8
    received: list[int] = []
    with pytest.raises(DataError, match="not the published file"):
        fetch(site.source(), tmp_path, lambda done, total: received.append(done))
    assert received[-1] < 2 * len(CONTENT)
    assert visible(tmp_path) == []


def test_the_second_address_serves_where_the_first_fails(site, tmp_path):
    site.script = ["404"]
    assert fetch(site.source(urls=(site.url, site.url)), tmp_path).read_bytes() == CONTENT


def test_the_error_names_every_address(site, tmp_path):
    nobody = "http://127.0.0.1:9/set.bin"
    site.script = ["404"]
    with pytest.raises(DataError, match=rf"from {nobody} \(.*refused.*\), nor from {site.url} \(HTTP 404"):
        fetch(site.source(urls=(nobody, site.url)), tmp_path)


def test_a_silent_server_is_given_up_after_the_time_out(site, tmp_path, monkeypatch):
    import socket

    monkeypatch.setattr(downloads, "TIMEOUT_S", 0.05)
    monkeypatch.setattr(downloads, "ATTEMPTS", 2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/set.bin"
        with pytest.raises(DataError, match="timed out"):
            fetch(site.source(urls=(url,)), tmp_path)


@pytest.mark.parametrize("there", [None, b"other"], ids=["absent", "other"])
def test_offline_nothing_is_asked_for(site, tmp_path, monkeypatch, there):
    monkeypatch.setenv("TDABENCH_OFFLINE", "1")
    if there is not None:
        (tmp_path / "set.bin").write_bytes(there)
    with pytest.raises(DataError) as caught:
        fetch(site.source(), tmp_path)
    what = "is not there" if there is None else "is not the published file"
    assert str(caught.value) == (
        f"{tmp_path / 'set.bin'} {what}, and TDABENCH_OFFLINE is set, so {site.url} was not downloaded. Unset "
        f"TDABENCH_OFFLINE, put the file into {tmp_path} as set.bin yourself, or name a folder that holds the data "
        "set with --data or TDABENCH_DATA."
    )
    assert site.ranges == []


def test_offline_a_file_that_is_there_is_enough(site, tmp_path, monkeypatch):
    monkeypatch.setenv("TDABENCH_OFFLINE", "1")
    (tmp_path / "set.bin").write_bytes(CONTENT)
    assert fetch(site.source(), tmp_path).read_bytes() == CONTENT


def test_progress_goes_from_what_was_there_to_all_of_it(site, tmp_path):
    (tmp_path / "set.bin.part").write_bytes(CONTENT[:1000])
    seen: list[tuple[int, int | None]] = []
    fetch(site.source(bytes=None), tmp_path, lambda done, total: seen.append((done, total)))
    assert seen[0] == (1000, len(CONTENT))
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    assert seen == sorted(seen)


def test_a_terminal_gets_a_bar_and_a_log_gets_nothing(site, tmp_path, monkeypatch, capsys):
    fetch(site.source(), tmp_path / "log")
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    fetch(site.source(), tmp_path / "terminal")
    out, err = capsys.readouterr()
    assert "set.bin" in err
    assert out == ""


def test_two_calls_at_once_download_once(site, tmp_path):
    with FileLock(tmp_path / ".set.bin.lock"):
        waiting = [threading.Thread(target=fetch, args=(site.source(), tmp_path)) for _ in range(2)]
        for thread in waiting:
            thread.start()
        time.sleep(0.1)
        assert site.ranges == []
    for thread in waiting:
        thread.join()
    assert site.ranges == [None]
    assert visible(tmp_path) == ["set.bin"]


def test_a_full_disk_is_one_clear_error_and_is_left_as_it_was(site, tiny_disk):
    with pytest.raises(StorageError, match=r"Cannot write .*set\.bin: the disk is full\. Nothing was half-written"):
        fetch(site.source(), tiny_disk)
    assert visible(tiny_disk) == []
    assert len(site.ranges) == 1


def test_a_file_in_the_place_of_the_folder_is_a_storage_error(site, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="Cannot write"):
        fetch(site.source(), tmp_path / "file")
