"""Where tasks and methods come from: entry points, or a file and a name in it (``./mine.py:MyMethod``).

A third party registers without touching this repository: its package declares an entry point in the group
``tdabench.tasks`` or ``tdabench.methods``.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import importlib.util
import inspect
import os
import shlex
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from tdabench.errors import UnknownNameError, UsageError
from tdabench.files import encodable

if TYPE_CHECKING:
    from tdabench.task import Task

TASKS = "tdabench.tasks"
METHODS = "tdabench.methods"

_tasks_from_files: dict[str, Task] = {}
"""Tasks that were found in files, by name: records name a task, not the file that it came from."""
_typed: dict[str, str] = {}
"""How the user called these, by name."""


@cache
def entry_points(group: str) -> importlib.metadata.EntryPoints:
    """Return what is registered in a group; read once a process, as it takes all installed distributions."""
    return importlib.metadata.entry_points(group=group)


def names(group: str) -> list[str]:
    """Return the registered names of a group, sorted."""
    return sorted(entry_points(group).names)


def find_task(reference: str) -> Task:
    """Return the task called ``reference``, or the one that ``path.py:NAME`` points to.

    A task found in a file is found by its name from then on.

    Raises
    ------
    UnknownNameError
        If there is none of that name.
    UsageError
        If it cannot be loaded, is no task, or has a path for a name, or that of a registered task but is another:
        results name tasks.
    """
    task = _find(TASKS, "task", reference, "tdabench tasks")
    from tdabench.task import Task

    if not isinstance(task, Task):
        raise UsageError(f"{reference} is a {type(task).__name__}, not a tdabench.Task. Name a Task object.")
    if not is_task_name(task.name):
        raise UsageError(f"{reference} is called {task.name}, which is a path. Give it a plain name (name=...).")
    if split_reference(reference) is not None:
        _refuse_taken(task, reference)
        _tasks_from_files[task.name], _typed[task.name] = task, reference
    elif task.name != reference:
        raise UsageError(
            f"The task registered as {reference} is called {task.name}, and results name tasks. Register it by that"
            " name."
        )
    return task


def _refuse_taken(task: Task, reference: str) -> None:
    if entry_points(TASKS).select(name=task.name):
        registered = _find(TASKS, "task", task.name, "tdabench tasks")
        if registered.version != task.version:
            raise UsageError(
                f"{reference} is called {task.name}, and is another than the registered task of that name. "
                "Give it a name of its own (name=...)."
            )


def reference_to(task: Task) -> str:
    """Return what to type to name a task: ``path.py:NAME`` as the user typed it if it came from a file, else its name.

    For hints on the terminal; records hold no folders of this machine.
    """
    if _tasks_from_files.get(task.name) is task:
        return shlex.quote(_typed[task.name])
    return task.name


def find_all(group: str, find: Callable[[str], Any], on_broken: Callable[[str, UsageError], None]) -> dict[str, Any]:
    """Return what ``find`` gives for every name that is registered in a group, but for those that cannot be loaded.

    Parameters
    ----------
    group
        :data:`TASKS` or :data:`METHODS`.
    find
        :func:`find_task`, :func:`find_method`, or what begins with one of them.
    on_broken
        Called with the name and the error of an entry point that cannot be loaded: one broken package of a third
        party must not hide what the others registered.
    """
    found = {}
    for name in names(group):
        try:
            found[name] = find(name)
        except UsageError as error:
            on_broken(name, error)
    return found


def find_method(reference: str) -> type[Any]:
    """Return the method class called ``reference``, or the one that ``path.py:Class`` points to."""
    method = _find(METHODS, "method", reference, "tdabench methods")
    from tdabench.method import MemberMethod, Method

    if not (inspect.isclass(method) and issubclass(method, (MemberMethod, Method))):
        raise UsageError(
            f"{reference} is not a method: expected a class with fit and attribute. "
            "Subclass tdabench.MemberMethod or tdabench.Method (docs/new-method.md)."
        )
    return method


def _find(group: str, kind: str, reference: str, command: str) -> Any:
    if names_file(reference):
        return _from_file(kind, reference)
    found = entry_points(group).select(name=reference)
    if not found and group == TASKS and reference in _tasks_from_files:
        return _tasks_from_files[reference]
    if not found:
        raise UnknownNameError(
            kind, reference, names(group), f"`{command}` lists them; a {kind} of your own is FILE.py:NAME."
        )
    entry = next(iter(found))
    others = sorted({other.value for other in found})
    if len(others) > 1:
        raise UsageError(
            f"Several packages register a {kind} called {reference}: {', '.join(others)}. Rename or remove one of them."
        )
    try:
        return entry.load()
    except (Exception, SystemExit) as error:
        raise UsageError(
            f"The {kind} {reference} cannot be loaded from {entry.value}: {type(error).__name__}: {error}. "
            "Repair or remove the package that registers it."
        ) from error


def names_file(reference: str) -> bool:
    """Return whether a reference points to a file, whose code runs when it is found."""
    return ".py:" in reference or reference.endswith(".py")


def is_task_name(name: str) -> bool:
    """Return whether a task may have this name: neither a file nor a path."""
    return not names_file(name) and "/" not in name


def split_reference(reference: str) -> tuple[Path, str] | None:
    """Return file and name of ``path.py:NAME``; None for a registered name."""
    if ".py:" not in reference:
        return None
    path, _, name = reference.rpartition(":")
    return Path(path), name


def absolute_reference(reference: str) -> str:
    """Return a reference that names the same from any folder: for workers that may be elsewhere."""
    parts = split_reference(reference)
    return reference if parts is None else f"{parts[0].absolute()}:{parts[1]}"


def _from_file(kind: str, reference: str) -> Any:
    parts = split_reference(reference)
    if parts is None:
        raise UsageError(f"{reference} names a file but no {kind} in it. Write {reference}:NAME.")
    path, name = parts
    module = _load(path)
    try:
        return getattr(module, name)
    except AttributeError:
        fits = _is_task if kind == "task" else inspect.isclass
        found = [n for n, v in vars(module).items() if fits(v) and not _is_imported(v, module)]
        raise UnknownNameError(f"{kind} in {path}", name, found, "Write FILE.py:NAME.") from None


def _is_task(value: Any) -> bool:
    from tdabench.task import Task

    return isinstance(value, Task)


def _is_imported(value: Any, module: ModuleType) -> bool:
    return inspect.isclass(value) and value.__module__ != module.__name__


def _load(path: Path) -> ModuleType:
    if not path.is_file():
        raise UsageError(f"There is no file {path}. Give the path of a Python file, as FILE.py:NAME.")
    if encodable(path.name) != path.name:
        raise UsageError(f"The name of {path} is not UTF-8, and no record can hold it. Give the file another name.")
    # One module per file content: an edited file is a new module, and a worker finds the same one.
    name = f"tdabench_file_{hashlib.sha256(os.fsencode(path.resolve()) + path.read_bytes()).hexdigest()[:12]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UsageError(f"{path} cannot be imported as Python. Give the path of a Python file, as FILE.py:NAME.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    beside = str(path.parent.absolute())
    # While it loads, the file may import what lies beside it, as a script may; that stands in for no installed module.
    added = beside not in sys.path
    if added:
        sys.path.append(beside)
    try:
        with contextlib.redirect_stdout(sys.stderr):  # stdout is for results
            spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # a script may call sys.exit at its end
        del sys.modules[name]
        text = f"{type(error).__name__}: {error}".rstrip(".")
        raise UsageError(f"{path} fails on import: {text}. Run `python {path}`.") from error
    finally:
        if added and beside in sys.path:
            sys.path.remove(beside)
    return module


def source_sha256(thing: type[Any]) -> str:
    """Return the SHA-256 of the file that defines a class: a change of the code is a new run.

    Of a class that extends a registered method's, or one of its own package, it is that of all files, one after the
    other. What tdabench's own methods share is in :func:`tdabench.provenance.sources_sha256`.
    """
    shared = {entry.module for entry in entry_points(METHODS)} - {thing.__module__}
    own = _package(thing) if _package(thing) != "tdabench" else None
    extended = [cls for cls in thing.__mro__ if cls.__module__ in shared or _package(cls) == own]
    files = dict.fromkeys(_source_file(cls) for cls in (thing, *extended))  # each once
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def _package(thing: type[Any]) -> str:
    return thing.__module__.partition(".")[0]


def _source_file(thing: type[Any]) -> Path:
    file = inspect.getsourcefile(thing)
    if file is None:
        raise UsageError(f"{thing.__name__} has no source file; define it in a .py file.")
    return Path(file)
