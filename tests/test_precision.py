from __future__ import annotations

import pytest
import torch

from tdabench import retraining
from tdabench.precision import exact_float32
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
