"""What training costs on a task: every model at the median measured time, so that one slow training decides nothing.

All models of a task are trained by the same recipe, so they are the same work; their measured times differ by what else
the machine did. Where that is seen of some trainings, the others tell the price. Adapters are priced as measured, and
so are banks of models, which are trained together. A training that gives checkpoints has the price of one that gives
none: copying them takes some 3 %, less than the same training differs by from hour to hour.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median

from tdabench.model_names import is_model
from tdabench.records import Costs, Record

_RUNS = "checkpoints"
"""The kind of ensemble that trains for checkpoints; its trainings have the names of models."""
_Model = tuple[str, str | None]
"""Its name, and the version of torch that it was trained with."""


@dataclass(frozen=True)
class Price:
    """What training one model costs on a task and a machine class.

    Attributes
    ----------
    seconds
        Median over the models that tell it.
    n
        How many models that are.
    """

    seconds: float
    n: int


def price_of(records: Iterable[Record]) -> Price | None:
    """Return the price of a model; None where no run tells.

    A model that several runs used counts once; under another version of torch one of the same name is another model.
    Trainings that give checkpoints do not count, nor do those on a busy machine, unless all were.
    """
    times: dict[bool, dict[_Model, list[float]]] = {busy: defaultdict(list) for busy in (False, True)}
    for record in records:
        if not _for_checkpoints(record):
            waited = record.busy()
            for name, training in record.trainings.items():
                if is_model(name):
                    model = name, record.versions.get("torch")
                    times[f"training {name}" in waited][model].append(training.wall_s)
    found = times[False] or times[True]
    return Price(median(map(median, found.values())), len(found)) if found else None


def priced(record: Record, price: Price | None) -> Costs | None:
    """Return a run's costs, its models at their price; None where nothing was measured.

    As measured where no price is known.
    """
    if price is None or record.costs is None or not record.trainings:
        return record.costs
    costs = record.costs
    train = sum(price.seconds if is_model(name) else t.wall_s for name, t in record.trainings.items())
    given = price.seconds if costs.extra_train_s < costs.train_s else 0.0
    return costs.model_copy(update={"train_s": train, "extra_train_s": train - given})


def _for_checkpoints(record: Record) -> bool:
    """Return whether a run's models were trained for checkpoints: by its ensemble, or by the method itself.

    Such a training has a model's name, but whoever has a trained model is charged with all of it.
    """
    own = record.costs is not None and 0 < record.costs.train_s <= record.costs.extra_train_s
    return own or (record.ensemble is not None and record.ensemble.kind == _RUNS)
