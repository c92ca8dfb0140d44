"""Trained models and adapters, kept with the measured time of training each alone, and the processor's share of it.

A model trained once serves every run on this machine class, and every run that uses it is charged for it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from tdabench.devices import synchronize
from tdabench.files import reading_errors, storage_errors, write_bytes
from tdabench.meter import Trained
from tdabench.trainer import Parameters


class ModelStore:
    """A folder of checkpoints.

    Parameters
    ----------
    folder
        Where checkpoints are kept; made when needed.
    device
        Where parameters are loaded to.
    """

    def __init__(self, folder: Path, device: torch.device) -> None:
        self.folder, self.device = folder, device

    def find(self, name: str) -> Trained | None:
        """Return what the checkpoint called ``name`` cost, from its header; None if it is not there or is damaged."""
        path = self._path(name)
        with reading_errors(path):
            if not path.exists():
                return None
            path.open("rb").close()  # what cannot be opened is not there, as safetensors says it
        try:
            with storage_errors(path), safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                seconds, cpu_seconds = float(metadata["seconds"]), float(metadata["cpu_seconds"])
        except (SafetensorError, KeyError, ValueError):
            return None
        return Trained(seconds, path.stat().st_size, cpu_seconds)

    def is_intact(self, name: str) -> bool:
        """Return whether the tensors of the checkpoint called ``name`` are those that were written; reads all of it."""
        path = self._path(name)
        with contextlib.suppress(Exception), path.open("rb") as file:  # a damaged header may hold anything
            n = _header_bytes(file.read(8))
            if n <= path.stat().st_size:
                expected = json.loads(file.read(n))["__metadata__"]["sha256"]
                return hashlib.file_digest(file, "sha256").hexdigest() == expected
        return False

    def load(self, name: str) -> tuple[Parameters, Trained] | None:
        """Return the checkpoint called ``name``; None if it is not there or is damaged."""
        found, path = self.find(name), self._path(name)
        if found is None:
            return None
        with storage_errors(path), safe_open(path, framework="pt", device=str(self.device)) as file:
            return {k: file.get_tensor(k) for k in file.keys()}, found  # noqa: SIM118 - not a dict

    def train(self, name: str, train: Callable[[], Parameters]) -> Trained:
        """Train the checkpoint called ``name``, timed alone with the device synchronised, and keep it on disk only."""
        return self.train_run(lambda: {name: train()})[name]

    def train_run(self, train: Callable[[], dict[str, Parameters]]) -> dict[str, Trained]:
        """Train once and keep several checkpoints of it on disk, by name; timed alone with the device synchronised.

        Each is kept with the seconds of the whole run: what it takes to have any of them.
        """
        self._try_to_write()
        synchronize(self.device)
        start, cpu_start = time.perf_counter(), time.process_time()
        checkpoints = train()
        synchronize(self.device)
        took = time.perf_counter() - start, time.process_time() - cpu_start
        return {name: self._keep(name, values, *took) for name, values in checkpoints.items()}

    def _try_to_write(self) -> None:
        """Raise :class:`StorageError` before hours of training, not after."""
        with storage_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=self.folder).close()

    def _keep(self, name: str, parameters: Parameters, seconds: float, cpu_seconds: float) -> Trained:
        content = file_content(parameters, seconds, cpu_seconds)
        write_bytes(self._path(name), content)
        return Trained(seconds, len(content), cpu_seconds)

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.safetensors"


def file_content(parameters: Mapping[str, Tensor], seconds: float, cpu_seconds: float) -> bytes:
    """Return what a checkpoint's file holds: the tensors, what training them took, and their hash."""
    tensors = {k: p.cpu().contiguous() for k, p in parameters.items()}
    bare = memoryview(save(tensors))
    metadata = {
        "seconds": repr(seconds),
        "cpu_seconds": repr(cpu_seconds),
        "sha256": hashlib.sha256(bare[8 + _header_bytes(bare[:8]) :]).hexdigest(),
    }
    return save(tensors, metadata=metadata)


def _header_bytes(first: bytes | memoryview) -> int:
    """Return how long the header is, from the eight bytes before it."""
    return int.from_bytes(first, "little")
