"""Work: what a method does at a member, as counts, and what an ensemble is made of.

A method that says its work (:meth:`tdabench.MemberMethod.work`) gets the :class:`~tdabench.Sizes` of the task and
returns a :class:`Work`; :mod:`tdabench.planning` makes times and bytes of it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

# So many times n^3 multiply-adds in float32 take about as long as an eigendecomposition or a Cholesky factorisation of
# size n, in float64 (64) or float32 (32): measured for n from 512 to 1024, on one thread of an AMD EPYC.
_EIGENVECTORS = {64: 20, 32: 10}
_CHOLESKY = {64: 2, 32: 1}


@dataclass(frozen=True)
class Counts:
    """What is done in a phase. They add up, and multiply by how often a thing is done.

    Attributes
    ----------
    forward
        Examples passed forward alone.
    gradients
        Examples whose gradient the engine takes: one pass forward and one backward.
    curved
        Products of a vector with one example's part of the Hessian: likewise one pass forward and one backward, and
        half of one more.
    products
        Multiply-adds of matrix products in float32; those in float64 count twice, those in bfloat16 half.
    moved
        Numbers that are written one by one: gradients that are formed, buckets that are added to.
    held
        Numbers of four bytes that the method holds at once, beyond its state; of two counts one after the other, the
        larger.
    blocks
        The same of the engine.
    """

    forward: int = 0
    gradients: int = 0
    curved: int = 0
    products: int = 0
    moved: int = 0
    held: int = 0
    blocks: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            self.forward + other.forward,
            self.gradients + other.gradients,
            self.curved + other.curved,
            self.products + other.products,
            self.moved + other.moved,
            max(self.held, other.held),
            max(self.blocks, other.blocks),
        )

    def __mul__(self, times: int) -> Counts:
        return Counts(
            self.forward * times,
            self.gradients * times,
            self.curved * times,
            self.products * times,
            self.moved * times,
            self.held if times else 0,
            self.blocks if times else 0,
        )

    @staticmethod
    def eigenvectors(n: int, bits: int = 64) -> Counts:
        """Count an eigendecomposition of size ``n``."""
        return Counts(products=_EIGENVECTORS[bits] * n**3, held=3 * n**2 * bits // 32)

    @staticmethod
    def cholesky(n: int, bits: int = 64) -> Counts:
        """Count a Cholesky factorisation of size ``n``."""
        return Counts(products=_CHOLESKY[bits] * n**3, held=2 * n**2 * bits // 32)

    @property
    def forward_examples(self) -> int:
        """Examples passed forward, as the meter of a run counts them."""
        return self.forward + self.gradients + self.curved

    @property
    def backward_examples(self) -> int:
        """Examples passed backward, as the meter of a run counts them."""
        return self.gradients + self.curved


@dataclass(frozen=True)
class Work:
    """What a method does at one member, or on the whole task.

    Attributes
    ----------
    fit, attribute
        What the two phases do.
    state
        Numbers of four bytes that fit leaves.
    retrained, share
        How many models the method trains itself, and on which part of the training set.
    at_most
        Whether iterations may end earlier than is counted.
    """

    fit: Counts = Counts()
    attribute: Counts = Counts()
    state: int = 0
    retrained: int = 0
    share: float = 1.0
    at_most: bool = False

    def __add__(self, other: Work) -> Work:
        return Work(
            self.fit + other.fit,
            self.attribute + other.attribute,
            self.state + other.state,
            self.retrained + other.retrained,
            max((w.share for w in (self, other) if w.retrained), default=1.0),
            self.at_most or other.at_most,
        )

    def __mul__(self, members: int) -> Work:
        return replace(
            self,
            fit=self.fit * members,
            attribute=self.attribute * members,
            state=self.state * members,
            retrained=self.retrained * members,
        )


@dataclass(frozen=True)
class Parts:
    """What an ensemble is made of.

    Attributes
    ----------
    models, members
        How many of each.
    adapters, rank, adapter_epochs
        How many low-rank adapters on all models, their rank, and for how many epochs each is tuned.
    checkpoints
        How many are kept beside the final models.
    q_members
        Passes that a member's Q factor averages.
    masks
        Dropout masks of the members; None where dropout is off.
    """

    models: int
    members: int
    adapters: int = 0
    rank: int = 0
    adapter_epochs: int = 0
    checkpoints: int = 0
    q_members: int = 1
    masks: str | None = None
