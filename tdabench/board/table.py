"""The flat tables behind the page: one line a run, which is what the exports hold, and one line a row."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from tdabench.results.axes import AXES, peak_bytes
from tdabench.results.prices import Price, priced
from tdabench.results.rows import Row, on_fronts
from tdabench.results.runs import Run, configuration_name

if TYPE_CHECKING:
    import pandas as pd

# A spreadsheet runs a cell that starts with one of these as a formula; names and reasons come from strangers.
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")

_IDENTITY = ["task", "task_version", "configuration", "run_id", "created", "rank_group"]
_METHOD = ["method", "options", "options_from"]
_ENSEMBLE = ["ensemble", "ensemble_options", "members", "seed", "status", "reason", "lent_to"]
_MEMBERS = ["correlation_within", "correlation_between"]
_QUALITY = ["lds", "lds_low", "lds_high", "ceiling", "n_queries", "n_subsets", "constant_queries", "mislabel_auroc"]
_JOINED = ["configuration_seeds", "configuration_lds", "configuration_low", "configuration_high"]
_SIGNS = ["negated_better", "above_ceiling", "warnings"]
_COSTS = ["train_s", "extra_train_s", "fit_s", "attribute_s", "serve_s", "total_s", "tune_s", "wall_s"]
_AT_PRICE = ["train_s", "extra_train_s", "total_s"]
_PRICED = [f"priced_{key}" for key in _AT_PRICE]
_SIZES = ["peak_bytes", "peak_host_bytes", "peak_device_bytes", "reserved_device_bytes", "storage_bytes"]
_INGREDIENTS = ["models_trained", "adapters_trained", "forward_examples", "backward_examples"]
_FRONTS = [f"front_{axis.key}" for axis in AXES]
_MACHINE = [
    "machine_class",
    "cpu",
    "cores",
    "threads",
    "memory_bytes",
    "budget_bytes",
    "product_precision",
    "device",
    "device_name",
]
_CODE = ["tdabench_version", "commit", "dirty", "method_sha256", "data_sha256", "command"]
COLUMNS = (
    _IDENTITY + _METHOD + _ENSEMBLE + _MEMBERS + _QUALITY + _JOINED + _SIGNS + _COSTS + _PRICED + _SIZES + _INGREDIENTS
    + _FRONTS + _MACHINE + _CODE
)  # fmt: skip
MEANS = ["train_s", "extra_train_s", "fit_s", "attribute_s", "serve_s", "total_s", "peak_bytes", "storage_bytes"]
MEANS += _INGREDIENTS
"""Columns of which the page shows the mean over run seeds."""
KEYS = ["runs", "method", "ensemble", "members", "status", "task_version", "rank_group", "lds", "mislabel_auroc"]
KEYS += [*MEANS, *_FRONTS]
"""What the page's script knows of a row; ``runs`` are numbers of lines in the table of runs."""


def results_frame(rows: Sequence[Row]) -> pd.DataFrame:
    """Return one line a run, in the order of the rows given, with the columns ``COLUMNS``.

    A value that was not measured is None, never zero. ``configuration`` is what a run shares with those that differ
    from it in their seed alone; the other columns with that name, ``rank_group`` and the fronts are the
    configuration's, all else is the run's. Fronts are computed among the rows given, within one task version and
    machine class. Times of training are as measured; ``priced_train_s``, ``priced_extra_train_s`` and
    ``priced_total_s`` have models at their price (:mod:`tdabench.results.prices`). Fronts hold ``configuration_lds``
    against the mean, over seeds, of these, of ``serve_s``, ``peak_bytes`` and ``storage_bytes``, of runs that have an
    LDS, to 12 significant digits. A run with a ``lent_to`` was measured on another machine class: of its configuration,
    the LDS is its, too, and the costs are not.
    """
    import pandas as pd

    return pd.DataFrame(flat_runs(rows, on_fronts(rows)), columns=COLUMNS, dtype=object)


