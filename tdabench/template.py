"""The template: a task's model, looked over and made ready to be called functionally."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from tdabench.authors import author_errors
from tdabench.dropout import DropoutSite, install_masks
from tdabench.errors import UsageError

if TYPE_CHECKING:
    from tdabench.examples import Batch
    from tdabench.task import Task, TaskData

_REFUSED_OF_EMBEDDINGS = {
    "max_norm": "every pass would write to its weight",
    "sparse": "its gradients would be sparse, which cannot be stacked",
    "scale_grad_by_freq": "an example's gradient would depend on which others are passed with it",
}


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
    # In evaluation mode from the start: BatchNorm1d cannot normalise one example in training mode.
    made, sites = install_masks(model.eval(), passed)
    if not torch.equal(passed, example):
        raise UsageError(
            "The model writes to its input, so every pass would change the data. Let its first step make a tensor of "
            "its own: x = x - 0.5, not x -= 0.5."
        )
    if example.dim() == 4 and not _takes_channels_last(made, example):
        made.register_forward_pre_hook(_as_in_the_data)
    _keep_padding(made)
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


def _keep_padding(model: nn.Module) -> None:
    """Let padding have no gradient under ``vmap``, too, where torch spares the first copy of the weight alone."""
    for module in model.modules():
        plain = isinstance(module, nn.Embedding) and getattr(module.forward, "__func__", None) is nn.Embedding.forward
        if plain and module.padding_idx is not None:
            # Before hooks of the model's own, which may add to what padding gives.
            module.register_forward_hook(_without_padding, prepend=True, with_kwargs=True)


def _without_padding(module: nn.Embedding, args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> Tensor:
    tokens = args[0] if args else kwargs["input"]
    return torch.where((tokens == module.padding_idx).unsqueeze(-1), out.detach(), out)
