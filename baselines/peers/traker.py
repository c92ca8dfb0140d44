"""TRAK by its authors' library, traker.

Its six steps (load, featurise, finalise; start, score, finalise) write memory-mapped files. What the first three leave,
less the gradients that serving does not need, is this adapter's state; the last three find it in a folder again.

Source: Park et al. 2023, "TRAK: Attributing Model Behavior at Scale"; ``trak.TRAKer``.
Cost: per-sample gradients of a batch are formed whole (``vmap``); on a CPU the projection matrix is drawn anew for
every batch, so batches should be as large as memory allows. Storage: one number per training example and projected
dimension.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

import tdabench
from tdabench.baselines.peers.library import (
    TRAK_DAMPING,
    Files,
    PeerMethod,
    count_gradients,
    loader,
    model_of,
    optional,
    quiet,
    read_files,
    write_files,
)

_EXPERIMENT = "queries"


@dataclass(frozen=True)
class _Output:
    """The model output function that traker asks for: the target, and one minus the right probability."""

    task: tdabench.TaskView

    def get_output(self, model: nn.Module, weights: Any, buffers: Any, inputs: Tensor, label: Tensor) -> Tensor:
        logits = functional_call(model, (weights, buffers), inputs.unsqueeze(0))
        return self.task.target_function(logits, label.unsqueeze(0)).sum()

    def get_out_to_loss_grad(self, model: nn.Module, weights: Any, buffers: Any, batch: Iterable[Tensor]) -> Tensor:
        inputs, labels = batch
        values = self.task.target_function(functional_call(model, (weights, buffers), inputs), labels)
        return (1 - self.task.target_probability(values)).detach().unsqueeze(-1)


@dataclass(frozen=True)
class TrakerState:
    """What serving needs: traker's files by name, and the Q factor."""

    files: Files
    q: Tensor  # [n_train]


@dataclass(frozen=True)
class TrakerTrak(PeerMethod):
    """traker: TRAK, one checkpoint a member; members are averaged as the library averages checkpoints."""

    projection: int = tdabench.option(512, "dimensions of the random projection", low=1, tune=(512, 1024))
    damping: float = tdabench.option(
        0.0, "added to the kernel's diagonal; the library's default is 0", low=0, tune=TRAK_DAMPING
    )
    batch_size: int = tdabench.option(1000, "examples a batch", low=1)

    library = "traker"
    module = optional("trak")
    uses_projection = True

    def fit(self, member: tdabench.Member) -> TrakerState:
        """Featurise the training set and keep the files that scoring reads."""
        with quiet(), tempfile.TemporaryDirectory() as folder:
            traker = self._traker(member, folder)
            traker.load_checkpoint(traker.model.state_dict(), model_id=member.number)
            for batch in loader(member.task.training, self.batch_size):
                traker.featurize(tuple(batch), num_samples=len(batch[0]))
            q = torch.from_numpy(traker.saver.current_store["out_to_loss"][:, 0].copy())
            traker.finalize_features(del_grads=True)
            count_gradients(member, member.task.n_train)
            return TrakerState(read_files(Path(folder)), q)

    def attribute(self, member: tdabench.Member, state: TrakerState) -> tuple[Tensor, Tensor]:
        """Return the kernel ``[n_queries, n_train]`` and the Q factor ``[n_train]``."""
        task = member.task
        with quiet(), tempfile.TemporaryDirectory() as folder:
            write_files(state.files, Path(folder))
            traker = self._traker(member, folder)
            traker.saver.load_current_store(member.number)
            traker.start_scoring_checkpoint(_EXPERIMENT, traker.model.state_dict(), member.number, task.n_queries)
            for batch in loader(task.queries, self.batch_size):
                traker.score(tuple(batch), num_samples=len(batch[0]))
            traker.saver.current_store["out_to_loss"][:] = 1  # so that what comes back is the kernel alone
            scores = torch.from_numpy(traker.finalize_scores(_EXPERIMENT).copy())
        count_gradients(member, task.n_queries)
        return scores.T, state.q

    def combine(self, parts: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
        """Multiply the mean kernel by the mean Q factor."""
        kernel, q = tdabench.mean(parts)
        return kernel * q

    def member_scores(self, part: tuple[Tensor, Tensor]) -> Tensor:
        """Multiply the member's kernel by its own Q factor: what it would say alone."""
        kernel, q = part
        return kernel * q

    def _traker(self, member: tdabench.Member, folder: str) -> Any:
        task = member.task
        return self.module.TRAKer(
            model=model_of(member, trainable=False),
            task=_Output(task),
            train_set_size=task.n_train,
            save_dir=folder,
            device=str(task.device),
            proj_dim=self.projection,
            projector_seed=tdabench.derive_seed("traker", task.seed) % 2**31,
            logging_level=logging.ERROR,
            use_half_precision=False,  # the default, float16, is for GPUs
            grad_wrt=list(member.parameters) if len(member.parameters) < _count(member) else None,
            lambda_reg=self.damping,
        )


def _count(member: tdabench.Member) -> int:
    return sum(1 for _ in member.model.parameters())
