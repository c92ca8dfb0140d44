"""The layout of a model: which layers' gradients factor, and how examples are passed to find them.

What a model does with its layers is seen in a pass of one example and of two; a layer factors if it is called once and
its parameters enter the model nowhere else. The fastest way to pass examples is then tried on a few and must give
what autograd gives for each alone, or the next one is taken; the last is autograd itself. So a model that does what
nobody thought of costs time, and its gradients are right all the same. None of these passes is counted.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from tdabench.errors import Declined
from tdabench.examples import Batch, Examples
from tdabench.graph import entries
from tdabench.held import numbers_held
from tdabench.kernels import differentiable
from tdabench.layers import factors, own_names
from tdabench.memory import ran_out
from tdabench.pieces import in_order
from tdabench.taps import Layout, check_call, check_called, hooked, leaves_of, pieces_at, row

if TYPE_CHECKING:
    from tdabench.member import Member, Quantity
    from tdabench.view import TaskView

# Of a length. Rounding is far below it, and passes that do something else are far above.
_SAME = 1e-2
# Of the whole gradient's length: a parameter whose gradient is nothing but rounding is not compared.
_NOTHING = 1e-3
# Of the examples that are tried at most, two at a time.
_MOST_TRIED = 8
# Where every example is looked at, so many are passed at once at most, and as many as take so much.
_MOST_AT_ONCE = 64
_PASS_BYTES = 128 << 20
_QUANTITIES: tuple[Literal["loss"], Literal["target"]] = ("loss", "target")

# Finding a layout takes some passes, and it does not depend on values: a task's members share it.
_found: WeakKeyDictionary[TaskView, dict[object, dict[torch.Size, Layout]]] = WeakKeyDictionary()


def layout_of(member: Member, examples: Examples) -> Layout:
    """Return how the gradients of a member are found; passes are made for the first of its kind only.

    Raises
    ------
    Declined
        If the model's output for an example depends on which others are passed with it, or if inputs of this shape,
        which neither the training examples nor the queries have, go through other layers than theirs.
    """
    kind = tuple((name, p.shape) for name, p in member.parameters.items())
    known = _found.setdefault(member.task, {}).setdefault(kind, {})
    if examples.inputs.shape[1:] not in known:
        sets = {some.inputs.shape[1:]: some for some in (member.task.queries, member.task.training, examples)}
        known.update(_find_all(member, sets, known))
    return known[examples.inputs.shape[1:]]


def _find_all(
    member: Member, sets: Mapping[torch.Size, Examples], known: Mapping[torch.Size, Layout]
) -> dict[torch.Size, Layout]:
    """Return a layout for inputs of each shape; all have the same layers, as products are taken layer by layer."""
    pairs = {shape: list(_pairs(member, some)) for shape, some in sets.items()}
    found = {shape: known.get(shape) or _find(member, some, pairs[shape]) for shape, some in sets.items()}
    if len({(tuple(layout.layers), layout.unused) for layout in found.values()}) == 1:
        return found
    if known:  # gradients of the others may have been taken, in the layers that were found
        (other,) = sets.keys() - known.keys()
        raise Declined(
            f"the model of {member.task.name} does otherwise with inputs of shape {list(other)} than with those of the "
            "training examples and queries, so their gradients cannot be multiplied; give inputs of one shape"
        )
    return {shape: _plain(member, pairs[shape]) for shape in sets}


def _pairs(member: Member, examples: Examples) -> Iterator[Batch]:
    """Yield pairs of examples that are spread evenly, first the outermost.

    These two differ, and are of others of the same shape if all are one: equals mix without a trace.
    """
    alike = _sets(member, examples)
    chosen = next((some for some in alike if not torch.equal(some.inputs[0], some.inputs[-1])), alike[0])
    last = len(chosen) - 1
    half = min(_MOST_TRIED, last + 1) // 2
    for i in range(max(1, half)):
        place = i * last // max(1, 2 * half - 1)
        yield chosen.take(torch.tensor([place, last - place], device=chosen.inputs.device))


def _sets(member: Member, examples: Examples) -> list[Examples]:
    """Return these examples, and the training examples and the queries if their inputs have the same shape."""
    sets = (examples, member.task.training, member.task.queries)
    return [some for some in sets if some.inputs.shape[1:] == examples.inputs.shape[1:]]


def _find(member: Member, examples: Examples, pairs: Sequence[Batch]) -> Layout:
    """Return the first layout that gives right gradients for some examples, two of which show what the model does."""
    two = pairs[0]
    alone, both = _probe(member, two.inputs[:1]), _probe(member, two.inputs)
    _check_independent(member, alone.outputs, both.outputs)
    for layout in _candidates(member, alone, both, two.inputs):
        if _is_right(member, layout, pairs) and _holds(member, layout, two, _sets(member, examples)):
            return layout
    return _plain(member, pairs)


def _plain(member: Member, pairs: Sequence[Batch]) -> Layout:
    """Return the layout that is right for every model: what autograd gives for each parameter, and nothing else."""
    return _layout(member, {}, "alone", pairs[0].inputs)


@dataclass(frozen=True)
class _Call:
    inputs: torch.Size
    outputs: torch.Size


@dataclass(frozen=True)
class _Probe:
    """What a pass shows: calls of the layers that may factor, how often parameters enter, and what comes out."""

    calls: dict[str, list[_Call]]
    entries: Counter[str]
    outputs: Tensor

    def once(self, name: str, module: nn.Module) -> bool:
        """Return whether a layer is called once and its parameters enter once, some of them at least."""
        return len(self.calls[name]) == 1 and {self.entries[p] for p in own_names(name, module)} in ({1}, {0, 1})


def _probe(member: Member, inputs: Tensor) -> _Probe:
    calls: dict[str, list[_Call]] = {
        name: []
        for name, module in member.model.named_modules()
        if factors(module) and not member.parameters.keys().isdisjoint(own_names(name, module))
    }

    def note(name: str, x: Tensor, out: Tensor) -> None:
        calls[name].append(_Call(x.shape, out.shape))

    leaves = leaves_of(member)
    with torch.enable_grad(), differentiable(member.model), hooked(member.model, calls, note):
        outputs = functional_call(member.model, {**leaves, **member.statistics}, (inputs,))
    return _Probe(calls, entries(outputs, leaves), outputs.detach())


def _check_independent(member: Member, alone: Tensor, both: Tensor) -> None:
    """Refuse models that mix examples: none of them has a gradient of its own."""
    name = member.task.name
    if both.shape != (2, *alone.shape[1:]) or alone.shape[:1] != (1,):
        raise Declined(
            f"the model of {name} gives outputs of shape {list(alone.shape)} for one example and {list(both.shape)} "
            "for two, so examples have no gradients of their own; it must give one row per example"
        )
    if (both[0] - alone[0]).abs().max() > _SAME * alone.abs().max():
        raise Declined(
            f"the model of {name} gives an example another output when others are passed with it, so examples have no "
            "gradients of their own. Attention without batch_first=True and batch statistics in evaluation do that"
        )


def _candidates(member: Member, alone: _Probe, both: _Probe, inputs: Tensor) -> Iterator[Layout]:
    """Yield layouts from the fastest to the slowest, for inputs ``[2, *example]``."""
    modules = dict(member.model.named_modules())
    once = [name for name in alone.calls if all(probe.once(name, modules[name]) for probe in (alone, both))]
    calls = {name: alone.calls[name][0] for name in once}
    unused = {name for name in member.parameters if not alone.entries[name] and not both.entries[name]}
    layout = _layout(member, calls, "together", inputs, unused)
    rows = [(probe.calls[name][0].inputs[:1], n) for name in calls for probe, n in ((alone, 1), (both, 2))]
    # A layer may be given all examples' tokens in one row, or its own parameters: then examples are not its rows.
    if not layout.loose and all(found == (n,) for found, n in rows):
        yield layout
    yield replace(layout, way="mapped", numbers=max(layout.numbers, numbers_held(member, inputs, plain=True)))
    yield _layout(member, calls, "alone", inputs)


def _layout(
    member: Member,
    calls: dict[str, _Call],
    way: Literal["together", "mapped", "alone"],
    inputs: Tensor,
    unused: Collection[str] = (),
) -> Layout:
    modules = dict(member.model.named_modules())
    held = {p for name in calls for p in own_names(name, modules[name])}
    rest = [name for name in member.parameters if name not in held]
    loose, unused = tuple(k for k in rest if k not in unused), tuple(k for k in rest if k in unused)
    numbers = sum(_numbers(modules[name], call) for name, call in calls.items())
    # Only one layer's at a time.
    numbers += max((_patches(modules[name], call) for name, call in calls.items()), default=0)
    numbers += sum(member.parameters[name].numel() for name in loose)
    # A pass holds what comes out of frozen modules, too, and of what is between them.
    numbers = max(numbers, numbers_held(member, inputs))
    return Layout({name: call.outputs for name, call in calls.items()}, loose, unused, way, numbers)


def _numbers(module: nn.Module, call: _Call) -> int:
    """Return how many numbers a layer's input, output and gradient take for one example."""
    outputs = call.outputs.numel()
    summed = sum(p.numel() for p in module.parameters(recurse=False)) if _positions(module, call) > 1 else 0
    return call.inputs.numel() + 3 * outputs + summed


