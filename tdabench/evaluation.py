"""Evaluation: what the scores of a run are worth against a task's ground truth.

Pure functions of arrays: the same scores and ground truth give the same numbers, to the last bit on one machine.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, fields
from functools import lru_cache
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from tdabench.bootstrap import RESAMPLE_SEED, Draws, RankedTruth, Resamples, bootstrap_lds, draw, percentile_interval
from tdabench.ceiling import Ceiling, noise_ceiling
from tdabench.errors import GroundTruthError, OtherGroundTruthError, UsageError
from tdabench.evidence import Evidence, whole
from tdabench.lds import average_ranks, check_scores, constant_columns, subset_sums
from tdabench.mislabels import mislabel_auroc, suspicion_ranks

Queries = Literal["reported", "tuning", "all"]

LEVEL = 0.95
FEW = 20
"""Of fewer subsets or queries, intervals held the truth in 81 to 96 of 100 simulated samples, by what these have in
common; of as many or more, in 89 to 98 (``pytest -s tests/test_bootstrap.py -k few``)."""


class Truth(Protocol):
    """The ground truth of a task, as far as evaluation needs it."""

    @property
    def masks(self) -> npt.NDArray[np.bool_]:
        """``[n_subsets, n_train]``, True where the example is kept."""

    @property
    def outputs(self) -> npt.NDArray[np.float32]:
        """``[n_subsets, n_seeds, n_queries]``, the target after retraining; higher is better."""

    @property
    def reported(self) -> npt.NDArray[np.integer]:
        """Indices of the queries whose LDS is reported."""

    @property
    def tuning(self) -> npt.NDArray[np.integer]:
        """Indices of the queries that options are tuned on."""

    @property
    def mislabelled(self) -> npt.NDArray[np.bool_] | None:
        """``[n_train]``, training examples whose label is wrong; None where that is not known."""


@dataclass(frozen=True)
class Evaluation:
    """The quality of one run on one task."""

    lds: float
    """Mean over queries; a constant query counts 0."""
    low: float
    """Lower end of the 95 % interval over subsets and queries."""
    high: float
    n_queries: int
    n_subsets: int
    constant_queries: int
    """Queries whose summed scores, or outputs, do not vary over subsets."""
    negated_better: bool
    """The whole interval is below 0. An LDS just below 0 is what random scores get half of the time."""
    above_ceiling: bool
    """The LDS exceeds the ceiling, if by chance or not: exact predictions do so in about half of all cases."""
    ceiling: float | None
    """The LDS that exact predictions would have; None where it cannot be known."""
    basis: str
    """Hash of the ground truth, the queries and the resamples; evaluations with the same basis can be compared."""
    mislabel_auroc: float | None
    """How well the scores find wrong labels (:mod:`tdabench.mislabels`); None where these are not known."""
    draws: Draws = field(repr=False, compare=False)

    def warnings(self) -> list[str]:
        """Say in plain words what a reader of the LDS must know."""
        found = []
        few = [f"{n} {what}" for n, what in ((self.n_subsets, "subsets"), (self.n_queries, "queries")) if n < FEW]
        if few:
            found.append(f"Its interval may be too narrow: of {' and '.join(few)}, where {FEW} or more would do.")
        if self.constant_queries:
            found.append(
                f"{self.constant_queries} of {self.n_queries} queries have scores or outputs that do not vary over"
                " subsets; each counts 0."
            )
        if self.negated_better:
            found.append(
                f"The negated scores do better (LDS {self.lds:.3f}, 95 % interval {self.low:.3f} to {self.high:.3f})."
                " A score must be higher where having the example raises the output: check the sign."
            )
        if self.ceiling is None:
            found.append("The noise ceiling cannot be known from one seed per subset.")
        elif self.above_ceiling:
            found.append(
                f"The LDS {self.lds:.3f} (95 % interval {self.low:.3f} to {self.high:.3f}) exceeds the noise ceiling"
                f" {self.ceiling:.3f}, what exact predictions would have: check that no ground truth leaked."
            )
        return found

    def to_dict(self) -> dict[str, float | int | bool | str | None]:
        """Return all fields but the draws, as JSON holds them."""
        return {item.name: getattr(self, item.name) for item in fields(self) if item.name != "draws"}


@dataclass(frozen=True)
class Difference:
    """How much better one run is than another, on the same subsets and queries."""

    value: float
    """LDS of the first less LDS of the second."""
    low: float
    high: float
    p_better: float
    """Share of the resamples in which the first is better; a tie counts half."""

    @property
    def significant(self) -> bool:
        """The 95 % interval leaves out 0."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True, eq=False)
