from __future__ import annotations

import itertools
import weakref
from collections import OrderedDict
from dataclasses import replace
from itertools import count

import made_up
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tdabench import Declined, TaskData, gradients, kronecker, layers, pieces, projections
from tdabench.baselines.grad_dot import GradDot
from tdabench.baselines.trak import Trak
from tdabench.ensembles import Independent, Lora
from tdabench.examples import Examples
from tdabench.execution import execute
from tdabench.held import numbers_out
from tdabench.lora import adapter_names
from tdabench.precision import PRODUCTS_VARIABLE
from tdabench.recipe import Recipe
from tdabench.targets import MEAN_LOG_PROBABILITY, token_cross_entropy
from tdabench.tasks.networks import resnet9
from tdabench.tasks.transformers import music_transformer, nano_gpt
from tdabench.timing import peak_of
from tdabench.view import TaskView

CLOSE = {"rtol": 1e-5, "atol": 1e-5}
N_TRAIN, N_QUERIES = 9, 5


class CalledTwice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.last = nn.Linear(64, 64), nn.Linear(64, 10)

    def forward(self, x):
        return self.last(self.inner(self.inner(x).relu()))


class OnTokens(nn.Module):
    """A linear layer on ``[B, T, d]``."""

    def __init__(self, positions: int = 8, width: int = 8, out: int = 6) -> None:
        super().__init__()
        self.shape = positions, width
        self.inner, self.last = nn.Linear(width, out), nn.Linear(positions * out, 10)

    def forward(self, x):
        return self.last(self.inner(x.view(-1, *self.shape)).relu().flatten(1))


class Tied(nn.Module):
    """Two layers, one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.last = nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 10)
        self.b.weight = self.a.weight

    def forward(self, x):
        return self.last(self.b(self.a(x).relu()))


class Doubled(nn.Linear):
    """A linear layer that does not do what linear layers do."""

    def forward(self, x):
        return 2 * super().forward(x)


def mlp(*, bias: bool = True, inplace: bool = False) -> nn.Module:
    return nn.Sequential(
        nn.Linear(64, 32, bias=bias), nn.ReLU(inplace), nn.Dropout(0.2), nn.Linear(32, 12), nn.Tanh(), nn.Linear(12, 10)
    )


def images(*layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Unflatten(1, (1, 8, 8)), *layers)


class InFunctions(nn.Module):
    """A layer whose weight is used once more, where no module is called."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.last = nn.Linear(64, 64), nn.Linear(64, 10)

    def forward(self, x):
        return self.last(F.linear(self.inner(x).relu(), self.inner.weight))


class Folded(nn.Module):
    """A layer that is given ``[B * rows, ...]``."""

    def __init__(self, layer: nn.Module, *shape: int) -> None:
        super().__init__()
        self.layer, self.shape = layer, shape
        self.last = nn.LazyLinear(10)
        self(torch.zeros(1, 64))

    def forward(self, x):
        return self.last(self.layer(x.reshape(-1, *self.shape)).reshape(len(x), -1).tanh())


class TokensFirst(nn.Module):
    """A linear layer on ``[T, B, d]``."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.last = nn.Linear(8, 6), nn.Linear(48, 10)

    def forward(self, x):
        rows = self.inner(input=x.view(-1, 8, 8).transpose(0, 1)).relu()
        return self.last(rows.transpose(0, 1).flatten(1))


def changed_by_a_hook() -> nn.Module:
    model = mlp()
    model[0].register_forward_hook(lambda module, inputs, out: 2 * out)
    return model


class Odd(nn.Module):
    """A parameter of its own, and examples' rows passed through a layer all in one."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.ones(8, 8))
        self.inner, self.last = nn.Linear(8, 6), nn.Linear(48, 10)

    def forward(self, x):
        rows = self.inner((x.view(-1, 8, 8) * self.shift).view(-1, 8)).relu()
        return self.last(rows.view(len(x), -1))


class OwnAdapter(nn.Module):
    """A parametrization of the model's own, with the names of tdabench's adapter and a scale that it has not."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Parameter(torch.randn(2, 64)), nn.Parameter(torch.randn(16, 2) / 10)

    def forward(self, weight):
        return weight + 16 * self.up @ self.down


class Lowered(nn.Module):
    """One with the name of an adapter's half."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.zeros(16, 64))

    def forward(self, weight):
        return weight + self.down


def parametrized(own: nn.Module) -> nn.Module:
    layer = nn.Linear(64, 16)
    nn.utils.parametrize.register_parametrization(layer, "weight", own)
    return nn.Sequential(layer, nn.Tanh(), nn.Linear(16, 10))


