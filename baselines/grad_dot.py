"""Grad-Dot and Grad-Cos: how far one gradient step on a training example moves the query's target.

A step of SGD on example z changes the parameters by -lr * grad L(z), and so the target f of a query by
-lr * grad f . grad L(z), to first order. Grad-Dot is that number without the learning rate; Grad-Cos divides by both
gradients' lengths, so that a few examples with huge gradients do not decide everything.

For networks of linear layers the engine multiplies layer inputs and output gradients instead of gradients
(``member.gradients``), so no per-sample gradient is ever formed and the result is exact.

Source: Charpiat et al. 2019, "Input Similarity from the Neural Network Perspective"; Pruthi et al. 2020 (TracIn), of
which Grad-Dot is the last checkpoint.
Cost per member: one gradient pass over the training set, one over the queries, and thin matrix products.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

import tdabench


@dataclass(frozen=True)
class GradDot(tdabench.MemberMethod):
    """Dot product of the query's target gradient and minus the training example's loss gradient."""

    def attribute(self, member: tdabench.Member, state: None) -> torch.Tensor:
        """Return ``[n_queries, n_train]``; minus, because training goes down the loss."""
        queries = member.gradients(member.task.queries, of="target")
        training = member.gradients(member.task.training, of="loss")
        return -queries.dot(training)


@dataclass(frozen=True)
class GradCos(tdabench.MemberMethod):
    """Cosine of the same two gradients; normalised per member, before members are averaged."""

    def attribute(self, member: tdabench.Member, state: None) -> torch.Tensor:
        """Return ``[n_queries, n_train]``; a zero gradient has no direction and scores 0."""
        queries = member.gradients(member.task.queries, of="target")
        training = member.gradients(member.task.training, of="loss")
        lengths = queries.norms().unsqueeze(1) * training.norms()  # [n_queries, n_train]
        return torch.where(lengths > 0, -queries.dot(training) / lengths, 0.0)
