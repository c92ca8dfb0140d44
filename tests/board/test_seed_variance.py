"""Seed variance: measured on configurations with several seeds, stored with a task, used where there is one seed."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from tdabench.errors import FileFormatError
from tdabench.results.rows import rows_of
from tdabench.results.seed_variance import SeedVariance, measure, read_seed_variance, write_seed_variance

VERSION = "0123456789abcdef"


@pytest.fixture
def known():
    return SeedVariance(task_version=VERSION, own=0.02, shared=0.01, n_configurations=9, n_pairs=36, n_seeds=3)


def runs_of(make, name, lds, **changes):
    return [make.run(name, value, seed=seed, run_id=f"{name}-{seed}", **changes) for seed, value in enumerate(lds)]


def test_what_a_seed_does_to_all_and_to_each_is_told_apart(make):
    rng = np.random.default_rng(0)
    alike = rng.normal(0, 0.03, size=40)
    runs = [
        run
        for number in range(12)
        for run in runs_of(make, f"m{number:02}", 0.3 + alike + rng.normal(0, 0.01, size=40))
    ]
    ((key, found),) = measure(rows_of(runs)).items()
    assert key == ("digits-mlp", VERSION)
    assert found.own == pytest.approx(0.01, rel=0.1)
    assert found.shared == pytest.approx(alike.std(ddof=1), rel=0.1)
    assert found.total == pytest.approx(np.hypot(found.own, found.shared))
    assert (found.n_configurations, found.n_pairs, found.n_seeds) == (12, 66, 40)


def test_an_ensemble_of_models_counts_for_what_one_of_them_would_do(make):
    ensemble = {"kind": "independent", "options": {"models": 4}, "members": 4}
    values = (0.30, 0.34)
    (single,) = measure(rows_of(runs_of(make, "x", values))).values()
    (several,) = measure(rows_of(runs_of(make, "x", values, ensemble=ensemble))).values()
    assert single.own == pytest.approx(np.std(values, ddof=1), abs=1e-6)
    assert several.own == pytest.approx(2 * single.own, abs=1e-5)


def test_models_that_two_ensembles_have_in_common_are_no_luck_of_their_own(make):
    rng = np.random.default_rng(0)
    lucks = rng.normal(0, 0.03, (60, 5))
    runs = [
        run
        for number in range(12)
        for models in (1, 2, 5)
        for own in [rng.normal(0, 0.01 / np.sqrt(models), size=60)]
        for run in runs_of(
            make,
            f"m{number:02}-{models}",
            0.3 + lucks[:, :models].mean(axis=1) + own,
            ensemble={"kind": "independent", "options": {"models": models}, "members": models},
        )
    ]
    (found,) = measure(rows_of(runs)).values()
    assert found.own == pytest.approx(0.01, rel=0.1)
    assert found.shared == pytest.approx(0.03, rel=0.1)


def test_of_one_configuration_nothing_is_known_to_be_shared(make):
    (found,) = measure(rows_of(runs_of(make, "x", (0.3, 0.4)))).values()
    assert (found.shared, found.n_pairs) == (0.0, 0)
    assert measure(rows_of([make.run(), make.run("y", 0.2)])) == {}


def test_seeds_of_other_machines_are_other_seeds(make):
    there = runs_of(make, "x", (0.3, 0.4))
    class_ = there[0].record.machine.model_copy(update={"machine_class": "elsewhere"})
    other = [
        replace(run, record=run.record.model_copy(update={"machine": class_, "run_id": f"{n}"}))
        for n, run in enumerate(there)
    ]
    (found,) = measure(rows_of([*there, *other])).values()
    assert (found.n_configurations, found.n_pairs) == (2, 0)


def test_rows_of_one_seed_have_it_in_their_interval_and_ranks(make, known):
    runs = [make.run("x", 0.34, half=0.001), make.run("y", 0.30, half=0.001)]
    tasks = [replace(make.task(), version=VERSION, seed_variance=known)]
    assert [row.rank_group for row in rows_of(runs)] == [1, 2]
    rows = rows_of(runs, tasks)
    assert [row.rank_group for row in rows] == [1, 1]
    (low, high), plain = rows[0].interval, rows_of(runs)[0].interval
    assert high - low == pytest.approx(2 * 1.96 * known.total, rel=0.15)
    assert plain[1] - plain[0] < 0.01
    assert [row.draws.knows_luck for row in (*rows, rows_of(runs)[0])] == [True, True, False]


def test_it_is_stored_with_the_task_and_holds_for_its_version(small, known, tmp_path):
    task = replace(small, folder=tmp_path)
    assert read_seed_variance(task) is None
    found = known.model_copy(update={"task_version": task.version})
    write_seed_variance(task, found)
    assert read_seed_variance(task) == found
    write_seed_variance(task, known)
    assert read_seed_variance(task) is None, "of another version"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[1", "is not"),
        ("[]", "seed variance"),
        (json.dumps({"task_version": "x"}), "own"),
        (json.dumps({"task_version": "x", "own": -0.1}), "own: Input should be greater than or equal to 0"),
    ],
)
def test_a_damaged_file_is_one_clear_error(small, tmp_path, text, said):
    (tmp_path / "seed_variance.json").write_text(text)
    with pytest.raises(FileFormatError, match=said) as error:
        read_seed_variance(replace(small, folder=tmp_path))
    assert "tdabench seed-variance RUNS --write" in str(error.value)
