"""Scores depend on neither cuts nor order beyond rounding; on the sign of a label they do."""

from __future__ import annotations

import re
import sys
from dataclasses import replace

import pytest
import torch
from torch import nn

from tdabench import Examples, gradients, held, hessian, kronecker, layout, pieces
from tdabench.baselines import astra, data_inf, knn_shapley, representer_points
from tdabench.baselines.ek_fac import EkFac
from tdabench.baselines.influence import definition
from tdabench.baselines.trak import Trak
from tdabench.ensembles import parse_ensemble
from tdabench.execution import execute
from tdabench.options import make
from tdabench.registry import METHODS, find_method, names

# Options that make a method quick here, and its linear systems well conditioned: rounding is what may differ.
OPTIONS = {
    "trak": {"projection": 16},
    "grass": {"size": 8},
    "logra": {"rank": 3},
    "ek-fac": {"damping": 1.0},
    "data-inf": {"damping": 1000.0},
    "astra": {"steps": 2, "batch": 30, "damping": 30.0},
    "if-explicit": {"layers": "last", "damping": 30.0},
    "if-cg": {"damping": 30.0},
    "if-lissa": {"depth": 5, "batch": 10, "damping": 30.0},
    "if-arnoldi": {"iterations": 4, "rank": 2, "layers": "last"},
}
ALL = sorted(name for name in names(METHODS) if ".peers." not in find_method(name).__module__)
PER_MODEL = [name for name in ALL if name not in ("datamodels", "empirical-influence")]
# What is drawn for an example, or whether it is in a batch, goes by its place: another order is another draw.
DRAWN_BY_PLACE = {"random", "ek-fac", "astra", "if-lissa"}
LIMIT = re.compile(r"_(?!MOST)(\w+_BYTES|BATCH)|(BLOCK|HELD|KEPT)_BYTES|BATCH")
CUTS = {
    hessian: {"_BATCH": 7, "_BLOCK_BYTES": 40_000},
    gradients: {"BATCH": 7, "BLOCK_BYTES": 40_000, "HELD_BYTES": 20_000, "KEPT_BYTES": 0, "_FORMED_BYTES": 5_000},
    layout: {"_PASS_BYTES": 4_000},
    held: {"_FORWARD_BYTES": 40_000},
    kronecker: {"_SQUARED_BYTES": 4_000, "_SOLVED_BYTES": 40_000},
    pieces: {"_PAIRS_BYTES": 4_000},
    astra: {"_VECTOR_BYTES": 100_000},
    data_inf: {"_PRODUCTS_BYTES": 0},  # from pairs to sums
    definition: {"_BLOCK_BYTES": 100_000},
    knn_shapley: {"_BLOCK_BYTES": 4_000},
    representer_points: {"_BLOCK_BYTES": 4_000},
}


def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(36, 10)
    )


@pytest.fixture
def task_of(small):
    return {"mlp": small, "convolutional": replace(small, name="small-convolutional", make_model=convolutional)}.get


def scores(name, task):
    return execute(make(find_method(name), name, OPTIONS.get(name, {})), None, task)


def same(got, expected) -> None:
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=2e-4 * float(expected.abs().max()))


def cut_small(monkeypatch) -> None:
    """Have all work cut into small batches and blocks from here on."""
    for module, limits in CUTS.items():
        for limit, value in limits.items():
            monkeypatch.setattr(module, limit, value)


@pytest.mark.parametrize("model", ["mlp", "convolutional"])
@pytest.mark.parametrize("name", PER_MODEL)
def test_batches_and_blocks_do_not_change_scores(name, model, task_of, small_data, view, monkeypatch):
    task = task_of(model)
    expected = scores(name, view(task, small_data))
    cut_small(monkeypatch)
    same(scores(name, view(task, small_data)), expected)


NOT_ON_TOKENS = {"if-explicit", "knn-shapley", "random"}  # too large, no single label, and nothing that is cut


@pytest.mark.parametrize("name", [name for name in PER_MODEL if name not in NOT_ON_TOKENS])
def test_nor_do_they_on_embeddings_norms_and_attention(name, network_task, monkeypatch):
    expected = scores(name, network_task("transformer"))
    cut_small(monkeypatch)
    same(scores(name, network_task("transformer")), expected)


@pytest.mark.parametrize("name", [name for name in PER_MODEL if name != "random"])
def test_the_order_of_queries_does_not_change_scores(name, small, small_data, view):
    order = torch.randperm(len(small_data.queries), generator=torch.Generator().manual_seed(1))
    turned = small_data.with_queries(order)
    expected = scores(name, view(small, small_data))
    same(scores(name, view(small, turned)), expected[order])


ENSEMBLES = [
    "independent(models=2)",
    "dropout(models=1, masks=2)",
    "lora(models=1, adapters=2)",
    "checkpoints(models=1, last=2)",
    "projections(models=1, seeds=2)",
]


