"""kronfluence's EK-FAC, and its gradient dot product (the strategy ``identity``).

kronfluence wraps linear and convolutional layers and takes everything from their inputs and output gradients;
parameters of other layers (normalisation, embeddings) are left out. Factors are files in a folder; their content is
this adapter's state, less the covariances, which scoring does not read.

Source: Grosse et al. 2023, "Studying Large Language Model Generalization with Influence Functions"; ``kronfluence``.
Cost: for EK-FAC two more passes over the training set and two eigendecompositions per layer; the queries' gradients are
formed whole, a batch at a time, and the training set is gone through once for every batch of queries. Storage: two
eigenbases, their eigenvalues, and the corrected eigenvalues per layer.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import tdabench
from tdabench.baselines.peers.library import (
    Files,
    PeerMethod,
    count_gradients,
    has_adapter,
    model_of,
    optional,
    quiet,
    read_files,
    write_files,
)

TASK = optional("kronfluence.task")
_NAME = "all"


class KronfluenceMethod(PeerMethod):
    """What kronfluence's strategies share."""

    library = "kronfluence"
    module = optional("kronfluence")
    strategy: str
    batch_size: int

    def fit(self, member: tdabench.Member) -> Files:
        """Fit the strategy's factors on the whole training set."""
        with quiet(), tempfile.TemporaryDirectory() as folder:
            # kronfluence samples the Fisher's labels from torch's global generator.
            torch.manual_seed(tdabench.derive_seed("kronfluence", member.task.seed, member.number) % 2**63)
            self._analyzer(member, folder).fit_all_factors(
                _NAME,
                _dataset(member.task.training),
                per_device_batch_size=self.batch_size,
                factor_args=self.module.FactorArguments(strategy=self.strategy, **self._factor_options()),
            )
            count_gradients(member, self._passes() * member.task.n_train)
            return read_files(Path(folder), without="*covariance*")

    def attribute(self, member: tdabench.Member, state: Files) -> Tensor:
        """Return ``[n_queries, n_train]``; kronfluence multiplies target and loss gradients: the sign is turned."""
        task = member.task
        with quiet(), tempfile.TemporaryDirectory() as folder:
            write_files(state, Path(folder))
            analyzer = self._analyzer(member, folder)
            analyzer.compute_pairwise_scores(
                "queries",
                _NAME,
                _dataset(task.queries),
                _dataset(task.training),
                per_device_query_batch_size=min(self.batch_size, task.n_queries),
                per_device_train_batch_size=self.batch_size,
                score_args=self.module.ScoreArguments(**self._score_options()),
            )
            scores = analyzer.load_pairwise_scores("queries")["all_modules"]
        count_gradients(member, task.n_queries + task.n_train * -(-task.n_queries // self.batch_size))
        return -scores

    def _factor_options(self) -> dict[str, Any]:
        return {}

    def _score_options(self) -> dict[str, Any]:
        return {}

    def _passes(self) -> int:
        """Return how often fitting goes through the training set."""
        return 0

    def _analyzer(self, member: tdabench.Member, folder: str) -> Any:
        if has_adapter(member):
            raise tdabench.Declined("kronfluence takes whole linear and convolutional layers, not adapters on them")
        pipeline = _pipeline(member)
        on_cpu = member.task.device.type == "cpu"
        model = self.module.prepare_model(model_of(member), pipeline)
        return self.module.Analyzer("tdabench", model, pipeline, cpu=on_cpu, disable_tqdm=True, output_dir=folder)


def _dataset(examples: tdabench.Examples) -> TensorDataset:
    return TensorDataset(examples.inputs, examples.labels)


def _pipeline(member: tdabench.Member) -> Any:
    """Return what kronfluence calls a task: the summed loss of a batch, at true or sampled labels, and the target."""
    task = member.task

    class Pipeline(TASK.Task):
        def compute_train_loss(self, batch: Any, model: nn.Module, sample: bool = False) -> Tensor:
            inputs, labels = batch
            logits = model(inputs)  # [B, ..., n_classes]
            if sample:
                chances = logits.detach().flatten(0, -2).softmax(-1)
                labels = torch.multinomial(chances, 1).view(labels.shape)
            return task.loss_function(logits, labels).sum()

        def compute_measurement(self, batch: Any, model: nn.Module) -> Tensor:
            inputs, labels = batch
            return task.target_function(model(inputs), labels).sum()

    return Pipeline()


@dataclass(frozen=True)
class KronfluenceIdentity(KronfluenceMethod):
    """kronfluence: gradient dot product over linear and convolutional layers, exact."""

    batch_size: int = tdabench.option(1000, "examples a batch", low=1)

    strategy = "identity"


@dataclass(frozen=True)
class KronfluenceEkFac(KronfluenceMethod):
    """kronfluence: EK-FAC over linear and convolutional layers."""

    damping: float | None = tdabench.option(
        1e-8,
        "added to the corrected eigenvalues; none: a tenth of a layer's mean eigenvalue",
        low=0,
        tune=(1e-8, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1),
    )
    fisher: Literal["sampled", "empirical"] = tdabench.option(
        "sampled", "labels that the Fisher is taken at: sampled from the model's outputs, or the true ones"
    )
    batch_size: int = tdabench.option(1000, "examples a batch", low=1)

    strategy = "ekfac"

    def _factor_options(self) -> dict[str, Any]:
        return {"use_empirical_fisher": self.fisher == "empirical"}

    def _score_options(self) -> dict[str, Any]:
        return {"damping_factor": self.damping}

    def _passes(self) -> int:
        return 2
