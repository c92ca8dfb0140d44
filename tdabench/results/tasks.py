"""What results say of the task that they are of."""

from __future__ import annotations

from dataclasses import dataclass

from tdabench.results.seed_variance import SeedVariance


@dataclass(frozen=True)
class TaskInfo:
    """What the board says about a task.

    Attributes
    ----------
    n_queries
        Queries that the LDS is averaged over.
    n_subsets, n_seeds
        Retrainings behind the ground truth: subsets times seeds; 0 subsets where there is none.
    ceiling
        LDS that exact predictions would have; None where it cannot be estimated.
    reliability
        Reliability of the ground truth's mean over all seeds, in [0, 1], estimated from halves of them; None likewise.
    left_out
        What a suite did not run on the task, and why.
    no_score
        Why runs of the task have no LDS; empty where it has ground truth.
    seed_variance
        How far an LDS moves from run seed to run seed; None where nothing is stored with this version of the task.
    adapter_ranks
        The highest rank that a LoRA adapter can have, for each layer of the model that takes one; empty if not known.
    """

    name: str
    title: str
    version: str
    description: str
    n_train: int
    n_queries: int
    n_subsets: int
    n_seeds: int
    ceiling: float | None = None
    reliability: float | None = None
    left_out: tuple[tuple[str, str], ...] = ()
    no_score: str = ""
    adapter_ranks: tuple[int, ...] = ()
    seed_variance: SeedVariance | None = None

    @property
    def has_truth(self) -> bool:
        """Whether runs of the task can have an LDS."""
        return self.n_subsets > 0
