"""ASTRA: a better inverse-Hessian product, by iterations that start from and are preconditioned by EK-FAC.

EK-FAC ignores what layers have to do with one another, and takes factors for independent that are not. Its solution is
a good place to start from, and its inverse a preconditioner: the error ``g - (G + ridge I) x``, computed with the exact
Gauss-Newton product on a fresh batch of training examples, is multiplied by EK-FAC's inverse and added. How near the
preconditioned curvature is to the identity is measured by power iterations, and the first step is set by it, so that it
does not diverge; steps then shrink to nothing, which averages the batches' noise. The two must be of one scale:
EK-FAC's eigenvalues come from labels drawn apart for each of a sequence's T tokens, where the second moment of the mean
loss's gradients is 1 / T of the Gauss-Newton matrix, so they are multiplied by T.

It is not the inverse after ten steps, nor after forty, where the preconditioned curvature is far from the identity: on
mnist-mlp its largest eigenvalue is about 70, and 160 on a batch of 256, since few examples curve much. More steps then
bring the scores nearer to those of ``if-cg`` or, by the batches' noise, farther; so their number is tuned.

Source: Wang et al. 2025, "Better Training Data Attribution via Better Inverse Hessian-Vector Products" (ASTRA).
Cost per member: EK-FAC's and 12 products over a batch; and per query and step one product over a batch, forward and
backward, and one solution by EK-FAC. Storage: EK-FAC's.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

import tdabench

# Several copies of the queries' vectors are held during the iterations; of the default memory budget on a CPU.
_VECTOR_BYTES = 64 << 20


# Power iterations that find how far the preconditioned curvature is from the identity, and what they may miss.
_POWER_STEPS, _MARGIN = 12, 1.1


@dataclass(frozen=True)
class AstraState:
    """EK-FAC's eigenbases, the ridge of all layers, and the largest eigenvalue of the preconditioned curvature."""

    bases: dict[str, tdabench.Eigenbasis]
    ridge: float
    largest: float


@dataclass(frozen=True)
class Astra(tdabench.MemberMethod):
    """EK-FAC's influence function, with the inverse product refined on the exact Gauss-Newton matrix."""

    damping: float = tdabench.option(
        0.1,
        "ridge, relative to the mean eigenvalue of all layers",
        low=1e-9,
        tune=(0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0),
    )
    steps: int = tdabench.option(
        10, "steps of refinement; 0 is EK-FAC with one ridge for all layers", low=0, tune=(10, 40)
    )
    step_size: float = tdabench.option(
        1.0, "the first step, in units of half the largest that does not diverge", low=0, high=2
    )
    batch: int = tdabench.option(
        256, "training examples in a step's Gauss-Newton product; at most all", low=1, tune=(256, 1024)
    )

    def work(self, sizes: tdabench.Sizes) -> tdabench.Work:
        """Do EK-FAC's, power iterations, and a product of the Gauss-Newton matrix per step and query."""
        n, m, steps, batch = sizes.n_train, sizes.n_queries, self.steps, min(self.batch, sizes.n_train)
        vector_bytes = int(sizes.blocks.scale * _VECTOR_BYTES)
        cuts = sizes.layer_cuts(m, vector_bytes)
        at_once = -(-m // cuts)
        # Splitting flat vectors by layer takes a look at one example, for every part of the queries.
        looks = tdabench.Counts(gradients=1 if steps else 0)
        power = sizes.curvature(batch, _POWER_STEPS, at_once=1) * min(steps, 1)
        refining = sizes.curvature(batch, m, at_once) * steps
        return tdabench.Work(
            fit=tdabench.Counts(forward=n) + sizes.eigenbases(n) + power + looks,
            attribute=sizes.by_layer(m, vector_bytes)
            + sizes.solve(m, at_once) * (steps + 1)
            + refining
            + looks * cuts
            + sizes.times(n, m, uses=cuts),
            state=sizes.eigenbasis_numbers,
        )

    def fit(self, member: tdabench.Member) -> AstraState:
        """Find EK-FAC's eigenbases, and how large a step may be."""
        training = member.task.training
        labelled = tdabench.with_sampled_labels(member, training, "ek-fac", member.task.seed, member.number)
        # The loss is a mean over labels drawn apart, so the second moment of its gradients is the curvature / n_labels.
        n_labels = training.labels[0].numel()
        found = tdabench.eigenbases(member.gradients(labelled, of="loss"))
        bases = {key: replace(basis, values=n_labels * basis.values) for key, basis in found.items()}
        numbers = sum(basis.values.numel() for basis in bases.values())
        ridge = self.damping * float(sum(basis.values.sum() for basis in bases.values())) / numbers
        return AstraState(bases, ridge, self._largest(member, bases, ridge) if self.steps else 1.0)

    def _largest(self, member: tdabench.Member, bases: dict[str, tdabench.Eigenbasis], ridge: float) -> float:
        """Return the largest eigenvalue of EK-FAC's inverse times the Gauss-Newton matrix, on one batch."""
        training = member.gradients(member.task.training, of="loss")
        curvature = member.hessian(member.task.training, ridge=ridge).on(self._rows(member, 0))
        random = tdabench.generator("astra-power", member.task.seed, member.number)
        vector = torch.randn(1, training.n_parameters, generator=random).to(member.task.device)
        for _ in range(_POWER_STEPS):
            product = training.split(curvature.times(vector / vector.norm()))
            vector = training.flatten({key: basis.solve(product[key], ridge) for key, basis in bases.items()})
        return _MARGIN * float(vector.norm())

    def attribute(self, member: tdabench.Member, state: AstraState) -> torch.Tensor:
        """Return ``[n_queries, n_train]``; minus, because training goes down the loss."""
        task = member.task
        scores = torch.empty(task.n_queries, task.n_train, device=task.device)
        training = member.gradients(task.training, of="loss")
        vector_bytes = tdabench.block_bytes(_VECTOR_BYTES, task.device)
        for rows, layers in member.gradients(task.queries, of="target").by_layer(vector_bytes):
            scores[rows] = -training.times(self._solved(member, state, layers)).T
        return scores

    def _solved(
        self, member: tdabench.Member, state: AstraState, goal: dict[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """Return the refined inverse product of vectors by layer, ``[m, p, q]`` each."""
        training = member.gradients(member.task.training, of="loss")
        curvature = member.hessian(member.task.training, ridge=state.ridge)
        solution = {key: basis.solve(goal[key], state.ridge) for key, basis in state.bases.items()}
        for step in range(self.steps):
            product = training.split(curvature.on(self._rows(member, step)).times(training.flatten(solution)))
            size = self.step_size / state.largest * (1 - step / self.steps)
            for key, basis in state.bases.items():
                solution[key] += size * basis.solve(goal[key] - product[key], state.ridge)
        return solution

    def _rows(self, member: tdabench.Member, step: int) -> torch.Tensor:
        """Return a batch of the training set: consecutive parts of a random order, begun anew where it ends."""
        task = member.task
        size = min(self.batch, task.n_train)
        random = tdabench.generator("astra", task.seed, member.number, step * size // task.n_train)
        order = torch.randperm(task.n_train, generator=random)
        place = torch.arange(size) + step * size
        return order[place % task.n_train].to(task.device)
