from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from tdabench import Examples, Target, TaskData, UsageError
from tdabench.baselines.controls import GradientNorm, Random
from tdabench.baselines.grad_dot import GradCos, GradDot, TracIn
from tdabench.baselines.trak import Trak
from tdabench.ensembles import Checkpoints, Dropout, Independent, Lora
from tdabench.errors import Declined
from tdabench.execution import execute
from tdabench.trainer import target_outputs, train_replicas

METHODS = [GradDot(), GradCos(), TracIn(), Trak(64), Random(), GradientNorm()]
PLANTED, QUERY = 17, 3


def name_of(method) -> str:
    return type(method).__name__


def explicit_gradients(member, examples, of):
    """Return every example's gradient by one backward pass each, ``[n, P]``."""
    parameters = {k: p.clone().requires_grad_() for k, p in member.parameters.items()}
    function = member.loss if of == "loss" else member.target
    values = function(parameters, examples.all())
    rows = [torch.autograd.grad(v, list(parameters.values()), retain_graph=True) for v in values]
    return torch.stack([torch.cat([g.flatten() for g in row]) for row in rows])


@pytest.fixture
def planted(small, small_data):
    """Return the small task's data with training example 17 replaced by a copy of query 3."""
    training, queries = small.load_data(None).training, small_data.queries
    training.inputs[PLANTED], training.labels[PLANTED] = queries.inputs[QUERY], queries.labels[QUERY]
    return TaskData(training, queries)


@pytest.fixture
def longer(small):
    return replace(small, recipe=replace(small.recipe, epochs=10))


