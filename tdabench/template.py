"""The template: a task's model, looked over and made ready to be called functionally."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from tdabench.dropout import DropoutSite, install_masks
from tdabench.errors import UsageError

if TYPE_CHECKING:
    from tdabench.examples import Examples
    from tdabench.task import Task


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
        If a parameter is not float32 or is frozen, if the model writes to its input, or if its dropout cannot be given
        masks.
    """
    _check_parameters(model)
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
    return made, sites


@torch.no_grad()
def check_values(task: Task, model: nn.Module, examples: Examples) -> None:
    """Refuse a loss or a target that does not give one value an example.

    A mean, for one, would be divided by the batch's size once more: training would go on, at another learning rate.

    Parameters
    ----------
    task
        Whose loss and target.
    model
        The task's template, where the examples are.
    examples
        Of which one is passed, twice.

    Raises
    ------
    UsageError
        If the shape of either is not ``[2]``.
    """
    two = examples.take(torch.zeros(2, dtype=torch.int64, device=examples.inputs.device))
    logits = model(two.inputs)
    for what, function in (("loss", task.loss), ("target", task.target.function)):
        shape = list(function(logits, two.labels).shape)
        if shape != [2]:
            raise UsageError(
                f"The {what} of {task.name} has shape {shape} for two examples, expected [2]: one value an example. "
                'Torch\'s losses give it with reduction="none"; tdabench.cross_entropy and token_cross_entropy do.'
            )


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
