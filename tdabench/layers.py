"""Layers whose gradients factor: what each kind makes of its input and of the gradient at its output."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tdabench.lora import adapter_names, is_adapted
from tdabench.pieces import Outer, Piece, Rows, is_short

# Beyond this many tokens a one-hot row costs more than the gradient it stands for.
_MOST_TOKENS = 1024


def own_names(name: str, module: nn.Module) -> tuple[str, ...]:
    """Return the names of a layer's weight and bias, and of its adapter's two parts if it has one."""
    return (*_weight_and_bias(name), *(adapter_names(name) if is_adapted(module) else ()))


def _weight_and_bias(name: str) -> tuple[str, str]:
    start = f"{name}." if name else ""
    return f"{start}weight", f"{start}bias"


def factors(module: nn.Module) -> bool:
    """Return whether the gradients of a module's parameters are known from its input and the gradient at its output."""
    kind = _kind(module)
    if kind is None or type(module).forward is not kind.forward or "forward" in vars(module):
        return False
    if isinstance(module, nn.Conv2d):
        return module.groups == 1 and module.padding_mode == "zeros" and not isinstance(module.padding, str)
    if isinstance(module, nn.Embedding):
        return module.num_embeddings <= _MOST_TOKENS
    if isinstance(module, nn.LayerNorm):
        return len(module.normalized_shape) == 1
    if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
        return module.running_mean is not None  # else examples are normalised with one another
    return True


def _kind(module: nn.Module) -> type[Any] | None:
    return next((kind for kind in _PIECES if isinstance(module, kind)), None)


def pieces_of(
    name: str, module: nn.Module, x: Tensor, g: Tensor, values: Mapping[str, Tensor], *, short: bool = False
) -> Iterator[Piece]:
    """Yield the pieces of a layer's parameters that are differentiated.

    Parameters
    ----------
    name, module
        The layer.
    x, g
        Its input and the gradient at its output, ``[B, ...]``; behind the examples stands what the layer was given and
        gave for one of them, with the dimension that it takes for the batch.
    values
        The parameters (and running statistics) that the pass was made with; parameters that are not here are frozen.
    short
        Whether long sums over positions are left in bfloat16; see :func:`tdabench.pieces.is_short`.
    """
    kind = _kind(module)
    assert kind is not None
    if short and isinstance(module, nn.Conv2d):
        x, g = _before_patches(name, module, x, g, values)
    found = _PIECES[kind](name, module, x, g, values)
    yield from (piece.shortened() for piece in found) if short else found


