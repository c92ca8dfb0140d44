"""Networks that several tasks train."""

from __future__ import annotations

from itertools import pairwise

from torch import nn


def dropout_mlp(*widths: int, p: float) -> nn.Sequential:
    """Return a multilayer perceptron with ReLU, and dropout of rate ``p`` after each hidden layer.

    Parameters
    ----------
    widths
        Inputs, hidden layers, outputs.
    p
        Dropout rate.
    """
    layers: list[nn.Module] = []
    for n_in, n_out in pairwise(widths):
        layers += [nn.Linear(n_in, n_out), nn.ReLU(), nn.Dropout(p)]
    return nn.Sequential(*layers[:-2])  # nothing follows the outputs
