"""Reading scores: of a run folder, checked against its record, or of a bare file."""

from __future__ import annotations

from pathlib import Path
from tokenize import TokenError
from typing import TYPE_CHECKING

import numpy as np

from tdabench.errors import FileFormatError, ScoresError
from tdabench.files import MISSING, read_arrays, reading_errors, sha256_file
from tdabench.records import RECORD_FILE, SCORES_FILE, Record, read_record

if TYPE_CHECKING:
    import numpy.typing as npt

    Scores = npt.NDArray[np.floating]


def read_run_scores(folder: Path, record: Record) -> Scores:
    """Return the scores of a run ``[n_queries, n_train]``.

    Raises
    ------
    FileFormatError
        If the run has no scores, or the file is not the one that the record was written for.
    """
    if record.scores is None:
        raise FileFormatError(f"The run in {folder} has no scores: it ended as {record.status} ({record.reason}).")
    path, hint = folder / SCORES_FILE, f"Remove {folder}, and run the method again."
    scores = _from_safetensors(path, hint)
    if sha256_file(path) != record.scores.sha256:
        raise FileFormatError(f"{path} is not the file that its record was written for. {hint}")
    return scores


def read_scores(path: Path) -> Scores:
    """Return the scores in a run folder, a ``.safetensors`` file (one array, or one called scores) or a ``.npy`` file.

    Raises
    ------
    FileFormatError
        If there is no such file, or it is damaged, or of another kind.
    """
    if path.is_dir():
        return read_run_scores(path, read_record(path))
    if path.name == RECORD_FILE:
        return read_scores(path.parent)
    if path.suffix == ".safetensors":
        return _from_safetensors(path)
    if path.suffix == ".npy":
        return _from_npy(path)
    raise FileFormatError(f"{path} is neither a run folder nor a .safetensors or .npy file of scores.")


_WRITE_AGAIN = "Write it again, for example with safetensors.torch.save_file({'scores': scores.float()}, path)."


def _from_safetensors(path: Path, hint: str = _WRITE_AGAIN) -> Scores:
    arrays = read_arrays(path, "file of scores", hint)
    if len(arrays) != 1 and "scores" not in arrays:
        raise FileFormatError(f"{path} holds {sorted(arrays)}; expected one array called scores. {hint}")
    return arrays["scores"] if "scores" in arrays else next(iter(arrays.values()))


# What numpy raises for a header that is none, or that promises more than there can be.
_DAMAGE = (
    IsADirectoryError,
    ValueError,
    EOFError,
    SyntaxError,
    TokenError,
    MemoryError,
    ArithmeticError,
    RecursionError,
)


def _from_npy(path: Path) -> Scores:
    with reading_errors(path):
        try:
            scores = np.load(path, allow_pickle=False)
        except MISSING:
            raise FileFormatError(f"There is no file of scores at {path}.") from None
        except _DAMAGE as error:
            raise FileFormatError(
                f"{path} is not a readable .npy file ({error}). Write it again with numpy.save."
            ) from error
    if not isinstance(scores, np.ndarray):
        raise ScoresError(f"{path} does not hold one array. Write it with numpy.save(path, scores).")
    return scores
