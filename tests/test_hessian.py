"""Products with the Hessian against the matrix that torch.func forms, on every kind of model."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.func import functional_call, jacrev
from torch.nn import functional

from tdabench import Declined, Examples, TaskData, hessian
from tdabench.kernels import differentiable
from tdabench.targets import MEAN_LOG_PROBABILITY, token_cross_entropy
from tdabench.tasks.networks import resnet9
from tdabench.tasks.transformers import music_transformer, nano_gpt

N_TRAIN, N_QUERIES, VOCABULARY, LENGTH = 7, 3, 5, 4


def mlp(*, inplace: bool = False) -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(16, 6), nn.ReLU(inplace), nn.Dropout(0.4), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)
    )


def linear() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 3))


def convolution() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Tanh(), nn.Dropout2d(0.3), nn.Flatten(), nn.Linear(8, 3)
    )


MODELS = {"mlp": mlp, "in place": lambda: mlp(inplace=True), "linear": linear, "convolution": convolution}
SEQUENCES = {
    "nanoGPT": lambda: nano_gpt(VOCABULARY, LENGTH, layers=1, width=4, heads=2, p=0.1),
    "Music Transformer": lambda: music_transformer(VOCABULARY, LENGTH, layers=1, width=4, heads=2, p=0.1),
}


class Attention(nn.Module):
    """Embedded positions, attention as a function, and a head that is tied to the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(VOCABULARY, 4), nn.Embedding(LENGTH, 4)
        self.qkv, self.head = nn.Linear(4, 12), nn.Linear(4, VOCABULARY)
        self.head.weight = self.tokens.weight

    def forward(self, x):
        h = self.tokens(x) + self.positions(torch.arange(LENGTH))
        q, k, v = (t.unsqueeze(1) for t in self.qkv(h).chunk(3, -1))
        return self.head(h + functional.scaled_dot_product_attention(q, k, v, is_causal=True).squeeze(1))


class OfModules(nn.Module):
    """torch's own attention and recurrent layers."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, 4)
        self.encoder = nn.TransformerEncoderLayer(4, 2, 6, dropout=0.0, batch_first=True)
        self.recurrent, self.head = nn.LSTM(4, 3, batch_first=True), nn.Linear(3, VOCABULARY)

    def forward(self, x):
        return self.head(self.recurrent(self.encoder(self.tokens(x)))[0])


SEQUENCES |= {"attention": Attention, "modules": OfModules}
KINDS = ["gauss-newton", "hessian"]
ENSEMBLES = ["plain", "shared", "per-sample", "lora"]


@pytest.fixture
def member_of(small, view):
    """Return a factory of members of any model on a handful of made-up images or sequences."""

    def make(name: str, ensemble: str = "plain"):
        make_model = {**MODELS, **SEQUENCES}[name]
        random = torch.Generator().manual_seed(0)

        def examples(n: int, split: str) -> Examples:
            if name in SEQUENCES:
                tokens = torch.randint(VOCABULARY, (n, LENGTH + 1), generator=random)
                return Examples(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous(), split)
            images = torch.randn(n, 1, 4, 4, generator=random)
            return Examples(images, torch.randint(3, (n,), generator=random), split)

        data = TaskData(examples(N_TRAIN, "train"), examples(N_QUERIES, "queries"))
        task = replace(small, make_model=make_model, recipe=replace(small.recipe, epochs=1, lr=0.05))
        if name in SEQUENCES:
            task = replace(task, loss=token_cross_entropy, target=MEAN_LOG_PROBABILITY)
        mine = view(task, data, store=f"models-{name}")
        if ensemble == "lora":
            return mine.adapter_member(0, 0, number=0, rank=2, epochs=2)
        return mine.member(mask={"plain": None, "shared": (0, False), "per-sample": (0, True)}[ensemble])

    return make


def flat_function(member, function):
    """Return ``function(parameters)`` of the flat parameters, and these, ``[P]``."""
    names, shapes = list(member.parameters), [p.shape for p in member.parameters.values()]

    def of_flat(flat):
        parts = flat.split([s.numel() for s in shapes])
        return function({n: p.view(s) for n, p, s in zip(names, parts, shapes, strict=True)})

    return of_flat, torch.cat([p.flatten() for p in member.parameters.values()])


def outputs(member, examples):
    """Return what gives the model's outputs at parameters, written without the member's own function."""
    batch = examples.all()
    masks = member.mask_rows(batch)

    def at(parameters):
        with differentiable(member.model, plain=True):  # torch.func needs them as well
            return functional_call(member.model, {**parameters, **member.statistics, **masks}, (batch.inputs,))

    return at


def expected(member, examples, kind):
    """Return the matrix ``[P, P]`` from torch.func's Jacobians of Jacobians."""
    loss, at = member.task.loss_function, outputs(member, examples)
    of_flat, flat = flat_function(member, at)
    if kind == "hessian":
        return jacrev(jacrev(lambda p: loss(of_flat(p), examples.labels).mean()))(flat)
    z = of_flat(flat)
    jacobian = jacrev(of_flat)(flat).flatten(0, -2)  # [n * C, P]
    curvature = jacrev(jacrev(lambda z: loss(z, examples.labels).mean()))(z).reshape(z.numel(), z.numel())
    return jacobian.T @ curvature @ jacobian