class Evaluator:
    """Everything that the runs of a task share, computed once: mean outputs, resamples and ceiling."""

    queries: npt.NDArray[np.intp]
    """``[n_queries]``, indices of the queries evaluated."""
    n_all_queries: int
    masks: npt.NDArray[np.bool_]
    """``[n_subsets, n_train]``."""
    outputs_mean: npt.NDArray[np.float64]
    """``[n_subsets, n_queries]``."""
    resamples: Resamples
    ceiling: Ceiling
    basis: str
    mislabelled: npt.NDArray[np.bool_] | None = None
    """``[n_train]``."""

    @classmethod
    def of(cls, truth: Truth, queries: Queries = "reported", n_resamples: int = 1000) -> Evaluator:
        """Prepare the evaluation of many runs; the arguments are those of :func:`evaluate`."""
        chosen = _choose_queries(truth, queries)
        outputs = truth.outputs[:, :, chosen]  # [n_subsets, n_seeds, n_queries]
        if not np.isfinite(outputs).all():
            bad = int(np.count_nonzero(~np.isfinite(outputs)))
            raise GroundTruthError(
                f"{bad} of {outputs.size} outputs are not finite. Run `tdabench ground-truth verify TASK`."
            )
        return cls(
            queries=chosen,
            n_all_queries=truth.outputs.shape[2],
            masks=truth.masks,
            outputs_mean=outputs.mean(axis=1, dtype=np.float64),
            resamples=draw(len(truth.masks), len(chosen), n_resamples, seed=RESAMPLE_SEED),
            ceiling=noise_ceiling(outputs),
            basis=_hash(truth.masks, outputs, chosen, n_resamples),
            mislabelled=truth.mislabelled,
        )

    def evaluate(self, scores: npt.NDArray[np.floating]) -> Evaluation:
        """Evaluate one run's scores, ``[n_all_queries, n_train]``."""
        return self.weigh(self.evidence(scores))

    def evidence(self, scores: npt.NDArray[np.floating]) -> Evidence:
        """Return what of the scores, ``[n_all_queries, n_train]``, their quality depends on."""
        scores = np.asarray(scores)
        check_scores(scores, n_train=self.masks.shape[1], n_queries=self.n_all_queries)
        chosen = scores[self.queries]
        sums = subset_sums(chosen, self.masks)  # [n_subsets, n_queries]
        sums[:, constant_columns(sums)] = 0.0
        suspicion = None if self.mislabelled is None else whole(suspicion_ranks(chosen))
        return Evidence(whole(average_ranks(sums)), suspicion, self.basis)

    def weigh(self, evidence: Evidence) -> Evaluation:
        """Evaluate a run from its evidence, which gives the same numbers as its scores.

        Raises
        ------
        OtherGroundTruthError
            If the evidence was made for another ground truth, or for other queries.
        UsageError
            If its arrays have other shapes.
        """
        if evidence.basis != self.basis:
            raise OtherGroundTruthError(
                f"The evidence was made on basis {evidence.basis}, and the ground truth here has basis {self.basis}."
                " Evaluate the run's scores, or run the method again."
            )
        if evidence.sums.shape != self.outputs_mean.shape:
            raise UsageError(
                f"The evidence has ranks of shape {list(evidence.sums.shape)}, expected [n_subsets, n_queries] ="
                f" {list(self.outputs_mean.shape)}. Make it again from the run with `tdabench archive`."
            )
        if evidence.suspicion is None and self.mislabelled is not None:
            raise UsageError(
                "The evidence has no suspicions, so how well the method finds wrong labels cannot be told. Make it"
                " again from the run with `tdabench archive`."
            )
        if evidence.suspicion is not None and evidence.suspicion.shape != (self.masks.shape[1],):
            raise UsageError(
                f"The evidence has suspicions of shape {list(evidence.suspicion.shape)}, expected [n_train] ="
                f" [{self.masks.shape[1]}]. Make it again from the run with `tdabench archive`."
            )
        sums = evidence.sums.astype(np.float64)  # [n_subsets, n_queries]
        constant = constant_columns(sums) | constant_columns(self.outputs_mean)  # [n_queries]
        sums[:, constant] = 0.0
        draws = bootstrap_lds(sums, _ranked(self))
        lds = draws.estimate
        low, high = (max(-1.0, min(1.0, end)) for end in draws.interval(LEVEL))
        ceiling = self.ceiling.value
        return Evaluation(
            lds=lds,
            low=low,
            high=high,
            n_queries=len(self.queries),
            n_subsets=len(self.masks),
            constant_queries=int(constant.sum()),
            negated_better=high < 0,
            above_ceiling=ceiling is not None and lds > ceiling,
            ceiling=ceiling,
            basis=self.basis,
            mislabel_auroc=self._mislabel_auroc(evidence),
            draws=draws,
        )

    def _mislabel_auroc(self, evidence: Evidence) -> float | None:
        if self.mislabelled is None or evidence.suspicion is None:
            return None
        return mislabel_auroc(evidence.suspicion / 2, self.mislabelled)


