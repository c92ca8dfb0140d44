"""What the adapters share: finding a library, giving it a model and data as it wants them, keeping it quiet."""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import tdabench

Files = dict[str, bytes]
"""What a library keeps in a folder, by name: state that the meter can count, as files it could not."""

INSTALL = "pip install 'tdabench[peers]'"
# What both TRAKs are tuned over. Theirs is no multiple of the kernel's mean diagonal, as ours is: that is 1 in dattri's
# units and 41 in traker's on digits-mlp, so the grid is wide.
TRAK_DAMPING = (0.0, 0.1, 1.0, 10.0, 100.0, 1000.0)
_LOG = logging.getLogger("tdabench.peers")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep what a library does to itself: progress bars, warnings, log handlers, torch's random state.

    Warnings go to the log ``tdabench.peers``; bars go nowhere.
    """
    root, placeholder = logging.getLogger(), logging.NullHandler()
    root.addHandler(placeholder)  # or else a library's basicConfig() would add one of its own, for good
    try:
        with (
            warnings.catch_warnings(record=True) as caught,
            contextlib.redirect_stderr(io.StringIO()),
            torch.random.fork_rng(devices=[]),
        ):
            warnings.simplefilter("always")
            yield
    finally:
        root.removeHandler(placeholder)
    for warning in caught:
        _LOG.info("%s: %s", warning.category.__name__, warning.message)


def optional(module: str) -> ModuleType | None:
    """Import a module of a library, and what it would load at its first use; None where it is not installed.

    Called when an adapter's file is loaded, which a run does before its clock starts and its memory is counted.
    """
    try:
        with quiet():
            found = importlib.import_module(module)
            importlib.import_module("torch._dynamo")  # torch loads it in the first backward() or compiler.reset()
            return found
    except ImportError:
        return None


class PeerMethod(tdabench.MemberMethod):
    """Base of the adapters.

    Attributes
    ----------
    library
        The distribution that does the work; its version stands in the record.
    module
        What of it was imported; None if it is not installed.
    """

    module: ModuleType | None = None

    def supports(self, task: tdabench.TaskView) -> str | None:
        """Name the extra if the library is missing."""
        return f"{self.library} is not installed: {INSTALL}" if self.module is None else None


def model_of(member: tdabench.Member, *, trainable: bool = True) -> nn.Module:
    """Return the member as a library wants it; see :meth:`tdabench.Member.module`."""
    return member.module(trainable=trainable)


def has_adapter(member: tdabench.Member) -> bool:
    """Return whether gradients are taken of an adapter, of which no layer of the model is the owner."""
    return any("parametrizations" in name for name in member.parameters)


def loader(examples: tdabench.Examples, batch_size: int) -> DataLoader[tuple[Tensor, ...]]:
    """Return the examples in order, in batches of (inputs, labels)."""
    return DataLoader(TensorDataset(examples.inputs, examples.labels), batch_size=batch_size, shuffle=False)


def count_gradients(member: tdabench.Member, n: int) -> None:
    """Tell the meter of ``n`` examples passed forward and backward, which it cannot see inside a library."""
    member.task.meter.count(forward=n, backward=n)


def read_files(folder: Path, *, without: str = "") -> Files:
    """Return the content of every file below a folder, but for names that match ``without``."""
    files = (path for path in folder.rglob("*") if path.is_file() and not (without and path.match(without)))
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def write_files(files: Files, folder: Path) -> None:
    """Write what :func:`read_files` returned."""
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
