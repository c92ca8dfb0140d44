"""The board: rows in, one self-contained HTML page out."""

from tdabench.board.page import render, write
from tdabench.board.table import results_frame
from tdabench.results.axes import AXES, Axis
from tdabench.results.rows import Row, rows_of
from tdabench.results.runs import Run
from tdabench.results.tasks import TaskInfo

__all__ = ["AXES", "Axis", "Row", "Run", "TaskInfo", "render", "results_frame", "rows_of", "write"]