@lru_cache(maxsize=2)  # runs come task by task, and 1,000 resamples of 100 subsets and 400 queries take 80 MB
def _ranked(evaluator: Evaluator) -> RankedTruth:
    return RankedTruth.of(evaluator.outputs_mean, evaluator.resamples)


def evaluate(
    scores: npt.NDArray[np.floating], truth: Truth, queries: Queries = "reported", n_resamples: int = 1000
) -> Evaluation:
    """Evaluate one run's scores against a task's ground truth.

    To evaluate many runs of a task, prepare an :class:`Evaluator` once; the results are the same.

    Parameters
    ----------
    scores
        ``[n_all_queries, n_train]``, float32 or float64, higher = having that example raises the output. All rows must
        be finite, also those of queries that are not chosen.
    truth
        Masks, outputs and the split of the queries.
    queries
        Which queries to evaluate.
    n_resamples
        Bootstrap resamples; their seed is :data:`~tdabench.bootstrap.RESAMPLE_SEED`.

    Raises
    ------
    ScoresError
        If the scores have the wrong shape or type, or are not finite.
    GroundTruthError
        If the ground truth is inconsistent, or has no queries of that kind.
    """
    return Evaluator.of(truth, queries, n_resamples).evaluate(scores)


def compare(a: Evaluation, b: Evaluation) -> Difference:
    """Compare two runs of a task, paired: both meet the same resamples, so what these share cancels.

    Raises
    ------
    UsageError
        If the two were not evaluated on the same ground truth, queries and resamples.
    """
    if a.basis != b.basis:
        raise UsageError(
            f"These evaluations cannot be compared: one was made on basis {a.basis}, the other on {b.basis}."
            " Evaluate both on the same task version, queries and number of resamples."
        )
    draws = (a.draws - b.draws).corrected()  # [n_resamples]
    low, high = percentile_interval(draws, LEVEL)
    p_better = float(np.mean(draws > 0) + np.mean(draws == 0) / 2)
    return Difference(a.lds - b.lds, low, high, p_better)


def _choose_queries(truth: Truth, queries: Queries) -> npt.NDArray[np.intp]:
    outputs, masks = truth.outputs, truth.masks
    if outputs.ndim != 3 or len(outputs) != len(masks) or outputs.shape[1] == 0:
        raise GroundTruthError(
            f"Outputs have shape {list(outputs.shape)}, expected [n_subsets, n_seeds, n_queries] with"
            f" {len(masks)} subsets as in the masks. Run `tdabench ground-truth verify TASK`."
        )
    choices = {"reported": truth.reported, "tuning": truth.tuning, "all": np.arange(outputs.shape[2])}
    if queries not in choices:
        raise UsageError(f"Unknown queries {queries!r}. Choose one of: {', '.join(choices)}.")
    chosen = np.asarray(choices[queries], dtype=np.intp)
    if chosen.size == 0 or chosen.min() < 0 or chosen.max() >= outputs.shape[2]:
        raise GroundTruthError(
            f"The {queries} queries are {'empty' if chosen.size == 0 else 'out of range'}: expected at least one index"
            f" from 0 to {outputs.shape[2] - 1}. Run `tdabench ground-truth verify TASK`."
        )
    return chosen


def _hash(*parts: npt.NDArray[np.generic] | int) -> str:
    digest = hashlib.sha256()
    for part in (*parts, RESAMPLE_SEED):
        array = np.ascontiguousarray(part)
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()[:16]
