"""How ensembles grow: LDS against the number of members, beside what the members' correlations predict.

A prediction needs the smallest ensemble of its kind, with its LDS (for independent models, a single one), and how the
members' scores correlate; the formula is in :mod:`tdabench.saturation`.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import cycle

from tdabench.board.marks import PALETTE, Point, points
from tdabench.ensembles import SIZES, format_ensemble
from tdabench.formats import format_predicted, format_score
from tdabench.records import EnsembleRecord, OptionValue, Record
from tdabench.results.axes import Axis
from tdabench.results.prices import Price
from tdabench.results.rows import Row
from tdabench.results.seed_draws import estimate_beside
from tdabench.saturation import predicted_lds

_STEPS = 24
_NONE = (None, None)


class _MembersAxis(Axis):
    """The number of members, in the place of a cost."""

    def of(self, record: Record, price: Price | None = None) -> float:
        return float(record.members)

    def text(self, value: float | None) -> str:
        return f"{value:g}"


MEMBERS = _MembersAxis("members", "Members", "members", "members", lambda costs: 0.0)


@dataclass(frozen=True)
class Prediction:
    """The LDS that a curve should have.

    Attributes
    ----------
    line
        (members, LDS) from where the prediction starts, if that is on the curve, else from its smallest measured size,
        up to twice the largest.
    at_largest, limit
        At the largest measured size, None where the prediction starts from that; and with members without end.
    within, between
        The members' mean correlations that it was made from; None where there are no such pairs.
    """

    line: list[tuple[float, float]]
    at_largest: float | None
    limit: float
    within: float | None
    between: float | None


@dataclass(frozen=True)
class Curve:
    """The rows of one ensemble in several sizes, smallest first, and what was predicted of them.

    Its colour, and the shape of its points, tell it from the other curves of the method.
    """

    label: str
    colour: int
    points: list[Point]
    prediction: Prediction | None

    @property
    def summary(self) -> str:
        """The curve in words."""
        first, last = self.points[0], self.points[-1]
        measured = [f"{format_score(p.lds)} at {p.cost:g}" for p in ((first, last) if first is not last else (last,))]
        text = f"LDS {', '.join(measured)}"
        p = self.prediction
        if p is None:
            return text
        found = (("within a model", p.within), ("between models", p.between))
        said = ", ".join(f"{format_score(value)} {name}" for name, value in found if value is not None)
        at_largest = "" if p.at_largest is None else f"{format_predicted(p.at_largest)} at {last.cost:g}, "
        foretold = f"predicted {at_largest}{format_predicted(p.limit)} in the limit"
        return f"{text}; {foretold}; members correlate {said}"


def grown(rows: Sequence[Row], names: Sequence[str], anchors: Sequence[str]) -> dict[str, list[Curve]]:
    """Return, for every method that has an ensemble among the rows, its curves, neighbours in other colours.

    Parameters
    ----------
    rows
        Rows with an LDS, of one task version and machine class; ``names`` and ``anchors`` go with them.
    """
    one_colour = dict.fromkeys((row.record.method for row in rows), 0)  # each curve gets its own below
    drawn = points(rows, MEMBERS, [frozenset()] * len(rows), names, anchors, one_colour)
    families: dict[tuple[object, ...], list[tuple[Point, Row]]] = defaultdict(list)
    for point, row in zip(drawn, rows, strict=True):
        families[point.curve].append((point, row))
    of_method: dict[str, list[list[tuple[Point, Row]]]] = defaultdict(list)
    for family in families.values():
        family.sort(key=lambda pair: (pair[0].cost, pair[0].anchor))
        of_method[family[0][1].record.method].append(family)
    return {
        method: _curves(some)
        for method, some in sorted(of_method.items())
        if any(row.record.ensemble is not None for family in some for _, row in family)
    }


def _curves(families: Sequence[Sequence[tuple[Point, Row]]]) -> list[Curve]:
    """Name the curves of one method: by kind, models and variant, and by the largest row where that is not enough."""
    labels = [_label([row for _, row in family]) for family in families]
    smallest = _smallest([row for family in families for _, row in family])
    curves = []
    for label, family in zip(labels, families, strict=True):
        last, rows = family[-1][0], [row for _, row in family]
        full = label if labels.count(label) == 1 else last.title.partition("\n")[0]
        drawn = [replace(p, label=f"{full} ×{last.members}", brief=label, title=_without_front(p)) for p, _ in family]
        single = rows[0].record.ensemble is None
        curves.append(Curve(full, 0, drawn, None if single else _predict(rows, smallest[_ensembles(rows[0])])))
    curves.sort(key=lambda curve: (curve.label, curve.points[0].anchor))
    return _coloured(curves)


def _smallest(rows: Sequence[Row]) -> dict[tuple[str, ...], Row]:
    """Return the smallest row of each kind of ensemble that says its size, by models, then by members."""
    found: dict[tuple[str, ...], Row] = {}
    for row in sorted(rows, key=lambda row: (row.size or (math.inf, math.inf), row.record.run_id)):
        found.setdefault(_ensembles(row), row)
    return found


def _ensembles(row: Row) -> tuple[str, ...]:
    """Return what ensembles share that differ in nothing but their size; a single model is an independent one."""
    record, ensemble = row.record, row.record.ensemble
    kind = "independent()" if ensemble is None else format_ensemble(ensemble.kind, _variant(ensemble))
    options = json.dumps(record.options, sort_keys=True)
    return record.provenance.method_sha256, json.dumps(record.versions, sort_keys=True), options, kind


def _variant(ensemble: EnsembleRecord) -> dict[str, OptionValue]:
    return {name: value for name, value in ensemble.options.items() if name not in SIZES}


def _coloured(curves: Sequence[Curve]) -> list[Curve]:
    """Give neighbours among the curves other colours: the method, whose colour they would have, is the chart's."""
    return [
        replace(curve, colour=colour, points=[replace(p, colour=colour) for p in curve.points])
        for curve, colour in zip(curves, cycle(range(len(PALETTE))), strict=False)
    ]


