"""The influence solvers and the heavy tasks, made brief; found by reference as ``brief_solvers.py:NAME``.

What they hold at once depends neither on how many training examples there are nor on how many steps they take. So a
brief task has few training examples and all queries, and a brief solver multiplies the whole of a batch by as many
vectors as share a pass once, and two examples by two vectors from then on.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

import tdabench
from tdabench.baselines.astra import Astra
from tdabench.baselines.influence.arnoldi import ArnoldiInfluence
from tdabench.baselines.influence.conjugate_gradient import ConjugateGradientInfluence
from tdabench.baselines.influence.lissa import LissaInfluence
from tdabench.hessian import Hessian
from tdabench.registry import find_task

N_TRAIN = 600
_whole: dict[str, tdabench.TaskData] = {}
"""Held, since a process that measures the whole task holds it."""


def _load(name: str, folder: Path | None) -> tdabench.TaskData:
    data = _whole[name] = find_task(name).data(folder)
    few = data.training.inputs[:N_TRAIN].clone(), data.training.labels[:N_TRAIN].clone()
    return tdabench.TaskData(tdabench.Examples(*few, data.training.split), data.queries)


def _brief(name: str, data_sha256: str) -> tdabench.Task:
    task = find_task(name)
    recipe = replace(task.recipe, epochs=1)
    load = partial(_load, name)
    return replace(task, name=f"{name}-brief", n_train=N_TRAIN, load_data=load, data_sha256=data_sha256, recipe=recipe)


CIFAR2 = _brief("cifar2-resnet9-small", "495f11431b7c2fa52209e44b6fea913dbe0eccb5175fc00d41c60b5cd0ae3f59")
MAESTRO = _brief("maestro-music-transformer-small", "1b22afaf2c8e6b0b418aeacdff8cf9ca20fac826ce0a2b0a4e33a73b3c6dfeca")
SHAKESPEARE = _brief("shakespeare-nanogpt-small", "75a64e0017b88da554043a883d24d92fd078fb9a69cc6c9cc98e333df1ca58de")


@contextlib.contextmanager
def _brief_products() -> Iterator[None]:
    """Multiply with a whole batch once, with next to nothing of it from then on, and take the identity for the product.

    So solvers converge, at one step and at any.
    """
    whole = Hessian._times
    seen = False

    def brief(self: Hessian, vectors: Tensor) -> Tensor:
        nonlocal seen
        n, m = (2, 2) if seen else (2 * len(next(self._batches())), max(2, self._vectors_at_once))
        seen = True
        whole(self.on(self.rows[:n]), vectors[:m])
        return vectors.clone()

    with mock.patch.object(Hessian, "_times", brief):
        yield


class Brief:
    """Runs both phases of a solver with brief products."""

    def fit(self, member: tdabench.Member) -> Any:
        with _brief_products():
            return super().fit(member)  # type: ignore[misc]

    def attribute(self, member: tdabench.Member, state: Any) -> torch.Tensor:
        with _brief_products():
            return super().attribute(member, state)  # type: ignore[misc]


@dataclass(frozen=True)
class BriefArnoldi(Brief, ArnoldiInfluence):
    """As many directions as are tuned."""


@dataclass(frozen=True)
class BriefConjugateGradient(Brief, ConjugateGradientInfluence):
    """As many iterations as are told."""


@dataclass(frozen=True)
class BriefLissa(Brief, LissaInfluence):
    """As many steps as are told."""


@dataclass(frozen=True)
class BriefAstra(Brief, Astra):
    """As many steps as are told."""
