"""The sanity anchor: on a convex task, influence functions with the exact Hessian nearly predict retraining."""

from __future__ import annotations

import pytest
import torch

from tdabench.registry import find_task
from tdabench.results import evaluator_of
from tdabench.trainer import train_replicas

N_CLASSES = 10


@pytest.mark.slow
@pytest.mark.data
def test_exact_influence_functions_nearly_predict_the_retraining_of_logistic_regression(mnist):
    task = find_task("mnist-lr")
    data = task.data()
    everything = torch.ones(1, task.n_train, dtype=torch.bool)
    trained = train_replicas(task, data, everything, "attribution", 0, 0)
    weight, bias = trained["0.weight"][0], trained["0.bias"][0]
    training, queries = with_one(data.training.inputs), with_one(data.queries.inputs)  # [n, 785]
    probability = torch.softmax(data.training.inputs @ weight.T + bias, dim=1)  # [n_train, 10]
    errors = probability - torch.nn.functional.one_hot(data.training.labels, N_CLASSES)
    logits = (data.queries.inputs @ weight.T + bias).requires_grad_()
    targets = task.target.function(logits, data.queries.labels).sum()
    (at_logits,) = torch.autograd.grad(targets, logits)  # [n_queries, 10]
    factor = torch.linalg.cholesky(hessian(training, probability, task.recipe.weight_decay))
    solved = torch.cholesky_solve(outer(at_logits, queries).T, factor)  # [7850, n_queries]
    scores = -(outer(errors, training) @ solved).T.contiguous()  # [n_queries, n_train]

    found = evaluator_of("mnist-lr").evaluate(scores.numpy())
    print(f"LDS {found.lds:.4f}, 95 % interval {found.low:.4f} to {found.high:.4f}, ceiling {found.ceiling:.4f}")
    assert found.lds > 0.85


def with_one(inputs: torch.Tensor) -> torch.Tensor:
    return torch.cat([inputs, torch.ones(len(inputs), 1)], dim=1)


def outer(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    return (left.unsqueeze(2) * right.unsqueeze(1)).flatten(1)  # [n, 10 * 785]


def hessian(inputs: torch.Tensor, probability: torch.Tensor, weight_decay: float) -> torch.Tensor:
    """Return the Hessian of the mean cross-entropy with weight decay, class by class, ``[7850, 7850]``."""
    n, width = inputs.shape
    found = torch.zeros(N_CLASSES, width, N_CLASSES, width)
    for a in range(N_CLASSES):
        for b in range(a, N_CLASSES):
            weights = probability[:, a] * (float(a == b) - probability[:, b]) / n  # [n]
            found[a, :, b] = found[b, :, a] = (inputs * weights.unsqueeze(1)).T @ inputs
    square = found.view(N_CLASSES * width, -1)
    square.diagonal().add_(weight_decay)
    return square
