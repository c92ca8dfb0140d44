"""The process of one run: it sees the task without its ground truth, and is measured from outside and inside.

Started as ``python -m tdabench.worker JOB FOLDER EVENTS LAUNCHER KEY`` by :mod:`tdabench.runner`: JOB is a file, FOLDER
takes the results, EVENTS is a file descriptor for progress, one JSON object a line, LAUNCHER is a process id, and KEY
is that of the plan: what runs here must be what was planned.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import time
import traceback
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from tdabench import provenance
from tdabench.ensembles import parse_ensemble
from tdabench.errors import Declined, StorageError, TdabenchError, UsageError
from tdabench.execution import execute
from tdabench.files import encodable, write_arrays, write_json
from tdabench.jobs import RESULT_FILE, Job, Plan, plan
from tdabench.memory import PeakMemory, ran_out
from tdabench.meter import ATTRIBUTE, FIT, Meter
from tdabench.options import make
from tdabench.precision import exact_float32
from tdabench.records import SCORES_FILE
from tdabench.registry import find_method
from tdabench.view import TaskView

_SHIPPED = "tdabench.baselines."


class Events:
    """Progress for the launcher; silent once nobody listens."""

    def __init__(self, handle: int) -> None:
        self._handle = handle

    def send(self, **event: Any) -> None:
        """Write one event."""
        try:
            os.write(self._handle, (json.dumps(event) + "\n").encode())
        except OSError:  # the launcher is gone; the death signal is on its way
            return


def main() -> None:
    """Run the job and leave ``result.json``: what happened, and what it cost."""
    job_file, folder, handle, launcher = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    _die_with(launcher)
    sources, (commit, dirty) = provenance.sources_sha256(), provenance.commit()  # of the code that is imported now
    with exact_float32():
        result = _guarded(Job.from_json(job_file.read_text(encoding="utf-8")), sys.argv[5], folder, Events(handle))
    write_json(folder / RESULT_FILE, {**result, "sources_sha256": sources, "commit": commit, "dirty": dirty})


def _die_with(launcher: int) -> None:
    """End when the launcher ends, also if it was killed."""
    pr_set_pdeathsig = 1
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:
        prctl(pr_set_pdeathsig, signal.SIGKILL)
    if os.getppid() != launcher:  # it ended while this process was importing
        sys.exit(1)


def _guarded(job: Job, key: str, folder: Path, events: Events) -> dict[str, Any]:
    """Return the run's result; whatever the method raises becomes a status with a reason."""
    try:
        view, planned = _prepare(job, key, events)
    except TdabenchError as error:  # the user's mistake, not the method's
        return _refused(error)
    except Exception as error:
        traceback.print_exc()
        return _refused(_no_room(job) if ran_out(error) else _not_prepared(job, error))
    try:
        return _measure(planned, view, folder, events)
    except StorageError as error:  # the disk's fault, not the method's
        return _refused(error)
    except Declined as reason:
        return {"status": "declined", "reason": _one_line(reason) if str(reason).strip() else "it gave no reason"}
    except Exception as error:
        traceback.print_exc()
        return {"status": "out-of-memory" if ran_out(error) else "failed", "reason": _one_line(error)}


def _refused(error: TdabenchError) -> dict[str, Any]:
    return {"status": "refused", "kind": type(error).__name__, "reason": str(error)}


def _no_room(job: Job) -> UsageError:
    return UsageError(
        f"{job.task} does not fit into the memory of {job.device}: it ran out before the method began. End what else "
        "uses it, or use a machine with more. Nothing is recorded."
    )


def _not_prepared(job: Job, error: Exception) -> UsageError:
    return UsageError(
        f"The task {job.task} fails before the method begins: {_one_line(error)}. Mend it; nothing is recorded."
    )


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    shown = text if len(text) <= 500 else text[:500] + "..."
    alone = isinstance(error, TdabenchError) and shown
    return encodable(shown if alone else f"{type(error).__name__}: {shown}".rstrip(": "))


