r"""Influence functions by Arnoldi: find the few directions along which the Hessian curves, once, and work in them.

Multiply a random vector by the Hessian again and again, make each product orthogonal to those before, and the large
eigenvalues show first: after ``iterations`` products, the Hessian restricted to the space they span is a small matrix
whose extreme eigenpairs are nearly the Hessian's. Keep the ``rank`` largest in absolute value, project all gradients on
them, and the inverse is a division.

The Hessian is symmetric, so this is Lanczos's method: each product needs to be made orthogonal to the last two only, in
exact arithmetic. In floating point that fails after a few steps, and eigenvalues come out several times over; so it is
made orthogonal to all, twice. Where a product brings nothing new, a fresh random vector goes on, so that any number of
iterations up to the number of parameters is fine, and at that number nothing is approximated.

What lies outside the kept directions is dropped, not divided by the ridge: there gradients are mostly noise, and it is
most of the method's merit that a query costs one gradient and ``rank`` products, whatever the training set's size.

Source: Schioppa et al. 2022, "Scaling Up Influence Functions"; see :mod:`tdabench.baselines.influence.definition`.
Cost per member: ``iterations`` + 32 products with the Hessian, each a forward and a backward pass and a half over the
training set, and one gradient pass over it; a query costs one gradient. Storage per member: ``rank`` numbers for each
parameter and each training example.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

import tdabench
from tdabench.baselines.influence.definition import Influence

# Of the basis, at the default memory budget on a CPU; another of the kept directions stands beside it for a moment.
_MOST_BYTES = 1 << 29


@dataclass(frozen=True)
class ArnoldiState:
    """What serving needs: the kept directions, and the training gradients in them, already divided."""

    directions: Tensor  # [rank, P]
    training: Tensor  # [n_train, rank]


@dataclass(frozen=True)
class ArnoldiInfluence(Influence):
    """The inverse in the space of the largest eigenvalues."""

    damping: float = tdabench.option(
        10.0,
        "ridge, relative to the mean diagonal of the Gauss-Newton matrix",
        low=0,
        tune=(1.0, 3.0, 10.0, 30.0, 100.0, 300.0),
    )
    iterations: int = tdabench.option(
        200, "products with the Hessian; at most the number of parameters", low=1, tune=(200, 400)
    )
    rank: int = tdabench.option(200, "directions that are kept; at most the iterations", low=1, tune=(100, 200, 400))

    def work(self, sizes: tdabench.Sizes) -> tdabench.Work:
        """Find the directions and project the training gradients on them; then the queries'."""
        sizes = self.sizes(sizes)
        n, m, size, seen = sizes.n_train, sizes.n_queries, sizes.n_parameters, self.seen(sizes)
        iterations = min(self.iterations, size)
        rank = min(self.rank, iterations)
        self._check_basis(iterations, size, sizes.blocks.scale)
        # Twice orthogonal to all before: four products with half of the basis, on average.
        basis = tdabench.Counts(products=2 * iterations**2 * size + rank * iterations * size, held=iterations * size)
        found = sizes.curvature(seen, 1, at_once=1) * iterations + sizes.mean_diagonal(seen) + basis
        return tdabench.Work(
            fit=found + sizes.times(n, rank, flat=True),
            attribute=sizes.times(m, rank, flat=True) + tdabench.Counts(products=sizes.n_scores * rank),
            state=rank * size + n * rank,
        )

    def fit(self, member: tdabench.Member) -> ArnoldiState:
        """Find the directions and project the training gradients."""
        member = self.at(member)
        task = member.task
        values, directions = self._eigenpairs(member)
        projected = member.gradients(task.training, of="loss").times(directions)  # [n_train, rank]
        # As the explicit solver does, absolute values: a negative one would turn the sign of the influence.
        divisor = (values.abs() + self.ridge(member)).clamp(min=torch.finfo(values.dtype).tiny)
        return ArnoldiState(directions, projected / divisor)

    def attribute(self, member: tdabench.Member, state: ArnoldiState) -> Tensor:
        """Project the queries' gradients and multiply."""
        member = self.at(member)
        task = member.task
        queries = member.gradients(task.queries, of="target").times(state.directions)  # [n_queries, rank]
        return (queries @ state.training.T).div_(-task.n_train)

    def _eigenpairs(self, member: tdabench.Member) -> tuple[Tensor, Tensor]:
        """Return the largest eigenvalues ``[rank]``, in absolute value, and their directions ``[rank, P]``."""
        task = member.task
        hessian = self.hessian(member)
        iterations = min(self.iterations, hessian.n_parameters)
        self._check_basis(iterations, hessian.n_parameters, self.scale(member))
        random = tdabench.generator("if-arnoldi", task.seed, member.number)
        like = next(iter(member.parameters.values()))
        small, basis = lanczos(hessian.times, hessian.n_parameters, iterations, random, like)
        values, vectors = torch.linalg.eigh(small)  # float64
        kept = values.abs().argsort(descending=True)[: self.rank]
        return values[kept].to(like), vectors[:, kept].T.to(like) @ basis

    def _check_basis(self, iterations: int, size: int, scale: float) -> None:
        needed, most = 4 * iterations * size, scale * _MOST_BYTES
        if needed > most:
            raise tdabench.Declined(
                f"{iterations} directions of {size:,} parameters take {needed / 1e9:,.1f} GB; up to "
                f"{most / 1e9:.1f} GB are held. Take fewer (--set iterations=N) or --set layers=last."
            )


