"""Controls: what a method must beat before it deserves a look."""

from __future__ import annotations

from dataclasses import dataclass

import torch

import tdabench


@dataclass(frozen=True)
class Random(tdabench.MemberMethod):
    """Independent normal scores.

    Their LDS is zero up to chance, so this row shows what chance looks like on the task.

    Source: none. Cost: nothing but the drawing; the model is never called.
    """

    def work(self, sizes: tdabench.Sizes) -> tdabench.Work:
        """Draw a number per score."""
        return tdabench.Work(attribute=tdabench.Counts(moved=4 * sizes.n_scores, held=sizes.n_scores))

    def attribute(self, member: tdabench.Member, state: None) -> torch.Tensor:
        """Draw ``[n_queries, n_train]`` from the run's seed and the member's number."""
        task = member.task
        random = tdabench.generator(task.name, "random-control", task.seed, member.number)
        return torch.randn(task.n_queries, task.n_train, generator=random)


@dataclass(frozen=True)
class GradientNorm(tdabench.MemberMethod):
    """The norm of each training example's loss gradient, the same for every query.

    It knows which examples matter, but not for whom. A method that does not beat it has learnt nothing about the
    query (gradient norms alone can match targeted methods on some tasks).

    Source: Paul et al. 2021, "Deep Learning on a Data Diet". Their GraNd is this norm early in training, averaged over
    initialisations; here it is taken at the parameters that the other methods get, as a control.
    Cost: one gradient pass over the training set.
    """

    def work(self, sizes: tdabench.Sizes) -> tdabench.Work:
        """Take the training set's norms."""
        return tdabench.Work(fit=sizes.norms(sizes.n_train), state=sizes.n_train)

    def fit(self, member: tdabench.Member) -> torch.Tensor:
        """Return the norms ``[n_train]``; they do not depend on the queries."""
        return member.gradients(member.task.training, of="loss").norms()

    def attribute(self, member: tdabench.Member, state: torch.Tensor) -> torch.Tensor:
        """Give every query the same scores."""
        return state.expand(member.task.n_queries, -1)
