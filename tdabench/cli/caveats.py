"""Caveats: what a reader of measured runs must know about how they were measured, a line each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tdabench.cli.output import note, warn
from tdabench.formats import listing

if TYPE_CHECKING:
    from tdabench.records import Record

_SHOWN = 3
_AGAIN = "use `tdabench run ... --again` or another folder with --runs"


def note_other_sources(records: Sequence[Record], again: str = _AGAIN) -> None:
    """Say which runs were measured with other sources of tdabench than today's, and how to measure them anew.

    Such runs count as measured: else every commit would cost all of them.
    """
    from tdabench.provenance import sources_sha256

    today = sources_sha256()
    others = [record for record in records if record.provenance.sources_sha256 != today]
    if others:
        note(
            f"{_counted(others, records)} measured with other tdabench sources than today's. To measure anew, {again}."
        )


def warn_of_busy(records: Sequence[Record]) -> None:
    """Say which times were taken while the machine did other work, and how to take them again."""
    from tdabench.datasets import cache_folder

    busy = [record for record in records if record.busy()]
    if not busy:
        return
    if len(records) == 1:
        what = busy[0].warnings()[0]
    else:
        labels = [f"{record.task}: {record.label}" for record in busy]
        what = f"{_counted(busy, records)} measured on a busy machine ({listing(labels, _SHOWN, '; ')})."
    trained = any(name != "serving" for record in busy for name in record.busy())
    kept = (
        f" Trainings keep their times: remove those models below {cache_folder() / 'models'} first." if trained else ""
    )
    warn(f"{what} Measure again on an idle machine, with `tdabench run ... --again`.{kept}")


def warn_of_busy_candidates(records: Sequence[Record], runs: Path) -> None:
    """Say how many of a tuning's times, which are charged, were taken while the machine did other work."""
    from tdabench.tuned import CANDIDATES_FOLDER

    busy = [record.run_id for record in records if record.busy()]
    if busy:
        warn(
            f"Of {len(records)} candidates {len(busy)} had a busy machine ({listing(busy, _SHOWN, '; ')}), "
            "and the tuning is charged with their times. To try them again on an idle machine, remove their folders "
            f"in {runs / CANDIDATES_FOLDER}."
        )


def _counted(some: Sequence[Record], records: Sequence[Record]) -> str:
    if len(records) == 1:
        return "The run was"
    return f"{len(some)} of {len(records)} runs {'was' if len(some) == 1 else 'were'}"
