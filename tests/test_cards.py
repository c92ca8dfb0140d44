"""A task's card says what its definition and its ground truth say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tdabench.ground_truth import MANIFEST_FILE, ground_truth_folder, quality, read_ground_truth
from tdabench.registry import TASKS, find_task, names
from tdabench.results.reading import evaluator_of


@pytest.fixture(params=names(TASKS))
def task(request):
    return find_task(request.param)


@pytest.fixture
def rows(task) -> dict[str, str]:
    """Return the rows of the card's table, by their first cell."""
    text = (task.folder / "README.md").read_text(encoding="utf-8")
    assert text.startswith(f"# {task.name}\n")
    return dict(re.findall(r"^\| ([a-z ]+) \| (.+) \|$", text, re.MULTILINE))


def test_the_card_names_the_licence(task, rows):
    def words(text: str) -> list[str]:
        return re.findall(r"\w+", text)

    assert words(rows["licence"]) == words(task.licence)


def test_the_card_counts_parameters_retrainings_and_queries(task, rows):
    parameters = sum(p.numel() for p in task.make_model().parameters())
    assert f"{parameters:,} parameters" in rows["model"]
    plan = task.plan
    size = round(task.n_train * plan.fraction)
    total = plan.n_subsets * plan.n_seeds
    assert (
        f"{plan.n_subsets} subsets of {size:,} x {plan.n_seeds} seeds = {total:,} retrainings" in rows["ground truth"]
    )
    assert rows["queries"] == f"{len(task.tuning_queries)} for tuning, {len(task.reported_queries)} reported"


def test_the_card_gives_the_recipe(task, rows):
    recipe = task.recipe
    assert f"learning rate {recipe.lr:g}," in rows["recipe"]
    assert f"batch {recipe.batch_size}, {recipe.epochs} epochs" in rows["recipe"]
    assert ("weight decay" in rows["recipe"]) == (recipe.weight_decay > 0)
    assert ("linear" in rows["recipe"]) == (recipe.schedule == "linear")
    assert rows["target"] == task.target.name


def test_the_readme_says_which_ground_truth_is_complete(task):
    text = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
    (row,) = re.findall(rf"^\| \[`{task.name}`\].*$", text, re.MULTILINE)
    complete = (ground_truth_folder(task) / MANIFEST_FILE).exists()
    assert ("not complete yet" in row) != complete
    assert f"{task.plan.n_subsets} x {task.plan.n_seeds}" in row.replace("subsets ", "")


def test_the_card_gives_the_ceiling_of_the_ground_truth_that_is_there(task, rows):
    if not (ground_truth_folder(task) / MANIFEST_FILE).exists():
        assert rows["noise ceiling"].startswith("not known yet")
        return
    ceiling = evaluator_of(task.name).ceiling.value
    assert ceiling is not None
    assert ceiling > 0.5
    assert rows["noise ceiling"].startswith(f"{ceiling:.3f} ")


def test_the_card_says_how_good_the_retrained_models_are(task, rows):
    if not (ground_truth_folder(task) / MANIFEST_FILE).exists():
        assert "quality" not in rows
        return
    found = quality(task.target, read_ground_truth(task).outputs)
    said = f"right on {found['share_right']:.1%}" if "share_right" in found else f" of {found['mean_output']:.2f} ("
    assert said.replace("%", " %") in rows["quality"]
