r"""How far an ensemble can rise: its LDS, predicted from that of a smaller one and from how its members correlate.

An ensemble is ``I`` models with ``D`` members each. Let a member's prediction for a query be a random variable over
subsets, and suppose that members are exchangeable:

- each has variance 1 (a correlation does not depend on scale),
- two members of one model have covariance ``w`` (within), two of different models ``b`` (between),
- each has the same covariance ``c`` with the truth, whose variance is 1.

Then a single member's correlation with the truth is ``c``. The mean of all ``I D`` members still has covariance ``c``
with the truth. Its variance is the mean of all ``(I D)^2`` covariances of ordered pairs: ``I D`` of them are 1, ``I D
(D - 1)`` are ``w`` and ``I (I - 1) D^2`` are ``b``, so

    V(I, D) = (1 / I) (1 + (D - 1) w) / D + (1 - 1 / I) b

and its correlation with the truth is ``c / sqrt(V)``. More members of one model end at ``c / sqrt(w)``, more models at
``c / sqrt(b)``. So

    LDS(I, D) = LDS(I0, D0) sqrt(V(I0, D0) / V(I, D)).

This is the Spearman-Brown formula for two kinds of pairs (Spearman 1910; Brown 1910). It leaves out that the LDS
correlates ranks, that members may differ in quality (early checkpoints do), and that TRAK multiplies means instead of
averaging products.
"""

from __future__ import annotations

import math


def variance(models: float, per_model: float, within: float | None, between: float | None) -> float:
    """Return the variance of the mean of an ensemble's members, relative to one member's.

    Parameters
    ----------
    models, per_model
        How many models, and members of each, at least 1; infinity gives the limit.
    within, between
        Mean correlation of members of one model and of different models. What does not matter may be None: ``within``
        for one member a model, ``between`` for one model.

    Raises
    ------
    ValueError
        If a number is below 1, or a correlation that matters is None.
    """
    if models < 1 or per_model < 1:
        raise ValueError(f"An ensemble has at least one model and one member each; got {models} and {per_model}.")
    if (within is None and per_model > 1) or (between is None and models > 1):
        raise ValueError("Several members a model need their correlation `within`, several models theirs `between`.")
    of_model = 1 / per_model + (1 - 1 / per_model) * (within or 0.0)
    return of_model / models + (1 - 1 / models) * (between or 0.0)


def predicted_lds(
    lds: float, size: tuple[float, float], to: tuple[float, float], within: float | None, between: float | None
) -> float | None:
    """Return the LDS that an ensemble of another size should have.

    Parameters
    ----------
    lds
        Measured, of an ensemble of ``size``.
    size, to
        (models, members per model): of the measured ensemble, and of the one to predict; infinity gives the limit.
    within, between
        Mean correlations of its members; see :func:`variance`.

    Returns
    -------
    float or None
        None where nothing follows: a correlation is missing, or so negative that a variance is not positive.
    """
    try:
        known, wanted = (variance(*s, within, between) for s in (size, to))
    except ValueError:
        return None
    return lds * math.sqrt(known / wanted) if known > 0 and wanted > 0 else None
