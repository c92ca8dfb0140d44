"""The runner: one fresh process per run, and a run folder whatever happens to it."""

from __future__ import annotations

import errno
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tdabench import errors, provenance
from tdabench._version import __version__
from tdabench.errors import TdabenchError, UsageError
from tdabench.files import folder_aside, folders_at_work, place_folder, write_text
from tdabench.jobs import RESULT_FILE, Plan
from tdabench.records import (
    LOG_FILE,
    RECORD_FILE,
    CorrelationsRecord,
    Costs,
    Ingredients,
    Provenance,
    Record,
    ScoresRecord,
    TrainingRecord,
    read_record,
)

OnEvent = Callable[[dict[str, Any]], None]
DEFAULT_TIMEOUT_S = 3600.0
_JOB_FILE = "job.json"
_ATTEMPT = "-attempt-"
_PROC, _CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")


Attempts = Mapping[str, Sequence[Path]]
"""Run folders by run id, each job's in the order of its attempts."""


def find_run(planned: Plan, runs: Path, listed: Attempts | None = None) -> Path | None:
    """Return the folder of the newest attempt at this job that ended as ok, else of the newest; None without any.

    To find many, list the folder of runs once (:func:`list_attempts`): else it is listed for each.

    Raises
    ------
    UsageError
        If a folder of the job's name holds another run.
    """
    attempts = (list_attempts(runs) if listed is None else listed).get(planned.run_id, ())
    found = {folder: read_record(folder) for folder in attempts if (folder / RECORD_FILE).exists()}
    for folder, record in found.items():
        if planned.run_id not in (record.run_id, record.run_id.rpartition(_ATTEMPT)[0]):
            raise UsageError(
                f"{folder} holds the run {record.run_id}. Give it that name, or remove it, and start again."
            )
    able = [folder for folder, record in found.items() if record.status == "ok"]
    return next(reversed(able or [*found]), None)


def is_at_work(planned: Plan, runs: Path) -> bool:
    """Return whether another command measures this job now, and will put it into the same folder."""
    return any(_text(folder / _JOB_FILE) == planned.job.to_json() for folder in folders_at_work(runs))


def list_attempts(runs: Path) -> Attempts:
    """Return where attempts at jobs are; a copy that somebody made beside them is none."""
    numbered: dict[str, dict[Path, int]] = defaultdict(dict)
    for folder in runs.iterdir() if runs.is_dir() else ():
        run_id, _, number = folder.name.rpartition(_ATTEMPT)
        if run_id and number.isdecimal():
            numbered[run_id][folder] = int(number)
        numbered[folder.name][folder] = 0  # a first attempt bears the run's id alone
    return {run_id: sorted(found, key=found.__getitem__) for run_id, found in numbered.items()}


def _next_folder(planned: Plan, runs: Path) -> Path:
    folder, number = runs / planned.run_id, 2
    while folder.exists():
        folder, number = runs / f"{planned.run_id}{_ATTEMPT}{number}", number + 1
    return folder


def run(
    planned: Plan,
    runs: Path,
    *,
    timeout_s: float = DEFAULT_TIMEOUT_S,
    on_event: OnEvent = lambda _: None,
) -> tuple[Path, Record]:
    """Measure a job in a fresh process and return its run folder and record.

    Whatever the method does, there is a record: its status is ok, declined, failed, timeout or out-of-memory, and its
    log is kept. An attempt never overwrites another.

    Parameters
    ----------
    planned
        The checked job.
    runs
        Folder of run folders.
    timeout_s
        Seconds after which the process group is killed.
    on_event
        Called with progress: ``{"phase": name}`` or ``{"done": members, "total": members}``.

    Raises
    ------
    TdabenchError
        If the task's data is missing, the disk is full, or the code is no longer that of the plan: then there is no
        row, because the method never ran.
    """
    with folder_aside(runs) as aside:
        start = time.monotonic()
        result = _launch(planned, aside, timeout_s, on_event)
        process_s = time.monotonic() - start
        if result["status"] == "refused":
            raise _refusal(result["kind"], result["reason"])
        (aside / RESULT_FILE).unlink(missing_ok=True)
        folder = _place(planned, result, process_s, aside, runs)
    return folder, read_record(folder)


def _place(planned: Plan, result: dict[str, Any], process_s: float, aside: Path, runs: Path) -> Path:
    """Write the record and give the folder the next free name: another command may measure the same meanwhile."""
    while True:
        folder = _next_folder(planned, runs)
        write_text(aside / RECORD_FILE, _record(planned, folder.name, result, process_s).to_json())
        try:
            place_folder(aside, folder)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        else:
            return folder


def _launch(planned: Plan, folder: Path, timeout_s: float, on_event: OnEvent) -> dict[str, Any]:
    killed_before = _out_of_memory_kills()
    folder = folder.absolute()  # the method may go to another
    job = folder / _JOB_FILE
    job.write_text(planned.job.to_json(), encoding="utf-8")
    with (folder / LOG_FILE).open("wb") as log:
        reading, writing = os.pipe()
        words = [str(job), str(folder), str(writing), str(os.getpid()), planned.key]
        try:
            process = subprocess.Popen(
                # -P: a user's ./random.py must not stand in for the library's.
                [sys.executable, "-P", "-m", "tdabench.worker", *words],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                pass_fds=[writing],
                start_new_session=True,  # so that the method's own children are killed with it
                env=_environment(planned),
            )
        finally:
            os.close(writing)
        try:
            in_time = _follow(process, reading, timeout_s, on_event)
        finally:
            os.close(reading)
            _kill_group(process)
            job.unlink(missing_ok=True)
    if not in_time:
        return {"status": "timeout", "reason": f"stopped after {timeout_s:g} s, the limit of --timeout or the suite"}
    return _result(folder, process.returncode, _out_of_memory_kills() > killed_before)


