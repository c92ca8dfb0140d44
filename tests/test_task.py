from __future__ import annotations

import struct
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from tdabench.errors import DataError, UsageError
from tdabench.recipe import SubsetPlan
from tdabench.registry import find_task
from tdabench.targets import Target, log_odds


def other_loss(logits, labels):
    return -log_odds(logits, labels)


CHANGES = {
    "name": lambda t: replace(t, name="other"),
    "data": lambda t: replace(t, data_sha256="0" * 64),
    "width": lambda t: replace(t, make_model=lambda: nn.Sequential(nn.Linear(64, 33), nn.ReLU(), nn.Linear(33, 10))),
    "activation": lambda t: replace(t, make_model=lambda: nn.Sequential(nn.Linear(64, 10), nn.Tanh())),
    "layer added": lambda t: replace(t, make_model=lambda: nn.Sequential(nn.Linear(64, 10), nn.Tanh(), nn.Tanh())),
    "no bias": lambda t: replace(t, make_model=lambda: nn.Sequential(nn.Linear(64, 10, bias=False))),
    "dropout": lambda t: replace(t, make_model=lambda: nn.Sequential(nn.Linear(64, 10), nn.Dropout(0.1))),
    "dropout rate": lambda t: replace(t, make_model=lambda: nn.Sequential(nn.Linear(64, 10), nn.Dropout(0.2))),
    "loss": lambda t: replace(t, loss=other_loss),
    "target": lambda t: replace(t, target=Target("margin", log_odds, torch.sigmoid)),
    "lr": lambda t: replace(t, recipe=replace(t.recipe, lr=0.3)),
    "momentum": lambda t: replace(t, recipe=replace(t.recipe, momentum=0.3)),
    "batch size": lambda t: replace(t, recipe=replace(t.recipe, batch_size=7)),
    "epochs": lambda t: replace(t, recipe=replace(t.recipe, epochs=7)),
    "weight decay": lambda t: replace(t, recipe=replace(t.recipe, weight_decay=0.1)),
}


def test_every_change_of_the_task_is_another_version(small):
    versions = {name: change(small).version for name, change in CHANGES.items()} | {"unchanged": small.version}
    assert len(set(versions.values())) == len(versions)


def test_words_for_people_and_the_amount_of_retraining_are_not_part_of_the_version(small, tmp_path):
    assert replace(small, title="x", description="y", licence="z", folder=tmp_path).version == small.version
    assert replace(small, plan=SubsetPlan(3, 3)).version == small.version


@pytest.mark.parametrize(("name", "version"), [("digits-mlp", "9dc5eca319e824db"), ("mnist-mlp", "0d91cfc772b043fd")])
def test_shipped_versions_never_change_unnoticed(name, version):
    assert find_task(name).version == version


@pytest.mark.parametrize("name", ["digits-mlp", "mnist-mlp"])
def test_queries_are_split_once_in_20_and_80_percent(name):
    task = find_task(name)
    tuning, reported = task.tuning_queries.tolist(), task.reported_queries.tolist()
    assert len(tuning) == 100
    assert sorted(tuning + reported) == list(range(500))
    assert tuning == sorted(tuning)
    assert reported == sorted(reported)
    assert tuning[:5] == {"digits-mlp": [7, 9, 14, 19, 22], "mnist-mlp": [6, 9, 11, 17, 18]}[name]


def test_subsets_are_of_equal_size_different_and_uniform(digits):
    masks = digits.subset_masks()
    assert masks.shape == (100, 1000)
    assert set(masks.sum(1).tolist()) == {500}
    assert len({tuple(row) for row in masks.tolist()}) == 100
    assert masks.sum(0).min() > 30
    assert masks.sum(0).max() < 70


def test_more_subsets_leave_the_first_ones_as_they_are(small):
    more = replace(small, plan=replace(small.plan, n_subsets=20)).subset_masks()
    assert torch.equal(more[:8], small.subset_masks())


