"""The tables that the board's commands print."""

from __future__ import annotations

import pytest
from board.conftest import GPU, make_run, make_seeds, make_task

from tdabench.board import rows_of
from tdabench.cli.reports import print_board


@pytest.fixture
def printed(capsys):
    """Return the lines that runs are printed as."""

    def call(*runs):
        print_board(rows_of(runs), [make_task()])
        return capsys.readouterr().out.splitlines()

    return call


def test_the_terminal_shows_the_page_s_rows(printed):
    lines = printed(*make_seeds(lds=(0.2, 0.3, 0.34)), make_run("grad-dot", 0.1))
    assert lines[0].startswith("Digits, two-layer perceptron (digits-mlp), 4 runs, noise ceiling 0.710")
    (row,) = [line for line in lines if "│ trak" in line]
    assert "│ 0.280" in row
    assert ", 3 seeds" in row
    (other,) = [line for line in lines if "│ grad-dot" in line]
    assert "│ 0.070 to 0.130 " in other
    assert any(line.startswith("1 of 2 configurations were run with several seeds (0, 1, 2)") for line in lines)


def test_runs_without_an_lds_are_listed_with_their_seed(printed):
    lines = printed(*make_seeds(lds=(0.2, 0.3, None)), make_run("knn", status="declined", reason="it has no labels"))
    assert any(", 2 of 3 seeds" in line for line in lines)
    assert "trak, seed 2: timeout, did not end within an hour" in lines
    assert "knn: declined, it has no labels" in lines


def test_rows_that_differ_in_an_option_or_in_their_code_have_names_of_their_own(printed):
    other = make_run("trak", 0.2, run_id="b", options={"proj_dim": 64, "damping": 0.001})
    text = "\n".join(printed(make_run(run_id="a"), other, make_run("mine", code="c" * 64), make_run("mine", 0.1)))
    for name in ("trak (proj_dim=512)", "trak (proj_dim=64)", "mine (code cccccc)", "mine (code bbbbbb)"):
        assert f"│ {name} " in text
    assert "trak (proj_dim=512) (12.5 s, 0.300)" in text, "on the fronts, too"


def test_machine_classes_have_fronts_of_their_own(printed):
    costs = {"fit_s": 0.1, "attribute_s": 0.0}
    lines = printed(make_run(run_id="a"), make_run(run_id="b", machine=GPU, costs=costs), make_run("x", 0.4))
    heads = [line for line in lines if line.startswith("On the front")]
    assert heads == [
        "On the front (nothing else is better on LDS and this cost, on AMD EPYC 7B13, 8 threads, CPU only, class"
        " epyc-7b13-t8-cpu):",
        "On the front (nothing else is better on LDS and this cost, on AMD EPYC 7B13, 8 threads, NVIDIA H100 80GB HBM3,"
        " class epyc-7b13-t8-h100):",
    ]
    serving = [line for line in lines if line.startswith("  S  serving:")]
    assert serving == ["  S  serving: x (1.5 s, 0.400)", "  S  serving: trak (100 ms, 0.300)"]
    assert any("│ trak (on NVIDIA H100 80GB HBM3) " in line for line in lines), "the table has both"
    assert "On the front (nothing else is better on LDS and this cost):" in printed(make_run(), make_run("x", 0.4))


def test_a_task_where_nothing_has_an_lds_is_no_error(printed):
    assert "trak: failed, it did not go well" in printed(make_run(status="failed"))
