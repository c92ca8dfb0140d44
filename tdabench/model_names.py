"""Names that trained models and adapters are kept under, and stand by in records."""

from __future__ import annotations

_MODEL = "model-"


def model_name(seed: int, model: int) -> str:
    """Return the name that an attribution model is kept under."""
    return f"{_MODEL}{seed}-{model}"


def checkpoint_name(model: str, epoch: int) -> str:
    """Return the name that the attribution model called ``model`` is kept under as it was at the end of an epoch."""
    return f"{model}-epoch-{epoch}"


def adapter_name(seed: int, model: int, adapter: int, rank: int, epochs: int) -> str:
    """Return the name that an adapter is kept under."""
    return f"adapter-{seed}-{model}-{adapter}-rank-{rank}-epochs-{epochs}"


def is_model(name: str) -> bool:
    """Return whether a training is of an attribution model, checkpoints or not; else it is of an adapter or a bank."""
    return name.startswith(_MODEL)
