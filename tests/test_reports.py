"""The tables that the board's commands print."""

from __future__ import annotations

import pytest
from board.conftest import make_run, make_seeds, make_task

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


def test_a_task_where_nothing_has_an_lds_is_no_error(printed):
    assert "trak: failed, it did not go well" in printed(make_run(status="failed"))