def _before_patches(
    name: str, module: nn.Conv2d, x: Tensor, g: Tensor, values: Mapping[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """Return a convolution's input and gradient, in bfloat16 if its piece will be: patches repeat every number."""
    weight, bias = _weight_and_bias(name)
    if weight not in values:
        return x, g
    columns = module.weight[0].numel() + (bias in values)
    positions = g[0].numel() // module.out_channels
    return (x.bfloat16(), g.bfloat16()) if is_short(positions, module.out_channels, columns) else (x, g)


def _positions(x: Tensor) -> Tensor:
    """Return ``[B, ..., d]`` as ``[B, T, d]``."""
    return x.reshape(x.shape[0], -1, x.shape[-1])


def _products(
    name: str, x: Tensor, g: Tensor, values: Mapping[str, Tensor], order: Tensor | None = None
) -> Iterator[Piece]:
    """Yield the pieces of a weight ``[p, q]``, with a bias as one more input that is always one.

    ``order`` says which of the weight's columns each number of ``x`` is for, if not that in its place.
    """
    weight, bias = _weight_and_bias(name)
    if weight in values and bias in values:
        with_bias = None if order is None else torch.cat([order, order.new_tensor([len(order)])])
        yield Outer(name, (weight, bias), g, torch.cat([x, x.new_ones(*x.shape[:2], 1)], dim=2), with_bias)
    elif weight in values:
        yield Outer(name, (weight,), g, x, order)
    elif bias in values:
        yield Rows(bias, (bias,), g.sum(1).unsqueeze(2))


def _linear(name: str, module: nn.Linear, x: Tensor, g: Tensor, values: Mapping[str, Tensor]) -> Iterator[Piece]:
    x, g = _positions(x), _positions(g)
    yield from _products(name, x, g, values)
    down, up = adapter_names(name)
    if down in values and is_adapted(module):
        yield Outer(up, (up,), g, x @ values[down].T)  # [out, r]
        yield Outer(down, (down,), g @ values[up], x)  # [r, in]


def _convolution(name: str, module: nn.Conv2d, x: Tensor, g: Tensor, values: Mapping[str, Tensor]) -> Iterator[Piece]:
    weight, bias = _weight_and_bias(name)
    n = len(g)
    g = g.reshape(-1, *g.shape[-3:]).flatten(2).transpose(1, 2)  # [B * rows, L, channels]
    if weight in values:
        patches = _patches(module, x.reshape(-1, *x.shape[-3:]))
        patches = patches.reshape(n, -1, patches.shape[2])
        yield from _products(name, patches, g.reshape(n, -1, g.shape[2]), values, _column_order(module, x.device))
    elif bias in values:
        yield Rows(bias, (bias,), g.reshape(n, -1, g.shape[2]).sum(1).unsqueeze(2))


def _patches(module: nn.Conv2d, x: Tensor) -> Tensor:
    """Return what each output position sees, ``[B, L, kernel * channels]``.

    Place by place of the kernel: in images with channels last, a row of a patch then lies in memory in one piece.
    """
    (high, wide), (down, along), (top, left) = module.kernel_size, module.stride, _both(module.padding)
    images = x.permute(0, 2, 3, 1)
    if module.kernel_size == (1, 1) and (top, left) == (0, 0):
        return images[:, ::down, ::along].flatten(1, 2)
    images = F.pad(images, (0, 0, left, left, top, top)).contiguous()
    apart_down, apart_along = module.dilation
    rows = (images.shape[1] - apart_down * (high - 1) - 1) // down + 1
    columns = (images.shape[2] - apart_along * (wide - 1) - 1) // along + 1
    by_image, by_row, by_column, _ = images.stride()
    windows = images.as_strided(
        (len(images), rows, columns, high, wide, images.shape[3]),
        (by_image, down * by_row, along * by_column, apart_down * by_row, apart_along * by_column, 1),
    )
    return windows.reshape(len(images), rows * columns, -1)


def _both(padding: str | tuple[int, ...]) -> tuple[int, int]:
    assert not isinstance(padding, str)  # see factors()
    return padding[0], padding[1]


def _column_order(module: nn.Conv2d, device: torch.device) -> Tensor | None:
    """Return where the weight ``[p, channels * kernel]`` holds the columns of the patches."""
    places = math.prod(module.kernel_size)
    if places == 1:
        return None
    return torch.arange(module.in_channels * places, device=device).view(-1, places).T.flatten()


def _embedding(name: str, module: nn.Embedding, x: Tensor, g: Tensor, values: Mapping[str, Tensor]) -> Iterator[Piece]:
    weight, _ = _weight_and_bias(name)
    if weight in values:
        tokens = F.one_hot(x.reshape(x.shape[0], -1), module.num_embeddings).to(g.dtype)  # [B, T, V]
        if module.padding_idx is not None:
            tokens[..., module.padding_idx] = 0
        yield Outer(weight, (weight,), tokens, _positions(g))


def _layer_norm(name: str, module: nn.LayerNorm, x: Tensor, g: Tensor, values: Mapping[str, Tensor]) -> Iterator[Piece]:
    normal = F.layer_norm(x, module.normalized_shape, eps=module.eps)
    yield from _scale_and_shift(name, _positions(normal), _positions(g), values)


def _batch_norm(name: str, module: Any, x: Tensor, g: Tensor, values: Mapping[str, Tensor]) -> Iterator[Piece]:
    start = f"{name}." if name else ""
    mean = values.get(f"{start}running_mean", module.running_mean)
    variance = values.get(f"{start}running_var", module.running_var)
    channels = module.num_features
    normal = F.batch_norm(x.flatten(0, 1), mean, variance, eps=module.eps).view_as(x)
    # From [B, rows, channels, ...] to [B, T, channels].
    normal, g = (t.reshape(*t.shape[:2], channels, -1).transpose(2, 3).flatten(1, 2) for t in (normal, g))
    yield from _scale_and_shift(name, normal, g, values)


def _scale_and_shift(name: str, normal: Tensor, g: Tensor, values: Mapping[str, Tensor]) -> Iterator[Piece]:
    weight, bias = _weight_and_bias(name)
    if weight in values:
        yield Rows(weight, (weight,), (g * normal).sum(1).unsqueeze(2))
    if bias in values:
        yield Rows(bias, (bias,), g.sum(1).unsqueeze(2))


_PIECES: dict[type[Any], Callable[..., Iterator[Piece]]] = {
    nn.Linear: _linear,
    nn.Conv2d: _convolution,
    nn.Embedding: _embedding,
    nn.LayerNorm: _layer_norm,
    nn.BatchNorm1d: _batch_norm,
    nn.BatchNorm2d: _batch_norm,
}
