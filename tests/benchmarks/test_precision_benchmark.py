"""How much faster the processor is in bfloat16 than in float32, and what tdabench takes it for.

Run with ``pytest --benchmark-only -o addopts= -s``. Times are not asserted: they are printed and kept in the
benchmark's ``extra_info``. Where ``times_as_fast`` is clearly on the other side of one than ``taken_for_faster``, the
rule in ``tdabench/precision.py`` is wrong for the machine.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tdabench.precision import bfloat16_pays

pytestmark = pytest.mark.usefixtures("one_thread")


def product(dtype: torch.dtype) -> Callable[[], Tensor]:
    """Dot products of 512 with 512 gradients of 4,608 numbers."""
    random = torch.Generator().manual_seed(0)
    a, b = (torch.randn(512, 4608, generator=random).to(dtype) for _ in range(2))
    return lambda: a @ b.T


def training_step(dtype: torch.dtype) -> Callable[[], Tensor]:
    """Forward and backward of a convolution under autocast, as training runs it."""
    torch.manual_seed(0)
    layer, images = nn.Conv2d(24, 48, 3, padding=1), torch.randn(64, 24, 16, 16, requires_grad=True)

    def step() -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            out = layer(images).float()
        (gradient,) = torch.autograd.grad(out.square().sum(), images)
        return gradient

    return step


@pytest.mark.parametrize("make", [product, training_step])
def test_bfloat16_beside_float32(benchmark, make):
    short, exact, exact_s = make(torch.bfloat16), make(torch.float32), []

    def measure_the_other():  # in turns, so that a busy moment does not hit one side alone
        start = time.perf_counter()
        exact()
        exact_s.append(time.perf_counter() - start)

    found = benchmark.pedantic(short, setup=measure_the_other, rounds=20, warmup_rounds=2)
    report = {
        "float32_ms": 1e3 * min(exact_s),
        "bfloat16_ms": 1e3 * benchmark.stats.stats.min,
        "times_as_fast": min(exact_s) / benchmark.stats.stats.min,
        "taken_for_faster": bfloat16_pays("cpu"),
    }
    benchmark.extra_info.update(report)
    print("\n" + ", ".join(f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in report.items()), end="")
    difference = (found.float() - exact()).norm() / exact().norm()
    assert difference < 0.02, "bfloat16 rounds by a part in 256"
