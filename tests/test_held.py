"""Held: a pass's memory is reckoned with what is computed between modules, and passes forward follow it."""

from __future__ import annotations

from dataclasses import replace

import made_up
import pytest
import torch
from torch import Tensor, nn

from tdabench import MEAN_LOG_PROBABILITY, TaskData, held, token_cross_entropy
from tdabench.examples import FORWARD_BATCH
from tdabench.held import forward_batch, numbers_held, numbers_out
from tdabench.layout import layout_of

T, WIDTH, HEADS = 48, 8, 2


class Attending(nn.Module):
    """Attention by hand, whose weights ``[heads, T, T]`` no module gives."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.qkv, self.head = nn.Embedding(10, WIDTH), nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, 10)

    def forward(self, tokens: Tensor) -> Tensor:
        q, k, v = (x.unflatten(-1, (HEADS, -1)).transpose(1, 2) for x in self.qkv(self.tokens(tokens)).chunk(3, -1))
        weights = (q @ k.transpose(-1, -2)).softmax(-1)  # [B, heads, T, T]
        return self.head((weights @ v).transpose(1, 2).flatten(2))


@pytest.fixture
def member(view, small):
    random = torch.Generator().manual_seed(0)
    examples = [made_up.sequences(12, split, random, vocabulary=10, length=T) for split in ("train", "queries")]
    changes = {"make_model": Attending, "loss": token_cross_entropy, "target": MEAN_LOG_PROBABILITY}
    task = replace(small, name="attending", n_train=12, n_queries=12, **changes)
    return view(task, TaskData(*examples), store="attending").member()


def test_weights_of_attention_are_among_what_a_pass_holds(member):
    inputs = member.task.training.inputs
    weights = HEADS * T * T
    assert numbers_out(member, inputs[:1]) < weights
    assert weights <= numbers_held(member, inputs) < 3 * weights
    assert weights <= numbers_held(member, inputs, plain=True) < 3 * weights
    assert layout_of(member, member.task.training).numbers >= weights


class Differentiating(nn.Module):
    """Adds the gradient of a function that it computes itself, which no hook of autograd may watch."""

    def __init__(self) -> None:
        super().__init__()
        self.inside, self.head = nn.Linear(64, 4), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        slope = torch.vmap(torch.func.grad(lambda row: self.inside(row).tanh().sum()))(x)
        return self.head(x + slope)


def test_a_model_that_differentiates_inside_is_reckoned_by_its_modules(view, small, small_data):
    member = view(replace(small, name="inside", make_model=Differentiating), small_data, store="inside").member()
    inputs = member.task.training.inputs
    assert numbers_held(member, inputs) == numbers_out(member, inputs[:1])
    assert member.gradients(member.task.training, "loss").norms().isfinite().all()


def test_as_many_examples_are_passed_forward_as_there_is_room_for(member, monkeypatch):
    training = member.task.training
    assert forward_batch(member, training) == FORWARD_BATCH
    expected = member.targets(training)
    monkeypatch.setattr(held, "_FORWARD_BYTES", 4 * 5 * numbers_held(member, training.inputs))
    assert forward_batch(member, training) == 5
    torch.testing.assert_close(member.targets(training), expected)
    monkeypatch.setattr(held, "_FORWARD_BYTES", 1)
    assert forward_batch(member, training) == 1
