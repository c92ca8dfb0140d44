"""On which machine, with which code: facts for records and manifests, without host or user names."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import os
import platform
import re
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Literal

from tdabench.budgets import BUDGET_BYTES, budget_bytes
from tdabench.records import PACKAGES, Machine
from tdabench.registry import METHODS, entry_points

_CODE = ("tdabench", "baselines", "tasks", "pyproject.toml")


@cache
def cpu_name() -> str:
    """Return the processor's model name as the kernel tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    fields = dict(_field(line) for line in lines if ":" in line)  # of the last core; all are alike
    name = fields.get("model name") or platform.processor() or platform.machine()
    family, model = fields.get("cpu family"), fields.get("model")
    # Virtual machines hide the name of the model ("AMD EPYC"); family and model number tell generations apart.
    return f"{name} (family {family}, model {model})" if family and model else name


def _field(line: str) -> tuple[str, str]:
    key, _, value = line.partition(":")
    return key.strip(), value.strip()


def available_cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def machine(threads: int, device: str) -> Machine:
    """Describe the machine; the machine class is a hash of what times and sizes depend on.

    Raises
    ------
    UsageError
        If what ``TDABENCH_MEMORY_GB`` or ``TDABENCH_PRODUCTS`` says cannot be read.
    """
    from tdabench.precision import in_float32

    device_name = _gpu_name(device) if device.startswith("cuda") else None
    cores = available_cores()
    budget = None if device_name or budget_bytes() == BUDGET_BYTES else budget_bytes()
    text = "|".join([cpu_name(), str(cores), str(threads), device.split(":")[0], str(device_name)])
    if budget is not None:
        text += f"|{budget}"
    precision: Literal["float32"] | None = "float32" if in_float32() else None
    if precision is not None:
        text += f"|{precision}"
    return Machine(
        machine_class=hashlib.sha256(text.encode()).hexdigest()[:12],
        cpu=cpu_name(),
        cores=cores,
        threads=threads,
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        device=device,
        device_name=device_name,
        budget_bytes=budget,
        product_precision=precision,
    )


def _gpu_name(device: str) -> str:
    """Name a device with its memory, which blocks follow: of cards of one name some have 10 GiB and some 12."""
    import torch

    found = torch.cuda.get_device_properties(device)
    return f"{found.name}, {found.total_memory / 2**30:.0f} GiB"


def packages(*more: str) -> dict[str, str]:
    """Return the versions of the packages that results depend on, and of ``more`` that are installed."""
    return versions(*PACKAGES, *more)


def versions(*names: str) -> dict[str, str]:
    """Return the versions of those packages that are installed."""
    found = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


READERS = {"board", "cli", "findings", "archive", "bootstrap", "ceiling", "evaluation", "evidence", "formats"}
READERS |= {"front", "mislabels", "notebook", "results", "saturation", "scores", "suites", "wandb_sink"}
"""Parts of the package that only read what runs left: none is imported by the process of a run."""


@cache
def sources_sha256() -> str:
    """Return a short hash of tdabench's own code that runs share: the package, and what tasks and baselines share.

    Without what only reads results, and without what a run names itself: a method's file is in its key, a task's
    definition in its version.
    """
    digest = hashlib.sha256()
    for name, path in sorted(_sources()):
        digest.update(f"{name} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()[:12]


def _sources() -> Iterator[tuple[str, Path]]:
    package, tasks, baselines = (_folder(name) for name in ("tdabench", "tdabench.tasks", "tdabench.baselines"))
    apart = {*READERS, "tasks", "baselines"}  # the last two are inside the package where it is installed
    yield from ((name, path) for name, path in _modules(package, "**/*.py") if re.split("[/.]", name)[0] not in apart)
    yield from ((f"tasks/{name}", path) for name, path in _modules(tasks, "*.py"))
    methods = {entry.module for entry in entry_points(METHODS)}
    for name, path in _modules(baselines, "**/*.py"):
        if f"tdabench.baselines.{name.removesuffix('.py').replace('/', '.')}" not in methods:
            yield f"baselines/{name}", path


def _folder(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.submodule_search_locations is not None
    return Path(spec.submodule_search_locations[0])


def _modules(folder: Path, pattern: str) -> Iterator[tuple[str, Path]]:
    return ((path.relative_to(folder).as_posix(), path) for path in folder.glob(pattern))


@cache
def commit() -> tuple[str | None, bool | None]:
    """Return the commit of tdabench's own checkout and whether its code differs; (None, None) when installed.

    Code is what can be imported, with the options and ground truth beside it; a folder of runs changes nothing.
    """
    folder = Path(__file__).resolve().parents[1]
    if not (folder / ".git").exists():
        return None, None
    head = _git(folder, "rev-parse", "HEAD")
    status = _git(folder, "status", "--porcelain", "--", *_CODE)
    return head, None if status is None else bool(status)


def _git(folder: Path, *words: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
