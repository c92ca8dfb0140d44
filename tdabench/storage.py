"""Storage: how many bytes must be kept of what fit returned."""

from __future__ import annotations

import types
from collections import deque
from collections.abc import Collection, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch

from tdabench.errors import UsageError

# Not every callable: a module is one, and holds weights.
_CODE = (types.FunctionType, types.BuiltinFunctionType, types.MethodType, types.ModuleType, type)
_MARKS = (type(None), type(...), range, slice, torch.dtype, torch.device, torch.layout, torch.memory_format, np.dtype)
_NUMBER_BYTES = 8
_SPARSE = {
    torch.sparse_coo: ("_indices", "_values"),  # as stored; the public ones want them sorted first
    torch.sparse_csr: ("crow_indices", "col_indices", "values"),
    torch.sparse_csc: ("ccol_indices", "row_indices", "values"),
    torch.sparse_bsr: ("crow_indices", "col_indices", "values"),
    torch.sparse_bsc: ("ccol_indices", "row_indices", "values"),
}
_CONTAINERS = (dict, list, tuple, set, frozenset, deque)


def state_bytes(state: Any, known: set[int]) -> int:
    """Return the bytes of all arrays, numbers and texts in a nest of containers and objects, each storage once.

    Parameters
    ----------
    state
        Tensors, arrays, numbers (8 bytes each), strings, containers, dataclasses and plain objects, nested as they may
        be. Code counts nothing.
    known
        Addresses that are counted already (checkpoints, and whatever this walk has seen); extended.

    Raises
    ------
    UsageError
        If something in it cannot be looked into.
    """
    if isinstance(state, torch.Tensor):
        return _tensor_bytes(state, known)
    if isinstance(state, np.ndarray) and not state.dtype.hasobject:
        owner = state.base if isinstance(state.base, np.ndarray) else state
        return _once(owner.__array_interface__["data"][0], owner.nbytes, known)
    if isinstance(state, (*_MARKS, *_CODE)):
        return 0
    if isinstance(state, (int, float, complex, np.generic)):
        return _NUMBER_BYTES
    if isinstance(state, (str, bytes, bytearray)):
        return len(state)
    if id(state) in known:
        return 0
    known.add(id(state))
    return sum(state_bytes(part, known) for part in _parts(state))


def _tensor_bytes(tensor: torch.Tensor, known: set[int]) -> int:
    if tensor.layout in _SPARSE:
        return sum(_tensor_bytes(getattr(tensor, part)(), known) for part in _SPARSE[tensor.layout])
    try:
        storage = tensor.untyped_storage()
    except NotImplementedError:
        raise _uncountable(f"tensor of layout {tensor.layout}") from None
    return _once(storage.data_ptr(), storage.nbytes(), known)


def _once(address: int, size: int, known: set[int]) -> int:
    if address in known:
        return 0
    known.add(address)
    return size


def _parts(state: Any) -> list[Any]:
    """Return what a container or an object consists of."""
    if isinstance(state, np.ndarray):
        return list(state.ravel())
    if isinstance(state, partial):
        return [state.func, state.args, state.keywords]
    attributes = _attributes(state)
    if isinstance(state, _CONTAINERS) or (attributes is None and isinstance(state, Collection)):
        items = [*state.keys(), *state.values()] if isinstance(state, Mapping) else list(state)
        return [*items, *(attributes or [])]
    if attributes is None:
        raise _uncountable(type(state).__name__)
    return attributes


def _attributes(state: Any) -> list[Any] | None:
    """Return what an object holds under names; None if it is of a type that has none."""
    slotted = [cls for cls in type(state).__mro__ if "__slots__" in vars(cls)]
    if not slotted and not hasattr(state, "__dict__"):
        return None
    slots = [name for cls in slotted for name in _slots(cls) if hasattr(state, name)]
    return [*getattr(state, "__dict__", {}).values(), *(getattr(state, name) for name in slots)]


def _slots(cls: type) -> list[str]:
    """Return a class's slots by their names as attributes: private ones carry the name of the class."""
    declared = vars(cls)["__slots__"]
    names = [declared] if isinstance(declared, str) else declared
    private = f"_{cls.__name__.lstrip('_')}"
    return [
        private + name if name.startswith("__") and not name.endswith("__") else name
        for name in names
        if name not in ("__dict__", "__weakref__")
    ]


def _uncountable(what: str) -> UsageError:
    return UsageError(
        f"Cannot count the storage of a {what}. Return tensors, arrays, numbers, dicts, sequences or dataclasses "
        "from fit."
    )
