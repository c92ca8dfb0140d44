"""DataInf: an influence function whose inverse curvature is a mean of inverses, each of which is known.

The empirical Fisher information of a layer is a mean of outer products, ``mean_i g_i g_i^T``, plus a ridge. DataInf
swaps the mean and the inverse: instead of inverting the mean it averages the inverses of ``g_i g_i^T + ridge I``,
which the Sherman-Morrison formula gives in closed form. The swap is wrong by an amount that grows with the layer's
size, so it was proposed for low-rank adapters; under the ``lora`` ensemble it is what it was made for.

Per layer, for a query's gradient q and a training example's z:

    q^T H^-1 z = (q.z - mean_i (q.g_i)(g_i.z) / (ridge + g_i.g_i)) / ridge

The ridge is relative to a mean over a layer's parameters and is compared with a sum over them, so it begins to matter
when ``damping`` nears the layer's size; far above it only scales the layers, and far below it not even that.

These are dot products of one layer's gradients, of queries and of training examples with training examples. Where one
costs little, as in linear layers on plain vectors, nothing else is computed. Elsewhere the sum over i is formed for
every query and multiplied by the training gradients.

Source: Kwon et al. 2024, "DataInf: Efficiently Estimating Data Influence in LoRA-tuned LLMs and Diffusion Models",
equation 5.
Cost per member: a gradient pass over the training set for its norms. Then, by pairs, one over the queries, one over the
training set or, where its factors are too many to be kept, three or more, a dot product of every pair in each layer,
and one multiply-add for each query and pair of training examples; by sums, a pass over the queries, two over the
training set for every part of the queries that memory holds at once, and two products of each query and training
example. Storage: a number per layer and example.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

import tdabench

State = dict[str, tuple[torch.Tensor, torch.Tensor]]

# By pairs, the dot products of queries and training examples are held in every layer, and three times more; up to this.
_PRODUCTS_BYTES = 512 << 20
_BESIDE = 4


@dataclass(frozen=True)
class DataInf(tdabench.MemberMethod):
    """Minus the query's target gradient times a mean of inverses times the training loss gradient."""

    damping: float = tdabench.option(
        0.1,
        "ridge of each layer, relative to the mean diagonal of its second moment",
        low=1e-9,
        tune=(0.1, 1.0, 10.0, 100.0, 1e3, 1e4, 1e5, 1e6),
    )

    def work(self, sizes: tdabench.Sizes) -> tdabench.Work:
        """Take norms by layer; then multiply all pairs, or weigh the training set's gradients for some queries."""
        n, m = sizes.n_train, sizes.n_queries
        look = tdabench.Counts(gradients=1)
        takes_pairs = _takes_pairs(sizes.layers, n, m)
        return tdabench.Work(
            fit=look + sizes.norms(n),
            attribute=look + (self._pairs_work(sizes) if takes_pairs else self._sums_work(sizes)),
            state=len(sizes.layers) * (n + 1),
        )

    def _pairs_work(self, sizes: tdabench.Sizes) -> tdabench.Counts:
        n, m, n_layers = sizes.n_train, sizes.n_queries, len(sizes.layers)
        weighing = tdabench.Counts(products=n_layers * n * n * m, held=(n_layers + _BESIDE) * n * m)
        return sizes.layer_dots(m, n) + sizes.layer_dots(n, n, again=True) + weighing

    def _sums_work(self, sizes: tdabench.Sizes) -> tdabench.Counts:
        n, m = sizes.n_train, sizes.n_queries
        cuts = sizes.layer_cuts(m)
        weighing = tdabench.Counts(products=2 * sizes.n_scores * sizes.n_parameters)
        held = tdabench.Counts(held=6 * -(-m // cuts) * sizes.n_parameters)
        return sizes.by_layer(m) + sizes.times(n, m, uses=2 * cuts) + weighing + held

    def fit(self, member: tdabench.Member) -> State:
        """Return each layer's ridge ``[]`` and the squared norms of the training gradients in it ``[n_train]``."""
        training = member.gradients(member.task.training, of="loss")
        sizes = {layer.key: layer.numbers for layer in training.layers}
        return {key: (self._ridge(s, sizes[key]), s) for key, s in training.layer_squares().items()}

    def _ridge(self, squares: torch.Tensor, size: int) -> torch.Tensor:
        """Return a layer's ridge; infinite where no training example has a gradient, so that the layer says nothing."""
        ridge = self.damping * squares.mean() / size
        return torch.where(ridge >= torch.finfo(ridge.dtype).tiny, ridge, torch.inf)

    def attribute(self, member: tdabench.Member, state: State) -> torch.Tensor:
        """Return ``[n_queries, n_train]``; minus, because training goes down the loss."""
        task = member.task
        layers = member.gradients(task.training, of="loss").layers
        takes_pairs = _takes_pairs(layers, task.n_train, task.n_queries)
        return (_by_pairs if takes_pairs else _by_sums)(member, state)


def _takes_pairs(layers: Sequence[tdabench.Layer], n: int, m: int) -> bool:
    """Return whether pairs of ``n`` examples take fewer multiply-adds than sums for ``m`` queries, and have room."""
    by_pairs = sum((n + m) * layer.pair + n * m for layer in layers)
    by_sums = sum(2 * m * layer.numbers for layer in layers)
    return by_pairs < by_sums and 4 * (len(layers) + _BESIDE) * m * n <= _PRODUCTS_BYTES


def _by_pairs(member: tdabench.Member, state: State) -> torch.Tensor:
    task = member.task
    queries, training = member.gradients(task.queries, of="target"), member.gradients(task.training, of="loss")
    scores = torch.zeros(task.n_queries, task.n_train, device=task.device)
    products = {key: torch.empty_like(scores) for key in state}  # q.g_i in each layer
    for some, columns, key, block in queries.layer_dots(training):
        products[key][some, columns] = block
    for key, (ridge, _) in state.items():
        scores.addcdiv_(products[key], ridge, value=-1)
    for rows, columns, key, block in training.layer_dots(training):  # g_i.z: [h, c]
        ridge, squares = state[key]
        weights = products[key][:, rows] / (ridge + squares[rows])  # [m, h]
        scores[:, columns].addmm_(weights, block.div_(task.n_train * ridge))
    return scores


def _by_sums(member: tdabench.Member, state: State) -> torch.Tensor:
    task = member.task
    queries, training = member.gradients(task.queries, of="target"), member.gradients(task.training, of="loss")
    scores = torch.empty(task.n_queries, task.n_train, device=task.device)
    for rows, layers in queries.by_layer():
        own = {key: layer.flatten(1) for key, layer in layers.items()}  # [m, P of the layer]
        sums = {key: torch.zeros_like(q) for key, q in own.items()}  # of (q.g_i) g_i
        for some, key, flat in training.flats():
            ridge, squares = state[key]
            weights = (flat @ own[key].T) / (ridge + squares[some]).unsqueeze(1)  # [b, m]
            sums[key].addmm_(weights.T, flat)
        solved = {key: ((own[key] - sums[key] / task.n_train) / state[key][0]).view_as(layers[key]) for key in layers}
        scores[rows] = -training.times(solved).T
    return scores
