"""Sending results to Weights & Biases: a copy for dashboards, never the source of truth.

Offline by default: the copies are files that ``wandb sync`` can upload later. Nothing is ever read back.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from tdabench.errors import UsageError
from tdabench.files import check_writable
from tdabench.records import Record
from tdabench.results.axes import AXES
from tdabench.results.runs import Run

Mode = Literal["offline", "online"]

_LONGEST_TAG = 64
"""W&B refuses longer ones."""


def send(runs: Sequence[Run], project: str, folder: Path, mode: Mode = "offline") -> int:
    """Send one W&B run per run, named by its run id; return how many.

    A run that is sent again, to the same project, is the same W&B run.

    Parameters
    ----------
    runs
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
        If the ``wandb`` extra is not installed, or W&B refuses a run: its project's name, a missing login.
    StorageError
        If ``folder`` cannot be written: W&B would write elsewhere.
    """
    try:
        import wandb
    except ImportError:
        raise UsageError("Weights & Biases is not installed. Type: pip install 'tdabench[wandb]'.") from None
    check_writable(folder, "Name another folder with --dir.")
    folder.mkdir(parents=True, exist_ok=True)
    for sent, one in enumerate(runs):
        try:
            _send(one, project, folder, mode)
        except (wandb.Error, ValueError) as error:  # of settings that it checks itself, pydantic's
            why = " ".join(str(error).split())
            raise UsageError(
                f"Weights & Biases refuses {one.record.run_id}: {why}. {sent} of {len(runs)} runs were sent before it."
            ) from error
    return len(runs)


def _send(one: Run, project: str, folder: Path, mode: Mode) -> None:
    import wandb

    record = one.record
    tags = [record.method, record.ensemble.kind if record.ensemble else "none", record.status]
    run = wandb.init(
        project=project,
        id=_id(record),
        resume="allow" if mode == "online" else None,  # offline, `wandb sync` goes by the id
        name=record.run_id,
        group=record.task,
        tags=[tag[:_LONGEST_TAG] for tag in tags],  # the whole name is in the configuration
        config=configuration(one),
        dir=str(folder),
        mode=mode,
        settings=wandb.Settings(console="off", silent=True, disable_git=True, x_disable_stats=True),
    )
    run.summary.update(summary(one))
    run.finish()


def _id(record: Record) -> str:
    """Return what W&B knows a run by: another measurement of the same configuration is another run."""
    return hashlib.sha256(f"{record.run_id} {record.created}".encode()).hexdigest()[:16]


def configuration(run: Run) -> dict[str, Any]:
    """Return what decided the run."""
    record = run.record
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


def summary(run: Run) -> dict[str, Any]:
    """Return the run's quality and costs; what was not measured is left out, never zero."""
    evaluation = run.evaluation
    quality = (
        {} if evaluation is None else {"lds": evaluation.lds, "lds_low": evaluation.low, "lds_high": evaluation.high}
    )
    costs = {f"{axis.key}_{'s' if axis.unit == 's' else 'bytes'}": axis.of(run.record) for axis in AXES}
    return {"status": run.record.status, **quality, **{k: v for k, v in costs.items() if v is not None}}
