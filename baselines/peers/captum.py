"""Captum's TracInCP with the final model as its only checkpoint, at learning rate one: Grad-Dot by another route.

Captum forms every query's gradient, then goes through the training set in batches and multiplies. Its two ways to
per-sample gradients are both here: by hooks on linear and convolutional layers, for a whole batch at once, or by one
backward pass an example.

Source: Pruthi et al. 2020, "Estimating Training Data Influence by Tracing Gradient Descent" (TracIn);
``captum.influence.TracInCP``.
Cost: a gradient of every example, all queries' gradients in memory at once. Storage: none.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

import tdabench
from tdabench.baselines.peers.library import PeerMethod, count_gradients, has_adapter, loader, model_of, optional, quiet


@dataclass(frozen=True)
class CaptumTracIn(PeerMethod):
    """Captum: TracInCP at the final model, exact."""

    batch_size: int = tdabench.option(100, "examples a batch", low=1)
    hooks: bool = tdabench.option(True, "gradients of a whole batch by hooks on its layers, where these allow it")

    library = "captum"
    module = optional("captum.influence")

    def attribute(self, member: tdabench.Member, state: None) -> Tensor:
        """Return ``[n_queries, n_train]``; the queries' loss is minus the target, so the sign is ours."""
        model, task = model_of(member), member.task
        by_hooks = self.hooks and not has_adapter(member) and _hooks_reach(model)

        def reduced(values: Tensor) -> Tensor:
            return values.sum() if by_hooks else values

        with quiet():
            tracin = self.module.TracInCP(
                model,
                loader(task.training, self.batch_size),
                checkpoints=[member],
                checkpoints_load_func=lambda *_: 1.0,  # the model is loaded; this is the learning rate
                layers=_adapters(member),
                loss_fn=lambda logits, labels: reduced(task.loss_function(logits, labels)),
                test_loss_fn=lambda logits, labels: reduced(-task.target_function(logits, labels)),
                sample_wise_grads_per_batch=by_hooks,
            )
            scores = tracin.influence(loader(task.queries, self.batch_size))
        count_gradients(member, task.n_queries + task.n_train)
        return scores.detach()


def _adapters(member: tdabench.Member) -> list[str] | None:
    """Return the modules that hold the adapter; None, which is the whole model, without one."""
    return [*dict.fromkeys(name.rpartition(".")[0] for name in member.parameters)] if has_adapter(member) else None


def _hooks_reach(model: nn.Module) -> bool:
    """Return whether every parameter is in a linear or convolutional layer, which Captum's hooks know."""
    owners = [m for m in model.modules() if next(m.parameters(recurse=False), None) is not None]
    return all(type(m) in (nn.Linear, nn.Conv2d) for m in owners)
