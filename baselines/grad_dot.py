"""Grad-Dot, TracIn and Grad-Cos: how far one gradient step on a training example moves the query's target.

A step of SGD on example z changes the parameters by -lr * grad L(z), and so the target f of a query by
-lr * grad f . grad L(z), to first order. Grad-Dot is that number without the learning rate, at one set of parameters;
Grad-Cos divides by both gradients' lengths, so that a few examples with huge gradients do not decide everything.

TracIn follows the training: it adds up what the steps on z did, each at the parameters and the learning rate of its
time. Steps are too many, so a checkpoint stands for those around it: the sum over checkpoints t of
-lr_t * grad f(theta_t) . grad L(z; theta_t).

For networks of linear layers the engine multiplies layer inputs and output gradients instead of gradients
(``member.gradients``), so no per-sample gradient is ever formed and the result is exact.

Source: Charpiat et al. 2019, "Input Similarity from the Neural Network Perspective"; Pruthi et al. 2020, "Estimating
Training Data Influence by Tracing Gradient Descent" (TracInCP), of which Grad-Dot is the last checkpoint.
Cost per member: one gradient pass over the training set, one over the queries, and thin matrix products; Grad-Cos takes
the lengths in passes of their own before.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

import tdabench


@dataclass(frozen=True)
class GradDot(tdabench.MemberMethod):
    """Dot product of the query's target gradient and minus the training example's loss gradient."""

    def work(self, sizes: tdabench.Sizes) -> tdabench.Work:
        """Multiply every pair."""
        return tdabench.Work(attribute=sizes.dot(sizes.n_queries, sizes.n_train))

    def attribute(self, member: tdabench.Member, state: None) -> torch.Tensor:
        """Return ``[n_queries, n_train]``; minus, because training goes down the loss."""
        queries = member.gradients(member.task.queries, of="target")
        training = member.gradients(member.task.training, of="loss")
        return -queries.dot(training)


@dataclass(frozen=True)
class TracIn(tdabench.MemberMethod):
    """Grad-Dot summed along the training, each checkpoint weighted by its learning rate.

    Meant for the ensemble ``checkpoints(models=1, last=5)``, whose members carry their learning rates, scaled so that
    they average 1; the mean over members is then the sum of the paper up to one factor for all scores. Members that
    are no checkpoints weigh the same, so on a single model, or independent ones, it is Grad-Dot. The momentum of SGD
    is left out, as in the paper, and so is Adam's rescaling of gradients.
    """

    def work(self, sizes: tdabench.Sizes) -> tdabench.Work:
        """Do what Grad-Dot does."""
        return GradDot().work(sizes)

    def attribute(self, member: tdabench.Member, state: None) -> torch.Tensor:
        """Return ``[n_queries, n_train]``, weighted by the checkpoint's learning rate."""
        return member.weight * GradDot().attribute(member, None)


@dataclass(frozen=True)
class GradCos(tdabench.MemberMethod):
    """Cosine of the same two gradients; normalised per member, before members are averaged."""

    def work(self, sizes: tdabench.Sizes) -> tdabench.Work:
        """Take all norms first, then multiply every pair."""
        n, m = sizes.n_queries, sizes.n_train
        lengths = tdabench.Counts(moved=3 * n * m, held=2 * n * m)
        return tdabench.Work(attribute=sizes.norms(n) + sizes.norms(m) + sizes.dot(n, m, again=True) + lengths)

    def attribute(self, member: tdabench.Member, state: None) -> torch.Tensor:
        """Return ``[n_queries, n_train]``; a zero gradient has no direction and scores 0."""
        queries = member.gradients(member.task.queries, of="target")
        training = member.gradients(member.task.training, of="loss")
        lengths = queries.norms().unsqueeze(1) * training.norms()  # [n_queries, n_train]
        return torch.where(lengths > 0, -queries.dot(training) / lengths, 0.0)
