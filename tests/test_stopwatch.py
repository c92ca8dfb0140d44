"""Phases exclude each other and add up."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tdabench.stopwatch import HARNESS, Stopwatch


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def test_an_inner_phase_stops_the_outer_ones_clock():
    clock = Clock()
    watch = Stopwatch(clock=clock)
    with watch.phase(HARNESS):
        clock.sleep(1)
        with watch.phase("fit"):
            clock.sleep(2)
            with watch.phase("train"):
                clock.sleep(4)
            clock.sleep(8)
        clock.sleep(16)
        with watch.phase("fit"):
            clock.sleep(32)
    assert watch.phases == {HARNESS: 17, "fit": 42, "train": 4}


def test_a_phase_inside_itself_is_counted_once():
    clock = Clock()
    watch = Stopwatch(clock=clock)
    with watch.phase("fit"):
        clock.sleep(1)
        with watch.phase("fit"):
            clock.sleep(2)
    assert watch.phases["fit"] == 3


def test_the_time_of_an_edge_goes_to_the_harness():
    clock = Clock()
    ended = []

    def edge(phase: str) -> None:
        ended.append(phase)
        clock.sleep(0.5)

    watch = Stopwatch(clock=clock, on_edge=edge)
    with watch.phase("attribute"):
        clock.sleep(1)
        with watch.phase("fit"):
            clock.sleep(2)
    assert ended == ["attribute", "fit", "attribute"]
    assert watch.phases == {"attribute": 1, "fit": 2, HARNESS: 1.5}


def test_processor_seconds_are_split_into_the_same_phases():
    clock, cpu = Clock(), Clock()
    watch = Stopwatch(clock=clock, cpu_clock=cpu, on_edge=lambda _: cpu.sleep(0.25))

    def work(wall: float, own: float) -> None:
        clock.sleep(wall)
        cpu.sleep(own)

    with watch.phase("attribute"):
        work(1, 0.5)
        with watch.phase("fit"):
            work(4, 4)
        work(2, 2)
    assert watch.phases == {"attribute": 3, "fit": 4, HARNESS: 0}
    assert watch.cpu_phases == {"attribute": 2.5, "fit": 4, HARNESS: 0.75}


def test_queued_work_is_charged_to_the_phase_that_queued_it():
    clock = Clock()
    queue = []

    def synchronize() -> None:
        clock.sleep(sum(queue))
        queue.clear()

    watch = Stopwatch(synchronize, clock)
    with watch.phase("fit"):
        queue.append(3.0)
        with watch.phase("train"):
            queue.append(5.0)
    assert (watch.phases["fit"], watch.phases["train"]) == (3, 5)


def test_time_between_phases_is_nobodys():
    clock = Clock()
    watch = Stopwatch(clock=clock)
    with watch.phase("fit"):
        clock.sleep(1)
    clock.sleep(100)
    with watch.phase("fit"):
        clock.sleep(1)
    assert sum(watch.phases.values()) == 2


def test_an_error_closes_its_phases():
    clock = Clock()
    watch = Stopwatch(clock=clock)

    def broken():
        with watch.phase("outer"), watch.phase("inner"):
            clock.sleep(2)
            raise ValueError("inside")

    with pytest.raises(ValueError, match="inside"):
        broken()
    with watch.phase("after"):
        clock.sleep(1)
    assert watch.phases == {"outer": 0, "inner": 2, HARNESS: 0, "after": 1}


def test_the_processor_time_of_child_processes_counts():
    watch = Stopwatch()
    burn = "import time\nwhile time.process_time() < 0.3: pass"
    with watch.phase("fit"):
        subprocess.run([sys.executable, "-c", burn], check=True)
    assert watch.cpu_phases["fit"] >= 0.3


TREE = st.recursive(
    st.just([]), lambda inner: st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 9), inner), max_size=3)
)


@given(TREE, st.integers(0, 3))
def test_whatever_the_nesting_the_phases_add_up_to_the_wall_clock(tree, edge_cost):
    clock = Clock()
    watch = Stopwatch(clock=clock, on_edge=lambda _: clock.sleep(edge_cost))

    def walk(nodes) -> None:
        for name, seconds, inner in nodes:
            with watch.phase(name):
                clock.sleep(seconds)
                walk(inner)
                clock.sleep(seconds)

    start = clock.now
    with watch.phase("all"):
        walk(tree)
    assert sum(watch.phases.values()) == clock.now - start
