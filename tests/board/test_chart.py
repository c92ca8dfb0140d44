import itertools
import math
import os
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tdabench.board
from tdabench.board.chart import COMPACT, WIDE, draw
from tdabench.board.marks import PALETTE, PATHS, colours, curves, points
from tdabench.board.names import names
from tdabench.board.scale import cost_scale, cost_ticks, score_scale, score_ticks
from tdabench.results.axes import AXES
from tdabench.results.rows import in_order, on_fronts, rows_of

AXIS = {axis.key: axis for axis in AXES}
STYLE = (Path(tdabench.board.__file__).parent / "style.css").read_text(encoding="utf-8")
GOLDEN = Path(__file__).parents[1] / "golden" / "board_chart.svg"


def chart(rows, axis="train", ceiling=0.71, size=WIDE):
    rows = in_order(rows)
    anchors = [f"run-{i}" for i in range(len(rows))]
    drawn = points(rows, AXIS[axis], on_fronts(rows), names(rows), anchors, colours(rows))
    return str(draw(drawn, AXIS[axis], ceiling, size, "a chart"))


def parsed(svg):
    return ET.fromstring(svg)


def having(svg, css):
    return [e for e in parsed(svg).iter() if css in e.get("class", "").split()]


def place(element):
    x, y = element.get("transform")[len("translate(") : -1].split()
    return float(x), float(y)


def test_chart_is_as_it_was(make):
    """To accept a change after looking at it: TDABENCH_GOLDEN=write pytest tests/board/test_chart.py."""
    rows = [row for row in make.board() if row.record.task_version == "0123456789abcdef"]
    svg = chart(rows, "extra") + "\n"
    if os.environ.get("TDABENCH_GOLDEN") == "write":
        GOLDEN.write_text(svg, encoding="utf-8")
    assert svg == GOLDEN.read_text(encoding="utf-8")


def test_every_scored_run_is_a_focusable_point_with_a_title(make):
    svg = chart(make.board()[:10])
    marks = having(svg, "point")
    assert len(marks) == 10
    assert all(m.tag == "a" and m.get("href").startswith("#run-") for m in marks)
    titles = [m.find("title").text for m in marks]
    assert any(t.startswith("ek-fac\nLDS 0.318 (95 % interval 0.288 to 0.348)\n") for t in titles)


def test_zero_costs_stand_in_a_column_left_of_the_axis(make):
    rows = [make.row("a", 0.1, costs={"extra_train_s": 0.0}), make.row("b", 0.2, costs={"extra_train_s": 5.0})]
    svg = chart(rows, "extra")
    (column,) = having(svg, "zeros")
    zero, positive = sorted(place(m)[0] for m in having(svg, "point"))
    left, right = float(column.get("x")), float(column.get("x")) + float(column.get("width"))
    assert left < zero < right < positive
    assert any(t.text == "0" and t.get("x") == f"{zero:g}" for t in parsed(svg).iter("text"))


def test_all_costs_zero_is_drawn(make):
    svg = chart([make.row()], "extra")
    assert len(having(svg, "point")) == 1
    assert not having(svg, "tick")


def test_no_zero_column_without_zeros(make):
    assert not having(chart([make.row()], "train"), "zeros")


def test_front_runs_are_filled_and_labelled_and_others_are_not(make):
    svg = chart([make.row("good", 0.4), make.row("bad", 0.1)])
    assert [m.find("title").text.split("\n")[0] for m in having(svg, "on-front")] == ["good"]
    assert [t.text for t in having(svg, "label")] == ["good"]
    assert "on the front" in svg
    assert "beaten by one on the front" in svg


def test_what_is_lone_and_beaten_is_named_on_a_wide_chart(make):
    rows = [make.row("good", 0.4), make.row("bad", 0.1), make.row("worse", 0.2, ensemble=make.ensemble("lora", 2, n=2))]
    assert "bad" in [t.text for t in having(chart(rows), "size")]
    assert not having(chart(rows, size=COMPACT), "size")


