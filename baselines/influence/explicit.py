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

    def solving(self, sizes: tdabench.Sizes) -> tdabench.Work:
        """Form the matrix and factor it; then two triangular solves, or two products, for each query."""
        n, size = self.seen(sizes), sizes.n_parameters
        self._check_size(size)
        exact = self.curvature == "gauss-newton"
        factored = tdabench.Counts.cholesky(size, bits=32) if exact else tdabench.Counts.eigenvectors(size, bits=32)
        if exact:
            factored = tdabench.Counts(products=factored.products)  # in place: the state is all that is held
        formed = sizes.curvature(n, size, at_once=self._at_once(size))
        return tdabench.Work(
            fit=formed + sizes.mean_diagonal(n) + factored,
            attribute=tdabench.Counts(products=2 * sizes.n_queries * size**2),
            state=size**2 + (0 if exact else size),
        )

    def fit(self, member: tdabench.Member) -> Triangle | Spectrum:
        """Form the matrix and factor it."""
        member = self.at(member)
        hessian, most = self.hessian(member), MOST_PARAMETERS[self.curvature]
        self._check_size(hessian.n_parameters)
        ridge, matrix = self.ridge(member), hessian.explicit(most)  # [P, P]
        return self._triangle(matrix, ridge) if self.curvature == "gauss-newton" else self._spectrum(matrix, ridge)

    def solve(self, member: tdabench.Member, state: Triangle | Spectrum, vectors: Tensor) -> Tensor:
        """Return the inverse times vectors ``[m, P]``."""
        return state.solve(vectors)

    def _check_size(self, size: int) -> None:
        most = MOST_PARAMETERS[self.curvature]
        if size > most:
            raise tdabench.Declined(
                f"the Hessian of {size:,} parameters takes {4 * size**2 / 1e9:,.1f} GB; "
                f"it is factored for up to {most:,} parameters. Take --set layers=last."
            )

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
