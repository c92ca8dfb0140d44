"""Authors: what fails in the functions of a task, or in what a method says of itself, is theirs to mend, and no run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tdabench.errors import TdabenchError, UsageError


@contextmanager
def author_errors(what: str, kind: type[UsageError] = UsageError, hint: str = "") -> Iterator[None]:
    """Say whose code failed, where anything but an error of ours or a lack of memory is raised inside.

    Parameters
    ----------
    what
        What is called, for the message: ``load_data of mnist-mlp``.
    kind
        What is raised.
    hint
        A sentence on what it usually is.

    Raises
    ------
    UsageError
        Of the given kind, from the author's own error.
    """
    try:
        yield
    except TdabenchError:
        raise
    except Exception as error:
        from tdabench.memory import ran_out  # which needs torch, and options are described without it

        if ran_out(error):
            raise
        text = f"{type(error).__name__}: {' '.join(str(error).split())}".rstrip(":. ")
        raise kind(f"{what} fails: {text}. {hint}{' ' if hint else ''}`tdabench --debug ...` shows where.") from error