def _patches(module: nn.Module, call: _Call) -> int:
    """Return how many numbers a convolution's patches take for one example."""
    if not isinstance(module, nn.Conv2d):
        return 0
    return _positions(module, call) * module.in_channels * module.kernel_size[0] * module.kernel_size[1]


def _positions(module: nn.Module, call: _Call) -> int:
    return call.outputs.numel() // call.outputs[-3 if isinstance(module, nn.Conv2d) else -1]


def _is_right(member: Member, layout: Layout, pairs: Iterable[Batch]) -> bool:
    """Return whether a layout gives what one backward pass per example gives.

    Other pairs than the first are tried while a parameter has no gradient to compare; all of them under ``vmap``, some
    of whose rules are wrong for some values only. One without a gradient in all of them is taken to have none.
    """
    unproven = set(member.parameters)
    for pair in pairs:
        for of in _QUANTITIES:
            proven = _proven(member, layout, pair, of)
            if proven is None:
                return False
            unproven -= proven
        if not unproven and layout.way != "mapped":
            break
    return True


def _holds(member: Member, layout: Layout, two: Batch, sets: Iterable[Examples]) -> bool:
    """Return whether the model does with every example what a layout says, not only with those that were tried.

    What ``vmap`` passes does not depend on values. Of other models, every example is looked at: queries each alone, as
    few of them may be passed; training examples as many at once as are passed together.
    """
    if layout.way == "mapped" or _is_mappable(member, two):
        return True
    size = max(1, min(_MOST_AT_ONCE, _PASS_BYTES // (4 * layout.numbers))) if layout.way == "together" else 1
    return all(
        _fits(member, layout, batch)
        for examples in sets
        for batch in examples.batches(size if examples.split == "train" else 1)
    )


@torch.no_grad()
def _is_mappable(member: Member, batch: Batch) -> bool:
    """Return whether examples can be passed under ``vmap``, which refuses to choose by values what to do."""

    def one(x: Tensor, masks: dict[str, Tensor]) -> Tensor:
        rows = {name: mask.unsqueeze(0) for name, mask in masks.items()}
        values = {**member.parameters, **member.statistics, **rows}
        return functional_call(member.model, values, (x.unsqueeze(0),))

    try:
        with differentiable(member.model, plain=True), warnings.catch_warnings(action="ignore"):
            vmap(one)(batch.inputs, member.mask_rows(batch))
    except Exception as error:  # whatever a model raises there: it need not be passed so
        if ran_out(error):
            raise
        return False
    return True


def _fits(member: Member, layout: Layout, batch: Batch) -> bool:
    """Return whether a pass calls the layers as a layout says and uses nothing that it says is unused."""
    leaves = leaves_of(member)
    seen: dict[str, Tensor] = {}

    def note(name: str, x: Tensor, out: Tensor) -> None:
        check_call(member, layout, seen, name, out, len(batch))
        seen[name] = x.detach()

    try:
        graph = torch.set_grad_enabled(bool(layout.unused))
        with graph, differentiable(member.model), hooked(member.model, layout.layers, note):
            outputs = member.logits(leaves, batch)
        check_called(member, layout, seen)
    except Declined:
        return False
    return not entries(outputs, {name: leaves[name] for name in layout.unused})


def _proven(member: Member, layout: Layout, batch: Batch, of: Quantity) -> set[str] | None:
    """Return the parameters whose gradients a layout gives right and are not nothing; None if it gives one wrong."""
    try:
        pieces = list(pieces_at(member, layout, batch, of))
    except (RuntimeError, Declined) as error:  # vmap has no rule for something in the model, the loss or the target
        if ran_out(error):
            raise
        return None
    proven: set[str] = set()
    for i in range(len(batch)):
        expected = _by_autograd(member, row(batch, i), of)
        nothing = _NOTHING * sum(float(g.square().sum()) for g in expected.values()) ** 0.5
        for piece in pieces:
            found = piece.part(slice(i, i + 1)).rows().values[0]  # [p, q]; a bias is the last column
            wanted = [expected[name].reshape(len(found), -1) for name in piece.parameters]
            difference = found - in_order(torch.cat(wanted, dim=1), piece.order)
            # Written so that what is not finite passes: it is not the layout's doing.
            if difference.norm() > _SAME * found.norm() + nothing:
                return None
            if found.norm() > nothing:
                proven.update(piece.parameters)
    return proven


def _by_autograd(member: Member, example: Batch, of: Quantity) -> dict[str, Tensor]:
    """Return one example's gradient by parameter."""
    leaves = leaves_of(member)
    with torch.enable_grad(), differentiable(member.model):
        value = member.function(of)(member.logits(leaves, example), example.labels).sum()
        found = torch.autograd.grad(value, list(leaves.values()), materialize_grads=True)
    return dict(zip(leaves, found, strict=True))
