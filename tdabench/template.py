"""The template: a task's model, looked over and made ready to be called functionally."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from tdabench.authors import author_errors
from tdabench.dropout import DropoutSite, install_masks, switch_dropout_off
from tdabench.errors import UsageError
from tdabench.kernels import PlainPadding, differentiable
from tdabench.seeds import generator

if TYPE_CHECKING:
    from tdabench.examples import Batch
    from tdabench.task import Task, TaskData

_REFUSED_OF_EMBEDDINGS = {
    "max_norm": "every pass would write to its weight",
    "sparse": "its gradients would be sparse, which cannot be stacked",
    "scale_grad_by_freq": "an example's gradient would depend on which others are passed with it",
}

# Of a gradient, and of all of a model's: what is called twice alike differs by rounding alone.
_SAME, _NOTHING = 1e-3, 1e-5


def template_of(model: nn.Module, example: Tensor) -> tuple[nn.Module, tuple[DropoutSite, ...]]:
    """Return a copy of a model to call functionally, in evaluation mode, and its dropout sites.

    Images are given to models with channels last, which is faster. A model that cannot take them so (it calls ``view``
    on them, for one) gets them as they are in the data.

    Parameters
    ----------
    model
        Any module.
    example
        ``[1, ...]`` one input, which is left as it is.

    Raises
    ------
    UsageError
        If a parameter is not float32, is frozen or is empty, if an embedding has an option that cannot be trained, if
        the model fails on the example or writes to it, or if its dropout cannot be given masks.
    """
    _check_parameters(model)
    _check_embeddings(model)
    passed = example.clone()
    with PlainPadding() as padding:
        # In evaluation mode from the start: BatchNorm1d cannot normalise one example in training mode.
        made, sites = install_masks(model.eval(), passed)
    if not torch.equal(passed, example):
        raise UsageError(
            "The model writes to its input, so every pass would change the data. Let its first step make a tensor of "
            "its own: x = x - 0.5, not x -= 0.5."
        )
    if example.dim() == 4 and not _takes_channels_last(made, example):
        made.register_forward_pre_hook(_as_in_the_data)
    if padding.seen:
        padding.install(made)
    return made, sites


@torch.no_grad()
def check_values(task: Task, model: nn.Module, data: TaskData) -> None:
    """Refuse a model that gives no tensor, and a loss or a target that fails or does not give one value an example.

    A mean, for one, would be divided by the batch's size once more: training would go on, at another learning rate.
    The examples passed are those of the least and the greatest label, as classes may be counted from 1.

    Parameters
    ----------
    task
        Whose loss and target; queries need the target alone.
    model
        The task's template, where the data is.
    data
        Of which two training examples and two queries are passed.

    Raises
    ------
    UsageError
        If model, loss or target fails, the model gives something else than a tensor, or loss or target are no floats
        or not of shape ``[2]``.
    """
    for examples, functions in (
        (data.training, {"loss": task.loss, "target": task.target.function}),
        (data.queries, {"target": task.target.function}),
    ):
        if len(examples):
            two = examples.take(_extremes(examples.labels))
            logits = _outputs(task, model, two)
            for what, function in functions.items():
                _check_value(f"The {what} of {task.name}", function, logits, two)


def check_gradients(model: nn.Module, made: nn.Module, examples: Tensor) -> None:
    """Refuse a model whose gradients are others where it is given its values than where it has them.

    The model itself is called plainly: a function that holds on to its parameters holds on to none of a copy's. Its
    template is given the same values and has others of its own, so that whatever uses those is seen. Running
    statistics are trained with a model in training mode, and used with it in evaluation mode, so both are tried.

    Parameters
    ----------
    model
        In evaluation mode; its values are moved and put back.
    made
        Its template, on the CPU as the model is.
    examples
        ``[n, ...]`` inputs, of which the first two are passed.

    Raises
    ------
    UsageError
        If a parameter's gradient differs, or the model cannot be differentiated.
    """
    other, trained = copy.deepcopy(made), dict(model.named_parameters())
    kept = model.state_dict().keys()
    statistics = {name: buffer for name, buffer in model.named_buffers() if name in kept}
    two = examples[:2] if len(examples) > 1 else torch.cat([examples, examples])
    with _moved(model, other):
        given = {name: p.detach().clone().requires_grad_() for name, p in trained.items()}
        for training in (False, True) if statistics else (False,):
            switch_dropout_off(model.train(training))
            plain = _gradients(model, {}, statistics, trained, two)
            functional = _gradients(other.train(training), given, statistics, given, two)
            if (wrong := _first_that_differs(plain, functional)) is not None:
                raise UsageError(
                    f"The model's {wrong} gets another gradient where the model is given its values, as in training, "
                    "than where it is called as it stands. Use every parameter as an attribute of its module "
                    "(self.weight), not one that is kept in a list or a function, too, and call layers without "
                    "torch.utils.checkpoint, which computes them again when the values are gone."
                )


def laid_out(inputs: Tensor) -> Tensor:
    """Return images with channels last, as models get them, and other inputs as they are."""
    return inputs.contiguous(memory_format=torch.channels_last) if inputs.dim() == 4 else inputs


def _extremes(labels: Tensor) -> Tensor:
    """Return which examples have the least and the greatest label, ``[2]`` int64."""
    if not labels.numel():
        return torch.zeros(2, dtype=torch.int64, device=labels.device)
    return torch.stack([labels.argmin(), labels.argmax()]) // labels[0].numel()


def _outputs(task: Task, model: nn.Module, two: Batch) -> Tensor:
    with author_errors(f"The model of {task.name}, given inputs {list(two.inputs.shape)},"):
        logits = model(two.inputs)
    if not isinstance(logits, Tensor):
        raise UsageError(
            f"The model of {task.name} gives a {type(logits).__name__}, expected one tensor. Return its outputs alone, "
            "[B, ...]."
        )
    return logits


def _check_value(what: str, function: Callable[[Tensor, Tensor], Tensor], logits: Tensor, two: Batch) -> None:
    labels = two.labels
    span = f" from {int(labels.min())} to {int(labels.max())}" if labels.numel() else ""
    given = f"{what}, given logits {list(logits.shape)} and labels {list(labels.shape)}{span},"
    with author_errors(given, hint="Classes are numbered from 0, with a logit each; every example or token is of one."):
        value = torch.as_tensor(function(logits, labels)).cpu()  # of a device, errors come late
    shape = list(value.shape)
    if shape != [2]:
        raise UsageError(
            f"{what} has shape {shape} for two examples, expected [2]: one value an example. "
            'Torch\'s losses give it with reduction="none"; tdabench.cross_entropy and token_cross_entropy do.'
        )
    if not value.is_floating_point():
        raise UsageError(f"{what} is of type {value.dtype}, expected floats: there is nothing to differentiate.")


def _check_parameters(model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            raise UsageError(
                f"The model's {name} is frozen (requires_grad=False), and a task's training changes all parameters. "
                "Make what is fixed a buffer (register_buffer), or let load_data return what it computes."
            )
        if parameter.dtype != torch.float32:
            kind = str(parameter.dtype).removeprefix("torch.")
            raise UsageError(
                f"The model's {name} is {kind}, expected float32. Make the model in float32; training in bfloat16 is "
                "part of the recipe (precision)."
            )
        if parameter.numel() == 0:
            raise UsageError(f"The model's {name} has no elements, its shape is {list(parameter.shape)}. Leave it out.")


def _check_embeddings(model: nn.Module) -> None:
    for name, module in model.named_modules():
        for option, reason in _REFUSED_OF_EMBEDDINGS.items():
            if isinstance(module, nn.Embedding | nn.EmbeddingBag) and getattr(module, option) not in (None, False):
                raise UsageError(
                    f"The model's {name} is an {type(module).__name__} with {option}={getattr(module, option)}: "
                    f"{reason}. Leave {option} out."
                )


@contextmanager
def _moved(model: nn.Module, other: nn.Module) -> Iterator[None]:
    """Move a model's values off those that say nothing, as zeros do, and those of its copy far away; then back."""
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    random, own = generator("template", "moved"), dict(other.named_parameters())
    try:
        with torch.no_grad():
            for name, p in model.named_parameters():
                drawn = torch.rand(p.shape, generator=random)
                p.copy_(torch.where(p == 0, 0.1 * drawn, (0.7 + 0.6 * drawn) * p))  # of the same sign
                own[name].copy_(-2 * p)
        yield
    finally:
        model.eval()
        with torch.no_grad():
            for name, p in model.named_parameters():
                p.copy_(before[name])


