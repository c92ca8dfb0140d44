import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tdabench.board.rows import (
    AXES,
    format_bytes,
    format_count,
    format_score,
    format_seconds,
    in_order,
    names,
    on_fronts,
)

AXIS = {axis.key: axis for axis in AXES}


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "–"),
        (math.nan, "–"),
        (0, "0 s"),
        (2e-7, "0.2 µs"),
        (0.0000123, "12.3 µs"),
        (0.0123, "12.3 ms"),
        (0.9999, "1 s"),
        (1.5, "1.5 s"),
        (59.99, "1 min"),
        (312, "5.2 min"),
        (3600, "1 h"),
        (5 * 86400, "5 d"),
        (5000 * 86400, "5000 d"),
    ],
)
def test_seconds_are_written_for_people(seconds, text):
    assert format_seconds(seconds) == text


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (None, "–"),
        (0, "0 B"),
        (999, "999 B"),
        (1234, "1.2 kB"),
        (999_999, "1 MB"),
        (1_234_567, "1.2 MB"),
        (350_000_000, "350 MB"),
        (64_000_000_000, "64 GB"),
    ],
)
def test_sizes_are_written_for_people(size, text):
    assert format_bytes(size) == text


@pytest.mark.parametrize(("n", "text"), [(0, "0"), (7, "7"), (9999, "9,999"), (12_000, "12 k"), (1_234_567, "1.23 M")])
def test_counts_are_written_for_people(n, text):
    assert format_count(n) == text


@pytest.mark.parametrize(("lds", "text"), [(0.41234, "0.412"), (-0.03, "−0.030"), (-0.0001, "0.000"), (None, "–")])
def test_scores_have_three_decimals_and_a_true_minus(lds, text):
    assert format_score(lds) == text


@given(st.floats(min_value=1e-9, max_value=1e15))
def test_written_times_are_within_rounding_of_the_value(seconds):
    units = {"µs": 1e-6, "ms": 1e-3, "s": 1, "min": 60, "h": 3600, "d": 86400}
    number, unit = format_seconds(seconds).split()
    assert math.isclose(float(number) * units[unit], seconds, rel_tol=0.0051) or seconds < 1e-6


def test_costs_are_read_from_the_record(make):
    row = make.row(costs={"train_s": 10.0, "extra_train_s": 4.0, "fit_s": 2.0, "attribute_s": 1.0})
    assert {k: AXIS[k].value(row) for k in ("train", "extra", "serve", "total")} == {
        "train": 10.0,
        "extra": 4.0,
        "serve": 3.0,
        "total": 13.0,
    }
    assert AXIS["memory"].value(row) == 350_000_000
    assert AXIS["memory"].text(1_234_567) == "1.2 MB"


def test_memory_is_the_devices_where_the_record_has_it(make):
    row = make.row(costs={"peak_device_bytes": 5_000})
    assert AXIS["memory"].value(row) == 5_000


def test_costs_that_were_not_measured_are_missing(make):
    assert AXIS["train"].value(make.row(status="timeout")) is None


def test_a_run_that_did_not_end_well_has_no_lds(make):
    assert make.row(status="failed").lds is None
    assert make.row(lds=math.nan).lds is None


def test_order_does_not_depend_on_the_order_given_and_missing_is_last(make):
    rows = make.board()
    assert in_order(rows) == in_order(rows[::-1])
    scores = [row.lds for row in in_order(rows) if row.record.task_version == "0123456789abcdef"]
    known = [s for s in scores if s is not None]
    assert known == sorted(known, reverse=True)
    assert scores[len(known) :] == [None] * (len(scores) - len(known))


def test_fronts_do_not_mix_machine_classes(make):
    slow = make.row("trak", 0.3, costs={"fit_s": 50.0})
    fast = make.row("trak", 0.4, machine=make.GPU, costs={"fit_s": 0.1})
    assert all("serve" in keys for keys in on_fronts([slow, fast]))
    assert "serve" not in on_fronts([slow, make.row("trak", 0.4, costs={"fit_s": 0.1})])[0]


def test_fronts_do_not_mix_task_versions(make):
    old = make.row("trak", 0.1, costs={"fit_s": 50.0}, task_version="old")
    assert "serve" in on_fronts([old, make.row("trak", 0.4)])[0]


def test_identical_runs_share_the_front_and_zero_cost_is_on_it(make):
    keys = on_fronts([make.row(lds=0.3), make.row(lds=0.3), make.row(lds=0.2)])
    assert "extra" in keys[0]
    assert keys[0] == keys[1]
    assert not keys[2]


def test_runs_without_a_score_are_on_no_front(make):
    assert on_fronts([make.row(status="timeout", costs={})]) == [frozenset()]


def test_names_say_only_what_tells_runs_apart(make):
    dropout = [make.row(ensemble=make.ensemble("dropout", 10, models=m, masks=10 // m, scope="all")) for m in (1, 2)]
    assert names([make.row("trak"), *dropout]) == [
        "trak",
        "trak · dropout ×10 (models=1, masks=10)",
        "trak · dropout ×10 (models=2, masks=5)",
    ]


def test_names_fall_back_to_machine_and_run(make):
    rows = [make.row(run_id="a"), make.row(run_id="b"), make.row(machine=make.GPU)]
    assert names(rows[::2]) == ["trak (on AMD EPYC 7B13)", "trak (on NVIDIA H100 80GB HBM3)"]
    assert names(rows[:2]) == ["trak (run a)", "trak (run b)"]
