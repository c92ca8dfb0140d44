from __future__ import annotations

import math
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tdabench.dropout import DropoutSite, MaskedDropout, MaskTable, SequenceDropout, install_masks
from tdabench.errors import UsageError

SITE = DropoutSite("2.mask", 0.3, (7,))


def model_with(*dropouts: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), *dropouts, nn.Linear(6, 3))


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_units_are_dropped_at_the_rate_and_the_rest_scaled_up(p):
    mask = MaskTable.draw([DropoutSite("m", p, (100,))], 4000, "rate").masks["m"]
    dropped = (mask == 0).double().mean().item()
    assert abs(dropped - p) < 5 * math.sqrt(p * (1 - p) / mask.numel())
    torch.testing.assert_close(mask[mask > 0], torch.full_like(mask[mask > 0], 1 / (1 - p)))
    assert mask.mean().item() == pytest.approx(1, abs=0.01)


def test_dropping_everything_gives_zeros_as_torch_does():
    assert torch.equal(MaskTable.draw([DropoutSite("m", 1.0, (3,))], 2, "x").masks["m"], torch.zeros(2, 3))


def test_a_mask_is_the_same_on_every_machine_and_in_every_version():
    mask = MaskTable.draw([DropoutSite("m", 0.5, (12,))], 1, "golden").masks["m"][0]
    assert "".join(str(int(x > 0)) for x in mask) == "000000011000"


@given(st.integers(1, 40), st.integers(1, 40))
def test_an_example_keeps_its_mask_when_the_set_grows(n, more):
    short, long = (MaskTable.draw([SITE], k, "prefix").masks[SITE.buffer] for k in (n, n + more))
    assert torch.equal(short, long[:n])


@given(st.permutations(range(12)), st.integers(1, 12))
def test_masks_follow_examples_through_any_order_and_batching(order, size):
    table = MaskTable.draw([SITE], 12, "follow")
    index = torch.tensor(order)
    found = torch.cat([table.rows(part)[SITE.buffer] for part in index.split(size)])
    assert torch.equal(found, table.masks[SITE.buffer][index])
    assert torch.equal(table.rows(index.view(3, 4))[SITE.buffer], found.view(3, 4, 7))


def test_sites_and_names_have_streams_of_their_own():
    sites = [SITE, DropoutSite("5.mask", 0.3, (7,))]
    first, again, other = (MaskTable.draw(sites, 50, name).masks for name in ("a", "a", "b"))
    assert torch.equal(first["2.mask"], again["2.mask"])
    assert not torch.equal(first["2.mask"], other["2.mask"])
    assert not torch.equal(first["2.mask"], first["5.mask"])


def test_sites_have_names_rates_and_shapes():
    _, sites = install_masks(model_with(nn.Dropout(0.2), nn.Dropout(0.0), nn.Dropout(0.5)), torch.zeros(1, 4))
    assert sites == (DropoutSite("2.mask", 0.2, (6,)), DropoutSite("4.mask", 0.5, (6,)))


def test_installing_masks_leaves_the_model_alone():
    model = model_with(nn.Dropout(0.2))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    copy, _ = install_masks(model, torch.zeros(1, 4))
    assert type(model[2]) is nn.Dropout
    assert type(copy[2]) is MaskedDropout
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert copy[0].weight is not model[0].weight


def test_without_a_mask_dropout_is_off_and_with_one_it_multiplies():
    model = model_with(nn.Dropout(0.2))
    copy, sites = install_masks(model, torch.zeros(1, 4))
    x = torch.randn(5, 4)
    torch.testing.assert_close(copy(x), model.eval()(x))
    mask = MaskTable.draw(sites, 5, "x").masks
    expected = model[3](model[:2](x) * mask["2.mask"])
    torch.testing.assert_close(torch.func.functional_call(copy, mask, (x,)), expected)


@pytest.mark.parametrize("kind", [nn.Dropout1d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout])
def test_other_kinds_of_dropout_are_refused_by_name(kind):
    with pytest.raises(UsageError, match=rf"model's 2 is a {kind.__name__}; use torch.nn.Dropout instead"):
        install_masks(model_with(kind(0.2)), torch.zeros(1, 4))


def test_one_dropout_module_in_two_places_is_two_sites():
    shared = nn.Dropout(0.5)
    model = nn.Sequential(nn.Linear(4, 6), shared, nn.Linear(6, 5), shared)
    _, sites = install_masks(model, torch.zeros(1, 4))
    assert [(s.buffer, s.shape) for s in sites] == [("1.mask", (6,)), ("3.mask", (5,))]


class CallsDropoutTwice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.dropout = nn.Linear(4, 4), nn.Dropout(0.5)

    def forward(self, x):
        return self.dropout(self.layer(self.dropout(x)))


def test_a_dropout_layer_called_twice_is_refused_because_one_buffer_cannot_hold_two_masks():
    with pytest.raises(UsageError, match="dropout is called 2 times"):
        install_masks(CallsDropoutTwice(), torch.zeros(1, 4))


@pytest.mark.parametrize(
    ("module", "activations", "mask"),
    [
        (nn.Dropout2d(0.5), (6, 4, 5), (6, 1, 1)),
        (SequenceDropout(0.5), (7, 6), (1, 6)),
        (nn.Dropout(0.5), (7, 6), (7, 6)),
    ],
)
def test_a_mask_is_shared_by_the_places_of_an_image_and_the_positions_of_a_sequence(module, activations, mask):
    model, (site,) = install_masks(nn.Sequential(module), torch.zeros(1, *activations))
    assert site.shape == mask
    rows = MaskTable.draw([site], 3, "x").rows(torch.arange(3))
    x = torch.ones(3, *activations)
    dropped = torch.func.functional_call(model, rows, (x,))
    assert dropped.shape == x.shape
    torch.testing.assert_close(dropped, rows[site.buffer].expand_as(x))
    assert set(dropped.unique().tolist()) == {0.0, 2.0}
    assert torch.equal(model(x), x), "dropout is off by default"


