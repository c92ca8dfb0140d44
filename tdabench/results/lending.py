"""Lending: run seeds that another machine class measured, where it computes the same scores, bit for bit.

A cost is a machine's own, an LDS is not: it follows from the scores, and these from code, options and seed, as far as
two processors round alike. Where they do, a seed that one of them has run need not be run on the other for its LDS to
be known. Whether they do shows in runs that both have made: of the same task, method and kind of ensemble, all must
have equal scores, and there must be one at least. What is lent counts for the LDS, and for what else follows from
scores and members; never for a cost.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace

from tdabench.records import Record
from tdabench.results.runs import Run, by_configuration, computation

_Kind = tuple[str, ...]
"""A task, its version, a method and a kind of ensemble, on a machine class and beside another one."""


def lend(runs: Sequence[Run], lenders: Iterable[Run]) -> list[Run]:
    """Return those of ``lenders`` that may stand beside ``runs``, each with the machine class that it is lent to.

    Parameters
    ----------
    runs
        Evaluated runs. Only a configuration with an LDS of its own is lent seeds, and of those it lacks; each once.
    lenders
        Evaluated runs of other machine classes; others are of no use.
    """
    offered = _by_computation(lenders)
    own = [[run for run in group if run.lds is not None] for group in by_configuration(runs)]
    same, other = _agreements(own, offered)
    lent = []
    for group in own:
        taken = {run.record.seed for run in group}
        for lender in offered.get(computation(group[0].record), ()) if group else ():
            kind = _kind(group[0].record, lender.record)
            if lender.record.seed not in taken and same[kind] and not other[kind]:
                taken.add(lender.record.seed)
                lent.append(replace(lender, lent_to=group[0].record.machine.machine_class))
    return lent


def agreement(runs: Iterable[Run], lenders: Iterable[Run]) -> tuple[int, int]:
    """Return how many runs both have made with equal scores, and how many with others."""
    own = [[run for run in group if run.lds is not None] for group in by_configuration(runs)]
    same, other = _agreements(own, _by_computation(lenders))
    return same.total(), other.total()


def _by_computation(lenders: Iterable[Run]) -> dict[tuple[str, ...], list[Run]]:
    found: dict[tuple[str, ...], list[Run]] = defaultdict(list)
    for group in by_configuration(lenders):
        found[computation(group[0].record)] += [run for run in group if run.lds is not None]
    return found


def _agreements(
    own: Iterable[Sequence[Run]], offered: dict[tuple[str, ...], list[Run]]
) -> tuple[Counter[_Kind], Counter[_Kind]]:
    """Count the runs that both have made, with equal scores and with others."""
    same: Counter[_Kind] = Counter()
    other: Counter[_Kind] = Counter()
    for run in (run for group in own for run in group):
        for lender in offered.get(computation(run.record), ()):
            if lender.record.seed == run.record.seed and _apart(run.record, lender.record):
                counted = same if run.record.scores == lender.record.scores else other
                counted[_kind(run.record, lender.record)] += 1
    return same, other


def _apart(a: Record, b: Record) -> bool:
    return a.machine.machine_class != b.machine.machine_class


def _kind(own: Record, lender: Record) -> _Kind:
    ensemble = "" if own.ensemble is None else own.ensemble.kind
    classes = own.machine.machine_class, lender.machine.machine_class
    return own.task, own.task_version, own.method, own.provenance.method_sha256, ensemble, *classes