def test_labels_and_curves_say_which_rows_they_are_of(make):
    rows = [make.row(run_id=f"i{n}", lds=n / 10, ensemble=make.ensemble("independent", n, models=n)) for n in (1, 5, 2)]
    svg = chart(rows)
    anchors = {m.get("href")[1:] for m in having(svg, "point")}
    (curve,) = having(svg, "curve")
    assert set(curve.get("data-of").split(" ")) == anchors
    assert {t.get("data-of") for t in [*having(svg, "label"), *having(svg, "size")]} <= anchors


def test_front_steps_through_its_runs(make):
    rows = [make.row("a", 0.1, costs={"fit_s": 1.0}), make.row("b", 0.3, costs={"fit_s": 9.0})]
    svg = chart(rows, "serve")
    (x0, y0), (x1, y1) = sorted(place(m) for m in having(svg, "on-front"))
    (front,) = having(svg, "front")
    assert front.get("d").startswith(f"M{x0:g} {y0:g}H{x1:g}V{y1:g}H")


def test_whiskers_span_the_interval(make):
    svg = chart([make.row(lds=0.3, half=0.1)])
    (whisker,) = having(svg, "whisker")
    top, bottom = (float(v) for v in whisker.get("d")[len("M0 ") :].split("M")[0].split("V"))
    assert top < 0 < bottom
    assert top == pytest.approx(-bottom, abs=0.15)


def test_ceiling_is_drawn_and_named_only_where_there_is_one(make):
    assert "noise ceiling 0.710" in chart([make.row()])
    assert not having(chart([make.row()], ceiling=None), "ceiling")


def test_a_negative_lds_stays_inside_the_plot(make):
    (point,) = having(chart([make.row(lds=-0.4)]), "point")
    assert place(point)[1] < WIDE.height - 44


def test_ensembles_of_one_variant_are_one_curve(make):
    members = [make.row(run_id=f"i{n}", ensemble=make.ensemble("independent", n, models=n)) for n in (1, 5, 2)]
    single = make.row(run_id="one")
    keys = curves([*members, single])
    assert len(set(keys[:3])) == 1
    assert keys[3] != keys[0]
    assert len(having(chart([*members, single]), "curve")) == 1


def test_variants_and_numbers_of_models_are_curves_of_their_own(make):
    def dropout(models, masks, scope="all"):
        options = {"models": models, "masks": masks, "scope": scope}
        return make.row(ensemble=make.ensemble("dropout", models * masks, **options))

    keys = curves([dropout(1, 2), dropout(1, 5), dropout(5, 2), dropout(5, 5), dropout(1, 2, "q-only")])
    assert keys[0] == keys[1]
    assert keys[2] == keys[3]
    assert len(set(keys)) == 3


def test_kinds_have_shapes_and_unknown_kinds_share_one(make):
    rows = [make.row(f"m{i}", ensemble=make.ensemble(k, 2, x=2)) for i, k in enumerate(("dropout", "lora", "new"))]
    drawn = {m.get("d") for m in having(chart(rows), "mark")}
    assert drawn == {PATHS["triangle"], PATHS["diamond"], PATHS["cross"]}


def test_checkpoints_of_the_whole_training_are_told_from_those_of_its_second_half(make):
    ensembles = [
        make.ensemble("checkpoints", 5, models=1, last=5, every=None, **more) for more in ({}, {"span": "whole"})
    ]
    rows = [make.row(f"m{i}", 0.2 + i / 10, ensemble=e, costs={"fit_s": 1.0 + i}) for i, e in enumerate(ensembles)]
    svg = chart(rows, "serve")
    assert {m.get("d") for m in having(svg, "mark")} == {PATHS["wedge"], PATHS["hourglass"]}
    assert {t.text for t in having(svg, "label")} == {"m0 · checkpoints ×5", "m1 · checkpoints whole ×5"}


