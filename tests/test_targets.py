from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch.func import vmap

from tdabench.targets import LOG_ODDS, MEAN_LOG_PROBABILITY, cross_entropy, log_odds, token_cross_entropy

logits = arrays("float64", (4, 5), elements=st.floats(-12, 12))
labels = arrays("int64", 4, elements=st.integers(0, 4))


@given(logits, labels)
def test_log_odds_are_log_p_over_one_minus_p(logits, labels):
    logits, labels = torch.from_numpy(logits), torch.from_numpy(labels)
    p = logits.softmax(1)
    others = p.scatter(1, labels[:, None], 0.0).sum(1)  # 1 - p, without its cancellation
    expected = (p.gather(1, labels[:, None])[:, 0] / others).log()
    torch.testing.assert_close(log_odds(logits, labels), expected, rtol=1e-9, atol=1e-9)


@given(logits, labels)
def test_probability_follows_from_the_log_odds(logits, labels):
    logits, labels = torch.from_numpy(logits), torch.from_numpy(labels)
    p = logits.softmax(1).gather(1, labels[:, None])[:, 0]
    torch.testing.assert_close(LOG_ODDS.probability(log_odds(logits, labels)), p)


def test_log_odds_stay_finite_and_differentiable_where_p_rounds_to_one():
    for size in (30.0, 1e3, 1e30):
        logits = torch.tensor([[size, 0.0, 0.0], [-size, 0.0, 0.0]], requires_grad=True)
        values = log_odds(logits, torch.tensor([0, 0]))
        torch.testing.assert_close(values, torch.tensor([size, -size]) - torch.tensor(2.0).log())
        (gradient,) = torch.autograd.grad(values.sum(), logits)
        torch.testing.assert_close(gradient, torch.tensor([[1.0, -0.5, -0.5]] * 2))


def test_log_odds_ignore_a_constant_added_to_all_logits():
    logits, labels = torch.randn(6, 4, dtype=torch.float64), torch.arange(6) % 4
    torch.testing.assert_close(log_odds(logits + 7.0, labels), log_odds(logits, labels))


def test_two_classes_give_the_difference_of_logits():
    logits = torch.tensor([[1.5, -2.0]])
    assert log_odds(logits, torch.tensor([0])).item() == 3.5


def test_cross_entropy_is_one_number_per_example():
    logits, labels = torch.randn(6, 4), torch.arange(6) % 4
    expected = -logits.log_softmax(1)[torch.arange(6), labels]
    torch.testing.assert_close(cross_entropy(logits, labels), expected)


@pytest.mark.parametrize("length", [5, 7, 128, 513])
def test_the_loss_of_whole_sequences_is_the_mean_over_their_tokens_to_the_bit(length):
    logits, labels = torch.randn(4, length, 6, requires_grad=True), torch.randint(6, (4, length))
    plain = torch.nn.functional.cross_entropy(logits.transpose(-1, -2), labels, reduction="none").mean(-1)
    loss = token_cross_entropy(logits, labels)
    assert torch.equal(loss, plain)
    found, wanted = (torch.autograd.grad(values.sum(), logits)[0] for values in (loss, plain))
    assert torch.equal(found, wanted)


def test_a_padded_sequence_has_the_loss_and_the_probability_of_its_own_tokens():
    logits, labels = torch.randn(3, 8, 5, dtype=torch.float64), torch.randint(5, (3, 8))
    padded = labels.clone()
    padded[1, 3:], padded[2] = -100, -100
    whole, short = token_cross_entropy(logits[:1], labels[:1]), token_cross_entropy(logits[1:2, :3], labels[1:2, :3])
    expected = torch.cat([whole, short, torch.zeros(1, dtype=torch.float64)])
    torch.testing.assert_close(token_cross_entropy(logits, padded), expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(
        vmap(token_cross_entropy)(logits[:, None], padded[:, None])[:, 0], expected, rtol=1e-12, atol=0
    )
    values = MEAN_LOG_PROBABILITY.function(logits, padded)
    torch.testing.assert_close(MEAN_LOG_PROBABILITY.probability(values), (-expected).exp())
