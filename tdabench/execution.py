"""Executing a method, wrapped in an ensemble, on a task: the loop that the meter watches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from tdabench import lds
from tdabench.correlations import CorrelationMeter
from tdabench.ensembles import Ensemble, Independent, check_supported
from tdabench.errors import Declined, ScoresError
from tdabench.member import Member
from tdabench.meter import ATTRIBUTE, FIT
from tdabench.method import MemberMethod, Method, check_floats
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
    """
    with task.meter.phase(HARNESS):  # whatever no other phase is charged for
        return _execute(method, ensemble, task, on_member)


def _execute(
    method: Method | MemberMethod, ensemble: Ensemble | None, task: TaskView, on_member: Callable[[int, int], None]
) -> Tensor:
    reason = method.supports(task)
    if reason is not None:
        raise Declined(reason)
    if isinstance(method, MemberMethod):
        scores = _per_member(method, ensemble or Independent(), task, on_member)
    else:
        with task.meter.phase(FIT):
            state = method.fit(task)
        task.meter.keep([state, vars(method)])
        with task.meter.phase(ATTRIBUTE):
            scores = method.attribute(task, state)
    return check_scores(scores, task.n_queries, task.n_train)


def _per_member(method: MemberMethod, ensemble: Ensemble, task: TaskView, on_member: Callable[[int, int], None]) -> Any:
    check_supported(ensemble, method, task)
    with task.meter.phase(FIT):
        members = ensemble.members(task)
    if len(members) > 1:
        task.meter.correlations = CorrelationMeter(task.n_queries, task.n_train)
    known = {p.untyped_storage().data_ptr() for m in members for p in (*m.parameters.values(), *m.statistics.values())}

    def parts() -> Iterator[Any]:
        for done, member in enumerate(members):
            yield _part(method, member, known)
            on_member(done + 1, len(members))

    with task.meter.phase(ATTRIBUTE):
        return method.combine(parts())


def _part(method: MemberMethod, member: Member, known: set[int]) -> Any:
    with member.task.meter.phase(FIT):
        state = method.fit(member)
    meter = member.task.meter
    meter.keep(state, set(known))
    part = method.attribute(member, state)
    if meter.correlations is not None:
        with meter.stopwatch.phase(HARNESS):  # neither the method's time nor its doing
            meter.correlations.add(member.model_number, method.member_scores(part))
    return part


def check_scores(scores: Any, n_queries: int, n_train: int) -> Tensor:
    """Return scores as float32 on the CPU, or say what is wrong with them."""
    check_floats(scores)
    if scores.shape == (n_train, n_queries) and n_train != n_queries:
        raise ScoresError(
            f"Scores must have shape [n_queries, n_train] = [{n_queries}, {n_train}]; got the transpose, "
            f"{list(scores.shape)}. Return scores.T."
        )
    scores = scores.detach().to("cpu", torch.float32).contiguous()
    lds.check_scores(scores.numpy(), n_train=n_train, n_queries=n_queries)
    return scores