@pytest.mark.parametrize(
    ("n_train", "fraction", "message"),
    [
        (1, 0.5, r"keeps 0 of 1 training examples \(fraction 0\.5\), so all .* It needs more of them\."),
        (3, 0.9, r"A subset of small keeps 3 of 3 .* Write another fraction into its plan, as 0\.5\."),
        (3, 0.1, "keeps 0 of 3"),
    ],
)
def test_subsets_of_none_or_all_of_the_examples_are_refused(small, n_train, fraction, message):
    with pytest.raises(UsageError, match=message):
        replace(small, n_train=n_train, plan=replace(small.plan, fraction=fraction)).subset_masks()


def assert_no_training_example_is_a_query(data):
    training = {row.numpy().tobytes() for row in data.training.inputs}
    assert not [i for i, row in enumerate(data.queries.inputs) if row.numpy().tobytes() in training]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"optimizer": "SGD"}, "optimizer is sgd or adamw, not 'SGD'"),
        ({"schedule": "cosine"}, "schedule is constant or linear, not 'cosine'"),
        ({"precision": "bf16"}, "precision is float32 or bfloat16, not 'bf16'"),
        ({"optimizer": "adamw"}, "AdamW needs a second decay rate between 0 and 1"),
        ({"lr": -0.1}, "lr is a finite number of at least 0, not -0.1"),
        ({"lr": float("nan")}, "lr is a finite number of at least 0, not nan"),
        ({"lr": "0.1"}, "lr is a finite number of at least 0, not '0.1'"),
        ({"batch_size": 0}, "batch_size is at least 1, not 0"),
        ({"batch_size": 5.0}, r"batch_size is a whole number \(int\), not 5\.0"),
        ({"epochs": True}, "epochs is a whole number"),
        ({"epochs": 0}, "epochs is at least 1, not 0"),
        ({"warmup": 5.0}, "warmup is a share of its steps"),
    ],
)
def test_a_recipe_that_would_train_otherwise_than_it_reads_is_refused(small, change, message):
    with pytest.raises(UsageError, match=message):
        replace(small.recipe, **change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fraction": 50}, "fraction is the share .* between 0 and 1 as 0.5, not 50"),
        ({"fraction": 1.0}, "between 0 and 1"),
        ({"fraction": "0.5"}, "between 0 and 1 as 0.5, not '0.5'"),
        ({"n_subsets": 0}, "at least one subset and seed, not 0 and"),
        ({"n_seeds": 2.0}, r"n_seeds is a whole number \(int\), not 2\.0"),
    ],
)
def test_a_plan_without_different_subsets_is_refused(small, change, message):
    with pytest.raises(UsageError, match=message):
        replace(small.plan, **change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"recipe": {"lr": 0.1}}, r"recipe of small is a dict, expected a Recipe\. Write recipe=Recipe\(\.\.\.\)"),
        ({"plan": {"n_subsets": 10}}, "plan of small is a dict, expected a SubsetPlan"),
        ({"folder": "here"}, r"folder of small is a str, expected a Path\. Write folder=Path\("),
        ({"target": log_odds}, "target of small is a function, expected a Target"),
        ({"n_train": 120.0}, r"n_train of small is a whole number \(int\), not 120\.0"),
    ],
)
def test_what_a_task_is_made_of_is_of_the_kind_that_is_meant(small, change, message):
    with pytest.raises(UsageError, match=message):
        replace(small, **change)


def failing(error):
    def fail(*_):
        raise error

    return fail


def test_a_load_data_that_fails_is_the_author_s_to_mend(small):
    missing = FileNotFoundError(2, "No such file", "table.bin")
    with pytest.raises(
        DataError, match=r"load_data of small fails: FileNotFoundError: .*table\.bin.* --debug"
    ) as caught:
        replace(small, load_data=failing(missing)).data()
    assert caught.value.__cause__ is missing
    said = DataError("Fetch it.")
    with pytest.raises(DataError, match=r"^Fetch it\.$"):
        replace(small, load_data=failing(said)).data()


