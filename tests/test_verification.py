from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tdabench import provenance, verification
from tdabench.errors import GroundTruthError, UsageError
from tdabench.ground_truth import GroundTruth, read_ground_truth, write_ground_truth
from tdabench.retraining import retrain, rounding_difference
from tdabench.task import TaskData
from tdabench.verification import (
    OTHER_MACHINE_TOLERANCE,
    SAME_MACHINE_TOLERANCE,
    Check,
    choose_replicas,
    tolerance,
    verify,
)

ALL = 32


@pytest.fixture
def forge(small, small_truth_folder, tmp_path):
    """Write changed arrays with a manifest that matches them, and return the folder."""
    truth = read_ground_truth(small, small_truth_folder)

    def write(change):
        masks, outputs = truth.masks.copy(), truth.outputs.copy()
        change(masks, outputs)
        write_ground_truth(tmp_path / "forged", masks, outputs, truth.manifest.model_dump())
        return tmp_path / "forged"

    return write


def failed(task, folder) -> set[tuple[int, int]]:
    return {(c.subset, c.seed) for c in verify(task, ALL, folder=folder) if not c.passed}


def test_honest_ground_truth_passes(small, small_truth_folder):
    seen = []
    checks = verify(small, ALL, on_check=seen.append)
    assert len(checks) == ALL
    assert seen == checks
    assert all(c.passed and c.difference < 1e-5 for c in checks)


def test_the_number_of_threads_is_that_of_the_build_and_given_back(small, small_truth_folder, monkeypatch):
    seen = []
    real = verification.retrain
    monkeypatch.setattr(verification, "retrain", lambda *a: seen.append(torch.get_num_threads()) or real(*a))
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        verify(small, 2)
        assert set(seen) == {1}
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_the_replicas_of_two_builders_are_retrained_as_each_of_them_did(
    small, small_data, small_truth_folder, tmp_path, monkeypatch
):
    """The first machine trained seeds 0 and 1 in fours, the second seeds 2 and 3 in groups of one, on three threads."""
    truth = read_ground_truth(small, small_truth_folder)
    outputs, builders = truth.outputs.copy(), np.zeros((8, 4), dtype=np.uint8)
    builders[:, 2:] = 1
    for seed in range(4):
        outputs[:, seed] = retrain(small, small_data, seed, range(8), 4 if seed < 2 else 1).numpy()
    facts = truth.manifest.model_dump()
    # A build chooses its groups by measurement, and on a busy machine it may have chosen one.
    first = {**facts["built_on"][0], "replicas_per_group": 4}
    second = {**first, "replicas_per_group": 1, "threads_per_worker": 3}
    write_ground_truth(
        tmp_path / "two", truth.masks, outputs, {**facts, "built_on": [first, second]}, builders=builders
    )
    seen = set()

    def watch(task, data, seed, subsets, group):
        seen.add((seed, group, torch.get_num_threads()))
        return retrain(task, data, seed, subsets, group)

    monkeypatch.setattr(verification, "retrain", watch)
    checks = verify(small, ALL, folder=tmp_path / "two")
    assert [c.difference for c in checks if c.seed < 2] == [0.0] * 16
    assert all(c.passed for c in checks)
    group = first["replicas_per_group"]
    assert seen == {(0, group, 1), (1, group, 1), (2, 1, 3), (3, 1, 3)}


def test_the_tolerance_is_that_of_each_replica_s_builder(small, small_truth_folder, tmp_path):
    truth = read_ground_truth(small, small_truth_folder)
    facts = truth.manifest.model_dump()
    (first,) = facts["built_on"]
    builders = np.arange(32).reshape(8, 4) % 2
    other = {**first, "cpu": "another processor"}
    write_ground_truth(
        tmp_path / "two", truth.masks, truth.outputs, {**facts, "built_on": [first, other]}, builders=builders
    )
    checks = verify(small, ALL, folder=tmp_path / "two")
    expected = (SAME_MACHINE_TOLERANCE, OTHER_MACHINE_TOLERANCE)
    assert all(c.tolerance == expected[builders[c.subset, c.seed]] for c in checks)


