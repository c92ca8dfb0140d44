from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_evaluation import FakeTruth

from tdabench.errors import FileFormatError, UsageError
from tdabench.evaluation import Evaluator, compare
from tdabench.evidence import EVIDENCE_FILE, Evidence, read_evidence, whole, write_evidence
from tdabench.lds import average_ranks

N_SUBSETS, N_QUERIES, N_TRAIN = 40, 12, 30


def truth(seed: int = 0) -> FakeTruth:
    rng = np.random.default_rng(seed)
    masks = np.zeros((N_SUBSETS, N_TRAIN), dtype=bool)
    for row in masks:
        row[rng.permutation(N_TRAIN)[: N_TRAIN // 2]] = True
    outputs = rng.normal(size=(N_SUBSETS, 3, N_QUERIES)).astype(np.float32)
    return FakeTruth(masks, outputs, np.arange(2, N_QUERIES), np.arange(2), rng.random(N_TRAIN) < 0.3)


EVALUATOR = Evaluator.of(truth(), n_resamples=60)


def scores(seed: int, ties: bool) -> np.ndarray:
    rng = np.random.default_rng(seed)
    values = rng.integers(0, 2, (N_QUERIES, N_TRAIN)) if ties else rng.normal(size=(N_QUERIES, N_TRAIN))
    values[3] = 1  # a constant query
    return values.astype(np.float32)


@settings(max_examples=20)
@given(st.integers(0, 1000), st.booleans())
def test_kept_and_read_again_it_gives_what_the_scores_give(tmp_path_factory, seed, ties):
    folder = tmp_path_factory.mktemp("run")
    found = scores(seed, ties)
    write_evidence(folder, EVALUATOR.evidence(found), "0" * 64)
    again = EVALUATOR.weigh(read_evidence(folder, "0" * 64))
    whole_run = EVALUATOR.evaluate(found)
    assert again == whole_run
    assert again.draws.both.tobytes() == whole_run.draws.both.tobytes()
    assert again.constant_queries == 1
    assert compare(again, EVALUATOR.evaluate(-found)) == compare(whole_run, EVALUATOR.evaluate(-found))


@given(st.lists(st.integers(0, 5), min_size=1, max_size=300))
def test_ranks_are_kept_exactly_and_in_a_byte_where_that_holds_them(values):
    ranks = average_ranks(np.array(values, dtype=float))
    kept = whole(ranks)
    assert (kept / 2 == ranks).all()
    assert kept.dtype == (np.uint8 if len(values) < 128 else np.uint16)


def test_it_is_much_smaller_than_the_scores():
    rng = np.random.default_rng(0)
    kept = EVALUATOR.evidence(rng.normal(size=(N_QUERIES, N_TRAIN)).astype(np.float32))
    assert kept.sums.nbytes == N_SUBSETS * (N_QUERIES - 2)


def test_evidence_for_another_ground_truth_is_refused():
    kept = EVALUATOR.evidence(scores(0, ties=False))
    other = Evaluator.of(truth(1), n_resamples=60)
    with pytest.raises(UsageError, match=f"basis {kept.basis}, and the ground truth here has basis {other.basis}"):
        other.weigh(kept)
    with pytest.raises(UsageError, match=r"shape \[39, 10\], expected \[n_subsets, n_queries\] = \[40, 10\]"):
        EVALUATOR.weigh(replace(kept, sums=kept.sums[1:]))
    with pytest.raises(UsageError, match=rf"suspicions of shape \[3\], expected \[n_train\] = \[{N_TRAIN}\]"):
        EVALUATOR.weigh(replace(kept, suspicion=kept.sums[0, :3]))
    with pytest.raises(UsageError, match="The evidence has no suspicions, so how well"):
        EVALUATOR.weigh(replace(kept, suspicion=None))


RANKS = whole(average_ranks(np.random.default_rng(0).normal(size=(N_SUBSETS, N_QUERIES))))
DAMAGED = {
    "one number": lambda ranks: np.where(np.arange(ranks.size).reshape(ranks.shape) == 0, 3, ranks).astype(np.uint8),
    "an order without ranks": lambda ranks: ranks + 1,
    "too large": lambda ranks: ranks + 200,
    "floats": lambda ranks: (ranks / 2).astype(np.float32),
    "not numbers": lambda ranks: np.full(ranks.shape, np.nan),
    "signed": lambda ranks: ranks.astype(np.int8),
    "wide": lambda ranks: ranks.astype(np.uint16),
    "none": lambda ranks: ranks[:, :0],
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_numbers_that_are_no_ranks_are_refused(tmp_path, damage):
    def read(sums: np.ndarray, suspicion: np.ndarray | None) -> None:
        write_evidence(tmp_path, Evidence(sums, suspicion, "0"), "0" * 64)
        read_evidence(tmp_path, "0" * 64)

    read(RANKS, RANKS[:, 0])
    with pytest.raises(FileFormatError, match=f"{EVIDENCE_FILE} holds other numbers than ranks. Make it again"):
        read(DAMAGED[damage](RANKS), None)
    with pytest.raises(FileFormatError, match="holds other numbers than ranks"):
        read(RANKS, DAMAGED[damage](RANKS)[:, :1].ravel())
    with pytest.raises(FileFormatError, match="holds other numbers than ranks"):
        read(RANKS, RANKS)


def test_evidence_of_other_scores_or_of_another_kind_is_refused(tmp_path):
    with pytest.raises(FileFormatError, match="There is no file of evidence"):
        read_evidence(tmp_path, "0" * 64)
    write_evidence(tmp_path, EVALUATOR.evidence(scores(0, ties=False)), "0" * 64)
    with pytest.raises(FileFormatError, match="not made from the scores that its record was written for"):
        read_evidence(tmp_path, "1" * 64)
    (tmp_path / EVIDENCE_FILE).write_bytes(b"no")
    with pytest.raises(FileFormatError, match="not a readable file of evidence"):
        read_evidence(tmp_path, "0" * 64)
