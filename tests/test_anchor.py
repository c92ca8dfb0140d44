"""The sanity anchor: on a convex task, influence functions with the exact Hessian nearly predict retraining."""

from __future__ import annotations

import pytest

from tdabench.baselines.influence.explicit import ExplicitInfluence
from tdabench.execution import execute
from tdabench.registry import find_task
from tdabench.results.reading import evaluator_of


@pytest.mark.slow
@pytest.mark.data
def test_exact_influence_functions_nearly_predict_the_retraining_of_logistic_regression(mnist, view):
    task = find_task("mnist-lr")
    mine = view(task)
    member = mine.member()
    damping = task.recipe.weight_decay / member.hessian(mine.training).mean_diagonal()
    scores = execute(ExplicitInfluence(damping=damping), None, mine)

    found = evaluator_of("mnist-lr").evaluate(scores.numpy())
    interval = f"95 % interval {found.low:.4f} to {found.high:.4f}"
    print(f"damping {damping:.3g}: LDS {found.lds:.4f}, {interval}, ceiling {found.ceiling:.4f}")
    assert found.lds > 0.88
