"""Calibration: how fast this machine is at what work is counted in, measured on the task's own untrained model."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property, partial
from math import prod
from pathlib import Path

import torch
from torch import Tensor, nn

from tdabench import gradients, kronecker, lora
from tdabench.budgets import block_bytes
from tdabench.dropout import DropoutSite, MaskTable
from tdabench.errors import Declined
from tdabench.examples import FORWARD_BATCH, Examples
from tdabench.gradients import Gradients, as_it_is
from tdabench.grouping import candidates
from tdabench.held import forward_batch
from tdabench.hessian import Hessian
from tdabench.member import Member, MemberMasks
from tdabench.model_store import file_content
from tdabench.sizes import Blocks, Sizes
from tdabench.task import Task, TaskData
from tdabench.timing import SHORT_S, machine_speed, peak_of, seconds_of
from tdabench.trainer import Program, fit_stacked, stacked_state
from tdabench.view import TaskView
from tdabench.work import Parts

# Vectors that the Hessian is multiplied by at once, and examples that share a pass, of the batches of LiSSA for one.
_VECTORS = 64
_SHARING = 64


@dataclass(frozen=True)
class Rates:
    """Seconds of one of what work is counted in.

    Attributes
    ----------
    forward_s, gradients_s, curved_s
        Of one example passed forward, of its gradient, of a product with its part of the Hessian.
    products_s, moved_s
        Of one multiply-add, of one number written.
    masks_s
        Of drawing a member's dropout masks.
    forward_bytes, gradients_bytes
        Peak memory of such a pass, for one example.
    """

    forward_s: float
    gradients_s: float
    curved_s: float
    products_s: float
    moved_s: float
    masks_s: float = 0.0
    forward_bytes: float = 0.0
    gradients_bytes: float = 0.0


@dataclass(frozen=True)
class Training:
    """Seconds of one training step, and of what an epoch takes beside its steps."""

    step_s: float
    epoch_s: float

    def seconds(self, n: int, batch_size: int, epochs: int) -> float:
        """Return what ``epochs`` over ``n`` examples take."""
        return epochs * (self.epoch_s + self.step_s * -(-n // batch_size))


class Bench:
    """Measures on one task; what was measured is kept.

    Parameters
    ----------
    task, data
        The task and its data, on the device that is measured.
    """

    def __init__(self, task: Task, data: TaskData) -> None:
        self.task, self.data = task, data
        # Nothing is stored: the folder is never written to.
        self.view = TaskView(task, data, Path())
        self._rates: dict[tuple[int, str | None, bool], Rates] = {}
        self._sizes: dict[int, Sizes] = {}
        self._trainings: dict[int, Training] = {}

    @cached_property
    def _model(self) -> tuple[nn.Module, tuple[DropoutSite, ...]]:
        model, sites = self.task.template(self.data.training.inputs[:2].cpu())
        return model.to(self.view.device).requires_grad_(False), sites

    @cached_property
    def _values(self) -> dict[str, Tensor]:
        return {k: v[0] for k, v in stacked_state(self._model[0], 1, self.view.device).items()}

    def member(self, rank: int = 0, masks: str | None = None) -> Member:
        """Return an untrained member, with an adapter of a rank if it is not 0, or with dropout masks."""
        model, sites = self._model
        if rank:
            adapted = lora.adapted_model(model, self._values, rank)
            return Member(self.view, 0, lora.initial_adapter(adapted, "plan"), adapted)
        drawn = None if masks is None else MemberMasks(sites, ("plan",), masks == "per-sample")
        return Member.of_values(self.view, 0, model, self._values, masks=drawn)

    def file_bytes(self, rank: int = 0) -> int:
        """Return the size of a checkpoint's file, or of an adapter's."""
        values = self.member(rank).parameters if rank else self._values
        return len(file_content(values, seconds=1 / 3, cpu_seconds=1 / 3))

    def sizes(self, parts: Parts) -> Sizes:
        """Return what the work at a member depends on."""
        if parts.rank not in self._sizes:
            member = self.member(parts.rank)
            try:
                last = sizes_of(member.last_layer())
            except Declined:
                last = None
            self._sizes[parts.rank] = replace(sizes_of(member), last=last)
        return replace(self._sizes[parts.rank], q_members=parts.q_members)

    def rates(self, parts: Parts, *, curved: bool) -> Rates:
        """Return how fast passes of such members are; products with the Hessian are measured if asked for."""
        key = parts.rank, parts.masks, curved
        if key not in self._rates:
            member = self.member(parts.rank, parts.masks)
            self._rates[key] = self._measured(member, curved, self._masks_s if parts.masks == "per-sample" else 0.0)
        return self._rates[key]

    def _measured(self, member: Member, curved: bool, masks_s: float) -> Rates:
        products_s, moved_s = machine_speed(torch.get_num_threads(), str(self.view.device))
        forward_s, forward_bytes = self._per_example(lambda some: member.targets(some), FORWARD_BATCH)
        gradients_s, gradients_bytes = self._per_example(lambda some: _pass(member, some), _batch(member))
        return Rates(
            forward_s,
            gradients_s,
            self._curved_s(member) if curved else 0.0,
            products_s,
            moved_s,
            masks_s,
            forward_bytes,
            gradients_bytes,
        )

    def _curved_s(self, member: Member) -> float:
        """Return the seconds of a product of one vector with one example's part of the Hessian.

        Of as many of both as the time allows: a vector alone costs as much again as long as few examples share it.
        """
        n, m = 2, 4
        _curve(member, _first(self.data.training, n), m)  # the first call finds things out
        while True:
            seconds = self._timed(partial(_curve, member, _first(self.data.training, n), m))
            more = min(2 * n, len(self.data.training), _SHARING), min(2 * m, _VECTORS)
            if more == (n, m) or seconds > SHORT_S:
                return seconds / (n * m)
            n, m = more

    @cached_property
    def _masks_s(self) -> float:
        """Seconds of drawing a mask for every training example and query."""
        n = len(self.data.training)
        drawing = self._timed(lambda: MaskTable.draw(self._model[1], n, "plan", device=self.view.device))
        return drawing * (1 + len(self.data.queries) / n)

    def _per_example(self, run: Callable[[Examples], object], most: int) -> tuple[float, float]:
        """Return seconds and peak bytes of one example in as many at once as the time allows."""
        whole = self.data.training
        n = min(2, len(whole))
        run(_first(whole, n))  # the first call finds things out
        seconds = self._timed(lambda: run(_first(whole, n)))
        more = min(len(whole), most, int(SHORT_S * n / seconds))
        if more > n:
            n, seconds = more, self._timed(lambda: run(_first(whole, more)))
        return seconds / n, peak_of(lambda: run(_first(whole, n)), self.view.device) / n

    def _timed(self, run: Callable[[], object]) -> float:
        return seconds_of(run, self.view.device)

    def training(self, rank: int = 0) -> Training:
        """Return what training a model takes, or tuning an adapter of a rank."""
        if rank not in self._trainings:
            self._trainings[rank] = self._measured_training(rank)
        return self._trainings[rank]

    def _measured_training(self, rank: int) -> Training:
        batch = self.task.recipe.batch_size
        few = min(4, batch)
        step = self._epoch_s(rank, few) * batch / few
        # A whole step would take too long, and this one is large enough to tell. Elsewhere few take as long as many.
        if self.view.device.type == "cpu" and step > 8 * SHORT_S:
            return Training(step, 0.0)
        first = self._epoch_s(rank, batch)  # with what an epoch takes beside its steps
        more = min(-(-len(self.data.training) // batch), 1 + int(2 * SHORT_S / first))
        step = (self._epoch_s(rank, more * batch) - first) / (more - 1) if more > 1 else first
        step = min(max(step, 0.0), first)
        return Training(step, first - step)

    def _epoch_s(self, rank: int, n: int, replicas: int = 1) -> float:
        """Return the seconds of an epoch over ``n`` examples, of several replicas at once."""
        recipe = replace(self.task.recipe, epochs=1)
        mask = torch.zeros(replicas, self.task.n_train, dtype=torch.bool)
        mask[:, :n] = True
        member = self.member(rank)
        values = member.parameters if rank else self._values
        program = Program(member.model, self._model[1], self.task.loss)

        def train() -> None:
            stacked = {k: v.expand(replicas, *v.shape).clone() for k, v in values.items()}
            fit_stacked(program, stacked, self.data.training, mask, ("plan",), recipe)

        return self._timed(train)

    @cached_property
    def bank_step_s(self) -> float:
        """Seconds of a training step of one model of a bank, trained with others where that is faster."""
        alone = self.training().step_s
        group = candidates(self.task, self.view.device)[-1]
        if group == 1 or alone * group > 8 * SHORT_S:  # too long to be measured; together is not slower
            return alone
        with suppress(RuntimeError):  # a group that vmap has no rule for, or no memory
            return min(alone, self._epoch_s(0, self.task.recipe.batch_size, group) / group)
        return alone


def sizes_of(member: Member) -> Sizes:
    """Return what the work at a member depends on, from a pass of one example."""
    task = member.task
    one = Gradients(member, task.training, "loss", range(1))
    with torch.no_grad():
        outputs = member.logits(member.parameters, _first(task.training, 1).all())
    return Sizes(
        n_train=task.n_train,
        n_queries=task.n_queries,
        layers=one.layers,
        pass_numbers=one.layout.numbers,
        blocks=engine_blocks(task.device),
        representation=_representation(member),
        n_outputs=outputs.shape[-1],
        has_one_label=task.training.labels.dim() == 1,
        short=one.short,
        forward_batch=forward_batch(member, task.training),
    )


def engine_blocks(device: torch.device) -> Blocks:
    """Return how the engine cuts its work on a device."""
    return Blocks(
        block_bytes(gradients.BLOCK_BYTES, device),
        block_bytes(gradients.HELD_BYTES, device),
        block_bytes(gradients.KEPT_BYTES, device),
        gradients.BATCH,
        kronecker.LONGEST,
        block_bytes(gradients.BLOCK_BYTES, device) / gradients.BLOCK_BYTES,
    )


def _representation(member: Member) -> tuple[int, int] | None:
    for pooled in (False, True):  # where positions cannot be kept apart, methods that average them still work
        with suppress(Declined):
            found = member.representations(_first(member.task.training, 2), pooled=pooled)
            return prod(found.shape[1:-1]), found.shape[-1]
    return None


def _first(examples: Examples, n: int) -> Examples:
    return examples.part(slice(n))


def _batch(member: Member) -> int:
    return Gradients(member, member.task.training, "loss").batch_size()


def _pass(member: Member, examples: Examples) -> None:
    for _ in Gradients(member, examples, "loss").blocks(as_it_is):
        pass


def _curve(member: Member, examples: Examples, vectors: int) -> None:
    hessian = Hessian(member, examples)
    hessian.times(torch.ones(vectors, hessian.n_parameters, device=member.task.device))
