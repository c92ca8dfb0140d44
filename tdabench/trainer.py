"""The trainer: many replicas of one seed as one batched program.

Retraining is the price of ground truth. The replicas of one seed differ only in the examples they see, so their
parameters are stacked, ``torch.func.vmap`` runs them through the model at once, and one backward pass gives every
replica's gradient (the losses are summed over replicas, and no replica's loss depends on another's parameters).

What a replica sees is derived from (task, stream, epoch, subset) alone: one permutation of the whole training set
per epoch, filtered to the subset, and one dropout mask per example and epoch. All subsets of a seed share both, and
the initialisation: the seed's main effect is common to all subsets and drops out of their ranking.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from tdabench.dropout import DropoutSite, MaskTable
from tdabench.errors import UsageError
from tdabench.examples import Examples
from tdabench.kernels import differentiable, is_recurrent
from tdabench.memory import ran_out
from tdabench.optimizers import Optimizer, optimizer_of
from tdabench.precision import Precision, autocast, used
from tdabench.recipe import Recipe
from tdabench.seeds import generator
from tdabench.snapshots import Snapshots, State
from tdabench.task import Task, TaskData
from tdabench.template import check_values, laid_out

Parameters = dict[str, Tensor]
"""What training changes: parameters by name, and running statistics where the model has some."""

OnEpoch = Callable[[int, Parameters], None]
"""Hears of every finished epoch; see :func:`train_replicas`."""

# A group's parameters, gradients and momentum should stay in the processor's cache: measured on 2 MB of L2 and 32 MB
# of L3, the rate is flat up to about this size and falls by a fifth at four times it.
_GROUP_BYTES = 16 << 20
_MAX_GROUP = 50
_LARGE_WEIGHT = 1 << 12
_QUERY_BATCH = 512


@dataclass(frozen=True)
class Program:
    """A model to be called with parameters given, and what is minimised.

    Attributes
    ----------
    model
        Called through ``functional_call``; its own values are used for whatever is not given.
    sites
        Its dropout sites.
    loss
        ``(logits, labels) -> [B]``.
    """

    model: nn.Module
    sites: tuple[DropoutSite, ...]
    loss: Callable[[Tensor, Tensor], Tensor]

    @staticmethod
    def of(task: Task, data: TaskData) -> Program:
        """Return the program of a task.

        Raises
        ------
        UsageError
            If the model, the loss or the target is nothing that can be trained and judged example by example.
        """
        model, sites = task.template(data.training.inputs[:2].cpu())
        model = model.to(data.training.inputs.device)
        check_values(task, model, data)
        return Program(model, sites, task.loss)

    def logits(self, stacked: Mapping[str, Tensor], inputs: Tensor, masks: Mapping[str, Tensor]) -> Tensor:
        """Return the logits ``[R, B, ...]`` of ``R`` replicas, each with its own batch ``[R, B, ...]`` and masks."""
        alone = torch.is_autocast_enabled(inputs.device.type) or is_recurrent(self.model)  # as one_by_one() says
        if inputs.shape[0] == 1 or alone:
            # vmap over one replica costs half as much again as calling the model; over several, it hides convolutions
            # and linear layers with biases from autocast. It has no rule for recurrent layers.
            apart = {k: v.unbind() for k, v in {**stacked, **masks}.items()}
            each = [{k: v[r] for k, v in apart.items()} for r in range(inputs.shape[0])]
            return torch.stack([self.logits_of_one(values, x) for values, x in zip(each, inputs, strict=True)])
        return vmap(lambda values, x: functional_call(self.model, values, (x,)))({**stacked, **masks}, inputs)

    def logits_of_one(self, values: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
        """Return the logits ``[B, ...]`` at ``values``; images go through channels last, which is faster."""
        return functional_call(self.model, dict(values), (laid_out(inputs),))


def stacked_state(model: nn.Module, replicas: int, device: torch.device) -> Parameters:
    """Return what training changes of a model, copied for each replica: ``[R, *shape]``."""
    kept = model.state_dict().keys()  # a tied parameter is here twice, and once among the parameters
    state = {**dict(model.named_parameters()), **{k: v for k, v in model.named_buffers() if k in kept}}
    return {k: v.detach().to(device).expand(replicas, *v.shape).clone() for k, v in state.items()}


@dataclass(frozen=True)
class Stream:
    """The random choices of a training, all named after ``name``: order of examples and dropout masks per epoch."""

    name: tuple[str | int, ...]
    n: int
    sites: tuple[DropoutSite, ...]
    device: torch.device

    def kept_in_order(self, epoch: int, masks: Tensor) -> Tensor:
        """Return the epoch's permutation of the whole set, filtered to each subset: ``[R, n_kept]``."""
        order = torch.randperm(self.n, generator=generator(*self.name, "order", epoch))
        kept = masks[:, order].nonzero()[:, 1].view(masks.shape[0], -1)  # subsets are of equal size
        return order[kept].to(self.device)

    def dropout(self, epoch: int) -> MaskTable:
        """Return one mask per training example."""
        return MaskTable.draw(self.sites, self.n, *self.name, "dropout", epoch, device=self.device)


