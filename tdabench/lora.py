"""Low-rank adapters (Hu et al. 2021, LoRA): a trained model's linear weights W become W + up @ down.

Written with ``torch.nn.utils.parametrize``, so the adapted model is called like any other and only ``up`` and
``down`` are trained and differentiated.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from tdabench.copies import copy_of
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
    """Return a copy of ``model`` that holds ``parameters``, with a zero adapter on every linear layer.

    The parameters are shared, not copied: however many adapters there are on a model, it is in memory once. The rank is
    cut down where a layer is smaller than it.
    """
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    shared = {id(tensors[name]): value.detach() for name, value in parameters.items() if name in tensors}
    frozen = {id(p): nn.Parameter(shared[id(p)], requires_grad=False) for p in model.parameters() if id(p) in shared}
    model = copy_of(model, {**shared, **frozen})
    for module in _adaptable(model):
        n_out, n_in = module.weight.shape
        adapter = LowRank(n_out, n_in, min(rank, n_out, n_in)).to(module.weight.device)
        # Unsafe is not to compute the weight once more, to see whether it has its shape.
        parametrize.register_parametrization(module, "weight", adapter, unsafe=True)
        _open_circle(module)
    return model.requires_grad_(False)


def _adaptable(model: nn.Module) -> list[nn.Linear]:
    return [module for module in model.modules() if isinstance(module, nn.Linear)]


def highest_ranks(model: nn.Module) -> tuple[int, ...]:
    """Return the highest rank that an adapter can have, for each layer that takes one."""
    return tuple(min(layer.weight.shape) for layer in _adaptable(model))


def _open_circle(layer: nn.Module) -> None:
    """Let a layer with an adapter be freed as soon as nobody has it.

    Torch makes a class for each, with a property that has the layer in its closure: the model would stay in memory
    until garbage is collected.
    """
    made = type(layer)
    layer.__class__ = _adapted_class(made.__base__)
    delattr(made, "weight")


@cache
def _adapted_class(cls: type[nn.Module]) -> type[nn.Module]:
    """Return the class of all layers of one kind that have adapters."""
    return type(f"Adapted{cls.__name__}", (cls,), {"weight": property(lambda layer: layer.parametrizations.weight())})


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


def is_adapted(module: nn.Module) -> bool:
    """Return whether a layer has an adapter; a parametrization of the model's own is none, whatever its names are."""
    return isinstance(dict(module.named_modules()).get(_PREFIX.removesuffix(".")), LowRank)


def adapter_names(module_name: str) -> tuple[str, str]:
    """Return the parameter names (down, up) of the adapter on the linear layer called ``module_name``."""
    start = f"{module_name}." if module_name else ""
    return f"{start}{_PREFIX}down", f"{start}{_PREFIX}up"