# Layers that factor, and how many outer products make up a gradient at most.
FACTORED = {
    "mlp": mlp,
    "bias-free": lambda: mlp(bias=False),
    "in place": lambda: mlp(inplace=True),
    "one layer": lambda: nn.Linear(64, 10),
    "layer norm": lambda: nn.Sequential(nn.Linear(64, 16), nn.LayerNorm(16), nn.Dropout(0.2), nn.Linear(16, 10)),
    "on tokens": OnTokens,
    "convolution": lambda: images(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(72, 10)),
    "strides": lambda: images(
        nn.Conv2d(1, 9, 3, stride=2, padding=1, bias=False),
        nn.Conv2d(9, 8, 1, stride=2),
        nn.Conv2d(8, 8, 2, dilation=2, padding=1),
        nn.Flatten(),
        nn.Linear(32, 10),
    ),
    "wide kernels": lambda: images(
        nn.Conv2d(1, 5, (2, 3), stride=(2, 1), padding=(0, 2), dilation=(1, 2)),
        nn.Conv2d(5, 6, (3, 1), padding=(1, 0)),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(192, 10),
    ),
    "running statistics": lambda: images(
        nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(72, 10), nn.BatchNorm1d(10)
    ),
    "changed by a hook": changed_by_a_hook,
}
# The same, with examples that are not a layer's rows.
FOLDED = {
    "folded batch norm": lambda: Folded(nn.BatchNorm1d(8), 8),
    "folded batch norm on tokens": lambda: Folded(nn.BatchNorm1d(4), 4, 4),
    "folded batch norm on images": lambda: Folded(nn.BatchNorm2d(2), 2, 4, 4),
    "folded convolution": lambda: Folded(nn.Conv2d(1, 3, 3), 1, 4, 4),
    "tokens first": TokensFirst,
}
# Models with parameters that no layer of a known kind holds.
LOOSE = {
    "called twice": CalledTwice,
    "in functions": InFunctions,
    "tied": Tied,
    "own forward": lambda: nn.Sequential(Doubled(64, 16), nn.ReLU(), nn.Linear(16, 10)),
    "grouped": lambda: images(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3, groups=2), nn.Flatten(), nn.Linear(64, 10)),
    "own parameter": Odd,
    "own adapter": lambda: parametrized(OwnAdapter()),
    "own half of an adapter": lambda: parametrized(Lowered()),
}
ALL = {**FACTORED, **FOLDED, **LOOSE}


@pytest.fixture
def member_of(small, small_data, view):
    """Return a factory of members, on a handful of examples, of any model."""

    def make(make_model, ensemble: str = "plain", *, seed: int = 0):
        data = TaskData(
            *(type(s)(s.inputs[:n], s.labels[:n], s.split) for s, n in zip(sets(small_data), sizes, strict=True))
        )
        task = replace(small, make_model=make_model, recipe=replace(small.recipe, epochs=1, lr=0.05))
        mine = view(task, data, seed=seed, store=f"models-{next(number)}")
        if ensemble == "lora":
            return mine.adapter_member(0, 0, number=0, rank=3, epochs=2)
        return mine.member(mask={"plain": None, "shared": (0, False), "per-sample": (0, True)}[ensemble])

    sizes, number = (N_TRAIN, N_QUERIES), count()
    return make


def sets(data):
    return data.training, data.queries


def explicit(member, examples, of):
    """Return the gradients ``[n, P]`` by one backward pass per example."""
    rows = []
    for i in range(len(examples)):
        parameters = {k: p.detach().clone().requires_grad_() for k, p in member.parameters.items()}
        function = member.loss if of == "loss" else member.target
        value = function(parameters, examples.take(torch.tensor([i])))
        found = torch.autograd.grad(value.sum(), list(parameters.values()), materialize_grads=True)
        rows.append(torch.cat([g.flatten() for g in found]))
    return torch.stack(rows)


def check_against_explicit(member) -> None:
    """Hold everything that gradients offer against one backward pass per example."""
    training, queries = member.task.training, member.task.queries
    ours = [member.gradients(training, "loss"), member.gradients(queries, "target")]
    plain = [explicit(member, training, "loss"), explicit(member, queries, "target")]
    scale = plain[1].norm(dim=1).max() * plain[0].norm(dim=1).max()
    expected = (plain[1] @ plain[0].T) / scale
    torch.testing.assert_close(ours[1].dot(ours[0]) / scale, expected, **CLOSE)
    torch.testing.assert_close(ours[0].dot(ours[1]) / scale, expected.T, **CLOSE)
    torch.testing.assert_close(ours[0].times(plain[1]) / scale, expected.T, **CLOSE)
    for rows, by_layer in ours[1].by_layer():
        torch.testing.assert_close(ours[0].times(by_layer) / scale, expected.T[:, rows], **CLOSE)
    for g, p in zip(ours, plain, strict=True):
        torch.testing.assert_close(g.norms(), p.norm(dim=1), **CLOSE)
        torch.testing.assert_close(g.dense(), p, **CLOSE)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("ensemble", ["plain", "shared", "per-sample"])
def test_gradients_equal_one_backward_pass_per_example(member_of, name, ensemble):
    check_against_explicit(member_of(ALL[name], ensemble))


@pytest.mark.parametrize("name", [*FACTORED, *FOLDED])
def test_gradients_of_adapters_equal_one_backward_pass_per_example(member_of, name):
    check_against_explicit(member_of(ALL[name], "lora"))


@pytest.mark.parametrize("name", ALL)
def test_only_what_no_layer_holds_is_loose(member_of, name):
    member = member_of(ALL[name])
    layout = member.gradients(member.task.training, "loss").layout
    assert bool(layout.loose) == (name in LOOSE)
    assert "last.bias" not in layout.loose
    assert layout.way == ("together" if name in FACTORED else "mapped")