def relative(found, wanted):
    return ((found - wanted).norm() / wanted.norm()).item()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ensemble", ENSEMBLES)
@pytest.mark.parametrize("name", MODELS)
def test_the_matrix_is_torch_s_own(member_of, name, ensemble, kind):
    member = member_of(name, ensemble)
    training = member.task.training
    found = member.hessian(training, kind).explicit()
    assert relative(found, expected(member, training, kind)) < 1e-5
    assert relative(found, found.T) < 1e-5


class Normed(nn.Module):
    """A weight of rows of a length that is a parameter, by plain operations, under the names of torch's own."""

    def __init__(self, dim) -> None:
        super().__init__()
        self.first = nn.utils.parametrizations.weight_norm(nn.Linear(16, 6), dim=dim)
        self.others = {0: [1], 1: [0], None: [0, 1]}[dim]
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        weight = self.first.parametrizations.weight
        g, v = weight.original0, weight.original1
        first = functional.linear(
            x.flatten(1), v * (g / v.square().sum(self.others, keepdim=True).sqrt()), self.first.bias
        )
        return self.head(first.tanh())


class NormedByTorch(Normed):
    """The same through torch's kernel, whose second derivative is wrong."""

    def forward(self, x):
        return self.head(self.first(x.flatten(1)).tanh())


@pytest.mark.parametrize("dim", [0, 1, None])
@pytest.mark.parametrize("kind", KINDS)
def test_the_matrix_of_normed_weights_is_that_of_plain_operations(small, view, kind, dim):
    def matrix(make_model) -> torch.Tensor:
        task = replace(small, make_model=lambda: make_model(dim), recipe=replace(small.recipe, epochs=1, lr=0.05))
        random = torch.Generator().manual_seed(0)
        data = [
            Examples(torch.randn(n, 1, 4, 4, generator=random), torch.randint(3, (n,), generator=random), split)
            for n, split in ((N_TRAIN, "train"), (N_QUERIES, "queries"))
        ]
        member = view(task, TaskData(*data), store=f"{make_model.__name__}").member()
        return member.hessian(member.task.training, kind).explicit()

    found, wanted = matrix(NormedByTorch), matrix(Normed)
    assert relative(found, wanted) < 1e-4
    assert relative(found, found.T) < 1e-5


def rows_of(ends, starts):
    """Return the Jacobian ``[K, P]`` of ``ends [K]``, by one backward pass after another."""
    rows = [torch.autograd.grad(end, starts, retain_graph=True, materialize_grads=True) for end in ends]
    return torch.stack([torch.cat([g.flatten() for g in row]) for row in rows])


