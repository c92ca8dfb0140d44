"""A task: data, model, training recipe, queries and target function, with a version that is a hash of all of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from tdabench.authors import author_errors
from tdabench.dropout import DropoutSite
from tdabench.errors import DataError, UsageError
from tdabench.examples import Examples, check_examples
from tdabench.files import sha256_arrays
from tdabench.prepared import prepared
from tdabench.recipe import Recipe, SubsetPlan, check_whole
from tdabench.seeds import derive_seed, generator
from tdabench.targets import Target
from tdabench.template import check_gradients, template_of

# Counted up when the meaning of a recipe changes (order of examples, dropout stream, initialisation).
PROTOCOL = 1

_USUAL_PLAN = SubsetPlan()
_OTHER_DATA = "Remove the files and fetch the original data set again."


@dataclass(frozen=True)
class TaskData:
    """A task's prepared arrays, on one device."""

    training: Examples
    queries: Examples

    @staticmethod
    def of(arrays: Mapping[str, np.ndarray]) -> TaskData:
        """Return the data whose :meth:`arrays` these are."""
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        return TaskData(
            Examples(tensors["train_inputs"], tensors["train_labels"], "train"),
            Examples(tensors["query_inputs"], tensors["query_labels"], "queries"),
        )

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the prepared arrays by name."""
        tensors = {
            "train_inputs": self.training.inputs,
            "train_labels": self.training.labels,
            "query_inputs": self.queries.inputs,
            "query_labels": self.queries.labels,
        }
        return {name: tensor.detach().cpu().contiguous().numpy() for name, tensor in tensors.items()}

    @cached_property
    def sha256(self) -> str:
        """Hash of names, types, shapes and values of the prepared arrays."""
        return sha256_arrays(self.arrays())

    def with_queries(self, rows: Tensor) -> TaskData:
        """Return the same with the queries at ``rows`` ``[r]`` int64, on the data's device, alone."""
        some = self.queries.take(rows)
        return TaskData(self.training, Examples(some.inputs, some.labels, some.split))

    def to(self, device: torch.device | str) -> TaskData:
        """Return the same data on another device."""
        return TaskData(self.training.to(device), self.queries.to(device))


