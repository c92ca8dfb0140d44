"""Trained models and adapters, kept with the measured time of training each alone.

A model trained once serves every run on this machine class, and every run that uses it is charged for it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from tdabench.files import storage_errors, write_bytes
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

    def load(self, name: str) -> tuple[Parameters, Trained] | None:
        """Return the checkpoint called ``name``; None if it is not there or is damaged."""
        path = self._path(name)
        if not path.exists():
            return None
        try:
            with storage_errors(path), safe_open(path, framework="pt", device=str(self.device)) as file:
                seconds = float((file.metadata() or {})["seconds"])
                parameters = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118 - not a dict
        except (SafetensorError, KeyError, ValueError):
            return None
        return parameters, Trained(seconds, path.stat().st_size)

    def train(self, name: str, train: Callable[[], Parameters]) -> tuple[Parameters, Trained]:
        """Train the checkpoint called ``name``, timed alone with the device synchronised, and keep it."""
        return self.train_run(lambda: {name: train()})[name]

    def train_run(self, train: Callable[[], dict[str, Parameters]]) -> dict[str, tuple[Parameters, Trained]]:
        """Do the same for several checkpoints of one training run, by name.

        Each is kept with the seconds of the whole run: what it takes to have any of them.
        """
        self._synchronize()
        start = time.perf_counter()
        checkpoints = train()
        self._synchronize()
        seconds = time.perf_counter() - start
        return {name: (values, self._keep(name, values, seconds)) for name, values in checkpoints.items()}

    def _keep(self, name: str, parameters: Parameters, seconds: float) -> Trained:
        content = save({k: p.cpu().contiguous() for k, p in parameters.items()}, metadata={"seconds": repr(seconds)})
        write_bytes(self._path(name), content)
        return Trained(seconds, len(content))

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.safetensors"

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
