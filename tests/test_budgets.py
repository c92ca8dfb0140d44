from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from tdabench import budgets
from tdabench.budgets import block_bytes
from tdabench.calibration import engine_blocks

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def gpu_of(monkeypatch):
    """Put a GPU of so many bytes in place of the machine's."""

    def put(total: int) -> None:
        budgets._total_bytes.cache_clear()
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=total))

    yield put
    budgets._total_bytes.cache_clear()


def test_on_a_cpu_blocks_are_what_they_are_said_to_be():
    assert block_bytes(12345, CPU) == 12345


def test_on_a_gpu_they_are_the_share_of_its_memory_that_they_are_of_the_budget(gpu_of):
    gpu_of(80_000_000_000)
    assert block_bytes(100_000_000, CUDA) == 2_000_000_000
    assert block_bytes(2_000_000_000, CUDA) == 40_000_000_000


def test_on_a_small_gpu_they_are_no_smaller_than_on_a_cpu(gpu_of):
    gpu_of(1_000_000_000)
    assert block_bytes(12345, CUDA) == 12345


def test_the_planner_knows_how_the_engine_cuts_on_either(gpu_of):
    gpu_of(40_000_000_000)
    cpu, gpu = engine_blocks(CPU), engine_blocks(CUDA)
    assert (gpu.block_bytes, gpu.held_bytes) == (10 * cpu.block_bytes, 10 * cpu.held_bytes)
