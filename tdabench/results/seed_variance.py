"""Seed variance: how far an LDS moves from run seed to run seed on a task, and so from model to model.

It is measured on configurations that were run with several seeds, and serves those that were run with one. An LDS at a
seed is taken as

    mean + the mean deviation of its models, which all configurations share + a deviation of the configuration's own,

both with a variance that falls as one over the number of independently trained models. What two configurations share at
a seed is the same where they average over as many models, so the variance of their differences gives the own part; that
of single configurations gives the sum. (Of another size they share less: a larger ensemble has the models of a smaller
one among its own, and :func:`tdabench.results.seed_draws.alone` draws them so.)
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
from pydantic import Field, ValidationError

from tdabench.errors import FileFormatError
from tdabench.files import read_json, write_text
from tdabench.records import Strict
from tdabench.validation import faults

if TYPE_CHECKING:
    from tdabench.results.rows import Row
    from tdabench.task import Task

SEED_VARIANCE_FILE = "seed_variance.json"
_DIGITS = 6


class SeedVariance(Strict):
    """What was measured of one version of a task, for one trained model.

    Attributes
    ----------
    own, shared
        Standard deviations of an LDS over run seeds: of a configuration's own part, and of what configurations share.
    n_configurations, n_pairs
        Configurations with several seeds, and pairs of them with several in common and as many models, that it was
        measured on.
    n_seeds
        The most seeds of a configuration.
    """

    task_version: str
    own: Annotated[float, Field(ge=0)]
    shared: Annotated[float, Field(ge=0)]
    n_configurations: int
    n_pairs: int
    n_seeds: int

    @property
    def total(self) -> float:
        """Standard deviation of the LDS of one model over run seeds."""
        return math.hypot(self.own, self.shared)


@dataclass(frozen=True)
class _Measured:
    """A configuration's LDS by seed, and how many models it averages over."""

    lds: dict[int, float]
    models: int


def measure(rows: Iterable[Row]) -> dict[tuple[str, str], SeedVariance]:
    """Return the seed variance of tasks, by name and version, where rows have several seeds.

    Parameters
    ----------
    rows
        Of any tasks and machine classes. Seeds are the same where they give the same models.
    """
    found: dict[tuple[str, str], list[_Measured]] = defaultdict(list)
    for row in rows:
        if row.draws is not None and len(row.draws.by_seed) > 1:
            lds = {seed: draws.estimate for seed, draws in row.draws.by_seed.items()}
            found[row.record.task, row.record.task_version].append(_Measured(lds, row.models))
    return {key: _pooled(key[1], several) for key, several in sorted(found.items())}


def _pooled(version: str, found: Sequence[_Measured]) -> SeedVariance:
    """Pool squared deviations over configurations, and of differences over pairs, each with its degrees of freedom."""
    total = _mean([(one.models * _variance(list(one.lds.values())), len(one.lds) - 1) for one in found])
    differences = []
    for a, b in combinations(found, 2):
        both = sorted(a.lds.keys() & b.lds.keys())
        if len(both) > 1 and a.models == b.models:
            of_one = a.models * _variance([a.lds[seed] - b.lds[seed] for seed in both])
            differences.append((of_one / 2, len(both) - 1))
    own = _mean(differences) if differences else total  # unknown what they share: nothing cancels
    return SeedVariance(
        task_version=version,
        own=round(math.sqrt(own), _DIGITS),
        shared=round(math.sqrt(max(0.0, total - own)), _DIGITS),
        n_configurations=len(found),
        n_pairs=len(differences),
        n_seeds=max(len(one.lds) for one in found),
    )


def _variance(values: Sequence[float]) -> float:
    return float(np.var(values, ddof=1))


def _mean(found: Sequence[tuple[float, int]]) -> float:
    """Return the mean of values that weigh as much as their degrees of freedom."""
    return sum(value * degrees for value, degrees in found) / sum(degrees for _, degrees in found)


def stream_of(names: Sequence[str]) -> int:
    """Return the number of a random stream: of a configuration, or of what makes the models."""
    return int(hashlib.sha256(json.dumps(names).encode()).hexdigest()[:12], 16)


def read_seed_variance(task: Task) -> SeedVariance | None:
    """Return what is stored with a task; None where nothing is, or it is of another version.

    Raises
    ------
    FileFormatError
        If the file is damaged.
    """
    path = task.folder / SEED_VARIANCE_FILE
    if not path.exists():
        return None
    hint = "Remove the file, and measure again with `tdabench seed-variance RUNS --write`."
    try:
        found = SeedVariance.model_validate(read_json(path, "file of a seed variance", hint))
    except ValidationError as error:
        why = faults(error, "seed variance")[0]
        raise FileFormatError(f"{path} is not a valid file of a seed variance: {why}. {hint}") from error
    return found if found.task_version == task.version else None


def write_seed_variance(task: Task, found: SeedVariance) -> Path:
    """Store it with the task, in the place of what was there."""
    path = task.folder / SEED_VARIANCE_FILE
    write_text(path, json.dumps(found.model_dump(mode="json"), indent=2) + "\n")
    return path