def _prepare(job: Job, key: str, events: Events) -> tuple[TaskView, Plan]:
    """Load the task and warm up; none of it is timed."""
    torch.set_num_threads(job.threads)
    planned = plan(job)
    _check_unchanged(planned, key)
    data = planned.task.data(Path(job.data_folder) if job.data_folder else None)
    if job.queries == "tuning":
        data = data.with_queries(planned.task.tuning_queries)
    view = TaskView(planned.task, data.to(job.device), planned.models_folder, seed=job.seed, meter=Meter(job.device))
    view.warm_up()
    if not find_method(job.method).__module__.startswith(_SHIPPED):
        _load_transforms(job.device)
    memory = PeakMemory(job.device)
    view.meter = Meter(job.device, memory, lambda phase: events.send(phase=phase))
    return view, planned


def _load_transforms(device: str) -> None:
    """Have torch load what it imports at the first ``torch.func.grad`` or step of an optimizer in a process.

    That takes a second and 80 MB, which are no method's. Those that ship with tdabench were measured without it.
    """
    import torch._dynamo

    one = torch.ones(1, device=device)
    torch.func.jvp(torch.sin, (one,), (one,))  # forward mode has rules of its own, compiled at its first use


def _check_unchanged(planned: Plan, key: str) -> None:
    if planned.key != key:
        raise UsageError(
            f"The code of {planned.method} or of {planned.task.name}, or a library, was changed after the command "
            "planned this run. Nothing is recorded for it; give the command again."
        )


def _measure(planned: Plan, view: TaskView, folder: Path, events: Events) -> dict[str, Any]:
    job = planned.job
    method = make(find_method(job.method), job.method, job.options)
    ensemble = parse_ensemble(job.ensemble) if job.ensemble else None
    start = time.perf_counter()
    scores = execute(method, ensemble, view, lambda done, total: events.send(done=done, total=total))
    wall_s = time.perf_counter() - start
    sha256 = write_arrays(folder / SCORES_FILE, {"scores": scores.numpy()})
    return {
        "status": "ok",
        "reason": None,
        "costs": _costs(view, wall_s, job.tune_s),
        "phases": view.meter.stopwatch.phases,
        "cpu_phases": view.meter.stopwatch.cpu_phases,
        "trainings": {n: {"wall_s": t.seconds, "cpu_s": t.cpu_seconds} for n, t in view.meter.trainings.items()},
        "ingredients": {
            "models_trained": view.meter.models_trained,
            "adapters_trained": len(view.meter.adapters),
            "forward_examples": view.meter.forward_examples,
            "backward_examples": view.meter.backward_examples,
        },
        "correlations": _correlations(view.meter),
        "scores": {"sha256": sha256, "shape": list(scores.shape), "dtype": "float32"},
        "matmul_precision": torch.get_float32_matmul_precision(),
    }


def _correlations(meter: Meter) -> dict[str, Any] | None:
    found = meter.correlations.result() if meter.correlations is not None else None
    return None if found is None else asdict(found)


def _costs(view: TaskView, wall_s: float, tune_s: float | None) -> dict[str, Any]:
    meter = view.meter
    phases = meter.stopwatch.phases
    memory, on_cuda = meter.memory, view.device.type == "cuda"
    assert memory is not None
    return {
        "train_s": meter.train_s,
        "extra_train_s": meter.extra_train_s,
        "fit_s": phases.get(FIT, 0.0),
        "attribute_s": phases.get(ATTRIBUTE, 0.0),
        "tune_s": tune_s,
        "wall_s": wall_s,
        "peak_host_bytes": _highest(memory.peaks),
        "baseline_host_bytes": memory.baseline,
        "peak_device_bytes": _highest(memory.allocated) if on_cuda else None,
        "reserved_device_bytes": _highest(memory.reserved) if on_cuda else None,
        "storage_bytes": meter.storage_bytes,
    }


def _highest(peaks: dict[str, int]) -> int:
    """Return the peak of serving.

    Training is charged by its own time and happens once; what the harness measures is not the method's either.
    """
    return max((peak for phase, peak in peaks.items() if phase in (FIT, ATTRIBUTE)), default=0)


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # a thread that the method left behind would hold the process, and its result, until the limit
