"""A device refuses tensors of two places and allows what it should: a CUDA device, or one that is pretended like it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

Mixture = Callable[[Tensor, Tensor, Tensor], object]
MIXTURES: dict[str, Mixture] = {
    "product": lambda there, here, index: there @ here.T,
    "sum": lambda there, here, index: there + here,
    "in place": lambda there, here, index: there.add_(here),
    "into the CPU": lambda there, here, index: here.add_(there),
    "scalar there": lambda there, here, index: here + there.sum(),
    "where": lambda there, here, index: torch.where(there > 0, there, here),
    "cat": lambda there, here, index: torch.cat([there, here]),
    "stack of scalars": lambda there, here, index: torch.stack([there.sum(), here.sum()]),
    "rows of the CPU by an index there": lambda there, here, index: here[index.to(there.device)],
    "index select": lambda there, here, index: there.index_select(0, index),
    "gather": lambda there, here, index: there.gather(0, index.unsqueeze(1)),
    "values to put": lambda there, here, index: there.index_put_((index,), here[:2]),
    "scalar that is written to": lambda there, here, index: torch.zeros(()).add_(there.sum()),
    "comparison": lambda there, here, index: torch.equal(there, here),
    "output": lambda there, here, index: torch.mul(there, 2, out=torch.empty_like(here)),
    "numpy": lambda there, here, index: there.numpy(),
    "generator": lambda there, here, index: there.normal_(generator=torch.Generator()),
    "random numbers": lambda there, here, index: torch.randn(2, device=there.device, generator=torch.Generator()),
    "layer": lambda there, here, index: nn.Linear(3, 2)(there),
}


@pytest.fixture
def tensors(place) -> tuple[Tensor, Tensor, Tensor]:
    here = torch.arange(12.0).view(4, 3)
    return here.to(place), here, torch.tensor([0, 2])


@pytest.mark.parametrize("mixture", MIXTURES)
def test_tensors_of_two_places_do_not_mix(place, tensors, mixture):
    words = r"one device|generator of pretended|numpy\(\)" if place.type == "pretended" else None
    with pytest.raises((RuntimeError, TypeError), match=words):
        MIXTURES[mixture](*tensors)


def test_what_a_device_allows_is_allowed(place, tensors):
    there, here, index = tensors
    allowed = [
        (there * 2.0, here * 2.0),
        (there + torch.tensor(1.0), here + 1),
        (there[index], here[index]),
        (there[index.to(place)], here[index]),
        (there.clone().index_put_((index,), torch.tensor(0.0)), here.index_fill(0, index, 0.0)),
        (there.double(), here.double()),
        (there @ here.T.to(place), here @ here.T),
        (torch.tensor([1.0, 2.0], device=place), torch.tensor([1.0, 2.0])),
        (torch.ones(2, device=place), torch.ones(2)),
        (torch.empty_like(here).to(place).copy_(here), here),
    ]
    for found, expected in allowed:
        assert found.device == place
        assert found.cpu().device.type == "cpu"
        assert torch.equal(found.cpu(), expected)
    eigenvalues = torch.linalg.eigvalsh(there.T @ there)
    assert eigenvalues.device == place
    # Of rank two: the least is rounding, each library's own.
    torch.testing.assert_close(eigenvalues.cpu(), torch.linalg.eigvalsh(here.T @ here), rtol=1e-4, atol=1e-2)
    assert torch.zeros_like(here).copy_(there).tolist() == there.tolist() == here.tolist()
    assert there[0, 1].item() == 1.0
    assert there.to(place) is there


def test_views_share_their_numbers(tensors):
    there, here, _ = tensors
    there[1:3].zero_()
    there.view(-1)[0] = 5.0
    assert there.tolist() == [[5, 1, 2], [0, 0, 0], [0, 0, 0], [9, 10, 11]]
    assert here[1].tolist() == [3, 4, 5], "the copy on the CPU is another"
    assert there[1:].untyped_storage().data_ptr() == there.untyped_storage().data_ptr()


def test_a_module_moves_there_and_learns(place, tensors):
    there, here, _ = tensors
    layer, norm = nn.Linear(3, 2), nn.BatchNorm1d(3)
    expected = torch.autograd.grad(layer(norm(here)).square().sum(), layer.weight)[0]
    layer.to(place)
    norm.to(place)
    assert {t.device for t in (*layer.parameters(), *norm.parameters(), *norm.buffers())} == {place}
    found = torch.autograd.grad(layer(norm(there)).square().sum(), layer.weight)[0]
    assert found.device == place
    torch.testing.assert_close(found.cpu(), expected)
