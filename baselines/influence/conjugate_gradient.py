r"""Influence functions by conjugate gradients: solve ``(H + ridge) x = grad f`` with products alone.

The best solution in the space that ``grad f, H grad f, H^2 grad f, ...`` span, one product more per iteration. How many
it takes goes with the square root of the condition number, which the ridge sets. Stopped early, it has solved along the
large eigenvalues and left the small ones alone, which is a ridge in itself.

All queries are solved at once: each has its own step lengths, and the passes over the training set are shared. What
remains, ``|(H + ridge) x - grad f| / |grad f|``, is printed to the run's log. The Hessian itself
(``curvature=hessian``) may show negative curvature; the query's iteration ends there with what it has (Steihaug 1983).

Source: Hestenes & Stiefel 1952; Martens 2010, "Deep Learning via Hessian-free Optimization"; for influence, Koh & Liang
2017; see :mod:`tdabench.baselines.influence.definition`.
Cost per member: 32 products for the damping; per query and iteration one product with the Hessian, a forward and a
backward pass and a half over the training set. Storage: the ridge.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

import tdabench
from tdabench.baselines.influence.definition import Influence


@dataclass(frozen=True)
class ConjugateGradientInfluence(Influence):
    """Conjugate gradients, for all queries at once."""

    iterations: int = tdabench.option(20, "products with the Hessian per query, at most", low=1)
    tolerance: float = tdabench.option(1e-3, "relative residual at which a query's iteration ends", low=0)

    def solving(self, sizes: tdabench.Sizes) -> tdabench.Work:
        """Find the ridge; then as many products a query as there may be iterations."""
        n, m, size = self.seen(sizes), sizes.n_queries, sizes.n_parameters
        at_once = min(m, self._at_once(size))
        iterating = sizes.curvature(n, m, at_once) * self.iterations + tdabench.Counts(held=8 * at_once * size)
        return tdabench.Work(fit=sizes.mean_diagonal(n), attribute=iterating, at_most=True)

    def fit(self, member: tdabench.Member) -> float:
        """Return the ridge; all else depends on the query."""
        return self.ridge(self.at(member))

    def solve(self, member: tdabench.Member, state: float, vectors: Tensor) -> Tensor:
        """Return the solutions ``[m, P]`` and print how well they solve."""
        solved, residual = conjugate_gradients(
            self.hessian(member, state).times, vectors, self.iterations, self.tolerance
        )
        print(
            f"conjugate gradients, member {member.number}: relative residual {residual.mean():.2g} on average, "
            f"{residual.max():.2g} at most, over {len(vectors)} queries",
            flush=True,
        )
        return solved


def conjugate_gradients(
    times: Callable[[Tensor], Tensor], vectors: Tensor, iterations: int, tolerance: float
) -> tuple[Tensor, Tensor]:
    """Solve many systems with one symmetric matrix.

    Parameters
    ----------
    times
        Multiplies vectors ``[m, P]`` by the matrix.
    vectors
        ``[m, P]`` right-hand sides.
    iterations, tolerance
        When to stop: products per vector, and relative residual. A vector that is done costs no more products.

    Returns
    -------
    tuple[Tensor, Tensor]
        Solutions ``[m, P]`` and relative residuals ``[m]``; a vector of zeros has residual 0.
    """
    solved = torch.zeros_like(vectors)
    rest, direction = vectors.clone(), vectors.clone()
    squares = rest.square().sum(1)  # [m]
    goal = squares * tolerance**2
    start = squares.clone()
    active = (squares > goal).nonzero().flatten()
    for _ in range(iterations):
        if len(active) == 0:
            break
        along = direction[active]
        product = times(along)
        curvature = (along * product).sum(1)
        good = curvature > 0  # else the quadratic model has no minimum along this direction
        active, along, product, curvature = (t[good] for t in (active, along, product, curvature))
        step = (squares[active] / curvature).unsqueeze(1)
        solved[active] += step * along
        rest[active] -= step * product
        new = rest[active].square().sum(1)
        direction[active] = rest[active] + (new / squares[active]).unsqueeze(1) * along
        squares[active] = new
        active = active[new > goal[active]]
    return solved, torch.where(start > 0, squares / start, 0.0).sqrt()
