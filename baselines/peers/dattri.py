"""dattri's Grad-Dot, TRAK and EK-FAC.

Source: Deng et al. 2024, "dattri: A Library for Efficient Data Attribution"; ``dattri.algorithm``.
Cost: per-sample gradients of a batch are formed whole (``vmap``), and the queries' again for every batch of training
examples, so batches should be as large as memory allows. Storage: Grad-Dot none; TRAK one number per training example
and projected dimension; EK-FAC two eigenbases and the corrected eigenvalues per linear layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

import tdabench
from tdabench.baselines.peers.library import (
    TRAK_DAMPING,
    PeerMethod,
    count_gradients,
    has_adapter,
    loader,
    model_of,
    optional,
    quiet,
)

ExampleFunction = Callable[[Tensor, Tensor], Tensor]
TASK = optional("dattri.task")


class DattriMethod(PeerMethod):
    """What dattri's methods share."""

    library = "dattri"
    module = optional("dattri.algorithm")

    def _projector(self, member: tdabench.Member, size: int | None) -> dict[str, Any]:
        """Return all settings of the projector; what is left out, dattri 0.3.0 takes from the attributor before."""
        return {
            "proj_dim": size or 1,
            "proj_type": "normal" if size else "identity",
            "proj_max_batch_size": 32,
            "proj_seed": tdabench.derive_seed("dattri", member.task.seed, member.number) % 2**31,
            "device": str(member.task.device),
        }


def _function(model: nn.Module, of: ExampleFunction, *, batched: bool) -> Callable[..., Tensor]:
    """Return the mean of ``of`` over a batch, or its value at one example, as dattri calls it."""

    def value(parameters: Mapping[str, Tensor], data: tuple[Tensor, Tensor]) -> Tensor:
        inputs, labels = data if batched else (part.unsqueeze(0) for part in data)
        return of(functional_call(model, dict(parameters), (inputs,)), labels).mean()

    return value


def _task(model: nn.Module, loss: ExampleFunction, target: ExampleFunction, *, batched: bool = False) -> Any:
    return TASK.AttributionTask(
        loss_func=_function(model, loss, batched=batched),
        target_func=_function(model, target, batched=batched),
        model=model,
        checkpoints=model.state_dict(),
    )


