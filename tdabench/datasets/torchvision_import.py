"""Importing torchvision, also where it was built for another torch."""

from __future__ import annotations

from types import ModuleType


def import_torchvision() -> ModuleType:
    """Import torchvision, also where it was built for CUDA and torch for the CPU.

    Such a pair fails to import because torchvision registers fake kernels for operators that only its compiled
    library declares. Data sets need none of its operators, so declaring their schemas is enough.
    """
    import torch

    if not hasattr(torch.ops.torchvision, "nms"):
        try:
            import torchvision
        except RuntimeError:
            library = torch.library.Library("torchvision", "FRAGMENT")
            _declare(library, "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            _declare(library, "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            import torchvision
        return torchvision
    import torchvision

    return torchvision


def _declare(library: object, schema: str) -> None:
    """Declare an operator unless it is there already."""
    try:
        library.define(schema)  # type: ignore[attr-defined]
    except RuntimeError as error:
        if "already" not in str(error) and "duplicate" not in str(error).lower():
            raise
