"""Wrong labels: which methods find them, on the tasks where they are known."""

from __future__ import annotations

from collections.abc import Sequence

from tdabench.findings.entries import ONE_MODEL, Contest, Entry
from tdabench.findings.markdown import code, plain
from tdabench.findings.words import method
from tdabench.formats import format_score

_SHOWN = 3


def wrong_labels(contests: Sequence[Contest]) -> str:
    """Say which methods on one model find wrong labels best, and how good the best by LDS is at it; else nothing."""
    said = [text for contest in contests if (text := _on(contest))]
    if not said:
        return ""
    return (
        "**Finding wrong labels** is another question than the LDS. By the AUROC of negated mean scores (0.5 is chance;"
        f" without an interval), methods on one model: {'; '.join(said)}."
    )


def _on(contest: Contest) -> str:
    alone = [e for e in contest.entries if e.kind == ONE_MODEL and e.auroc is not None]
    found = sorted(alone, key=lambda entry: (-(entry.auroc or 0.0), entry.name))
    if not found:
        return ""
    best = max(found, key=lambda entry: (entry.lds, entry.name))
    named = ", ".join(_named(entry) for entry in found[:_SHOWN])
    last = "" if best in found[:_SHOWN] else f", and {_named(best)}, whose LDS is the highest"
    return f"on {plain(contest.title)} {named}{last}"


def _named(entry: Entry) -> str:
    return f"{code(method(entry))} {format_score(entry.auroc)}"
