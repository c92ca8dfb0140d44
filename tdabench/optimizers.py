"""The update rules of a recipe, on tensors that stack the parameters of many replicas.

Both rules work element by element, so a replica's update does not depend on who is stacked beside it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

if TYPE_CHECKING:
    from tdabench.recipe import Recipe


class Optimizer(Protocol):
    """Updates the parameters that it was made with, in place."""

    def step(self, gradients: Sequence[Tensor], lr: float) -> None:
        """Take one step; ``gradients`` are in the parameters' order."""

    def state(self) -> dict[str, Tensor]:
        """Return what it remembers, by name; it goes on changing."""

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take over what another one remembered."""


class Sgd:
    """What ``torch.optim.SGD`` does, to the bit, without the second that its first step takes to import."""

    def __init__(self, parameters: list[Tensor], recipe: Recipe) -> None:
        self.parameters, self.recipe = parameters, recipe
        self.momentum = [torch.zeros_like(p) for p in parameters]

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor], lr: float) -> None:
        """Take one step."""
        gradients = tuple(gradients)
        if self.recipe.weight_decay:
            gradients = torch._foreach_add(gradients, self.parameters, alpha=self.recipe.weight_decay)
        torch._foreach_mul_(self.momentum, self.recipe.momentum)
        torch._foreach_add_(self.momentum, gradients)
        torch._foreach_add_(self.parameters, self.momentum, alpha=-lr)

    def state(self) -> dict[str, Tensor]:
        """Return the momentum."""
        return {f"{i}.momentum": value for i, value in enumerate(self.momentum)}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take over the momentum."""
        for i, value in enumerate(self.momentum):
            value.copy_(state[f"{i}.momentum"])


class AdamW:
    """``torch.optim.AdamW``, which decays matrices only, not biases and scales (as nanoGPT does)."""

    def __init__(self, parameters: list[Tensor], recipe: Recipe) -> None:
        self.parameters = parameters
        matrices = [p for p in parameters if p.dim() > 2]  # one axis is the replicas'
        others = [p for p in parameters if p.dim() <= 2]
        groups = [
            {"params": matrices, "weight_decay": recipe.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ]
        betas = (recipe.momentum, recipe.beta2)
        # The fused step is one sweep through memory; its step counts are on the device, and nothing waits for them.
        self.rule = torch.optim.AdamW([g for g in groups if g["params"]], lr=recipe.lr, betas=betas, fused=True)

    def step(self, gradients: Sequence[Tensor], lr: float) -> None:
        """Take one step."""
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            # The fused step takes for granted that a gradient lies in memory as its parameter does, and does not check.
            alike = gradient.stride() == parameter.stride()
            parameter.grad = gradient if alike else torch.empty_like(parameter).copy_(gradient)
        for group in self.rule.param_groups:
            group["lr"] = lr
        self.rule.step()
        self.rule.zero_grad(set_to_none=True)

    def state(self) -> dict[str, Tensor]:
        """Return the moments and step counts; nothing before the first step."""
        return {f"{i}.{k}": v for i, p in enumerate(self.parameters) for k, v in self.rule.state[p].items()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take over the moments and step counts."""
        for i, parameter in enumerate(self.parameters):
            slots = {k.split(".")[1]: v for k, v in state.items() if k.startswith(f"{i}.")}
            self.rule.state[parameter] = {k: _restored(k, v, parameter) for k, v in slots.items()}


def _restored(name: str, value: Tensor, parameter: Tensor) -> Tensor:
    """Return what AdamW remembers of a parameter, where and as the fused step takes for granted that it is."""
    if name == "step":
        return value.reshape(()).to(parameter.device)
    return torch.empty_like(parameter, requires_grad=False).copy_(value)  # in memory as the parameter lies there


def optimizer_of(recipe: Recipe, parameters: list[Tensor]) -> Optimizer:
    """Return the recipe's optimizer, with fresh state."""
    return Sgd(parameters, recipe) if recipe.optimizer == "sgd" else AdamW(parameters, recipe)
