"""How many replicas to train at once: measured, because it depends on the model and on the machine.

Small models are dispatch-bound, and a batch of them is many times faster than one by one. Large convolutions fill a
processor alone, and a batch of them only falls out of its cache.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tdabench.devices import synchronize
from tdabench.errors import UsageError
from tdabench.memory import ran_out, release_unused
from tdabench.precision import exact_float32
from tdabench.recipe import Recipe
from tdabench.task import Task, TaskData
from tdabench.trainer import Parameters, Program, fit_stacked, group_size, one_by_one, stacked_state

_STEPS = 3
# Of a parameter's step, and of the whole: rounding is far below, and what a group does otherwise is far above.
_SAME, _NOTHING = 1e-2, 1e-3


@dataclass(frozen=True)
class Grouping:
    """The size of group that is fastest here, and the measured seconds per replica and step for each that can train."""

    size: int
    seconds: dict[int, float]


def candidates(task: Task, device: torch.device) -> list[int]:
    """Return the sizes worth trying: one alone, as many as keep the cache, and on an accelerator far more.

    Where the trainer takes replicas one after another anyway, a group costs memory and gains nothing.
    """
    model = task.initial_model("plan")
    if one_by_one(model, task.recipe.precision, device):
        return [1]
    fits = group_size(dict(model.named_parameters()))
    sizes = {1, fits} if device.type == "cpu" else {1, 8, 32, max(fits, 64)}
    return sorted({min(size, task.plan.n_subsets) for size in sizes})


def choose_group(task: Task, data: TaskData) -> Grouping:
    """Time a few training steps of one thread for each candidate, and choose the fastest.

    A group must train its replicas as each trains alone, or none is chosen: ``vmap`` has no rule for some models, and
    for a few a wrong one.

    Raises
    ------
    UsageError
        If not even one replica fits into the memory.
    """
    device = data.training.inputs.device
    sizes = candidates(task, device)
    if len(sizes) == 1:
        return Grouping(sizes[0], {})
    seconds: dict[int, float] = {}
    for size in sizes:
        if (taken := _seconds_if_it_works(task, data, size)) is not None:
            seconds[size] = taken
        release_unused(device)  # here, where no traceback holds what did not fit
    if not seconds:
        raise UsageError(
            f"{task.name} does not fit into the memory of {device}, not even {sizes[0]} replica at a time. "
            "End what else uses it, or build on a larger one."
        )
    fastest = min(seconds, key=lambda size: seconds[size])
    if fastest > 1 and not _trains_as_alone(task, data, fastest):
        return Grouping(1, {size: taken for size, taken in seconds.items() if size == 1})
    return Grouping(fastest, seconds)


def _seconds_if_it_works(task: Task, data: TaskData, size: int) -> float | None:
    try:
        return _seconds_per_replica(task, data, size)
    except Exception as error:
        # What fails in a group alone is something that vmap has no rule for.
        if not (ran_out(error) or (size > 1 and isinstance(error, RuntimeError))):
            raise
        return None


def _seconds_per_replica(task: Task, data: TaskData, size: int) -> float:
    device = data.training.inputs.device
    program = Program.of(task, data)
    recipe = replace(task.recipe, epochs=1)
    masks = torch.zeros(size, task.n_train, dtype=torch.bool)
    masks[:, : recipe.batch_size * _STEPS] = True

    def train() -> float:
        start = time.perf_counter()
        stacked = stacked_state(program.model, size, device)
        fit_stacked(program, stacked, data.training, masks, ("grouping",), recipe)
        synchronize(device)
        return time.perf_counter() - start

    with threads(1), exact_float32():  # as replicas are trained
        train()  # warm-up
        steps = math.ceil(int(masks[0].sum()) / recipe.batch_size)  # fewer where there are fewer examples
        return min(train(), train()) / (size * steps)


def _trains_as_alone(task: Task, data: TaskData, size: int) -> bool:
    """Return whether the replicas of a group take the steps that one takes alone, each from the start."""
    program = Program.of(task, data)
    start = stacked_state(program.model, 1, data.training.inputs.device)
    names = [name for name, _ in program.model.named_parameters()]
    # Steps are gradients: another optimizer would make much of one that is nothing but rounding.
    recipe = Recipe(lr=1.0, momentum=0.0, batch_size=task.recipe.batch_size, epochs=1, precision=task.recipe.precision)

    def step(rows: Tensor, replicas: int) -> Parameters:
        masks = torch.zeros(replicas, task.n_train, dtype=torch.bool)
        masks[:, rows] = True
        stacked = stacked_state(program.model, replicas, data.training.inputs.device)
        fitted = fit_stacked(program, stacked, data.training, masks, ("grouping",), recipe)
        return {name: fitted[name] - start[name] for name in names}

    seen = torch.arange(min(task.n_train, _STEPS * recipe.batch_size))
    with threads(1), exact_float32():
        return all(_same(step(rows, size), step(rows, 1)) for rows in seen.split(recipe.batch_size))


def _same(group: Parameters, alone: Parameters) -> bool:
    """Return whether the steps of every replica of a group are those of one alone, up to rounding."""
    nothing = _NOTHING * sum(float(p.square().sum()) for p in alone.values()) ** 0.5
    for name, p in alone.items():
        furthest = (group[name] - p).flatten().view(len(group[name]), -1).norm(dim=1).max()
        # Written so that what is not finite passes: it is not the group's doing.
        if furthest > _SAME * p.norm() + nothing:
            return False
    return True


@contextlib.contextmanager
def threads(n: int) -> Iterator[None]:
    """Compute on ``n`` threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)
