"""EK-FAC: influence functions with the curvature of each layer in the eigenbasis of its Kronecker factors.

An influence function multiplies a query's gradient by the inverse Hessian and then by a training example's gradient.
The Hessian of a network is too large to form; EK-FAC takes the Fisher information for it, one layer at a time. A
layer's gradient is a sum of outer products of output gradients and inputs, so the Fisher information's eigenvectors are
taken to be Kronecker products of those of the two factors' second moments, and the eigenvalues are measured exactly in
these coordinates. What is inverted is then a diagonal.

The Fisher information is that of the model's own predictions (labels drawn from them), for cross-entropy the
Gauss-Newton part of the Hessian; with ``labels=true`` it is the empirical one, which is cheaper by a forward pass and
vanishes where the model fits its training set. For the mean loss of T tokens it is 1 / T of the Gauss-Newton part, and
the scores are T times as large: a factor common to all, since damping is relative.

Source: George et al. 2018 (EK-FAC); Grosse et al. 2023, "Studying Large Language Model Generalization with Influence
Functions".
Cost per member: two gradient passes over the training set (second moments, then eigenvalues), an eigendecomposition of
every layer's two sides; per query a gradient and a rotation; then one gradient pass over the training set and one
product of each pair. Storage: eigenvectors and eigenvalues, p^2 + q^2 + p q numbers for a layer of p x q parameters:
three times the model where layers are square, more elsewhere (7 times on mnist-mlp). A side longer than 4,096 keeps its
own coordinates, and costs nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

import tdabench


@dataclass(frozen=True)
class EkFac(tdabench.MemberMethod):
    """Minus the query's target gradient times the inverse Fisher information times the training loss gradient."""

    damping: float = tdabench.option(
        0.1,
        "added to the eigenvalues, relative to each layer's mean eigenvalue",
        low=0,
        tune=(1e-5, 1e-4, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0),
    )
    labels: Literal["sampled", "true"] = tdabench.option(
        "sampled", "sampled: labels drawn from the model's predictions (the Fisher information); true: the data's own"
    )

    def work(self, sizes: tdabench.Sizes) -> tdabench.Work:
        """Find the eigenbases; solve for the queries, some at once, and multiply by the training set each time."""
        n, m = sizes.n_train, sizes.n_queries
        cuts = sizes.layer_cuts(m)
        return tdabench.Work(
            fit=tdabench.Counts(forward=n if self.labels == "sampled" else 0) + sizes.eigenbases(n),
            attribute=sizes.by_layer(m) + sizes.solve(m, -(-m // cuts)) + sizes.times(n, m, uses=cuts),
            state=sizes.eigenbasis_numbers,
        )

    def fit(self, member: tdabench.Member) -> dict[str, tdabench.Eigenbasis]:
        """Find each layer's eigenvectors, and the eigenvalues along them."""
        return tdabench.eigenbases(member.gradients(self._labelled(member), of="loss"))

    def _labelled(self, member: tdabench.Member) -> tdabench.Examples:
        training = member.task.training
        if self.labels == "true":
            return training
        return tdabench.with_sampled_labels(member, training, "ek-fac", member.task.seed, member.number)

    def attribute(self, member: tdabench.Member, state: dict[str, tdabench.Eigenbasis]) -> torch.Tensor:
        """Return ``[n_queries, n_train]``; minus, because training goes down the loss."""
        queries = member.gradients(member.task.queries, of="target")
        training = member.gradients(member.task.training, of="loss")
        ridges = {key: self.damping * float(basis.values.mean()) for key, basis in state.items()}
        return -tdabench.solved_dot(queries, training, state, ridges)
