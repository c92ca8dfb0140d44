"""A build for test_killed_builds to kill: as a program with a worker process, or in one thread of one process."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path

from tdabench import provenance
from tdabench.building import build
from tdabench.filling import Options, Progress


def run(reference: str, out: Path, slices: Path, log: Path, *, pool: bool = False) -> None:
    """Build into ``out``, replacing what is there, and log a line for each progress."""
    provenance.commit = lambda: ("0" * 40, False)  # a commit made meanwhile would be another builder

    def note(progress: Progress) -> None:
        with log.open("a") as file:
            file.write(f"{progress.done} {progress.fresh}\n")

    with nullcontext() if pool else ThreadPoolExecutor(1) as executor:
        options = Options(workers=1, slices=slices)
        build(reference, out, options, executor=executor, replace=True, on_progress=note)


if __name__ == "__main__":
    run(sys.argv[1], *map(Path, sys.argv[2:]), pool=True)
