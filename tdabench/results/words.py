"""What board and findings say alike: of machines and of run seeds, and what tells names apart."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import chain
from itertools import count as numbers

from tdabench.formats import count, format_bytes
from tdabench.records import Machine


def seeds_used(configurations: Sequence[tuple[Collection[int], bool]]) -> str:
    """Say how many run seeds configurations have, and whether intervals hold the variation between trained models.

    Parameters
    ----------
    configurations
        The run seeds of each, and whether its interval holds that variation.
    """
    several = [seeds for seeds, _ in configurations if len(seeds) > 1]
    single = [known for seeds, known in configurations if len(seeds) == 1]
    if not several:
        return f"Every configuration was run with one seed{_of_one_seed(single)}"
    known = ", ".join(map(str, sorted(set().union(*several))))
    if len({frozenset(seeds) for seeds in several}) > 1:
        known = " to ".join(map(str, sorted({min(map(len, several)), max(map(len, several))}))) + " each"
    if not single:
        return (
            f"Every configuration was run with several seeds ({known}), so intervals hold the variation between trained"
            " models."
        )
    others = _measured(single) if any(single) else "none: what rests on them may be luck."
    return (
        f"{len(several)} of {len(configurations)} configurations were run with several seeds ({known}), so their"
        f" intervals hold the variation between trained models. Those of the others, run with one seed, hold {others}"
    )


def _of_one_seed(known: Sequence[bool]) -> str:
    """Go on where no configuration has several seeds."""
    if any(known):
        return f". Of the variation between trained models, intervals hold {_measured(known)}"
    return ", so intervals hold no variation between trained models: other models may give another result."


def _measured(known: Sequence[bool]) -> str:
    """Say what intervals of one seed hold, some of which know how far an LDS moves from seed to seed."""
    without = known.count(False)
    rest = f"; those of {count(without, 'configuration')} none: what rests on these may be luck" if without else ""
    return f"what the task's seed variance says{rest}."


def describe_machine(machine: Machine) -> str:
    """Name a machine class for people: processor, threads, device; memory budget and precision if not the default."""
    device = "CPU only" if machine.device == "cpu" else (machine.device_name or machine.device)
    threads = "1 thread" if machine.threads == 1 else f"{machine.threads} threads"
    budget = "" if machine.budget_bytes is None else f", memory budget {format_bytes(machine.budget_bytes)}"
    products = "" if machine.product_precision is None else f", products in {machine.product_precision}"
    return f"{machine.cpu}, {threads}, {device}{budget}{products}"


def apart(names: Sequence[str], facts: Sequence[Mapping[str, str]]) -> list[str]:
    """Return, for each of several that share a name, the facts in which they differ, in brackets; else nothing."""
    sharing: dict[str, list[Mapping[str, str]]] = defaultdict(list)
    for name, own in zip(names, facts, strict=True):
        sharing[name].append(own)
    told = []
    for name, own in zip(names, facts, strict=True):
        said = [v for k, v in own.items() if any(other.get(k) != v for other in sharing[name])]
        told.append(f" ({', '.join(said)})" if said else "")
    return told


def unique(slugs: Iterable[str]) -> list[str]:
    """Return slugs, with a number where one was there before: what was written in other signs may be the same slug.

    >>> unique(["a", "b", "a"])
    ['a', 'b', 'a--2']
    """
    taken: dict[str, None] = {}
    for slug in slugs:
        names = chain([slug], (f"{slug}--{n}" for n in numbers(2)))
        taken[next(name for name in names if name not in taken)] = None
    return list(taken)
