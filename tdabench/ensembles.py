"""Ensembles: how members are made. Any of them wraps any method that is defined per member."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from tdabench.errors import Declined, OptionError, UnknownNameError, UsageError
from tdabench.options import OptionInfo, describe, make, option, values
from tdabench.work import Parts

if TYPE_CHECKING:
    from tdabench.member import Member
    from tdabench.method import MemberMethod
    from tdabench.view import TaskView

_MOST = 10**6  # members: more than any run has time for


class Ensemble(Protocol):
    """A frozen dataclass of options that makes members."""

    @property
    def size(self) -> int:
        """How many members."""

    def supports(self, method: MemberMethod, task: TaskView) -> str | None:
        """Return None, or the reason why it cannot wrap the method on this task."""

    def members(self, task: TaskView) -> Iterator[Member]:
        """Make the members, each when it is asked for; models and adapters that are missing are trained, metered.

        Members of one model come one after another, and the task is told to forget it before the next model is made:
        whoever lets go of each member in turn has one model in memory.
        """

    def parts(self) -> Parts:
        """Return what it is made of: how many members it makes, and an estimate's counts."""


def _one_by_one(task: TaskView, models: int) -> Iterator[int]:
    """Yield the numbers of models; each model is forgotten when the next one is asked for."""
    for model in range(models):
        yield model
        task.forget(model)


def _cannot_mask(method: MemberMethod, task: TaskView, q_only: str | None) -> str | None:
    """Return why dropout masks cannot be drawn, or None; ``q_only`` is what asks for them in the Q factor alone."""
    if not task.dropout_sites:
        return f"the model of {task.name} has no dropout layer"
    return f"{q_only} needs a method with a Q factor" if q_only and not method.uses_q else None


@dataclass(frozen=True)
class Independent:
    """Independently trained models: the naive ensemble, good and dear."""

    models: int = option(1, "independently trained models", low=1)

    @property
    def size(self) -> int:
        """One member a model."""
        return self.models

    def supports(self, method: MemberMethod, task: TaskView) -> str | None:
        """Wrap anything."""
        return None

    def members(self, task: TaskView) -> Iterator[Member]:
        """Yield one member per model, dropout off."""
        for model in _one_by_one(task, self.models):
            yield task.member(model)

    def parts(self) -> Parts:
        """Return the models."""
        return Parts(self.models, members=self.models)


@dataclass(frozen=True)
class Dropout:
    """Few models, many dropout masks: every (model, mask) pair is a member (arXiv 2405.17293)."""

    models: int = option(1, "independently trained models", low=1)
    masks: int = option(10, "dropout masks per model", low=1)
    scope: Literal["all", "q-only"] = option(
        "all", "all: gradients and Q factor under the mask; q-only: gradients once per model, dropout for the Q factor"
    )
    mask: Literal["shared", "per-sample"] = option(
        "shared", "shared: one sub-network per member; per-sample: every example has its own mask"
    )

    @property
    def size(self) -> int:
        """One member a pair; q-only averages the Q factor over as many."""
        return self.models * self.masks

    def supports(self, method: MemberMethod, task: TaskView) -> str | None:
        """Need a model with dropout, and for q-only a method with a Q factor."""
        return _cannot_mask(method, task, "scope=q-only" if self.scope == "q-only" else None)

    def members(self, task: TaskView) -> Iterator[Member]:
        """Yield the (model, mask) pairs; for q-only, one member a model whose Q factor has all its masks."""
        for model in _one_by_one(task, self.models):
            if self.scope == "all":
                yield from (self._masked(task, model, mask) for mask in range(self.masks))
            else:
                masked = [self._masked(task, model, mask) for mask in range(self.masks)]
                yield task.member(model).with_q(tuple(masked))

    def parts(self) -> Parts:
        """Return the models, and how many passes a Q factor takes."""
        if self.scope == "all":
            return Parts(self.models, members=self.size, masks=self.mask)
        return Parts(self.models, members=self.models, q_members=self.masks, masks=self.mask)

    def _masked(self, task: TaskView, model: int, mask: int) -> Member:
        return task.member(model, number=model * self.masks + mask, mask=(mask, self.mask == "per-sample"))