def _label(rows: Sequence[Row]) -> str:
    ensemble = rows[0].record.ensemble
    if ensemble is None:
        return "one model"
    models = {row.size[0] for row in rows if row.size is not None}
    several = ensemble.kind != "independent" and len(models) == 1 and max(models) > 1
    variant = format_ensemble(ensemble.kind, _variant(ensemble))
    return f"{variant.removesuffix('()')}{f', {max(models):g} models' if several else ''}"


def _without_front(point: Point) -> str:
    """Leave out the last line of a point's title, which says whether it is on the front."""
    return point.title.rpartition("\n")[0]


def _predict(rows: Sequence[Row], first: Row) -> Prediction | None:
    """Predict a curve, smallest size first, from the correlations of its largest row that has any.

    Parameters
    ----------
    first
        Where the prediction starts: the smallest ensemble of the kind.
    """
    within, between = next((c for row in reversed(rows) if (c := row.correlations) != _NONE), _NONE)
    sizes, start, lds = [row.size for row in rows if row.size is not None], first.size, _start(first, rows[-1])
    if (within, between) == _NONE or start is None or lds is None or len(sizes) < len(rows):
        return None
    grows = _direction(rows[0].kind, sizes)

    def at(members: float) -> float | None:
        models, per_model = sizes[0]
        to = (members / per_model, per_model) if grows == "models" else (models, members / models)
        return predicted_lds(lds, start, to, within, between)

    smallest, largest = min(first.members, rows[0].members), rows[-1].members
    steps = [smallest * (2 * largest / smallest) ** (i / _STEPS) for i in range(_STEPS + 1)]
    line = [(n, value) for n in steps if (value := at(n)) is not None and value <= 1]  # more than 1 cannot be
    at_largest, limit = at(largest), at(math.inf)
    if at_largest is None or limit is None or len(line) < 2:
        return None
    return Prediction(line, None if first is rows[-1] else at_largest, limit, within, between)


def _start(first: Row, last: Row) -> float | None:
    """Return the LDS that a prediction starts from: at the run seeds that the largest has, too, so at its models."""
    if first.draws is None or last.draws is None:
        return first.lds
    return estimate_beside(first.draws, last.draws)


def _direction(kind: str, sizes: Sequence[tuple[float, float]]) -> str:
    """Say what a curve has more and more of; a single size tells nothing, so there the kind says it."""
    if len({models for models, _ in sizes}) > 1 or (len(set(sizes)) == 1 and kind == "independent"):
        return "models"
    return "members"