def test_within_a_wide_tolerance_a_row_must_be_of_its_own_seed(small, small_truth_folder, tmp_path, monkeypatch):
    """One seed copied into all would have a ceiling of 1."""
    truth = read_ground_truth(small, small_truth_folder)
    facts = truth.manifest.model_dump()
    facts["built_on"][0]["cpu"] = "another processor"
    monkeypatch.setattr(verification, "OTHER_MACHINE_TOLERANCE", 10.0)
    monkeypatch.setattr(verification, "LARGEST_TOLERANCE", 10.0)
    write_ground_truth(tmp_path / "honest", truth.masks, truth.outputs, facts)
    honest = verify(small, ALL, folder=tmp_path / "honest")
    assert all(c.passed and c.difference < 1e-5 < c.other_seed for c in honest)
    copied = truth.outputs[:, :1].repeat(4, axis=1)
    write_ground_truth(tmp_path / "copied", truth.masks, copied, facts)
    checks = verify(small, ALL, folder=tmp_path / "copied")
    assert all(c.difference < c.tolerance for c in checks)
    assert {c.seed for c in checks if c.passed} == {0}


def test_a_training_that_its_seed_does_not_change_agrees_with_all_rows():
    same = Check(0, 1, difference=1e-6, tolerance=0.25, other_seed=1e-6)
    assert same.passed
    assert not replace(same, difference=0.1, other_seed=0.1).passed


def test_a_retraining_that_diverges_here_is_no_agreement(small, small_truth_folder, monkeypatch):
    monkeypatch.setattr(verification, "retrain", lambda *_: torch.full((1, 40), torch.nan))
    (check,) = verify(small, 1)
    assert not check.passed


def test_a_task_that_needs_a_gpu_is_refused_on_a_cpu_once_its_files_are_checked(small, small_truth_folder, monkeypatch):
    monkeypatch.setattr(verification, "retrain", lambda *_: pytest.fail("retrained"))
    huge = replace(small, needs_cuda=True)
    with pytest.raises(UsageError, match=r"files of small are whole.*`tdabench ground-truth verify .*--device cuda`"):
        verify(huge, 1, folder=small_truth_folder)
    with pytest.raises(GroundTruthError, match="masks"):
        verify(replace(huge, plan=replace(small.plan, n_subsets=9)), 1, folder=small_truth_folder)


def test_replicas_are_retrained_on_the_device_that_is_asked_for(small, small_truth_folder, monkeypatch):
    asked = []
    monkeypatch.setattr(TaskData, "to", lambda data, device: asked.append(device) or data)
    (check,) = verify(replace(small, needs_cuda=True), 1, folder=small_truth_folder, device="cuda")
    assert check.passed
    assert asked == ["cuda"]


WRONG = torch.arange(120) % 10 == 0


@pytest.mark.parametrize("shipped", [None, ~WRONG, WRONG.roll(1)], ids=["none", "all-others", "shifted"])
def test_wrong_labels_that_are_not_the_data_s_are_named_before_anything_is_retrained(
    small, small_truth_folder, tmp_path, monkeypatch, shipped
):
    truth = read_ground_truth(small, small_truth_folder)
    labels = None if shipped is None else shipped.numpy()
    write_ground_truth(tmp_path / "noisy", truth.masks, truth.outputs, truth.manifest.model_dump(), mislabelled=labels)
    monkeypatch.setattr(verification, "retrain", lambda *_: pytest.fail("retrained"))
    noisy = replace(small, mislabelled=lambda _: WRONG)
    with pytest.raises(GroundTruthError, match="wrong labels that the ground truth of small names are not the ones"):
        verify(noisy, 1, folder=tmp_path / "noisy")


def test_wrong_labels_that_the_task_does_not_know_are_named_and_its_own_pass(small, small_truth_folder, tmp_path):
    truth = read_ground_truth(small, small_truth_folder)
    facts = truth.manifest.model_dump()
    write_ground_truth(tmp_path / "noisy", truth.masks, truth.outputs, facts, mislabelled=WRONG.numpy())
    with pytest.raises(GroundTruthError, match="wrong labels"):
        verify(small, 1, folder=tmp_path / "noisy")
    (check,) = verify(replace(small, mislabelled=lambda _: WRONG), 1, folder=tmp_path / "noisy")
    assert check.passed


