"""What training costs on a task: every model at the mean measured time, so that one slow training decides nothing.

All models of a task are trained by the same recipe, so they are the same work; their measured times differ by what else
the machine did. Adapters are priced as measured, and so are banks of models, which are trained together. A training
that gives checkpoints copies them beside that work, which takes a few per cent at most however many they are: such
trainings have one price of their own, their mean, which is never less than that of one without.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import fmean

from tdabench.records import Costs, Record

MODEL = "model-"
"""How the names of trained models begin; those of adapters and of banks do not."""
_RUNS = "checkpoints"
"""The kind of ensemble that trains for checkpoints; its trainings have the names of models."""


@dataclass(frozen=True)
class Price:
    """What training one model costs on a task and a machine class.

    Attributes
    ----------
    seconds
        Mean over the measured models.
    n
        How many models that are.
    copied
        Mean over those whose training gives checkpoints, but at least ``seconds``; ``seconds`` where there are none.
    """

    seconds: float
    n: int
    copied: float


def price_of(records: Iterable[Record]) -> Price | None:
    """Return the price of a model; None where no run tells.

    A model that several runs used counts once.
    """
    plain: dict[str, list[float]] = defaultdict(list)
    copied: dict[str, list[float]] = defaultdict(list)
    for record in records:
        for name, training in record.trainings.items():
            if name.startswith(MODEL):
                (copied if _for_checkpoints(record) else plain)[name].append(training.wall_s)
    if not plain:
        return None
    seconds = fmean(map(fmean, plain.values()))
    return Price(seconds, len(plain), max([seconds, *([fmean(map(fmean, copied.values()))] if copied else [])]))


def priced(record: Record, price: Price | None) -> Costs | None:
    """Return a run's costs, its models at their price; None where nothing was measured.

    As measured where no price is known.
    """
    if price is None or record.costs is None or not record.trainings:
        return record.costs
    costs = record.costs
    model = price.copied if _for_checkpoints(record) else price.seconds
    train = sum(model if name.startswith(MODEL) else t.wall_s for name, t in record.trainings.items())
    given = price.seconds if costs.extra_train_s < costs.train_s else 0.0
    return costs.model_copy(update={"train_s": train, "extra_train_s": train - given})


def _for_checkpoints(record: Record) -> bool:
    """Return whether a run's models were trained for checkpoints: by its ensemble, or by the method itself.

    Such a training has a model's name, but whoever has a trained model is charged with all of it.
    """
    own = record.costs is not None and 0 < record.costs.train_s <= record.costs.extra_train_s
    return own or (record.ensemble is not None and record.ensemble.kind == _RUNS)
