from __future__ import annotations

import pytest
import torch

from tdabench.optimizers import optimizer_of
from tdabench.recipe import Recipe


def parameters(random: torch.Generator) -> list[torch.Tensor]:
    """Three replicas of a matrix and a bias."""
    return [torch.randn(3, 7, 5, generator=random), torch.randn(3, 7, generator=random)]


@pytest.mark.parametrize("weight_decay", [0.0, 1e-3])
def test_the_sgd_step_is_torchs_to_the_bit(weight_decay):
    random = torch.Generator().manual_seed(0)
    ours = parameters(random)
    theirs = [p.clone().requires_grad_() for p in ours]
    recipe = Recipe(lr=0.03, momentum=0.9, batch_size=1, epochs=1, weight_decay=weight_decay)
    optimizer = optimizer_of(recipe, ours)
    rule = torch.optim.SGD(theirs, recipe.lr, recipe.momentum, weight_decay=weight_decay, foreach=True)
    for _ in range(5):
        gradients = tuple(torch.randn(p.shape, generator=random) for p in ours)
        optimizer.step(gradients, recipe.lr)
        for parameter, gradient in zip(theirs, gradients, strict=True):
            parameter.grad = gradient.clone()
        rule.step()
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_adamw_of_a_stack_is_torchs_for_each_replica_and_decays_matrices_only():
    random = torch.Generator().manual_seed(0)
    ours = parameters(random)
    apart = [[p[r].clone().requires_grad_() for p in ours] for r in range(3)]
    recipe = Recipe(lr=0.01, momentum=0.9, beta2=0.95, batch_size=1, epochs=1, weight_decay=0.1, optimizer="adamw")
    optimizer = optimizer_of(recipe, [p.requires_grad_() for p in ours])
    rules = [
        torch.optim.AdamW(
            [{"params": [weight], "weight_decay": 0.1}, {"params": [bias], "weight_decay": 0.0}],
            lr=1.0,
            betas=(0.9, 0.95),
        )
        for weight, bias in apart
    ]
    for step in range(6):
        gradients = [torch.randn(p.shape, generator=random) for p in ours]
        optimizer.step(gradients, recipe.rate(step, 6))
        for r, rule in enumerate(rules):
            for parameter, gradient in zip(apart[r], gradients, strict=True):
                parameter.grad = gradient[r]
            for group in rule.param_groups:
                group["lr"] = recipe.rate(step, 6)
            rule.step()
    for r in range(3):
        for stacked, alone in zip(ours, apart[r], strict=True):
            torch.testing.assert_close(stacked[r], alone, rtol=1e-5, atol=1e-6)


def test_the_rate_is_constant_or_rises_and_falls_linearly():
    plain = Recipe(lr=0.1, momentum=0.9, batch_size=1, epochs=1)
    assert {plain.rate(step, 10) for step in range(10)} == {0.1}
    shaped = Recipe(lr=0.1, momentum=0.9, batch_size=1, epochs=1, schedule="linear", warmup=0.2)
    assert [round(shaped.rate(step, 10), 6) for step in range(10)] == [
        0.05,
        0.09,
        0.08,
        0.07,
        0.06,
        0.05,
        0.04,
        0.03,
        0.02,
        0.01,
    ]


def test_settings_added_later_are_not_in_the_facts_of_a_recipe_that_does_not_use_them():
    plain = Recipe(lr=0.1, momentum=0.9, batch_size=1, epochs=1)
    assert plain.facts() == {"lr": 0.1, "momentum": 0.9, "batch_size": 1, "epochs": 1, "weight_decay": 0.0}
    shaped = Recipe(lr=0.1, momentum=0.9, batch_size=1, epochs=1, schedule="linear")
    assert shaped.facts() == {**plain.facts(), "schedule": "linear"}


def test_what_adamw_remembers_is_restored_to_where_the_parameters_are():
    """A fused step takes for granted that its step counts are on the parameters' device."""
    recipe = Recipe(lr=0.01, momentum=0.9, beta2=0.95, batch_size=1, epochs=1, optimizer="adamw")
    ours = [p.requires_grad_() for p in parameters(torch.Generator().manual_seed(0))]
    optimizer = optimizer_of(recipe, ours)
    optimizer.step([torch.ones_like(p) for p in ours], 0.01)
    elsewhere = [torch.empty_like(p, device="meta").requires_grad_() for p in ours]
    restored = optimizer_of(recipe, elsewhere)
    restored.restore({k: v.detach().clone() for k, v in optimizer.state().items()})
    assert restored.state().keys() == optimizer.state().keys()
    assert {v.device.type for v in restored.state().values()} == {"meta"}
