"""A member: one set of parameters, with a dropout mask or an adapter, that a method is evaluated at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

from tdabench import gradients, hessian, representations
from tdabench.copies import copy_of
from tdabench.dropout import DropoutSite, MaskTable
from tdabench.errors import Declined, UsageError
from tdabench.examples import Batch, Examples
from tdabench.held import forward_batch
from tdabench.options import check_choice
from tdabench.template import laid_out
from tdabench.trainer import Parameters

if TYPE_CHECKING:
    from tdabench.view import TaskView

Quantity = Literal["loss", "target"]


@dataclass(frozen=True)
class MemberMasks:
    """The dropout masks of a member: one shared by all examples, or one per example.

    Only the stream's name is kept; masks are drawn when they are used. Storing them would cost more than the model.
    """

    sites: tuple[DropoutSite, ...]
    stream: tuple[str | int, ...]
    per_sample: bool

    def rows(self, batch: Batch, n: int) -> dict[str, Tensor]:
        """Return each example's masks, ``[B, *shape]`` per site; ``n`` is the size of the batch's set."""
        device = batch.index.device
        if self.per_sample:
            return _table(self.sites, n, (*self.stream, batch.split), device).rows(batch.index)
        return _table(self.sites, 1, self.stream, device).rows(torch.zeros_like(batch.index))


@lru_cache(maxsize=2)  # the training set's and the queries' masks of the member at work
def _table(sites: tuple[DropoutSite, ...], n: int, stream: tuple[str | int, ...], device: torch.device) -> MaskTable:
    return MaskTable.draw(sites, n, *stream, device=device)


def forget_masks() -> None:
    """Let go of the masks of the member that was at work, before those of the next are drawn."""
    _table.cache_clear()


@dataclass(frozen=True)
class Member:
    """One (parameters, dropout mask, adapter).

    Attributes
    ----------
    task
        The view it belongs to.
    number
        Position in the ensemble; names the member's random streams.
    parameters
        What gradients are taken with respect to: the model's parameters, or its adapter's.
    model
        Called functionally; holds whatever is not in ``parameters`` or ``statistics``.
    statistics
        Running statistics of the model's normalisation layers; used, never differentiated.
    masks
        Dropout masks; None where dropout is off.
    q_members
        Where TRAK's Q factor is averaged; itself unless the ensemble says otherwise.
    model_number
        Which attribution model it is made of; members of one model share its parameters or its training.
    weight
        What it counts in a sum along the training: the learning rate there, relative to the mean over the model's
        members. 1 for a member that is no checkpoint.
    """

    task: TaskView
    number: int
    parameters: dict[str, Tensor]
    model: nn.Module
    statistics: dict[str, Tensor] = field(default_factory=dict)
    masks: MemberMasks | None = None
    _q_members: tuple[Member, ...] = field(default=(), repr=False)
    model_number: int = 0
    weight: float = 1.0

    @classmethod
    def of_values(cls, task: TaskView, number: int, model: nn.Module, values: Parameters, **fields: Any) -> Member:
        """Return a member of a model's values: what is a parameter of the model is differentiated, what is not, used.

        ``fields`` are the member's other attributes.
        """
        names = {name for name, _ in model.named_parameters()}
        parameters = {k: v for k, v in values.items() if k in names}
        statistics = {k: v for k, v in values.items() if k not in names}
        return cls(task, number, parameters, model, statistics, **fields)

    def with_q(self, members: tuple[Member, ...]) -> Member:
        """Return the same member with its Q factor averaged over ``members``."""
        return replace(self, _q_members=members)

    @property
    def q_members(self) -> tuple[Member, ...]:
        """Members whose forward passes give the Q factor."""
        return self._q_members or (self,)

    def mask_rows(self, batch: Batch) -> dict[str, Tensor]:
        """Return the dropout masks of a batch's examples, ``[B, *shape]`` per site; empty where dropout is off."""
        if self.masks is None:
            return {}
        return self.masks.rows(batch, self._n_whole(batch.split))

    def _n_whole(self, split: str) -> int:
        """Return how many examples a whole set has."""
        return len(self.task.training if split == "train" else self.task.queries)

    def logits(self, parameters: Mapping[str, Tensor], batch: Batch) -> Tensor:
        """Return the model's outputs ``[B, ...]`` at ``parameters``."""
        values = {**parameters, **self.statistics, **self.mask_rows(batch)}
        return functional_call(self.model, values, (laid_out(batch.inputs),))

    def module(self, *, trainable: bool = True) -> nn.Module:
        """Return an ordinary module in evaluation mode that computes what the member does, for code that wants one.

        Parameters
        ----------
        trainable
            Whether the member's parameters require gradients; nothing else does. All tensors are copies.

        Raises
        ------
        Declined
            If every example has a dropout mask of its own: a module has one for all.
        """
        if self.masks is not None and self.masks.per_sample:
            raise Declined("a module has one dropout mask for all examples; use mask=shared")
        model = copy_of(self.model).eval()
        model.load_state_dict({**self.parameters, **self.statistics}, strict=False)
        first = next(self.task.training.batches(1))
        for name, mask in self.mask_rows(first).items():
            owner, _, buffer = name.rpartition(".")
            setattr(model.get_submodule(owner), buffer, mask)  # [1, *shape], the same for every example
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(trainable and name in self.parameters)
        return model

    def loss(self, parameters: Mapping[str, Tensor], batch: Batch) -> Tensor:
        """Return the training loss of each example, ``[B]``."""
        return self.task.loss_function(self.logits(parameters, batch), batch.labels)

    def target(self, parameters: Mapping[str, Tensor], batch: Batch) -> Tensor:
        """Return the target of each example, ``[B]``; higher is better."""
        return self.task.target_function(self.logits(parameters, batch), batch.labels)

    def _check_whole(self, examples: Examples) -> None:
        """Refuse a part of a set that does not say which, where every example has a mask of its own."""
        n_whole = self._n_whole(examples.split)
        by_example = self.masks is not None and self.masks.per_sample
        if by_example and examples.index is None and len(examples) != n_whole:
            raise UsageError(
                f"{len(examples)} of {n_whole} examples were given, and each has a dropout mask of its own. Make a"
                " part of a set with examples.part(rows), which knows whose masks are whose."
            )

    def function(self, of: Quantity) -> gradients.ExampleFunction:
        """Return :meth:`loss` or :meth:`target` in terms of logits and labels."""
        check_choice("of", of, Quantity)
        return self.task.loss_function if of == "loss" else self.task.target_function

    @torch.no_grad()
    def targets(self, examples: Examples, batch_size: int | None = None) -> Tensor:
        """Return the target of every example, ``[n]``, forward passes only; of as many at once as there is room for."""
        self._check_whole(examples)
        parts = []
        for batch in examples.batches(batch_size or forward_batch(self, examples)):
            self.task.meter.count(forward=len(batch))
            parts.append(self.target(self.parameters, batch))
        return torch.cat(parts)

    def right_probability(self, examples: Examples) -> Tensor:
        """Return the probability of the right answer of every example, ``[n]``.

        Raises
        ------
        Declined
            If the task's target has none.
        """
        return self.task.target_probability(self.targets(examples))

    def representations(self, examples: Examples, *, pooled: bool = True) -> Tensor:
        """Return what the model's last linear layer is given, ``[n, d]``; forward passes only.

        For a model of one linear layer that is the example itself. Under a dropout mask or an adapter it is what the
        member's sub-network gives.

        Parameters
        ----------
        examples
            Of which examples.
        pooled
            Whether positions of a sequence are averaged; else they are kept apart, ``[n, T, d]``, for who computes the
            model's outputs from them.

        Raises
        ------
        Declined
            If the model calls no linear layer that keeps examples apart, or has weights that come after the last one;
            if not ``pooled``, also if anything else comes after it, so that its outputs are not the model's.
        """
        self._check_whole(examples)
        return representations.representations(self, examples, pooled=pooled)

    def gradients(self, examples: Examples, of: Quantity) -> gradients.Gradients:
        """Return the per-sample gradients of the loss or the target, with respect to ``parameters``.

        Nothing is computed before it is used; layers are factored where that is cheaper.
        """
        check_choice("of", of, Quantity)
        self._check_whole(examples)
        return gradients.Gradients(self, examples, of)

    def hessian(
        self, examples: Examples, curvature: hessian.Curvature = "gauss-newton", ridge: float = 0.0
    ) -> hessian.Hessian:
        """Return the Hessian of the mean loss with respect to ``parameters``, plus ``ridge`` on its diagonal.

        It multiplies vectors without being formed. ``curvature="gauss-newton"`` leaves out the model's own curvature
        and is positive semi-definite.
        """
        self._check_whole(examples)
        return hessian.Hessian(self, examples, curvature, ridge)

    def last_layer(self) -> Member:
        """Return the same member, differentiated with respect to its last linear layer's parameters alone.

        That is the layer which a pass calls last, wherever the model defines it.

        Raises
        ------
        Declined
            If there is none, if its weight is no parameter that is differentiated or is used elsewhere, too (an
            embedding's, in a language model with a tied head), or if the model has weights that come after it.
        """
        last = representations.last_linear(self)
        if last is None:
            raise Declined(f"the model of {self.task.name} has no linear layer to differentiate")
        layer = f"the last linear layer of the model of {self.task.name}, {last.name or 'the model itself'},"
        if last.after:
            raise Declined(f"{layer} is not all that the outputs are made by: {last.after[0]} comes beside or after it")
        start = f"{last.name}." if last.name else ""
        if last.uses > 1:
            raise Declined(f"{layer} shares its weight with another part of the model, so it cannot be taken alone")
        own = {k: p for k, p in self.parameters.items() if k.startswith(start)}
        if own.keys() <= {f"{start}bias"}:
            raise Declined(f"{layer} has no weight that is differentiated")
        rest = {k: p for k, p in self.parameters.items() if k not in own}
        return replace(self, parameters=own, statistics={**self.statistics, **rest})
