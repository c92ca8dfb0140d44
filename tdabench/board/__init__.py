"""The board: rows in, one self-contained HTML page out."""

from tdabench.board.page import render, write
from tdabench.board.rows import AXES, Axis, Row, TaskInfo, rows_of
from tdabench.board.runs import Run
from tdabench.board.table import results_frame

__all__ = ["AXES", "Axis", "Row", "Run", "TaskInfo", "render", "results_frame", "rows_of", "write"]
