"""Low-rank adapters (Hu et al. 2021, LoRA): a trained model's linear weights W become W + up @ down.

Written with ``torch.nn.utils.parametrize``, so the adapted model is called like any other and only ``up`` and
``down`` are trained and differentiated.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from tdabench.seeds import generator

_PREFIX = "parametrizations.weight.0."


class LowRank(nn.Module):
    """Add ``up [out, r] @ down [r, in]`` to a weight ``[out, in]``."""

    def __init__(self, n_out: int, n_in: int, rank: int) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.zeros(rank, n_in))
        self.up = nn.Parameter(torch.zeros(n_out, rank))

    def forward(self, weight: Tensor) -> Tensor:
        """Return the adapted weight."""
        return weight + self.up @ self.down


def adapted_model(model: nn.Module, parameters: Mapping[str, Tensor], rank: int) -> nn.Module:
    """Return a copy of ``model`` holding ``parameters``, with a zero adapter on every linear layer.

    The rank is cut down where a layer is smaller than it.
    """
    model = copy.deepcopy(model)
    model.load_state_dict(dict(parameters), strict=False)
    for module in list(model.modules()):
        if isinstance(module, nn.Linear):
            n_out, n_in = module.weight.shape
            adapter = LowRank(n_out, n_in, min(rank, n_out, n_in)).to(module.weight.device)
            parametrize.register_parametrization(module, "weight", adapter)
    return model.requires_grad_(False)


def initial_adapter(model: nn.Module, *stream: str | int) -> dict[str, Tensor]:
    """Return fresh adapter parameters: ``down`` normal with variance 1 / in, ``up`` zero, so training starts at W."""
    values = {}
    random = generator(*stream, "adapter-init")
    for name, parameter in model.named_parameters():
        if name.endswith(_PREFIX + "down"):
            n_in = parameter.shape[1]
            values[name] = (torch.randn(parameter.shape, generator=random) / n_in**0.5).to(parameter.device)
        elif name.endswith(_PREFIX + "up"):
            values[name] = torch.zeros_like(parameter)
    return values


def adapter_names(module_name: str) -> tuple[str, str]:
    """Return the parameter names (down, up) of the adapter on the linear layer called ``module_name``."""
    start = f"{module_name}." if module_name else ""
    return f"{start}{_PREFIX}down", f"{start}{_PREFIX}up"
