"""On which machine, with which code: facts for records and manifests, without host or user names."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import subprocess
from functools import cache
from pathlib import Path

from tdabench.records import Machine

_PACKAGES = ("torch", "torchvision", "numpy", "scipy", "pandas", "scikit-learn", "safetensors")


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
    """Describe the machine; the machine class is a hash of what times depend on."""
    device_name = None
    if device.startswith("cuda"):
        import torch

        device_name = torch.cuda.get_device_name(device)
    cores = available_cores()
    text = "|".join([cpu_name(), str(cores), str(threads), device.split(":")[0], str(device_name)])
    return Machine(
        machine_class=hashlib.sha256(text.encode()).hexdigest()[:12],
        cpu=cpu_name(),
        cores=cores,
        threads=threads,
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        device=device,
        device_name=device_name,
    )


def packages(*more: str) -> dict[str, str]:
    """Return the versions of the packages that results depend on, and of ``more`` that are installed."""
    found = {}
    for name in (*_PACKAGES, *more):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


@cache
def commit() -> tuple[str | None, bool | None]:
    """Return the commit of tdabench's own checkout and whether it has changes; (None, None) when installed."""
    folder = Path(__file__).resolve().parent
    if not (folder.parent / ".git").exists():
        return None, None
    head = _git(folder, "rev-parse", "HEAD")
    status = _git(folder, "status", "--porcelain")
    return head, None if status is None else bool(status)


def _git(folder: Path, *words: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
