"""The flat table behind the page: one row a run, stable columns; what the exports hold."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tdabench.board.rows import AXES, Row, on_fronts, peak_bytes

if TYPE_CHECKING:
    import pandas as pd

# A spreadsheet runs a cell that starts with one of these as a formula; names and reasons come from strangers.
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")

_IDENTITY = ["task", "task_version", "run_id", "created", "rank_group", "method", "options"]
_ENSEMBLE = ["ensemble", "ensemble_options", "members", "seed", "status", "reason"]
_MEMBERS = ["correlation_within", "correlation_between"]
_QUALITY = ["lds", "lds_low", "lds_high", "ceiling", "n_queries", "n_subsets", "constant_queries", "mislabel_auroc"]
_SIGNS = ["negated_better", "above_ceiling", "warnings"]
_COSTS = ["train_s", "extra_train_s", "fit_s", "attribute_s", "serve_s", "total_s", "tune_s", "wall_s"]
_SIZES = ["peak_bytes", "peak_host_bytes", "peak_device_bytes", "reserved_device_bytes", "storage_bytes"]
_INGREDIENTS = ["models_trained", "adapters_trained", "forward_examples", "backward_examples"]
_FRONTS = [f"front_{axis.key}" for axis in AXES]
_MACHINE = ["machine_class", "cpu", "cores", "threads", "memory_bytes", "device", "device_name"]
_CODE = ["tdabench_version", "commit", "dirty", "method_sha256", "data_sha256", "command"]
COLUMNS = (
    _IDENTITY + _ENSEMBLE + _MEMBERS + _QUALITY + _SIGNS + _COSTS + _SIZES + _INGREDIENTS + _FRONTS + _MACHINE + _CODE
)  # fmt: skip


def results_frame(rows: Sequence[Row]) -> pd.DataFrame:
    """Return one row a run, in the order given, with the columns ``COLUMNS``.

    A value that was not measured is None, never zero. Fronts are computed among the runs given, within one task
    version and machine class.
    """
    import pandas as pd

    return pd.DataFrame(flat_rows(rows, on_fronts(rows)), columns=COLUMNS, dtype=object)


def flat_rows(rows: Sequence[Row], fronts: Sequence[frozenset[str]]) -> list[list[Any]]:
    """Return the values of ``COLUMNS`` for each row; numbers that are not finite become None, as JSON has no NaN."""
    made = []
    for row, front in zip(rows, fronts, strict=True):
        cells = {**_identity(row), **_quality(row), **_costs(row), **_provenance(row)}
        cells |= {f"front_{axis.key}": axis.key in front for axis in AXES}
        made.append([_finite(cells[column]) for column in COLUMNS])
    return made


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _identity(row: Row) -> dict[str, Any]:
    r, e = row.record, row.record.ensemble
    return {
        **{k: getattr(r, k) for k in ("task", "task_version", "run_id", "created", "method", "members", "seed")},
        "rank_group": row.rank_group,
        "options": json.dumps(r.options, sort_keys=True),
        "ensemble": row.kind,
        "ensemble_options": json.dumps(e.options if e else {}, sort_keys=True),
        "status": r.status,
        "reason": r.reason,
        "correlation_within": r.correlations.within if r.correlations else None,
        "correlation_between": r.correlations.between if r.correlations else None,
    }


def _quality(row: Row) -> dict[str, Any]:
    e = row.evaluation if row.lds is not None else None
    if e is None:
        return dict.fromkeys(_QUALITY + _SIGNS)
    return {
        "lds": e.lds,
        "lds_low": e.low,
        "lds_high": e.high,
        **{k: getattr(e, k) for k in ("ceiling", "n_queries", "n_subsets", "constant_queries", "mislabel_auroc")},
        **{k: getattr(e, k) for k in ("negated_better", "above_ceiling")},
        "warnings": "; ".join(e.warnings()) or None,
    }


def _costs(row: Row) -> dict[str, Any]:
    costs, ingredients = row.record.costs, row.record.ingredients
    cells: dict[str, Any] = dict.fromkeys(_COSTS + _SIZES + _INGREDIENTS)
    if costs is not None:
        cells |= {k: v for k, v in costs.model_dump().items() if k in cells}
        cells |= {"serve_s": costs.serve_s, "total_s": costs.train_s + costs.serve_s, "peak_bytes": peak_bytes(costs)}
    if ingredients is not None:
        cells |= ingredients.model_dump()
    return cells


def _provenance(row: Row) -> dict[str, Any]:
    code = row.record.provenance
    return {
        **row.record.machine.model_dump(),
        **{k: getattr(code, k) for k in ("tdabench_version", "commit", "dirty", "method_sha256", "data_sha256")},
        "command": row.record.command,
    }


def csv_text(frame: pd.DataFrame) -> str:
    """Write the table as CSV; text that a spreadsheet would run as a formula gets a quote in front."""
    return frame.map(_harmless).to_csv(index=False, lineterminator="\n")


def _harmless(cell: Any) -> Any:
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(_FORMULA_STARTS) else cell


def json_text(frame: pd.DataFrame) -> str:
    """Write the table as a JSON list of objects, one a run, exact."""
    records = frame.to_dict(orient="records")
    return json.dumps(records, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
