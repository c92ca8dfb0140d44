"""A task in a process of one's own: its data, the very models that runs attribute, and the LDS of scores.

For code that is no method's file, or not yet: a notebook, another library, another framework. Nothing is measured here,
so what comes of it is an LDS without costs, and no row of a board.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tdabench import precision, provenance
from tdabench.devices import check_device
from tdabench.errors import OptionError
from tdabench.jobs import models_folder
from tdabench.options import whole_number
from tdabench.registry import find_task
from tdabench.results.reading import evaluator_of
from tdabench.view import TaskView

if TYPE_CHECKING:
    from tdabench.evaluation import Evaluation


def open_task(
    task: str, *, seed: int = 0, device: str = "cpu", threads: int = 1, data_folder: Path | str | None = None
) -> TaskView:
    """Return a task as a method sees it, outside of a run.

    ``view.training`` and ``view.queries`` are its examples in the order of the rows and columns of scores, and
    ``view.member(0).module()`` is the first model that a run of this seed attributes. Models are trained when they are
    asked for, and kept in the cache where runs on this machine find them, and the other way round.

    Parameters
    ----------
    task
        Its name, or ``path.py:NAME``.
    seed
        Of the runs whose models are wanted.
    device
        ``cpu`` or ``cuda``.
    threads
        Of torch, in this whole process, from now on: models are kept apart by it, and runs have one by default.
    data_folder
        Where the user's data sets are; None for ``TDABENCH_DATA``, else a download into the cache.

    Raises
    ------
    UsageError
        For an unknown task, a device that is not there, or a number that is none.
    DataError
        If the task's data is missing, or is not what it was defined on.
    """
    check_device(device)
    threads = whole_number("threads", threads)
    if threads == 0:
        raise OptionError("threads must be at least 1; got 0.")
    found = find_task(str(task))
    machine = provenance.machine(threads, device)
    torch.set_num_threads(threads)
    folder = models_folder(found, machine, provenance.versions("torch")["torch"])
    with precision.undisturbed(torch.device(device)):
        data = found.data(None if data_folder is None else Path(data_folder))
        view = TaskView(found, data.to(device), folder, seed=seed)
        view.warm_up()  # as a run does: what training takes is kept with a model, and charged to runs that find it
    return view


def score(scores: Tensor | npt.ArrayLike, task: str) -> Evaluation:
    """Evaluate scores on a task's reported queries, as ``tdabench score`` does.

    Parameters
    ----------
    scores
        ``[n_queries, n_train]``, finite floats, for all queries of the task; higher = having the example raises the
        query's target.
    task
        Its name, or ``path.py:NAME``.

    Returns
    -------
    Evaluation
        ``lds`` with its 95 % interval ``low`` to ``high``, the noise ``ceiling``, and ``warnings()``.

    Raises
    ------
    ScoresError
        If the scores have the wrong shape or type, or are not finite.
    MissingGroundTruthError
        If the task has no ground truth yet.
    """
    if isinstance(scores, Tensor):
        known = scores.float() if scores.dtype == torch.bfloat16 else scores  # numpy has no bfloat16
        scores = known.detach().cpu().numpy()
    return evaluator_of(task).evaluate(np.asarray(scores))
