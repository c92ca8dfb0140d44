"""Error-weighted Grad-Cos: a method of one's own, complete."""

from dataclasses import dataclass

import torch

import tdabench


@dataclass(frozen=True)
class MyMethod(tdabench.MemberMethod):
    """Cosine of the target's and the loss's gradient, times how wrong the model is on the training example."""

    power: float = tdabench.option(0.5, "exponent of the error", low=0, tune=(0.25, 0.5, 1.0))

    uses_q = True  # so that dropout(scope=q-only) can average the error alone

    def fit(self, member: tdabench.Member) -> torch.Tensor:
        """Return the error of each training example, [n_train]: kept for serving, and counted as storage."""
        training = member.task.training
        errors = torch.stack([1 - m.right_probability(training) for m in member.q_members])
        return errors.mean(0)

    def attribute(self, member: tdabench.Member, error: torch.Tensor) -> torch.Tensor:
        """Return the scores, [n_queries, n_train]: higher = having the example raises the query's target."""
        queries = member.gradients(member.task.queries, of="target")
        training = member.gradients(member.task.training, of="loss")
        lengths = queries.norms().unsqueeze(1) * training.norms()  # [n_queries, n_train]
        cosine = -queries.dot(training) / lengths.clamp(min=1e-12)  # minus: training goes down the loss
        return cosine * error**self.power
