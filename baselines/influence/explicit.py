r"""Influence functions with the matrix itself: what the other three solvers approximate.

The Hessian is formed row by row and factored once per training set; a query then costs two triangular solves. With P
parameters the matrix is P^2 numbers, so this is for models of up to 17,500 parameters (1.2 GB in float32), for
adapters, or for the last layer (``layers=last``).

``curvature=hessian`` may meet negative eigenvalues, along which the quadratic model has no minimum and a plain solve
would turn the sign of the influence. Their absolute value is taken (the saddle-free Newton step, Dauphin et al. 2014).
That needs all eigenvectors: four times the memory, so up to 9,000 parameters, and some twenty times the time of a
factorisation.

Source: Koh & Liang 2017; see :mod:`tdabench.baselines.influence.definition`.
Cost per member: P products with the Hessian, each a forward and a backward pass and a half over the training set, and
a Cholesky factorisation, P^3 / 3; per query P^2. Storage per member: P^2 numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

import tdabench
from tdabench.baselines.influence.definition import Influence

MOST_PARAMETERS = {"gauss-newton": 17_500, "hessian": 9_000}


@dataclass(frozen=True)
class Triangle:
    """The Cholesky factor of a positive definite matrix."""

    lower: Tensor  # [P, P]

    def solve(self, vectors: Tensor) -> Tensor:
        """Return the inverse times vectors ``[m, P]``."""
        half = torch.linalg.solve_triangular(self.lower, vectors.T, upper=False)
        return torch.linalg.solve_triangular(self.lower.mT, half, upper=True).T


@dataclass(frozen=True)
class Spectrum:
    """The eigenvectors of a symmetric matrix and what to divide by along each."""

    values: Tensor  # [P]
    vectors: Tensor  # [P, P], columns

    def solve(self, vectors: Tensor) -> Tensor:
        """Return the inverse times vectors ``[m, P]``."""
        return (vectors @ self.vectors / self.values) @ self.vectors.T


@dataclass(frozen=True)
class ExplicitInfluence(Influence):
    """The exact inverse of the damped Hessian."""

    def fit(self, member: tdabench.Member) -> Triangle | Spectrum:
        """Form the matrix and factor it."""
        member = self.at(member)
        hessian = member.hessian(member.task.training, self.curvature)
        matrix = hessian.explicit(MOST_PARAMETERS[self.curvature])  # [P, P]; declined beyond
        ridge = self.ridge(member)
        return self._triangle(matrix, ridge) if self.curvature == "gauss-newton" else self._spectrum(matrix, ridge)

    def solve(self, member: tdabench.Member, state: Triangle | Spectrum, vectors: Tensor) -> Tensor:
        """Return the inverse times vectors ``[m, P]``."""
        return state.solve(vectors)

    def _triangle(self, matrix: Tensor, ridge: float) -> Triangle:
        matrix.diagonal().add_(ridge)
        lower = matrix.mT  # symmetric, and laid out by columns as the factorisation wants it: no copy is made
        info = torch.empty((), dtype=torch.int32, device=matrix.device)
        torch.linalg.cholesky_ex(lower, out=(lower, info))
        if info.item() != 0:
            raise tdabench.UsageError(
                f"The Gauss-Newton matrix is singular at damping {self.damping:g}. Give a larger one "
                f"(--set damping={max(0.01, 10 * self.damping):g})."
            )
        return Triangle(lower)

    def _spectrum(self, matrix: Tensor, ridge: float) -> Spectrum:
        values, vectors = torch.linalg.eigh(matrix)
        values = values.abs_().add_(ridge)
        if values.min() <= torch.finfo(values.dtype).eps * values.max():
            raise tdabench.UsageError(
                f"The Hessian is singular at damping {self.damping:g}. Give a larger one "
                f"(--set damping={max(0.01, 10 * self.damping):g})."
            )
        return Spectrum(values, vectors)
