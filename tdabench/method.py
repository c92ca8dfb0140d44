"""The method protocol: what an attribution algorithm implements.

A method is a class whose constructor stores options and does nothing else; make it a frozen dataclass whose fields
are made with :func:`tdabench.option`. There are two kinds.

:class:`MemberMethod`
    Defined per member (one set of parameters); any ensemble wraps it. Most methods are of this kind.
:class:`Method`
    Defined on the whole task; it trains what it needs and is not wrapped.

Scores are ``[n_queries, n_train]`` float32, finite; higher = having that example raises the target of that query.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from tdabench.authors import author_errors
from tdabench.errors import Declined, ScoresError, UsageError

if TYPE_CHECKING:
    from tdabench.member import Member
    from tdabench.sizes import Sizes
    from tdabench.view import TaskView
    from tdabench.work import Work


class Method:
    """A method on the whole task."""

    #: Distribution of another project that does the work; its version stands in the record.
    library: ClassVar[str | None] = None

    def supports(self, task: TaskView) -> str | None:
        """Return None, or the reason why the method cannot run on this task; the board shows it."""
        return None

    def work(self, sizes: Sizes) -> Work | None:
        """Return what the method does on a task, as counts, for `tdabench plan`; None where it does not say.

        Raises
        ------
        Declined
            If the sizes alone tell that the method cannot run.
        """
        return None

    def fit(self, task: TaskView) -> Any:
        """Do the work done once per training set; what is returned must be stored and is counted."""
        return None

    def attribute(self, task: TaskView, state: Any) -> Tensor:
        """Return the scores ``[n_queries, n_train]``; ``state`` is what :meth:`fit` returned."""
        raise NotImplementedError(f"{type(self).__name__} must define attribute(task, state).")


class MemberMethod:
    """A method defined per member."""

    #: Whether the method has a Q factor (forward passes only) that a q-only ensemble can average.
    uses_q: ClassVar[bool] = False

    #: Distribution of another project that does the work; its version stands in the record.
    library: ClassVar[str | None] = None

    #: Whether the method projects at random, from a stream that depends on the member's number.
    uses_projection: ClassVar[bool] = False

    def supports(self, task: TaskView) -> str | None:
        """Return None, or the reason why the method cannot run on this task; the board shows it."""
        return None

    def work(self, sizes: Sizes) -> Work | None:
        """Return what the method does at one member, as counts, for `tdabench plan`; None where it does not say.

        Raises
        ------
        Declined
            If the sizes alone tell that the method cannot run.
        """
        return None

    def fit(self, member: Member) -> Any:
        """Do the work done once per training set at a member; what is returned must be stored and is counted."""
        return None

    def attribute(self, member: Member, state: Any) -> Any:
        """Return the member's part: scores ``[n_queries, n_train]``, or whatever :meth:`combine` takes."""
        raise NotImplementedError(f"{type(self).__name__} must define attribute(member, state).")

    def combine(self, parts: Iterable[Any]) -> Tensor:
        """Return the ensemble's scores; by default the mean of the members' scores.

        ``parts`` is lazy: a member is fitted, attributed and forgotten before the next one starts.
        """
        return mean(parts)

    def member_scores(self, part: Any) -> Any:
        """Return the scores that a member would have alone, from its part; by default the part itself.

        Only for measuring how members agree. A method whose :meth:`combine` takes other parts than scores defines it;
        where the result is not scores, nothing is measured.
        """
        return part


def check_task(method: Method | MemberMethod, task: TaskView) -> None:
    """Raise :class:`Declined` with the reason if the method cannot run on the task.

    Raises
    ------
    UsageError
        If the method's ``supports`` fails, or what it returns is neither None nor a reason.
    """
    with author_errors(f"supports of {type(method).__name__}"):
        reason: object = method.supports(task)
    if reason is None:
        return
    if not isinstance(reason, str) or not reason.strip():
        raise UsageError(
            f"supports returns {reason!r}. Return None where the method can run, else a text that says why it cannot."
        )
    raise Declined(reason)


def mean(parts: Iterable[Any]) -> Any:
    """Return the running mean of tensors, or of tuples of tensors element by element; in float32 at least."""
    total: list[Tensor] = []
    count = 0
    single = True
    for part in parts:
        single = not isinstance(part, tuple)
        tensors = (part,) if single else part
        check_floats(*tensors)
        _check_alike(total, tensors)
        total = [a.add_(b) for a, b in zip(total, tensors, strict=True)] if count else [_to_add_to(t) for t in tensors]
        count += 1
        del part, tensors  # before the next one is made
    if count == 0:
        raise ValueError("An ensemble has at least one member.")
    means = tuple(t.div_(count) for t in total)
    return means[0] if single else means


def _check_alike(total: Sequence[Tensor], tensors: Sequence[Tensor]) -> None:
    """Refuse members' parts of other shapes than the first's: some would be added to it all the same, broadcast."""
    shapes, found = ([list(t.shape) for t in some] for some in (total, tensors))
    if total and shapes != found:
        raise ScoresError(f"A member's part has shapes {found}, the first member's {shapes}. Return the same for each.")


def _to_add_to(tensor: Tensor) -> Tensor:
    """Return a copy that a sum fits into: in bfloat16 it stops growing after some hundred members."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32), copy=True)


def check_floats(*parts: Any, who: str = "attribute") -> None:
    """Refuse what ``attribute``, or who else is named, may not return: anything but dense floating-point tensors."""
    for part in parts:
        if not isinstance(part, Tensor):
            raise ScoresError(f"{who} must return a torch.Tensor; got {type(part).__name__}.")
        if part.layout != torch.strided:
            raise ScoresError(f"{who} returns a tensor of layout {part.layout}. Return it dense: scores.to_dense().")
        if not part.is_floating_point():
            raise ScoresError(f"Scores have type {part.dtype}, expected floats. Return scores.float().")