@dataclass(frozen=True)
class Task:
    """The definition of a task.

    Attributes
    ----------
    name
        Short, lower case, with hyphens.
    title, description, licence
        For people.
    load_data
        ``(folder or None) -> TaskData``: prepares the arrays; the folder is where the user's data sets are. Every
        process that needs the data calls it.
    data_sha256
        What the prepared arrays must hash to. Left empty, the first look at the data says what to write.
    make_model
        ``() -> nn.Module``, initialised from torch's current generator.
    loss
        ``(logits, labels) -> [B]``, what training minimises.
    target
        What attribution explains.
    folder
        Where the task's card, ground truth and tuned options stand.
    mislabelled
        ``(folder or None) -> [n_train] bool``: which training labels are known to be wrong; None where that is not
        known. Methods never see it.
    needs_cuda
        Whether a ground truth is out of a CPU's reach.
    revision
        Counted up by the author for a change that the version cannot see: the code of the model, loss or target.
    """

    name: str
    title: str
    description: str
    licence: str
    n_train: int
    n_queries: int
    load_data: Callable[[Path | None], TaskData]
    data_sha256: str
    make_model: Callable[[], nn.Module]
    loss: Callable[[Tensor, Tensor], Tensor]
    target: Target
    recipe: Recipe
    folder: Path
    plan: SubsetPlan = _USUAL_PLAN
    mislabelled: Callable[[Path | None], Tensor] | None = None
    needs_cuda: bool = False
    revision: int = 1

    def __post_init__(self) -> None:
        """Refuse what is of another kind than is meant, which would be noticed late."""
        for name, kind in {"target": Target, "recipe": Recipe, "folder": Path, "plan": SubsetPlan}.items():
            value = getattr(self, name)
            if not isinstance(value, kind):
                raise UsageError(
                    f"The {name} of {self.name} is a {type(value).__name__}, expected a {kind.__name__}. "
                    f"Write {name}={kind.__name__}(...)."
                )
        for name in ("n_train", "n_queries", "revision"):
            check_whole(f"The {name} of {self.name}", getattr(self, name))

    def data(self, folder: Path | None = None) -> TaskData:
        """Load and check the prepared arrays; those of the tasks that ship with tdabench are kept in the cache.

        Raises
        ------
        DataError
            If files are missing, or ``load_data`` fails otherwise, or the prepared arrays are not the ones that the
            task was defined on, or are of the wrong type.
        """
        # What is kept is found by the hash that the task names, so an edited loader would not be noticed. Those that
        # ship change with a release; one of the user's may change at any time, and so may what it imports and reads:
        # only calling it tells.
        load = partial(self._load, folder)
        arrays = prepared("task-data", self.data_sha256, load) if self._ships else load()
        data = TaskData.of(arrays)
        self._check_data(data)
        return data

    @property
    def _ships(self) -> bool:
        """Whether the task comes with tdabench, so that not its code is wrong but the files it reads."""
        return str(getattr(self.load_data, "__module__", "")).startswith("tdabench.")

    def _load(self, folder: Path | None) -> dict[str, np.ndarray]:
        with author_errors(f"load_data of {self.name}", DataError):
            data = self.load_data(folder)
        if not isinstance(data, TaskData):
            raise DataError(
                f"load_data of {self.name} returns a {type(data).__name__}, expected a tdabench.TaskData. "
                "Return tdabench.TaskData(training=tdabench.Examples(...), queries=tdabench.Examples(...))."
            )
        try:
            check_examples(data.training, f"training examples of {self.name}")
            check_examples(data.queries, f"queries of {self.name}")
        except DataError as error:
            if not self._ships:
                raise
            found, _, _ = str(error).rpartition(". ")  # the last sentence tells the author of load_data what to do
            raise DataError(f"{found}. {_OTHER_DATA}") from error
        return data.arrays()

    def _check_data(self, data: TaskData) -> None:
        write = f'write data_sha256="{data.sha256}" into its definition'
        if not self.data_sha256:
            raise DataError(f"{self.name} does not say what its data is. If load_data gives what it should, {write}.")
        if data.sha256 != self.data_sha256:
            raise DataError(
                f"The data of {self.name} is not the data that the task was defined on: the prepared arrays have "
                f"SHA-256 {data.sha256[:16]}..., expected {self.data_sha256[:16]}.... "
                f"{_OTHER_DATA} Where the task is your own and load_data was changed on purpose, {write}."
            )
        sizes = len(data.training), len(data.queries)
        if sizes != (self.n_train, self.n_queries):
            raise DataError(
                f"{self.name} says n_train={self.n_train} and n_queries={self.n_queries}; its data has {sizes[0]} "
                f"training examples and {sizes[1]} queries. Write n_train={sizes[0]} and n_queries={sizes[1]}."
            )

    @cached_property
    def version(self) -> str:
        """Sixteen hex digits that change whenever data, model, recipe, queries, target or streams change."""
        text = json.dumps(
            {
                "protocol": PROTOCOL,
                "name": self.name,
                "data": self.data_sha256,
                "model": self.architecture,
                "recipe": self.recipe.facts(),
                "loss": _name_of(self.loss),
                "revision": self.revision,
                "target": self.target.name,
            },
            sort_keys=True,
        )
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @cached_property
    def architecture(self) -> list[list[object]]:
        """Names, kinds, settings and parameter shapes of the model's modules.

        Settings are the plain values that torch's modules declare as constants (rate, stride, slope, ...): they change
        less between torch's versions than its printed form does. What the code of a module computes is not seen.
        """
        rows: list[list[object]] = []
        for name, module in self.initial_model("architecture").named_modules():
            shapes = [[k, list(p.shape)] for k, p in module.named_parameters(recurse=False)]
            settings = {k: getattr(module, k, None) for k in getattr(module, "__constants__", [])}
            plain = {k: v for k, v in settings.items() if isinstance(v, (bool, int, float, str, tuple))}
            rows.append([name, type(module).__name__, shapes, plain])
        return rows

    def initial_model(self, *stream: str | int) -> nn.Module:
        """Return the model freshly initialised from the stream called ``stream``; no global state is touched.

        Raises
        ------
        UsageError
            If ``make_model`` fails, or returns no module.
        """
        with torch.random.fork_rng(devices=[]), author_errors(f"make_model of {self.name}"):
            # Not torch.manual_seed: that seeds the generators of accelerators, too, and no model is made there.
            torch.default_generator.manual_seed(derive_seed(self.name, *stream, "init"))
            model = self.make_model()
        if not isinstance(model, nn.Module):
            raise UsageError(
                f"make_model of {self.name} returns a {type(model).__name__}, expected a torch.nn.Module. "
                "Return the model itself."
            )
        _check_made(self.name, model)
        return model

    def check_initial_model(self) -> None:
        """Refuse a model whose start no seed decides: its ground truth could not be verified.

        Raises
        ------
        UsageError
            If ``make_model`` gives other values under the same seed, as where it draws from NumPy's generator.
        """
        first, again = (self.initial_model("checked") for _ in range(2))
        other = dict((*again.named_parameters(), *again.named_buffers()))
        for name, value in (*first.named_parameters(), *first.named_buffers()):
            if not torch.allclose(value, other[name], rtol=0, atol=0, equal_nan=True):
                raise UsageError(
                    f"make_model of {self.name} gives {name} other values each time. Draw them from torch's generator,"
                    " which is seeded before it is called."
                )

    def template(self, examples: Tensor) -> tuple[nn.Module, tuple[DropoutSite, ...]]:
        """Return a model to call functionally (its own values never matter) and its dropout sites.

        It is tried on ``examples``, two inputs on the CPU, ``[2, ...]``.

        Raises
        ------
        UsageError
            If the model is none that can be trained as it reads; see :func:`~tdabench.template.template_of` and
            :func:`~tdabench.template.check_gradients`.
        """
        model = self.initial_model("template")
        made, sites = template_of(model, examples[:1])
        # Once in a process: every training makes a template, and backward passes of a large model take a second.
        if examples.shape[1:] not in self._differentiated:
            check_gradients(model, made, examples)
            self._differentiated.add(examples.shape[1:])
        return made, sites

    @cached_property
    def _differentiated(self) -> set[torch.Size]:
        """Shapes of the inputs on which the model's gradients were checked."""
        return set()

    def wrong_labels(self, folder: Path | None = None) -> Tensor | None:
        """Return which training labels are known to be wrong, as :attr:`mislabelled` gives them; None without it.

        Raises
        ------
        DataError
            If ``mislabelled`` fails, or returns no tensor.
        """
        if self.mislabelled is None:
            return None
        with author_errors(f"mislabelled of {self.name}", DataError):
            found = self.mislabelled(folder)
        if not isinstance(found, Tensor):
            raise DataError(
                f"mislabelled of {self.name} returns a {type(found).__name__}, expected a tensor [n_train] of bool. "
                "Write torch.as_tensor(..., dtype=torch.bool) in it."
            )
        return found.cpu()

    @cached_property
    def tuning_queries(self) -> Tensor:
        """Indices, sorted, of the 20 % of the queries on which options are chosen; never reported."""
        order = torch.randperm(self.n_queries, generator=generator(self.name, "query-split"))
        return order[: self.n_queries // 5].sort().values

    @cached_property
    def reported_queries(self) -> Tensor:
        """Indices, sorted, of the other 80 %."""
        keep = torch.ones(self.n_queries, dtype=torch.bool)
        keep[self.tuning_queries] = False
        return keep.nonzero().flatten()

    def subset_masks(self) -> Tensor:
        """Return which training examples each subset keeps: ``[n_subsets, n_train]`` bool, all of equal size.

        Raises
        ------
        UsageError
            If a subset would keep none or all of them, so that all subsets were the same.
        """
        size = round(self.n_train * self.plan.fraction)
        if not 0 < size < self.n_train:
            better = "Write another fraction into its plan, as 0.5" if self.n_train > 1 else "It needs more of them"
            raise UsageError(
                f"A subset of {self.name} keeps {size} of {self.n_train} training examples (fraction "
                f"{self.plan.fraction}), so all subsets are the same. {better}."
            )
        masks = torch.zeros(self.plan.n_subsets, self.n_train, dtype=torch.bool)
        for m in range(self.plan.n_subsets):
            order = torch.randperm(self.n_train, generator=generator(self.name, "subset", m))
            masks[m, order[:size]] = True
        return masks


def _check_made(task: str, model: nn.Module) -> None:
    """Refuse a model that nothing can be known of before it is called, or that cannot be called functionally."""
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            found = f"a model whose {name} is scripted" if name else "a scripted model"
            raise UsageError(
                f"make_model of {task} returns {found} (or traced), which cannot be given values. Use the module "
                "that torch.jit.script or torch.jit.trace was given."
            )
    parameters = dict(model.named_parameters())
    if not parameters:
        raise UsageError(f"The model of {task} has no parameters, so there is nothing to train.")
    if lazy := [name for name, value in parameters.items() if nn.parameter.is_lazy(value)]:
        raise UsageError(
            f"The model's {lazy[0]} is of a lazy layer, whose size is not known before it is called. Write the size"
            " (nn.Linear(64, 10), not nn.LazyLinear(10))."
        )


def _name_of(function: Callable[..., object]) -> str:
    name = getattr(function, "__name__", None)
    if name is None:
        raise UsageError(
            f"The loss is a {type(function).__name__} without a name. Define it with def, for its version."
        )
    return str(name)
