"""A device that is not there: its tensors say that they are on it, and refuse what tensors on a CUDA device refuse.

A machine without a GPU cannot show what kernels of one compute or how long they take. It can show that code asks for
what one would do: here numbers stay on the CPU and are computed there, wrapped in tensors of another device. As on a
CUDA device, those of two places do not mix (but for scalars and indices on the CPU), NumPy does not see them, and a
generator of the CPU draws nothing there.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import cache
from typing import Any

import safetensors
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "pretended"


class _Module:
    """What torch asks of a kind of device; there is one while it is pretended."""

    present = False

    def is_available(self) -> bool:
        return self.present

    def is_initialized(self) -> bool:
        return True

    def device_count(self) -> int:
        return int(self.present)

    def current_device(self) -> int:
        return 0

    def manual_seed_all(self, seed: int) -> None:
        pass  # its random numbers are the CPU's

    def get_rng_state(self, device: int) -> Tensor:
        return torch.empty(0, dtype=torch.uint8)

    def set_rng_state(self, state: Tensor, device: int) -> None:
        pass

    def _is_in_bad_fork(self) -> bool:
        return False


class _Hook(torch._C._acc.PrivateUse1Hooks):
    def is_available(self) -> bool:
        return _MODULE.present

    def has_primary_context(self, index: int) -> bool:
        return _MODULE.present

    def is_built(self) -> bool:
        return True


_MODULE = _Module()
_setup_privateuseone_for_python_backend(NAME, _MODULE, _Hook())  # torch has one nameless kind of device to give away
_DEVICE = torch.device(NAME, 0)

_MOVES = {"aten::copy_", "aten::_to_copy"}
_TAKES_INDICES = {"aten::index", "aten::index_put", "aten::index_put_", "aten::_unsafe_index"}
_TAKES_NO_SCALARS = {
    *("aten::cat", "aten::stack", "aten::equal", "aten::index_add", "aten::index_add_"),
    *("aten::scatter", "aten::scatter_", "aten::scatter_add", "aten::scatter_add_"),
}


class There(Tensor):
    """A tensor on the device; ``here`` holds its numbers."""

    here: Tensor

    @staticmethod
    def __new__(cls, here: Tensor) -> There:
        made: There = Tensor._make_wrapper_subclass(
            cls,
            here.size(),
            strides=here.stride(),
            storage_offset=here.storage_offset(),
            dtype=here.dtype,
            device=_DEVICE,
        )
        made.here = here
        return made

    def __repr__(self, *, tensor_contents: object = None) -> str:
        return f"There({self.here})"

    # Torch's own know no tensors without memory.

    def tolist(self) -> Any:
        return self.here.tolist()

    def __format__(self, specification: str) -> str:
        return self.here.__format__(specification)

    def untyped_storage(self) -> torch.UntypedStorage:
        return self.here.untyped_storage()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _computed(func, args, kwargs or {})


class _Device(TorchDispatchMode):
    """Sees what takes no tensor on the device and makes one."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _computed(func, args, kwargs or {})


@contextlib.contextmanager
def device() -> Iterator[torch.device]:
    """Have the device, and modules that move to it."""
    swaps, lifts = torch.__future__.get_swap_module_params_on_conversion(), torch._C._only_lift_cpu_tensors()
    torch.__future__.set_swap_module_params_on_conversion(True)
    torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor() makes its result on the CPU first
    _MODULE.present = True
    try:
        with _Device():
            yield _DEVICE
    finally:
        _MODULE.present = False
        torch.__future__.set_swap_module_params_on_conversion(swaps)
        torch._C._set_only_lift_cpu_tensors(lifts)


class safe_open:  # noqa: N801 - stands in for the function of that name
    """Opens a checkpoint whose tensors go to the device; the library reads for devices that it knows."""

    def __init__(self, path: Any, *, framework: str, device: str = "cpu") -> None:
        self._file, self._device = safetensors.safe_open(path, framework=framework), device

    def __enter__(self) -> safe_open:
        self._file.__enter__()
        return self

    def __exit__(self, *raised: Any) -> None:
        self._file.__exit__(*raised)

    def metadata(self) -> Any:
        return self._file.metadata()

    def keys(self) -> Any:
        return self._file.keys()

    def get_tensor(self, name: str) -> Tensor:
        found: Tensor = self._file.get_tensor(name)
        return found.to(self._device)


def _computed(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    name, asked = func._schema.name, kwargs.get("device")
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    there = any(isinstance(t, There) for t in tensors)
    if there and name not in _MOVES:
        _refuse_mixtures(name, args, tensors)
        _refuse_writes_here(func, args, kwargs)
    makes_there = there if asked is None else asked.type == NAME
    drawn_by = kwargs.get("generator")
    if makes_there and drawn_by is not None:
        raise RuntimeError(f"{name}: expected a generator of {NAME}, found one of {drawn_by.device}")
    own = {**kwargs, "device": torch.device("cpu")} if makes_there and asked is not None else kwargs
    result = func(*tree_map(_numbers, args), **tree_map(_numbers, own))
    if name == "aten::copy_":
        return args[0]
    if makes_there:
        result = There(result) if isinstance(result, Tensor) else tree_map(_wrapped, result)
    return return_and_correct_aliasing(func, args, kwargs, result) if makes_there and _aliases(func) else result


def _numbers(leaf: Any) -> Any:
    return leaf.here if isinstance(leaf, There) else leaf


def _wrapped(leaf: Any) -> Any:
    return There(leaf) if isinstance(leaf, Tensor) else leaf


def _refuse_writes_here(func: Any, args: Any, kwargs: dict[str, Any]) -> None:
    for place, argument in enumerate(func._schema.arguments):
        given = args[place] if place < len(args) else kwargs.get(argument.name)
        written = argument.alias_info is not None and argument.alias_info.is_write
        if written and isinstance(given, Tensor) and not isinstance(given, There):
            raise RuntimeError(f"{func._schema.name}: expected all tensors to be on one device, and writes to the CPU")


@cache
def _aliases(func: Any) -> bool:
    """Return whether an operation gives back what it was given, or a view of it."""
    return any(argument.alias_info is not None for argument in func._schema.arguments)


def _refuse_mixtures(name: str, args: Any, tensors: list[Tensor]) -> None:
    if name in _TAKES_INDICES and isinstance(args[0], There):
        tensors = [args[0], *(t for t in args[2:3] if isinstance(t, Tensor))]  # and the values, where some are put
    takes_scalars = name not in _TAKES_NO_SCALARS
    here = [t for t in tensors if not isinstance(t, There) and not (takes_scalars and t.dim() == 0)]
    if here and any(isinstance(t, There) for t in tensors):
        shapes = ", ".join(f"{list(t.shape)} on {t.device}" for t in tensors)
        raise RuntimeError(f"{name}: expected all tensors to be on one device, found {shapes}")