def lanczos(
    times: Callable[[Tensor], Tensor], size: int, iterations: int, random: torch.Generator, like: Tensor
) -> tuple[Tensor, Tensor]:
    """Restrict a symmetric matrix to the space that its products with a random vector span.

    Parameters
    ----------
    times
        Multiplies vectors ``[m, size]`` by the matrix.
    size, iterations
        Of the matrix and of the space; at most ``size``.
    random
        Gives the first vector, and others where a product brings nothing new.
    like
        A tensor of the basis's type and device.

    Returns
    -------
    tuple[Tensor, Tensor]
        The restricted matrix ``[iterations, iterations]`` in float64 and the basis ``[iterations, size]``, whose rows
        are orthonormal.
    """
    basis = like.new_zeros(iterations, size)
    small = torch.zeros(iterations, iterations, dtype=torch.float64, device=like.device)
    largest = 0.0
    vector = _fresh(basis[:0], random, like)
    for j in range(iterations):
        basis[j] = vector
        product = times(vector.unsqueeze(0))[0]
        largest = max(largest, float(product.norm()))
        rest, along = _orthogonal(product, basis[: j + 1])
        small[j, j] = along[j]
        length = float(rest.norm())
        if j + 1 == iterations:
            break
        new = length > 1e-5 * largest  # less is rounding
        small[j, j + 1] = small[j + 1, j] = length if new else 0.0
        vector = _orthogonal(rest / length, basis[: j + 1])[0] if new else _fresh(basis[: j + 1], random, like)
        vector = vector / vector.norm()
    return small, basis


def _orthogonal(vector: Tensor, basis: Tensor) -> tuple[Tensor, Tensor]:
    """Return what of a vector is orthogonal to the basis's rows, and its components along them, ``[k]``."""
    along = basis @ vector
    rest = vector - along @ basis
    again = basis @ rest  # what rounding has left: once more is enough (Parlett's "twice is enough")
    return rest - again @ basis, along + again


def _fresh(basis: Tensor, random: torch.Generator, like: Tensor) -> Tensor:
    """Return a random unit vector that is orthogonal to the basis's rows."""
    vector = torch.randn(basis.shape[1], generator=random).to(like)
    vector = _orthogonal(vector / vector.norm(), basis)[0]
    return vector / vector.norm()
