import io
import json

import pandas as pd
import pytest

from tdabench.board.table import COLUMNS, KEYS, csv_text, flat_rows, json_text, results_frame
from tdabench.front import pareto_front
from tdabench.results.rows import in_order, on_fronts, rows_of


def test_columns_are_the_same_for_any_rows(make):
    assert list(results_frame([]).columns) == COLUMNS
    assert list(results_frame(make.board()).columns) == COLUMNS
    assert len(set(COLUMNS)) == len(COLUMNS)


def test_one_row_a_run_in_the_order_given(make):
    rows = make.board()
    frame = results_frame(rows)
    assert list(frame.run_id) == [row.record.run_id for row in rows]


def test_values_are_those_of_the_record_and_the_evaluation(make):
    frame = results_frame([make.row(lds=0.3, group=2, costs={"fit_s": 1.25, "attribute_s": 0.25})])
    row = frame.iloc[0]
    assert (row.lds, row.lds_low, row.rank_group) == (0.3, 0.27, 2)
    assert (row.serve_s, row.total_s, row.peak_bytes) == (1.5, 14.0, 350_000_000)
    assert json.loads(row.options) == {"proj_dim": 512, "damping": 0.001}
    assert row.front_serve is True
    assert row.ensemble == "none"


def test_a_configuration_of_several_seeds_is_a_line_for_each_that_names_it(make):
    rows = in_order(rows_of([*make.seeds(lds=(0.2, 0.3, None)), make.run("grad-dot", 0.1)]))
    frame = results_frame(rows)
    assert list(frame.run_id) == ["trak-seed-0", "trak-seed-1", "trak-seed-2", "grad-dot-0001"]
    assert list(frame.seed) == [0, 1, 2, 0]
    assert [None if pd.isna(v) else v for v in frame.lds] == [0.2, 0.3, None, 0.1]
    names = list(frame.configuration)
    assert len(set(names[:3])) == 1
    assert names[0].startswith("trak ")
    assert names[3] not in names[:3]
    joined = frame.groupby("configuration", sort=False)[["configuration_lds", "configuration_seeds"]].agg(["nunique"])
    assert (joined == 1).to_numpy().all()
    assert frame.configuration_lds[0] == rows[0].lds
    assert (frame.configuration_low[0], frame.configuration_high[0]) == rows[0].interval
    assert list(frame.configuration_seeds) == [2, 2, 2, 1]
    assert json.loads(frame.rank_group.to_json(orient="values")) == [1, 1, None, 2]
    assert list(frame.front_train) == [True, True, False, False]


def test_fronts_follow_from_the_export(make):
    """One seed's training was slow: at the measured times the other method alone would be on the front."""

    def run(method, seed, lds, train, kind="independent", **changes):
        extra = train if kind == "checkpoints" else 0.0
        cost = {"train_s": train, "extra_train_s": extra, "fit_s": 1.0, "attribute_s": 0.0, "storage_bytes": 9}
        trainings = {f"model-{seed}-0": {"wall_s": train, "cpu_s": train}}
        wrapped = make.ensemble(kind, 1, models=1)
        named = {"run_id": f"{method}-{seed}", "ensemble": wrapped, "trainings": trainings, "seed": seed}
        return make.run(method, lds, costs=cost, **named | changes)

    runs = [
        *(run("a", seed, 0.3 + seed / 100, train) for seed, train in enumerate((9.0, 1.0, 2.0))),
        run("a", 3, None, 4.0, status="failed"),
        run("b", 1, 0.2, 1.0),
        run("c", 2, 0.5, 2.5, kind="checkpoints"),
        run("c", 2, 0.4, 7.5, kind="checkpoints", run_id="again"),
        run("a", 0, 0.1, 30.0, machine=make.GPU),
    ]
    frame = results_frame(in_order(rows_of(runs))).infer_objects()
    read = frame[frame.lds.notna()].copy()
    read["total"] = read.priced_train_s + read.serve_s
    assert read.total.tolist() == read.priced_total_s.tolist()
    checkpoints = read[read.ensemble == "checkpoints"]
    assert checkpoints.train_s.tolist() == [7.5, 2.5]
    assert checkpoints.priced_train_s.tolist() == checkpoints.priced_extra_train_s.tolist() == [3.0, 3.0]
    assert set(read[(read.ensemble == "independent") & (read.device == "cpu")].priced_train_s) == {3.0}
    columns = {"train": "priced_train_s", "extra": "priced_extra_train_s", "total": "priced_total_s"}
    columns |= {"serve": "serve_s", "memory": "peak_bytes", "storage": "storage_bytes"}
    for _, contest in read.groupby("machine_class"):
        joined = contest.groupby(["configuration", "seed"]).mean(numeric_only=True).groupby("configuration").mean()
        for key, column in columns.items():
            on = dict(zip(joined.index, pareto_front(joined.configuration_lds, joined[column]), strict=True))
            assert contest[f"front_{key}"].tolist() == [on[name] for name in contest.configuration], key