def one_by_one(model: nn.Module, asked: Precision, device: torch.device) -> bool:
    """Return whether the replicas of a group are passed one after another; see :meth:`Program.logits`."""
    return used(asked, device) == "bfloat16" or is_recurrent(model)


def group_size(parameters: Mapping[str, Tensor]) -> int:
    """Return how many replicas of this size to train at once."""
    replica_bytes = 3 * sum(p.numel() * p.element_size() for p in parameters.values())
    return max(1, min(_MAX_GROUP, _GROUP_BYTES // replica_bytes))


def train_replicas(
    task: Task,
    data: TaskData,
    masks: Tensor,
    *stream: str | int,
    recipe: Recipe | None = None,
    on_epoch: OnEpoch | None = None,
    snapshots: Snapshots | None = None,
) -> Parameters:
    """Train one replica per row of ``masks`` from scratch, all from the stream called ``stream``.

    Parameters
    ----------
    task, data
        The task and its data; the data's device is where training happens.
    masks
        ``[R, n_train]`` bool: the examples each replica sees; rows of equal size.
    stream
        Name of the random stream, usually ``("ground-truth", seed)`` or ``("attribution", seed, number)``.
    recipe
        In place of the task's own.
    on_epoch
        Called with the number of finished epochs and the values ``[R, ...]`` at that point, which go on changing:
        copy what is to be kept. Epochs before a snapshot are not told again.
    snapshots
        Where the training begins, if there is one, and leaves others.

    Returns
    -------
    dict
        Parameter name -> ``[R, *shape]``, detached.

    Raises
    ------
    ValueError
        If the rows of ``masks`` are not of equal size.
    UsageError
        If the model cannot be trained; see :class:`Program` and :func:`fit_stacked`. If it can one replica at a time,
        and not as many at once as ``masks`` has rows.
    """
    if masks.sum(1).unique().numel() != 1:
        raise ValueError(f"Subsets that train at once must be of equal size; got {sorted(set(masks.sum(1).tolist()))}.")
    name, program = (task.name, *stream), Program.of(task, data)
    stacked = stacked_state(task.initial_model(*stream), masks.shape[0], data.training.inputs.device)
    stacked = _laid_out_as_gradients(program.model, stacked)
    with _vmap_errors(task.name, len(masks)):
        trained = fit_stacked(program, stacked, data.training, masks, name, recipe or task.recipe, on_epoch, snapshots)
    return {k: p.contiguous() for k, p in trained.items()}


@contextlib.contextmanager
def _vmap_errors(task: str, replicas: int) -> Iterator[None]:
    """Say what to do where ``vmap`` has no rule for a model that was tried alone when it was looked over."""
    try:
        yield
    except RuntimeError as error:
        if replicas == 1 or ran_out(error):
            raise
        raise UsageError(
            f"{replicas} replicas of the model of {task} cannot be trained at once: torch.func.vmap has no rule for "
            "something in it. Train one at a time, each with its own row of masks."
        ) from error


def _laid_out_as_gradients(model: nn.Module, stacked: Parameters) -> Parameters:
    """Store the weights of batched linear layers transposed, as their gradients come out of the matrix product.

    Updating one from the other is then one sweep through memory: a sixth of mnist-mlp's training time. Values are the
    same to the bit; small weights stay as they are, because they gain nothing.
    """
    linear = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Linear)}

    def lay(name: str, p: Tensor) -> Tensor:
        large = name in linear and p.shape[0] > 1 and p[0].numel() >= _LARGE_WEIGHT
        return p.transpose(1, 2).contiguous().transpose(1, 2) if large else p

    return {name: lay(name, p) for name, p in stacked.items()}