def test_sequence_dropout_on_its_own_drops_features_of_whole_sequences():
    module = SequenceDropout(0.5)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        dropped = module(torch.ones(4, 5, 16))
    assert torch.equal(dropped, dropped[:, :1].expand_as(dropped))
    assert set(dropped.unique().tolist()) == {0.0, 2.0}
    assert torch.equal(module.eval()(torch.ones(1, 2, 3)), torch.ones(1, 2, 3))


# Dropout that is no module


class OnRows(nn.Module):
    """Passes the rows of ``[B, 3, 4]`` through a layer of torch's; with ``statistics``, it trains in training mode."""

    def __init__(self, layer: nn.Module, *, statistics: bool = False) -> None:
        super().__init__()
        self.layer, self.last = layer, nn.Linear(12, 3)
        self.norm = nn.BatchNorm1d(12) if statistics else nn.Identity()

    def forward(self, x):
        rows = self.layer(x, x, x) if isinstance(self.layer, nn.MultiheadAttention) else self.layer(x)
        return self.last(self.norm((rows[0] if isinstance(rows, tuple) else rows).flatten(1)))


class DropsByFunction(nn.Module):
    def __init__(self, p: float) -> None:
        super().__init__()
        self.p, self.inner = p, nn.Linear(4, 4)

    def forward(self, x):
        return nn.functional.dropout(self.inner(x), self.p, self.training)


def encoder(*, inside: float) -> nn.Module:
    layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.5, batch_first=True)
    layer.self_attn.dropout = inside
    return layer


WITHOUT_A_MODULE = {
    "layer is a MultiheadAttention with dropout 0.1": lambda p: nn.MultiheadAttention(4, 2, p, batch_first=True),
    "layer.self_attn is a MultiheadAttention with dropout 0.1": lambda p: encoder(inside=p),
    "layer is a LSTM with dropout 0.1": lambda p: nn.LSTM(4, 4, 2, batch_first=True, dropout=p),
    "layer is a GRU with dropout 0.1": lambda p: nn.GRU(4, 4, 2, batch_first=True, dropout=p),
    "outside of dropout modules (torch.nn.functional.dropout": DropsByFunction,
}


@pytest.mark.parametrize("statistics", [False, True])
@pytest.mark.parametrize("said", WITHOUT_A_MODULE)
def test_dropout_without_a_module_is_refused_and_named(said, statistics):
    with pytest.raises(UsageError, match=re.escape(said)) as refused:
        install_masks(OnRows(WITHOUT_A_MODULE[said](0.1), statistics=statistics).eval(), torch.zeros(1, 3, 4))
    assert str(refused.value).endswith("use torch.nn.Dropout instead.")


@pytest.mark.parametrize("statistics", [False, True])
@pytest.mark.parametrize("said", WITHOUT_A_MODULE)
def test_the_same_modules_without_dropout_are_taken_as_they_are(said, statistics):
    torch.manual_seed(0)
    model = OnRows(WITHOUT_A_MODULE[said](0.0), statistics=statistics).eval()
    before = torch.random.get_rng_state()
    copy, _ = install_masks(model, torch.ones(1, 3, 4))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert not copy.training
    assert not copy.layer.training
    assert all(torch.equal(v, copy.state_dict()[k]) for k, v in model.state_dict().items())


class Padded(nn.Module):
    """Two layers of torch's encoder on sequences whose last position is empty."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.TransformerEncoder(encoder(inside=0.0), 2)

    def forward(self, x):
        return self.layers(x, src_key_padding_mask=torch.tensor([False, False, True]).expand(len(x), 3))


@pytest.mark.parametrize("make", [lambda: nn.Sequential(encoder(inside=0.0)), Padded])
def test_masks_hold_in_torch_s_encoder_in_evaluation_too(make):
    torch.manual_seed(0)
    model, sites = install_masks(make().eval(), torch.ones(1, 3, 4))
    masks, x = MaskTable.draw(sites, 5, "x").masks, torch.randn(5, 3, 4)
    expected = torch.func.functional_call(model, masks, (x,))
    assert not torch.allclose(expected, model(x))
    with torch.no_grad():
        torch.testing.assert_close(torch.func.functional_call(model, masks, (x,)), expected)


class Averaging(nn.Module):
    """Keeps a running mean of its own."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.inner, self.how = nn.Linear(4, 4), how
        self.register_buffer("mean", torch.zeros(4), persistent=how != "assigned, not kept")

    def forward(self, x):
        h = self.inner(x)
        if self.training and self.how == "in place":
            self.mean.mul_(0.9).add_(0.1 * h.detach().mean(0))
        elif self.training:
            self.mean = 0.9 * self.mean + 0.1 * h.detach().mean(0)
        return h - self.mean


def test_running_statistics_that_are_assigned_are_refused_as_they_would_be_lost():
    model = nn.Sequential(Averaging("assigned"), nn.Linear(4, 3))
    with pytest.raises(UsageError, match=r"assigns a new tensor to 0\.mean in training.* in place, m\.mul_"):
        install_masks(model, torch.ones(1, 4))
    assert not model[0].mean.any()


@pytest.mark.parametrize("how", ["in place", "assigned, not kept"])
def test_running_statistics_that_are_updated_in_place_or_not_kept_are_taken(how):
    copy, _ = install_masks(nn.Sequential(Averaging(how), nn.Linear(4, 3)).eval(), torch.ones(1, 4))
    assert not copy[0].mean.any()
    assert not copy.training
