"""Methods that invert a curvature: EK-FAC, ASTRA, DataInf, LoGra, GraSS, held against explicit matrices."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from tdabench import (
    Declined,
    Layer,
    Target,
    TaskData,
    UsageError,
    eigenbases,
    solved_dot,
    with_sampled_labels,
)
from tdabench.baselines import data_inf
from tdabench.baselines.astra import Astra
from tdabench.baselines.compressed import Grass, LoGra
from tdabench.baselines.data_inf import DataInf
from tdabench.baselines.ek_fac import EkFac
from tdabench.ensembles import Independent, parse_ensemble
from tdabench.examples import Examples
from tdabench.execution import execute

METHODS = {
    "ek-fac": EkFac(),
    "ek-fac, true labels": EkFac(labels="true"),
    "astra": Astra(steps=2, batch=8),
    "data-inf": DataInf(),
    "logra": LoGra(rank=3),
    "grass": Grass(size=9),
}
N_TRAIN, N_QUERIES = 30, 6
CLOSE = {"rtol": 1e-4, "atol": 1e-4}


def linear() -> nn.Module:
    return nn.Linear(64, 10)


def two_layers() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 6), nn.Tanh(), nn.Linear(6, 10))


def on_tokens() -> nn.Module:
    return nn.Sequential(nn.Unflatten(1, (8, 8)), nn.Linear(8, 5), nn.Tanh(), nn.Flatten(), nn.Linear(40, 10))


def on_images() -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 3, 3, stride=2), nn.Tanh(), nn.Flatten(), nn.Linear(27, 10)
    )


@pytest.fixture
def view_of(small, small_data, view):
    """Return a factory of views of a task with few digits and any model."""

    def make(make_model, **changes):
        data = TaskData(
            Examples(small_data.training.inputs[:N_TRAIN], small_data.training.labels[:N_TRAIN], "train"),
            Examples(small_data.queries.inputs[:N_QUERIES], small_data.queries.labels[:N_QUERIES], "queries"),
        )
        task = replace(small, make_model=make_model, n_train=N_TRAIN, n_queries=N_QUERIES, **changes)
        return view(task, data, store=make_model.__name__)

    return make


def correlation(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(torch.corrcoef(torch.stack([a.double().flatten(), b.double().flatten()]))[0, 1])


def dense(task, of_queries="target"):
    """Return query and training gradients ``[m, P]`` and ``[n, P]`` in double precision."""
    member = task.member()
    return member.gradients(task.queries, of_queries).dense().double(), member.gradients(
        task.training, "loss"
    ).dense().double()


def layers_of(task):
    """Return every layer's query and training gradients ``[m, p, q]`` and ``[n, p, q]``, in double precision."""
    queries = task.member().gradients(task.queries, "target")
    q, z = (queries.split(g) for g in dense(task))
    return {key: (q[key], z[key]) for key in q}


def check_scores(method, task, expected) -> None:
    """Hold a method's scores against expected ones, in units of the largest."""
    got, scale = execute(method, None, task).double(), expected.abs().max()
    torch.testing.assert_close(got / scale, expected / scale, rtol=1e-3, atol=1e-4)


# The eigenbasis


@pytest.mark.parametrize("make", [two_layers, on_tokens])
def test_eigenvalues_are_the_second_moments_of_the_gradients_in_the_basis(view_of, make):
    task = view_of(make)
    gradients = task.member().gradients(task.training, "loss")
    bases = eigenbases(gradients)
    for _, layers in gradients.by_layer():
        for key, values in layers.items():
            basis = bases[key]
            left = torch.eye(values.shape[1]) if basis.left is None else basis.left
            right = torch.eye(values.shape[2]) if basis.right is None else basis.right
            torch.testing.assert_close(left @ left.T, torch.eye(len(left)), rtol=0, atol=1e-5)
            rotated = left.T @ values @ right
            torch.testing.assert_close(basis.values, rotated.square().mean(0), rtol=1e-3, atol=1e-7)
            assert basis.values.sum().item() == pytest.approx(values.square().sum((1, 2)).mean().item(), rel=1e-4)


