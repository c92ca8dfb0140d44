"""Ensembles, seeds and outcomes in words, so that a cell can be read without a legend."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence

from tdabench.ensembles import KINDS
from tdabench.findings.curves import SERVING_TOLERANCE, TOLERANCE
from tdabench.findings.entries import INDEPENDENT, ONE_MODEL, Entry
from tdabench.findings.markdown import code, percent, plain
from tdabench.findings.savings import Outcome
from tdabench.findings.winners import OUTCOMES, Duel
from tdabench.formats import count
from tdabench.results.axes import AXES

COSTS = {"train": "training time", "serve": "serving time", "memory": "peak memory", "storage": "storage"}
"""Costs as they stand in a sentence, by the keys of :data:`~tdabench.results.axes.AXES`."""
SLACK = f"{percent(TOLERANCE)} ({COSTS['serve']}: {percent(SERVING_TOLERANCE)})"
"""Within what two costs count as equal."""
AXIS = {axis.key: axis for axis in AXES}
_COUNTED = {
    "dropout": ("masks", "dropout mask"),
    "lora": ("adapters", "LoRA adapter"),
    "checkpoints": ("last", "checkpoint"),
    "projections": ("seeds", "projection"),
}
_VARIANTS = {
    "scope=q-only": "Q factor only",
    "mask=per-sample": "one for every example",
    "span=whole": "whole training",
}


def ensemble(entry: Entry) -> str:
    """Name an entry's ensemble, as in ``20 dropout masks of one model (Q factor only)``."""
    record = entry.record.ensemble
    if record is None:
        return ONE_MODEL
    if entry.kind == INDEPENDENT:
        return f"{count(entry.models, 'independent model')}{_apart(entry)}"
    option, noun = _COUNTED.get(entry.kind, ("", ""))
    number = record.options.get(option)
    if not isinstance(number, int):
        return code(f"{entry.ensemble}{entry.variant}")
    models = ONE_MODEL if entry.models == 1 else f"each of {entry.models} models"
    return f"{count(number, noun)} of {models}{_variant(entry.flavour)}{_apart(entry)}"


def _apart(entry: Entry) -> str:
    return f" {plain(entry.variant)}" if entry.variant else ""


def flavour(text: str) -> str:
    """Name a kind of ensemble with its variant, as in ``dropout masks (Q factor only)``."""
    kind = text.partition("(")[0]
    if kind == INDEPENDENT:
        return "independent models"
    return f"{_COUNTED[kind][1]}s{_variant(text)}" if kind in _COUNTED else plain(text)


def order(text: str) -> tuple[int, str]:
    """Return what sorts kinds of ensemble with their variants as the kinds are declared; those not known come last."""
    known, kind = list(KINDS), text.partition("(")[0]
    return (known.index(kind) if kind in known else len(known)), text


def _variant(text: str) -> str:
    options = text.partition("(")[2].removesuffix(")")
    said = [_option(option) for option in options.split(", ") if option]
    return f" ({', '.join(said)})" if said else ""


def _option(text: str) -> str:
    """Name an option that is not at its default."""
    name, _, value = text.partition("=")
    if name == "epochs" and value.isdigit():
        return count(int(value), "epoch")
    if name == "q_masks" and value.isdigit():
        return f"Q factor under {count(int(value), 'mask')}"
    return f"rank {value}" if name == "rank" and value.isdigit() else _VARIANTS.get(text, plain(text))


def contender(entry: Entry) -> str:
    """Name an entry with its method."""
    return f"{code(method(entry))} with {ensemble(entry)}"


def method(entry: Entry) -> str:
    """Name an entry's method with what tells it apart."""
    return f"{entry.method}{entry.name.removeprefix(f'{entry.record.label}{entry.variant}')}"


def tally(duels: Iterable[Duel]) -> str:
    """Count outcomes, as in ``3 better, 1 level``."""
    counted = Counter(duel.outcome for duel in duels)
    return ", ".join(f"{counted[outcome]} {outcome}" for outcome in OUTCOMES if counted[outcome])


def rest(found: Counter[Outcome], words: Mapping[Outcome, str]) -> str:
    """Count outcomes of a claim in brackets, each after its words; nothing where there are none.

    >>> rest(Counter({"reached": 2, "cannot be told": 3}), {"cannot be told": "open:"})
    ' (open: 3)'
    """
    said = [f"{text} {found[outcome]}" for outcome, text in words.items() if found[outcome]]
    return f" ({'; '.join(said)})" if said else ""


def several(pairs: Mapping[tuple[str, str], Collection[object]]) -> str:
    """Say how pairs of a task and a method are counted of which some have several outcomes; nothing where none has.

    >>> several({("digits-mlp", "trak"): {"reached"}})
    ''
    """
    if all(len(outcomes) <= 1 for outcomes in pairs.values()):
        return ""
    return " A pair counts once for each outcome among its machine classes, options and versions of code and libraries."


def listed(names: Sequence[str]) -> str:
    """Join names as a sentence does.

    >>> listed(["a"]), listed(["a", "b", "c"])
    ('a', 'a, b and c')
    """
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))
