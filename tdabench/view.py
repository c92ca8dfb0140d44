"""What a method sees of a task: everything but the ground truth."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from tdabench import bank, precision
from tdabench.dropout import DropoutSite
from tdabench.errors import Declined
from tdabench.examples import Examples
from tdabench.member import Member, MemberMasks
from tdabench.memory import ran_out
from tdabench.meter import Meter
from tdabench.model_store import ModelStore
from tdabench.options import whole_number
from tdabench.precision import Precision
from tdabench.seeds import MOST_SEED
from tdabench.task import Task, TaskData
from tdabench.template import check_values
from tdabench.trained_models import STREAM, TrainedModels
from tdabench.trainer import Parameters, Program, fit_stacked, stacked_state


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
    loss_function, target_function
        What models are trained on and what is attributed, of logits and labels, ``[B]``.
    """

    def __init__(self, task: Task, data: TaskData, store: Path, *, seed: int = 0, meter: Meter | None = None) -> None:
        # Without its folder: no attribute of what a method is handed leads to the ground truth.
        self._task, self._data = dataclasses.replace(task, folder=Path(), mislabelled=None), data
        self.name = task.name
        self.training: Examples = data.training
        self.queries: Examples = data.queries
        self.seed = whole_number("seed", seed, MOST_SEED)
        self.device = data.training.inputs.device
        self._template, self._sites = task.template(data.training.inputs[:2].cpu())
        self._template.to(self.device).requires_grad_(False)
        self._models = TrainedModels(
            self._task,
            data,
            self._template,
            self._sites,
            store=ModelStore(store, self.device),
            meter=meter or Meter(self.device),
            seed=self.seed,
        )
        check_values(task, self._template, data)
        self.loss_function = task.loss
        self.target_function = task.target.function
        self.target_probability = task.target.probability or partial(_no_probability, task.name)

    @property
    def meter(self) -> Meter:
        """Counts what the run uses, trainings included; another one takes over where the run begins."""
        return self._models.meter

    @meter.setter
    def meter(self, meter: Meter) -> None:
        self._models.meter = meter

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
    def epochs(self) -> int:
        """For how many epochs a model is trained."""
        return self._task.recipe.epochs

    @property
    def trained_in(self) -> Precision:
        """The number format of training: the recipe's, where the processor is no slower in it."""
        return precision.used(self._task.recipe.precision, self.device)

    def learning_rate(self, epoch: int) -> float:
        """Return the recipe's mean learning rate over the steps of an epoch, counted from 1."""
        per_epoch = -(-self.n_train // self._task.recipe.batch_size)
        steps = range((epoch - 1) * per_epoch, epoch * per_epoch)
        return fmean(self._task.recipe.rate(step, self.epochs * per_epoch) for step in steps)

    @property
    def has_linear_layers(self) -> bool:
        """Whether the model has layers that a low-rank adapter can be put on."""
        return any(isinstance(m, nn.Linear) for m in self._template.modules())

    @property
    def computed_weight(self) -> str | None:
        """The first layer that keeps adapters off by a weight or bias made of other parameters, if there is one.

        A linear layer, parametrized (``weight_norm``) or of a class that makes its weight; or any layer that holds what
        its last pass made of it (``torch.nn.utils.spectral_norm``), of which no copy can be made.
        """
        for name, module in self._template.named_modules():
            own = dict(module.named_parameters(recurse=False))
            made = "weight" not in own or parametrize.is_parametrized(module)
            if (isinstance(module, nn.Linear) and made) or isinstance(vars(module).get("weight"), Tensor):
                return name
        return None

    def train(self, model: int = 0) -> Parameters:
        """Return the parameters of attribution model number ``model``, trained on the full training set.

        Running statistics of normalisation layers are among them.

        Metered and cached: trained once on this machine class, charged to every run that asks for it. Members of one
        model share its tensors; do not write to them. They stay in memory until :meth:`forget`.
        """
        return self._models.model(whole_number("model", model))

    def forget(self, model: int) -> None:
        """Let go of the tensors of attribution model number ``model``, after its last member.

        Whoever asks for the model again has it loaded again. It is charged once.
        """
        self._models.forget(model)

    def loaded(self) -> Iterator[torch.UntypedStorage]:
        """Yield what was loaded of models, checkpoints and adapters, and is held by somebody.

        What is kept of it is stored, and charged, with them.
        """
        return self._models.loaded()

    def check_data(self) -> None:
        """Raise :class:`UsageError` if the training examples or the queries were changed in place."""
        self._models.check_data()

    def train_run(self, model: int, epochs: Sequence[int]) -> dict[int, Parameters]:
        """Return the parameters of attribution model number ``model`` at the end of some epochs of its training.

        At the end of the last epoch they are those of :meth:`train`, which is always kept and counted with them.
        Metered and cached: the run is charged once, however many checkpoints are taken of it, and the storage of each.
        Checkpoints are loaded at each call.

        Parameters
        ----------
        model
            Which attribution model.
        epochs
            Numbers of finished epochs, from 1 to :attr:`epochs`.

        Raises
        ------
        UsageError
            If there is no such epoch.
        """
        self.charge_run(model, epochs)
        return {epoch: self._models.checkpoint(int(model), epoch) for epoch in map(int, epochs)}

    def charge_run(self, model: int, epochs: Sequence[int]) -> None:
        """Train and charge what :meth:`train_run` would, but load nothing."""
        self._models.charge_run(whole_number("model", model), [whole_number("epoch", epoch) for epoch in epochs])

    def retrain(self, masks: Tensor, *stream: str | int) -> list[Parameters]:
        """Return models retrained from scratch on subsets of the training set, for :meth:`outputs`.

        All start alike: initialisation, order of the examples and dropout come from one stream, as under one seed of
        the ground truth, from which the stream is disjoint. Metered and cached like :meth:`train`, but charged for the
        time that training them together takes.

        Parameters
        ----------
        masks
            ``[M, n_train]`` bool, True where an example is kept; rows of equal size.
        stream
            Names the random stream, together with the run's seed.

        Returns
        -------
        list
            Groups of models in the order of ``masks``, parameters stacked ``[R, *shape]``; do not write to them.

        Raises
        ------
        UsageError
            If ``masks`` are not subsets of equal size.
        """
        bank.check_masks(masks, self.n_train)
        return self._models.subsets(masks.cpu(), *stream)  # on the CPU, as the order of the examples: it decides both

    def outputs(self, models: Sequence[Parameters], examples: Examples) -> Tensor:
        """Return the target of every example under every retrained model, ``[M, n]``; forward passes only."""
        n_models = sum(len(next(iter(stacked.values()))) for stacked in models)
        self.meter.count(forward=n_models * len(examples))
        return bank.outputs(self._task, self._data, models, examples)

    def train_adapter(self, model: int, adapter: int, *, rank: int, epochs: int) -> tuple[nn.Module, Parameters]:
        """Return the model with low-rank adapters, and the parameters of adapter number ``adapter`` on it.

        The adapter is fine-tuned on the full training set with the task's recipe for ``epochs`` epochs, from its own
        stream. Metered and cached like :meth:`train`. All adapters of a model share its tensors; do not write to them.
        """
        model, adapter = whole_number("model", model), whole_number("adapter", adapter)
        return self._models.adapter(model, adapter, rank=rank, epochs=epochs)

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
        model = whole_number("model", model)
        masks = None if mask is None else self._masks(model, mask[0], per_sample=mask[1])
        number = model if number is None else number
        return self._member(self.train(model), number=number, masks=masks, model_number=model)

    def checkpoint_member(
        self, model: int, epoch: int, *, number: int, weight: float = 1.0, q_masks: int = 0
    ) -> Member:
        """Return a member at the end of an epoch of a model's training; see :meth:`train_run`.

        With ``q_masks``, its Q factor is averaged over so many dropout masks, drawn for this checkpoint.
        """
        model, epoch = whole_number("model", model), whole_number("epoch", epoch)
        trained = self.train_run(model, [epoch])[epoch]
        member = self._member(trained, number=number, weight=weight, model_number=model)
        masks = [self._masks(model, mask, "epoch", epoch) for mask in range(q_masks)]
        return member.with_q(tuple(dataclasses.replace(member, masks=drawn) for drawn in masks))

    def _masks(self, model: int, mask: int, *more: str | int, per_sample: bool = False) -> MemberMasks:
        mask = whole_number("mask", mask)
        return MemberMasks(self._sites, (self.name, STREAM, self.seed, model, "mask", mask, *more), per_sample)

    def _member(self, trained: Parameters, number: int, **fields: Any) -> Member:
        return Member.of_values(self, number, self._template, trained, **fields)

    def adapter_member(self, model: int, adapter: int, *, number: int, rank: int, epochs: int) -> Member:
        """Return a member whose gradients are taken with respect to a low-rank adapter only."""
        adapted, parameters = self.train_adapter(model, adapter, rank=rank, epochs=epochs)
        return Member(self, number, parameters, adapted, model_number=model)

    def warm_up(self) -> None:
        """Train on made-up examples for a step and take two gradients, so that libraries load before the clock starts.

        The first gradient of a process takes as long as a thousand more of a small model.
        """
        if self.device.type == "cuda":
            _load_linear_algebra(self.device)
        n = self._task.recipe.batch_size
        fake = Examples(  # the shapes are the data's, the values are not
            torch.ones_like(self.training.inputs[:1]).expand(n, *self.training.inputs.shape[1:]).contiguous(),
            torch.zeros_like(self.training.labels[:1]).expand(n, *self.training.labels.shape[1:]).contiguous(),
            "train",
        )
        program = Program(self._template, self._sites, self.loss_function)
        stacked = stacked_state(self._template, 1, self.device)
        recipe = dataclasses.replace(self._task.recipe, epochs=1)
        fitted = fit_stacked(program, stacked, fake, torch.ones(1, n, dtype=torch.bool), ("warm-up",), recipe)
        member = self._member({name: values[0] for name, values in fitted.items()}, number=0)
        few = Examples(fake.inputs[:2], fake.labels[:2], "train")
        try:
            member.gradients(few, of="target").dot(member.gradients(few, of="loss"))
        except Exception as error:  # a model that has none is told of by the method that asks for them
            if ran_out(error):
                raise


def _load_linear_algebra(device: torch.device) -> None:
    """Have a device's libraries loaded that a training step does not call; each loads at its first call."""
    for dtype in (torch.float32, torch.float64):
        matrix = torch.eye(2, dtype=dtype, device=device)
        torch.linalg.eigh(matrix)
        torch.linalg.cholesky(matrix)
        torch.linalg.solve(matrix, matrix @ matrix)


def _no_probability(name: str, _: Tensor) -> Tensor:
    raise Declined(
        f"the target of {name} has no probability of the right answer, which the method needs: it is the third part of "
        "a tdabench.Target"
    )