@pytest.mark.parametrize("make", [two_layers, on_tokens])
def test_eigenvalues_may_be_those_of_other_gradients(view_of, make):
    task = view_of(make)
    vectors_of, values_of = (task.member().gradients(part, "loss") for part in (task.training, task.queries))
    own, bases = eigenbases(vectors_of), eigenbases(vectors_of, values_of=values_of)
    for _, layers in values_of.by_layer():
        for key, values in layers.items():
            left, right = (torch.eye(size) if side is None else side for size, side in sides(values, bases[key]))
            torch.testing.assert_close(left, torch.eye(len(left)) if own[key].left is None else own[key].left)
            rotated = left.T @ values @ right
            torch.testing.assert_close(bases[key].values, rotated.square().mean(0), rtol=1e-3, atol=1e-7)
            assert not torch.allclose(bases[key].values, own[key].values)


def sides(values, basis):
    return zip(values.shape[1:], (basis.left, basis.right), strict=True)


def test_solving_in_the_basis_is_multiplying_with_the_inverse_matrix(view_of):
    task = view_of(two_layers)
    bases = eigenbases(task.member().gradients(task.training, "loss"))
    basis = bases["2"]
    vectors = torch.randn(3, 10, 7)
    eye = torch.eye
    u = torch.kron(basis.left if basis.left is not None else eye(10), basis.right)
    matrix = u @ torch.diag(basis.values.flatten()) @ u.T + 0.01 * eye(70)
    expected = torch.linalg.solve(matrix.double(), vectors.flatten(1).double().T).T
    torch.testing.assert_close(basis.solve(vectors, 0.01).flatten(1).double(), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("make", [two_layers, on_tokens])
def test_turning_factors_or_gradients_gives_the_same_products(view_of, make):
    task = view_of(make)
    member = task.member()
    queries, training = member.gradients(task.queries, "target"), member.gradients(task.training, "loss")
    bases = eigenbases(training)
    ridges = {key: 0.1 * float(basis.values.mean()) for key, basis in bases.items()}
    got = solved_dot(queries, training, bases, ridges)
    for rows, layers in queries.by_layer():
        solved = {key: basis.solve(layers[key], ridges[key]) for key, basis in bases.items()}
        expected = training.times(solved).T
        torch.testing.assert_close(got[rows] / expected.abs().max(), expected / expected.abs().max(), **CLOSE)


def test_drawn_labels_follow_the_predictions(view_of):
    task = view_of(linear)
    member = task.member()
    drawn = torch.stack([with_sampled_labels(member, task.training, "labels", i).labels for i in range(400)])
    frequency = nn.functional.one_hot(drawn, 10).double().mean(0)
    expected = member.logits(member.parameters, task.training.all()).double().softmax(-1)
    deviation = (expected * (1 - expected) / 400).sqrt()
    assert ((frequency - expected).abs() / deviation.clamp(min=2e-3)).max() < 5
    again = with_sampled_labels(member, task.training, "labels", 7).labels
    assert torch.equal(again, drawn[7])


def test_labels_that_the_loss_ignores_are_not_drawn(view_of):
    task = view_of(linear)
    labels = task.training.labels.clone()
    labels[3] = -100
    ignored = Examples(task.training.inputs, labels, "train")
    with pytest.raises(Declined, match=r"some are below 0 \(as ignore_index has them\)"):
        with_sampled_labels(task.member(), ignored, "labels")


def one_output() -> nn.Module:
    return nn.Linear(64, 1)


def no_outputs() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 1), nn.Flatten(0))


