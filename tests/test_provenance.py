"""Facts about machine and code, and no names of hosts or users."""

from __future__ import annotations

import getpass
import json
import os
import re
import socket
from pathlib import Path

from tdabench import provenance


def test_machine_class_depends_on_threads_and_device_kind_only_through_what_times_depend_on():
    one, same, two = (provenance.machine(n, "cpu") for n in (1, 1, 2))
    assert one == same
    assert one.machine_class != two.machine_class
    assert re.fullmatch("[0-9a-f]{12}", one.machine_class)
    assert one.memory_bytes > 0
    assert 1 <= one.cores <= (os.cpu_count() or 1)
    assert one.device_name is None


def test_names_of_hosts_users_and_folders_are_in_none_of_it():
    commit, dirty = provenance.commit()
    facts = [provenance.machine(1, "cpu").model_dump(), provenance.packages(), commit, dirty]
    text = json.dumps(facts)
    secrets = {socket.gethostname(), socket.getfqdn(), getpass.getuser(), str(Path.home()), str(Path.cwd())}
    words = set(re.findall(r"[\w./-]+", text))
    assert not {s for s in secrets if s and (s in words or (len(s) > 5 and s in text))}
    assert "/" not in text.replace("/s", "")


def test_packages_are_those_that_results_depend_on():
    found = provenance.packages()
    assert {"torch", "numpy", "scipy"} <= set(found)
    assert all(re.match(r"\d+\.\d+", version) for version in found.values())


def test_commit_is_a_hash_or_unknown(monkeypatch):
    commit, dirty = provenance.commit()
    assert (commit is None) == (dirty is None)
    assert commit is None or re.fullmatch("[0-9a-f]{40}", commit)


def test_without_git_the_commit_is_unknown(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert provenance._git(Path(), "rev-parse", "HEAD") is None


def test_cpu_name_falls_back_where_the_kernel_tells_nothing(monkeypatch):
    provenance.cpu_name.cache_clear()
    monkeypatch.setattr(Path, "read_text", lambda *a, **k: (_ for _ in ()).throw(OSError()))
    try:
        assert provenance.cpu_name()
    finally:
        provenance.cpu_name.cache_clear()
