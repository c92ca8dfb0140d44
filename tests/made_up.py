"""Made-up examples for tiny networks."""

from __future__ import annotations

import torch

from tdabench import Examples


def images(n: int, split: str, random: torch.Generator, side: int) -> Examples:
    """Return ``n`` colour images of three classes."""
    pixels = torch.randn(n, 3, side, side, generator=random)
    return Examples(pixels, torch.randint(3, (n,), generator=random), split)


def sequences(n: int, split: str, random: torch.Generator, vocabulary: int, length: int) -> Examples:
    """Return ``n`` sequences of tokens, each labelled with its next."""
    tokens = torch.randint(vocabulary, (n, length + 1), generator=random)
    return Examples(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous(), split)
