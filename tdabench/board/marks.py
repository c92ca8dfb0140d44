"""How rows look on a chart: a colour for each method, a shape for each kind of ensemble, curves over size."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tdabench.board.names import codes
from tdabench.ensembles import SIZES
from tdabench.formats import format_score
from tdabench.results.axes import Axis
from tdabench.results.rows import Row
from tdabench.results.runs import configuration

# (light scheme, dark scheme). Chosen for at least 3:1 against the background, and to stay apart under the three common
# colour-vision deficiencies; tests measure both. Labels and shapes carry the same facts, so no reader depends on it.
PALETTE = (
    ("#2446bd", "#87aefa"),
    ("#ad0805", "#ed600e"),
    ("#1a8768", "#16a26e"),
    ("#958e1b", "#eac765"),
    ("#7c017b", "#bd5bb8"),
    ("#0198b3", "#68e2ff"),
    ("#8968eb", "#8d7dff"),
    ("#5a524f", "#b4b6ad"),
)

# Kinds beyond these, of third parties, share the last shape.
SHAPES = {
    "none": "circle",
    "independent": "square",
    "dropout": "triangle",
    "lora": "diamond",
    "checkpoints": "wedge",
    "projections": "hexagon",
}
# Flavours that are compared with their kind's default have a shape of their own; others share the kind's.
FLAVOURS = {
    ("dropout", "q-only"): "right",
    ("dropout", "per-sample"): "left",
    ("dropout", "q-only per-sample"): "bow",
    ("checkpoints", "whole"): "hourglass",
}
OTHER_SHAPE = "cross"
PATHS = {
    "circle": "M-5 0a5 5 0 1 0 10 0a5 5 0 1 0-10 0z",
    "square": "M-4.5-4.5h9v9h-9z",
    "triangle": "M0-5.8L5.6 4.2H-5.6z",
    "diamond": "M0-6.3L6.3 0L0 6.3L-6.3 0z",
    "right": "M5.8 0L-4.2 5.6V-5.6z",
    "left": "M-5.8 0L4.2 5.6V-5.6z",
    "bow": "M-5.2-5L5.2 5V-5L-5.2 5z",
    "hourglass": "M-5-5.2H5L-5 5.2H5z",
    "wedge": "M0 5.8L5.6-4.2H-5.6z",
    "hexagon": "M-5.4 0L-2.7-4.7H2.7L5.4 0L2.7 4.7H-2.7z",
    "cross": "M-1.8-5.4h3.6v3.6h3.6v3.6h-3.6v3.6h-3.6v-3.6h-3.6v-3.6h3.6z",
}


@dataclass(frozen=True)
class Point:
    """A row on one chart.

    Attributes
    ----------
    cost, lds, low, high
        Its place, and the ends of its 95 % interval.
    colour
        Index into the palette.
    curve
        Points that share it are joined, in order of ``members``.
    label, brief, size
        What it is called where there is room, where there is less, and beside its curve.
    anchor
        The id of its place in the table.
    """

    cost: float
    lds: float
    low: float
    high: float
    on_front: bool
    colour: int
    shape: str
    label: str
    brief: str
    size: str
    title: str
    anchor: str
    curve: tuple[object, ...]
    members: int


@dataclass(frozen=True)
class Predicted:
    """A line of (cost, LDS) that was not measured but predicted."""

    line: list[tuple[float, float]]
    colour: int
    title: str


def colours(rows: Sequence[Row]) -> dict[str, int]:
    """Give every method of the page its colour, those that are drawn first.

    Where there are more methods than colours, those with the most configurations have one of their own, since curves
    are told apart by it, and all others share the last, a grey: one colour for two methods would read as one method.
    """
    drawn = Counter(row.record.method for row in rows if row.lds is not None)
    methods = sorted({row.record.method for row in rows}, key=lambda method: (method not in drawn, method))
    if len(methods) > len(PALETTE):
        methods.sort(key=lambda method: -drawn[method])
    return {method: min(i, len(PALETTE) - 1) for i, method in enumerate(methods)}


def shape_of(kind: str, flavour: str = "") -> str:
    """Return the shape for a kind of ensemble, or for a flavour of it."""
    return FLAVOURS.get((kind, flavour)) or SHAPES.get(kind, OTHER_SHAPE)


def curves(rows: Sequence[Row]) -> list[tuple[object, ...]]:
    """Return for each row a key of its curve: rows that differ in nothing but size share it.

    Where two sizes vary (models and masks, say), each number of models is a curve of its own; one line through all of
    them would zigzag.
    """
    families: dict[tuple[object, ...], list[int]] = defaultdict(list)
    for i, row in enumerate(rows):
        families[_family(row)].append(i)
    keys: list[tuple[object, ...]] = [()] * len(rows)
    for family, members in families.items():
        sizes = [rows[i].sizes for i in members]
        varying = [name for name in SIZES if len({s.get(name) for s in sizes}) > 1]
        for i, size in zip(members, sizes, strict=True):
            keys[i] = (*family, size.get("models")) if len(varying) > 1 else family
    return keys


def _family(row: Row) -> tuple[object, ...]:
    record = row.record
    ensemble = record.ensemble
    if ensemble is None:
        return ("single", *configuration(record))
    variant = tuple(sorted((k, repr(v)) for k, v in ensemble.options.items() if k not in row.sizes))
    options = tuple(sorted((k, repr(v)) for k, v in record.options.items()))
    code = (record.provenance.method_sha256, *sorted(record.versions.items()))
    return (record.method, code, options, ensemble.kind, variant)


def points(
    rows: Sequence[Row],
    axis: Axis,
    on_fronts: Sequence[frozenset[str]],
    names: Sequence[str],
    anchors: Sequence[str],
    colour_of: Mapping[str, int],
) -> list[Point]:
    """Return the rows that have both an LDS and a cost on ``axis``, as points; the other sequences go with ``rows``."""
    made = []
    facts = zip(rows, on_fronts, names, anchors, curves(rows), codes(rows), strict=True)
    for row, fronts, name, anchor, curve, code in facts:
        cost, lds = row.cost(axis), row.lds
        if cost is None or lds is None:
            continue
        on_front = axis.key in fronts
        low, high = row.interval
        interval = ", ".join(filter(None, (row.seeds, f"95 % interval {format_score(low)} to {format_score(high)}")))
        size = f"{row.flavour} {row.times}".strip()
        title = f"{name}\nLDS {format_score(lds)} ({interval})\n{axis.label}: {axis.text(cost)}\n"
        made.append(
            Point(
                cost=cost,
                lds=lds,
                low=low,
                high=high,
                on_front=on_front,
                colour=colour_of[row.record.method],
                shape=shape_of(row.kind, row.flavour),
                label=f"{row.short} ({code})" if code else row.short,
                brief=f"{row.kind} {size}",  # the colour says the method
                size=size,
                title=title + ("on the front" if on_front else "beaten by one on the front"),
                anchor=anchor,
                curve=curve,
                members=row.record.members,
            )
        )
    return made
