"""Kernels: which of torch's implementations a pass goes through.

Torch takes a fused kernel where it can, and some cannot be differentiated as the engine does: that of attention modules
in evaluation not at all, those of attention itself not twice and under ``vmap`` only one example after another, cuDNN's
of recurrent layers in training mode only.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel


@contextlib.contextmanager
def differentiable(model: nn.Module, *, attention: bool = False) -> Iterator[None]:
    """Pass a model forward through kernels that can be differentiated.

    Parameters
    ----------
    model
        What is passed; cuDNN is switched off for recurrent models only.
    attention
        Whether attention, too, is made of plain operations: for second derivatives and under ``vmap``.
    """
    fast, cudnn = torch.backends.mha.get_fastpath_enabled(), torch.backends.cudnn.enabled
    torch.backends.mha.set_fastpath_enabled(False)
    torch.backends.cudnn.enabled = cudnn and not is_recurrent(model)
    try:
        with sdpa_kernel(SDPBackend.MATH) if attention else contextlib.nullcontext():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        torch.backends.cudnn.enabled = cudnn


def is_recurrent(model: nn.Module) -> bool:
    """Return whether a model has recurrent layers of torch, for which ``vmap`` has no rule."""
    return any(isinstance(module, nn.RNNBase | nn.RNNCellBase) for module in model.modules())