def test_a_make_model_that_fails_or_makes_no_module_is_the_author_s_to_mend(small):
    with pytest.raises(UsageError, match=r"make_model of small fails: ValueError: no width"):
        replace(small, make_model=failing(ValueError("no\nwidth"))).version  # noqa: B018
    with pytest.raises(UsageError, match=r"make_model of small returns a function, expected a torch\.nn\.Module"):
        replace(small, make_model=lambda: failing).initial_model("x")


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")])
def test_a_lack_of_memory_is_no_mistake_of_the_author_s(small, error):
    with pytest.raises(type(error)):
        replace(small, load_data=failing(error)).data()
    with pytest.raises(type(error)):
        replace(small, make_model=failing(error)).initial_model("x")


def test_no_training_example_of_digits_is_a_query(digits, digits_data):
    assert (len(digits_data.training), len(digits_data.queries)) == (digits.n_train, digits.n_queries)
    assert_no_training_example_is_a_query(digits_data)


@pytest.mark.data
def test_no_training_example_of_mnist_is_a_query(mnist):
    task, data = mnist
    assert (len(data.training), len(data.queries)) == (task.n_train, task.n_queries)
    assert_no_training_example_is_a_query(data)


def test_other_data_than_the_task_was_defined_on_is_refused(small):
    with pytest.raises(DataError, match=r"data of small is not the data.*SHA-256 bac2a0e6.*expected 00000000"):
        replace(small, data_sha256="0" * 64).data()


LOADER = """
from dataclasses import replace
from pathlib import Path
import torch
from tdabench import Examples, TaskData
import small_task
import numbers_of_mine

def load_data(folder):
    data = small_task.load_data(folder)
    inputs = data.training.inputs * numbers_of_mine.SCALE
    table = (Path(__file__).parent / "table.txt").read_text()
    return TaskData(replace(data.training, inputs=inputs + float(table)), data.queries)

TASK = replace(small_task.TASK, name="mine", load_data=load_data)
"""


@pytest.mark.parametrize("edited", ["mine.py", "numbers_of_mine.py", "table.txt"])
def test_an_edited_loader_and_what_it_imports_and_reads_are_noticed_under_the_old_hash(
    tmp_path, monkeypatch, cache, edited
):
    monkeypatch.syspath_prepend(Path(__file__).parent)
    monkeypatch.syspath_prepend(tmp_path)
    files = {"mine.py": LOADER, "numbers_of_mine.py": "SCALE = 1.0\n", "table.txt": "0.0"}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    reference = f"{tmp_path / 'mine.py'}:TASK"

    def load() -> None:
        for name in ("small_task", "numbers_of_mine"):  # as a new process finds them
            monkeypatch.delitem(sys.modules, name, raising=False)
        for name in [n for n in sys.modules if n.startswith("tdabench_file_")]:
            monkeypatch.delitem(sys.modules, name)
        find_task(reference).data()

    load()
    load()
    (tmp_path / edited).write_text(
        files[edited].replace("1.0", "2.00").replace("0.0", "2.00").replace("inputs *", "inputs -")
    )
    with pytest.raises(DataError, match="data of mine is not the data that the task was defined on"):
        load()


def test_the_data_of_a_shipped_task_is_prepared_once(digits, digits_data, monkeypatch):
    def never(folder):
        raise AssertionError("the raw files are not needed")

    with pytest.raises(DataError, match="AssertionError: the raw files are not needed"):
        replace(digits, load_data=never).data()
    monkeypatch.setattr(never, "__module__", "tdabench.tasks.digits_mlp", raising=True)
    assert replace(digits, load_data=never).data().sha256 == digits_data.sha256


def test_what_load_data_gives_lies_in_memory_as_it_is_stored(small, small_data):
    """The last bit of a product depends on it, and with it whether ground truth is verified to the bit."""
    inputs = small_data.training.inputs
    turned = replace(small_data.training, inputs=inputs.T.contiguous().T)
    assert not turned.inputs.is_contiguous()
    data = replace(small, load_data=lambda _: replace(small_data, training=turned)).data()
    assert data.training.inputs.is_contiguous()
    assert torch.equal(data.training.inputs, inputs)


