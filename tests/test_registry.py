"""Tasks and methods come from entry points, or from a file; every way to get it wrong is one clear error."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import shlex
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tdabench import registry
from tdabench.errors import UnknownNameError, UsageError
from tdabench.files import sha256_file
from tdabench.registry import find_all, find_method, find_task, reference_to, source_sha256, split_reference

METHOD = """
import os
from pathlib import Path
from tdabench import MemberMethod, Task

SIZE = {size}

class Mine(MemberMethod):
    def attribute(self, member, state):
        return SIZE

class Other:
    pass

def function():
    pass
"""


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(METHOD.format(size=1))
    return path


def test_everything_that_is_registered_is_found():
    assert {"digits-mlp", "mnist-mlp"} <= set(registry.names(registry.TASKS))
    assert {"random", "gradient-norm", "grad-dot", "grad-cos", "trak"} <= set(registry.names(registry.METHODS))
    for name in registry.names(registry.TASKS):
        assert find_task(name).name == name
    for name in registry.names(registry.METHODS):
        assert find_method(name).__doc__


def test_unknown_names_are_guessed_at_and_end_with_what_to_type():
    with pytest.raises(UnknownNameError, match=r"Unknown task 'digits'. Did you mean 'digits-mlp'\?.*`tdabench tasks`"):
        find_task("digits")
    with pytest.raises(UnknownNameError, match=r"Unknown method 'track'. Did you mean 'trak'\?.*FILE.py:NAME\.$"):
        find_method("track")


def test_method_and_task_in_a_file(mine, small, small_reference):
    assert find_method(f"{mine}:Mine").__name__ == "Mine"
    assert find_task(small_reference) is small


def test_a_task_from_a_file_is_found_by_its_name_from_then_on(small, small_reference):
    find_task(small_reference)
    assert find_task("small") is small


def test_another_task_of_a_registered_name_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "_tasks_from_files", {})
    mine = tmp_path / "mine.py"
    text = """
