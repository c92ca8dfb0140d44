"""The autograd graph of a tensor: where parameters enter it, and what it keeps."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Collection, Iterator, Mapping

from torch import Tensor
from torch.autograd.graph import Node, saved_tensors_hooks


def entries(output: Tensor, leaves: Mapping[str, Tensor], ends: Collection[Node] = ()) -> Counter[str]:
    """Return how often each leaf enters the graph of ``output``, by name, without what stands at or behind ``ends``."""
    names = {id(leaf): name for name, leaf in leaves.items()}
    found: Counter[str] = Counter()
    for node in _nodes(output.grad_fn, ends):
        for parent, _ in node.next_functions:
            name = names.get(id(getattr(parent, "variable", None)))
            if name is not None:
                found[name] += 1
    return found


@contextlib.contextmanager
def kept() -> Iterator[dict[int, int]]:
    """Yield the bytes that graphs made inside keep for passes back, by address: each storage once, parameters too.

    Good while the graphs are there; another tensor may have the address afterwards. They cannot be passed back through.
    """
    found: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        found[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # itself, it would keep the node that made it, which keeps it

    with saved_tensors_hooks(note, lambda tensor: tensor):
        yield found


def behind(node: Node | None) -> set[Node]:
    """Return a node and everything that its result is made of."""
    return set(_nodes(node))


def _nodes(start: Node | None, ends: Collection[Node] = ()) -> Iterator[Node]:
    """Yield every node from ``start`` back, once; without ``ends``."""
    seen, todo = {None, *ends}, [start]
    while todo:
        node = todo.pop()
        if node in seen or node is None:
            continue
        seen.add(node)
        yield node
        todo += [parent for parent, _ in node.next_functions]
