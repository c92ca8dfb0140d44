"""Networks that several tasks train."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn


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


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions beside a 1 x 1 one, each with batch normalisation."""

    def __init__(self, n_in: int, n_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(n_in, n_out, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(n_out)
        self.conv2 = nn.Conv2d(n_out, n_out, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(n_out)
        self.shortcut = nn.Conv2d(n_in, n_out, 1, stride, bias=False)
        self.norm3 = nn.BatchNorm2d(n_out)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``[B, n_out, H / stride, W / stride]``."""
        y = self.norm1(self.conv1(x)).relu()
        y = self.norm2(self.conv2(y)).relu()
        return (y + self.norm3(self.shortcut(x))).relu()


def resnet9(n_classes: int, *, width: int, strides: tuple[int, int, int], p: float) -> nn.Sequential:
    """Return a ResNet-9: a 3 x 3 convolution and three residual blocks, each twice as wide as what it is given.

    Parameters
    ----------
    n_classes
        Number of logits.
    width
        Channels of the first convolution; 64 gives 64-128-256-512, 4.83 M parameters. Take 8 or more: with 3 to 6
        channels, the backward pass of a 1 x 1 convolution of stride 2 on channels-last images corrupts memory or
        hangs in torch 2.13 on a CPU.
    strides
        Of the three blocks; (1, 2, 2) is the network of the literature.
    p
        Rate at which whole channels are dropped after each block.
    """
    layers: list[nn.Module] = [nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    for number, stride in enumerate(strides):
        layers += [ResidualBlock(width << number, width << (number + 1), stride), nn.Dropout2d(p)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width << 3, n_classes))
