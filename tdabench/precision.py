"""Which numbers products are taken of: bfloat16 where the processor computes in it, and float32 that is float32."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager
from functools import cache
from typing import Literal

import torch

from tdabench.errors import UsageError

Precision = Literal["float32", "bfloat16"]

PRODUCTS_VARIABLE = "TDABENCH_PRODUCTS"


@cache
def has_bfloat16(kind: str) -> bool:
    """Return whether devices of a kind (``cpu``, ``cuda``) multiply bfloat16 in hardware; emulation is slower."""
    if kind == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def used(asked: Precision, device: torch.device) -> Precision:
    """Return the precision that a recipe's is carried out in on a device."""
    return "bfloat16" if asked == "bfloat16" and has_bfloat16(device.type) else "float32"


def in_float32() -> bool:
    """Return whether the user wants products of gradients in float32 on every task, as other libraries take them.

    Raises
    ------
    UsageError
        If ``TDABENCH_PRODUCTS`` says anything else.
    """
    said = os.environ.get(PRODUCTS_VARIABLE, "").strip()
    if said not in ("", "float32"):
        raise UsageError(
            f"{PRODUCTS_VARIABLE} is {said!r}. Give float32, or leave it out: products are then in bfloat16 on the "
            "tasks whose models are trained in it."
        )
    return said == "float32"


def autocast(asked: Precision, device: torch.device) -> AbstractContextManager[object]:
    """Return the context that carries out a recipe's precision on a device."""
    if used(asked, device) == "float32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)


@contextlib.contextmanager
def exact_float32() -> Iterator[None]:
    """Multiply float32 numbers as such on CUDA, and add up in float32 what is multiplied in bfloat16.

    By default torch rounds a convolution's numbers to ten bits (TF32), and lets parts of a sum be in bfloat16.
    """
    products, convolutions = torch.backends.cuda.matmul, torch.backends.cudnn
    switches = [
        (products, "allow_tf32"),
        (products, "allow_bf16_reduced_precision_reduction"),
        (convolutions, "allow_tf32"),
    ]
    before = [getattr(where, name) for where, name in switches]
    for where, name in switches:
        setattr(where, name, False)
    try:
        yield
    finally:
        for (where, name), value in zip(switches, before, strict=True):
            setattr(where, name, value)
