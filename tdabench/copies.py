"""Copies of models."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from tdabench.memory import ran_out


def copy_of(model: nn.Module, known: Mapping[int, Any] | None = None) -> nn.Module:
    """Return a deep copy of a model that may have been passed.

    Parameters
    ----------
    model
        What is copied. Activations that it keeps (``self.features = ...`` in a pass), which torch refuses to copy, are
        copied without what they were made of; those of a pass under ``vmap`` are None.
    known
        Copies to be taken for what is there already, by its ``id``.
    """
    with _WithoutGraph():
        return copy.deepcopy(model, dict(known or {}))


class _WithoutGraph(TorchFunctionMode):
    """Copy tensors that autograd or ``vmap`` made as plain ones."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not Tensor.__deepcopy__:
            return func(*args, **(kwargs or {}))
        try:
            return func(*args)
        except RuntimeError:
            tensor, memo = args
            memo[id(tensor)] = plain = _plain(tensor)
            return plain


def _plain(tensor: Tensor) -> Tensor | None:
    try:
        return tensor.detach().clone()
    except RuntimeError as error:
        if ran_out(error):
            raise
        return None  # made under vmap, and of use to nobody outside