def flat_runs(rows: Sequence[Row], fronts: Sequence[frozenset[str]]) -> list[list[Any]]:
    """Return the values of ``COLUMNS`` for each run; numbers that are not finite become None, as JSON has no NaN."""
    made = []
    for row, front in zip(rows, fronts, strict=True):
        joined = _joined(row)
        for run in row.runs:
            cells = {**_identity(run), **_quality(run), **_costs(run), **_provenance(run), **joined}
            cells |= {f"priced_{key}": _cost(key, None if run.lent_to else row.price, run) for key in _AT_PRICE}
            cells["rank_group"] = None if run.lds is None else row.rank_group
            cells |= {f"front_{axis.key}": run.lds is not None and axis.key in front for axis in AXES}
            made.append([_finite(cells[column]) for column in COLUMNS])
    return made


def flat_rows(rows: Sequence[Row], fronts: Sequence[frozenset[str]]) -> list[list[Any]]:
    """Return the values of ``KEYS`` for each row."""
    made, first = [], 0
    for row, front in zip(rows, fronts, strict=True):
        r = row.record
        cells: dict[str, Any] = {"runs": list(range(first, first + len(row.runs))), "status": row.status}
        cells |= {"method": r.method, "ensemble": row.kind, "members": r.members, "task_version": r.task_version}
        cells |= {"rank_group": row.rank_group, "lds": row.lds, "mislabel_auroc": row.auroc, **means(row)}
        cells |= {f"front_{axis.key}": axis.key in front for axis in AXES}
        made.append([_finite(cells[key]) for key in KEYS])
        first += len(row.runs)
    return made


def means(row: Row) -> dict[str, float | None]:
    """Return the means over run seeds of ``MEANS``, models at their price; None where nothing was measured."""
    return {key: row.mean(partial(_cost, key, row.price)) for key in MEANS}


def _cost(key: str, price: Price | None, run: Run) -> float | None:
    value: float | None = _costs(run, price)[key]
    return value


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _identity(run: Run) -> dict[str, Any]:
    r, e = run.record, run.record.ensemble
    return {
        **{k: getattr(r, k) for k in ("task", "task_version", "run_id", "created", "method", "members", "seed")},
        "options": json.dumps(r.options, sort_keys=True),
        "options_from": r.options_from,
        "ensemble": e.kind if e else "none",
        "ensemble_options": json.dumps(e.options if e else {}, sort_keys=True),
        "status": r.status,
        "reason": run.reason or None,
        "lent_to": run.lent_to or None,
        "correlation_within": r.correlations.within if r.correlations else None,
        "correlation_between": r.correlations.between if r.correlations else None,
    }


def _joined(row: Row) -> dict[str, Any]:
    low, high = row.interval
    return {
        "configuration": configuration_name(row.record),
        "configuration_seeds": None if row.lds is None else len(row.seeds_counted),
        "configuration_lds": row.lds,
        "configuration_low": low,
        "configuration_high": high,
    }


def _quality(run: Run) -> dict[str, Any]:
    e = run.evaluation if run.lds is not None else None
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


def _costs(run: Run, price: Price | None = None) -> dict[str, Any]:
    costs, ingredients = priced(run.record, price), run.record.ingredients
    cells: dict[str, Any] = dict.fromkeys(_COSTS + _SIZES + _INGREDIENTS)
    if costs is not None:
        cells |= {k: v for k, v in costs.model_dump().items() if k in cells}
        cells |= {"serve_s": costs.serve_s, "total_s": costs.train_s + costs.serve_s, "peak_bytes": peak_bytes(costs)}
    if ingredients is not None:
        cells |= ingredients.model_dump()
    return cells


def _provenance(run: Run) -> dict[str, Any]:
    code = run.record.provenance
    return {
        **run.record.machine.model_dump(),
        **{k: getattr(code, k) for k in ("tdabench_version", "commit", "dirty", "method_sha256", "data_sha256")},
        "command": run.record.command,
    }


def csv_text(frame: pd.DataFrame) -> str:
    """Write the table as CSV; text that a spreadsheet would run as a formula gets a quote in front.

    A line break in a text is a line feed: a carriage return alone is not quoted, and would end the line for a reader.
    """
    return frame.map(_harmless).to_csv(index=False, lineterminator="\n")


def _harmless(cell: Any) -> Any:
    if not isinstance(cell, str):
        return cell
    text = f"'{cell}" if cell.startswith(_FORMULA_STARTS) else cell
    return text.replace("\r\n", "\n").replace("\r", "\n")


def json_text(frame: pd.DataFrame) -> str:
    """Write the table as a JSON list of objects, one a run, exact."""
    records = frame.to_dict(orient="records")
    return json.dumps(records, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