def expected_by_loops(member, examples, kind):
    """Return the matrix ``[P, P]`` of a classifier without torch.func, whose ``vmap`` has no rule for some layers."""
    parameters = {k: p.detach().requires_grad_() for k, p in member.parameters.items()}
    leaves = list(parameters.values())
    z = member.logits(parameters, examples.all())
    if kind == "hessian":
        loss = member.task.loss_function(z, examples.labels).mean()
        gradient = torch.autograd.grad(loss, leaves, create_graph=True)
        return rows_of(torch.cat([g.flatten() for g in gradient]), leaves)
    jacobian, p = rows_of(z.flatten(), leaves).view(*z.shape, -1), z.softmax(-1).detach()
    curvature = torch.diag_embed(p) - p.unsqueeze(2) * p.unsqueeze(1)  # of softmax and cross-entropy
    return torch.einsum("ncp,ncd,ndq->pq", jacobian, curvature, jacobian) / len(examples)


class GroupNormed(nn.Module):
    """Group normalisation that is no module."""

    def forward(self, x):
        return functional.group_norm(x, 1)


LAYERS = {
    "max pool": (4, nn.MaxPool2d(2), 16),
    "group norm": (4, nn.GroupNorm(1, 4), 64),
    "group norm, a function": (2, GroupNormed(), 32),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layer", LAYERS)
def test_the_matrix_where_torch_cannot_differentiate_for_many_vectors_at_once(small, view, layer, kind):
    """Two channels, so that the images lie in memory with channels last."""
    random, (channels, between, wide) = torch.Generator().manual_seed(0), LAYERS[layer]

    def examples(n: int, split: str) -> Examples:
        images = torch.randn(n, 2, 4, 4, generator=random)
        return Examples(images, torch.randint(3, (n,), generator=random), split)

    def make_model() -> nn.Module:
        return nn.Sequential(nn.Conv2d(2, channels, 3, padding=1), between, nn.Tanh(), nn.Flatten(), nn.Linear(wide, 3))

    task = replace(small, make_model=make_model, recipe=replace(small.recipe, epochs=1, lr=0.05))
    member = view(task, TaskData(examples(N_TRAIN, "train"), examples(N_QUERIES, "queries"))).member()
    matrix = member.hessian(member.task.training, kind)
    assert not matrix._shares_passes
    for rows in (range(N_TRAIN), [3]):
        some = member.task.training.take(torch.tensor(rows))
        wanted = expected_by_loops(member, Examples(some.inputs, some.labels, "train"), kind)
        assert relative(matrix.on(torch.tensor(rows)).explicit(), wanted) < 1e-5


class Tempered(nn.Module):
    """A parameter without dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.temperature = nn.Linear(64, 3), nn.Parameter(torch.tensor(0.5))

    def forward(self, x):
        return self.first(x).tanh() * self.temperature.exp()


@pytest.mark.parametrize("sharing", [1, 1_000])
@pytest.mark.parametrize("kind", KINDS)
def test_the_matrix_of_a_parameter_without_dimensions(small, small_data, view, monkeypatch, kind, sharing):
    monkeypatch.setattr(hessian, "_FEWEST_SHARING", sharing)
    member = view(replace(small, make_model=Tempered), few(small_data)).member()
    found = member.hessian(member.task.training, kind).explicit()
    assert relative(found, expected_by_loops(member, member.task.training, kind)) < 1e-5


class Distances(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.centres = nn.Parameter(torch.rand(3, 64))

    def forward(self, x):
        return -torch.cdist(x, self.centres)


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_that_torch_cannot_differentiate_twice_is_declined(small, small_data, view, kind):
    member = view(replace(small, make_model=Distances), few(small_data)).member()
    matrix = member.hessian(member.task.training, kind)
    with pytest.raises(Declined, match=r"cannot differentiate the model of small twice, .* '_cdist_backward' is not"):
        matrix.times(torch.ones(2, matrix.n_parameters))


def few(data: TaskData) -> TaskData:
    """Return a few examples of three classes."""
    sets = ((data.training, N_TRAIN), (data.queries, N_QUERIES))
    return TaskData(*(Examples(some.inputs[:n], some.labels[:n] % 3, some.split) for some, n in sets))


@pytest.mark.parametrize("name", SEQUENCES)
@pytest.mark.parametrize("sharing", [1, 1_000])
def test_the_matrix_of_a_transformer(member_of, name, sharing, monkeypatch):
    """The Hessian against differences: torch.func's own is not symmetric here, so it cannot be right."""
    monkeypatch.setattr(hessian, "_FEWEST_SHARING", sharing)
    member = member_of(name, "per-sample")
    training = member.task.training
    found = member.hessian(training, "gauss-newton").explicit()
    assert relative(found, expected(member, training, "gauss-newton")) < 1e-5
    vectors = torch.randn(3, len(found), generator=torch.Generator().manual_seed(0))
    products = member.hessian(training, "hessian").times(vectors).double()
    assert relative(products, torch.stack([differences(member, training, v) for v in vectors])) < 1e-4


@pytest.mark.parametrize("kind", KINDS)
def test_products_with_a_residual_network(small, view, kind):
    """Too large for torch's own Hessian: against differences of gradients in float64."""
    random = torch.Generator().manual_seed(0)
    images = Examples(torch.randn(3, 3, 8, 8, generator=random), torch.tensor([0, 1, 1]), "train")
    task = replace(small, make_model=lambda: resnet9(2, width=8, strides=(2, 2, 2), p=0.1))
    member = view(replace(task, recipe=replace(small.recipe, epochs=1)), TaskData(images, images)).member()
    vectors = torch.randn(2, member.hessian(images).n_parameters, generator=random)
    found = member.hessian(images, kind).times(vectors)
    assert found.shape == vectors.shape
    products = found @ vectors.T
    torch.testing.assert_close(products, products.T, rtol=1e-3, atol=1e-4 * products.abs().max().item())
    if kind == "gauss-newton":
        assert (products.diagonal() > 0).all()
    else:
        wanted = differences(member, images, vectors[0])
        assert relative(found[0].double(), wanted) < 1e-3


def differences(member, examples, vector):
    """Return the Hessian's product with a vector from two gradients."""
    exact = replace(
        member,
        parameters={k: p.double() for k, p in member.parameters.items()},
        statistics={k: s.double() if s.is_floating_point() else s for k, s in member.statistics.items()},
    )
    inputs = examples.inputs.double() if examples.inputs.is_floating_point() else examples.inputs
    at = outputs(exact, Examples(inputs, examples.labels, examples.split))
    of_flat, flat = flat_function(exact, lambda p: exact.task.loss_function(at(p), examples.labels).mean())
    step = 1e-6 * vector.double() / vector.norm()
    change = torch.func.grad(of_flat)(flat + step) - torch.func.grad(of_flat)(flat - step)
    return change / (2 * step.norm()) * vector.norm()


def test_the_gauss_newton_part_is_the_hessian_of_a_linear_model_and_positive_for_any(member_of):
    member = member_of("linear")
    both = [member.hessian(member.task.training, kind).explicit() for kind in KINDS]
    assert relative(both[0], both[1]) < 1e-5
    deep = member_of("mlp")
    eigenvalues = [torch.linalg.eigvalsh(deep.hessian(deep.task.training, kind).explicit()) for kind in KINDS]
    assert eigenvalues[0].min() > -1e-5 * eigenvalues[0].max()
    assert eigenvalues[1].min() < -1e-3 * eigenvalues[1].max()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("batch", "block_bytes"), [(1, 1), (2, 5_000), (3, 1 << 20)])
