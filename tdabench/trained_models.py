"""The models that a run attributes: each trained when it is first asked for, kept on disk, and charged to the run."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, partial
from weakref import WeakSet

import torch
from torch import Tensor, nn

from tdabench import bank, lora, precision
from tdabench.dropout import DropoutSite
from tdabench.errors import StorageError, UsageError
from tdabench.meter import TRAIN, Meter, Trained
from tdabench.model_names import adapter_name, checkpoint_name, model_name
from tdabench.model_store import ModelStore
from tdabench.stopwatch import HARNESS
from tdabench.task import Task, TaskData
from tdabench.trainer import OnEpoch, Parameters, Program, fit_stacked, train_replicas

STREAM = "attribution"  # never "ground-truth": the seeds of the two are disjoint


class TrainedModels:
    """What is trained for a run. A :class:`~tdabench.view.TaskView` says what methods may ask of it.

    Parameters
    ----------
    task, data
        What models are trained on, and how; the data is on the store's device.
    template, sites
        The model, with empty parameters, and where it drops units.
    store
        Where models are kept.
    meter
        What trainings are charged to, from now on.
    seed
        The run's seed.
    """

    def __init__(
        self,
        task: Task,
        data: TaskData,
        template: nn.Module,
        sites: tuple[DropoutSite, ...],
        *,
        store: ModelStore,
        meter: Meter,
        seed: int,
    ) -> None:
        self._task, self._data, self._seed = task, data, seed
        self._template, self._sites = template, sites
        self.meter, self._store = meter, store
        self._device = data.training.inputs.device
        self._held: dict[str, Parameters] = {}
        self._checkpoints: dict[str, dict[int, Trained]] = {}
        self._loaded_storages: WeakSet[torch.UntypedStorage] = WeakSet()
        self._unchanged = self._data_versions()

    def check_data(self) -> None:
        """Refuse to go on with data that was written to, before a model trained on it is kept for other runs.

        Raises
        ------
        UsageError
            If a method changed the training examples or the queries in place.
        """
        if self._data_versions() != self._unchanged:
            raise UsageError(
                f"The data of {self._task.name} was changed in place while the method ran; models and methods after it "
                "would see other examples. Clone a tensor before writing to it."
            )

    def _data_versions(self) -> list[int]:
        """Return how often each tensor of the data was written to, as torch counts it."""
        sets = (self._data.training, self._data.queries)
        return [tensor._version for examples in sets for tensor in (examples.inputs, examples.labels)]

    def model(self, model: int) -> Parameters:
        """Return the parameters of a model, and hold them until they are forgotten."""
        name = model_name(self._seed, model)
        if name not in self._held:
            parameters, self.meter.models[name] = self._trained(name, lambda: self._train_alone(model))
            self._held[name] = _in_order(self._template, parameters)
        return self._held[name]

    def forget(self, model: int) -> None:
        """Let go of a model. Whoever asks for it again has it loaded again; it is charged once."""
        self._held.pop(model_name(self._seed, model), None)

    def loaded(self) -> Iterator[torch.UntypedStorage]:
        """Yield what was loaded of models, checkpoints and adapters, and is held by somebody.

        What is kept of it is stored, and charged, with them.
        """
        return iter(self._loaded_storages)

    def checkpoint(self, model: int, epoch: int) -> Parameters:
        """Load a model at the end of an epoch of a run that was charged."""
        return _in_order(self._template, self._loaded(self._file(model, epoch))[0])

    def charge_run(self, model: int, epochs: Sequence[int]) -> None:
        """Charge one training of a model and its checkpoints at the end of some epochs; what is missing is trained."""
        name, last = model_name(self._seed, model), self._task.recipe.epochs
        if outside := [epoch for epoch in epochs if not 1 <= epoch <= last]:
            raise UsageError(
                f"There is no checkpoint at the end of epoch {outside[0]}: a model of {self._task.name} is trained for"
                f" {last} epochs, counted from 1."
            )
        kept = self._checkpoints.setdefault(name, {})
        asked = {e: self._file(model, e) for e in (*epochs, last) if e not in kept}
        kept |= {e: found for e, file in asked.items() if (found := self._found(file)) is not None}
        missing = {e: file for e, file in asked.items() if e not in kept}
        if missing:  # the whole run once more, for as many as there are
            with self.meter.phase(TRAIN), precision.undisturbed(self._device):
                self.check_data()
                made = self._store.train_run(lambda: self._train_with_snapshots(model, missing))
            kept |= {e: made[file] for e, file in missing.items()}
        longest = max(kept.values(), key=lambda trained: trained.seconds)
        stored = sum(trained.storage_bytes for trained in kept.values())
        self.meter.runs[name] = dataclasses.replace(longest, storage_bytes=stored)

    def _file(self, model: int, epoch: int) -> str:
        """Return the name that a model is kept under at the end of an epoch."""
        name = model_name(self._seed, model)
        return name if epoch == self._task.recipe.epochs else checkpoint_name(name, epoch)

    def _train_with_snapshots(self, model: int, files: dict[int, str]) -> dict[str, Parameters]:
        snapshots: dict[str, Parameters] = {}

        def keep(epoch: int, values: Parameters) -> None:
            if epoch in files:
                snapshots[files[epoch]] = {k: p[0].detach().clone() for k, p in values.items()}

        self._train_alone(model, keep)
        return snapshots

    def _train_alone(self, model: int, on_epoch: OnEpoch | None = None) -> Parameters:
        everything = torch.ones(1, len(self._data.training), dtype=torch.bool)
        stacked = train_replicas(self._task, self._data, everything, STREAM, self._seed, model, on_epoch=on_epoch)
        trained = {name for name, _ in self._template.named_parameters()}  # a buffer may hold what is infinite
        if not all(p.isfinite().all() for name, p in stacked.items() if name in trained):
            raise UsageError(
                f"The training of {self._task.name} diverged: its parameters are not finite. Lower the recipe's"
                " learning rate."
            )
        return {k: p[0] for k, p in stacked.items()}

    def subsets(self, masks: Tensor, *stream: str | int) -> list[Parameters]:
        """Return models retrained on subsets, in groups, and hold them."""
        whole_stream = (STREAM, self._seed, "bank", *stream)
        parts = list(bank.parts_of(self._task, masks, *whole_stream))
        for part in parts:
            if part.name not in self._held:
                group = self._bank_group if self._found(part.name) is None else 1  # 1: nothing trains
                work = partial(bank.train_part, self._task, self._data, part.masks, group, *whole_stream)
                self._held[part.name], trained = self._trained(part.name, work)
                self.meter.banks[part.name] = dataclasses.replace(trained, models=len(part.masks))
        return [self._held[part.name] for part in parts]

    @cached_property
    def _bank_group(self) -> int:
        """How many models of a bank to train at once."""
        with self.meter.stopwatch.phase(HARNESS), precision.undisturbed(self._device):
            return bank.group_for(self._task, self._data)

    def adapter(self, model: int, adapter: int, *, rank: int, epochs: int) -> tuple[nn.Module, Parameters]:
        """Return a model with low-rank adapters, and the parameters of one of them."""
        adapted = lora.adapted_model(self._template, self.model(model), rank)
        name = adapter_name(self._seed, model, adapter, rank, epochs)
        stream = (self._task.name, STREAM, self._seed, model, "adapter", adapter, rank)

        def work() -> Parameters:
            stacked = {k: p.unsqueeze(0) for k, p in lora.initial_adapter(adapted, *stream).items()}
            program = Program(adapted, self._sites, self._task.loss)
            recipe = dataclasses.replace(self._task.recipe, epochs=epochs)
            everything = torch.ones(1, len(self._data.training), dtype=torch.bool)
            fitted = fit_stacked(program, stacked, self._data.training, everything, stream, recipe)
            return {k: p[0] for k, p in fitted.items()}

        parameters, self.meter.adapters[name] = self._trained(name, work)
        return adapted, _in_order(adapted, parameters)

    def _trained(self, name: str, work: Callable[[], Parameters]) -> tuple[Parameters, Trained]:
        """Load a checkpoint, which serving pays for; if it is missing, train it first, which serving does not.

        What was just trained is loaded like all else: a run pays the same whether or not it was the first.
        """
        if self._found(name) is None:
            self.check_data()
            with self.meter.phase(TRAIN), precision.undisturbed(self._device):
                self._store.train(name, work)
        return self._loaded(name)

    def _found(self, name: str) -> Trained | None:
        """Return what a whole checkpoint cost, None where there is none; to look whether it is whole costs nobody."""
        with self.meter.stopwatch.phase(HARNESS):
            found = self._store.find(name)
            return found if found is not None and self._store.is_intact(name) else None

    def _loaded(self, name: str) -> tuple[Parameters, Trained]:
        with precision.undisturbed(self._device):
            found = self._store.load(name)
        if found is None:
            raise StorageError(
                f"The checkpoint {name} in {self._store.folder} was there a moment ago, and is gone or damaged. "
                "Leave the folder alone while a run uses it, and give the command again."
            )
        self._loaded_storages.update(tensor.untyped_storage() for tensor in found[0].values())
        return found


def _in_order(model: nn.Module, values: Parameters) -> Parameters:
    """Return values in the model's order.

    A checkpoint's file has an order of its own, and a projected gradient depends on the order of the parameters.
    """
    names = (*dict(model.named_parameters()), *dict(model.named_buffers()))
    return {name: values[name] for name in names if name in values}
