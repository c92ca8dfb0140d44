r"""Representer points: what a re-fitted last layer is made of.

Keep the model up to its last linear layer and fit that layer anew, with an l2 penalty, until the gradient of
:math:`\frac1n \sum_i L_i + \lambda \|W\|^2` vanishes. Then the layer *is* a weighted sum of the training examples: with
f an example's representation (and a one for the bias),

.. math::
    W = \sum_i f_i \alpha_i^T, \qquad \alpha_i = -\frac{1}{2 \lambda n} \frac{\partial L_i}{\partial \text{logits}_i},

so a query's logits are sums over training examples, :math:`\sum_i \alpha_i (f_i \cdot f_q)`, exactly. The score of an
example is its term, as the target feels it: the derivative of the query's target with respect to its logits, times
:math:`\alpha_i`, summed over classes. For one class's logit that is the paper's representer value; for log-odds it
weighs all classes. A positive score raises the target.

On a sequence every position has a representation and logits, and an example's term is the sum over its positions and
the query's; the positions' outer products are summed first, so nothing of the size of position pairs is formed.

The identity holds at the minimum only, so the layer is fitted by Newton's method until the sum over examples differs
from it by a millionth: steps by conjugate gradients in float32, for they need not be exact; their lengths and gradients
in float64. The penalty is relative to the mean square of the representations, so that one grid fits all models.

Source: Yeh et al. 2018, "Representer Point Selection for Explaining Deep Neural Networks". There the layer is fitted to
the model's own predictions; here to the labels, as the model was, for it is the training data that is asked about.
Cost per member: a forward pass over the training set and one over the queries, some hundred products with the training
set's representations, thin matrix products. Storage: representations and alphas of the training set; for sequences, one
matrix of the layer's size per example.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

import tdabench

_TOLERANCE = 1e-6
_MAX_NEWTON, _MAX_PRODUCTS = 50, 1000
# How many it usually takes; they depend on the data, so an estimate of the time can only be rough.
_TYPICAL_PRODUCTS = 200
# Logits at once: their many small steps stay in the cache.
_BLOCK_BYTES = 2 << 20


@dataclass(frozen=True)
class RepresenterState:
    """What serving needs: the re-fitted layer, and each training example's alpha and representation."""

    weights: Tensor  # [d, C] float64
    alphas: Tensor  # [n_train, C]; ones [n_train, 1] on sequences
    features: Tensor  # [n_train, d]; sums over positions of both's outer products [n_train, C * d] on sequences


@dataclass(frozen=True)
class RepresenterPoints(tdabench.MemberMethod):
    """Each training example's share of the target under a last layer that is re-fitted with an l2 penalty."""

    l2: float = tdabench.option(
        0.03,
        "penalty, relative to the mean square of the representations",
        low=1e-6,
        tune=(0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0),
    )

    def supports(self, task: tdabench.TaskView) -> str | None:
        """Need a last linear layer."""
        return None if task.has_linear_layers else f"the model of {task.name} has no linear layer to re-fit"

    def work(self, sizes: tdabench.Sizes) -> tdabench.Work:
        """Pass both sides forward, fit the layer by a typical number of products, and multiply every pair."""
        if sizes.representation is None:
            raise tdabench.Declined("the model has no linear layer that is given one row per example")
        n, m, (positions, d), c = sizes.n_train, sizes.n_queries, sizes.representation, sizes.n_outputs
        d += 1  # for the bias
        left, right = (c, d) if sizes.has_one_label else (1, c * d)
        fitting = tdabench.Counts(
            products=_TYPICAL_PRODUCTS * 2 * n * positions * c * d,
            moved=_TYPICAL_PRODUCTS * 8 * n * positions * c,
            held=n * positions * (3 * d + 8 * c),
        )
        pairs = tdabench.Counts(products=sizes.n_scores * (left + right), held=3 * sizes.n_scores + m * (left + right))
        return tdabench.Work(
            fit=tdabench.Counts(forward=n) + fitting,
            attribute=tdabench.Counts(forward=m) + pairs,
            state=2 * d * c + n * (left + right),
        )

    def fit(self, member: tdabench.Member) -> RepresenterState:
        """Re-fit the last layer to stationarity and read off the alphas."""
        task = member.task
        features = _features(member, task.training)
        layer = LastLayer(features, task.training.labels, task.loss_function, self.l2 * float(features.square().mean()))
        weights = layer.fitted(_n_classes(member, features))
        _, slopes = derivatives(task.loss_function, features.double() @ weights, task.training.labels)
        alphas = -slopes / (2 * layer.penalty * task.n_train)
        return RepresenterState(weights, *_factors(alphas, features))

    def attribute(self, member: tdabench.Member, state: RepresenterState) -> Tensor:
        """Return ``[n_queries, n_train]``."""
        queries = member.task.queries
        features = _features(member, queries)
        logits = features.double() @ state.weights
        _, slopes = derivatives(member.task.target_function, logits, queries.labels)
        slopes, features = _factors(slopes, features)
        return (slopes @ state.alphas.T) * (features @ state.features.T)


