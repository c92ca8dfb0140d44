from __future__ import annotations

import pytest
import torch

from tdabench import UsageError, provenance, retraining
from tdabench.precision import PRODUCTS_VARIABLE, bfloat16_pays, exact_float32, in_float32
from tdabench.results.words import describe_machine
from tdabench.retraining import retrain


def switches():
    products = torch.backends.cuda.matmul
    return products.allow_tf32, products.allow_bf16_reduced_precision_reduction, torch.backends.cudnn.allow_tf32


def test_float32_is_exact_inside_and_what_it_was_outside():
    before = switches()
    assert before[1:] == (True, True), "torch's defaults, which is why it must be said"
    with exact_float32():
        assert switches() == (False, False, False)
    assert switches() == before


@pytest.mark.parametrize("chosen", ["highest", "high", "medium"])
def test_a_precision_that_was_chosen_is_that_again_outside(chosen):
    torch.set_float32_matmul_precision(chosen)
    try:
        with exact_float32():
            assert torch.get_float32_matmul_precision() == "highest"
        assert torch.get_float32_matmul_precision() == chosen
    finally:
        torch.set_float32_matmul_precision("highest")


def test_products_in_float32_are_another_machine_class_and_said(monkeypatch):
    monkeypatch.delenv(PRODUCTS_VARIABLE, raising=False)
    usual = provenance.machine(1, "cpu")
    assert (usual.product_precision, in_float32()) == (None, False)
    monkeypatch.setenv(PRODUCTS_VARIABLE, "float32")
    exact = provenance.machine(1, "cpu")
    assert (exact.product_precision, in_float32()) == ("float32", True)
    assert exact.machine_class != usual.machine_class
    assert describe_machine(exact) == f"{describe_machine(usual)}, products in float32"


def test_a_precision_that_is_none_is_refused_with_what_to_write(monkeypatch):
    monkeypatch.setenv(PRODUCTS_VARIABLE, "half")
    with pytest.raises(UsageError, match=r"TDABENCH_PRODUCTS is 'half'\. Give float32, or leave it out"):
        in_float32()


def test_an_error_inside_leaves_the_switches_as_they_were():
    before = switches()
    with pytest.raises(KeyError), exact_float32():
        raise KeyError
    assert switches() == before


def test_replicas_are_retrained_in_exact_float32(small, small_data, monkeypatch):
    seen = []
    train = retraining.train_replicas
    monkeypatch.setattr(retraining, "train_replicas", lambda *a, **k: seen.append(switches()) or train(*a, **k))
    retrain(small, small_data, 0, [0], 1)
    assert seen == [(False, False, False)]


AMD = {"cpu_name": "AMD EPYC", "avx512_f": True}
INTEL = {"cpu_name": "Intel Xeon", "avx512_f": True}


@pytest.mark.parametrize(
    ("capabilities", "pays"),
    [
        (AMD, False),
        (AMD | {"avx512_bf16": True}, True),
        (INTEL | {"avx512_bf16": True}, False),
        (INTEL | {"avx512_bf16": True, "amx_bf16": True}, True),
        ({"cpu_name": "Neoverse V2", "bf16": True}, True),
        ({"avx512_bf16": True}, True),
        ({}, False),
    ],
)
def test_bfloat16_is_used_where_the_processor_is_faster_in_it(monkeypatch, capabilities, pays):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert bfloat16_pays.__wrapped__("cpu") is pays
