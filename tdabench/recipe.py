"""How a task's models are trained, and how many of them its ground truth takes."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from math import inf
from typing import Literal, get_args, get_type_hints

from tdabench.errors import UsageError


@dataclass(frozen=True)
class Recipe:
    """How a model of the task is trained.

    One permutation of the whole training set per epoch, filtered to the subset; the last batch of an epoch may be
    short. The loss is the mean over the batch.

    Attributes
    ----------
    lr
        Learning rate, times what the schedule and the warm-up say.
    momentum
        Of SGD; Adam's first decay rate.
    batch_size, epochs
        Examples a step, and passes over the subset.
    weight_decay
        Added to the gradient by SGD; taken off the matrices by AdamW.
    optimizer
        ``sgd`` or ``adamw``.
    beta2
        Adam's second decay rate; unused by SGD.
    schedule
        ``constant``, or ``linear``: times a line from 1 at the first step that would be 0 after the last.
    warmup
        Share of the steps, at the start, over which the rate rises linearly. With the falling line, which begins at the
        first step, too, the most is .95 to .96 of ``lr`` at a share of .05.
    precision
        ``bfloat16``: autocast where the processor is faster in it, else as ``float32``. What was used is recorded.
    """

    lr: float
    momentum: float
    batch_size: int
    epochs: int
    weight_decay: float = 0.0
    optimizer: Literal["sgd", "adamw"] = "sgd"
    beta2: float = 0.0
    schedule: Literal["constant", "linear"] = "constant"
    warmup: float = 0.0
    precision: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self) -> None:
        """Refuse what would silently train another recipe than is written."""
        for name, hint in get_type_hints(type(self)).items():
            known = get_args(hint)
            if known and getattr(self, name) not in known:
                raise UsageError(f"A recipe's {name} is {' or '.join(known)}, not {getattr(self, name)!r}.")
        for name in ("lr", "momentum", "weight_decay", "beta2", "warmup"):
            value = getattr(self, name)
            if not isinstance(value, int | float) or not 0 <= value < inf:
                raise UsageError(f"A recipe's {name} is a finite number of at least 0, not {value!r}.")
        for name in ("batch_size", "epochs"):
            check_whole(f"A recipe's {name}", getattr(self, name))
            if getattr(self, name) < 1:
                raise UsageError(f"A recipe's {name} is at least 1, not {getattr(self, name)}.")
        if self.warmup > 1:
            raise UsageError(f"A recipe's warmup is a share of its steps, at most 1, not {self.warmup}.")
        if self.optimizer == "adamw" and not 0 < self.beta2 < 1:
            raise UsageError(f"AdamW needs a second decay rate between 0 and 1, as beta2=0.999; this is {self.beta2}.")

    def rate(self, step: int, n_steps: int) -> float:
        """Return the learning rate of a step, counted from 0."""
        rise = min(1.0, (step + 1) / (self.warmup * n_steps)) if self.warmup else 1.0
        fall = 1.0 - step / n_steps if self.schedule == "linear" else 1.0
        return self.lr * rise * fall

    def facts(self) -> dict[str, float | int | str]:
        """Return the settings that versions and manifests hold.

        Settings that are at the default they had when they were added are left out: a new one must not change the
        version of a task that does not use it.
        """
        later = {f.name: f.default for f in fields(self)[_FIRST_RECIPE_FIELDS:]}
        return {k: v for k, v in asdict(self).items() if k not in later or v != later[k]}


_FIRST_RECIPE_FIELDS = 5


@dataclass(frozen=True)
class SubsetPlan:
    """How much retraining the ground truth consists of."""

    n_subsets: int = 100
    n_seeds: int = 10
    fraction: float = 0.5

    def __post_init__(self) -> None:
        """Refuse a plan whose subsets would all be the same, or of which there are none."""
        for name in ("n_subsets", "n_seeds"):
            check_whole(f"A plan's {name}", getattr(self, name))
        if self.n_subsets < 1 or self.n_seeds < 1:
            raise UsageError(f"A plan has at least one subset and seed, not {self.n_subsets} and {self.n_seeds}.")
        if not isinstance(self.fraction, int | float) or not 0 < self.fraction < 1:
            raise UsageError(
                f"A plan's fraction is the share of the training set that a subset keeps, between 0 and 1 as 0.5, "
                f"not {self.fraction!r}."
            )


def check_whole(what: str, value: object) -> None:
    """Refuse what is no whole number."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise UsageError(f"{what} is a whole number (int), not {value!r}.")
