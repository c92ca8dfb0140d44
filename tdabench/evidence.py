"""Evidence: what the quality of a run is recomputed from, small enough to be kept in a repository.

The LDS compares orders: of the summed scores over the subsets, and of the outputs. So the ranks of the sums, a byte per
subset and query, give the same LDS and interval as the scores do, to the last bit, in about a hundredth of the space.
They hold for one ground truth and one choice of queries alone: the scores themselves can be evaluated on any other.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tdabench.errors import FileFormatError
from tdabench.files import read_arrays, read_metadata, write_arrays
from tdabench.lds import average_ranks

EVIDENCE_FILE = "evidence.safetensors"
_WHAT, _HINT = "file of evidence", "Make it again from the run with `tdabench archive`."

Ranks = npt.NDArray[np.unsignedinteger]


@dataclass(frozen=True, eq=False)
class Evidence:
    """Ranks that stand for a run's scores. All are twice the average rank, so that ties are whole numbers, too."""

    sums: Ranks
    """``[n_subsets, n_queries]``, ranks over the subsets of the summed scores of the kept examples."""
    suspicion: Ranks | None
    """``[n_train]``, ranks of the negated mean score, where wrong labels are known."""
    basis: str
    """Hash of the ground truth, the queries and the resamples that they were made for."""


def whole(ranks: npt.NDArray[np.floating]) -> Ranks:
    """Return twice the average ranks in the smallest type that holds them."""
    return (2 * ranks).astype(np.min_scalar_type(2 * len(ranks)))


def write_evidence(folder: Path, evidence: Evidence, scores_sha256: str) -> None:
    """Write the evidence of a run into its folder."""
    arrays = {"sums": evidence.sums}
    if evidence.suspicion is not None:
        arrays["suspicion"] = evidence.suspicion
    write_arrays(folder / EVIDENCE_FILE, arrays, {"basis": evidence.basis, "scores_sha256": scores_sha256})


def read_evidence(folder: Path, scores_sha256: str) -> Evidence:
    """Return the evidence in a run folder.

    Raises
    ------
    FileFormatError
        If there is none, or it is damaged or holds no ranks, or was made from other scores than the run's.
    """
    path = folder / EVIDENCE_FILE
    arrays, facts = read_arrays(path, _WHAT, _HINT), read_metadata(path, _WHAT, _HINT)
    if "sums" not in arrays or arrays["sums"].ndim != 2 or "basis" not in facts:
        raise FileFormatError(f"{path} is not a {_WHAT}. {_HINT}")
    if facts.get("scores_sha256") != scores_sha256:
        raise FileFormatError(f"{path} was not made from the scores that its record was written for. {_HINT}")
    sums, suspicion = arrays["sums"], arrays.get("suspicion")
    if not _are_ranks(sums) or not (suspicion is None or (suspicion.ndim == 1 and _are_ranks(suspicion))):
        raise FileFormatError(f"{path} holds other numbers than ranks. {_HINT}")
    return Evidence(sums, suspicion, facts["basis"])


def _are_ranks(kept: np.ndarray) -> bool:
    """Return whether these are what :func:`whole` makes of ranks: ranked again, they are the same."""
    if kept.size == 0 or kept.dtype != np.min_scalar_type(2 * len(kept)):
        return False
    return np.array_equal(kept, whole(average_ranks(kept)))
