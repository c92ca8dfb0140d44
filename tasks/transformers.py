"""Decoder-only transformers of the sequence tasks: nanoGPT's and the Music Transformer's, from the same parts.

Both predict the next token. They differ in how a position is known (learned vectors added to the tokens; or relative
attention, Huang et al. 2018), in the feed-forward part (GELU of four times the width; ReLU of twice the width) and in
biases. Some things are not as in the originals. For attribution's sake the token embedding and the output layer do not
share weights, so every gradient belongs to one layer; a dropout mask holds for all positions of a sequence (Gal &
Ghahramani 2016), so it is one sub-network for the whole example and needs no memory per token; and attention weights
are not dropped. The Music Transformer normalises before each part, as nanoGPT does, which trains without a warm-up of
thousands of steps, and its heads share one table of relative distances. It adds no
absolute positions to the tokens, its output layer has no bias, and it is initialised as nanoGPT is.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from tdabench.dropout import SequenceDropout


class Attention(nn.Module):
    """Causal self-attention; with ``relative``, a learned vector per head dimension and distance adds to the scores."""

    __constants__ = ("heads", "relative")

    def __init__(self, length: int, width: int, heads: int, *, bias: bool, relative: bool) -> None:
        super().__init__()
        self.heads, self.relative = heads, relative
        self.inputs = nn.Linear(width, 3 * width, bias=bias)
        self.outputs = nn.Linear(width, width, bias=bias)
        if relative:  # row length - 1 is distance 0, row 0 is the farthest
            self.distances = nn.Parameter(torch.randn(length, width // heads) * 0.02)
        self.register_buffer("future", torch.full((length, length), float("-inf")).triu(1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``[B, T, width]``."""
        n, t, width = x.shape
        q, k, v = (
            part.reshape(n, t, self.heads, -1).transpose(1, 2) for part in self.inputs(x).chunk(3, dim=-1)
        )  # [B, heads, T, d]
        q = q / math.sqrt(width // self.heads)
        scores = q @ k.transpose(-1, -2) + self.future[:t, :t]  # [B, heads, T, T]
        if self.relative:
            scores = scores + skew(q @ self.distances[-t:].transpose(0, 1))
        mixed = scores.softmax(-1) @ v  # [B, heads, T, d]
        return self.outputs(mixed.transpose(1, 2).reshape(n, t, width))


def skew(scores: Tensor) -> Tensor:
    """Move scores by distance to their place: column T-1-d of row i goes to column i-d (Huang et al. 2018, 3.4.1).

    Parameters
    ----------
    scores
        ``[B, heads, T, T]``; last column is distance 0.

    Returns
    -------
    Tensor
        ``[B, heads, T, T]``; what lies above the diagonal means nothing and is masked by the caller.
    """
    n, heads, t, _ = scores.shape
    padded = torch.cat([scores.new_zeros(n, heads, t, 1), scores], dim=-1)  # [B, heads, T, T + 1]
    return padded.reshape(n, heads, t + 1, t)[:, :, 1:]


class Block(nn.Module):
    """Attention and a feed-forward part, each normalised before and added to what came in."""

    def __init__(
        self, length: int, width: int, heads: int, hidden: int, *, p: float, bias: bool, relative: bool
    ) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, bias=bias), nn.LayerNorm(width, bias=bias)
        self.attention = Attention(length, width, heads, bias=bias, relative=relative)
        self.expand, self.contract = nn.Linear(width, hidden, bias=bias), nn.Linear(hidden, width, bias=bias)
        self.activation = nn.ReLU() if relative else nn.GELU()
        self.drop1, self.drop2 = SequenceDropout(p), SequenceDropout(p)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``[B, T, width]``."""
        x = x + self.drop1(self.attention(self.norm1(x)))
        return x + self.drop2(self.contract(self.activation(self.expand(self.norm2(x)))))


class Transformer(nn.Module):
    """A decoder-only transformer: tokens ``[B, T]`` int64 to logits ``[B, T, vocabulary]``."""

    __constants__ = ("length",)

    def __init__(
        self,
        vocabulary: int,
        length: int,
        *,
        layers: int,
        width: int,
        heads: int,
        hidden: int,
        p: float,
        bias: bool,
        relative: bool,
    ) -> None:
        super().__init__()
        self.length = length
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = None if relative else nn.Parameter(torch.empty(length, width))
        self.drop = SequenceDropout(p)
        self.blocks = nn.Sequential(
            *(Block(length, width, heads, hidden, p=p, bias=bias, relative=relative) for _ in range(layers))
        )
        self.norm = nn.LayerNorm(width, bias=bias)
        self.head = nn.Linear(width, vocabulary, bias=False)
        self._initialise(layers)

    def _initialise(self, layers: int) -> None:
        """As in GPT-2: normal with deviation 0.02, less where a block adds to its input, so that depth keeps scale."""
        for name, parameter in self.named_parameters():
            if parameter.dim() > 1:
                added = name.endswith(("outputs.weight", "contract.weight"))
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * layers) if added else 0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the logits of every next token."""
        x = self.tokens(tokens)  # [B, T, width]
        if self.positions is not None:
            x = x + self.positions[: tokens.shape[1]]
        return self.head(self.norm(self.blocks(self.drop(x))))


def nano_gpt(vocabulary: int, length: int, *, layers: int, width: int, heads: int, p: float) -> Transformer:
    """Return nanoGPT's character model (Karpathy 2022): learned positions, GELU, no biases."""
    return Transformer(
        vocabulary,
        length,
        layers=layers,
        width=width,
        heads=heads,
        hidden=4 * width,
        p=p,
        bias=False,
        relative=False,
    )


def music_transformer(vocabulary: int, length: int, *, layers: int, width: int, heads: int, p: float) -> Transformer:
    """Return the Music Transformer (Huang et al. 2018): relative attention, ReLU, biases."""
    return Transformer(
        vocabulary, length, layers=layers, width=width, heads=heads, hidden=2 * width, p=p, bias=True, relative=True
    )
