"""One chart as static SVG: LDS against a cost, with intervals, the front, the noise ceiling and curves over size."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from markupsafe import Markup

from tdabench.board import svg
from tdabench.board.marks import PATHS, Point, Predicted
from tdabench.board.scale import ZERO_COLUMN, Linear, Log, cost_scale, cost_ticks, score_scale, score_ticks
from tdabench.formats import format_score
from tdabench.results.axes import Axis


@dataclass(frozen=True)
class Size:
    """A chart's size in pixels, and how it is lettered."""

    name: str
    width: int
    height: int
    font: float
    ticks: int
    sizes_labelled: bool
    ends_labelled: bool = False


WIDE = Size("wide", 860, 470, 12.5, 9, sizes_labelled=True)
COMPACT = Size("compact", 380, 290, 11.0, 4, sizes_labelled=False)
GROWTH = Size("compact", 480, 350, 11.0, 8, sizes_labelled=False, ends_labelled=True)

LEFT, RIGHT, TOP, BOTTOM = 40, 14, 30, 44
LONGEST_LABEL = 40

Box = tuple[float, float, float, float]  # left, top, right, bottom


@dataclass(frozen=True)
class Frame:
    """The plot area and its two scales."""

    size: Size
    x: Log
    y: Linear

    @property
    def right(self) -> float:
        """Right edge of the plot area."""
        return self.size.width - RIGHT

    @property
    def bottom(self) -> float:
        """Lower edge of the plot area."""
        return self.size.height - BOTTOM


def draw(
    points: Sequence[Point],
    axis: Axis,
    ceiling: float | None,
    size: Size,
    name: str,
    predicted: Sequence[Predicted] = (),
) -> Markup:
    """Draw one chart.

    Parameters
    ----------
    points
        Rows of one task version and one machine class; ``on_front`` is taken as given, never computed here.
    ceiling
        The task's noise ceiling; None draws no line.
    name
        What the chart is called for readers who cannot see it.
    predicted
        Lines beside the measured ones.
    """
    frame = _frame(points, ceiling, size, predicted)
    ordered = sorted(points, key=lambda p: (p.on_front, p.cost, -p.lds, p.anchor))
    parts = [
        *_grid(frame, axis),
        *_front(frame, points),
        *_ceiling(frame, ceiling),
        *_curves(frame, points),
        *(_dashed(frame, p) for p in predicted),
        *(_mark(frame, p) for p in ordered),
        *_labels(frame, points, ceiling, predicted),
    ]
    return svg.tag(
        "svg",
        *parts,
        class_=f"chart {size.name}",
        viewBox=f"0 0 {size.width} {size.height}",
        role="group",
        aria_label=name,
    )


def _frame(points: Sequence[Point], ceiling: float | None, size: Size, predicted: Sequence[Predicted]) -> Frame:
    heights = [v for p in points for v in (p.lds, p.low, p.high) if v == v] + ([] if ceiling is None else [ceiling])
    heights += [lds for p in predicted for _, lds in p.line]
    costs = [p.cost for p in points] + [cost for p in predicted for cost, _ in p.line]
    x = cost_scale(costs, LEFT, size.width - RIGHT)
    return Frame(size, x, score_scale(heights, size.height - BOTTOM, TOP))


def _grid(frame: Frame, axis: Axis) -> Iterable[Markup]:
    base, middle = frame.bottom, (LEFT + frame.right) / 2
    scores = score_ticks(frame.y)
    decimals = max(len(f"{value:g}".partition(".")[2]) for value in scores)
    for value in scores:
        y = frame.y(value)
        yield svg.tag(
            "path", class_="zero" if value == 0 else "grid", d=f"M{LEFT} {svg.number(y)}H{svg.number(frame.right)}"
        )
        yield svg.text(f"{value:.{decimals}f}".replace("-", "−") if value else "0", LEFT - 8, y + 4, "end")
    for value in cost_ticks(frame.x, axis.unit, frame.size.ticks):
        x = frame.x(value)
        yield svg.tag("path", class_="tick", d=f"M{svg.number(x)} {svg.number(base)}v5")
        yield svg.text(axis.text(value), x, base + 18, "middle")
    if frame.x.zero is not None:
        edge = LEFT + ZERO_COLUMN
        yield svg.tag(
            "rect", class_="zeros", x=LEFT, y=TOP, width=svg.number(ZERO_COLUMN), height=svg.number(base - TOP)
        )
        yield svg.text("0", frame.x.zero, base + 18, "middle")
        yield svg.tag("path", class_="break", d=f"M{svg.number(edge)} {svg.number(base + 5)}l4-10m2 10l4-10")
    yield svg.text("LDS, ↑ better", 4, 14, "start", "name")
    better = "" if axis.unit == "members" else "← cheaper · "
    yield svg.text(f"{better}{axis.label}, log scale", middle, frame.size.height - 6, "middle", "name")


