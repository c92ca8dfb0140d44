"""One chart as static SVG: LDS against a cost, with intervals, the front, the noise ceiling and curves over size."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from tdabench.board.marks import PATHS, Point
from tdabench.board.rows import Axis, format_score
from tdabench.board.scale import ZERO_COLUMN, Linear, Log, cost_scale, cost_ticks, score_scale, score_ticks


@dataclass(frozen=True)
class Size:
    """A chart's size in pixels, and how it is lettered."""

    name: str
    width: int
    height: int
    font: float
    ticks: int
    sizes_labelled: bool


WIDE = Size("wide", 860, 470, 12.5, 9, sizes_labelled=True)
COMPACT = Size("compact", 380, 290, 11.0, 4, sizes_labelled=False)

LEFT, RIGHT, TOP, BOTTOM = 40, 14, 30, 44
LONGEST_LABEL = 34

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


def draw(points: Sequence[Point], axis: Axis, ceiling: float | None, size: Size, name: str) -> Markup:
    """Draw one chart.

    Parameters
    ----------
    points
        Runs of one task version and one machine class; ``on_front`` is taken as given, never computed here.
    ceiling
        The task's noise ceiling; None draws no line.
    name
        What the chart is called for readers who cannot see it.
    """
    frame = _frame(points, ceiling, size)
    ordered = sorted(points, key=lambda p: (p.on_front, p.cost, -p.lds, p.anchor))
    parts = [
        *_grid(frame, axis),
        *_front(frame, points),
        *_ceiling(frame, ceiling),
        *_curves(frame, points),
        *(_mark(frame, p) for p in ordered),
        *_labels(frame, points, ceiling),
    ]
    return _tag(
        "svg",
        *parts,
        class_=f"chart {size.name}",
        viewBox=f"0 0 {size.width} {size.height}",
        role="group",
        aria_label=name,
    )


def _frame(points: Sequence[Point], ceiling: float | None, size: Size) -> Frame:
    heights = [v for p in points for v in (p.lds, p.low, p.high) if v == v] + ([] if ceiling is None else [ceiling])
    x = cost_scale([p.cost for p in points], LEFT, size.width - RIGHT)
    return Frame(size, x, score_scale(heights, size.height - BOTTOM, TOP))


def _grid(frame: Frame, axis: Axis) -> Iterable[Markup]:
    base, middle = frame.bottom, (LEFT + frame.right) / 2
    scores = score_ticks(frame.y)
    decimals = max(len(f"{value:g}".partition(".")[2]) for value in scores)
    for value in scores:
        y = frame.y(value)
        yield _tag("path", class_="zero" if value == 0 else "grid", d=f"M{LEFT} {_n(y)}H{_n(frame.right)}")
        yield _text(f"{value:.{decimals}f}".replace("-", "−") if value else "0", LEFT - 8, y + 4, "end")
    for value in cost_ticks(frame.x, axis.unit, frame.size.ticks):
        x = frame.x(value)
        yield _tag("path", class_="tick", d=f"M{_n(x)} {_n(base)}v5")
        yield _text(axis.text(value), x, base + 18, "middle")
    if frame.x.zero is not None:
        edge = LEFT + ZERO_COLUMN
        yield _tag("rect", class_="zeros", x=LEFT, y=TOP, width=_n(ZERO_COLUMN), height=_n(base - TOP))
        yield _text("0", frame.x.zero, base + 18, "middle")
        yield _tag("path", class_="break", d=f"M{_n(edge)} {_n(base + 5)}l4-10m2 10l4-10")
    yield _text("LDS, ↑ better", 4, 14, "start", "name")
    yield _text(f"← cheaper · {axis.label}, log scale", middle, frame.size.height - 6, "middle", "name")


def _front(frame: Frame, points: Sequence[Point]) -> Iterable[Markup]:
    """Step from run to run on the front; what lies under the steps is beaten."""
    steps = _steps(frame, points)
    if not steps:
        return
    (x, y), right, bottom = steps[0], _n(frame.right), _n(frame.bottom)
    path = f"M{_n(x)} {_n(y)}" + "".join(f"H{_n(x)}V{_n(y)}" for x, y in steps[1:]) + f"H{right}"
    yield _tag("path", class_="beaten", d=f"{path}V{bottom}H{_n(x)}z")
    yield _tag("path", class_="front", d=path)


def _steps(frame: Frame, points: Sequence[Point]) -> list[tuple[float, float]]:
    """Return the places of the runs on the front, from left to right."""
    return sorted({(frame.x(p.cost), frame.y(p.lds)) for p in points if p.on_front}, key=lambda s: (s[0], -s[1]))


def _ceiling(frame: Frame, ceiling: float | None) -> Iterable[Markup]:
    if ceiling is not None:
        y = frame.y(ceiling)
        yield _tag("path", class_="ceiling", d=f"M{LEFT} {_n(y)}H{_n(frame.right)}")
        yield _text(_ceiling_text(ceiling), frame.right, y - 6, "end", "ceiling-name")


