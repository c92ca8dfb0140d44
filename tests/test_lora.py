from __future__ import annotations

import gc
import weakref

import torch
from torch import nn
from torch.func import functional_call

from tdabench.lora import adapted_model, adapter_names, initial_adapter


def model() -> nn.Sequential:
    return nn.Sequential(nn.Linear(7, 5), nn.ReLU(), nn.LayerNorm(5), nn.Linear(5, 3, bias=False))


def adapted(rank: int = 2):
    base = model()
    return base, adapted_model(base, dict(base.named_parameters()), rank)


def test_a_fresh_adapter_changes_nothing():
    base, copy = adapted()
    x = torch.randn(4, 7)
    torch.testing.assert_close(functional_call(copy, initial_adapter(copy, "a"), (x,)), base(x).detach())


def test_an_adapter_adds_up_times_down_to_the_weight():
    base, copy = adapted()
    values = {k: torch.randn_like(v) for k, v in initial_adapter(copy, "a").items()}
    x = torch.randn(4, 7)
    found = functional_call(copy, values, (x,))
    with torch.no_grad():
        for name in ("0", "3"):
            down, up = (values[n] for n in adapter_names(name))
            base.get_submodule(name).weight += up @ down
        torch.testing.assert_close(found, base(x))


def test_only_linear_layers_are_adapted_and_the_rank_is_cut_to_their_size():
    _, copy = adapted(rank=4)
    shapes = {k: tuple(v.shape) for k, v in initial_adapter(copy, "a").items()}
    assert shapes == dict(
        zip((*adapter_names("0"), *adapter_names("3")), ((4, 7), (5, 4), (3, 5), (3, 3)), strict=True)
    )


def test_up_starts_at_zero_and_down_with_variance_one_over_inputs():
    base = nn.Linear(400, 300)
    values = initial_adapter(adapted_model(base, dict(base.named_parameters()), 50), "a")
    down, up = (values[n] for n in adapter_names(""))
    assert not up.any()
    torch.testing.assert_close(down.var(), torch.tensor(1 / 400), rtol=0.05, atol=0)


def test_adapters_differ_by_stream_alone():
    _, copy = adapted()
    a, again, b = (initial_adapter(copy, "adapter", i)[adapter_names("0")[0]] for i in (0, 0, 1))
    assert torch.equal(a, again)
    assert not torch.equal(a, b)


def test_the_adapted_copy_is_frozen_and_the_model_is_left_alone():
    base, copy = adapted()
    assert not any(p.requires_grad for p in copy.parameters())
    assert all(p.requires_grad for p in base.parameters())
    assert not hasattr(base[0], "parametrizations")


def test_the_given_parameters_are_adapted_not_the_model_s_own():
    base, other = model(), model()
    copy = adapted_model(base, dict(other.named_parameters()), 2)
    x = torch.randn(4, 7)
    torch.testing.assert_close(copy(x), other(x).detach())


def storages(model: nn.Module) -> set[int]:
    return {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}


def test_adapters_share_the_model_they_are_on():
    base = nn.Sequential(nn.Linear(7, 5), nn.BatchNorm1d(5), nn.Linear(5, 3))
    trained = {name: value.clone() for name, value in base.state_dict().items()}
    copies = [adapted_model(base, trained, 2) for _ in range(3)]
    of_model = {t.untyped_storage().data_ptr() for t in trained.values()}
    assert storages(copies[0]) & storages(copies[1]) & storages(copies[2]) == of_model
    assert not storages(copies[0]) & storages(base)


def test_layers_that_share_a_weight_go_on_sharing_it():
    base, other = (nn.Sequential(nn.Embedding(6, 4), nn.Linear(4, 6, bias=False)) for _ in range(2))
    for one in (base, other):
        one[1].weight = one[0].weight
    copy = adapted_model(base, dict(other.named_parameters()), 2)
    tokens = torch.tensor([0, 5, 3])
    torch.testing.assert_close(copy(tokens), other(tokens).detach())
    assert copy[0].weight.data_ptr() == copy[1].parametrizations.weight.original.data_ptr()


def test_an_adapted_model_is_freed_as_soon_as_nobody_has_it():
    gc.disable()
    try:
        _, copy = adapted()
        layers = [weakref.ref(module) for module in copy.modules()]
        del copy
        assert not any(layer() for layer in layers)
    finally:
        gc.enable()


def test_a_layer_of_a_class_of_its_own_keeps_what_it_does():
    class Doubled(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(x)

    base = nn.Sequential(Doubled(4, 3), nn.Linear(3, 2))
    copy = adapted_model(base, dict(base.named_parameters()), 2)
    x = torch.randn(5, 4)
    torch.testing.assert_close(copy(x), base(x).detach())
    assert isinstance(copy[0], Doubled)
    assert not isinstance(copy[1], Doubled)