def _front(frame: Frame, points: Sequence[Point]) -> Iterable[Markup]:
    """Step from point to point on the front; what lies under the steps is beaten."""
    steps = _steps(frame, points)
    if not steps:
        return
    (x, y), right, bottom = steps[0], svg.number(frame.right), svg.number(frame.bottom)
    path = (
        f"M{svg.number(x)} {svg.number(y)}"
        + "".join(f"H{svg.number(x)}V{svg.number(y)}" for x, y in steps[1:])
        + f"H{right}"
    )
    yield svg.tag("path", class_="beaten", d=f"{path}V{bottom}H{svg.number(x)}z")
    yield svg.tag("path", class_="front", d=path)


def _steps(frame: Frame, points: Sequence[Point]) -> list[tuple[float, float]]:
    """Return the places of the points on the front, from left to right."""
    return sorted({(frame.x(p.cost), frame.y(p.lds)) for p in points if p.on_front}, key=lambda s: (s[0], -s[1]))


def _ceiling(frame: Frame, ceiling: float | None) -> Iterable[Markup]:
    if ceiling is not None:
        y = frame.y(ceiling)
        yield svg.tag("path", class_="ceiling", d=f"M{LEFT} {svg.number(y)}H{svg.number(frame.right)}")
        yield svg.text(_ceiling_text(ceiling), frame.right, y - 6, "end", "ceiling-name")


def _ceiling_text(ceiling: float) -> str:
    return f"noise ceiling {format_score(ceiling)}"


def _curves(frame: Frame, points: Sequence[Point]) -> Iterable[Markup]:
    for path in _in_curves(points):
        if len(path) > 1:
            d = svg.line([(frame.x(p.cost), frame.y(p.lds)) for p in path])
            of = " ".join(p.anchor for p in path)
            yield svg.tag("path", class_=f"curve c{path[0].colour}", d=d, data_of=of)


def _in_curves(points: Sequence[Point]) -> list[list[Point]]:
    """Sort points into curves, each from its smallest size on."""
    curves: dict[tuple[object, ...], list[Point]] = defaultdict(list)
    for point in points:
        curves[point.curve].append(point)
    return [sorted(curve, key=lambda p: (p.members, p.cost, p.anchor)) for curve in curves.values()]


def _dashed(frame: Frame, predicted: Predicted) -> Markup:
    d = svg.line([(frame.x(cost), frame.y(lds)) for cost, lds in predicted.line])
    title = svg.tag("title", predicted.title)
    return svg.tag("path", title, class_=f"predicted c{predicted.colour}", d=d)


def _mark(frame: Frame, point: Point) -> Markup:
    x, y = frame.x(point.cost), frame.y(point.lds)
    parts = [svg.tag("title", point.title)]
    if point.low == point.low and point.high == point.high:
        top, bottom = frame.y(point.high) - y, frame.y(point.low) - y
        parts.append(
            svg.tag(
                "path",
                class_="whisker",
                d=f"M0 {svg.number(top)}V{svg.number(bottom)}M-3 {svg.number(top)}h6M-3 {svg.number(bottom)}h6",
            )
        )
    parts.append(svg.tag("path", class_="mark", d=PATHS[point.shape]))
    return svg.tag(
        "a",
        *parts,
        href=f"#{point.anchor}",
        class_=f"point c{point.colour}{' on-front' if point.on_front else ''}",
        transform=f"translate({svg.number(x)} {svg.number(y)})",
    )


def _labels(
    frame: Frame, points: Sequence[Point], ceiling: float | None, predicted: Sequence[Predicted]
) -> Iterable[Markup]:
    """Label the points on the front, then sizes along the curves, each where it touches nothing; else not at all."""
    taken = [_around(frame, p) for p in points]
    taken += [_whisker_box(frame, p) for p in points if p.on_front]
    taken += _front_boxes(frame, points)
    lines = [*([(p.cost, p.lds) for p in path] for path in _in_curves(points)), *(p.line for p in predicted)]
    crossed = [box for places in lines for box in _line_boxes(frame, places)]
    if ceiling is not None:
        width, y = _width(_ceiling_text(ceiling), frame.size.font), frame.y(ceiling)
        taken.append((frame.right - width, y - 18, frame.right, y))
    for point, texts, css in _wanted(frame.size, points):
        # The front is named first of all, across a curve if need be; what is small and thin has to lie clear of them.
        filled = taken + crossed if frame.size.ends_labelled or css == "size" else taken
        place = next((p for text in texts if (p := _free_place(frame, point, text, filled, css))), None)
        if place is not None:
            taken.append(place.box)
            yield svg.text(place.text, place.x, place.y, place.anchor, f"{css} c{point.colour}", data_of=point.anchor)