def _ceiling_text(ceiling: float) -> str:
    return f"noise ceiling {format_score(ceiling)}"


def _curves(frame: Frame, points: Sequence[Point]) -> Iterable[Markup]:
    curves: dict[tuple[object, ...], list[Point]] = defaultdict(list)
    for point in points:
        curves[point.curve].append(point)
    for members in curves.values():
        if len(members) > 1:
            path = sorted(members, key=lambda p: (p.members, p.cost, p.anchor))
            d = "M" + "L".join(f"{_n(frame.x(p.cost))} {_n(frame.y(p.lds))}" for p in path)
            yield _tag("path", class_=f"curve c{path[0].colour}", d=d)


def _mark(frame: Frame, point: Point) -> Markup:
    x, y = frame.x(point.cost), frame.y(point.lds)
    parts = [_tag("title", point.title)]
    if point.low == point.low and point.high == point.high:
        top, bottom = frame.y(point.high) - y, frame.y(point.low) - y
        parts.append(_tag("path", class_="whisker", d=f"M0 {_n(top)}V{_n(bottom)}M-3 {_n(top)}h6M-3 {_n(bottom)}h6"))
    parts.append(_tag("path", class_="mark", d=PATHS[point.shape]))
    return _tag(
        "a",
        *parts,
        href=f"#{point.anchor}",
        class_=f"point c{point.colour}{' on-front' if point.on_front else ''}",
        transform=f"translate({_n(x)} {_n(y)})",
    )


def _labels(frame: Frame, points: Sequence[Point], ceiling: float | None) -> Iterable[Markup]:
    """Label the runs on the front, then sizes along the curves, each where it touches nothing; else not at all."""
    taken = [_around(frame, p) for p in points]
    taken += [_whisker_box(frame, p) for p in points if p.on_front]
    taken += _front_boxes(frame, points)
    if ceiling is not None:
        width, y = _width(_ceiling_text(ceiling), frame.size.font), frame.y(ceiling)
        taken.append((frame.right - width, y - 18, frame.right, y))
    for point, texts, css in _wanted(frame.size, points):
        place = next((p for text in texts if (p := _free_place(frame, point, text, taken))), None)
        if place is not None:
            taken.append(place.box)
            yield _text(place.text, place.x, place.y, place.anchor, f"{css} c{point.colour}")


def _wanted(size: Size, points: Sequence[Point]) -> Iterable[tuple[Point, list[str], str]]:
    """Say which labels a chart would like, most wanted first, each with shorter ways to say it."""
    ends = [p for p in points if p.on_front]
    for p in sorted(ends, key=lambda p: (p.members > 1, -p.lds, p.cost, p.anchor)):
        shorter = [p.brief, f"×{p.members}"] if p.members > 1 else []
        if not size.sizes_labelled:
            shorter = shorter[:1]  # a bare size says nothing without a curve to sit on
        yield p, [_shorten(text) for text in (p.label, *shorter)], "label"
    if size.sizes_labelled:
        for p in points:
            if p.members > 1 and not p.on_front:
                yield p, [f"×{p.members}"], "size"


@dataclass(frozen=True)
class Place:
    """Where a label goes, and the box it fills."""

    text: str
    x: float
    y: float
    anchor: str
    box: Box


def _free_place(frame: Frame, point: Point, text: str, taken: Sequence[Box]) -> Place | None:
    """Try places around a point. Above and left of a run on the front there is nothing, by definition: try it first."""
    x, y, font = frame.x(point.cost), frame.y(point.lds), frame.size.font
    width = _width(text, font)
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
    for (x, y), (next_x, next_y) in zip(steps, [*steps[1:], (frame.right, None)], strict=True):
        boxes.append((x, y - 1.0, next_x, y + 1.0))
        if next_y is not None:
            boxes.append((next_x - 1.0, next_y, next_x + 1.0, y))
    return boxes


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _width(text: str, font: float) -> float:
    # The fonts of the reader are unknown; wide ones take 0.6 of their size a letter.
    return 0.6 * font * len(text)


def _shorten(text: str) -> str:
    return text if len(text) <= LONGEST_LABEL else text[: LONGEST_LABEL - 1] + "…"


def _text(text: str, x: float, y: float, anchor: str, css: str = "value") -> Markup:
    return _tag("text", text, x=_n(x), y=_n(y), text_anchor=anchor, class_=css)


def _n(value: float) -> str:
    """Write a coordinate to a tenth of a pixel: small, and the same on every machine."""
    return f"{round(value, 1) + 0.0:g}"


_ATTRIBUTES: dict[str, str] = {"class_": "class", "viewBox": "viewBox"}


def _tag(tag: str, *children: Markup | str, **attributes: object) -> Markup:
    """Build an element; text and attribute values are escaped, children that are elements are not."""
    written = "".join(f' {_ATTRIBUTES.get(k, k.replace("_", "-"))}="{escape(v)}"' for k, v in attributes.items())
    inside = "".join(escape(child) for child in children)
    return Markup(f"<{tag}{written}>{inside}</{tag}>" if children else f"<{tag}{written}/>")
