"""Termination while runs are measured: SIGTERM, by which a batch system ends a job, and SIGHUP of a closed terminal."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import NoReturn

_SIGNALS = (signal.SIGTERM, signal.SIGHUP)


class Terminated(KeyboardInterrupt):
    """One of the signals came: clean up as after Ctrl-C."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.exit_code = 128 + number


@contextlib.contextmanager
def cleaning_up() -> Iterator[None]:
    """Raise :class:`Terminated` at these signals, so that what a method started ends, and nothing unfinished is left.

    Only where runs are measured: a build leaves nothing to clean up, its workers end with it, and to wait for them, as
    a pool does after an exception, may take hours.
    """
    ours = threading.current_thread() is threading.main_thread()  # no other may set a handler
    # One that is ignored stays so: nohup asks for that.
    taken = [one for one in _SIGNALS if ours and signal.getsignal(one) == signal.SIG_DFL]
    for one in taken:
        signal.signal(one, _raise)
    try:
        yield
    finally:
        for one in taken:
            signal.signal(one, signal.SIG_DFL)


def _raise(number: int, _: object) -> NoReturn:
    raise Terminated(number)
