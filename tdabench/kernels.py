"""Kernels: which of torch's implementations a pass goes through.

Torch takes a fused kernel where it can, and some cannot be differentiated as the engine does: that of attention modules
in evaluation not at all, those of attention itself not twice and under ``vmap`` only one example after another, cuDNN's
of recurrent layers in training mode only. That of weight normalisation has a wrong second derivative, and that of
embeddings with padding spares its row in the first copy alone under ``vmap``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils.parametrizations import _WeightNorm
from torch.overrides import TorchFunctionMode


@contextlib.contextmanager
def differentiable(model: nn.Module, *, plain: bool = False) -> Iterator[None]:
    """Pass a model forward through kernels that can be differentiated.

    Parameters
    ----------
    model
        What is passed; cuDNN is switched off for recurrent models only.
    plain
        Whether attention and normed weights, too, are made of plain operations: for second derivatives and under
        ``vmap``.
    """
    fast, cudnn = torch.backends.mha.get_fastpath_enabled(), torch.backends.cudnn.enabled
    torch.backends.mha.set_fastpath_enabled(False)
    torch.backends.cudnn.enabled = cudnn and not is_recurrent(model)
    try:
        with contextlib.ExitStack() as stack:
            if plain:
                stack.enter_context(sdpa_kernel(SDPBackend.MATH))
            if plain and _has_normed_weights(model):
                stack.enter_context(_PlainWeightNorm())
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        torch.backends.cudnn.enabled = cudnn


def is_recurrent(model: nn.Module) -> bool:
    """Return whether a model has recurrent layers of torch, for which ``vmap`` has no rule."""
    return any(isinstance(module, nn.RNNBase | nn.RNNCellBase) for module in model.modules())


class _PlainWeightNorm(TorchFunctionMode):
    """Norm weights by operations that torch differentiates as often as one likes."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch._weight_norm:
            return _weight_norm(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


class PlainPadding(TorchFunctionMode):
    """Look tokens up so that padding has no gradient in any copy of the weight, under ``vmap`` as elsewhere.

    Attributes
    ----------
    seen
        Whether an embedding with padding was looked up.
    """

    def __init__(self) -> None:
        super().__init__()
        self.seen = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.embedding:
            return self._embedding(*args, **(kwargs or {}))
        if func is torch.embedding:
            return self._looked_up(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _embedding(
        self, tokens: Tensor, weight: Tensor, padding_idx: int | None = None, *others: Any, **options: Any
    ) -> Tensor:
        out = F.embedding(tokens, weight, None, *others, **options)
        if padding_idx is None:
            return out
        self.seen = True
        padding = tokens == padding_idx % len(weight)  # -1 is the last token
        return torch.where(padding.unsqueeze(-1), out.detach(), out)

    def _looked_up(self, weight: Tensor, indices: Tensor, padding_idx: int = -1, *_: Any, **__: Any) -> Tensor:
        return self._embedding(indices, weight, padding_idx if padding_idx >= 0 else None)  # -1 is none

    def install(self, model: nn.Module) -> None:
        """Be active in every call of a model and of its copies, whoever calls it; also until a call that fails ends."""
        model.register_forward_pre_hook(self._begin, prepend=True)
        model.register_forward_hook(self._end, prepend=True, always_call=True)

    def _begin(self, _: nn.Module, args: Any) -> None:
        self.__enter__()

    def _end(self, _: nn.Module, args: Any, out: Any) -> None:
        self.__exit__(None, None, None)


def _weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    others = [d for d in range(v.dim()) if dim == -1 or d != dim]  # -1 here is all of them, as in torch's own
    return v * (g / v.square().sum(others, keepdim=True).sqrt())


def _has_normed_weights(model: nn.Module) -> bool:
    return any(isinstance(module, _WeightNorm) for module in model.modules())