def test_flavours_of_dropout_have_shapes_and_labels_of_their_own(make):
    def dropout(lds, masks, **options):
        ensemble = make.ensemble("dropout", masks, models=1, masks=masks, **options)
        return make.row("trak", lds, ensemble=ensemble, run_id=f"{lds}", costs={"fit_s": 10 * lds})

    rows = [
        dropout(0.15, 5),
        dropout(0.25, 20, scope="q-only"),
        dropout(0.35, 20, mask="per-sample"),
        dropout(0.45, 20, scope="q-only", mask="per-sample"),
    ]
    svg = chart(rows, "serve")
    assert len({m.get("d") for m in having(svg, "mark")}) == 4
    assert {t.text for t in having(svg, "label")} == {
        "trak · dropout ×5",
        "trak · dropout q-only ×20",
        "trak · dropout per-sample ×20",
        "trak · dropout q-only per-sample ×20",
    }


def test_a_shorter_label_says_the_ensemble_rather_than_the_method(make):
    rows = [
        make.row(ensemble=make.ensemble("dropout", 5, models=1, masks=5)),
        make.row(ensemble=make.ensemble("dropout", 5, models=1, masks=5, scope="q-only")),
        make.row(ensemble=make.ensemble("independent", 5, models=5)),
    ]
    drawn = points(rows, AXIS["train"], on_fronts(rows), names(rows), list("abc"), colours(rows))
    assert [(p.brief, p.size) for p in drawn] == [
        ("dropout ×5", "×5"),
        ("dropout q-only ×5", "q-only ×5"),
        ("independent ×5", "×5"),
    ]


def test_beyond_the_palette_curves_keep_their_colours_and_single_points_share_a_grey(make):
    singles = [make.row(f"method-{i}", 0.1, run_id=f"single-{i}") for i in range(len(PALETTE))]
    curve = [
        make.row("zeta", n / 10, run_id=f"zeta-{n}", ensemble=make.ensemble("independent", n, models=n)) for n in (2, 5)
    ]
    assert set(colours(singles).values()) == set(range(len(PALETTE)))
    found = colours([*singles, *curve])
    own = [method for method, colour in found.items() if colour != len(PALETTE) - 1]
    assert found["zeta"] == 0
    assert len({found[method] for method in own}) == len(own) == len(PALETTE) - 1


def test_sizes_beside_a_curve_say_the_flavour(make):
    beaten = make.ensemble("dropout", 5, models=1, masks=5, scope="q-only")
    rows = [make.row("trak", 0.1, ensemble=beaten, costs={"train_s": 50.0}), make.row("grad-dot", 0.4)]
    assert [t.text for t in having(chart(rows), "size")] == ["q-only ×5"]


def test_runs_of_two_versions_of_a_method_s_file_are_not_one_curve(make):
    def run(n, sha):
        return make.row(
            "trak", n / 10, run_id=f"{n}{sha}", ensemble=make.ensemble("independent", n, models=n), code=sha * 64
        )

    rows = [run(1, "a"), run(2, "a"), run(5, "b")]
    keys = curves(rows)
    assert keys[0] == keys[1] != keys[2]
    assert {t.text for t in having(chart([rows[2]]), "label")} == {"trak · independent ×5"}
    assert "trak · independent ×5 (code bbbbbb)" in {t.text for t in having(chart(rows), "label")}


def test_seeds_are_one_point_at_the_mean(make):
    times = (10.0, 20.0, 30.0)
    runs = [
        make.run(lds=0.2 + 0.1 * seed, seed=seed, run_id=f"{seed}", costs={"train_s": s})
        for seed, s in enumerate(times)
    ]
    drawn = having(chart(rows_of([*runs, make.run("grad-dot", 0.1)])), "point")
    assert len(drawn) == 2
    (title,) = [m.find("title").text for m in drawn if m.find("title").text.startswith("trak\n")]
    assert "LDS 0.300 (3 seeds, 95 % interval " in title
    assert "training time, from nothing: 20 s\n" in title