@dataclass(frozen=True)
class DattriGradDot(DattriMethod):
    """dattri: Grad-Dot, exact by default; with a projection as the library's own default."""

    projection: int | None = tdabench.option(None, "dimensions of the random projection; none: exact", low=1)
    batch_size: int = tdabench.option(1000, "examples a batch", low=1)

    def attribute(self, member: tdabench.Member, state: None) -> Tensor:
        """Return ``[n_queries, n_train]``; dattri multiplies loss and target gradients, so the sign is turned."""
        task, model = member.task, model_of(member)
        with quiet():
            attributor = self.module.TracInAttributor(
                _task(model, task.loss_function, task.target_function),
                weight_list=torch.ones(1),
                normalized_grad=False,
                projector_kwargs=self._projector(member, self.projection),
                device=str(task.device),
            )
            scores = attributor.attribute(loader(task.training, self.batch_size), loader(task.queries, self.batch_size))
        count_gradients(member, task.n_train + task.n_queries * -(-task.n_train // self.batch_size))
        return -scores.T.detach()


@dataclass(frozen=True)
class DattriTrakState:
    """What serving needs: the solved training features and the Q factor."""

    solved: Tensor  # [projection, n_train]
    q: Tensor  # [n_train]


@dataclass(frozen=True)
class DattriTrak(DattriMethod):
    """dattri: TRAK, one checkpoint a member; members are averaged as the library averages checkpoints."""

    projection: int = tdabench.option(512, "dimensions of the random projection", low=1, tune=(512, 1024))
    damping: float = tdabench.option(
        0.0, "added to the kernel's diagonal; the library's default is 0", low=0, tune=TRAK_DAMPING
    )
    batch_size: int = tdabench.option(1000, "examples a batch", low=1)

    uses_projection = True

    def fit(self, member: tdabench.Member) -> DattriTrakState:
        """Project the training gradients and solve with their second moment."""
        with quiet():
            attributor = self._attributor(member)
            attributor.cache(loader(member.task.training, self.batch_size))
        count_gradients(member, member.task.n_train)
        return DattriTrakState(attributor.inv_XTX_XT_list[0].detach(), attributor.Q.detach())

    def attribute(self, member: tdabench.Member, state: DattriTrakState) -> tuple[Tensor, Tensor]:
        """Return the kernel ``[n_queries, n_train]`` and the Q factor ``[n_train]``."""
        with quiet():
            attributor = self._attributor(member)
            attributor.full_train_dataloader = loader(member.task.training, self.batch_size)
            attributor.inv_XTX_XT_list = [state.solved]
            attributor.Q = torch.ones_like(state.q)  # so that what comes back is the kernel alone
            kernel = attributor.attribute(loader(member.task.queries, self.batch_size)).T
        count_gradients(member, member.task.n_queries)
        return kernel.detach(), state.q

    def combine(self, parts: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
        """Multiply the mean kernel by the mean Q factor."""
        kernel, q = tdabench.mean(parts)
        return kernel * q

    def member_scores(self, part: tuple[Tensor, Tensor]) -> Tensor:
        """Multiply the member's kernel by its own Q factor: what it would say alone."""
        kernel, q = part
        return kernel * q

    def _attributor(self, member: tdabench.Member) -> Any:
        task, model = member.task, model_of(member)

        def right_probability(logits: Tensor, labels: Tensor) -> Tensor:
            return task.target_probability(task.target_function(logits, labels))

        return self.module.TRAKAttributor(
            _task(model, task.target_function, task.target_function),
            _function(model, right_probability, batched=False),
            projector_kwargs=self._projector(member, self.projection),
            device=str(task.device),
            regularization=self.damping,
        )


@dataclass(frozen=True)
class DattriEkFacState:
    """What serving needs, by layer."""

    bases: dict[str, tuple[Tensor, Tensor]]  # [in + 1, in + 1], [out, out]
    eigenvalues: dict[str, Tensor]  # [out, in + 1]


@dataclass(frozen=True)
class DattriEkFac(DattriMethod):
    """dattri: EK-FAC on the linear layers, as its 0.3.0 computes it (what is wrong with it: docs/agreement.md)."""

    damping: float = tdabench.option(
        0.01, "added to the corrected eigenvalues", low=0, tune=(1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
    )
    fisher: Literal["loss", "target"] = tdabench.option("loss", "of which function, at the true labels, the Fisher is")
    batch_size: int = tdabench.option(1000, "examples a batch", low=1)

    def supports(self, task: tdabench.TaskView) -> str | None:
        """Need a model of linear layers on vectors: dattri's covariances fail on sequences."""
        if task.training.inputs.is_floating_point() and task.training.inputs.dim() == 2:
            return super().supports(task)
        return "dattri's EK-FAC takes linear layers on vectors only"

    def fit(self, member: tdabench.Member) -> DattriEkFacState:
        """Estimate the factors' eigenbases and the eigenvalues in them, from the whole training set."""
        function = member.task.loss_function if self.fisher == "loss" else member.task.target_function
        with quiet():
            attributor = self._attributor(member, function)
            attributor.cache(loader(member.task.training, self.batch_size))
        count_gradients(member, 2 * member.task.n_train)
        bases = {k: (a.detach(), s.detach()) for k, (a, s) in attributor.cached_q.items()}
        return DattriEkFacState(bases, {k: v.detach() for k, v in attributor.cached_lambdas.items()})

    def attribute(self, member: tdabench.Member, state: DattriEkFacState) -> Tensor:
        """Return ``[n_queries, n_train]``; minus, because training goes down the loss."""
        task = member.task
        with quiet():
            attributor = self._attributor(member, task.target_function)
            attributor.cached_q, attributor.cached_lambdas = state.bases, state.eigenvalues
            training = loader(task.training, self.batch_size)
            attributor.full_train_dataloader = training
            scores = attributor.attribute(training, loader(task.queries, self.batch_size))
        count_gradients(member, task.n_train + task.n_queries * -(-task.n_train // self.batch_size))
        return -scores.T.detach()

    def _attributor(self, member: tdabench.Member, target: ExampleFunction) -> Any:
        if has_adapter(member):
            raise tdabench.Declined("dattri's EK-FAC takes whole linear layers, not adapters on them")
        task = _task(model_of(member), member.task.loss_function, target, batched=True)
        return self.module.IFAttributorEKFAC(task, device=str(member.task.device), damping=self.damping)