@dataclass(frozen=True)
class Lora:
    """Few models, several fine-tuned low-rank adapters on each: every pair is a member (arXiv 2405.17293).

    Gradients are taken with respect to the adapter only.
    """

    models: int = option(1, "independently trained models", low=1)
    adapters: int = option(5, "adapters per model", low=1)
    rank: int = option(8, "rank of an adapter, at most the smaller side of its layer", low=1)
    epochs: int = option(5, "epochs of fine-tuning, with the task's recipe", low=1)

    @property
    def size(self) -> int:
        """One member an adapter."""
        return self.models * self.adapters

    def supports(self, method: MemberMethod, task: TaskView) -> str | None:
        """Need linear layers, with weights and biases that are parameters of their own."""
        if task.computed_weight is not None:
            return (
                f"a weight or bias of {task.computed_weight} in the model of {task.name} is made of other parameters "
                "(as weight_norm and spectral_norm do), so the model cannot be given adapters"
            )
        return None if task.has_linear_layers else f"the model of {task.name} has no linear layer to adapt"

    def members(self, task: TaskView) -> Iterator[Member]:
        """Yield the (model, adapter) pairs; the adapters of a model share it."""
        for model in _one_by_one(task, self.models):
            for adapter in range(self.adapters):
                number = model * self.adapters + adapter
                yield task.adapter_member(model, adapter, number=number, rank=self.rank, epochs=self.epochs)

    def parts(self) -> Parts:
        """Return the models and their adapters."""
        return Parts(self.models, members=self.size, adapters=self.size, rank=self.rank, adapter_epochs=self.epochs)


@dataclass(frozen=True)
class Checkpoints:
    """Checkpoints of a model's own training: every (model, checkpoint) pair is a member (arXiv 2002.08484).

    They resemble one another more than independent models do, but all of them cost one training. They are counted
    backwards, so that the first member of each model is the model itself. Each carries the learning rate of the epoch
    it ends, relative to the mean over its model's members, for methods that sum along the training. With ``q_masks``,
    the Q factor of each is averaged over dropout masks, as :class:`Dropout` with ``scope=q-only`` does.
    """

    models: int = option(1, "independently trained models", low=1)
    last: int = option(5, "checkpoints per model, the final parameters included", low=1)
    every: int | None = option(None, "epochs between checkpoints; none: evenly over the span", low=1)
    span: Literal["half", "whole"] = option("half", "what they are spread over: training's second half, or all of it")
    q_masks: int | None = option(None, "dropout masks per checkpoint for the Q factor alone; none: dropout off", low=1)

    @property
    def size(self) -> int:
        """One member a checkpoint."""
        return self.models * self.last

    def supports(self, method: MemberMethod, task: TaskView) -> str | None:
        """Need as many epochs as the checkpoints reach back, and one word on where they are; masks as dropout does."""
        if self.q_masks is not None and (reason := _cannot_mask(method, task, "q_masks")):
            return reason
        if self.every is not None and self.span == "whole":
            return "every and span=whole both say where checkpoints are taken: give one of them"
        if self.last <= task.epochs and self.epochs(task.epochs)[-1] >= 1:
            return None
        every = "" if self.every is None else f", {self.every} epochs apart"
        return f"a model of {task.name} is trained for {task.epochs} epochs: too few for {self.last} checkpoints{every}"

    def epochs(self, n: int) -> list[int]:
        """Return after which of ``n`` epochs the checkpoints are taken, the last one first.

        By default they are spread over the second half; where that has fewer epochs than there are checkpoints, every
        epoch has one. Spread over the whole they are often better (docs/checkpoints.md).
        """
        span = n if self.span == "whole" else n / 2
        step = max(1.0, span / self.last) if self.every is None else self.every
        return [n - math.floor(i * step) for i in range(self.last)]

    def members(self, task: TaskView) -> Iterator[Member]:
        """Yield the (model, checkpoint) pairs; each model is trained once, and each checkpoint loaded in its turn."""
        epochs = self.epochs(task.epochs)
        rates = [task.learning_rate(epoch) for epoch in epochs]
        for model in _one_by_one(task, self.models):
            task.charge_run(model, epochs)  # all at once, so that one run serves them
            for i, (epoch, rate) in enumerate(zip(epochs, rates, strict=True)):
                weight = rate * self.last / sum(rates)
                number = model * self.last + i
                yield task.checkpoint_member(model, epoch, number=number, weight=weight, q_masks=self.q_masks or 0)

    def parts(self) -> Parts:
        """Return the models, what is kept of their training beside them, and how many passes a Q factor takes."""
        return Parts(
            self.models,
            members=self.size,
            checkpoints=self.models * (self.last - 1),
            q_members=self.q_masks or 1,
            masks=None if self.q_masks is None else "shared",
        )


