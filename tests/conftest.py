"""Fixtures that several test files share. Nothing here touches the user's cache or the shipped ground truth."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# The arrays are small: threads would only wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# The machine may be busy; the first example pays for imports.
settings.register_profile("tdabench", deadline=None)
settings.load_profile("tdabench")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run what takes minutes last, the longest first, so that no process waits for another's at the end."""

    def place(item: pytest.Item) -> tuple[bool, float]:
        slow = item.get_closest_marker("slow")
        return slow is not None, -slow.kwargs.get("minutes", 0) if slow else 0

    items.sort(key=place)


SMALL_TASK = f"{Path(__file__).parent / 'small_task.py'}:TASK"
SLOW_TASK = f"{Path(__file__).parent / 'small_task.py'}:SLOW"


@pytest.fixture(scope="session", autouse=True)
def _own_folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep cache and ground truth of the whole session, and of the processes it starts, in temporary folders."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base  # what one process prepares, another finds
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TDABENCH_CACHE", str(shared / "session-cache"))
        patch.delenv("TDABENCH_MEMORY_GB", raising=False)
        patch.delenv("TDABENCH_PRODUCTS", raising=False)
        patch.setenv("TDABENCH_TEST_TASK_FOLDER", str(tmp_path_factory.mktemp("small-task")))
        yield


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an empty cache folder of this test's own."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("TDABENCH_CACHE", str(folder))
    return folder


@pytest.fixture(scope="session")
def digits(_own_folders: None):
    """Return the task digits-mlp."""
    from tdabench.registry import find_task

    return find_task("digits-mlp")


@pytest.fixture(scope="session")
def digits_data(digits):
    """Return the data of digits-mlp."""
    return digits.data()


@pytest.fixture(scope="session")
def small_reference() -> str:
    """Return how the command line and the workers name the small task."""
    return SMALL_TASK


@pytest.fixture(scope="session")
def slow_reference() -> str:
    """Return the name of a task that is small, too, but slow enough to be killed in the middle."""
    return SLOW_TASK


@pytest.fixture(scope="session")
def small(_own_folders: None):
    """Return the small task, the very object that its reference gives."""
    from tdabench.registry import find_task

    return find_task(SMALL_TASK)


@pytest.fixture(scope="session")
def small_data(small):
    """Return the data of the small task."""
    return small.data()


@pytest.fixture(scope="session")
def small_truth_folder(small) -> Path:
    """Return the small task's ground truth, 8 subsets x 4 seeds, where the task looks for it."""
    from concurrent.futures import ThreadPoolExecutor

    from filelock import FileLock

    from tdabench.building import build
    from tdabench.ground_truth import ground_truth_folder

    folder = ground_truth_folder(small)
    # The cache is that of all processes of the session, and a second build at the same time is refused.
    shared = Path(os.environ["TDABENCH_CACHE"])
    shared.mkdir(parents=True, exist_ok=True)
    with FileLock(shared / "small-truth.lock"), ThreadPoolExecutor(1) as executor:
        build(SMALL_TASK, folder, executor=executor)
    return folder


@pytest.fixture
def view(small, small_data, tmp_path: Path) -> Callable:
    """Return a factory of task views, by default on the small task; views of one test share a model store.

    A test that changes the data names a ``store`` of its own: checkpoints are found by seed and number alone.
    """
    from tdabench.view import TaskView

    def make(task=small, data=None, *, seed: int = 0, store: str = "models", meter=None) -> TaskView:
        data = data if data is not None else small_data if task is small else task.data()
        return TaskView(task, data, tmp_path / store, seed=seed, meter=meter)

    return make


@pytest.fixture
def network_task(small, view) -> Callable:
    """Return a factory of views of a task with a tiny network, ``resnet`` or ``transformer``, and made-up examples."""
    from dataclasses import replace

    import made_up
    import torch

    from tdabench import MEAN_LOG_PROBABILITY, Examples, TaskData, token_cross_entropy
    from tdabench.tasks.networks import resnet9
    from tdabench.tasks.transformers import music_transformer

    changes = {
        "resnet": {"make_model": lambda: resnet9(3, width=8, strides=(2, 2, 2), p=0.1)},
        "transformer": {
            "make_model": lambda: music_transformer(7, 6, layers=1, width=4, heads=2, p=0.1),
            "loss": token_cross_entropy,
            "target": MEAN_LOG_PROBABILITY,
        },
    }

    def make(network: str):
        random = torch.Generator().manual_seed(0)

        def examples(n: int, split: str) -> Examples:
            if network == "resnet":
                return made_up.images(n, split, random, side=8)
            return made_up.sequences(n, split, random, vocabulary=7, length=6)

        task = replace(small, name=network, n_train=16, n_queries=4, **changes[network])
        return view(task, TaskData(examples(16, "train"), examples(4, "queries")), store=network)

    return make


@pytest.fixture(scope="session")
def mnist():
    """Return the task mnist-mlp and its data; skip where TDABENCH_DATA does not hold MNIST."""
    from tdabench.registry import find_task

    folder = os.environ.get("TDABENCH_DATA")
    if not folder:
        pytest.skip("set TDABENCH_DATA to a folder that holds MNIST/raw to run this test")
    if not (Path(folder) / "MNIST" / "raw" / "train-images-idx3-ubyte").exists():
        pytest.skip("TDABENCH_DATA holds no MNIST/raw/train-images-idx3-ubyte")
    task = find_task("mnist-mlp")
    return task, task.data()


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """Return a disk of 64 KiB."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    try:
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)], capture_output=True)
    except FileNotFoundError:
        pytest.skip("there is no mount command")
    if done.returncode != 0:
        pytest.skip("needs the right to mount a tmpfs")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)