def _gradients(
    model: nn.Module,
    values: Mapping[str, Tensor],
    statistics: Mapping[str, Tensor],
    leaves: Mapping[str, Tensor],
    examples: Tensor,
) -> dict[str, Tensor | None]:
    """Return the gradients of a sum of the model's outputs by name; none if it gives no floats, which others refuse."""
    copies = {name: buffer.clone() for name, buffer in statistics.items()}  # training writes to them
    with torch.enable_grad(), differentiable(model), author_errors("The model, differentiated on two examples,"):
        outputs = functional_call(model, {**values, **copies}, (examples.clone(),))
        if not isinstance(outputs, Tensor) or not outputs.is_floating_point():
            return {}
        # By weights, as the plain sum of some outputs (probabilities, for one) is constant.
        total = (outputs.flatten() * torch.arange(outputs.numel()).cos()).sum()
        if not total.requires_grad:
            return dict.fromkeys(leaves)
        return dict(zip(leaves, torch.autograd.grad(total, list(leaves.values()), allow_unused=True), strict=True))


def _first_that_differs(plain: Mapping[str, Tensor | None], found: Mapping[str, Tensor | None]) -> str | None:
    """Return the first parameter that the values given do not reach, or else that gets another gradient."""
    if missed := [name for name, g in plain.items() if g is not None and found[name] is None]:
        return missed[0]
    finite = {name: g for name, g in plain.items() if g is not None and bool(g.isfinite().all())}
    nothing = _NOTHING * sum(float(g.square().sum()) for g in finite.values()) ** 0.5
    for name, g in finite.items():
        other = found[name]
        assert other is not None
        if not (other - g).norm() <= _SAME * g.norm() + nothing:  # so written that one that is not finite differs
            return name
    return None


@torch.no_grad()
def _takes_channels_last(model: nn.Module, example: Tensor) -> bool:
    # Two examples: of one, some views are possible that are not of a batch.
    images = torch.cat([example, example]).contiguous(memory_format=torch.channels_last)
    try:
        model(images)
    except RuntimeError:
        return False
    return True


def _as_in_the_data(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    images, *others = args
    return (images.contiguous(), *others)
