from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from tdabench import Declined, UsageError, budgets, provenance
from tdabench.baselines.influence import definition
from tdabench.baselines.influence.conjugate_gradient import ConjugateGradientInfluence
from tdabench.budgets import BUDGET_BYTES, BUDGET_VARIABLE, block_bytes, budget_bytes
from tdabench.calibration import engine_blocks
from tdabench.execution import execute
from tdabench.jobs import Job, plan
from tdabench.results.words import describe_machine
from tdabench.runner import run

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


@pytest.mark.parametrize(("said", "expected"), [(None, BUDGET_BYTES), ("", BUDGET_BYTES), ("8", 8e9), (" 1.5 ", 1.5e9)])
def test_the_budget_is_2_gb_or_what_the_user_gives_and_blocks_grow_with_it(monkeypatch, said, expected):
    monkeypatch.delenv(BUDGET_VARIABLE, raising=False)
    blocks = engine_blocks(CPU)
    if said is not None:
        monkeypatch.setenv(BUDGET_VARIABLE, said)
    assert budget_bytes() == expected
    assert block_bytes(1000, CPU) == 1000 * expected / BUDGET_BYTES
    assert engine_blocks(CPU).block_bytes == blocks.block_bytes * expected / BUDGET_BYTES


@pytest.mark.parametrize("said", ["much", "0.5", "-2", "nan", "inf", "1e300"])
def test_a_budget_that_is_none_is_refused_with_what_to_write(monkeypatch, said):
    monkeypatch.setenv(BUDGET_VARIABLE, said)
    with pytest.raises(UsageError, match=rf"{BUDGET_VARIABLE} is '{said}'.* from 1 to 100000, as in"):
        budget_bytes()


def test_runs_of_another_budget_say_so_and_are_not_compared_with_others(monkeypatch, small_reference, tmp_path):
    monkeypatch.delenv(BUDGET_VARIABLE, raising=False)
    usual = provenance.machine(1, "cpu")
    assert usual.budget_bytes is None
    monkeypatch.setenv(BUDGET_VARIABLE, "2")
    assert provenance.machine(1, "cpu") == usual
    monkeypatch.setenv(BUDGET_VARIABLE, "1")
    planned = plan(Job(small_reference, "grad-dot", {}))
    _, record = run(planned, tmp_path)
    assert record.status == "ok"
    assert record.machine.budget_bytes == 1e9
    assert record.machine.machine_class != usual.machine_class
    assert describe_machine(record.machine) == f"{describe_machine(usual)}, memory budget 1 GB"


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
    assert (cpu.scale, gpu.scale) == (1, 10)


@pytest.mark.parametrize(("said", "blocks"), [("1", 7), ("2", 4), ("8", 1)])
def test_solvers_work_on_as_many_queries_as_the_budget_holds(view, monkeypatch, said, blocks):
    """Of 40 queries with 2,410 parameters, twelve at 2 GB."""
    monkeypatch.setattr(definition, "_BLOCK_BYTES", 12 * 4 * 2410)
    monkeypatch.setenv(BUDGET_VARIABLE, said)
    calls = []

    class Counted(ConjugateGradientInfluence):
        def solve(self, member, state, vectors):
            calls.append(len(vectors))
            return super().solve(member, state, vectors)

    execute(Counted(iterations=1), None, view())
    assert (len(calls), sum(calls)) == (blocks, 40)


def test_a_larger_budget_holds_what_a_smaller_one_declines(view, monkeypatch):
    monkeypatch.setattr(definition, "_MOST_BYTES", 40 * 4 * 2410 // 2)
    with pytest.raises(Declined, match="gradients of 40 queries with respect to 2,410 parameters"):
        execute(ConjugateGradientInfluence(iterations=1), None, view())
    monkeypatch.setenv(BUDGET_VARIABLE, "4")
    assert execute(ConjugateGradientInfluence(iterations=1), None, view()).isfinite().all()