def test_sizes_with_different_seeds_are_one_curve(make):
    def runs(n, lds):
        return make.seeds(lds=lds, run_id=f"i{n}", ensemble=make.ensemble("independent", n, models=n))

    rows = rows_of([*runs(1, (0.1, 0.2, 0.15)), *runs(5, (0.3,))])
    assert len(set(curves(rows))) == 1
    assert len(having(chart(rows), "curve")) == 1


def test_drawn_methods_get_the_first_colours(make):
    rows = [make.row(f"a{i}", status="failed") for i in range(9)] + [make.row("z")]
    assert colours(rows)["z"] == 0


def boxes(svg, size):
    found = []
    for text in having(svg, "label") + having(svg, "size"):
        width = 0.6 * size.font * len(text.text)
        left = float(text.get("x")) - width * {"start": 0, "middle": 0.5, "end": 1}[text.get("text-anchor")]
        found.append((left, float(text.get("y")) - size.font * 0.8, left + width, float(text.get("y"))))
    return found


@pytest.mark.parametrize("size", [WIDE, COMPACT], ids=lambda s: s.name)
@pytest.mark.parametrize("axis", list(AXIS))
def test_labels_overlap_neither_each_other_nor_the_edge(make, axis, size):
    svg = chart([row for row in make.board() if row.record.task_version[0] == "0"], axis, size=size)
    found = boxes(svg, size)
    assert all(left >= 0 and right <= size.width for left, _, right, _ in found)
    for a, b in itertools.combinations(found, 2):
        assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]


@pytest.mark.parametrize("axis", list(AXIS))
def test_sizes_lie_across_no_curve(make, axis):
    svg = chart([row for row in make.board() if row.record.task_version[0] == "0"], axis)
    curves_drawn = [
        [tuple(map(float, pair.split())) for pair in curve.get("d")[1:].split("L")] for curve in having(svg, "curve")
    ]
    for text in having(svg, "size"):
        width = 0.6 * WIDE.font * len(text.text)
        left = float(text.get("x")) - width * {"start": 0, "middle": 0.5, "end": 1}[text.get("text-anchor")]
        bottom = float(text.get("y"))
        for curve in curves_drawn:
            for (x0, y0), (x1, y1) in itertools.pairwise(curve):
                for share in np.linspace(0, 1, 200):
                    x, y = x0 + share * (x1 - x0), y0 + share * (y1 - y0)
                    assert not (left < x < left + width and bottom - 0.8 * WIDE.font < y < bottom), text.text


def test_hostile_names_are_text(make):
    svg = chart([make.row(make.HOSTILE, 0.3, ensemble=make.ensemble(make.HOSTILE, 2, models=2))])
    assert "<script" not in svg
    assert make.HOSTILE in parsed(svg).find(".//{*}title").text


@given(st.lists(st.one_of(st.just(0.0), st.floats(1e-9, 1e12)), min_size=1, max_size=12), st.sampled_from(["s", "B"]))
def test_scales_keep_order_and_bounds_and_have_ticks(values, unit):
    scale = cost_scale(values, 40, 800)
    placed = [scale(v) for v in sorted(values)]
    assert placed == sorted(placed)
    assert all(40 <= p <= 800 for p in placed)
    ticks = cost_ticks(scale, unit, 6)
    assert (1 if any(values) else 0) <= len(ticks) <= 6
    assert all(scale.start <= scale(t) <= scale.end + 1e-6 for t in ticks)


@pytest.mark.parametrize("values", [[1e-295, 1e18], [5e-324], [5e-324, 1e-300], [0.0, 5e-324, 2e18]])
def test_scales_hold_costs_that_nothing_has(values):
    scale = cost_scale(values, 40, 800)
    placed = [scale(v) for v in values]
    assert placed == sorted(placed)
    assert all(40 <= p <= 800 for p in placed)
    assert len(cost_ticks(scale, "s", 6)) <= 6


