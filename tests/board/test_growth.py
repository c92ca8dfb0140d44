"""How ensembles grow: curves over size, and the lines predicted from correlations."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ET

import pytest

from tdabench.board import render
from tdabench.board.growth import grown
from tdabench.board.marks import PATHS
from tdabench.board.names import names
from tdabench.findings.agreement import growths
from tdabench.findings.entries import contests_of
from tdabench.results.rows import in_order, rows_of
from tdabench.saturation import predicted_lds


def curves(rows):
    rows = in_order(rows)
    return grown(rows, names(rows), [f"run-{i}" for i in range(len(rows))])


def pairs(within=None, between=None):
    return {"within": within, "between": between, "n_within_pairs": 1, "n_between_pairs": 1}


@pytest.fixture
def independent(make):
    """Return independent ensembles of 1, 2 and 8 models; all that was measured of their members is on the largest."""

    def run(n, lds):
        correlations = pairs(None, 0.25) if n == 8 else None
        return make.row("m", lds, ensemble=make.ensemble("independent", n, models=n), correlations=correlations,
                        run_id=f"i{n}")  # fmt: skip

    return [run(8, 0.36), run(1, 0.2), run(2, 0.25)]


def test_a_curve_is_predicted_from_its_smallest_run_and_its_largest_s_correlations(independent):
    (curve,) = curves(independent)["m"]
    assert [p.cost for p in curve.points] == [1, 2, 8]
    found = curve.prediction
    assert found.line[0] == (1, pytest.approx(0.2))
    assert found.line[-1] == (pytest.approx(16), pytest.approx(predicted_lds(0.2, (1, 1), (16, 1), None, 0.25)))
    assert found.at_largest == pytest.approx(0.2 / math.sqrt(1 / 8 + 7 / 8 * 0.25))
    assert found.limit == pytest.approx(0.2 / math.sqrt(0.25))
    assert curve.summary == (
        "LDS 0.200 at 1, 0.360 at 8; predicted 0.341 at 8, 0.400 in the limit; members correlate 0.250 between models"
    )


@pytest.mark.parametrize(
    ("sizes", "limit"),
    [
        ([(3, 2), (3, 10)], 0.3 * math.sqrt(((1 + 0.5) / 2 / 3 + 2 / 3 * 0.2) / (0.5 / 3 + 2 / 3 * 0.2))),  # more masks
        ([(1, 4), (5, 4)], 0.3 * math.sqrt((1 + 3 * 0.5) / 4 / 0.2)),  # more models
    ],
)
def test_what_grows_along_a_curve_is_what_is_predicted(make, sizes, limit):
    rows = [
        make.row("m", 0.3, ensemble=make.ensemble("dropout", i * d, models=i, masks=d), correlations=pairs(0.5, 0.2))
        for i, d in sizes
    ]
    (curve,) = curves(rows)["m"]
    assert curve.prediction.limit == pytest.approx(limit)


def test_a_prediction_starts_from_the_smallest_of_the_kind_as_findings_do(make):
    def dropout(models, lds, **changes):
        made = make.ensemble("dropout", models * 2, models=models, masks=2)
        return make.run("m", lds, ensemble=made, correlations=pairs(0.5, 0.2), run_id=f"d{models}", **changes)

    five = make.run("m", 0.3, ensemble=make.ensemble("independent", 5, models=5), correlations=pairs(None, 0.25))
    wider = make.run("m", 0.31, ensemble=make.ensemble("dropout", 20, models=5, masks=4), correlations=pairs(0.5, 0.2))
    runs = [make.run("m", 0.2, run_id="one"), five, dropout(1, 0.22), dropout(5, 0.3), wider]
    found = {curve.label: curve.prediction for curve in curves(rows_of(runs))["m"]}
    assert found["independent"].at_largest == predicted_lds(0.2, (1, 1), (5, 1), None, 0.25)
    assert found["dropout, 5 models"].at_largest == predicted_lds(0.22, (1, 2), (5, 4), 0.5, 0.2)
    assert found["dropout"].at_largest is None, "of the smallest alone nothing is foretold but the limit"
    (contest,) = contests_of(runs, [make.task()])
    said = {(growth.flavour, growth.last.models): growth.at_last for growth in growths(contest.families[0])}
    assert said["independent", 5] == found["independent"].at_largest
    assert said["dropout", 5] == found["dropout, 5 models"].at_largest


@pytest.mark.parametrize("kind", ["checkpoints", "projections"])
def test_new_kinds_are_curves_with_a_mark_of_their_own(make, kind):
    count = {"checkpoints": "last", "projections": "seeds"}[kind]
    rows = [
        make.row("m", 0.2, ensemble=make.ensemble(kind, n, models=1, **{count: n}), correlations=pairs(0.8))
        for n in (2, 4)
    ]
    (curve,) = curves(rows)["m"]
    assert curve.label == kind
    assert len({PATHS[p.shape] for p in curve.points} - {PATHS["circle"], PATHS["cross"], PATHS["square"]}) == 1
    assert curve.prediction.limit == pytest.approx(0.2 * math.sqrt((1 + 0.8) / 2 / 0.8))


def test_nothing_is_predicted_where_something_is_missing(make):
    def prediction(kind, members, correlations, **options):
        row = make.row("m", 0.2, ensemble=make.ensemble(kind, members, **options), correlations=correlations)
        (curve,) = curves([row])["m"]
        return curve.prediction

    assert prediction("independent", 2, None, models=2) is None
    assert prediction("independent", 2, pairs(0.5, None), models=2) is None
    assert prediction("dropout", 10, pairs(None, 0.5), models=2, masks=5, scope="q-only") is None
    assert prediction("somebody-s", 10, pairs(0.5, 0.5), size=10) is None
    assert prediction("independent", 2, pairs(None, -1.0), models=2) is None
    assert prediction("independent", 2, pairs(None, 0.5), models=2) is not None


def test_a_prediction_never_exceeds_one(make):
    row = make.row("m", 0.9, ensemble=make.ensemble("independent", 1, models=1), correlations=pairs(None, 0.01))
    (curve,) = curves([row])["m"]
    assert all(lds <= 1 for _, lds in curve.prediction.line)


def test_variants_are_told_apart(make):
    def dropout(models, masks, power=1, **options):
        ensemble = make.ensemble("dropout", models * masks, models=models, masks=masks, **options)
        return make.row("m", 0.2, ensemble=ensemble, options={"power": power}, run_id=f"{models}{masks}{options}")

    rows = [dropout(1, 2), dropout(1, 4), dropout(5, 2), dropout(5, 4), dropout(1, 2, scope="q-only")]
    labels = [curve.label for curve in curves(rows)["m"]]
    assert labels == ["dropout", "dropout(scope=q-only)", "dropout, 5 models"]
    assert len({curve.label for curve in curves([dropout(1, 2), dropout(1, 2, power=2)])["m"]}) == 2


def test_a_prediction_is_made_from_means_over_seeds(make):
    def runs(n, lds, between):
        return [
            make.run("m", value, seed=seed, ensemble=make.ensemble("independent", n, models=n),
                     correlations=pairs(None, b), run_id=f"i{n}-{seed}")
            for seed, (value, b) in enumerate(zip(lds, between, strict=True))
        ]  # fmt: skip

    (curve,) = curves(rows_of([*runs(2, (0.2, 0.3), (0.5, 0.5)), *runs(8, (0.3, 0.4), (0.2, 0.3))]))["m"]
    assert [p.lds for p in curve.points] == [pytest.approx(0.25), pytest.approx(0.35)]
    assert curve.prediction.between == pytest.approx(0.25)
    assert curve.prediction.limit == pytest.approx(0.25 * math.sqrt((1 / 2 + 1 / 2 * 0.25) / 0.25))


def test_a_prediction_starts_at_the_seeds_that_the_largest_has(make):
    def one(n, seed, lds):
        ensemble = make.ensemble("independent", n, models=n)
        return make.run("m", lds, seed=seed, ensemble=ensemble, correlations=pairs(None, 0.25), run_id=f"i{n}-{seed}")

    (curve,) = curves(rows_of([one(2, 0, 0.2), one(2, 1, 0.4), one(8, 0, 0.3)]))["m"]
    assert curve.prediction.at_largest == pytest.approx(predicted_lds(0.2, (2, 1), (8, 1), None, 0.25))


def test_more_than_one_is_not_foretold_as_a_number(make):
    rows = [
        make.row(
            "m", lds, ensemble=make.ensemble("independent", n, models=n), correlations=pairs(None, 0.02), run_id=f"i{n}"
        )
        for n, lds in ((5, 0.4), (10, 0.45))
    ]
    (curve,) = curves(rows)["m"]
    assert curve.prediction.limit > 1
    assert "; predicted 0.541 at 10, > 1 in the limit;" in curve.summary


def test_one_size_foretells_its_limit_and_not_itself(make):
    row = make.row("m", 0.3, ensemble=make.ensemble("dropout", 5, models=1, masks=5), correlations=pairs(0.5))
    (curve,) = curves([row])["m"]
    assert curve.summary.startswith("LDS 0.300 at 5; predicted 0.329 in the limit;")


def test_methods_without_an_ensemble_are_not_drawn(make):
    assert curves([make.row("alone")]) == {}
    both = curves([make.row("m"), make.row("m", ensemble=make.ensemble("independent", 2, models=2))])
    assert [c.label for c in both["m"]] == ["independent", "one model"]


def growth_charts(html):
    part = html.split('<div class="growth">')[1].split("<h3>")[0]
    return [ET.fromstring(svg) for svg in re.findall(r'<svg class="chart.*?</svg>', part, re.DOTALL)]


def test_page_draws_each_method_s_ensembles_with_dashed_predictions(make):
    html = render(make.board(), [make.task()])
    charts = growth_charts(html)
    assert len(charts) == 3
    dashed = [e for chart in charts for e in chart.iter() if "predicted" in e.get("class", "").split()]
    assert len(dashed) == 5
    assert all(e.find("title").text.startswith("predicted: ") for e in dashed)
    titles = [e.text for chart in charts for e in chart.iter("title")]
    assert not any("front" in t for t in titles)
    assert "A dashed line is a prediction" in html


def test_page_without_ensembles_says_nothing_of_growth(make):
    assert "How ensembles grow" not in render([make.row()], [make.task()])


def test_correlations_are_among_a_run_s_details_and_in_the_table(make):
    from tdabench.board import results_frame

    ensemble = make.ensemble("lora", 4, models=2, adapters=2)
    rows = [make.row("m", ensemble=ensemble, correlations=pairs(0.625, 0.125)), make.row("n")]
    html = render(rows, [make.task()])
    assert "<dt>correlation within a model</dt><dd>0.625</dd>" in html
    assert "<dt>correlation between models</dt><dd>0.125</dd>" in html
    frame = results_frame(rows)
    assert frame["correlation_within"].tolist() == [0.625, None]
    assert frame["correlation_between"].tolist() == [0.125, None]


def test_curves_of_a_method_have_colours_of_their_own(make):
    def lora(n, **options):
        return make.row("m", 0.2, ensemble=make.ensemble("lora", n, models=1, adapters=n, **options))

    dropout = make.row("m", 0.2, ensemble=make.ensemble("dropout", 5, models=1, masks=5))
    found = curves([lora(2), lora(5), lora(2, rank=2), lora(2, rank=32), dropout])["m"]
    assert [(c.label, c.colour) for c in found] == [
        ("dropout", 0),
        ("lora", 1),
        ("lora(rank=2)", 2),
        ("lora(rank=32)", 3),
    ]
    assert all(point.colour == curve.colour for curve in found for point in curve.points)