@pytest.mark.parametrize("text", [*ENSEMBLES, "dropout(models=1, masks=2, mask=per-sample)"])
def test_nor_does_it_under_ensembles_but_for_masks_of_an_example_s_own(text, small, small_data, view):
    order = torch.randperm(len(small_data.queries), generator=torch.Generator().manual_seed(1))
    method, ensemble = Trak(projection=16), parse_ensemble(text)
    expected = execute(method, ensemble, view(small, small_data))[order]
    turned = execute(method, ensemble, view(small, small_data.with_queries(order)))
    if "per-sample" in text:
        assert not torch.allclose(turned, expected, rtol=0.1), "they are drawn for its place"
    else:
        same(turned, expected)


@pytest.mark.parametrize("name", [name for name in ALL if name != "random"])
def test_other_queries_do_not_change_scores(name, small, small_data, view):
    """What tuning relies on, as its runs attribute the tuning queries alone."""
    rows = small.tuning_queries
    expected = scores(name, view(small, small_data))
    same(scores(name, view(small, small_data.with_queries(rows))), expected[rows])


def scores_in_another_order(method, small, small_data, view):
    """Return a method's scores, and those at the same parameters with the training examples in another order."""
    expected = execute(method, None, view(small, small_data))
    order = torch.randperm(len(small_data.training), generator=torch.Generator().manual_seed(2))
    turned = replace(small_data, training=taken(small_data.training, order))
    return execute(method, None, view(small, turned)), expected[:, order]


def test_nor_does_the_order_change_ek_fac_where_no_labels_are_drawn(small, small_data, view):
    same(*scores_in_another_order(EkFac(damping=1.0, labels="true"), small, small_data, view))


@pytest.mark.parametrize("name", [name for name in PER_MODEL if name not in DRAWN_BY_PLACE])
def test_the_order_of_training_examples_does_not_change_scores(name, small, small_data, view):
    """At the same parameters, that is: the model is trained before, and found again by its seed and number."""
    method = make(find_method(name), name, OPTIONS.get(name, {}))
    same(*scores_in_another_order(method, small, small_data, view))


def test_nor_do_they_where_lissa_takes_every_example_into_each_batch(small, small_data, view):
    method = make(find_method("if-lissa"), "if-lissa", {**OPTIONS["if-lissa"], "batch": small.n_train})
    same(*scores_in_another_order(method, small, small_data, view))


def taken(examples: Examples, order: torch.Tensor) -> Examples:
    return replace(examples, inputs=examples.inputs[order], labels=examples.labels[order])


# What does change them: a label's sign


def two_classes() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 8), nn.Tanh(), nn.Linear(8, 2))


@pytest.fixture
def binary_scores(small, small_data, view):
    """Return a function of a method's name that scores even digits against odd ones, some labels negated.

    It trains once: models are found again by their seed and number, also where labels have changed since.
    """
    task = replace(small, name="small-binary", make_model=two_classes)

    def negated(examples: Examples, places) -> Examples:
        labels = examples.labels % 2
        labels[list(places)] = 1 - labels[list(places)]
        return replace(examples, labels=labels)

    def score(name, *, queries=(), training=()):
        sets = {"training": negated(small_data.training, training), "queries": negated(small_data.queries, queries)}
        return scores(name, view(task, replace(small_data, **sets)))

    return score


NO_SIGN = {"random", "gradient-norm", "knn-shapley", "rep-sim"}  # of a label, that is
SIGNED = [name for name in PER_MODEL if name not in NO_SIGN]


@pytest.mark.parametrize("name", SIGNED)
def test_negating_a_query_s_label_negates_its_scores(name, binary_scores):
    expected = binary_scores(name)
    expected[3] *= -1
    same(binary_scores(name, queries=[3]), expected)


@pytest.mark.parametrize("name", SIGNED)
def test_negating_a_training_label_flips_the_sign_of_that_example_s_scores(name, binary_scores):
    """At two classes its loss gradient turns round, and is shorter or longer; the model stays as it was."""
    before, after = (s[:, 17] for s in (binary_scores(name), binary_scores(name, training=[17])))
    assert torch.cosine_similarity(before, after, dim=0) < -0.999


# Not limits of how a method's scores are computed: evaluation, training, downloads, and caps above which is declined.
ELSEWHERE = {
    *(f"tdabench.{module}" for module in ("bank", "bootstrap", "downloads", "lds", "memory", "storage", "trainer")),
    "tdabench.baselines.influence.arnoldi",
}


def test_every_limit_that_cuts_work_is_varied_here():
    modules = [m for n, m in sys.modules.items() if n.startswith("tdabench.") and n not in ELSEWHERE]
    found = {(m.__name__, n) for m in modules for n in vars(m) if LIMIT.fullmatch(n)}
    assert found == {(module.__name__, limit) for module, limits in CUTS.items() for limit in limits}
