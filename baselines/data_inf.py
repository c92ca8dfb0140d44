"""DataInf: an influence function whose inverse curvature is a mean of inverses, each of which is known.

The empirical Fisher information of a layer is a mean of outer products, ``mean_i g_i g_i^T``, plus a ridge. DataInf
swaps the mean and the inverse: instead of inverting the mean it averages the inverses of ``g_i g_i^T + ridge I``,
which the Sherman-Morrison formula gives in closed form. The swap is wrong by an amount that grows with the layer's
size, so it was proposed for low-rank adapters; under the ``lora`` ensemble it is what it was made for.

Per layer, for a query's gradient q and a training example's z:

    q^T H^-1 z = (q.z - mean_i (q.g_i)(g_i.z) / (ridge + g_i.g_i)) / ridge

The ridge is relative to a mean over a layer's parameters and is compared with a sum over them, so it begins to matter
when ``damping`` nears the layer's size; far above it only scales the layers, and far below it not even that.

Source: Kwon et al. 2024, "DataInf: Efficiently Estimating Data Influence in LoRA-tuned LLMs and Diffusion Models",
equation 5.
Cost per member: a gradient pass over the training set, one over the queries, and two more over the training set for
every part of the queries that memory holds at once; two products of each pair. Storage: a number per layer and example.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

import tdabench


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
        """Take norms by layer; for some queries at once, weigh the training set's gradients and multiply by them."""
        n, m = sizes.n_train, sizes.n_queries
        cuts = sizes.layer_cuts(m)
        weighing = tdabench.Counts(products=2 * sizes.n_scores * sizes.n_parameters)
        held = tdabench.Counts(held=6 * -(-m // cuts) * sizes.n_parameters)
        return tdabench.Work(
            fit=sizes.formed(n),
            attribute=sizes.by_layer(m) + sizes.times(n, m, uses=2 * cuts) + weighing + held,
            state=len(sizes.layers) * (n + 1),
        )

    def fit(self, member: tdabench.Member) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """Return each layer's ridge ``[]`` and the squared norms of the training gradients in it ``[n_train]``."""
        squares: dict[str, torch.Tensor] = {}
        sizes: dict[str, int] = {}
        for rows, key, flat in member.gradients(member.task.training, of="loss").flats():
            if key not in squares:
                squares[key] = flat.new_empty(member.task.n_train)
            squares[key][rows] = flat.square().sum(1)
            sizes[key] = flat.shape[1]
        return {key: (self._ridge(s, sizes[key]), s) for key, s in squares.items()}

    def _ridge(self, squares: torch.Tensor, size: int) -> torch.Tensor:
        """Return a layer's ridge; infinite where no training example has a gradient, so that the layer says nothing."""
        ridge = self.damping * squares.mean() / size
        return torch.where(ridge >= torch.finfo(ridge.dtype).tiny, ridge, torch.inf)

    def attribute(self, member: tdabench.Member, state: dict[str, tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
        """Return ``[n_queries, n_train]``; minus, because training goes down the loss."""
        task = member.task
        scores = torch.empty(task.n_queries, task.n_train, device=task.device)
        training = member.gradients(task.training, of="loss")
        for rows, layers in member.gradients(task.queries, of="target").by_layer():
            queries = {key: layer.flatten(1) for key, layer in layers.items()}  # [m, P of the layer]
            sums = {key: torch.zeros_like(q) for key, q in queries.items()}
            for some, key, flat in training.flats():
                ridge, squares = state[key]
                weights = (flat @ queries[key].T) / (ridge + squares[some]).unsqueeze(1)  # [b, m]
                sums[key].addmm_(weights.T, flat)
            solved = {
                key: ((queries[key] - sums[key] / task.n_train) / state[key][0]).view_as(layers[key]) for key in layers
            }
            scores[rows] = -training.times(solved).T
        return scores
