"""Dropout whose masks are given, not drawn: the same module serves training, evaluation and dropout ensembles.

``torch.nn.Dropout`` draws from a global generator, so a replica's masks would depend on what trains beside it and a
mask could not be shared by two passes. :func:`install_masks` replaces it by :class:`MaskedDropout`, whose mask is a
buffer that ``torch.func.functional_call`` substitutes; left alone, the buffer is one and dropout is off. Dropout that
is no module, inside attention or called as a function, cannot be replaced, so a model that has some is refused.
"""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from tdabench.authors import author_errors
from tdabench.errors import UsageError
from tdabench.seeds import derive_seed

# Sixteen random bits decide about one unit, so a rate is exact to 1 / 65536 and four units cost one 64-bit draw.
_LEVELS = 1 << 16


class MaskedDropout(nn.Module):
    """Multiply by a given mask of 0 and 1 / (1 - p); by default by one, which is dropout switched off."""

    mask: Tensor

    def __init__(self, p: float, kind: type[nn.Module] = nn.Dropout) -> None:
        super().__init__()
        self.p, self.kind = p, kind
        self.register_buffer("mask", torch.ones(()), persistent=False)

    def mask_shape(self, activations: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of one example's mask, from that of its activations."""
        return _MASKED_AXES[self.kind](activations)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x * mask``; the mask broadcasts over the batch or has one row per example."""
        return x * self.mask


class SequenceDropout(nn.Module):
    """Dropout for sequences ``[B, T, features]`` whose mask holds for all positions (Gal & Ghahramani 2016).

    An example has one mask per feature instead of one per token and feature: the same sub-network reads the whole
    sequence, and the masks of a training set fit in memory. On its own, called in training mode, it draws its mask
    from torch's global generator, as ``torch.nn.Dropout`` does.
    """

    __constants__ = ("p",)

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` with features dropped."""
        return x * nn.functional.dropout(x.new_ones(x.shape[0], 1, x.shape[2]), self.p, self.training)


# Which axes of one example's activations have masks of their own; over the others a mask is shared.
_MASKED_AXES: dict[type[nn.Module], Callable[[tuple[int, ...]], tuple[int, ...]]] = {
    nn.Dropout: lambda shape: shape,
    nn.Dropout2d: lambda shape: (shape[0], *(1 for _ in shape[1:])),
    SequenceDropout: lambda shape: (*(1 for _ in shape[:-1]), shape[-1]),
}


@dataclass(frozen=True)
class DropoutSite:
    """A place in the model where units are dropped: buffer name, rate, and shape of one example's mask."""

    buffer: str
    p: float
    shape: tuple[int, ...]

    @property
    def units(self) -> int:
        """How many units one example has here."""
        return math.prod(self.shape)


def install_masks(model: nn.Module, example: Tensor) -> tuple[nn.Module, tuple[DropoutSite, ...]]:
    """Return a copy of ``model`` with given-mask dropout, and its sites.

    Parameters
    ----------
    model
        Any module; every ``nn.Dropout``, ``nn.Dropout2d`` and :class:`SequenceDropout` in it is replaced.
    example
        ``[1, ...]`` one input; dry passes find the shapes of the activations and what is drawn in training mode.

    Raises
    ------
    UsageError
        If the model cannot be copied, fails on the example, has a kind of dropout that cannot be given its mask
        (Dropout1d, AlphaDropout, that of attention and recurrent modules, functions, ...), calls one dropout layer more
        than once, gives it rows that are not examples, or assigns new tensors to its running statistics.
    """
    try:
        model = copy.deepcopy(model)
    except RuntimeError as error:
        raise UsageError(
            "The model cannot be copied: a tensor in it is computed from its parameters when it is made (as "
            "torch.nn.utils.weight_norm does; torch.nn.utils.parametrizations.weight_norm does not)."
        ) from error
    # A module that stands in two places is replaced in both, by two modules: each place has its own mask.
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if type(module) in _MASKED_AXES:
            model.set_submodule(name, MaskedDropout(module.p, type(module)))
        elif isinstance(module, nn.modules.dropout._DropoutNd):
            raise UsageError(f"The model's {name} is a {type(module).__name__}; use torch.nn.Dropout instead.")
        _leave_fused_path(module)
    passing = f"The model, given inputs of shape {list(example.shape[1:])},"
    with torch.random.fork_rng(devices=[]), author_errors(passing):
        before = torch.random.get_rng_state()
        of_two = _dropout_calls(model, lambda: _pass_in_training(model, example))
        drawn = not torch.equal(torch.random.get_rng_state(), before)
    if drawn:  # even now that all masks are given
        raise _other_dropout(model)
    with author_errors(passing):
        calls = _dropout_calls(model, lambda: model(example))
    return model, _sites(model, calls, of_two)


def switch_dropout_off(model: nn.Module) -> None:
    """Put the dropout that :func:`install_masks` replaces into evaluation mode, in place; the rest stays as it is."""
    for module in model.modules():
        if type(module) in _MASKED_AXES:
            module.eval()


def _leave_fused_path(module: nn.Module) -> None:
    """Keep torch's encoder from its fused kernel for evaluation, which calls no module for dropout: masks would go."""
    if isinstance(module, nn.TransformerEncoderLayer):
        module.activation_relu_or_gelu = 0  # "another activation", which the kernel does not have
    elif isinstance(module, nn.TransformerEncoder):
        module.use_nested_tensor = False  # only the kernel takes what is packed for it


def _other_dropout(model: nn.Module) -> UsageError:
    """Say what of a model draws random numbers in training mode, and what to do."""
    for name, module in model.named_modules():
        if isinstance(module, nn.MultiheadAttention | nn.RNNBase) and module.dropout > 0:
            return UsageError(
                f"The model's {name} is a {type(module).__name__} with dropout {module.dropout:g}, which cannot be "
                "given its masks; set its dropout to 0 and use torch.nn.Dropout instead."
            )
    return UsageError(
        "The model draws random numbers in training outside of dropout modules (torch.nn.functional.dropout, for "
        "example); use torch.nn.Dropout instead."
    )


@torch.no_grad()
def _pass_in_training(model: nn.Module, example: Tensor) -> None:
    """Pass two examples in training mode, because BatchNorm1d cannot normalise one, and leave the model as it was."""
    copied = copy.deepcopy(model).train()  # running statistics are written to
    kept = copied.state_dict().keys()
    before = {name: buffer for name, buffer in copied.named_buffers() if name in kept}
    copied(torch.cat([example, example]))
    for name, buffer in before.items():
        if copied.get_buffer(name) is not buffer:
            raise UsageError(
                f"The model assigns a new tensor to {name} in training, and what is assigned would be lost. Update it "
                "in place, m.mul_(0.9).add_(0.1 * x); or register it with persistent=False, if it need not be kept."
            )


Calls = list[tuple[str, tuple[int, ...]]]
"""The modules that drop units, in the order of a pass, and the shape of what each is given."""


def _sites(model: nn.Module, calls: Calls, of_two: Calls) -> tuple[DropoutSite, ...]:
    """Return the sites that a pass of one example calls, checked against one of two in training mode."""
    if other := sorted({name for name, _ in calls} ^ {name for name, _ in of_two}):
        raise UsageError(
            f"The model calls {other[0]} in training mode only, or in evaluation only. Call it always: its masks are "
            "given to it in both, and without one it does nothing."
        )
    for name, times in (Counter(name for name, _ in calls) | Counter(name for name, _ in of_two)).items():
        if times > 1:
            raise UsageError(
                f"The model's {name} is called {times} times; "
                "give each place a torch.nn.Dropout of its own, so that each has its own mask."
            )
    shapes = dict(of_two)
    for name, one in calls:
        two = shapes[name]
        # One row for both is fine (dropout of embedded positions): each example's mask is spread over it.
        if one[0] != 1 or two[0] > 2:
            raise UsageError(
                f"The model's {name} is given {one[0]} rows for one example and {two[0]} for two, so their masks "
                "cannot be told apart; give dropout what has the examples along its first dimension, [B, ...]."
            )
    sites = []
    for name, shape in calls:
        module = model.get_submodule(name)
        assert isinstance(module, MaskedDropout)
        sites.append(DropoutSite(f"{name}.mask", module.p, module.mask_shape(shape[1:])))
    return tuple(sites)


@torch.no_grad()
def _dropout_calls(model: nn.Module, run: Callable[[], object]) -> Calls:
    """Return the calls of the pass ``run``."""
    calls: Calls = []
    hooks = []
    for name, module in model.named_modules():
        if isinstance(module, MaskedDropout) and module.p > 0:

            def note(_: nn.Module, given: tuple[Tensor, ...], __: Tensor, name: str = name) -> None:
                calls.append((name, tuple(given[0].shape)))

            hooks.append(module.register_forward_hook(note))
    run()
    for hook in hooks:
        hook.remove()
    return calls


@dataclass(frozen=True)
class MaskTable:
    """One dropout mask for each of ``n`` examples, at every site; or one for all of them (``n = 1``).

    Attributes
    ----------
    masks
        Site buffer -> ``[n, *shape]`` float32 of 0 and 1 / (1 - p).
    """

    masks: dict[str, Tensor]

    @staticmethod
    def draw(sites: Sequence[DropoutSite], n: int, *name: str | int, device: torch.device | str = "cpu") -> MaskTable:
        """Draw the masks of the stream called ``name``; the same name gives the same masks on every device."""
        masks = {site.buffer: _draw_site(site, n, derive_seed(*name, site.buffer), device) for site in sites}
        return MaskTable(masks)

    def rows(self, index: Tensor) -> dict[str, Tensor]:
        """Return the masks of the examples at ``index`` (any shape): buffer -> ``[*index.shape, *shape]``."""
        flat = index.reshape(-1)
        return {k: m.index_select(0, flat).view(*index.shape, *m.shape[1:]) for k, m in self.masks.items()}


def _draw_site(site: DropoutSite, n: int, seed: int, device: torch.device | str) -> Tensor:
    count = n * site.units
    # random_raw is part of NumPy's stream-compatibility promise and independent of the platform's float kernels.
    bits = np.random.SFC64(seed).random_raw(-(-count // 4)).astype("<u8", copy=False).view("<u2")[:count]
    keep = bits >= round(site.p * _LEVELS)
    mask = torch.from_numpy(keep).to(device).to(torch.float32)  # a quarter of the bytes on the way there
    return mask.div_(1.0 - site.p if site.p < 1 else 1.0).view(n, *site.shape)