class PartlyUsed(nn.Module):
    """Has a head that nothing is made of, unless an example is the rare one, and a layer that is not differentiated."""

    rare: torch.Tensor | None = None

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.fixed, self.last = nn.Linear(64, 16), nn.Linear(64, 16), nn.Linear(16, 10)
        self.aux, self.scale = nn.Linear(16, 10), nn.Parameter(torch.ones(2, 3, 4))

    def forward(self, x):
        with torch.no_grad():
            fixed = self.fixed(x)
        h = self.inner(x) + fixed
        out = self.last(h.relu())
        if self.rare is not None and bool((found := (x == self.rare).all(1)).any()):
            out = out + self.aux(h) * found.unsqueeze(1)
        return out


def test_parameters_that_no_example_uses_cost_nothing(member_of):
    member = member_of(PartlyUsed)
    layout = member.gradients(member.task.training, "loss").layout
    assert (layout.way, layout.loose) == ("together", ())
    assert layout.unused == ("scale", "fixed.weight", "fixed.bias", "aux.weight", "aux.bias")
    check_against_explicit(member)


def test_parameters_that_no_example_uses_do_not_keep_examples_from_vmap(member_of):
    member = member_of(lambda: nn.Sequential(OrderedDict(odd=Odd(), rest=WithUnused())))
    layout = member.gradients(member.task.training, "loss").layout
    assert (layout.way, layout.unused) == ("mapped", ("rest.unused.weight", "rest.unused.bias"))
    check_against_explicit(member)


class WithUnused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Linear(4, 4)

    def forward(self, x):
        return x


def test_parameters_that_one_example_uses_are_not_taken_for_unused(member_of):
    member = member_of(PartlyUsed)
    member.model.rare = member.task.training.inputs[4]  # none of those that are tried
    layout = member.gradients(member.task.training, "loss").layout
    assert (layout.way, layout.unused) == ("alone", ())
    check_against_explicit(member)


@pytest.mark.parametrize("ensemble", ["plain", "lora"])
def test_a_layout_is_found_once_for_all_members_of_a_kind(member_of, ensemble):
    member = member_of(mlp, ensemble)
    task = member.task
    other = task.member(1) if ensemble == "plain" else task.adapter_member(0, 1, number=1, rank=3, epochs=1)
    layouts = [m.gradients(e, of).layout for m in (member, other) for e in sets(task) for of in ("loss", "target")]
    assert all(layout is layouts[0] for layout in layouts)
    assert layouts[0].layers


def test_a_layer_whose_factors_are_wrong_costs_time_and_no_exactness(member_of, monkeypatch):
    def doubled(name, module, x, g, values):
        yield from layers._layer_norm(name, module, x, 2 * g, values)

    monkeypatch.setitem(layers._PIECES, nn.LayerNorm, doubled)
    member = member_of(FACTORED["layer norm"])
    assert member.gradients(member.task.training, "loss").layout.layers == {}
    check_against_explicit(member)


class Seldom(nn.Module):
    """Uses a layer, or the vector of padding, for examples whose first input is not zero."""

    def __init__(self, *, padded: bool) -> None:
        super().__init__()
        self.last, self.padded = nn.Linear(64, 10), padded
        if padded:
            self.tokens = nn.Parameter(torch.rand(2, 64))
        else:
            self.normal = nn.LayerNorm(64)

    def forward(self, x):
        first = x[:, :1]
        if self.padded:
            return self.last(x * made_up.padded_lookup((first == 0).long(), self.tokens).squeeze(1))
        return self.last(x + self.normal(x) * first)


@pytest.fixture
def seldom(small, small_data, view):
    """Return a factory of members on examples of which neither the first nor the last has a first input."""

    def make(*, padded: bool):
        parts = [
            Examples(s.inputs[:n].clone(), s.labels[:n], s.split)
            for s, n in zip(sets(small_data), (12, 4), strict=True)
        ]
        for part in parts:
            part.inputs[:, 0] = 1.0
            part.inputs[[0, -1], 0] = 0.0
        task = replace(small, make_model=lambda: Seldom(padded=padded), n_train=12, n_queries=4)
        return view(task, TaskData(*parts), store="seldom").member()

    return make


def test_what_vmap_does_wrong_for_some_examples_is_noticed(seldom):
    member = seldom(padded=True)
    assert member.gradients(member.task.training, "loss").layout.way == "alone"
    check_against_explicit(member)


def test_a_layer_that_few_examples_use_is_compared_on_those(seldom, monkeypatch):
    def doubled(name, module, x, g, values):
        yield from layers._layer_norm(name, module, x, 2 * g, values)

    monkeypatch.setitem(layers._PIECES, nn.LayerNorm, doubled)
    member = seldom(padded=False)
    assert member.gradients(member.task.training, "loss").layout.layers == {}
    check_against_explicit(member)


@pytest.mark.parametrize("quantity", ["loss", "target"])
def test_what_vmap_has_no_rule_for_is_passed_one_example_after_another(member_of, quantity):
    member = member_of(Odd)
    monotone = getattr(member.task, f"{quantity}_function")

    def by_numbers(logits, labels):
        return monotone(logits, labels) * (2 if float(logits.detach().sum()) < 1e9 else 1)

    setattr(member.task, f"{quantity}_function", by_numbers)
    assert member.gradients(member.task.training, "loss").layout.way == "alone"
    check_against_explicit(member)


def test_a_model_that_calls_its_layers_otherwise_than_at_first_is_declined(member_of):
    member = member_of(Turning)
    member.gradients(member.task.training, "loss").norms()
    member.model.turned = True
    with pytest.raises(Declined, match="the model of small calls inner differently for different examples"):
        member.gradients(member.task.training, "loss").norms()