@pytest.mark.parametrize("sharing", [1, 1_000])
def test_batches_and_blocks_do_not_change_results(member_of, monkeypatch, kind, batch, block_bytes, sharing):
    member = member_of("mlp", "per-sample")
    vectors = torch.randn(5, 155, generator=torch.Generator().manual_seed(1))

    def results():
        matrix = member.hessian(member.task.training, kind, 0.5)
        return matrix.times(vectors), matrix.explicit(), torch.tensor(matrix.mean_diagonal())

    wanted = results()
    monkeypatch.setattr(hessian, "_BATCH", batch)
    monkeypatch.setattr(hessian, "_BLOCK_BYTES", block_bytes)
    monkeypatch.setattr(hessian, "_FEWEST_SHARING", sharing)
    for found, want in zip(results(), wanted, strict=True):
        torch.testing.assert_close(found, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("at_once", "apart"), [(16, False), (15, True)])
def test_vectors_share_passes_where_many_fit_into_a_block(member_of, monkeypatch, at_once, apart):
    member = member_of("mlp", "per-sample")
    matrix = member.hessian(member.task.training, "gauss-newton")
    assert matrix._shares_passes  # tried by passes of its own
    pulled, calls = hessian._pulled_apart, []
    monkeypatch.setattr(hessian, "_pulled_apart", lambda *given: calls.append(given) or pulled(*given))
    monkeypatch.setattr(hessian.Hessian, "_vectors_at_once", at_once)
    matrix.times(torch.ones(3, 155))
    assert bool(calls) is apart