def test_the_page_s_rows_hold_means_and_lead_to_their_runs(make):
    runs = [make.run(lds=0.2 + seed / 10, seed=seed, run_id=f"{seed}", costs={"fit_s": seed * 2.0}) for seed in (0, 1)]
    rows = in_order(rows_of([*runs, make.run("grad-dot", 0.9, seed=3)]))
    first, second = (dict(zip(KEYS, row, strict=True)) for row in flat_rows(rows, on_fronts(rows)))
    assert (first["method"], first["runs"], second["method"], second["runs"]) == ("grad-dot", [0], "trak", [1, 2])
    assert second["lds"] == rows[1].lds
    assert second["fit_s"] == 1.0


def test_what_was_not_measured_is_missing_and_never_zero(make):
    row = results_frame([make.row(status="timeout", reason="too slow")]).iloc[0]
    assert row[["lds", "train_s", "serve_s", "peak_bytes", "storage_bytes", "models_trained"]].isna().all()
    assert (row.status, row.reason) == ("timeout", "too slow")


def test_costs_of_a_failed_run_are_kept_where_recorded(make):
    row = results_frame([make.row(status="timeout", costs={"train_s": 7.0})]).iloc[0]
    assert row.train_s == 7.0
    assert not row.front_train


def test_csv_and_json_hold_the_same_table(make):
    frame = results_frame(in_order(make.board()))
    records = json.loads(json_text(frame))
    table = pd.read_csv(io.StringIO(csv_text(frame)))
    assert list(table.columns) == COLUMNS
    assert list(records[0]) == COLUMNS
    assert [r["run_id"] for r in records] == list(table.run_id)
    assert [r["lds"] for r in records] == [None if pd.isna(v) else v for v in table.lds]


def test_csv_cells_are_never_formulas_and_json_is_exact(make):
    frame = results_frame([make.row('=HYPERLINK("http://x")', status="failed", reason="@SUM(1)", options={"a": -1.5})])
    table = pd.read_csv(io.StringIO(csv_text(frame))).iloc[0]
    assert table.method == '\'=HYPERLINK("http://x")'
    assert table.reason == "'@SUM(1)"
    assert json.loads(json_text(frame))[0]["reason"] == "@SUM(1)"


@pytest.mark.parametrize("line_break", ["\r", "\r\n", "\n"])
def test_csv_has_a_line_a_run_whatever_breaks_the_lines_of_a_reason(make, line_break):
    """A carriage return alone is not quoted by every Python, and ends a line for whoever reads the file."""
    rows = [make.row("late", status="timeout", reason=f"a line{line_break}and another"), make.row()]
    table = pd.read_csv(io.StringIO(csv_text(results_frame(rows)), newline=""))
    assert list(table.reason.fillna("")) == ["a line\nand another", ""]


def test_negative_numbers_stay_numbers_in_csv(make):
    assert ",-0.3," in csv_text(results_frame([make.row(lds=-0.3)]))


def test_json_has_no_nan(make):
    frame = results_frame([make.row(lds=float("nan"))])
    assert json.loads(json_text(frame))[0]["lds"] is None


def test_the_table_says_where_options_come_from(make):
    rows = [make.row(), make.row(options_from="defaults", costs={"tune_s": 0.0}), make.row(costs={"tune_s": None})]
    records = json.loads(json_text(results_frame(rows)))
    assert [(r["options_from"], r["tune_s"]) for r in records] == [("tuned", 3.0), ("defaults", 0.0), ("tuned", None)]
