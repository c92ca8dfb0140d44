"""What is installed is what stands in the repository, and nothing in it is of the machine it was made on."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from tdabench._version import __version__

ROOT = Path(__file__).parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def package_folders() -> dict[str, Path]:
    """Return every folder with an ``__init__.py``, by the name that it is imported under."""
    found = {}
    for top, name in (("tdabench", "tdabench"), ("tasks", "tdabench.tasks"), ("baselines", "tdabench.baselines")):
        for file in (ROOT / top).rglob("__init__.py"):
            below = file.parent.relative_to(ROOT / top).parts
            found[".".join([name, *below])] = file.parent
    return found


def test_every_package_is_listed():
    assert sorted(PYPROJECT["tool"]["setuptools"]["packages"]) == sorted(package_folders())


def test_what_is_cited_is_this_version():
    cited = re.search(r"^version: (\S+)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)[1]
    assert cited == __version__


def test_every_folder_of_code_is_a_package():
    folders = {file.parent for top in ("tdabench", "tasks", "baselines") for file in (ROOT / top).rglob("*.py")}
    assert folders == set(package_folders().values())


@pytest.mark.parametrize("group", ["tdabench.tasks", "tdabench.methods"])
def test_every_entry_point_loads(group):
    declared = PYPROJECT["project"]["entry-points"][group]
    for name, value in declared.items():
        assert importlib.metadata.EntryPoint(name, value, group).load() is not None
    assert {(e.name, e.value) for e in importlib.metadata.entry_points(group=group)} >= set(declared.items())


def test_every_task_folder_is_registered_and_complete():
    declared = PYPROJECT["project"]["entry-points"]["tdabench.tasks"].values()
    folders = {path.parent.name for path in (ROOT / "tasks").glob("*/__init__.py")}
    assert {value.split(":")[0].removeprefix("tdabench.tasks.") for value in declared} == folders
    for folder in folders:
        for name in required_files(folder):
            assert (ROOT / "tasks" / folder / name).is_file(), f"tasks/{folder} has no {name}"


def required_files(folder: str) -> list[str]:
    """Return what a task must have: a card, and its ground truth unless that is still being built."""
    task = importlib.import_module(f"tdabench.tasks.{folder}").TASK
    unfinished = task.needs_cuda or (task.folder / "slices").is_dir()
    return ["README.md", *([] if unfinished else ["ground_truth/manifest.json", "ground_truth/arrays.safetensors"])]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> zipfile.ZipFile:
    """Return a wheel built from the tracked files and those that would be, so that no earlier build is in it."""
    if importlib.util.find_spec("setuptools") is None:
        pytest.skip("setuptools is not installed, so the wheel was NOT built and NOT checked")
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in tracked("--others", "--exclude-standard"):
        if (ROOT / name).is_file() and not name.startswith(("tests/", "leaderboard/")):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    words = ["pip", "wheel", ".", "--no-deps", "--no-build-isolation", "--quiet", "--wheel-dir", str(out)]
    done = subprocess.run([sys.executable, "-m", *words], cwd=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (path,) = out.glob("*.whl")
    return zipfile.ZipFile(path)


def tracked(*more: str) -> list[str]:
    words = ["git", "-C", str(ROOT), "ls-files", "--cached", *more]
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no git")
    if done.returncode != 0:
        pytest.skip("this is no git checkout")
    return sorted(set(done.stdout.splitlines()))


def test_wheel_holds_everything_that_runs(wheel):
    names = set(wheel.namelist())
    for package, folder in package_folders().items():
        for file in folder.glob("*.py"):
            assert f"{package.replace('.', '/')}/{file.name}" in names
    for pattern in ("board/*.html", "board/*.css", "board/*.js", "suites/*.toml", "py.typed"):
        for file in (ROOT / "tdabench").glob(pattern):
            assert f"tdabench/{file.relative_to(ROOT / 'tdabench')}" in names
    assert any(name.endswith(".js") for name in names)
    assert "tdabench/suites/quick.toml" in names


def test_wheel_holds_ground_truth_and_cards(wheel):
    names = set(wheel.namelist())
    for task in (ROOT / "tasks").glob("*/__init__.py"):
        folder = f"tdabench/tasks/{task.parent.name}"
        for file in required_files(task.parent.name):
            assert f"{folder}/{file}" in names


def test_wheel_holds_nothing_else(wheel):
    inside = {name.split("/")[0] for name in wheel.namelist()}
    assert {name for name in inside if not name.endswith(".dist-info")} == {"tdabench"}
    assert not [name for name in wheel.namelist() if "__pycache__" in name or "/tests/" in name]
    (metadata,) = (name for name in wheel.namelist() if name.endswith("entry_points.txt"))
    assert b"tdabench = tdabench.cli:main" in wheel.read(metadata)


@pytest.mark.parametrize("prefix", ["/" + "work/", "/" + "root/", "/" + "home/", "/" + "Users/"])
def test_no_file_names_a_folder_of_a_machine(prefix):
    found = []
    for name in tracked():
        path = ROOT / name
        if path.is_file() and prefix.encode() in path.read_bytes():
            found.append(name)
    assert found == []
