"""What a method sees of a task: everything but the ground truth."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from tdabench import lora
from tdabench.dropout import DropoutSite
from tdabench.examples import Examples
from tdabench.member import Member, MemberMasks
from tdabench.meter import TRAIN, Meter, Trained
from tdabench.model_store import ModelStore
from tdabench.task import Task, TaskData
from tdabench.trainer import Parameters, Program, fit_stacked, stacked_state, train_replicas

STREAM = "attribution"  # never "ground-truth": the seeds of the two are disjoint


class TaskView:
    """A task as a method sees it.

    Attributes
    ----------
    name
        The task's name.
    training, queries
        The examples, on the run's device.
    seed
        The run's seed; every random choice of a run is derived from it.
    device
        Where tensors are.
    meter
        Counts what the run uses.
    """

    def __init__(self, task: Task, data: TaskData, store: Path, *, seed: int = 0, meter: Meter | None = None) -> None:
        # Without its folder: no attribute of what a method is handed leads to the ground truth.
        self._task, self._data = dataclasses.replace(task, folder=Path(), mislabelled=None), data
        self.name = task.name
        self.training: Examples = data.training
        self.queries: Examples = data.queries
        self.seed = seed
        self.device = data.training.inputs.device
        self.meter = meter or Meter(self.device)
        self._store = ModelStore(store, self.device)
        self._models: dict[str, Parameters] = {}
        self._template, self._sites = task.template(data.training.inputs[:1].cpu())
        self._template.to(self.device).requires_grad_(False)
        self.loss_function = task.loss
        self.target_function = task.target.function
        self.target_probability = task.target.probability

    @property
    def n_train(self) -> int:
        """Number of training examples."""
        return len(self.training)

    @property
    def n_queries(self) -> int:
        """Number of queries."""
        return len(self.queries)

    @property
    def dropout_sites(self) -> tuple[DropoutSite, ...]:
        """Where the model drops units; empty for a model without dropout."""
        return self._sites

    @property
    def has_linear_layers(self) -> bool:
        """Whether the model has layers that a low-rank adapter can be put on."""
        return any(isinstance(m, nn.Linear) for m in self._template.modules())

    def train(self, model: int = 0) -> Parameters:
        """Return the parameters of attribution model number ``model``, trained on the full training set.

        Running statistics of normalisation layers are among them.

        Metered and cached: trained once on this machine class, charged to every run that asks for it. Members of one
        model share its tensors; do not write to them.
        """
        name = f"model-{self.seed}-{model}"
        if name in self._models:
            return self._models[name]

        def work() -> Parameters:
            everything = torch.ones(1, self.n_train, dtype=torch.bool)
            stacked = train_replicas(self._task, self._data, everything, STREAM, self.seed, model)
            return {k: p[0] for k, p in stacked.items()}

        parameters, self.meter.models[name] = self._trained(name, work)
        self._models[name] = _in_order(self._template, parameters)
        return self._models[name]

    def train_adapter(self, model: int, adapter: int, *, rank: int, epochs: int) -> tuple[nn.Module, Parameters]:
        """Return the model with low-rank adapters, and the parameters of adapter number ``adapter`` on it.

        The adapter is fine-tuned on the full training set with the task's recipe for ``epochs`` epochs, from its own
        stream. Metered and cached like :meth:`train`.
        """
        base = self.train(model)
        adapted = lora.adapted_model(self._template, base, rank)
        name = f"adapter-{self.seed}-{model}-{adapter}-rank-{rank}-epochs-{epochs}"
        stream = (self._task.name, STREAM, self.seed, model, "adapter", adapter, rank)

        def work() -> Parameters:
            stacked = {k: p.unsqueeze(0) for k, p in lora.initial_adapter(adapted, *stream).items()}
            program = Program(adapted, self._sites, self.loss_function)
            recipe = dataclasses.replace(self._task.recipe, epochs=epochs)
            everything = torch.ones(1, self.n_train, dtype=torch.bool)
            fitted = fit_stacked(program, stacked, self.training, everything, stream, recipe)
            return {k: p[0] for k, p in fitted.items()}

        parameters, self.meter.adapters[name] = self._trained(name, work)
        return adapted, _in_order(adapted, parameters)

    def _trained(self, name: str, work: Callable[[], Parameters]) -> tuple[Parameters, Trained]:
        """Load a checkpoint, which serving pays for, or train it, which serving does not."""
        found = self._store.load(name)
        if found is not None:
            return found
        with self.meter.phase(TRAIN):
            return self._store.train(name, work)

    def member(self, model: int = 0, *, number: int | None = None, mask: tuple[int, bool] | None = None) -> Member:
        """Return a member: model number ``model``, with a dropout mask if one is asked for.

        Parameters
        ----------
        model
            Which attribution model.
        number
            Position in the ensemble; ``model`` by default.
        mask
            (number of the mask, whether every example has its own).
        """
        masks = None
        if mask is not None:
            stream = (self.name, STREAM, self.seed, model, "mask", mask[0])
            masks = MemberMasks(self._sites, stream, mask[1])
        trained = self.train(model)
        names = {name for name, _ in self._template.named_parameters()}
        parameters = {k: v for k, v in trained.items() if k in names}
        statistics = {k: v for k, v in trained.items() if k not in names}
        return Member(self, model if number is None else number, parameters, self._template, statistics, masks)

    def adapter_member(self, model: int, adapter: int, *, number: int, rank: int, epochs: int) -> Member:
        """Return a member whose gradients are taken with respect to a low-rank adapter only."""
        adapted, parameters = self.train_adapter(model, adapter, rank=rank, epochs=epochs)
        return Member(self, number, parameters, adapted)

    def warm_up(self) -> None:
        """Train on made-up examples for a step, so that libraries load and compile before the clock starts."""
        n = self._task.recipe.batch_size
        fake = Examples(  # the shapes are the data's, the values are not
            torch.ones_like(self.training.inputs[:1]).expand(n, *self.training.inputs.shape[1:]).contiguous(),
            torch.zeros_like(self.training.labels[:1]).expand(n, *self.training.labels.shape[1:]).contiguous(),
            "train",
        )
        program = Program(self._template, self._sites, self.loss_function)
        stacked = stacked_state(self._template, 1, self.device)
        recipe = dataclasses.replace(self._task.recipe, epochs=1)
        fit_stacked(program, stacked, fake, torch.ones(1, n, dtype=torch.bool), ("warm-up",), recipe)


def _in_order(model: nn.Module, values: Parameters) -> Parameters:
    """Return values in the model's order.

    A checkpoint's file has an order of its own, and a projected gradient depends on the order of the parameters.
    """
    names = (*dict(model.named_parameters()), *dict(model.named_buffers()))
    return {name: values[name] for name in names if name in values}
