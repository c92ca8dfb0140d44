"""The costs that quality is held against."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from tdabench.formats import format_bytes, format_seconds
from tdabench.records import Costs, Record
from tdabench.results.prices import Price, priced


@dataclass(frozen=True)
class Axis:
    """A cost that quality is held against; less is better.

    Attributes
    ----------
    key
        Short name: in the URL, in column names.
    name, label
        On the control; along the axis of the chart.
    unit
        ``s``, ``B``, or ``members``.
    cost
        Reads the cost from a record's costs.
    """

    key: str
    name: str
    label: str
    unit: Literal["s", "B", "members"]
    cost: Callable[[Costs], float]

    def of(self, record: Record, price: Price | None = None) -> float | None:
        """Return what a run cost, with its models at a price if there is one; None if it was not measured."""
        costs = priced(record, price)
        return None if costs is None else self.cost(costs)

    def text(self, value: float | None) -> str:
        """Write a cost for people."""
        return format_seconds(value) if self.unit == "s" else format_bytes(value)


def peak_bytes(costs: Costs) -> int:
    """Return the peak on the device where the run used one, else the peak in the host's memory."""
    return costs.peak_host_bytes if costs.peak_device_bytes is None else costs.peak_device_bytes


AXES = (
    Axis("train", "Training", "training time, from nothing", "s", lambda c: c.train_s),
    Axis("extra", "Training, given a model", "training time, from a trained model", "s", lambda c: c.extra_train_s),
    Axis("serve", "Serving", "serving time (fit + attribute)", "s", lambda c: c.serve_s),
    Axis("total", "Total time", "total time (training + serving)", "s", lambda c: c.train_s + c.serve_s),
    Axis("memory", "Peak memory", "peak memory", "B", peak_bytes),
    Axis("storage", "Storage", "storage kept to serve a new query", "B", lambda c: c.storage_bytes),
)