def test_what_rounding_changes_is_measured_and_small_for_a_small_task(small, small_data, small_truth_folder):
    truth = read_ground_truth(small, small_truth_folder)
    (builder,) = truth.manifest.built_on
    state, before = torch.random.get_rng_state(), torch.get_num_threads()
    difference = rounding_difference(small, small_data, builder.replicas_per_group)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.get_num_threads() == before
    assert difference / truth.manifest.subset_spread == pytest.approx(truth.manifest.rounding_difference)
    assert 0 < truth.manifest.rounding_difference < 1e-3


def test_swapped_rows_fail_and_only_they(small, forge):
    def swap(_, outputs):
        outputs[[2, 5], 1] = outputs[[5, 2], 1]

    assert failed(small, forge(swap)) == {(2, 1), (5, 1)}


def test_a_row_of_another_seed_fails(small, forge):
    def copy(_, outputs):
        outputs[3, 0] = outputs[3, 2]

    assert failed(small, forge(copy)) == {(3, 0)}


def test_a_row_shifted_by_a_little_fails(small, small_truth_folder, forge):
    spread = read_ground_truth(small, small_truth_folder).manifest.subset_spread

    def shift(_, outputs):
        outputs[4, 3] += 0.01 * spread

    assert failed(small, forge(shift)) == {(4, 3)}


def test_outliers_cannot_be_hidden_behind_a_forged_spread(small, forge):
    """One huge row widens the spread and with it the tolerance, but fails itself."""

    def inflate(_, outputs):
        outputs[0, 0] += 1e4

    assert (0, 0) in failed(small, forge(inflate))


def test_changed_masks_are_named_although_the_manifest_matches_them(small, forge):
    def move_one(masks, _):
        kept, dropped = np.flatnonzero(masks[6])[0], np.flatnonzero(~masks[6])[0]
        masks[6, [kept, dropped]] = False, True

    with pytest.raises(GroundTruthError, match=r"masks of small are not the ones its seeds give .*subset 6"):
        verify(small, 1, folder=forge(move_one))


def test_another_number_of_subsets_is_named(small, small_truth_folder):
    larger = replace(small, plan=replace(small.plan, n_subsets=9))
    with pytest.raises(GroundTruthError, match=r"have shape \(8, 120\), its plan gives \(9, 120\)"):
        verify(larger, 1, folder=small_truth_folder)


def test_the_tolerance_is_tight_only_where_replicas_train_as_they_did(small, small_truth_folder, monkeypatch):
    truth = read_ground_truth(small, small_truth_folder)
    (builder,) = truth.manifest.built_on
    assert tolerance(small, truth, builder) == SAME_MACHINE_TOLERANCE
    assert tolerance(small, truth, builder, "cuda") == OTHER_MACHINE_TOLERANCE
    elsewhere = builder.model_copy(update={"device": "an accelerator"})
    assert tolerance(small, truth, elsewhere) == OTHER_MACHINE_TOLERANCE
    assert tolerance(small, truth, builder.model_copy(update={"precision": "bfloat16"})) is None
    monkeypatch.setattr(verification.provenance, "cpu_name", lambda: "another processor")
    assert tolerance(small, truth, builder) == OTHER_MACHINE_TOLERANCE
    monkeypatch.undo()
    monkeypatch.setattr(provenance, "packages", lambda: {"torch": "0.1"})
    assert tolerance(small, truth, builder) == OTHER_MACHINE_TOLERANCE


def test_the_loose_tolerance_grows_with_what_rounding_changes_but_tells_replicas_apart(
    small, small_truth_folder, monkeypatch
):
    truth = read_ground_truth(small, small_truth_folder)
    (builder,) = truth.manifest.built_on
    monkeypatch.setattr(verification.provenance, "cpu_name", lambda: "another processor")

    def with_rounding(value: float) -> float | None:
        manifest = truth.manifest.model_copy(update={"rounding_difference": value})
        return tolerance(small, replace(truth, manifest=manifest), builder)

    assert [with_rounding(x) for x in (0.0, 0.1, 0.3, 0.5, 0.51)] == [0.25, 0.25, 0.6, 1.0, None]