def _refusal(kind: str, reason: str) -> TdabenchError:
    """Return the worker's error as it was raised there, or as its nearest kin that is made from a text alone."""
    known = getattr(errors, kind, TdabenchError)
    return errors.UsageError(reason) if known is errors.UnknownNameError else known(reason)


def _environment(planned: Plan) -> dict[str, str]:
    threads = str(planned.job.threads)
    # Each library has a variable of its own, and one that the user has set would win over OpenMP's.
    libraries = dict.fromkeys(
        (f"{name}_NUM_THREADS" for name in ("OMP", "MKL", "OPENBLAS", "BLIS", "NUMEXPR")), threads
    )
    return {**os.environ, **libraries, **on_device(planned.job.device), "PYTHONUNBUFFERED": "1"}


def on_device(device: str) -> dict[str, str]:
    """Return the variables of a process whose times on a device are measured: nothing is loaded late, in a clock."""
    if device == "cpu":
        return {}
    # CUDA would load each kernel at its first call, and torch compile some products of its own.
    return {"CUDA_MODULE_LOADING": "EAGER", "TORCH_DISABLE_NATIVE_JIT": "1"}


def _follow(process: subprocess.Popen[bytes], reading: int, timeout_s: float, on_event: OnEvent) -> bool:
    """Pass events on until the process ends; False if the time was up first."""
    deadline = time.monotonic() + timeout_s
    rest, listening = b"", True
    while process.poll() is None:
        left = deadline - time.monotonic()
        if left <= 0:
            return False
        if listening and select.select([reading], [], [], min(left, 0.1))[0]:
            chunk = os.read(reading, 65536)
            listening = bool(chunk)
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                if (event := _event(line)) is not None:
                    on_event(event)
        elif not listening:
            with suppress(subprocess.TimeoutExpired):
                process.wait(min(left, 0.1))
    return True


def _event(line: bytes) -> dict[str, Any] | None:
    """Return what a line tells; None if it is no event, as a method's libraries may write to any descriptor."""
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) and found.keys() & {"phase", "done"} else None


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _out_of_memory_kills() -> int:
    """Return a count that grows when the kernel kills a process for memory, as far as it tells.

    Kills at the limit of a container are counted in its control group, those of a full machine by the whole kernel.
    """
    counters = [_PROC / "vmstat", _CGROUPS / "memory.events", _own_group() / "memory.events"]
    lines = [line for path in counters for line in _text(path).splitlines()]
    return sum(int(line.split()[1]) for line in lines if line.startswith("oom_kill "))


def _own_group() -> Path:
    """Return the folder of this process's control group (version 2)."""
    lines = _text(_PROC / "self" / "cgroup").splitlines()
    path = next((line.removeprefix("0::") for line in lines if line.startswith("0::")), "/")
    return _CGROUPS / path.lstrip("/")


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""


def _result(folder: Path, code: int, out_of_memory: bool) -> dict[str, Any]:
    path = folder / RESULT_FILE
    if path.exists():
        return json.loads(path.read_text(encoding="utf-8"))
    if out_of_memory and code == -signal.SIGKILL:
        return {"status": "out-of-memory", "reason": "killed by the kernel, which ran out of memory"}
    if code < 0:
        return {"status": "failed", "reason": f"killed by {_name_of(-code)}; its log ends where it was"}
    return {"status": "failed", "reason": f"the process ended with code {code} and left no result; see its log"}


def _name_of(number: int) -> str:
    """Return what a signal is called; most of those for real-time programs have a number alone."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _record(planned: Plan, run_id: str, result: dict[str, Any], process_s: float) -> Record:
    return Record(
        run_id=run_id,
        created=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        task=planned.task.name,
        task_version=planned.task.version,
        method=planned.method,
        options=planned.options,
        options_from=planned.options_from,
        ensemble=planned.ensemble,
        seed=planned.job.seed,
        status=result["status"],
        reason=result["reason"],
        process_s=process_s,
        costs=Costs(**result["costs"]) if "costs" in result else None,
        phases=result.get("phases", {}),
        cpu_phases=result.get("cpu_phases", {}),
        trainings={name: TrainingRecord(**cost) for name, cost in result.get("trainings", {}).items()},
        ingredients=Ingredients(**result["ingredients"]) if "ingredients" in result else None,
        correlations=CorrelationsRecord(**result["correlations"]) if result.get("correlations") else None,
        scores=ScoresRecord(**result["scores"]) if "scores" in result else None,
        machine=planned.machine,
        provenance=_provenance(planned, result),
        command=planned.command,
    )


def _provenance(planned: Plan, result: dict[str, Any]) -> Provenance:
    own = provenance.commit()  # of this process, which may be older than the code that the run's has read
    commit, dirty = (result.get(name, known) for name, known in zip(("commit", "dirty"), own, strict=True))
    return Provenance(
        tdabench_version=__version__,
        commit=commit,
        dirty=dirty,
        method_sha256=planned.method_sha256,
        data_sha256=planned.task.data_sha256,
        python=sys.version.split()[0],
        sources_sha256=result.get("sources_sha256", provenance.sources_sha256()),
        packages=provenance.packages(*planned.versions),
        matmul_precision=result.get("matmul_precision", "unknown"),
        seeds={"run": [planned.job.seed]},
    )