@dataclass(frozen=True)
class Projections:
    """Few models, several random projections of each: only the method's own randomness differs between members."""

    models: int = option(1, "independently trained models", low=1)
    seeds: int = option(5, "projections per model", low=1)

    @property
    def size(self) -> int:
        """One member a projection."""
        return self.models * self.seeds

    def supports(self, method: MemberMethod, task: TaskView) -> str | None:
        """Need a method that projects at random; what else one draws, as EK-FAC its labels, is no projection."""
        return None if method.uses_projection else "projections need a method that projects at random"

    def members(self, task: TaskView) -> Iterator[Member]:
        """Yield the (model, projection) pairs; a projection is drawn from the stream that a member's number names."""
        for model in _one_by_one(task, self.models):
            for seed in range(self.seeds):
                yield task.member(model, number=model * self.seeds + seed)

    def parts(self) -> Parts:
        """Return the models."""
        return Parts(self.models, members=self.size)


KINDS: dict[str, type[Any]] = {
    "independent": Independent,
    "dropout": Dropout,
    "lora": Lora,
    "checkpoints": Checkpoints,
    "projections": Projections,
}
SIZES = frozenset({"models", "masks", "adapters", "last", "seeds"})
"""Options that count members; all others make an ensemble another one."""
_LATER: dict[str, Any] = {"span": "half", "q_masks": None}
"""Options that came after runs were published, with their defaults: there they are no part of what a run is."""
_FORM = re.compile(r"\s*([A-Za-z][\w-]*)\s*(?:\((.*)\))?\s*", re.DOTALL)


def parse_ensemble(text: str) -> Any:
    """Return the ensemble written as ``kind(option=value, ...)``, for example ``dropout(models=5, masks=10)``.

    Raises
    ------
    UsageError
        If the text is not of that form, or names an unknown kind or option, or gives a wrong value; if there are more
        than a million members.
    """
    found = _FORM.fullmatch(text)
    if found is None:
        raise UsageError(f"Cannot read the ensemble {text!r}. Write KIND(option=value, ...), as in {_example()}.")
    kind, inside = found.group(1), found.group(2) or ""
    if kind not in KINDS:
        raise UnknownNameError("ensemble", kind, KINDS, f"Write it as in {_example()}.")
    given: dict[str, str] = {}
    for part in filter(None, (p.strip() for p in inside.split(","))):
        name, equals, value = (p.strip() for p in part.partition("="))
        if not equals or not name or not value:
            raise UsageError(f"Cannot read {part!r} in the ensemble {text!r}. Write option=value, as in {_example()}.")
        if name in given:
            raise UsageError(f"The ensemble {text!r} gives {name} twice. Give it once.")
        given[name] = value
    ensemble = make(KINDS[kind], f"ensemble {kind}", given)
    if ensemble.size > _MOST:
        raise OptionError(f"The ensemble {text!r} has more than {_MOST} members. Ask for fewer.")
    return ensemble


def _example() -> str:
    return "dropout(models=5, masks=10)"


def kind_of(ensemble: Ensemble) -> str:
    """Return the name that :func:`parse_ensemble` knows an ensemble by."""
    return next(name for name, cls in KINDS.items() if type(ensemble) is cls)


def recorded(ensemble: Ensemble) -> dict[str, Any]:
    """Return the options as a record holds them: a run made before an option came, and one made after, are the same."""
    return {n: value for n, value in values(ensemble).items() if n not in _LATER or value != _LATER[n]}


def format_ensemble(kind: str, options: Mapping[str, Any]) -> str:
    """Return the text that :func:`parse_ensemble` reads: sizes always, other options where not at their default.

    An ensemble that is not known here (a record of another version) is written with all its options.
    """
    shown = [f"{name}={value}" for name, value in without_defaults(kind, options).items()]
    return f"{kind}({', '.join(shown)})"


def without_defaults(kind: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that say what an ensemble is: sizes always, others where not at their default."""
    infos = describe(KINDS[kind]) if kind in KINDS else []
    defaults = {info.name: info.default for info in infos if info.name not in SIZES}
    names = [n for n in (info.name for info in infos) if n in options] + [n for n in options if n not in _names(infos)]
    return {n: options[n] for n in names if n not in defaults or options[n] != defaults[n]}


def _names(infos: Sequence[OptionInfo]) -> set[str]:
    return {info.name for info in infos}


def check_supported(ensemble: Ensemble, method: MemberMethod, task: TaskView) -> None:
    """Raise :class:`Declined` with the reason if the ensemble cannot wrap the method on the task."""
    reason = ensemble.supports(method, task)
    if reason is not None:
        raise Declined(reason)