@dataclass(frozen=True)
class LastLayer:
    """The problem of fitting the last layer: the mean loss of ``features @ weights``, plus a penalty.

    Attributes
    ----------
    features
        ``[n, ..., d]`` float32, of each example and position.
    labels, loss
        The training set's labels, and the loss of each example, ``(logits [n, ..., C], labels) -> [n]``, convex in the
        logits.
    penalty
        Factor of the squared norm of the weights.
    """

    features: Tensor
    labels: Tensor
    loss: Callable[[Tensor, Tensor], Tensor]
    penalty: float

    def fitted(self, n_classes: int) -> Tensor:
        """Return the weights ``[d, n_classes]`` at which the gradient vanishes, to a millionth of the penalty's part.

        Raises
        ------
        UsageError
            If Newton's method does not get there.
        """
        weights = self.features.new_zeros(self.features.shape[-1], n_classes, dtype=torch.float64)
        value, gradient = self.gradient(weights)
        for _ in range(_MAX_NEWTON):
            if gradient.norm() <= _TOLERANCE * 2 * self.penalty * weights.norm():
                return weights
            step = self._newton_step(weights, gradient)
            weights, value, gradient = self._searched(weights, step, value, float((gradient * step).sum()))
        raise tdabench.UsageError(
            f"The last layer was not fitted after {_MAX_NEWTON} steps of Newton's method, so it is no sum of "
            "representer points: give a larger penalty (--set l2=0.1)."
        )

    def gradient(self, weights: Tensor) -> tuple[float, Tensor]:
        """Return the objective and its gradient ``[d, C]``, float64."""
        features = self.features.double()
        values, slopes = derivatives(self.loss, features @ weights, self.labels)
        value = float(values.mean() + self.penalty * weights.square().sum())
        return value, _mean_outer(features, slopes) + 2 * self.penalty * weights

    def _newton_step(self, weights: Tensor, gradient: Tensor) -> Tensor:
        """Solve with the Hessian by conjugate gradients, the more exactly the nearer the minimum is."""
        logits = self.features @ weights.float()
        exactness = min(0.1, max(1e-3, float(gradient.norm()) ** 0.5))
        rest = -(gradient / gradient.norm()).float()
        step, direction, square = torch.zeros_like(rest), rest, rest.square().sum()
        for _ in range(_MAX_PRODUCTS):
            if square.sqrt() <= exactness:
                break
            moved = curvature_products(self.loss, logits, self.labels, self.features @ direction)
            product = _mean_outer(self.features, moved) + 2 * self.penalty * direction
            length = square / (direction * product).sum()
            step, rest = step + length * direction, rest - length * product
            before, square = square, rest.square().sum()
            direction = rest + square / before * direction
        return step.double() * gradient.norm()

    def _searched(self, weights: Tensor, step: Tensor, value: float, slope: float) -> tuple[Tensor, float, Tensor]:
        """Return the weights after as much of the step as lowers the objective, with objective and gradient."""
        length = 1.0
        while True:
            moved = weights + length * step
            new, gradient = self.gradient(moved)
            rounding = 1e-12 * abs(value)
            if new <= value + 1e-4 * length * slope + rounding or length < 1e-6:
                return moved, new, gradient
            length /= 2


def _mean_outer(features: Tensor, logits: Tensor) -> Tensor:
    """Return the mean over examples of the outer products of ``[n, ..., d]`` and ``[n, ..., C]``: ``[d, C]``."""
    # In this order the narrow matrix is the one that is read transposed, which is three times as fast.
    return (logits.flatten(0, -2).T @ features.flatten(0, -2)).T / len(logits)


def derivatives(function: Callable[[Tensor, Tensor], Tensor], logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return a loss's or target's values ``[n]`` and their derivatives with respect to the logits ``[n, ..., C]``."""
    values, slopes = [], []
    for rows in _blocks(logits):
        z = logits[rows].detach().requires_grad_()
        values.append(function(z, labels[rows]))
        slopes += torch.autograd.grad(values[-1].sum(), z)
    return torch.cat(values).detach(), torch.cat(slopes)


def curvature_products(
    function: Callable[[Tensor, Tensor], Tensor], logits: Tensor, labels: Tensor, moves: Tensor
) -> Tensor:
    """Return each example's Hessian with respect to its logits, times ``moves``: ``[n, ..., C]``."""
    products = []
    for rows in _blocks(logits):
        z = logits[rows].detach().requires_grad_()
        (slopes,) = torch.autograd.grad(function(z, labels[rows]).sum(), z, create_graph=True)
        products += torch.autograd.grad(slopes, z, moves[rows])
    return torch.cat(products)


def _blocks(logits: Tensor) -> Iterator[slice]:
    size = max(1, _BLOCK_BYTES // (logits[0].numel() * logits.element_size()))
    for start in range(0, len(logits), size):
        yield slice(start, start + size)


def _features(member: tdabench.Member, examples: tdabench.Examples) -> Tensor:
    """Return the representations with a one for the bias, ``[n, ..., d + 1]``."""
    rows = member.representations(examples, pooled=False)
    return torch.cat([rows, rows.new_ones(*rows.shape[:-1], 1)], dim=-1)


def _n_classes(member: tdabench.Member, features: Tensor) -> int:
    first = member.task.training.take(torch.zeros(1, dtype=torch.int64, device=features.device))
    with torch.no_grad():
        logits = member.logits(member.parameters, first)  # [1, ..., C]
    if logits.shape[:-1] != features[:1].shape[:-1]:
        raise tdabench.Declined(f"the logits of {member.task.name} are not made one by one from representations")
    return logits.shape[-1]


def _factors(slopes: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
    """Return two factors ``[n, C]`` and ``[n, d]`` whose products with another example's multiply to the score.

    Where there are positions, their outer products are summed, ``[n, C * d]``, and the first factor is one.
    """
    slopes = slopes.float()
    if slopes.dim() == 2:
        return slopes, features
    sums = slopes.flatten(1, -2).transpose(1, 2) @ features.flatten(1, -2)  # [n, C, d]
    return slopes.new_ones(len(slopes), 1), sums.flatten(1)
