"""Termination: SIGTERM, by which a batch system ends a job, while runs are measured."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import NoReturn


class Terminated(KeyboardInterrupt):
    """SIGTERM came: clean up as after Ctrl-C."""


@contextlib.contextmanager
def cleaning_up() -> Iterator[None]:
    """Raise :class:`Terminated` at SIGTERM, so that what a method has started ends, and nothing unfinished is left.

    Only where runs are measured: a build leaves nothing to clean up, its workers end with it, and to wait for them, as
    a pool does after an exception, may take hours.
    """
    ours = threading.current_thread() is threading.main_thread()  # no other may set a handler
    if not ours or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, _raise)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _raise(*_: object) -> NoReturn:
    raise Terminated
