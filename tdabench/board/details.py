"""Details of a row: its runs, each with what replays it, and the facts in their records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tdabench.formats import format_bytes, format_score, format_seconds
from tdabench.records import Record
from tdabench.results.rows import Row
from tdabench.results.runs import Run

_BETWEEN = " · "
"""Stands between the values of runs that differ."""


@dataclass(frozen=True)
class Listed:
    """A run of a row.

    Attributes
    ----------
    anchor
        Its id on the page; empty for the first run of a row, which has the row's.
    lds
        The LDS with its interval, or how the run ended without one.
    warnings
        What a reader of its LDS and its times must know.
    """

    run: Run
    anchor: str
    lds: str
    warnings: list[str]


@dataclass(frozen=True)
class Block:
    """Facts under a title; where runs differ, the values of all in their order."""

    title: str
    facts: list[tuple[str, str]]
    without: str = ""


def listed(row: Row, anchors: Sequence[str]) -> list[Listed]:
    """Return the runs of a row; ``anchors`` go with them."""
    made = []
    for i, (run, anchor) in enumerate(zip(row.runs, anchors, strict=True)):
        of_costs = [] if run.lent_to else run.record.warnings()
        warnings = [*(run.evaluation.warnings() if run.evaluation else []), *of_costs]
        made.append(Listed(run, anchor if i else "", _lds(run), warnings))
    return made


def _lds(run: Run) -> str:
    e = run.evaluation
    if run.lds is None or e is None:
        return run.record.status if run.record.status != "ok" else "no LDS"
    return f"LDS {format_score(run.lds)}, 95 % interval {format_score(e.low)} to {format_score(e.high)}"


def blocks(row: Row) -> list[list[Block]]:
    """Return the facts of a row's runs on its machine class, in columns."""
    records = [run.record for run in row.own]

    def block(title: str, found: Sequence[Mapping[str, object]], without: str = "") -> Block:
        return Block(title, _merged(found), without)

    made_of = [block(f"Method: {row.record.method}", [_method(r) for r in records])]
    if row.record.ensemble is not None:
        made_of.append(block(f"Ensemble: {row.kind}", [_ensemble(r) for r in records]))
    return [
        made_of,
        [
            block("Seeds", [r.provenance.seeds for r in records], "none recorded"),
            block("Time and memory", [_costs(r) for r in records], "not measured"),
        ],
        [block("Machine", [_machine(r) for r in records])],
        [block("Code and inputs", [_code(r) for r in records])],
    ]


def _merged(found: Sequence[Mapping[str, object]]) -> list[tuple[str, str]]:
    """Return the facts of runs: one value where all have the same, else those of all in their order."""
    facts = []
    for name in dict.fromkeys(name for one in found for name in one):
        values = ["–" if (value := one.get(name)) is None or value == "" else str(value) for one in found]
        if set(values) != {"–"}:
            facts.append((name, values[0] if len(set(values)) == 1 else _BETWEEN.join(values)))
    return facts


def _method(r: Record) -> dict[str, object]:
    return {**r.options, "run seed": r.seed}


def _ensemble(r: Record) -> dict[str, object]:
    facts: dict[str, object] = {**(r.ensemble.options if r.ensemble else {}), "members": r.members}
    if r.correlations is not None:
        named = {"within a model": r.correlations.within, "between models": r.correlations.between}
        facts |= {f"correlation {k}": None if v is None else format_score(v) for k, v in named.items()}
    return facts


def _costs(r: Record) -> dict[str, object]:
    c = r.costs
    if c is None:
        return {}
    serving = r.cpu_phases.get("fit", 0.0) + r.cpu_phases.get("attribute", 0.0)
    return {
        "tuning": "on another machine class" if c.tune_s is None else format_seconds(c.tune_s),
        "training, as measured": format_seconds(c.train_s),
        "wall clock": format_seconds(c.wall_s),
        "processor, serving": format_seconds(serving),
        "host peak": format_bytes(c.peak_host_bytes),
        "host at start": format_bytes(c.baseline_host_bytes),
        "device peak": None if c.peak_device_bytes is None else format_bytes(c.peak_device_bytes),
        "device reserved": None if c.reserved_device_bytes is None else format_bytes(c.reserved_device_bytes),
    }


def _machine(r: Record) -> dict[str, object]:
    m = r.machine
    return {
        "class": m.machine_class,
        "processor": m.cpu,
        "cores": m.cores,
        "threads": m.threads,
        "memory": format_bytes(m.memory_bytes),
        **({} if m.budget_bytes is None else {"memory budget": format_bytes(m.budget_bytes)}),
        **({} if m.product_precision is None else {"products": m.product_precision}),
        "device": m.device_name or m.device,
        "matmul precision": r.provenance.matmul_precision,
    }


def _code(r: Record) -> dict[str, object]:
    p = r.provenance
    return {
        "tdabench": p.tdabench_version,
        "commit": (p.commit or "unknown") + (" + uncommitted changes" if p.dirty else ""),
        "shared sources": p.sources_sha256,
        "python": p.python,
        **p.packages,
        "method sha256": p.method_sha256,
        "data sha256": p.data_sha256,
        "scores sha256": r.scores.sha256 if r.scores else None,
        "task version": r.task_version,
        "run": r.run_id,
        "made": r.created,
    }
