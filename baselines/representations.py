"""Similarity of representations: two examples are alike if the last linear layer is given alike inputs for both.

No gradient is taken and nothing is fitted, so this is the cheapest method that looks at both the model and the query:
what it scores above ``random`` and ``gradient-norm`` is what the model's own features know. Its three measures are
the ones of the literature: the dot product, the cosine, and the negated squared distance.

Similarity alone cannot say whether an example helps: a close neighbour of the query's class does, a close neighbour
of another class harms. With ``same_label`` (the default) a similarity counts against where the labels differ; Grad-Dot
on the last layer does the same, as its factor for the labels has that sign. Distances have no zero at which the sign
could turn, so they are measured from the training example that is farthest from the query; without ``same_label`` that
changes no ranking.

Source: Hanawa et al. 2021, "Evaluation of Similarity-based Explanations" (the measures, on the last hidden layer);
Charpiat et al. 2019, "Input Similarity from the Neural Network Perspective" (similarity as the model sees it).
Cost per member: one forward pass over the training set and one over the queries, one matrix product. Storage: the
training set's representations.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

import tdabench


@dataclass(frozen=True)
class RepSim(tdabench.MemberMethod):
    """Similarity of the last linear layer's inputs, averaged over a sequence's positions."""

    similarity: Literal["cosine", "dot", "l2"] = tdabench.option(
        "cosine", "cosine, dot: dot product, l2: negated squared distance", tune=("cosine", "dot", "l2")
    )
    same_label: bool = tdabench.option(
        True, "count against what has another label than the query; sequences have none, and are left alone"
    )

    def work(self, sizes: tdabench.Sizes) -> tdabench.Work | None:
        """Pass both sides forward and multiply every pair."""
        if sizes.representation is None:
            raise tdabench.Declined("the model has no linear layer that is given one row per example")
        n, m, (_, d) = sizes.n_train, sizes.n_queries, sizes.representation
        return tdabench.Work(
            fit=tdabench.Counts(forward=n),
            attribute=tdabench.Counts(
                forward=m, products=sizes.n_scores * d, moved=3 * sizes.n_scores, held=3 * sizes.n_scores + n * d
            ),
            state=n * d,
        )

    def fit(self, member: tdabench.Member) -> Tensor:
        """Return the training set's representations ``[n_train, d]``."""
        return member.representations(member.task.training)

    def attribute(self, member: tdabench.Member, state: Tensor) -> Tensor:
        """Return ``[n_queries, n_train]``."""
        task = member.task
        scores = similarities(member.representations(task.queries), state, self.similarity)
        if self.same_label and task.training.labels.dim() == 1:
            same = task.queries.labels.unsqueeze(1) == task.training.labels  # [n_queries, n_train]
            scores = torch.where(same, scores, -scores)
        return scores


def similarities(queries: Tensor, training: Tensor, measure: str) -> Tensor:
    """Return the similarities ``[n, m]`` of ``queries [n, d]`` and ``training [m, d]``.

    A representation of zeros has no direction: its cosines are 0. Distances are relative to each query's largest.
    """
    if measure == "cosine":
        queries, training = (torch.nn.functional.normalize(x, dim=1) for x in (queries, training))
    dots = queries @ training.T  # [n, m]
    if measure != "l2":
        return dots
    distances = training.square().sum(1) - 2 * dots  # [n, m], squared, less the query's own part
    return distances.amax(1, keepdim=True) - distances