@pytest.fixture
def amplified(small, small_truth_folder, tmp_path):
    """Return a factory of ground truth from another processor, in which rounding moves rows as far as it likes."""
    truth = read_ground_truth(small, small_truth_folder)
    facts = truth.manifest.model_dump()
    facts |= {"rounding_difference": 2.0, "built_on": [{**facts["built_on"][0], "cpu": "another processor"}]}

    def write(outputs):
        write_ground_truth(tmp_path / "amplified", truth.masks, outputs, facts)
        return tmp_path / "amplified"

    return write


def test_where_rounding_moves_rows_too_far_they_are_known_by_their_subset(small, small_truth_folder, amplified):
    """Every shipped row is that of the next seed: as another draw with the same training set would be."""
    folder = amplified(np.roll(read_ground_truth(small, small_truth_folder).outputs, 1, axis=1))
    checks = verify(small, ALL, folder=folder)
    assert min(c.difference for c in checks) > SAME_MACHINE_TOLERANCE
    assert {c.places.last for c in checks} == {1}
    assert sum(c.passed for c in checks) >= 20, "by chance it would be one of 64"


def test_rows_of_other_subsets_are_not_known_again(small, small_truth_folder, amplified):
    folder = amplified(np.roll(read_ground_truth(small, small_truth_folder).outputs, 1, axis=0))
    assert not any(c.passed for c in verify(small, ALL, folder=folder))


def test_the_shipped_row_itself_must_be_like_the_other_seeds_of_its_subset(small, small_truth_folder, amplified):
    """One seed of four holds rows of other subsets; the mean over seeds, with it, still knows the retrained rows."""
    outputs = read_ground_truth(small, small_truth_folder).outputs.copy()
    outputs[:, 2] = np.roll(outputs[:, 2], 1, axis=0)
    checks = verify(small, ALL, folder=amplified(outputs))
    forged = [c for c in checks if c.seed == 2]
    assert sum(c.places.retrained == 1 for c in forged) >= 6
    assert not any(c.passed for c in forged)
    assert sum(c.passed for c in checks if c.seed != 2) >= 16


def test_a_row_farther_away_than_another_seed_s_disagrees(small, small_truth_folder, amplified):
    truth = read_ground_truth(small, small_truth_folder)
    outputs = truth.outputs.copy()
    outputs[3, 1] += 4 * truth.manifest.subset_spread  # alike in every respect but the level
    (check,) = (c for c in verify(small, ALL, folder=amplified(outputs)) if (c.subset, c.seed) == (3, 1))
    assert check.places.passed
    assert not check.passed


def test_with_one_seed_the_retrained_row_is_held_against_the_shipped_one(small, small_truth_folder):
    truth = read_ground_truth(small, small_truth_folder)
    one = replace(truth, outputs=truth.outputs[:, :1])
    check = verification._compare(one, None, 5, 0, truth.outputs[5, 0])
    assert (check.places.retrained, check.places.shipped, check.passed) == (1, 1, True)
    assert not verification._compare(one, None, 5, 0, truth.outputs[4, 0]).passed


def test_a_retraining_that_diverges_is_like_no_subset(small, small_truth_folder, amplified, monkeypatch):
    folder = amplified(read_ground_truth(small, small_truth_folder).outputs)
    monkeypatch.setattr(verification, "retrain", lambda *_: torch.full((1, 40), torch.nan))
    (check,) = verify(small, 1, folder=folder)
    assert (check.places.retrained, check.passed) == (8, False)


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 100), st.integers(0, 5))
def test_chosen_replicas_are_distinct_and_exist(n_subsets, n_seeds, n, seed):
    truth = GroundTruth(None, np.zeros((n_subsets, n_seeds, 1)), None, None, None, None)
    chosen = choose_replicas(truth, n, seed)
    assert len(set(chosen)) == len(chosen) == min(n, n_subsets * n_seeds)
    assert all(0 <= m < n_subsets and 0 <= s < n_seeds for m, s in chosen)
    assert chosen == choose_replicas(truth, n, seed)