def _wanted(size: Size, points: Sequence[Point]) -> Iterable[tuple[Point, list[str], str]]:
    """Say which labels a chart would like, most wanted first, each with shorter ways to say it."""
    ends = [p for p in points if p.on_front]
    for p in sorted(ends, key=lambda p: (p.members > 1, -p.lds, p.cost, p.anchor)):
        shorter = [p.brief, p.size] if p.members > 1 else []
        if not size.sizes_labelled:
            shorter = shorter[:1]  # a bare size says nothing without a curve to sit on
        yield p, [_shorten(text) for text in (p.label, *shorter)], "label"
    if size.ends_labelled:
        for p in sorted((path[-1] for path in _in_curves(points)), key=lambda p: (p.members, p.lds), reverse=True):
            yield p, [_shorten(p.label), _shorten(p.brief)], "label"
    if size.sizes_labelled:
        for p in sorted(points, key=lambda p: (-p.lds, p.anchor)):
            if p.members == 1 and not p.on_front:
                yield p, [_shorten(p.label)], "size"
        for p in points:
            if p.members > 1 and not p.on_front:
                yield p, [p.size], "size"


@dataclass(frozen=True)
class Place:
    """Where a label goes, and the box it fills."""

    text: str
    x: float
    y: float
    anchor: str
    box: Box


def _free_place(frame: Frame, point: Point, text: str, taken: Sequence[Box], css: str) -> Place | None:
    """Try places around a point. Above and left of one on the front there is nothing, by definition: try it first."""
    x, y, font = frame.x(point.cost), frame.y(point.lds), frame.size.font
    width = _width(text, font, bold=css == "label")
    over, under = frame.y(point.high) - y - 5, frame.y(point.low) - y + font + 1
    offsets = [(-9, -7, "end"), (-9, 4, "end"), (0, over, "middle"), (9, -7, "start"), (9, 15, "start")]
    offsets += [(9, 4, "start"), (0, under, "middle"), (-9, 17, "end")]
    for dx, dy, anchor in offsets:
        left = x + dx - width * {"start": 0.0, "middle": 0.5, "end": 1.0}[anchor]
        box = (left, y + dy - font * 0.8, left + width, y + dy + font * 0.25)
        inside = box[0] >= LEFT and box[2] <= frame.right and box[1] >= TOP - 12 and box[3] <= frame.bottom
        if inside and not any(_overlap(box, other) for other in taken):
            return Place(text, x + dx, y + dy, anchor, box)
    return None


def _around(frame: Frame, point: Point) -> Box:
    x, y = frame.x(point.cost), frame.y(point.lds)
    return x - 6, y - 6, x + 6, y + 6


def _whisker_box(frame: Frame, point: Point) -> Box:
    x = frame.x(point.cost)
    return x - 3, frame.y(point.high), x + 3, frame.y(point.low)


def _front_boxes(frame: Frame, points: Sequence[Point]) -> list[Box]:
    """Box in the treads and risers of the front, so that no label lies across it."""
    steps = _steps(frame, points)
    boxes = []
    for (x, y), (next_x, next_y) in zip(steps, [*steps[1:], (frame.right, None)], strict=False):
        boxes.append((x, y - 1.0, next_x, y + 1.0))
        if next_y is not None:
            boxes.append((next_x - 1.0, next_y, next_x + 1.0, y))
    return boxes


def _line_boxes(frame: Frame, places: Sequence[tuple[float, float]]) -> list[Box]:
    """Box in a line piece by piece, so that no label lies across it."""
    boxes = []
    for (cost, lds), (next_cost, next_lds) in pairwise(places):
        (x, y), (to_x, to_y) = (frame.x(cost), frame.y(lds)), (frame.x(next_cost), frame.y(next_lds))
        pieces = max(1, round(abs(to_x - x) / 8))
        for k in range(pieces):
            a, b = y + (to_y - y) * k / pieces, y + (to_y - y) * (k + 1) / pieces
            boxes.append((x + (to_x - x) * k / pieces, min(a, b) - 1, x + (to_x - x) * (k + 1) / pieces, max(a, b) + 1))
    return boxes


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _width(text: str, font: float, *, bold: bool = False) -> float:
    # The fonts of the reader are unknown; wide ones take 0.6 of their size a letter, and 0.68 where they are bold.
    return (0.68 if bold else 0.6) * font * len(text)


def _shorten(text: str) -> str:
    return text if len(text) <= LONGEST_LABEL else text[: LONGEST_LABEL - 1] + "…"