class Turning(nn.Module):
    """Calls a layer once, or not at all."""

    turned = False

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.last = nn.Linear(64, 64), nn.Linear(64, 10)

    def forward(self, x):
        return self.last(x if self.turned else self.inner(x))


@pytest.mark.parametrize("name", ALL)
def test_dot_products_and_squares_by_layer_are_those_of_the_layers(member_of, name):
    member = member_of(ALL[name], "per-sample")
    queries, training = member.gradients(member.task.queries, "target"), member.gradients(member.task.training, "loss")
    formed = [{k: v.flatten(1) for k, v in g.split(g.dense()).items()} for g in (queries, training)]
    assert {layer.key: layer.numbers for layer in training.layers} == {k: v.shape[1] for k, v in formed[1].items()}
    for g, of_g in zip((queries, training), formed, strict=True):
        squares = g.layer_squares()
        assert squares.keys() == of_g.keys()
        for key, layer in of_g.items():
            torch.testing.assert_close(squares[key], layer.square().sum(1), **CLOSE)
    for (a, of_a), (b, of_b) in itertools.product(zip((queries, training), formed, strict=True), repeat=2):
        found = layer_dots(a, b)
        assert found.keys() == of_a.keys()
        for key, products in found.items():
            scale = of_a[key].norm(dim=1).max() * of_b[key].norm(dim=1).max() + 1e-30
            torch.testing.assert_close(products / scale, of_a[key] @ of_b[key].T / scale, **CLOSE)


def layer_dots(a, b):
    """Return the dot products by layer, each written once."""
    out = {layer.key: torch.full((len(a), len(b)), torch.nan) for layer in a.layers}
    for rows, columns, key, products in a.layer_dots(b):
        assert out[key][rows, columns].isnan().all()
        out[key][rows, columns] = products
    return out


def all_of(member):
    """Return everything that a method may ask for."""
    a, b = member.gradients(member.task.queries, "target"), member.gradients(member.task.training, "loss")
    kinds = {kind: b.project(8, "blocks", kind=kind) for kind in ("auto", "dense", "sparse", "rank-one")}
    sketches = b.sketch(projections.kronecker_sketch(2, "blocks")) | {
        f"masked {k}": v for k, v in b.sketch(projections.masked_sketch(8, 0.5, "blocks")).items()
    }
    found = {"dot": layer_dots(a, b), "own": layer_dots(b, b), "squares": b.layer_squares()}
    by_layer = {f"{what} {key}": value for what, by_key in found.items() for key, value in by_key.items()}
    return {"dot": a.dot(b), "norms": b.norms(), "times": b.times(a.dense()), **by_layer, **kinds, **sketches}


@pytest.mark.parametrize("name", ["mlp", "layer norm", "convolution", "on tokens", "own parameter"])
@pytest.mark.parametrize(
    ("batch", "block", "held", "kept"), [(1, 1, 1, 0), (4, 3000, 9000, 1 << 20), (1024, 60_000, 1, 0)]
)
def test_batches_and_blocks_do_not_change_results(member_of, monkeypatch, name, batch, block, held, kept):
    member = member_of(ALL[name], "per-sample")
    expected = all_of(member)
    for limit, value in {"BATCH": batch, "BLOCK_BYTES": block, "HELD_BYTES": held, "KEPT_BYTES": kept}.items():
        monkeypatch.setattr(gradients, limit, value)
    got = all_of(member)
    assert got.keys() == expected.keys()
    for key, want in expected.items():
        torch.testing.assert_close(got[key], want, rtol=1e-4, atol=1e-4, msg=lambda m, key=key: f"{key}: {m}")


DRAWS = {
    "dense": projections.projection(8, "order", kind="dense"),
    "sparse": projections.projection(8, "order", kind="sparse"),
    "rank-one": projections.projection(8, "order", kind="rank-one"),
    "masked": projections.masked_sketch(8, 0.5, "order"),
    "kronecker": projections.kronecker_sketch(4, "order"),
}


@pytest.mark.parametrize("draw", DRAWS)
def test_a_projection_is_of_parameters_in_whatever_order_a_layer_gives_its_columns(draw):
    """Convolutions give their columns in another order than the parameter has; nobody's random numbers follow it."""
    random = torch.Generator().manual_seed(0)
    left, right, order = (
        torch.randn(3, 2, 6, generator=random),
        torch.randn(3, 2, 10, generator=random),
        torch.randperm(10),
    )
    turned, plain = (
        pieces.Outer("layer", ("weight",), left, right[..., order], order),
        pieces.Outer("layer", ("weight",), left, right),
    )
    expected = DRAWS[draw](plain)(plain)
    for piece in (turned, turned.rows()):
        torch.testing.assert_close(DRAWS[draw](turned)(piece), expected, **CLOSE)


def wide_convolution() -> nn.Module:
    return images(
        nn.Conv2d(1, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 32, 3), nn.Flatten(), nn.Linear(512, 10)
    )


@pytest.fixture
def short_member(member_of, monkeypatch):
    """A member whose products may be taken in bfloat16 (emulated where the processor has it not), trained without."""
    member = member_of(wide_convolution)
    monkeypatch.setattr(TaskView, "trained_in", "bfloat16")
    return member


