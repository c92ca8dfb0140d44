"""Executing a method, wrapped in an ensemble, on a task: the loop that the meter watches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from tdabench import lds
from tdabench.correlations import CorrelationMeter
from tdabench.ensembles import Ensemble, Independent, check_supported
from tdabench.errors import ScoresError, UsageError
from tdabench.member import Member, forget_masks
from tdabench.meter import ATTRIBUTE, FIT
from tdabench.method import MemberMethod, Method, check_floats, check_task
from tdabench.stopwatch import HARNESS
from tdabench.view import TaskView


def execute(
    method: Method | MemberMethod,
    ensemble: Ensemble | None,
    task: TaskView,
    on_member: Callable[[int, int], None] = lambda done, total: None,
) -> Tensor:
    """Return the checked scores ``[n_queries, n_train]`` float32 on the CPU; costs are in ``task.meter``.

    Raises
    ------
    Declined
        If the method or the ensemble does not support the task.
    ScoresError
        If the scores have the wrong shape or type, or are not finite.
    UsageError
        If the method writes to data or to a member's parameters, or keeps state on itself.
    """
    with task.meter.phase(HARNESS):  # whatever no other phase is charged for
        return _execute(method, ensemble, task, on_member)


def _execute(
    method: Method | MemberMethod, ensemble: Ensemble | None, task: TaskView, on_member: Callable[[int, int], None]
) -> Tensor:
    check_task(method, task)
    if isinstance(method, MemberMethod):
        scores, who = _per_member(method, ensemble or Independent(), task, on_member), "combine"
    else:
        before = set(vars(method))
        with task.meter.phase(FIT):
            state = method.fit(task)
        task.meter.keep(_kept(method, state, before), _charged(task))
        with task.meter.phase(ATTRIBUTE):
            scores, who = method.attribute(task, state), "attribute"
    task.check_data()
    return checked_scores(scores, task.n_queries, task.n_train, who)


def _per_member(method: MemberMethod, ensemble: Ensemble, task: TaskView, on_member: Callable[[int, int], None]) -> Any:
    check_supported(ensemble, method, task)
    total = ensemble.parts().members
    if total > 1:
        task.meter.correlations = CorrelationMeter(task.n_queries, task.n_train)
    members = ensemble.members(task)

    def parts() -> Iterator[Any]:
        for done in range(1, total + 1):
            yield _part(method, members, task)
            on_member(done, total)

    with task.meter.phase(ATTRIBUTE):
        return method.combine(parts())


def _part(method: MemberMethod, members: Iterator[Member], task: TaskView) -> Any:
    """Make the next member, and return its part; the member goes with this call."""
    meter = task.meter
    with meter.phase(FIT):
        member = next(members)
        written, before = _versions(member), set(vars(method))
        state = method.fit(member)
    with meter.stopwatch.phase(HARNESS):
        meter.keep(_kept(method, state, before), _charged(task))
    part = method.attribute(member, state)
    if _versions(member) != written:
        raise UsageError(
            f"The parameters of model {member.model_number} were changed in place while the method ran; what is asked"
            " of the model later would see other ones. Clone a tensor before writing to it."
        )
    forget_masks()
    if meter.correlations is not None:
        with meter.stopwatch.phase(HARNESS):  # neither the method's time nor its doing
            meter.correlations.add(member.model_number, method.member_scores(part))
    return part


def _versions(member: Member) -> list[int]:
    """Return how often each tensor of a member was written to, as torch counts it."""
    return [tensor._version for tensor in (*member.parameters.values(), *member.statistics.values())]


def _kept(method: Method | MemberMethod, state: Any, before: set[str]) -> list[Any]:
    """Return what fit leaves for serving: what it returned, and what cached properties of the method hold.

    Raises
    ------
    UsageError
        If it left anything else on the method, where it would be in no storage.
    """
    cached = {n for c in type(method).__mro__ for n, made in vars(c).items() if isinstance(made, cached_property)}
    hidden = sorted(vars(method).keys() - before - cached)
    if hidden:
        raise UsageError(
            f"{type(method).__name__} keeps {', '.join(hidden)} on itself. Return from fit what attribute needs: only"
            " that is counted as storage."
        )
    return [state, [vars(method)[name] for name in sorted(vars(method).keys() & cached)]]


def _charged(task: TaskView) -> set[int]:
    """Return where the storages are that are charged with the models they were loaded from."""
    return {storage.data_ptr() for storage in task.loaded()}


def checked_scores(scores: Any, n_queries: int, n_train: int, who: str = "attribute") -> Tensor:
    """Return scores, of the method's function ``who``, as float32 on the CPU, or say what is wrong with them."""
    check_floats(scores, who=who)
    if scores.shape == (n_train, n_queries) and n_train != n_queries:
        raise ScoresError(
            f"Scores must have shape [n_queries, n_train] = [{n_queries}, {n_train}]; got the transpose, "
            f"{list(scores.shape)}. Return scores.T."
        )
    scores = scores.detach().to("cpu", torch.float32).contiguous()
    lds.check_scores(scores.numpy(), n_train=n_train, n_queries=n_queries)
    return scores
