"""The board: rows in, one self-contained HTML page out."""

from tdabench.board.page import render, write
from tdabench.board.rows import AXES, Axis, EvaluationLike, Row, TaskInfo
from tdabench.board.table import results_frame

__all__ = ["AXES", "Axis", "EvaluationLike", "Row", "TaskInfo", "render", "results_frame", "write"]
