"""A stopwatch with phases that exclude each other, so that they add up to the wall clock."""

from __future__ import annotations

import contextlib
import resource
import time
from collections.abc import Callable, Iterator

HARNESS = "harness"


def processor_seconds() -> float:
    """Return the processor time so far of this process, all threads together, and of the children it waited for."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


class Stopwatch:
    """Measure phases of one run.

    Phases nest: entering an inner phase stops the outer one's clock, so no second is counted twice. The device is
    synchronised at every edge, so that queued work is charged to the phase that queued it.

    Parameters
    ----------
    synchronize
        Called before each reading of the clock.
    clock
        Monotonic, in seconds.
    on_edge
        Called with the name of the phase that ends at each edge; its own time is charged to the phase ``harness``.
    cpu_clock
        Processor seconds so far.
    """

    def __init__(
        self,
        synchronize: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.perf_counter,
        on_edge: Callable[[str], None] = lambda _: None,
        cpu_clock: Callable[[], float] = processor_seconds,
    ) -> None:
        self.phases: dict[str, float] = {}
        self.cpu_phases: dict[str, float] = {}
        self._synchronize, self._on_edge = synchronize, on_edge
        self._now = lambda: (clock(), cpu_clock())
        self._stack: list[str] = []
        self._since = (0.0, 0.0)

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Charge the block to ``name``, less the phases inside it."""
        self._edge()
        self._stack.append(name)
        try:
            yield
        finally:
            self._edge()
            self._stack.pop()

    def _edge(self) -> None:
        self._synchronize()
        now = self._now()
        if self._stack:
            name = self._stack[-1]
            self._charge(name, self._since, now)
            self._on_edge(name)
            after = self._now()
            self._charge(HARNESS, now, after)
            now = after
        self._since = now

    def _charge(self, name: str, start: tuple[float, float], end: tuple[float, float]) -> None:
        for spent, before, after in zip((self.phases, self.cpu_phases), start, end, strict=True):
            spent[name] = spent.get(name, 0.0) + (after - before)
