"""Every error that tdabench raises on purpose.

    TdabenchError
    ├── UsageError            what was asked for cannot be done as asked
    │   ├── UnknownNameError      no task, method, suite or option of that name
    │   ├── OptionError           an option's value has the wrong type or is out of range
    │   ├── OtherGroundTruthError evidence that was made for other ground truth than there is
    │   └── DataError             a data file is missing, or is not the file that the task was defined on
    ├── FileFormatError       a file is unreadable, truncated or not what its name says
    │   ├── ScoresError           scores of the wrong shape or type, or not finite
    │   └── GroundTruthError      ground truth that is incomplete or does not match its manifest
    │       └── MissingGroundTruthError   a task has none yet, or only that of another version of it
    ├── StorageError          the disk is full or not writable
    └── Declined              a method cannot run on a task, and says why (a status, not a failure)

A message says what is wrong, where, what was expected and what was got, and ends with what to type next.
The command line prints it without a traceback and exits with code 2.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any


class TdabenchError(Exception):
    """Base of all errors that tdabench raises on purpose."""


class UsageError(TdabenchError):
    """What was asked for cannot be done as asked."""


class UnknownNameError(UsageError):
    """No task, method, suite or option of that name.

    Parameters
    ----------
    kind
        The noun: "task", "method", "option of trak".
    name
        What was asked for.
    known
        What would have worked.
    hint
        What to type to see more; printed last.
    """

    def __init__(self, kind: str, name: str, known: Iterable[str], hint: str = "") -> None:
        self.kind, self.name, self.known = kind, name, sorted(known)
        near = difflib.get_close_matches(name, self.known, n=1)
        guess = f" Did you mean {near[0]!r}?" if near else ""
        listing = ", ".join(self.known) if self.known else "none"
        super().__init__(f"Unknown {kind} {name!r}.{guess} Known: {listing}.{' ' + hint if hint else ''}")
        self._hint = hint

    def __reduce__(self) -> tuple[Any, ...]:
        """Let a worker process hand the error to its parent."""
        return type(self), (self.kind, self.name, self.known, self._hint)


class OptionError(UsageError):
    """An option's value has the wrong type or is out of range."""


class OtherGroundTruthError(UsageError):
    """Evidence was made for other ground truth, or other queries, than there is."""


class DataError(UsageError):
    """A data file is missing, or is not the file that the task was defined on."""


class FileFormatError(TdabenchError):
    """A file is unreadable, truncated or not what its name says."""


class ScoresError(FileFormatError):
    """Scores of the wrong shape or type, or not finite."""


class GroundTruthError(FileFormatError):
    """Ground truth that is incomplete or does not match its manifest."""


class MissingGroundTruthError(GroundTruthError):
    """A task has no ground truth yet, or only that of another version of it."""


class StorageError(TdabenchError):
    """The disk is full or not writable."""


class Declined(TdabenchError):  # noqa: N818 - a status, not a failure
    """A method cannot run on a task, and says why; the board shows the reason."""
