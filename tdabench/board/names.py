"""Names of rows: as brief as tells those apart that stand beside each other."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence

from tdabench.results.rows import Row
from tdabench.results.words import apart


def names(rows: Sequence[Row]) -> list[str]:
    """Name rows as briefly as tells them apart: method and size, then what else differs."""
    chosen = [row.short for row in rows]
    chosen = _tell_apart(rows, chosen, _options)
    chosen = _tell_apart(rows, chosen, lambda row: {"": code_name(row)})
    chosen = _tell_apart(rows, chosen, lambda row: {name: f"{name} {v}" for name, v in row.record.versions.items()})
    chosen = _tell_apart(
        rows, chosen, lambda row: {"": f"on {row.record.machine.device_name or row.record.machine.cpu}"}
    )
    return _tell_apart(rows, chosen, lambda row: {"": f"run {row.record.run_id}"})


def code_name(row: Row) -> str:
    """Name the version of the method's file that was run, by the start of its hash."""
    return f"code {row.record.provenance.method_sha256[:6]}"


def codes(rows: Sequence[Row]) -> list[str]:
    """Name each row's version of its method's file; empty for methods of which all rows have the same."""
    versions: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        versions[row.record.method].add(row.record.provenance.method_sha256)
    return [code_name(row) if len(versions[row.record.method]) > 1 else "" for row in rows]


def _tell_apart(rows: Sequence[Row], chosen: Sequence[str], facts: Callable[[Row], dict[str, str]]) -> list[str]:
    """Add, to names that several rows share, the facts in which those rows differ."""
    return [f"{name}{said}" for name, said in zip(chosen, apart(chosen, [*map(facts, rows)]), strict=True)]


def _options(row: Row) -> dict[str, str]:
    ensemble = row.record.ensemble
    options = {**(ensemble.options if ensemble else {}), **row.record.options}
    return {key: f"{key}={value}" for key, value in options.items()}
