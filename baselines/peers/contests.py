"""Which of our methods is held against which peer, at which options, and what it has to reach."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

OptionValue = str | int | float


@dataclass(frozen=True)
class Entry:
    """A registered method with the options that it is measured at."""

    method: str
    options: tuple[tuple[str, OptionValue], ...] = ()

    @property
    def label(self) -> str:
        """The method and its options, as they are printed."""
        return " ".join([self.method, *(f"{k}={v}" for k, v in self.options)])


@dataclass(frozen=True)
class Contest:
    """One job, done by both.

    Attributes
    ----------
    job
        What both compute.
    ours, theirs
        Who.
    times_faster
        What their serving time must at least be, in units of ours; None where only memory and LDS are compared.
    same
        Whether both compute the same up to chance, so that the LDS may be compared too.
    """

    job: str
    ours: Entry
    theirs: Entry
    times_faster: float | None = None
    same: bool = field(default=True, kw_only=True)


GRAD_DOT = Entry("grad-dot")
# Without a ridge, because both libraries' kernels have none by default.
TRAK = Entry("trak", (("projection", 512), ("ridge", 0.0)))
# A tenth of each layer's mean eigenvalue: kronfluence says it by leaving the damping out. At the true labels both
# compute the same; sampled labels, the default of both, are drawn from streams of their own, and the LDS with them.
EK_FAC = Entry("ek-fac", (("damping", 0.1), ("labels", "true")))
EK_FAC_SAMPLED = Entry("ek-fac", (("damping", 0.1), ("labels", "sampled")))
KRONFLUENCE = Entry("kronfluence-ek-fac", (("damping", "none"), ("fisher", "empirical")))
KRONFLUENCE_SAMPLED = Entry("kronfluence-ek-fac", (("damping", "none"), ("fisher", "sampled")))

CONTESTS = (
    Contest("gradient dot product", GRAD_DOT, Entry("dattri-grad-dot"), 100),
    Contest("gradient dot product", GRAD_DOT, Entry("kronfluence-identity"), 50),
    Contest("gradient dot product", GRAD_DOT, Entry("captum-tracin")),
    Contest("TRAK, 512 dimensions", TRAK, Entry("dattri-trak", (("projection", 512),)), 10),
    Contest("TRAK, 512 dimensions", TRAK, Entry("traker-trak", (("projection", 512),)), 10),
    Contest("EK-FAC, equal damping, true labels", EK_FAC, KRONFLUENCE, 5),
    Contest("EK-FAC, equal damping, sampled labels", EK_FAC_SAMPLED, KRONFLUENCE_SAMPLED, 5, same=False),
    # Its damping is absolute and its basis another (docs/agreement.md), so its LDS says nothing about ours.
    Contest("EK-FAC, true labels", EK_FAC, Entry("dattri-ek-fac"), same=False),
)

TIMES_FASTER_ELSEWHERE = 3.0
"""The bar on time, where there is one, on other tasks than digits-mlp-wide."""


def elsewhere(contest: Contest) -> Contest:
    """Return a contest as it is held on other tasks than the one that its bar was set on."""
    return contest if contest.times_faster is None else replace(contest, times_faster=TIMES_FASTER_ELSEWHERE)


def _lds(n_train: int, n_queries: int) -> Contest:
    sizes = (("examples", n_train), ("queries", n_queries))
    return Contest("LDS of 100 subsets", Entry("lds_per_query", sizes), Entry("dattri.metric.lds", sizes), 50)


LDS_JOBS = (_lds(1_000, 200), _lds(5_000, 1_000))
"""The evaluation itself on made-up scores, of the size of digits-mlp-wide and of a large task; the same on any task."""


@dataclass(frozen=True)
class Measured:
    """What an entry's repeated runs came to; empty, with a reason, where there is nothing to compare."""

    serve_s: tuple[float, ...] = ()
    peak_bytes: tuple[int, ...] = ()
    lds: float | None = None
    low: float | None = None
    """Lower end of the LDS's 95 % interval."""
    high: float | None = None
    reason: str | None = None
    versions: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Verdict:
    """One bar: of what, what it says, and whether it is met; None where it could not be judged."""

    of: Literal["time", "memory", "lds"]
    bar: str
    met: bool | None


def median(values: tuple[float, ...] | tuple[int, ...]) -> float:
    """Return the lower median, so that it is always one of the values."""
    return sorted(values)[(len(values) - 1) // 2]


def ratios(ours: Measured, theirs: Measured) -> tuple[float, ...]:
    """Return their serving time in units of ours, for each repeat."""
    return tuple(t / o for o, t in zip(ours.serve_s, theirs.serve_s, strict=True))


def judge(contest: Contest, ours: Measured, theirs: Measured) -> list[Verdict]:
    """Hold what was measured against the contest's bars.

    The time is judged by the median of the repeats' ratios, memory by both medians. The LDS bar is missed if theirs is
    above our 95 % interval.
    """
    known = ours.reason is None and theirs.reason is None
    verdicts = []
    if contest.times_faster is not None:
        met = median(ratios(ours, theirs)) >= contest.times_faster if known else None
        verdicts.append(Verdict("time", f"at least {contest.times_faster:g}", met))
    met = median(ours.peak_bytes) <= median(theirs.peak_bytes) if known else None
    verdicts.append(Verdict("memory", "not above theirs", met))
    if contest.same and ours.high is not None and theirs.lds is not None:
        verdicts.append(Verdict("lds", "theirs not above our interval", theirs.lds <= ours.high))
    return verdicts
