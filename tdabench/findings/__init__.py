"""Findings: what cheap ensembles save at equal quality, and what wins at equal cost, written from run folders."""

from tdabench.findings.document import Document, Source, render
from tdabench.findings.entries import contests_of
from tdabench.findings.numbers import numbers
from tdabench.findings.writing import write

__all__ = ["Document", "Source", "contests_of", "numbers", "render", "write"]