from dataclasses import replace
from tdabench.tasks import digits_mlp
SAME = digits_mlp.TASK
OTHER = replace(SAME, recipe=replace(SAME.recipe, epochs=1))
"""
    mine.write_text(text)
    assert find_task(f"{mine}:SAME").name == "digits-mlp"
    with pytest.raises(UsageError, match=r"mine.py:OTHER is called digits-mlp, .*Give it a name of its own"):
        find_task(f"{mine}:OTHER")


def test_an_edited_file_is_a_new_method_with_another_hash(mine):
    first = find_method(f"{mine}:Mine")
    assert find_method(f"{mine}:Mine") is first
    before = source_sha256(first)
    mine.write_text(METHOD.format(size=22))
    second = find_method(f"{mine}:Mine")
    assert second().attribute(None, None) == 22
    assert source_sha256(second) != before


def test_a_method_that_extends_a_registered_one_changes_with_it(tmp_path, monkeypatch):
    base, mine = tmp_path / "registered_base.py", tmp_path / "mine.py"
    base.write_text("from tdabench import MemberMethod\n\n\nclass Base(MemberMethod): pass\n")
    mine.write_text("from registered_base import Base\n\n\nclass Mine(Base): pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    try:
        method = find_method(f"{mine}:Mine")
        assert source_sha256(method) == sha256_file(mine), "of nobody's method but its own"
        entry = importlib.metadata.EntryPoint("base", "registered_base:Base", registry.METHODS)
        monkeypatch.setattr(registry, "entry_points", lambda _: importlib.metadata.EntryPoints([entry]))
        before = source_sha256(method)
        base.write_text(base.read_text() + "# changed\n")
        assert len({before, source_sha256(method), sha256_file(mine)}) == 3
        assert source_sha256(method.__mro__[1]) == sha256_file(base)
    finally:
        sys.modules.pop("registered_base", None)


def test_a_method_changes_with_what_it_extends_of_its_own_package(tmp_path, monkeypatch):
    package = tmp_path / "their_package"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "common.py").write_text("from tdabench import MemberMethod\n\n\nclass Base(MemberMethod): pass\n")
    (package / "mine.py").write_text("from their_package.common import Base\n\n\nclass Mine(Base): pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    method = importlib.import_module("their_package.mine").Mine
    before = source_sha256(method)
    (package / "common.py").write_text("# changed\n")
    assert len({before, source_sha256(method), sha256_file(package / "mine.py")}) == 3


def test_methods_that_are_registered_are_known_by_their_own_files():
    for name in registry.names(registry.METHODS):
        method = find_method(name)
        assert source_sha256(method) == sha256_file(Path(sys.modules[method.__module__].__file__))


def test_a_file_whose_name_is_no_text_is_refused_and_a_folder_is_not(tmp_path, mine):
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    folder.mkdir()
    named = mine.rename(folder / "mine.py")
    assert find_method(f"{named}:Mine").__name__ == "Mine"
    named = named.rename(tmp_path / os.fsdecode(b"m\xff.py"))
    with pytest.raises(UsageError, match=r"The name of .* is not UTF-8, .* Give the file another name\."):
        find_method(f"{named}:Mine")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Min", r"Unknown method in .*mine.py 'Min'. Did you mean 'Mine'\? Known: Mine, Other\."),
        ("function", r"mine.py:function is not a method.*Subclass"),
        ("Other", r"mine.py:Other is not a method.*Subclass"),
        ("SIZE", r"mine.py:SIZE is not a method.*Subclass"),
        ("", r"Unknown method in .*mine.py ''"),
    ],
)
def test_a_wrong_name_in_a_file(mine, name, message):
    with pytest.raises(UsageError, match=message):
        find_method(f"{mine}:{name}")


def test_a_wrong_task_in_a_file_lists_the_tasks_in_it(mine, small_reference):
    with pytest.raises(UnknownNameError, match=r"Did you mean 'TASK'\? Known: SLOW, TASK\."):
        find_task(small_reference.replace(":TASK", ":TASKS"))
    with pytest.raises(UsageError, match=r"is a type, not a tdabench\.Task"):
        find_task(f"{mine}:Mine")


def test_a_file_without_a_name(mine):
    with pytest.raises(UsageError, match=r"names a file but no method in it. Write .*mine.py:NAME\."):
        find_method(str(mine))
    assert split_reference("trak") is None


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(UsageError, match=r"There is no file .*gone.py.*FILE.py:NAME\."):
        find_method(f"{tmp_path / 'gone.py'}:Mine")


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("import nothing_of_that_name", "ModuleNotFoundError"),
        ("class Mine(:", "SyntaxError"),
        ("1 / 0", "ZeroDivisionError"),
        ("import sys; sys.exit(0)", "SystemExit"),
        ("\0", "SyntaxError|ValueError"),
    ],
)
def test_a_file_that_fails_on_import(tmp_path, text, what):
    path = tmp_path / "broken.py"
    path.write_text(text)
    before = set(sys.modules)
    with pytest.raises(UsageError, match=rf"broken.py fails on import: ({what}).*Run `python "):
        find_method(f"{path}:Mine")
    assert not {m for m in set(sys.modules) - before if m.startswith("tdabench_file")}


def test_a_file_may_import_what_lies_beside_it_but_not_in_place_of_what_is_installed(tmp_path):
    """As `python FILE.py` does, so that what works there works here."""
    (tmp_path / "beside_it.py").write_text("from tdabench import MemberMethod\n\n\nclass Base(MemberMethod): pass\n")
    (tmp_path / "torch.py").write_text("raise SystemExit('not this one')\n")
    text = "import torch\nfrom beside_it import Base\n\n\nclass Mine(Base):\n    kind = torch.float32\n"
    (tmp_path / "mine_beside.py").write_text(text)
    before = list(sys.path)
    try:
        assert find_method(f"{tmp_path / 'mine_beside.py'}:Mine").__name__ == "Mine"
        assert sys.path == before
    finally:
        sys.modules.pop("beside_it", None)


def test_loading_a_file_leaves_the_order_of_the_path_alone(tmp_path, monkeypatch):
    (tmp_path / "mine_on_path.py").write_text("from tdabench import MemberMethod\n\n\nclass Mine(MemberMethod): pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    before = list(sys.path)
    find_method(f"{tmp_path / 'mine_on_path.py'}:Mine")
    assert sys.path == before


@pytest.mark.parametrize("name", ["mine.py", "mine.py:TASK", "my/task"])
def test_a_task_that_is_called_like_a_file_is_refused_before_it_is_measured(tmp_path, small_reference, name):
    file, _, _ = small_reference.rpartition(":")
    code = Path(file).read_text() + f"\nTASK = replace(TASK, name={name!r})\n"
    (tmp_path / "named.py").write_text(code)
    with pytest.raises(UsageError, match=rf"named\.py:TASK is called {name}, which is a path. Give it a plain name"):
        find_task(f"{tmp_path / 'named.py'}:TASK")


def test_an_entry_point_that_does_not_load(monkeypatch):
    broken = importlib.metadata.EntryPoint("broken", "nothing_of_that_name:Mine", registry.METHODS)
    monkeypatch.setattr(registry, "entry_points", lambda _: importlib.metadata.EntryPoints([broken]))
    with pytest.raises(UsageError, match=r"The method broken cannot be loaded from nothing_of_that_name:Mine.*package"):
        find_method("broken")


def test_a_name_that_two_packages_register_is_refused_and_both_are_named(monkeypatch):
    both = [
        importlib.metadata.EntryPoint("grad-dot", value, registry.METHODS)
        for value in ("tdabench.baselines.grad_dot:GradDot", "their_package.mine:Mine")
    ]
    monkeypatch.setattr(registry, "entry_points", lambda _: importlib.metadata.EntryPoints(both))
    said = r"Several packages register a method called grad-dot: tdabench\.baselines\.grad_dot:GradDot, their_package"
    with pytest.raises(UsageError, match=said):
        find_method("grad-dot")
    twice = importlib.metadata.EntryPoints([both[0], both[0]])  # as an editable install beside its sources has it
    monkeypatch.setattr(registry, "entry_points", lambda _: twice)
    assert find_method("grad-dot").__name__ == "GradDot"


def test_a_task_that_is_registered_by_another_name_is_refused_before_it_is_measured(monkeypatch):
    entry = importlib.metadata.EntryPoint("numerals", "tdabench.tasks.digits_mlp:TASK", registry.TASKS)
    monkeypatch.setattr(registry, "entry_points", lambda _: importlib.metadata.EntryPoints([entry]))
    with pytest.raises(UsageError, match=r"registered as numerals is called digits-mlp, .* Register it by that name"):
        find_task("numerals")


def test_a_broken_entry_point_hides_no_other(monkeypatch):
    entries = [
        importlib.metadata.EntryPoint("broken", "nothing_of_that_name:TASK", registry.TASKS),
        importlib.metadata.EntryPoint("digits-mlp", "tdabench.tasks.digits_mlp:TASK", registry.TASKS),
        importlib.metadata.EntryPoint("no-task", "tdabench.tasks.digits_mlp:Path", registry.TASKS),
    ]
    monkeypatch.setattr(registry, "entry_points", lambda _: importlib.metadata.EntryPoints(entries))
    told = {}
    found = find_all(registry.TASKS, find_task, told.__setitem__)
    assert {name: task.name for name, task in found.items()} == {"digits-mlp": "digits-mlp"}
    assert sorted(told) == ["broken", "no-task"]
    assert "cannot be loaded from nothing_of_that_name:TASK" in str(told["broken"])
    assert "not a tdabench.Task" in str(told["no-task"])


def test_a_task_is_named_as_the_user_called_it(small, small_reference, digits, tmp_path, monkeypatch):
    find_task(small_reference)
    assert reference_to(small) == shlex.quote(small_reference)
    assert reference_to(digits) == "digits-mlp"
    assert reference_to(replace(small, title="another object")) == "small"
    folder = tmp_path / "my tasks"
    folder.mkdir()
    shutil.copy(small_reference.removesuffix(":TASK"), folder / "mine.py")
    monkeypatch.chdir(tmp_path)
    assert reference_to(find_task("./my tasks/mine.py:TASK")) == "'./my tasks/mine.py:TASK'", "as a shell reads it"
    find_task(small_reference)  # as the other tests know it
