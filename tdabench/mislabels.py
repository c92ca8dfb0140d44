"""Finding wrong labels: how well scores tell the training examples whose label is wrong from the others.

Beside the LDS, on tasks where the wrong labels are known. An example that lowers the target of the queries on average
is suspected; the suspicion is its mean score, negated.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata


def suspicion_ranks(scores: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """Rank the training examples by suspicion, ``[n_train]``: from 1 up, ties by their average.

    Parameters
    ----------
    scores
        ``[n_queries, n_train]``, higher = having the example raises the target.
    """
    ranks: npt.NDArray[np.float64] = rankdata(-scores.mean(axis=0, dtype=np.float64))
    return ranks


def mislabel_auroc(suspicion: npt.ArrayLike, mislabelled: npt.NDArray[np.bool_]) -> float:
    """Return the area under the ROC curve: the chance that a wrong label is suspected more than a right one.

    Parameters
    ----------
    suspicion
        ``[n_train]``, average ranks by suspicion.
    mislabelled
        ``[n_train]``, at least one of each kind.

    Returns
    -------
    float
        1 is perfect, 0.5 is chance; ties count half (the Mann-Whitney statistic).
    """
    ranks = np.asarray(suspicion)
    n_wrong = int(mislabelled.sum())
    n_right = len(mislabelled) - n_wrong
    return float((ranks[mislabelled].sum() - n_wrong * (n_wrong + 1) / 2) / (n_wrong * n_right))