def test_a_ridge_stands_on_the_diagonal_and_rows_average_over_some_examples(member_of):
    member = member_of("mlp", "per-sample")
    training = member.task.training
    plain = member.hessian(training).explicit()
    torch.testing.assert_close(member.hessian(training, ridge=0.25).explicit(), plain + 0.25 * torch.eye(155))
    parts = [member.hessian(training).on(torch.tensor(rows)).explicit() for rows in ([0, 3, 5], [1, 2, 4, 6])]
    torch.testing.assert_close((3 * parts[0] + 4 * parts[1]) / 7, plain, rtol=1e-4, atol=1e-6)


def test_the_mean_diagonal_is_near_the_matrix_s_own_and_knows_no_ridge(member_of):
    member = member_of("mlp")
    matrix = member.hessian(member.task.training)
    exact = matrix.explicit().diagonal().mean().item()
    assert matrix.mean_diagonal() == pytest.approx(exact, rel=0.3)
    others = [member.hessian(member.task.training, kind, 3.0).mean_diagonal() for kind in KINDS]
    assert others == pytest.approx([matrix.mean_diagonal()] * 2)


def test_every_pass_is_counted(member_of):
    member = member_of("mlp")
    meter = member.task.meter
    matrix = member.hessian(member.task.training)
    matrix.times(torch.ones(2, 155))
    assert (meter.forward_examples, meter.backward_examples) == (2 * N_TRAIN, 2 * N_TRAIN)
    matrix.mean_diagonal()
    assert meter.forward_examples == (2 + 32) * N_TRAIN


def test_a_hessian_that_does_not_fit_is_declined(member_of):
    member = member_of("mlp")
    with pytest.raises(Declined, match=r"an explicit Hessian of 155 parameters takes 0.0 GB; .* up to 154 parameters"):
        member.hessian(member.task.training).explicit(most=154)


@pytest.mark.parametrize("ensemble", ENSEMBLES)
def test_the_last_layer_is_a_block_of_the_whole(member_of, ensemble):
    member = member_of("mlp", ensemble)
    last = member.last_layer()
    n = last.hessian(last.task.training).n_parameters
    assert n == (2 * (3 + 5) if ensemble == "lora" else 3 * 5 + 3)
    for kind in KINDS:
        whole, part = (m.hessian(member.task.training, kind).explicit() for m in (member, last))
        torch.testing.assert_close(part, whole[-n:, -n:], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(
        last.gradients(last.task.queries, "target").dense(),
        member.gradients(member.task.queries, "target").dense()[:, -n:],
    )


def test_a_last_layer_without_a_parameter_is_declined(member_of):
    member = member_of("convolution")
    without = replace(member, parameters={k: p for k, p in member.parameters.items() if not k.startswith("5.")})
    with pytest.raises(Declined, match="last linear layer of the model of small, 5, has no weight that is different"):
        without.last_layer()
