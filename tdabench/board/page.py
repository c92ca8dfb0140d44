"""The page: from rows to one HTML file that opens from disk, offline, with or without JavaScript."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from tdabench import formats
from tdabench._version import __version__
from tdabench.board.marks import PALETTE, PATHS
from tdabench.board.sections import make_sections
from tdabench.board.table import COLUMNS, KEYS, csv_text, flat_rows, flat_runs, json_text, results_frame
from tdabench.files import write_text
from tdabench.results.axes import AXES
from tdabench.results.rows import Row, in_order, on_fronts
from tdabench.results.tasks import TaskInfo
from tdabench.results.words import describe_machine

_FOLDER = Path(__file__).parent
# Runs before the page is painted: what needs JavaScript is shown only where it runs.
_HEAD_SCRIPT = 'document.documentElement.classList.add("js");'


def render(rows: Sequence[Row], tasks: Sequence[TaskInfo], generated: str | None = None) -> str:
    """Write the page.

    Parameters
    ----------
    rows
        Rows of any tasks, as :func:`tdabench.results.rows.rows_of` makes them of runs; their order does not matter.
    tasks
        The tasks' current definitions, in the order of the page. Rows of a task that is not among them are shown too.
    generated
        A date to print. None prints none: the same rows are the same bytes.
    """
    ordered = in_order(rows)
    fronts = on_fronts(ordered)
    script = (_FOLDER / "page.js").read_text(encoding="utf-8")
    return _template().render(
        sections=make_sections(ordered, fronts, tasks),
        n_rows=len(ordered),
        n_runs=sum(len(row.runs) for row in ordered),
        n_classes=len({row.record.machine.machine_class for row in ordered}),
        generated=generated,
        version=__version__,
        axes=AXES,
        labels={axis.key: axis.label for axis in AXES},
        style=Markup((_FOLDER / "style.css").read_text(encoding="utf-8")),
        colours=_colour_css(),
        head_script=Markup(_HEAD_SCRIPT),
        script=Markup(script),
        script_hashes=[_script_hash(_HEAD_SCRIPT), _script_hash(script)],
        data=_data(ordered, fronts),
        shapes=PATHS,
    )


def _data(ordered: Sequence[Row], fronts: Sequence[frozenset[str]]) -> dict[str, Any]:
    """Return what the page's script reads: the runs, which it exports, and the rows, which it sorts and filters."""
    return {
        "columns": COLUMNS,
        "runs": flat_runs(ordered, fronts),
        "keys": KEYS,
        "rows": flat_rows(ordered, fronts),
        "axes": {axis.key: axis.label for axis in AXES},
    }


def write(html: str, folder: Path, rows: Sequence[Row]) -> Path:
    """Write ``index.html``, and the runs of ``rows`` as ``results.csv`` and ``results.json``; return the page's path.

    Each file is written aside, flushed and renamed; the page comes last, so its links always lead somewhere.
    """
    frame = results_frame(in_order(rows))
    write_text(folder / "results.csv", csv_text(frame))
    write_text(folder / "results.json", json_text(frame))
    page = folder / "index.html"
    write_text(page, html)
    return page


def _colour_css() -> Markup:
    """Write the palette as CSS variables for both schemes."""
    light, dark = (";".join(f"--c{i}:{pair[k]}" for i, pair in enumerate(PALETTE)) for k in (0, 1))
    classes = "".join(f".c{i}{{--c:var(--c{i})}}" for i in range(len(PALETTE)))
    text = f":root{{{light}}}@media screen and (prefers-color-scheme:dark){{:root{{{dark}}}}}{classes}"
    return Markup(text)


def _script_hash(script: str) -> str:
    digest = hashlib.sha256(script.encode("utf-8")).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_FOLDER),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    environment.filters |= _filters()
    return environment.get_template("page.html")


def _filters() -> dict[str, Any]:
    return {
        "seconds": formats.format_seconds,
        "bytes": formats.format_bytes,
        "count": formats.format_count,
        "score": formats.format_score,
        "machine": describe_machine,
    }