def fit_stacked(
    program: Program,
    stacked: Parameters,
    training: Examples,
    masks: Tensor,
    name: tuple[str | int, ...],
    recipe: Recipe,
    on_epoch: OnEpoch | None = None,
    snapshots: Snapshots | None = None,
) -> Parameters:
    """Minimise the program's loss over the stacked values ``[R, ...]``, in place; see :func:`train_replicas`.

    Running statistics of the model that are among the values are updated; else the model is as in evaluation.

    Raises
    ------
    UsageError
        If an epoch ends with a batch of one example that the model cannot normalise.
    """
    stream = Stream(name, len(training), program.sites, training.inputs.device)
    buffers = {name for name, _ in program.model.named_buffers()}
    statistics = {k: v for k, v in stacked.items() if k in buffers}
    values = {k: p.requires_grad_() for k, p in stacked.items() if k not in statistics}
    parameters = list(values.values())
    optimizer = optimizer_of(recipe, parameters)
    per_epoch = -(-int(masks[0].sum()) // recipe.batch_size)
    state = {**values, **statistics}
    begun = 0 if snapshots is None else _resume(state, optimizer, snapshots)
    n_steps, step = recipe.epochs * per_epoch, begun * per_epoch
    program.model.train(bool(statistics))
    _check_last_batch(program, stacked, training, int(masks[0].sum()), recipe.batch_size)
    with differentiable(program.model, plain=masks.shape[0] > 1):
        for epoch in range(begun, recipe.epochs):
            for inputs, labels, dropped in _steps(stream, epoch, training, masks, recipe.batch_size):
                with autocast(recipe.precision, stream.device):
                    logits = program.logits(state, inputs, dropped)  # [R, B, ...]
                logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
                losses = program.loss(logits.flatten(0, 1), labels.flatten(0, 1))  # [R * B]
                # Divided by B, not by R * B: every replica's gradient is that of its own mean loss.
                # What a batch does not use (an expert that no example was sent to) has a gradient of zero.
                gradients = torch.autograd.grad(losses.sum() / inputs.shape[1], parameters, materialize_grads=True)
                optimizer.step(gradients, recipe.rate(step, n_steps))
                step += 1
            if on_epoch is not None:
                on_epoch(epoch + 1, state)
            if snapshots is not None and epoch + 1 < recipe.epochs:
                snapshots.offer(epoch + 1, lambda: _state(state, optimizer))
    program.model.eval()
    return {k: p.detach() for k, p in state.items()}


@torch.no_grad()
def _check_last_batch(program: Program, stacked: Parameters, training: Examples, n: int, batch_size: int) -> None:
    """Refuse before the first step what torch refuses after the last: to normalise a batch of one vector."""
    if not program.model.training or (n % batch_size or batch_size) > 1:
        return
    try:
        program.logits_of_one({k: v[0].clone() for k, v in stacked.items()}, training.inputs[:1])
    except ValueError as error:
        program.model.eval()
        better = next((size for size in range(max(2, batch_size), n) if n % size != 1), n)
        raise UsageError(
            f"An epoch over {n} examples in batches of {batch_size} has a batch of one, which the model's batch "
            f"normalisation cannot take. Write another batch_size into the recipe, as {better}: one that leaves no "
            "single example over, of the training set and of its subsets."
        ) from error


def _state(values: Parameters, optimizer: Optimizer) -> State:
    """Return all that the rest of a training depends on."""
    own = {f"value.{name}": value for name, value in values.items()}
    return own | {f"optimizer.{name}": value for name, value in optimizer.state().items()}


@torch.no_grad()
def _resume(values: Parameters, optimizer: Optimizer, snapshots: Snapshots) -> int:
    """Go to where the last snapshot is, in place; return how many epochs are done by then."""
    last = snapshots.last()
    if last is None:
        return 0
    epochs, state = last
    for name, value in values.items():
        value.copy_(state[f"value.{name}"])
    optimizer.restore({k.removeprefix("optimizer."): v for k, v in state.items() if k.startswith("optimizer.")})
    return epochs


def _steps(
    stream: Stream, epoch: int, training: Examples, masks: Tensor, batch_size: int
) -> Iterator[tuple[Tensor, Tensor, dict[str, Tensor]]]:
    """Yield each step's inputs ``[R, B, ...]``, labels ``[R, B, ...]`` and dropout masks ``[R, B, ...]``."""
    kept = stream.kept_in_order(epoch, masks)
    table = stream.dropout(epoch)
    for index in kept.split(batch_size, dim=1):
        flat = index.reshape(-1)
        inputs = training.inputs.index_select(0, flat).view(*index.shape, *training.inputs.shape[1:])
        labels = training.labels.index_select(0, flat).view(*index.shape, *training.labels.shape[1:])
        yield inputs, labels, table.rows(index)


@torch.no_grad()
def target_outputs(task: Task, data: TaskData, stacked: Parameters, batch_size: int = _QUERY_BATCH) -> Tensor:
    """Return the target of every query under every replica, dropout off: ``[R, n_queries]`` float32."""
    program = Program.of(task, data)
    rows = []
    for r in range(next(iter(stacked.values())).shape[0]):
        values = {k: v[r] for k, v in stacked.items()}
        parts = [
            task.target.function(program.logits_of_one(values, batch.inputs), batch.labels)
            for batch in data.queries.batches(batch_size)
        ]
        rows.append(torch.cat(parts).float())  # whatever a target computes in
    return torch.stack(rows)
