"""Which numbers products are taken of: bfloat16 where the processor is faster in it, and float32 that is float32."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from functools import cache
from typing import Literal

import torch

from tdabench.errors import UsageError

Precision = Literal["float32", "bfloat16"]

PRODUCTS_VARIABLE = "TDABENCH_PRODUCTS"


@cache
def bfloat16_pays(kind: str) -> bool:
    """Return whether devices of a kind (``cpu``, ``cuda``) multiply bfloat16 in hardware, and faster than float32.

    Told from what the processor has and not from a measurement: scores follow from it, and must not from a busy hour.
    """
    if kind == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return _processor_gains(torch.cpu.get_capabilities())


def _processor_gains(capabilities: Mapping[str, object]) -> bool:
    if capabilities.get("amx_bf16") or capabilities.get("bf16"):
        return True
    # Intel's vector units multiply bfloat16 at half the rate of float32, AMD's at twice. A virtual machine may hide the
    # matrix units (AMX), which is what Intel's processors gain by.
    return bool(capabilities.get("avx512_bf16")) and not str(capabilities.get("cpu_name", "")).startswith("Intel")


def used(asked: Precision, device: torch.device) -> Precision:
    """Return the precision that a recipe's is carried out in on a device."""
    return "bfloat16" if asked == "bfloat16" and bfloat16_pays(device.type) else "float32"


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
def undisturbed(device: torch.device) -> Iterator[None]:
    """Compute as a process of its own would, whatever is switched on around: for what others use later.

    A caller may be in ``torch.no_grad``, in inference mode or under ``torch.autocast``, which would end a training, or
    change a model that is kept.
    """
    switched_on = torch.is_autocast_enabled(device.type)
    plain = torch.autocast(device.type, enabled=False) if switched_on else contextlib.nullcontext()
    with torch.inference_mode(False), torch.enable_grad(), plain, exact_float32():
        yield


@contextlib.contextmanager
def exact_float32() -> Iterator[None]:
    """Multiply float32 numbers as such on CUDA, and add up in float32 what is multiplied in bfloat16.

    By default torch rounds a convolution's numbers to ten bits (TF32), and lets parts of a sum be in bfloat16.
    """
    products, convolutions = torch.backends.cuda.matmul, torch.backends.cudnn
    precision = torch.get_float32_matmul_precision()  # whose flag, allow_tf32, does not tell all that it may be
    switches = [(products, "allow_bf16_reduced_precision_reduction"), (convolutions, "allow_tf32")]
    before = [getattr(where, name) for where, name in switches]
    torch.set_float32_matmul_precision("highest")
    for where, name in switches:
        setattr(where, name, False)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(precision)
        for (where, name), value in zip(switches, before, strict=True):
            setattr(where, name, value)
