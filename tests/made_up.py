"""Made-up examples for tiny networks, and a tiny network that ``vmap`` has no rule for."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tdabench import Examples


def images(n: int, split: str, random: torch.Generator, side: int) -> Examples:
    """Return ``n`` colour images of three classes."""
    pixels = torch.randn(n, 3, side, side, generator=random)
    return Examples(pixels, torch.randint(3, (n,), generator=random), split)


def sequences(n: int, split: str, random: torch.Generator, vocabulary: int, length: int) -> Examples:
    """Return ``n`` sequences of tokens, each labelled with its next."""
    tokens = torch.randint(vocabulary, (n, length + 1), generator=random)
    return Examples(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous(), split)


class Choosing(nn.Module):
    """Does one thing or another, by what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(64, 10)

    def forward(self, x):
        h = self.last(x)
        return h if float(h.detach().abs().max()) > 1e9 else h.tanh()


class _Spared(torch.autograd.Function):
    generate_vmap_rule = False

    @staticmethod
    def forward(x):
        return x.clone()

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, g):
        return torch.zeros_like(g)

    @staticmethod
    def vmap(info, in_dims, x):
        x = x.movedim(in_dims[0], 0)
        return torch.cat([x[:1].detach(), x[1:]]), 0


def padded_lookup(tokens: Tensor, weight: Tensor) -> Tensor:
    """Look tokens up with padding 0 that ``vmap`` spares in the first copy alone, as torch's own is."""
    rows = nn.functional.embedding(tokens, weight)
    return torch.where((tokens == 0).unsqueeze(-1), _Spared.apply(rows), rows)