def products(member):
    """Return the dot products, and those that EK-FAC takes."""
    training, queries = member.gradients(member.task.training, "loss"), member.gradients(member.task.queries, "target")
    bases = kronecker.eigenbases(training)
    return queries.dot(training), kronecker.solved_dot(queries, training, bases, dict.fromkeys(bases, 1e-3))


# How far bfloat16 may move them, in their spread; EK-FAC's curvature, of a few examples, has directions without any.
OF_SPREAD = 3e-3, 1e-2


def test_long_sums_are_multiplied_in_the_precision_that_the_task_was_trained_in(short_member, monkeypatch):
    """Roundings average out over the 4,640 numbers of the second convolution; what is shorter stays exact."""
    found = products(short_member)
    monkeypatch.setattr(TaskView, "trained_in", "float32")
    for short, exact, least in zip(found, products(short_member), OF_SPREAD, strict=True):
        assert short.dtype == torch.float32
        assert 0 < (short - exact).std() < least * exact.std()


def test_the_user_can_have_them_in_float32(short_member, monkeypatch):
    found = products(short_member)
    monkeypatch.setenv(PRODUCTS_VARIABLE, "float32")
    exact = products(short_member)
    assert not any(torch.equal(a, b) for a, b in zip(found, exact, strict=True))
    monkeypatch.setattr(TaskView, "trained_in", "float32")
    assert all(torch.equal(a, b) for a, b in zip(products(short_member), exact, strict=True))


def test_short_sums_are_multiplied_as_they_are(short_member, monkeypatch):
    monkeypatch.setattr(pieces, "LONG", 4641)
    found = products(short_member)
    monkeypatch.setattr(TaskView, "trained_in", "float32")
    assert all(torch.equal(short, exact) for short, exact in zip(found, products(short_member), strict=True))


def test_gradients_themselves_and_what_is_no_product_of_two_are_never_in_bfloat16(short_member, monkeypatch):
    found = all_of(short_member)
    monkeypatch.setattr(TaskView, "trained_in", "float32")
    for name, exact in all_of(short_member).items():
        assert torch.equal(found[name], exact) == (name != "dot")


@pytest.mark.parametrize(("batch", "block", "held"), [(1, 1, 1), (4, 30_000, 90_000)])
def test_blocks_do_not_change_products_in_bfloat16(short_member, monkeypatch, batch, block, held):
    expected = products(short_member)
    for limit, value in {"BATCH": batch, "BLOCK_BYTES": block, "HELD_BYTES": held}.items():
        monkeypatch.setattr(gradients, limit, value)
    for found, whole, most in zip(products(short_member), expected, (3e-3, 2e-2), strict=True):
        # A last bit that differs may be rounded the other way.
        torch.testing.assert_close(found, whole, rtol=0, atol=most * float(whole.std()))


def test_pieces_that_are_sums_are_let_go_one_after_the_other(member_of):
    """Patches of all layers at once would be most of a pass's memory."""
    made: list[weakref.ref] = []

    def each(piece):
        assert not any(ref() for ref in made)
        made.append(weakref.ref(piece))

    member = member_of(wide_convolution)
    list(member.gradients(member.task.training, "loss").blocks(each))
    assert len(made) >= 5


@pytest.mark.parametrize("kind", ["auto", "dense", "sparse", "rank-one"])
@pytest.mark.parametrize(("make", "ensemble"), [(mlp, "plain"), (mlp, "lora"), (OnTokens, "plain")])
def test_projections_preserve_dot_products_on_average(member_of, make, ensemble, kind):
    member = member_of(make, ensemble)
    a, b = member.gradients(member.task.queries, "target"), member.gradients(member.task.training, "loss")
    n, size = 150, 32
    draws = torch.stack(
        [a.project(size, "mean", i, kind=kind) @ b.project(size, "mean", i, kind=kind).T for i in range(n)]
    )
    error = (draws.mean(0) - a.dot(b)) / (draws.std(0) / n**0.5)  # in standard errors
    assert error.abs().max() < 5
    assert error.square().mean() < 3  # the pairs share their projections, so their errors are not independent
    # Stay near the theory: a dense projection has about |a|^2 |b|^2 / size of variance, a rank-one one up to 9 times.
    bound = 9 * (a.norms()[:, None] * b.norms()) ** 2 / size
    assert (draws.var(0) < 1.5 * bound).all()


def test_masked_projections_preserve_dot_products_of_a_layer_on_average(member_of):
    member = member_of(mlp)
    a, b = member.gradients(member.task.queries, "target"), member.gradients(member.task.training, "loss")
    draws = []
    for i in range(400):
        draw = projections.masked_sketch(32, 0.5, "mean", i)
        mine, other = a.sketch(draw), b.sketch(draw)
        draws.append(sum(mine[k] @ other[k].T for k in mine))
    draws = torch.stack(draws)
    error = (draws.mean(0) - a.dot(b)) / (draws.std(0) / len(draws) ** 0.5)
    assert error.square().mean() < 3  # the pairs share their projections, so their errors are not independent


def test_a_kronecker_projection_of_full_rank_changes_nothing(member_of):
    member = member_of(OnTokens)
    a, b = member.gradients(member.task.queries, "target"), member.gradients(member.task.training, "loss")
    draw = projections.kronecker_sketch(64, "full")
    mine, other = a.sketch(draw), b.sketch(draw)
    torch.testing.assert_close(sum(mine[k] @ other[k].T for k in mine), a.dot(b), **CLOSE)


