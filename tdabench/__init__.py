"""tdabench: benchmark suite and leaderboard harness for training data attribution.

The names below are the public API. They load on first use: ``import tdabench`` imports neither torch nor pandas nor
scipy, because the command line must answer at once.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from tdabench._version import __version__

if TYPE_CHECKING:
    from tdabench.budgets import block_bytes
    from tdabench.dropout import SequenceDropout
    from tdabench.errors import DataError, Declined, OptionError, TdabenchError, UsageError
    from tdabench.examples import Batch, Examples
    from tdabench.fisher import with_sampled_labels
    from tdabench.kronecker import Eigenbasis, eigenbases, solved_dot
    from tdabench.member import Member
    from tdabench.method import MemberMethod, Method, mean
    from tdabench.notebook import open_task, score
    from tdabench.options import option
    from tdabench.projections import kronecker_sketch, masked_sketch
    from tdabench.recipe import Recipe, SubsetPlan
    from tdabench.seeds import derive_seed, generator
    from tdabench.sizes import Layer, Sizes
    from tdabench.targets import (
        LOG_ODDS,
        MEAN_LOG_PROBABILITY,
        Target,
        cross_entropy,
        log_odds,
        mean_log_probability,
        token_cross_entropy,
    )
    from tdabench.task import Task, TaskData
    from tdabench.view import TaskView
    from tdabench.work import Counts, Work

_HOME = {
    "tdabench.budgets": ("block_bytes",),
    "tdabench.dropout": ("SequenceDropout",),
    "tdabench.errors": ("DataError", "Declined", "OptionError", "TdabenchError", "UsageError"),
    "tdabench.examples": ("Batch", "Examples"),
    "tdabench.fisher": ("with_sampled_labels",),
    "tdabench.kronecker": ("Eigenbasis", "eigenbases", "solved_dot"),
    "tdabench.member": ("Member",),
    "tdabench.method": ("MemberMethod", "Method", "mean"),
    "tdabench.notebook": ("open_task", "score"),
    "tdabench.options": ("option",),
    "tdabench.projections": ("kronecker_sketch", "masked_sketch"),
    "tdabench.recipe": ("Recipe", "SubsetPlan"),
    "tdabench.seeds": ("derive_seed", "generator"),
    "tdabench.sizes": ("Layer", "Sizes"),
    "tdabench.targets": (
        "LOG_ODDS",
        "MEAN_LOG_PROBABILITY",
        "Target",
        "cross_entropy",
        "log_odds",
        "mean_log_probability",
        "token_cross_entropy",
    ),
    "tdabench.task": ("Task", "TaskData"),
    "tdabench.view": ("TaskView",),
    "tdabench.work": ("Counts", "Work"),
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}

__all__ = [
    "LOG_ODDS",
    "MEAN_LOG_PROBABILITY",
    "Batch",
    "Counts",
    "DataError",
    "Declined",
    "Eigenbasis",
    "Examples",
    "Layer",
    "Member",
    "MemberMethod",
    "Method",
    "OptionError",
    "Recipe",
    "SequenceDropout",
    "Sizes",
    "SubsetPlan",
    "Target",
    "Task",
    "TaskData",
    "TaskView",
    "TdabenchError",
    "UsageError",
    "Work",
    "__version__",
    "block_bytes",
    "cross_entropy",
    "derive_seed",
    "eigenbases",
    "generator",
    "kronecker_sketch",
    "log_odds",
    "masked_sketch",
    "mean",
    "mean_log_probability",
    "open_task",
    "option",
    "score",
    "solved_dot",
    "token_cross_entropy",
    "with_sampled_labels",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'tdabench' has no attribute {name!r}")
    value = getattr(importlib.import_module(_MODULE_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
