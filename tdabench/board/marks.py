"""How runs look on a chart: a colour for each method, a shape for each kind of ensemble, curves over size."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tdabench.board.rows import Axis, Row, format_score
from tdabench.ensembles import SIZES

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
OTHER_SHAPE = "cross"
PATHS = {
    "circle": "M-5 0a5 5 0 1 0 10 0a5 5 0 1 0-10 0z",
    "square": "M-4.5-4.5h9v9h-9z",
    "triangle": "M0-5.8L5.6 4.2H-5.6z",
    "diamond": "M0-6.3L6.3 0L0 6.3L-6.3 0z",
    "wedge": "M0 5.8L5.6-4.2H-5.6z",
    "hexagon": "M-5.4 0L-2.7-4.7H2.7L5.4 0L2.7 4.7H-2.7z",
    "cross": "M-1.8-5.4h3.6v3.6h3.6v3.6h-3.6v3.6h-3.6v-3.6h-3.6v-3.6h3.6z",
}


@dataclass(frozen=True)
class Point:
    """A run on one chart.

    Attributes
    ----------
    cost, lds, low, high
        Its place, and the ends of its 95 % interval.
    colour
        Index into the palette.
    curve
        Points that share it are joined, in order of ``members``.
    anchor
        The id of its row in the table.
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
    """Give every method of the page its colour, those that are drawn first; beyond the palette they repeat."""
    drawn = {row.record.method for row in rows if row.lds is not None}
    methods = sorted({row.record.method for row in rows}, key=lambda method: (method not in drawn, method))
    return {method: i % len(PALETTE) for i, method in enumerate(methods)}


def shape_of(kind: str) -> str:
    """Return the shape for a kind of ensemble."""
    return SHAPES.get(kind, OTHER_SHAPE)


def curves(rows: Sequence[Row]) -> list[tuple[object, ...]]:
    """Return for each run a key of its curve: runs that differ in nothing but size share it.

    Where two sizes vary (models and masks, say), each number of models is a curve of its own; one line through all of
    them would zigzag.
    """
    families: dict[tuple[object, ...], list[int]] = defaultdict(list)
    for i, row in enumerate(rows):
        families[_family(row)].append(i)
    keys: list[tuple[object, ...]] = [()] * len(rows)
    for family, members in families.items():
        sizes = [_sizes(rows[i]) for i in members]
        varying = [name for name in SIZES if len({s.get(name) for s in sizes}) > 1]
        for i, size in zip(members, sizes, strict=True):
            keys[i] = (*family, size.get("models")) if len(varying) > 1 else family
    return keys


def _family(row: Row) -> tuple[object, ...]:
    record = row.record
    ensemble = record.ensemble
    if ensemble is None:
        return ("single", record.run_id)
    variant = tuple(sorted((k, repr(v)) for k, v in ensemble.options.items() if k not in _sizes(row)))
    options = tuple(sorted((k, repr(v)) for k, v in record.options.items()))
    return (record.method, options, ensemble.kind, variant, record.seed)


def _sizes(row: Row) -> dict[str, int]:
    ensemble = row.record.ensemble
    options = ensemble.options if ensemble else {}
    counts = {k: v for k, v in options.items() if isinstance(v, int) and not isinstance(v, bool)}
    return {k: v for k, v in counts.items() if k in SIZES or v == row.record.members}


def points(
    rows: Sequence[Row],
    axis: Axis,
    on_fronts: Sequence[frozenset[str]],
    names: Sequence[str],
    anchors: Sequence[str],
    colour_of: Mapping[str, int],
) -> list[Point]:
    """Return the runs that have both an LDS and a cost on ``axis``, as points; the other sequences go with ``rows``."""
    made = []
    for row, fronts, name, anchor, curve in zip(rows, on_fronts, names, anchors, curves(rows), strict=True):
        cost, lds = axis.value(row), row.lds
        if cost is None or lds is None or row.evaluation is None:
            continue
        on_front = axis.key in fronts
        interval = f"{format_score(row.evaluation.low)} to {format_score(row.evaluation.high)}"
        title = f"{name}\nLDS {format_score(lds)} (95 % interval {interval})\n{axis.label}: {axis.text(cost)}\n"
        made.append(
            Point(
                cost,
                lds,
                row.evaluation.low,
                row.evaluation.high,
                on_front,
                colour_of[row.record.method],
                shape_of(row.kind),
                row.short,
                f"{row.record.method} ×{row.record.members}",
                title + ("on the front" if on_front else "beaten by a run on the front"),
                anchor,
                curve,
                row.record.members,
            )
        )
    return made