@pytest.mark.parametrize("name", ["mlp", "layer norm", "own parameter"])
def test_projections_depend_on_their_stream_alone(member_of, name):
    gradient = member_of(ALL[name]).gradients(member_of(ALL[name]).task.training, "loss")
    for kind in ("auto", "dense", "sparse", "rank-one"):
        first = gradient.project(16, "x", 1, kind=kind)
        assert torch.equal(first, gradient.project(16, "x", 1, kind=kind))
        assert not torch.equal(first, gradient.project(16, "x", 2, kind=kind))


@pytest.mark.parametrize("name", ["mlp", "layer norm", "convolution", "own parameter"])
def test_every_pass_is_counted(member_of, name):
    member = member_of(ALL[name])
    meter = member.task.meter
    member.gradients(member.task.training, "loss").norms()
    assert (meter.forward_examples, meter.backward_examples) == (N_TRAIN, N_TRAIN)


def test_factors_that_fit_are_used_again(member_of):
    member = member_of(mlp)
    gradient = member.gradients(member.task.training, "loss")
    results = gradient.norms(), gradient.project(4, "x"), gradient.dense()
    assert all(r.isfinite().all() for r in results)
    assert member.task.meter.backward_examples == N_TRAIN


def on_few_tokens() -> nn.Module:
    """A layer with so few positions for its parameters that products are cheaper of factors."""
    return OnTokens(positions=2, width=32, out=40)


def test_norms_of_gradients_that_cancel_are_zero_and_never_undefined():
    random = torch.Generator().manual_seed(0)
    left, right = (torch.randn(500, 1, size, generator=random) for size in (40, 33))
    pairs = pieces.Outer("layer", ("weight",), torch.cat([left, -left], 1), right.repeat(1, 2, 1))
    assert pieces.stays_factored(pairs.positions, *pairs.shape)
    assert (pairs.squares() >= 0).all()
    assert pairs.squares().sqrt().max() < 1e-2 * (left.norm(dim=2) * right.norm(dim=2)).max()


@pytest.mark.parametrize("make", [mlp, on_few_tokens])
def test_products_norms_and_kronecker_projections_form_no_gradient_where_factors_are_cheaper(
    member_of, monkeypatch, make
):
    member = member_of(make)
    training, queries = sets(member.task)
    f, g = explicit(member, queries, "target"), explicit(member, training, "loss")
    training, queries = member.gradients(training, "loss"), member.gradients(queries, "target")
    assert training.layout.numbers == queries.layout.numbers  # found now: that holds two examples against autograd

    rows = pieces.Outer.rows

    def small_alone(piece):
        assert max(piece.shape) <= rank, "a gradient was formed"
        return rows(piece)

    rank = 4
    expected = training.sketch(projections.kronecker_sketch(rank, "factors"))
    monkeypatch.setattr(pieces.Outer, "rows", small_alone)
    torch.testing.assert_close(queries.dot(training), f @ g.T, **CLOSE)
    torch.testing.assert_close(training.norms(), g.norm(dim=1), **CLOSE)
    torch.testing.assert_close(training.sketch(projections.kronecker_sketch(rank, "factors")), expected, **CLOSE)
    with pytest.raises(AssertionError, match="a gradient was formed"):
        training.dense()


def test_members_keep_parameters_without_gradients(member_of):
    member = member_of(mlp)
    member.gradients(member.task.training, "loss").norms()
    assert not any(p.requires_grad or p.grad is not None for p in member.parameters.values())
    assert not member.gradients(member.task.training, "loss").norms().requires_grad


# Models of the image and text tasks

VOCABULARY, LENGTH = 7, 6


def tiny_resnet() -> nn.Module:
    return resnet9(3, width=8, strides=(2, 2, 2), p=0.1)


def tiny_nano_gpt() -> nn.Module:
    return nano_gpt(VOCABULARY, LENGTH, layers=1, width=8, heads=2, p=0.1)


def tiny_music_transformer() -> nn.Module:
    return music_transformer(VOCABULARY, LENGTH, layers=1, width=8, heads=2, p=0.1)


NETWORKS = {"resnet": tiny_resnet, "nanoGPT": tiny_nano_gpt, "Music Transformer": tiny_music_transformer}


class Gpt(nn.Module):
    """Embedded positions, attention as a function, and a head that is tied to the embedding and defined first."""

    def __init__(self, *, batched_positions: bool, tied_by: str) -> None:
        super().__init__()
        self.head = nn.Linear(8, VOCABULARY, bias=False)
        self.tokens, self.positions = nn.Embedding(VOCABULARY, 8), nn.Embedding(LENGTH, 8)
        self.norm, self.qkv = nn.LayerNorm(8), nn.Linear(8, 24)
        self.batched_positions, self.tied_by = batched_positions, tied_by
        if tied_by == "module":
            self.head.weight = self.tokens.weight
        elif tied_by == "function":
            del self.head

    def forward(self, x):
        places = torch.arange(x.shape[1], device=x.device)
        h = self.tokens(x) + self.positions(places[None] if self.batched_positions else places)
        q, k, v = (t.unsqueeze(1) for t in self.qkv(self.norm(h)).chunk(3, -1))
        h = h + F.scaled_dot_product_attention(q, k, v, is_causal=True).squeeze(1)
        return F.linear(h, self.tokens.weight) if self.tied_by == "function" else self.head(h)