def odd(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return nn.functional.binary_cross_entropy_with_logits(logits.flatten(), (labels % 2).float(), reduction="none")


@pytest.mark.parametrize(
    ("make", "said"), [(one_output, r"outputs \[B, 1\] for labels \[B\]"), (no_outputs, r"outputs \[B\] for labels")]
)
@pytest.mark.parametrize("method", [EkFac(), Astra()], ids=["ek-fac", "astra"])
def test_a_model_without_an_output_for_each_class_is_declined_not_given_labels_of_one_class(
    view_of, make, said, method
):
    target = Target("log-probability", lambda logits, labels: -odd(logits, labels), torch.exp)
    task = view_of(make, loss=odd, target=target)
    with pytest.raises(Declined, match=said):
        execute(method, None, task)
    assert execute(EkFac(labels="true"), None, task).std() > 0


def smoothed(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(logits, labels, reduction="none", label_smoothing=0.1)


def squared(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return (logits.mean(1) - labels).square()


@pytest.mark.parametrize("loss", [smoothed, squared])
def test_labels_are_not_drawn_where_the_loss_is_not_their_cross_entropy(view_of, loss):
    task = view_of(two_layers, loss=loss)
    with pytest.raises(Declined, match=r"only where the loss is their cross-entropy, and that of \S+ is another"):
        with_sampled_labels(task.member(), task.training, "labels")
    assert execute(EkFac(labels="true"), None, task).std() > 0


@pytest.mark.parametrize("network", ["mlp", "transformer"])
def test_astra_s_ridge_is_relative_to_the_gauss_newton_matrix(view_of, network_task, network):
    task = view_of(two_layers) if network == "mlp" else network_task(network)
    member = task.member()
    exact = member.hessian(task.training).explicit().diagonal().mean()
    ridges = torch.tensor([Astra(damping=0.5, steps=0).fit(replace(member, number=i)).ridge for i in range(5)])
    assert (ridges / exact).mean().item() == pytest.approx(0.5, rel=0.1)


# Against explicit matrices


def test_ek_fac_is_exact_where_the_curvature_is_a_kronecker_product(view_of):
    # Inputs are sign vectors over two coordinates, so their second moment does not depend on the outputs' gradients.
    inputs = torch.zeros(4, 64)
    inputs[:, 0], inputs[:, 1] = torch.tensor([1.0, 1, -1, -1]), torch.tensor([1.0, -1, 1, -1])
    task = view_of(linear)
    member = task.member()
    zero = replace(member, parameters={k: torch.zeros_like(p) for k, p in member.parameters.items()})
    data = Examples(inputs.repeat_interleave(10, 0), torch.arange(10).repeat(4), "train")
    gradients = zero.gradients(data, "loss")
    g = gradients.dense().double()
    explicit = torch.linalg.solve(g.T @ g / len(g) + 0.05 * torch.eye(g.shape[1]), g.T).T
    bases = eigenbases(gradients)
    for _, layers in gradients.by_layer():
        solved = {key: bases[key].solve(layer, 0.05) for key, layer in layers.items()}
    torch.testing.assert_close(gradients.flatten(solved).double(), explicit, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("network", "some", "many"), [("mlp", 10, 100), ("transformer", 3, 20)])
def test_astra_s_iterations_reach_the_exact_inverse(view_of, network_task, network, some, many):
    task = view_of(two_layers) if network == "mlp" else network_task(network)
    q, z = dense(task)
    exact = task.member().hessian(task.training).explicit().double()
    ridge = 0.3 * exact.diagonal().mean()
    expected = -(torch.linalg.solve(exact + ridge * torch.eye(len(exact)), q.T).T @ z.T)

    def error(steps):
        got = execute(Astra(damping=0.3, steps=steps, batch=N_TRAIN), None, task).double()
        return float((got - expected).norm() / expected.norm())

    errors = [error(steps) for steps in (0, some, many)]
    assert errors[2] < 0.1
    assert errors[2] < errors[1] < errors[0]


@pytest.fixture(params=[True, False], ids=["pairs", "sums"])
def either_way(request, monkeypatch) -> None:
    """Have DataInf computed from all pairs, or from sums for each query."""
    monkeypatch.setattr(data_inf, "_takes_pairs", lambda *_: request.param)


@pytest.mark.usefixtures("either_way")
def test_data_inf_is_a_mean_of_inverses(view_of):
    task = view_of(linear)
    check_scores(DataInf(damping=0.1), task, -by_mean_of_inverses(*dense(task)))


@pytest.mark.parametrize("method", [LoGra(rank=64, damping=0.3), Grass(size=650, keep=1.0, damping=0.3)])
def test_compressing_nothing_gives_the_influence_function_of_the_empirical_fisher(view_of, method):
    task = view_of(linear)
    q, z = dense(task)
    fisher = z.T @ z / len(z)
    ridge = 0.3 * fisher.diagonal().mean()
    expected = -(q @ torch.linalg.solve(fisher + ridge * torch.eye(len(fisher)), z.T))
    check_scores(method, task, expected)


SEVERAL_LAYERS = ["convolution", "transformer"]


@pytest.fixture
def layered(view_of, network_task):
    """Return a factory of views of tasks whose layers have positions."""
    return lambda network: network_task(network) if network == "transformer" else view_of(on_images)


@pytest.mark.parametrize("network", SEVERAL_LAYERS)
def test_ek_fac_inverts_each_layer_s_matrix_in_its_eigenbasis(layered, network):
    task = layered(network)
    bases = EkFac(labels="true").fit(task.member())
    expected = torch.zeros(task.n_queries, task.n_train, dtype=torch.float64)
    for key, (q, z) in layers_of(task).items():
        sides = (bases[key].left, bases[key].right)
        left, right = (torch.eye(n) if u is None else u for u, n in zip(sides, z.shape[1:], strict=True))
        basis = torch.kron(left, right).double()
        values = (z.flatten(1) @ basis).square().mean(0)
        matrix = basis @ (values + 0.3 * values.mean()).diag() @ basis.T
        expected -= q.flatten(1) @ torch.linalg.solve(matrix, z.flatten(1).T)
    check_scores(EkFac(damping=0.3, labels="true"), task, expected)


@pytest.mark.parametrize("network", SEVERAL_LAYERS)
def test_eigenvectors_are_those_of_the_moments_of_inputs_and_gradients_over_positions(layered, network):
    task = layered(network)
    member = task.member()
    bases = eigenbases(member.gradients(task.training, "loss"))
    inputs, gradients = passed(member, task.training.all())
    assert len(inputs) == {"convolution": 1, "transformer": 5}[network]
    for name, a in inputs.items():
        a = a if member.model.get_submodule(name).bias is None else torch.cat([a, torch.ones(len(a), 1)], 1)
        for basis, rows in ((bases[name].right, a), (bases[name].left, gradients[name])):
            turned = basis.T @ (rows.T @ rows) @ basis
            assert (turned - turned.diag().diag()).norm() < 1e-4 * turned.norm(), name


def passed(member, batch):
    """Return what every linear layer receives, ``[B * T, q]``, and the gradient at what it gives, ``[B * T, p]``."""
    inputs, outputs, hooks = {}, {}, []
    for name, module in member.model.named_modules():
        if isinstance(module, nn.Linear):

            def note(_, given, out, name=name):
                inputs[name], outputs[name] = given[0].detach().flatten(0, -2), out

            hooks.append(module.register_forward_hook(note))
    parameters = {k: p.clone().requires_grad_() for k, p in member.parameters.items()}
    loss = member.loss(parameters, batch).sum()
    for hook in hooks:
        hook.remove()
    gradients = torch.autograd.grad(loss, list(outputs.values()))
    return inputs, {name: g.flatten(0, -2) for name, g in zip(outputs, gradients, strict=True)}


class HalfDark(nn.Module):
    """A layer that sees no training example, beside one that does."""

    def __init__(self) -> None:
        super().__init__()
        self.dark, self.lit = nn.Linear(32, 10, bias=False), nn.Linear(32, 10)

    def forward(self, x):
        return self.dark(x[:, :32]) + self.lit(x[:, 32:])


@pytest.mark.usefixtures("either_way")
def test_data_inf_leaves_out_a_layer_in_which_no_training_example_has_a_gradient(small, small_data, view):
    unseen, seen = small_data.training.inputs.clone(), small_data.queries.inputs.clone()
    unseen[:, :32], seen[:, :32] = 0, 100
    data = replace(
        small_data,
        training=replace(small_data.training, inputs=unseen),
        queries=replace(small_data.queries, inputs=seen),
    )
    task = view(replace(small, name="small-half-dark", make_model=HalfDark), data, store="half-dark")
    of_layer = layers_of(task)
    assert not of_layer["dark"][1].any()
    assert of_layer["dark"][0].any()
    check_scores(DataInf(damping=0.1), task, -by_mean_of_inverses(*of_layer["lit"]))


@pytest.mark.usefixtures("either_way")
def test_data_inf_of_tiny_losses_ranks_as_that_of_the_losses(view_of):
    """Of a model that fits its training set to the last digit, squares and ridges are close to where float32 ends."""
    task = view_of(two_layers)
    expected = execute(DataInf(damping=1e-4), None, task).double()
    loss = task.loss_function
    task.loss_function = lambda logits, labels: 1e-14 * loss(logits, labels)
    check_scores(DataInf(damping=1e-4), task, 1e14 * expected)


def test_data_inf_takes_pairs_of_plain_vectors_and_sums_over_positions():
    def layers(positions: int) -> tuple[Layer, ...]:
        return (Layer("a", 64, 65, positions), Layer("b", 10, 65, positions))

    takes_pairs = data_inf._takes_pairs
    assert takes_pairs(layers(1), 1000, 200)
    assert not takes_pairs(layers(64), 1000, 200)
    assert not takes_pairs(layers(1), 1000, 2), "sums for a few queries cost less than all pairs"
    assert not takes_pairs((Layer("wide", 10**4, 10**4, 1),), 10**6, 10**4), "the products would not fit"


@pytest.mark.usefixtures("either_way")
@pytest.mark.parametrize("network", SEVERAL_LAYERS)
def test_data_inf_is_a_mean_of_inverses_in_each_layer(layered, network):
    task = layered(network)
    expected = -sum(by_mean_of_inverses(q, z) for q, z in layers_of(task).values())
    check_scores(DataInf(damping=0.1), task, expected)


def by_mean_of_inverses(q, z):
    """Return the products with a layer's mean of inverses, at damping 0.1."""
    q, z = q.flatten(1), z.flatten(1)
    ridge = 0.1 * z.square().mean() * torch.eye(z.shape[1])
    return q @ torch.linalg.inv(z.unsqueeze(2) * z.unsqueeze(1) + ridge).mean(0) @ z.T


@pytest.mark.parametrize("method", [LoGra(rank=400, damping=0.3), Grass(size=400, keep=1.0, damping=0.3)])
@pytest.mark.parametrize("network", SEVERAL_LAYERS)
def test_compressing_nothing_gives_each_layer_s_influence_function(layered, network, method):
    task = layered(network)
    expected = torch.zeros(task.n_queries, task.n_train, dtype=torch.float64)
    for q, z in layers_of(task).values():
        q, z = q.flatten(1), z.flatten(1)
        fisher = z.T @ z / len(z)
        ridge = 0.3 * fisher.diagonal().mean() * torch.eye(len(fisher))
        expected -= q @ torch.linalg.solve(fisher + ridge, z.T)
    check_scores(method, task, expected)


@pytest.mark.parametrize(
    ("method", "least"), [(LoGra(rank=24, damping=1.0), 0.8), (Grass(size=2048, keep=0.9, damping=1.0), 0.8)]
)
def test_compressed_scores_are_near_those_of_whole_gradients(view_of, method, least):
    task = view_of(two_layers)
    whole = execute(LoGra(rank=640, damping=1.0), None, task)
    assert correlation(execute(method, None, task), whole) > least


# Everywhere


@pytest.mark.parametrize(
    "ensemble",
    [
        "dropout(models=1, masks=2)",
        "dropout(models=1, masks=2, mask=per-sample)",
        "lora(models=1, adapters=2, rank=2, epochs=1)",
        "independent(models=2)",
    ],
)
@pytest.mark.parametrize("name", METHODS)
def test_methods_run_under_every_ensemble(small, small_data, view, name, ensemble):
    task = view(small, small_data)
    scores = execute(METHODS[name], parse_ensemble(ensemble), task)
    assert scores.std() > 0


@pytest.mark.parametrize("name", METHODS)
def test_a_planted_duplicate_of_a_query_ranks_first(small, small_data, view, name):
    training = small_data.training
    inputs, labels = training.inputs.clone(), training.labels.clone()
    places = torch.arange(0, 40, 10)
    inputs[places], labels[places] = small_data.queries.inputs[:4], small_data.queries.labels[:4]
    data = TaskData(Examples(inputs, labels, "train"), small_data.queries)
    scores = execute(METHODS[name], Independent(3), view(small, data, store="planted"))
    assert torch.equal(scores[:4].argmax(1), places)


@pytest.mark.parametrize("network", ["resnet", "transformer"])
@pytest.mark.parametrize("name", METHODS)
def test_methods_run_on_convolutions_and_tokens(network_task, name, network):
    scores = execute(METHODS[name], None, network_task(network))
    assert scores.isfinite().all()
    assert scores.std() > 0


def test_a_singular_moment_says_what_to_type(view_of):
    with pytest.raises(UsageError, match="--set damping="):
        execute(LoGra(rank=64, damping=0.0), None, view_of(linear))