@given(st.lists(st.floats(-9, 9), min_size=0, max_size=8))
def test_score_scale_holds_zero_and_all_values(values):
    scale = score_scale(values, 400, 30)
    assert all(30 - 1e-6 <= scale(v) <= 400 + 1e-6 for v in [0.0, *values])
    assert 0.0 in score_ticks(scale)
    assert len(score_ticks(scale)) <= 8


def test_ticks_are_values_that_people_name():
    assert cost_ticks(cost_scale([1.0, 7200.0], 0, 1), "s", 5) == [1.0, 10.0, 60.0, 600.0, 3600.0]
    assert cost_ticks(cost_scale([1e3, 2e3], 0, 1), "B", 6) == [500.0, 1000.0, 2000.0]


# Machado, Oliveira and Fernandes (2009), severity 1; and Ottosson's Oklab.
DEFICIENCIES = {
    "none": np.eye(3),
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritan": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}
TO_LMS = [
    [0.4122214708, 0.5363325363, 0.0514459929],
    [0.2119034982, 0.6806995451, 0.1073969566],
    [0.0883024619, 0.2817188376, 0.6299787005],
]
TO_LAB = [
    [0.2104542553, 0.7936177850, -0.0040720468],
    [1.9779984951, -2.4285922050, 0.4505937099],
    [0.0259040371, 0.7827717662, -0.8086757660],
]


def linear(colour):
    rgb = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def luminance(colour):
    return float(linear(colour) @ [0.2126, 0.7152, 0.0722])


def contrast(colour, background):
    low, high = sorted((luminance(colour), luminance(background)))
    return (high + 0.05) / (low + 0.05)


def mixed(colour, other, share):
    """``share`` of a colour over another, as a browser blends them."""
    pairs = ((int(colour[i : i + 2], 16), int(other[i : i + 2], 16)) for i in (1, 3, 5))
    return "#" + "".join(f"{round(share * a + (1 - share) * b):02x}" for a, b in pairs)


def styled(selector, found):
    """What a pattern finds in the rules that have a selector."""
    rules = re.findall(r"^(\S[^{}]*) \{ ([^}]*) \}", STYLE, re.M)
    return [m[1] for names, rule in rules if selector in names.split(", ") and (m := re.search(found, rule))]


SCHEMES = pytest.mark.parametrize(
    ("scheme", "background", "ink"), [(0, "#ffffff", "#191b1f"), (1, "#14171c", "#eceef1")], ids=["light", "dark"]
)


@SCHEMES
def test_marks_stand_out_from_the_background(scheme, background, ink):
    marks = (".point .mark", ".point:not(.on-front) .mark", ".point.on-front .mark")
    assert all(styled(mark, r"(stroke-width)") for mark in marks), "the rules for marks have other names now"
    opacity = math.prod(float(value) for mark in marks for value in styled(mark, r"\bopacity: ([\d.]+)"))
    for pair in PALETTE:
        assert contrast(mixed(pair[scheme], background, opacity), background) >= 3


@SCHEMES
def test_labels_can_be_read_on_the_background(scheme, background, ink):
    assert STYLE.count(f"--bg: {background};") == STYLE.count(f"--ink: {ink};") == 1
    for label in (".chart .label", ".chart .size"):
        (percent,) = styled(label, r"fill: color-mix\(in srgb, var\(--c\) (\d+)%, var\(--ink\)\)")
        assert not styled(label, r"\b(opacity)")
        for pair in PALETTE:
            assert contrast(mixed(pair[scheme], ink, int(percent) / 100), background) >= 4.5


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
@pytest.mark.parametrize("deficiency", list(DEFICIENCIES))
def test_colours_stay_apart_for_colour_blind_readers(scheme, deficiency):
    def seen(colour):
        rgb = np.clip(np.array(DEFICIENCIES[deficiency]) @ linear(colour), 0, 1)
        return np.array(TO_LAB) @ np.cbrt(np.array(TO_LMS) @ rgb)

    for a, b in itertools.combinations([pair[scheme] for pair in PALETTE], 2):
        assert math.dist(seen(a), seen(b)) > 0.08