@pytest.mark.parametrize("mask", [None, (0, False)])
def test_grad_dot_and_grad_cos_are_products_of_explicit_gradients(view, mask):
    member = view().member(mask=mask)
    f = explicit_gradients(member, member.task.queries, "target")
    loss = explicit_gradients(member, member.task.training, "loss")
    dots = -f @ loss.T
    cosines = dots / (f.norm(dim=1)[:, None] * loss.norm(dim=1))
    torch.testing.assert_close(GradDot().attribute(member, None), dots, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(GradCos().attribute(member, None), cosines, rtol=1e-4, atol=1e-5)


def test_gradient_norm_is_the_norm_for_every_query(view):
    member = view().member()
    expected = explicit_gradients(member, member.task.training, "loss").norm(dim=1)
    torch.testing.assert_close(execute(GradientNorm(), None, view()), expected.expand(40, -1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", [GradDot(), GradCos(), Trak(256)], ids=name_of)
def test_a_copy_of_the_query_in_the_training_set_ranks_first(view, longer, planted, method):
    scores = execute(method, Independent(3), view(longer, planted))
    assert scores[QUERY].argmax() == PLANTED


def test_a_copy_of_the_query_ranks_first_over_checkpoints(view, longer, planted):
    assert execute(TracIn(), Checkpoints(3, 4), view(longer, planted))[QUERY].argmax() == PLANTED


def test_removing_the_copy_lowers_the_target(longer, planted):
    """Checked by retraining: it is what the scores above predict. The sign must not depend on the method's author."""
    masks = torch.ones(2, longer.n_train, dtype=torch.bool)
    masks[0, PLANTED] = False
    other = next(i for i in range(longer.n_train) if planted.training.labels[i] != planted.queries.labels[QUERY])
    masks[1, other] = False
    outputs = [
        target_outputs(longer, planted, train_replicas(longer, planted, masks, "copy", seed))[:, QUERY]
        for seed in range(10)
    ]
    without, with_copy = torch.stack(outputs).mean(0)
    assert without < with_copy


def test_removing_what_scores_high_lowers_the_target_and_what_scores_low_raises_it(view, longer, small_data):
    """All known signs at once: the groups with the highest and lowest sums of scores, taken out by retraining."""
    scores = execute(Trak(256), Independent(5), view(longer, small_data))
    order = scores[QUERY].argsort()
    masks = torch.ones(2, longer.n_train, dtype=torch.bool)
    masks[0, order[-12:]] = False
    masks[1, order[:12]] = False
    outputs = [
        target_outputs(longer, small_data, train_replicas(longer, small_data, masks, "groups", seed))[:, QUERY]
        for seed in range(10)
    ]
    without_best, without_worst = torch.stack(outputs).mean(0)
    assert without_best < without_worst - 0.3


def test_two_classes_with_a_flipped_label_flip_the_sign_of_grad_dot(view, small, small_data):
    """With the loss linear in the label's sign, -f and f: the score of the example changes its sign and no other."""

    def signed(logits, labels):
        return (1 - 2 * labels) * (logits[:, 0] - logits[:, 1])

    labels = [(e.labels % 2) for e in (small_data.training, small_data.queries)]
    data = TaskData(
        Examples(small_data.training.inputs, labels[0], "train"),
        Examples(small_data.queries.inputs, labels[1], "queries"),
    )
    task = view(small, data)
    task.loss_function = signed
    member = task.member()
    before = GradDot().attribute(member, None)
    member.task.training.labels[PLANTED] = 1 - member.task.training.labels[PLANTED]
    after = GradDot().attribute(member, None)
    torch.testing.assert_close(after[:, PLANTED], -before[:, PLANTED])
    others = torch.arange(120) != PLANTED
    torch.testing.assert_close(after[:, others], before[:, others])


def test_a_wrong_label_makes_an_example_harmful_to_queries_of_its_class(view, longer, small):
    data = small.load_data(None)
    like = (data.queries.labels == data.training.labels[PLANTED]).nonzero().flatten()
    right = execute(GradDot(), Independent(3), view(longer, data))[like, PLANTED].mean()
    wrong_data = small.load_data(None)
    wrong_data.training.labels[PLANTED] = (wrong_data.training.labels[PLANTED] + 1) % 10
    wrong = execute(GradDot(), Independent(3), view(longer, wrong_data, store="wrong"))[like, PLANTED].mean()
    assert right > 0 > wrong


@pytest.mark.parametrize("ridge", [0.01, 1.0])
def test_trak_equals_its_formula_in_numpy_given_the_projected_features(view, ridge):
    """Park et al. 2023, equation 17, with a ridge relative to the kernel's mean diagonal."""
    task, method = view(), Trak(32, ridge=ridge)
    member = task.member()
    phi, query = (
        member.gradients(e, "target").project(32, "trak", 0, 0).double().numpy() for e in (task.training, task.queries)
    )
    p = member.logits(member.parameters, task.training.all()).softmax(1).double().numpy()
    q = 1 - p[np.arange(120), task.training.labels.numpy()]
    kernel = phi.T @ phi
    kernel += ridge * np.trace(kernel) / 32 * np.eye(32)
    expected = query @ np.linalg.inv(kernel) @ phi.T * q
    np.testing.assert_allclose(
        execute(method, None, task).numpy(), expected, rtol=1e-3, atol=1e-5 * abs(expected).max()
    )


def test_trak_s_projection_approaches_the_exact_kernel(view):
    """With a ridge that drowns the kernel, TRAK is a projected dot product of gradients times Q."""
    task = view()
    member = task.member()
    f = explicit_gradients(member, task.queries, "target")
    g = explicit_gradients(member, task.training, "target")
    expected = f @ g.T * (1 - member.right_probability(task.training))
    scores = execute(Trak(2048, ridge=1e4), None, task)
    assert torch.corrcoef(torch.stack([scores.flatten(), expected.flatten()]))[0, 1] > 0.97


def test_trak_is_declined_where_the_target_has_no_probability(small, small_data, view):
    task = view(replace(small, target=Target("first", lambda logits, _: logits[:, 0])), small_data)
    with pytest.raises(Declined, match="the target of small has no probability of the right answer"):
        execute(Trak(32), None, task)


def test_trak_says_what_to_do_about_a_singular_kernel(view):
    with pytest.raises(UsageError, match=r"kernel is singular at ridge 0: give a larger one .*projection than 512"):
        execute(Trak(512, ridge=0.0), None, view())


def test_random_is_reproducible_per_seed_and_differs_between_members(view):
    a, again, other_seed = (execute(Random(), None, view(seed=s)) for s in (0, 0, 1))
    assert torch.equal(a, again)
    assert not torch.equal(a, other_seed)
    first, second = (Random().attribute(view().member(i), None) for i in (0, 1))
    assert not torch.equal(first, second)
    assert abs(first.mean()) < 0.05
    assert first.std() == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("method", METHODS, ids=name_of)
@pytest.mark.parametrize(
    "ensemble",
    [
        None,
        Independent(2),
        Dropout(1, 2),
        Dropout(1, 2, mask="per-sample"),
        Lora(1, 2, rank=2, epochs=1),
        Checkpoints(1, 2),
    ],
)
def test_every_method_under_every_ensemble_is_deterministic_and_finite(view, method, ensemble):
    first, second = (execute(method, ensemble, view()) for _ in range(2))
    assert torch.equal(first, second)
    assert first.shape == (40, 120)
    assert first.dtype == torch.float32
    assert first.isfinite().all()


def test_the_order_of_the_queries_only_reorders_the_rows(view, small, small_data):
    order = torch.arange(39, -1, -1)
    queries = Examples(small_data.queries.inputs[order], small_data.queries.labels[order], "queries")
    for method in (GradDot(), GradCos(), Trak(32)):
        plain = execute(method, None, view())
        turned = execute(method, None, view(small, TaskData(small_data.training, queries)))
        torch.testing.assert_close(turned, plain[order], rtol=1e-4, atol=1e-5)
