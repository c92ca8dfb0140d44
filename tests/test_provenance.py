"""Facts about machine and code, and no names of hosts or users."""

from __future__ import annotations

import getpass
import json
import os
import re
import shutil
import socket
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tdabench import provenance


def test_machine_class_depends_on_threads_and_device_kind_only_through_what_times_depend_on():
    one, same, two = (provenance.machine(n, "cpu") for n in (1, 1, 2))
    assert one == same
    assert one.machine_class != two.machine_class
    assert re.fullmatch("[0-9a-f]{12}", one.machine_class)
    assert one.memory_bytes > 0
    assert 1 <= one.cores <= (os.cpu_count() or 1)
    assert one.device_name is None


def test_cards_of_one_name_and_other_memory_are_two_classes(monkeypatch):
    def on(gib):
        found = SimpleNamespace(name="A card", total_memory=gib << 30)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: found)
        return provenance.machine(1, "cuda")

    small, large = on(10), on(12)
    assert (small.device_name, large.device_name) == ("A card, 10 GiB", "A card, 12 GiB")
    assert small.machine_class != large.machine_class


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


def test_a_folder_of_runs_is_no_change_of_the_code(tmp_path, monkeypatch):
    def git(*words):
        subprocess.run(["git", "-C", tmp_path, "-c", "user.name=a", "-c", "user.email=a@b", *words], check=True)

    (tmp_path / "tdabench").mkdir()
    (tmp_path / "tdabench" / "provenance.py").write_text("")
    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "first")
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "tdabench" / "provenance.py"))
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "record.json").write_text("{}")
    assert provenance.commit.__wrapped__()[1] is False
    (tmp_path / "tdabench" / "new.py").write_text("")
    assert provenance.commit.__wrapped__()[1] is True


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


@pytest.fixture
def copied(monkeypatch, tmp_path) -> Path:
    """Put copies of the sources in place of the package's own, and return their folder."""
    for package in ("tdabench", "tdabench.tasks", "tdabench.baselines"):
        copy = tmp_path / package
        shutil.copytree(provenance._folder(package), copy, ignore=lambda _, names: {n for n in names if skipped(n)})
    monkeypatch.setattr(provenance, "_folder", tmp_path.joinpath)
    return tmp_path


def skipped(name: str) -> bool:
    return ("." in name and not name.endswith(".py")) or name in ("__pycache__", "ground_truth", "slices")


@pytest.mark.parametrize(
    ("file", "counts"),
    [
        ("tdabench/gradients.py", True),
        ("tdabench/datasets/mnist.py", True),
        ("tdabench.tasks/networks.py", True),
        ("tdabench.baselines/influence/definition.py", True),
        ("tdabench.baselines/peers/library.py", True),
        ("tdabench.baselines/trak.py", False),
        ("tdabench.baselines/influence/lissa.py", False),
        ("tdabench.tasks/mnist_mlp/__init__.py", False),
        ("tdabench/board/page.py", False),
        ("tdabench/cli/measure.py", False),
    ],
)
def test_the_hash_of_the_sources_is_of_what_runs_share(copied, file, counts):
    hash_of = provenance.sources_sha256.__wrapped__
    before = hash_of()
    assert re.fullmatch("[0-9a-f]{12}", before)
    with (copied / file).open("a") as opened:
        opened.write("# changed\n")
    assert (hash_of() != before) == counts