class OfModules(nn.Module):
    """An embedding, modules of torch's in turn, and a head."""

    def __init__(self, *modules: nn.Module, batch_first: bool = True) -> None:
        super().__init__()
        self.tokens, self.body, self.head = nn.Embedding(VOCABULARY, 8), nn.ModuleList(modules), nn.LazyLinear(7)
        self.batch_first = batch_first
        self(torch.zeros(1, LENGTH, dtype=torch.int64))

    def forward(self, x):
        h = self.tokens(x) if self.batch_first else self.tokens(x).transpose(0, 1)
        for module in self.body:
            if isinstance(module, nn.MultiheadAttention):
                h = h + module(h, h, h, need_weights=False)[0]
            else:
                h = module(h)
                h = h[0] if isinstance(h, tuple) else h
        return self.head(h if self.batch_first else h.transpose(0, 1))


def encoder(*, batch_first: bool) -> nn.Module:
    return nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=batch_first)


#: Ordinary models, and how their examples are passed.
ORDINARY = {
    "positions": (lambda: Gpt(batched_positions=False, tied_by=""), "mapped"),
    "batched positions": (lambda: Gpt(batched_positions=True, tied_by=""), "mapped"),
    "tied head": (lambda: Gpt(batched_positions=True, tied_by="module"), "mapped"),
    "head in a function": (lambda: Gpt(batched_positions=True, tied_by="function"), "mapped"),
    "attention": (lambda: OfModules(nn.MultiheadAttention(8, 2, batch_first=True)), "mapped"),
    "encoder": (lambda: OfModules(encoder(batch_first=True)), "mapped"),
    "encoder, tokens first": (lambda: OfModules(encoder(batch_first=False), batch_first=False), "mapped"),
    "LSTM": (lambda: OfModules(nn.LSTM(8, 5, batch_first=True)), "alone"),
    "GRU": (lambda: OfModules(nn.GRU(8, 5, batch_first=True)), "alone"),
    "over the batch": (lambda: OfModules(nn.MultiheadAttention(8, 2)), None),
}
SEQUENCES = {"nanoGPT", "Music Transformer", *ORDINARY}


@pytest.fixture
def network_view(small, view):
    """Return a factory of views of a task with a tiny network and made-up examples."""

    def make(name: str):
        random = torch.Generator().manual_seed(0)

        def examples(n: int, split: str) -> Examples:
            if name == "resnet":
                return made_up.images(n, split, random, side=16)
            return made_up.sequences(n, split, random, VOCABULARY, LENGTH)

        recipe = Recipe(lr=0.01, momentum=0.9, batch_size=4, epochs=2)
        make_model = ORDINARY[name][0] if name in ORDINARY else NETWORKS[name]
        task = replace(small, name=name, make_model=make_model, n_train=N_TRAIN, n_queries=N_QUERIES, recipe=recipe)
        if name in SEQUENCES:
            recipe = replace(recipe, optimizer="adamw", beta2=0.99, schedule="linear")
            task = replace(task, loss=token_cross_entropy, target=MEAN_LOG_PROBABILITY, recipe=recipe)
        return view(task, TaskData(examples(N_TRAIN, "train"), examples(N_QUERIES, "queries")), store=name)

    return make


@pytest.mark.parametrize("mask", [None, (0, False), (0, True)], ids=["plain", "shared", "per-sample"])
@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_of_networks_equal_one_backward_pass_per_example(network_view, name, mask):
    check_against_explicit(network_view(name).member(mask=mask))


@pytest.mark.parametrize("name", [name for name, (_, way) in ORDINARY.items() if way])
def test_gradients_of_ordinary_models_equal_one_backward_pass_per_example(network_view, name):
    member = network_view(name).member()
    layout = member.gradients(member.task.training, "loss").layout
    assert layout.way == ORDINARY[name][1]
    assert "positions" not in layout.loose
    check_against_explicit(member)


@pytest.mark.parametrize("name", ["encoder", "LSTM"])
def test_gradients_of_adapters_on_ordinary_models(network_view, name):
    check_against_explicit(network_view(name).adapter_member(0, 0, number=0, rank=2, epochs=2))


@pytest.mark.parametrize(("name", "way"), [("resnet", "together"), ("attention", "mapped"), ("GRU", "alone")])
def test_a_method_may_have_switched_gradients_off(network_view, name, way):
    member = network_view(name).member()

    def results():
        training, queries = (member.gradients(part, "loss") for part in (member.task.training, member.task.queries))
        hessian = member.hessian(member.task.training, ridge=0.1)
        return training.layout.way, training.dot(queries), hessian.times(queries.dense()[:2])

    expected = results()
    with torch.no_grad():
        found = results()
    assert found[0] == expected[0] == way
    torch.testing.assert_close(found[1:], expected[1:])


def test_a_model_that_mixes_examples_is_declined(network_view):
    member = network_view("over the batch").member()
    with pytest.raises(Declined, match=r"another output when others are passed with it, .* without batch_first=True"):
        member.gradients(member.task.training, "loss").norms()


