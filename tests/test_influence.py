"""Influence functions against closed forms, retraining and one another."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from tdabench import Declined, Examples, Target, TaskData, UsageError
from tdabench.baselines.influence import arnoldi, definition, explicit
from tdabench.baselines.influence.arnoldi import ArnoldiInfluence, lanczos
from tdabench.baselines.influence.conjugate_gradient import ConjugateGradientInfluence, conjugate_gradients
from tdabench.baselines.influence.explicit import ExplicitInfluence
from tdabench.baselines.influence.lissa import LissaInfluence
from tdabench.ensembles import Dropout, Independent, Lora
from tdabench.execution import execute

PLANTED, QUERY = 17, 3
QUICK = [
    ExplicitInfluence(layers="last"),
    ConjugateGradientInfluence(iterations=3),
    LissaInfluence(depth=5, batch=20),
    ArnoldiInfluence(iterations=6, rank=4),
]


def name_of(method) -> str:
    return type(method).__name__.removesuffix("Influence")


def scores_of(method, member):
    return method.attribute(member, method.fit(member))


def correlation(a, b) -> float:
    return torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1].item()


def relative(found, wanted) -> float:
    return float(np.linalg.norm(np.asarray(found) - wanted) / np.linalg.norm(wanted))


@pytest.fixture
def member_of(small, view):
    """Return a factory of members, at given weights, of a small model on given examples."""

    def make(make_model, training, queries, *, weights=None, ensemble="plain", **fields):
        data = TaskData(Examples(*training, "train"), Examples(*queries, "queries"))
        recipe = replace(small.recipe, epochs=2, lr=0.05)
        task = view(replace(small, make_model=make_model, recipe=recipe, **fields), data)
        if ensemble == "lora":
            return task.adapter_member(0, 0, number=0, rank=2, epochs=2)
        member = task.member(mask={"plain": None, "shared": (0, False), "per-sample": (0, True)}[ensemble])
        return member if weights is None else replace(member, parameters=weights)

    return make


# Linear regression: leaving one out is known exactly


def squared(logits, labels):
    return 0.5 * (logits[:, 0] - labels).square()


PREDICTION = Target("prediction", lambda logits, labels: logits[:, 0], lambda values: values)


@pytest.fixture
def regression(member_of):
    """Return a member at the least-squares solution of 30 examples, and its numbers in float64."""
    random = np.random.default_rng(0)
    X, Q = random.normal(size=(30, 5)), random.normal(size=(8, 5))
    y = X @ random.normal(size=5) + 0.5 * random.normal(size=30)
    X, Q, y = (a.astype(np.float32).astype(np.float64) for a in (X, Q, y))
    solution = np.linalg.lstsq(X, y, rcond=None)[0]
    training, queries = [(torch.from_numpy(a).float(), torch.zeros(len(a))) for a in (X, Q)]
    member = member_of(
        lambda: nn.Sequential(nn.Linear(5, 1, bias=False)),
        (training[0], torch.from_numpy(y).float()),
        queries,
        weights={"0.weight": torch.from_numpy(solution).float().unsqueeze(0)},
        loss=squared,
        target=PREDICTION,
    )
    return member, X, y, Q


def test_leaving_one_out_of_least_squares_is_exact_after_the_leverage_correction(regression):
    member, X, y, Q = regression
    leverage = np.einsum("ij,jk,ik->i", X, np.linalg.inv(X.T @ X), X)
    left_out = np.empty((len(Q), len(X)))
    for i in range(len(X)):
        keep = np.arange(len(X)) != i
        left_out[:, i] = Q @ np.linalg.lstsq(X[keep], y[keep], rcond=None)[0]
    whole = Q @ np.linalg.lstsq(X, y, rcond=None)[0]
    wanted = whole[:, None] - left_out  # what having the example does
    for curvature in ("gauss-newton", "hessian"):
        found = scores_of(ExplicitInfluence(damping=0.0, curvature=curvature), member).double().numpy()
        assert relative(found / (1 - leverage), wanted) < 1e-4


@pytest.mark.parametrize(
    "method",
    [
        ConjugateGradientInfluence(damping=0.0, iterations=10, tolerance=0.0),
        LissaInfluence(damping=0.0, depth=300, batch=30),
        ArnoldiInfluence(damping=0.0),
    ],
    ids=name_of,
)
def test_the_solvers_equal_the_explicit_one_on_least_squares(regression, method):
    member = regression[0]
    wanted = scores_of(ExplicitInfluence(damping=0.0), member).numpy()
    assert relative(scores_of(method, member).numpy(), wanted) < 1e-4


# Logistic regression: one Newton step, and retraining


WEIGHT_DECAY = 0.05


def minimum(X, y, weight=None, start=None):
    """Return the weights ``[d]`` of logit 1 less logit 0 that minimise the loss of Newton's method, in float64.

    Two logits share the decay: for their difference w it is ``WEIGHT_DECAY / 4 * |w|^2``.
    """
    weight = np.ones(len(X)) if weight is None else weight
    w = np.zeros(X.shape[1]) if start is None else start
    for _ in range(30):
        p = 1 / (1 + np.exp(-X @ w))
        gradient = X.T @ (weight * (p - y)) / len(X) + WEIGHT_DECAY / 2 * w
        w = w - np.linalg.solve(curvature_at(X, w, weight), gradient)
    return w


def curvature_at(X, w, weight):
    p = 1 / (1 + np.exp(-X @ w))
    return (X * (weight * p * (1 - p))[:, None]).T @ X / len(X) + WEIGHT_DECAY / 2 * np.eye(X.shape[1])


@pytest.fixture
def logistic(member_of):
    """Return a member at the regularised minimum on 60 examples of two classes, and its numbers in float64."""
    random = np.random.default_rng(1)
    X, Q = (random.normal(size=(n, 4)).astype(np.float32).astype(np.float64) for n in (60, 10))
    direction = random.normal(size=4)
    y, query_labels = ((a @ direction + random.normal(size=len(a)) > 0).astype(int) for a in (X, Q))
    w = minimum(X, y)
    member = member_of(
        lambda: nn.Sequential(nn.Linear(4, 2, bias=False)),
        (torch.from_numpy(X).float(), torch.from_numpy(y)),
        (torch.from_numpy(Q).float(), torch.from_numpy(query_labels)),
        weights={"0.weight": torch.from_numpy(np.stack([-w / 2, w / 2])).float()},
    )
    return member, X, y, Q * (2 * query_labels - 1)[:, None], w


def damping_of(member) -> float:
    """Return the damping whose ridge is the weight decay."""
    return WEIGHT_DECAY / member.hessian(member.task.training).mean_diagonal()


def test_logistic_regression_is_one_newton_step_and_close_to_retraining(logistic):
    member, X, y, signed, w = logistic
    errors = 1 / (1 + np.exp(-X @ w)) - y
    step = -np.linalg.solve(curvature_at(X, w, np.ones(60)), (X * errors[:, None]).T).T / 60  # [n, d]
    found = scores_of(ExplicitInfluence(damping=damping_of(member)), member).double().numpy()
    assert relative(found, signed @ step.T) < 1e-4
    left_out = [minimum(X, y, np.arange(60) != i, w) for i in range(60)]
    retrained = signed @ (w - np.stack(left_out)).T
    assert np.corrcoef(found.flatten(), retrained.flatten())[0, 1] > 0.99
    assert relative(found, retrained) < 0.15


def test_a_negated_label_flips_the_sign_of_its_influence_and_leaves_the_others(logistic):
    member = logistic[0]
    method = ExplicitInfluence(damping=damping_of(member))
    before = scores_of(method, member)
    member.task.training.labels[PLANTED] = 1 - member.task.training.labels[PLANTED]
    after = scores_of(method, member)
    assert (before[:, PLANTED] * after[:, PLANTED] < 0).all()
    others = torch.arange(60) != PLANTED
    torch.testing.assert_close(after[:, others], before[:, others])


# Networks: the solvers against one another


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Dropout(0.3), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))


@pytest.fixture
def network(member_of):
    """Return a factory of members of a small network on 40 examples."""

    def make(ensemble="plain"):
        random = torch.Generator().manual_seed(2)
        sets = [(torch.randn(n, 8, generator=random), torch.randint(3, (n,), generator=random)) for n in (40, 6)]
        return member_of(mlp, *sets, ensemble=ensemble)

    return make


def converged(**options):
    return [
        ConjugateGradientInfluence(iterations=200, tolerance=1e-6, **options),
        LissaInfluence(depth=300, batch=40, **options),
        ArnoldiInfluence(iterations=200, rank=200, **options),
    ]


@pytest.mark.parametrize("ensemble", ["plain", "shared", "per-sample", "lora"])
def test_the_four_solvers_agree_when_they_converge(network, ensemble):
    member = network(ensemble)
    wanted = scores_of(ExplicitInfluence(damping=3.0), member)
    for method in converged(damping=3.0):
        found = scores_of(method, member)
        assert correlation(found, wanted) > 0.999, name_of(method)
        assert relative(found.numpy(), wanted.numpy()) < 0.02, name_of(method)


def test_they_agree_on_the_hessian_itself_where_the_ridge_outweighs_its_negative_eigenvalues(network):
    member = network()
    options = {"damping": 20.0, "curvature": "hessian"}
    values = torch.linalg.eigvalsh(member.hessian(member.task.training, "hessian").explicit())
    assert -20 * member.hessian(member.task.training).mean_diagonal() < values.min() < 0
    wanted = scores_of(ConjugateGradientInfluence(iterations=100, tolerance=1e-6, **options), member)
    assert correlation(scores_of(LissaInfluence(depth=150, batch=40, **options), member), wanted) > 0.9999
    arnoldi_scores = scores_of(ArnoldiInfluence(iterations=200, rank=200, **options), member)
    assert correlation(arnoldi_scores, scores_of(ExplicitInfluence(**options), member)) > 0.9999


def test_the_explicit_solver_takes_the_absolute_value_of_negative_eigenvalues(network):
    member = network()
    task, method = member.task, ExplicitInfluence(damping=0.5, curvature="hessian")
    values, vectors = torch.linalg.eigh(member.hessian(task.training, "hessian").explicit().double())
    ridge = 0.5 * member.hessian(task.training).mean_diagonal()
    f, g = (member.gradients(e, of).dense().double() for e, of in ((task.queries, "target"), (task.training, "loss")))
    wanted = -(f @ vectors / (values.abs() + ridge)) @ (g @ vectors).T / 40
    assert values.min() < -ridge  # a plain solve would differ
    assert relative(scores_of(method, member).numpy(), wanted.numpy()) < 1e-3


@pytest.mark.parametrize(
    "method", [ExplicitInfluence(3.0, layers="last"), *converged(damping=3.0, layers="last")], ids=name_of
)
def test_the_last_layer_alone_is_the_influence_with_everything_below_it_fixed(network, method):
    member = network("per-sample")
    last = member.last_layer()
    assert list(last.parameters) == ["5.weight", "5.bias"]
    wanted = scores_of(ExplicitInfluence(damping=3.0), last)
    assert relative(scores_of(method, member).numpy(), wanted.numpy()) < 0.02


def test_few_arnoldi_directions_are_the_largest_eigenpairs(network):
    member = network()
    state = ArnoldiInfluence(iterations=60, rank=5).fit(member)
    vectors = torch.linalg.eigh(member.hessian(member.task.training).explicit()).eigenvectors
    overlap = (state.directions @ vectors[:, -5:]).square().sum()
    assert overlap == pytest.approx(5, abs=0.01)
    assert (state.directions @ state.directions.T - torch.eye(5)).abs().max() < 1e-4


# On digits


@pytest.fixture
def longer(small):
    return replace(small, recipe=replace(small.recipe, epochs=10))


@pytest.mark.parametrize(
    "method",
    [ExplicitInfluence(), ConjugateGradientInfluence(), LissaInfluence(depth=50), ArnoldiInfluence()],
    ids=name_of,
)
def test_a_copy_of_the_query_in_the_training_set_ranks_first(view, longer, method):
    training, queries = (longer.load_data(None).training, longer.load_data(None).queries)
    training.inputs[PLANTED], training.labels[PLANTED] = queries.inputs[QUERY], queries.labels[QUERY]
    scores = execute(method, Independent(1), view(longer, TaskData(training, queries)))
    assert scores[QUERY].argmax() == PLANTED


@pytest.mark.parametrize("method", QUICK, ids=name_of)
@pytest.mark.parametrize(
    "ensemble", [None, Independent(2), Dropout(1, 2), Dropout(1, 2, mask="per-sample"), Lora(1, 2, rank=2, epochs=1)]
)
def test_every_solver_under_every_ensemble_is_deterministic_and_finite(view, method, ensemble):
    first, second = (execute(method, ensemble, view()) for _ in range(2))
    assert torch.equal(first, second)
    assert first.shape == (40, 120)
    assert first.isfinite().all()
    assert first.std() > 0


@pytest.mark.parametrize("method", QUICK, ids=name_of)
def test_blocks_of_queries_and_their_order_do_not_change_scores(view, small, small_data, monkeypatch, method):
    plain = execute(method, None, view())
    order = torch.arange(39, -1, -1)
    queries = Examples(small_data.queries.inputs[order], small_data.queries.labels[order], "queries")
    monkeypatch.setattr(definition, "_BLOCK_BYTES", 4 * 2410 * 7)
    turned = execute(method, None, view(small, TaskData(small_data.training, queries)))
    torch.testing.assert_close(turned, plain[order], rtol=1e-3, atol=1e-5 * plain.abs().max().item())


def test_what_fit_leaves_is_what_serving_needs(view):
    bytes_of = {}
    for method in QUICK:
        task = view()
        execute(method, None, task)
        bytes_of[name_of(method)] = task.meter.state_bytes
    assert bytes_of == {
        "Explicit": 4 * 330**2,
        "ConjugateGradient": 8,  # the ridge
        "Lissa": 16,  # ridge and scale
        "Arnoldi": 4 * (4 * 2410 + 120 * 4),
    }


# Conjugate gradients and Lanczos themselves


def test_conjugate_gradients_end_with_the_iterations_the_tolerance_or_negative_curvature():
    matrix = torch.diag(torch.tensor([1.0, 4.0, 9.0]))
    vectors = torch.tensor([[1.0, 1.0, 1.0], [0.0, 2.0, 0.0], [0.0, 0.0, 0.0]])
    products = []

    def times(v):
        products.append(len(v))
        return v @ matrix

    solved, residual = conjugate_gradients(times, vectors, 10, 1e-4)
    torch.testing.assert_close(solved, vectors / matrix.diagonal(), rtol=1e-4, atol=1e-6)
    assert products == [2, 1, 1]  # the second needs one product, the zero none
    assert residual.max() < 1e-4
    solved, residual = conjugate_gradients(times, vectors, 1, 0.0)
    assert 0.1 < residual[0] < 1
    indefinite = torch.diag(torch.tensor([1.0, -1.0]))
    solved, residual = conjugate_gradients(lambda v: v @ indefinite, torch.tensor([[0.0, 3.0], [2.0, 0.0]]), 5, 1e-4)
    torch.testing.assert_close(solved, torch.tensor([[0.0, 0.0], [2.0, 0.0]]))
    assert residual.tolist() == [1, 0]


def test_the_residual_that_was_reached_is_printed(view, capsys):
    execute(ConjugateGradientInfluence(iterations=1), None, view())
    found = capsys.readouterr().out
    assert found.startswith("conjugate gradients, member 0: relative residual 0.")
    assert found.endswith("over 40 queries\n")


@pytest.mark.parametrize("values", [[1.0] * 6, [0.0] * 6, [5.0, 5.0, 1.0, 0.0, 0.0, -2.0], [1e4, 1.0, 1e-2, 0, 0, 0]])
def test_lanczos_spans_everything_at_full_dimension_whatever_the_eigenvalues(values):
    turn = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(0))).Q
    matrix = turn @ torch.diag(torch.tensor(values)) @ turn.T
    small, basis = lanczos(lambda v: v @ matrix, 6, 6, torch.Generator().manual_seed(1), matrix)
    torch.testing.assert_close(basis @ basis.T, torch.eye(6), rtol=0, atol=1e-5)
    wanted = torch.tensor(values).double().sort().values
    close = 1e-5 * max(map(abs, values)) + 1e-12
    torch.testing.assert_close(torch.linalg.eigvalsh(small), wanted, rtol=1e-4, atol=close)


def test_fewer_examples_may_stand_for_the_training_set(view):
    for whole in QUICK:
        scores = execute(whole, None, view())
        some = execute(replace(whole, sample=60), None, view())
        assert 0.7 < correlation(scores, some) < 0.99999, name_of(whole)
        assert torch.equal(execute(replace(whole, sample=120), None, view()), scores), name_of(whole)


# What cannot be done says so


def test_a_singular_matrix_says_what_to_do(view):
    with pytest.raises(
        UsageError, match=r"matrix is singular at damping 0\. Give a larger one \(--set damping=0\.01\)"
    ):
        execute(ExplicitInfluence(damping=0.0), None, view())


def test_lissa_says_when_it_diverges(network):
    member = network()
    options = {"curvature": "hessian", "damping": 0.01, "depth": 600, "batch": 40}
    with pytest.raises(UsageError, match=r"LiSSA diverged at scale .* Give a larger batch than 40, a larger damping"):
        scores_of(LissaInfluence(**options), member)


def test_what_does_not_fit_is_declined(view, monkeypatch):
    monkeypatch.setitem(explicit.MOST_PARAMETERS, "gauss-newton", 2409)
    with pytest.raises(Declined, match=r"Hessian of 2,410 parameters takes 0\.0 GB; .*2,409 parameters.*layers=last"):
        execute(ExplicitInfluence(), None, view())
    monkeypatch.setattr(definition, "_MOST_BYTES", 100_000)
    with pytest.raises(Declined, match=r"gradients of 40 queries with respect to 2,410 parameters take 0\.0 GB"):
        execute(ConjugateGradientInfluence(), None, view())
    monkeypatch.setattr(arnoldi, "_MOST_BYTES", 100_000)
    with pytest.raises(Declined, match=r"200 directions of 2,410 parameters take 0\.0 GB; .*--set iterations=N"):
        execute(ArnoldiInfluence(), None, view())


class Attending(nn.Module):
    """Attention over the rows of an image."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.head = nn.Linear(8, 24), nn.Linear(64, 10)

    def forward(self, x):
        q, k, v = (t.unsqueeze(1) for t in self.qkv(x.view(-1, 8, 8)).chunk(3, -1))
        return self.head(nn.functional.scaled_dot_product_attention(q, k, v).flatten(1))


@pytest.mark.parametrize("method", [ExplicitInfluence(), *QUICK[1:]], ids=name_of)
def test_every_solver_runs_on_attention(view, small, method):
    scores = execute(method, None, view(replace(small, make_model=Attending)))
    assert scores.isfinite().all()
    assert scores.std() > 0


class Tied(nn.Module):
    """Two layers, one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(64, 64), nn.Linear(64, 64)
        self.last.weight = self.first.weight

    def forward(self, x):
        return self.last(self.first(x).relu())


def test_the_last_layer_is_declined_where_its_weight_is_another_s_too(view, small):
    for method in QUICK:
        with pytest.raises(Declined, match="last, shares its weight with another part of the model"):
            execute(replace(method, layers="last"), None, view(replace(small, make_model=Tied)))


def test_the_last_layer_of_a_model_without_one_is_declined(view, small):
    class NotLinear(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(64, 10))

        def forward(self, x):
            return x @ self.weight

    for method in QUICK:
        with pytest.raises(Declined, match="the model of small has no linear layer"):
            execute(replace(method, layers="last"), None, view(replace(small, make_model=NotLinear)))
