"""EK-FAC with labels drawn anew for the eigenvalues: a variant of a registered method, complete."""

from __future__ import annotations

from dataclasses import dataclass, replace

import tdabench
from tdabench.baselines.ek_fac import EkFac


@dataclass(frozen=True)
class EkFacRedrawn(EkFac):
    """EK-FAC whose eigenvalues come from another draw of labels than its eigenvectors, as in kronfluence."""

    def supports(self, task: tdabench.TaskView) -> str | None:
        """Decline the data's own labels: they cannot be drawn again."""
        return super().supports(task) if self.labels == "sampled" else "labels=true are not drawn, so not drawn anew"

    def work(self, sizes: tdabench.Sizes) -> tdabench.Work:
        """Do what EK-FAC does, with another forward pass for the labels and gradients of their own for the values."""
        n = sizes.n_train
        return replace(super().work(sizes), fit=tdabench.Counts(forward=2 * n) + sizes.eigenbases(n, apart=True))

    def fit(self, member: tdabench.Member) -> dict[str, tdabench.Eigenbasis]:
        """Find each layer's eigenvectors at one draw of labels, and the eigenvalues along them at another."""
        vectors, values = (
            member.gradients(
                tdabench.with_sampled_labels(member, member.task.training, stream, member.task.seed, member.number),
                of="loss",
            )
            for stream in ("ek-fac", "ek-fac-values")
        )
        return tdabench.eigenbases(vectors, values_of=values)
