from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from tdabench.mislabels import mislabel_auroc, suspicion_ranks


def auroc(scores, wrong):
    return mislabel_auroc(suspicion_ranks(scores), wrong)


@given(st.integers(0, 1000), st.booleans())
def test_it_is_the_area_under_the_roc_curve_of_the_negated_mean_score(seed, ties):
    random = np.random.default_rng(seed)
    wrong = random.random(40) < 0.3
    wrong[:2] = True, False
    scores = random.integers(-2, 3, (6, 40)) if ties else random.normal(size=(6, 40))
    expected = roc_auc_score(wrong, -scores.mean(axis=0))
    assert auroc(scores.astype(np.float32), wrong) == pytest.approx(expected)


def test_examples_that_lower_the_target_are_suspected():
    wrong = np.array([True, False, False, True])
    harmful = np.where(wrong, -1.0, 1.0)[None].repeat(3, axis=0)
    assert auroc(harmful, wrong) == 1.0
    assert auroc(-harmful, wrong) == 0.0
    assert auroc(0 * harmful, wrong) == 0.5