def test_a_model_that_mixes_examples_is_declined_also_for_one_query(network_view):
    """Two examples that are one mix without a trace; the layout would be the training set's, too."""
    member = network_view("over the batch").member()
    queries = member.task.queries
    single = Examples(queries.inputs[:1], queries.labels[:1], queries.split)
    with pytest.raises(Declined, match=r"another output when others are passed with it"):
        member.gradients(single, "target").norms()


@pytest.mark.parametrize("most", [1, 4 * 5 * 3 * 3 * 2, 64 << 20])
def test_products_of_factors_with_several_positions_are_made_in_blocks(monkeypatch, most):
    monkeypatch.setattr(pieces, "_PAIRS_BYTES", most)
    random = torch.Generator().manual_seed(0)
    a, b = (
        pieces.Outer("x", ("x",), torch.randn(n, 3, 40, generator=random), torch.randn(n, 3, 50, generator=random))
        for n in (5, 7)
    )
    out = torch.ones(5, 7)
    pieces.dot(a, b, out)
    torch.testing.assert_close(out, 1 + a.flat() @ b.flat().T, rtol=1e-4, atol=1e-3)


def test_kernels_are_left_as_they_were(network_view):
    member = network_view("LSTM").member()
    for enabled in (True, False):
        torch.backends.mha.set_fastpath_enabled(enabled)
        member.gradients(member.task.training, "loss").norms()
        assert torch.backends.mha.get_fastpath_enabled() == enabled
    torch.backends.mha.set_fastpath_enabled(True)
    assert torch.backends.cudnn.enabled


def test_gradients_exclude_running_statistics(network_view):
    member = network_view("resnet").member()
    gradient = member.gradients(member.task.training, "loss")
    assert gradient.n_parameters == gradient.dense().shape[1] == sum(p.numel() for p in tiny_resnet().parameters())
    assert gradient.layout.loose == ()
    assert not any(s.requires_grad for s in member.statistics.values())


@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_of_adapters_on_networks_equal_one_backward_pass_per_example(network_view, name):
    task = network_view(name)
    member = task.adapter_member(0, 0, number=0, rank=2, epochs=2)
    linear = [n for n, module in NETWORKS[name]().named_modules() if isinstance(module, nn.Linear)]
    assert set(member.parameters) == {p for n in linear for p in adapter_names(n)}
    assert all(p.any() for p in member.parameters.values())  # trained: up starts at zero
    assert member.gradients(task.training, "loss").layout.way == "together"
    check_against_explicit(member)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("method", [GradDot(), Trak(projection=4)], ids=["grad-dot", "trak"])
def test_adapters_on_networks_are_scored_end_to_end(network_view, name, method):
    task = network_view(name)
    scores = execute(method, Lora(models=1, adapters=2, rank=2, epochs=1), task)
    assert scores.shape == (N_QUERIES, N_TRAIN)
    assert scores.isfinite().all()
    assert scores.std() > 0
    assert (len(task.meter.models), len(task.meter.adapters)) == (1, 2)


def test_a_pass_of_adapters_is_sized_by_what_comes_out_of_frozen_modules_too(network_view):
    task = network_view("resnet")
    member = task.adapter_member(0, 0, number=0, rank=2, epochs=2)
    gradient = member.gradients(task.training, "loss")
    assert gradient.layout.numbers >= numbers_out(member, task.training.inputs[:1]) > 20 * gradient.n_parameters


def test_an_adapter_s_model_has_the_running_statistics_of_the_model_it_adapts(network_view):
    task = network_view("resnet")
    trained = task.train(0)
    member = task.adapter_member(0, 0, number=0, rank=2, epochs=2)
    found = dict(member.model.named_buffers())
    names = [n for n in trained if "running" in n or "tracked" in n]
    assert len(names) == 3 * 10
    assert all(torch.equal(found[n], trained[n]) for n in names)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize(
    "ensemble", [Independent(), Lora(models=1, adapters=1, rank=2, epochs=1)], ids=["plain", "lora"]
)
def test_scores_do_not_depend_on_whether_the_model_was_trained_or_loaded(network_view, name, ensemble):
    trained, loaded = (execute(Trak(projection=4), ensemble, network_view(name)) for _ in range(2))
    torch.testing.assert_close(loaded, trained)


def test_whole_gradients_are_in_memory_once(view, small, small_data):
    """With a bias, and of more parameters than a batch has numbers: formed first, they would be held three times."""
    wide = view(replace(small, make_model=lambda: nn.Linear(64, 20_000), recipe=replace(small.recipe, epochs=1)))
    gradients_of_queries = wide.member().gradients(wide.queries, of="target")  # [40, 1_300_000]
    gradients_of_queries.layout  # noqa: B018 - found by passes of its own
    peak = peak_of(gradients_of_queries.dense, torch.device("cpu"))
    if not peak:
        pytest.skip("the kernel does not let this process reset its high-water mark")
    assert peak < 1.5 * 4 * 40 * gradients_of_queries.n_parameters


def test_weights_that_adapters_make_are_not_counted_for_every_example(view):
    """Else a batch of an adapter's gradients would shrink with the model, and the planned memory grow with it."""
    task = view()
    members = task.member(), task.adapter_member(0, 0, number=0, rank=2, epochs=1)
    plain, adapted = (member.gradients(task.training, "loss").layout.numbers for member in members)
    assert adapted < 2 * plain < 64 * 32, "fewer than the first layer's weights"
