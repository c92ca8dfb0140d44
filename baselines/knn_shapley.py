r"""KNN-Shapley: what a training example is worth to a nearest-neighbour classifier, exactly.

Imagine that the model's last layer were replaced by a vote of the k nearest training examples in its representations.
The value of a set of training examples to a query is then the share of the k votes that go to the query's class, and
the Shapley value shares it out fairly: an example's mean contribution over all orders in which the set can grow. In
general that takes :math:`2^n` evaluations; here it takes one sort. With the examples in order of distance, 1 the
nearest, and :math:`a_i = 1` where example i has the query's class,

.. math::
    s_n = a_n \min(k, n) / (n k), \qquad s_i = s_{i+1} + (a_i - a_{i+1}) \min(k, i) / (i k).

The recursion is a cumulative sum from the far end, taken for all queries at once. The values of a query add up to its
share of right votes under the whole training set.

Source: Jia et al. 2019, "Efficient Task-Specific Data Valuation for Nearest Neighbor Algorithms", theorem 1 (the first
line above is extended to n < k). Scores are per query; the paper averages them.
Cost per member: one forward pass over the training set and one over the queries, distances, and one sort of the
training set per query. Storage: the training set's representations.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

import tdabench

# Distances, their order and the sums of some queries at once; the sums are float64.
_BLOCK_BYTES = 64 << 20
_BYTES_PER_PAIR = 64
# Sorting a distance takes about as long as writing so many numbers.
_SORT = 30


@dataclass(frozen=True)
class KnnShapley(tdabench.MemberMethod):
    """Exact Shapley values of a vote of the nearest neighbours, by Euclidean distance of representations."""

    k: int = tdabench.option(10, "neighbours that vote", low=1, tune=(1, 3, 10, 30, 100, 300))

    def supports(self, task: tdabench.TaskView) -> str | None:
        """Need one label per example, for neighbours to vote."""
        if task.training.labels.dim() == 1:
            return None
        return "nearest neighbours vote for one label per example; the labels here are sequences"

    def work(self, sizes: tdabench.Sizes) -> tdabench.Work:
        """Pass both sides forward, take all distances and sort them."""
        if sizes.representation is None:
            raise tdabench.Declined("the model has no linear layer that is given one row per example")
        n, m, (_, d) = sizes.n_train, sizes.n_queries, sizes.representation
        at_once = max(1, _BLOCK_BYTES // (_BYTES_PER_PAIR * n))
        return tdabench.Work(
            fit=tdabench.Counts(forward=n),
            attribute=tdabench.Counts(
                forward=m,
                products=2 * sizes.n_scores * d,  # in float64
                moved=(_SORT + 8) * sizes.n_scores,
                held=min(m, at_once) * n * _BYTES_PER_PAIR // 4 + 2 * sizes.n_scores + 4 * n * d,
            ),
            state=n * d,
        )

    def fit(self, member: tdabench.Member) -> Tensor:
        """Return the training set's representations ``[n_train, d]``."""
        return member.representations(member.task.training)

    def attribute(self, member: tdabench.Member, state: Tensor) -> Tensor:
        """Return ``[n_queries, n_train]``."""
        task = member.task
        size = max(1, _BLOCK_BYTES // (_BYTES_PER_PAIR * task.n_train))
        blocks = zip(member.representations(task.queries).split(size), task.queries.labels.split(size), strict=True)
        return torch.cat(
            [
                shapley_values(distances(x, state), labels.unsqueeze(1) == task.training.labels, self.k)
                for x, labels in blocks
            ]
        )


def distances(queries: Tensor, training: Tensor) -> Tensor:
    """Return the squared Euclidean distances ``[n, m]``, in units of 2^-28 of the largest squared length, rounded.

    They come from a float64 matrix product, whose rounding would break the tie between equal examples; units are far
    coarser than that, and about as fine as the float32 of the representations.
    """
    q, t = queries.double(), training.double()
    lengths = t.square().sum(1)  # [m]
    squares = q.square().sum(1, keepdim=True) - 2 * (q @ t.T) + lengths  # [n, m]
    unit = lengths.max().clamp(min=1e-100) * 2.0**-28
    return (squares / unit).round().clamp(min=0)


def shapley_values(far: Tensor, same: Tensor, k: int) -> Tensor:
    """Return the Shapley values ``[n, m]`` float32 of ``m`` training examples for ``n`` queries.

    Parameters
    ----------
    far
        ``[n, m]`` distances; examples that are equally far stand in the training set's order.
    same
        ``[n, m]`` bool: whether the example has the query's label.
    k
        Neighbours that vote.
    """
    order = far.argsort(dim=1, stable=True)  # [n, m], nearest first
    right = same.gather(1, order).double()
    m = right.shape[1]
    rank = torch.arange(1, m + 1, device=far.device, dtype=torch.float64)
    chance = rank.clamp(max=k) / (rank * k)  # [m], of one vote among the nearest so many
    steps = right.clone()  # what the recursion adds at each rank
    steps[:, :-1] -= right[:, 1:]
    values = (steps * chance).flip(1).cumsum(1).flip(1)
    return torch.empty_like(values).scatter_(1, order, values).float()
