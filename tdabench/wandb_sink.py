"""Sending results to Weights & Biases: a copy for dashboards, never the source of truth.

Offline by default: the copies are files that ``wandb sync`` can upload later. Nothing is ever read back.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from tdabench.board.rows import AXES, Row
from tdabench.errors import UsageError

Mode = Literal["offline", "online"]


def send(rows: Sequence[Row], project: str, folder: Path, mode: Mode = "offline") -> int:
    """Send one W&B run per row, named by its run id; return how many.

    Parameters
    ----------
    rows
        Runs with their quality.
    project
        W&B project.
    folder
        Where W&B writes its files; made if needed.
    mode
        ``offline`` needs no account and no network.

    Raises
    ------
    UsageError
        If the ``wandb`` extra is not installed.
    """
    try:
        import wandb
    except ImportError:
        raise UsageError("Weights & Biases is not installed. Type: pip install 'tdabench[wandb]'.") from None
    folder.mkdir(parents=True, exist_ok=True)
    for row in rows:
        record = row.record
        run = wandb.init(
            project=project,
            name=record.run_id,
            group=record.task,
            tags=[record.method, row.kind, record.status],
            config=configuration(row),
            dir=str(folder),
            mode=mode,
            settings=wandb.Settings(console="off", silent=True, disable_git=True, x_disable_stats=True),
        )
        run.summary.update(summary(row))
        run.finish()
    return len(rows)


def configuration(row: Row) -> dict[str, Any]:
    """Return what decided the run."""
    record = row.record
    return {
        "task": record.task,
        "task_version": record.task_version,
        "method": record.method,
        "options": record.options,
        "ensemble": None if record.ensemble is None else record.ensemble.model_dump(),
        "seed": record.seed,
        "machine_class": record.machine.machine_class,
        "command": record.command,
    }


def summary(row: Row) -> dict[str, Any]:
    """Return the run's quality and costs; what was not measured is left out, never zero."""
    evaluation = row.evaluation
    quality = (
        {} if evaluation is None else {"lds": evaluation.lds, "lds_low": evaluation.low, "lds_high": evaluation.high}
    )
    costs = {f"{axis.key}_{'s' if axis.unit == 's' else 'bytes'}": axis.value(row) for axis in AXES}
    return {"status": row.record.status, **quality, **{k: v for k, v in costs.items() if v is not None}}