def test_one_changed_pixel_or_label_is_other_data(small, small_data):
    for part in (small_data.training, small_data.queries):
        for array in (part.inputs, part.labels):
            changed = small.load_data(None)
            mine = changed.training if part.split == "train" else changed.queries
            (mine.inputs if array is part.inputs else mine.labels).view(-1)[0] += 1
            assert changed.sha256 != small_data.sha256


def test_missing_mnist_says_where_it_looked_and_what_to_do(tmp_path, cache):
    with pytest.raises(DataError) as caught:
        find_task("mnist-mlp").data(tmp_path)
    message = str(caught.value)
    assert str(tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte") in message
    assert "Point --data or TDABENCH_DATA at the folder that holds MNIST/raw" in message


def test_damaged_mnist_is_a_clear_error(tmp_path, cache):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part in ("train", "t10k"):
        for kind in ("images-idx3", "labels-idx1"):
            (raw / f"{part}-{kind}-ubyte").write_bytes(b"\0\0\x08\x03\0\0")
    with pytest.raises(DataError, match="No readable MNIST"):
        find_task("mnist-mlp").data(tmp_path)


@pytest.mark.parametrize("content", [b"<!DOCTYPE html><html>", b"\x1f\x8b\x08\x08 packed still"])
def test_files_that_are_something_else_are_a_clear_error(tmp_path, cache, content):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part in ("train", "t10k"):
        for kind in ("images-idx3", "labels-idx1"):
            (raw / f"{part}-{kind}-ubyte").write_bytes(content)
    with pytest.raises(DataError, match=r"No readable MNIST in .*\((AssertionError|TypeError|KeyError|[^)]+)\)"):
        find_task("mnist-mlp").data(tmp_path)


def test_readable_files_of_another_size_are_not_the_loader_s_fault(tmp_path, cache):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part in ("train", "t10k"):
        (raw / f"{part}-images-idx3-ubyte").write_bytes(struct.pack(">4B3I", 0, 0, 8, 3, 6, 28, 28) + bytes(6 * 784))
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">4BI", 0, 0, 8, 1, 7) + bytes(7))
    with pytest.raises(DataError) as caught:
        find_task("mnist-lr").data(tmp_path)
    assert str(caught.value) == (
        "The inputs of the training examples of mnist-lr have shape [6, 784], their labels [7]; expected [n, ...] for "
        "both, with the same n above 0. Remove the files and fetch the original data set again."
    )


def test_a_model_is_made_without_touching_the_generators_of_accelerators(small, monkeypatch):
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: pytest.fail("seeded"))
    before = torch.get_rng_state()
    small.initial_model("x")
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("make_model", "said"),
    [
        (lambda: nn.Sequential(nn.LazyLinear(10)), r"0\.weight is of a lazy layer.*Write the size"),
        (nn.Flatten, "has no parameters, so there is nothing to train"),
        (lambda: torch.jit.script(nn.Linear(64, 10)), "returns a scripted model"),
        (lambda: nn.Sequential(torch.jit.script(nn.Linear(64, 10))), "a model whose 0 is scripted .*Use the module"),
        (lambda: nn.Sequential(torch.jit.trace(nn.Linear(64, 10), torch.zeros(1, 64))), "a model whose 0 is scripted"),
    ],
    ids=["lazy", "nothing", "scripted", "scripted layer", "traced layer"],
)
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
def test_models_that_nothing_can_be_known_of_are_refused_by_every_command(small, make_model, said):
    task = replace(small, make_model=make_model)
    for ask in (lambda: task.version, lambda: task.template(torch.zeros(1, 64))):
        with pytest.raises(UsageError, match=said):
            ask()


def test_a_model_that_no_seed_decides_is_refused_before_it_is_trained(small):
    def make_model():
        model = nn.Linear(64, 10)
        with torch.no_grad():
            model.bias += float(np.random.default_rng().standard_normal())
        return model

    small.check_initial_model()
    with pytest.raises(UsageError, match=r"make_model of small gives bias other values each time"):
        replace(small, make_model=make_model).check_initial_model()


def test_initial_models_depend_on_their_stream_alone(small):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    a, b, c = (small.initial_model("x", i)[0].weight for i in (0, 0, 1))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    assert torch.equal(torch.get_rng_state(), before)
