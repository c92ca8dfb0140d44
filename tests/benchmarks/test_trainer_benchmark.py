"""Seconds per replica of the batched trainer, beside a plain PyTorch loop and the machine's matrix-product rate.

Run with ``pytest --benchmark-only -o addopts= -s``. That training works is asserted, times are not: they are printed
and kept in the benchmark's ``extra_info``.
"""

from __future__ import annotations

import os
import time
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset

from tdabench import Examples, TaskData
from tdabench.datasets import import_torchvision
from tdabench.registry import find_task
from tdabench.tasks.mnist import MEAN, STANDARD_DEVIATION
from tdabench.trainer import Program, fit_stacked, group_size, train_replicas

pytestmark = pytest.mark.usefixtures("one_thread")

EPOCHS, ROUNDS = 3, 5


@pytest.fixture(scope="module", params=["mnist-mlp", "digits-mlp"])
def task(request):
    found = find_task(request.param)
    return replace(found, recipe=replace(found.recipe, epochs=EPOCHS))


@pytest.fixture(scope="module")
def data(request, task):
    if task.name != "mnist-mlp":
        return task.data()
    try:
        return request.getfixturevalue("mnist")[1]
    except pytest.skip.Exception:
        print("\nno MNIST: made-up arrays of the same shape", end="")
        return made_up(task)


def made_up(task) -> TaskData:
    random = torch.Generator().manual_seed(0)
    inputs = torch.randn(task.n_train + task.n_queries, 784, generator=random)
    labels = (inputs @ torch.randn(784, 10, generator=random)).argmax(1)  # a linear rule, so that it can be learnt
    n = task.n_train
    return TaskData(Examples(inputs[:n], labels[:n], "train"), Examples(inputs[n:], labels[n:], "queries"))


def in_memory(data, kept) -> Dataset:
    """Return the kept examples as prepared tensors: the leanest data set that a DataLoader can have."""
    return TensorDataset(data.training.inputs[kept], data.training.labels[kept])


def with_transforms(task, kept) -> Dataset | None:
    """Return the kept images as torchvision's MNIST with the usual transforms, None where there is no MNIST."""
    if task.name != "mnist-mlp" or not os.environ.get("TDABENCH_DATA"):
        return None
    vision = import_torchvision()
    from torchvision import transforms

    steps = [transforms.ToTensor(), transforms.Normalize((MEAN,), (STANDARD_DEVIATION,)), torch.flatten]
    images = vision.datasets.MNIST(os.environ["TDABENCH_DATA"], transform=transforms.Compose(steps))
    return Subset(images, kept.nonzero().flatten().tolist())


def plain_loop(task, examples) -> list[float]:
    """Train one replica with torch's own tools; return the mean loss of every epoch."""
    model = task.make_model().train()
    recipe = task.recipe
    optimizer = torch.optim.SGD(model.parameters(), lr=recipe.lr, momentum=recipe.momentum)
    loader = DataLoader(examples, batch_size=recipe.batch_size, shuffle=True)
    means = []
    for _ in range(recipe.epochs):
        losses = []
        for inputs, labels in loader:
            loss = nn.functional.cross_entropy(model(inputs), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        means.append(sum(losses) / len(losses))
    return means


def training_flops(model: nn.Module, n_examples: int) -> int:
    """Count the matrix products of forward and backward; the first layer needs no gradient of its input."""
    sizes = [m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear)]
    return n_examples * 2 * (3 * sum(sizes) - sizes[0])


def product_flops_per_s() -> float:
    """Measure the machine: the best rate of large square float32 products."""
    best = 0.0
    for n in (1024, 2048):
        a, b = torch.randn(n, n), torch.randn(n, n)
        for _ in range(6):
            start = time.perf_counter()
            a @ b
            best = max(best, 2 * n**3 / (time.perf_counter() - start))
    return best


def mean_losses(task, data, trained, masks) -> torch.Tensor:
    """Return every replica's mean loss on what it saw, dropout off, ``[R]``."""
    program = Program.of(task, data)
    training = data.training
    logits = program.logits(trained, training.inputs.expand(len(masks), -1, -1), {})
    losses = task.loss(logits.flatten(0, 1), training.labels.repeat(len(masks))).view(len(masks), -1)
    return (losses * masks).sum(1) / masks.sum(1)


def test_batched_training_beside_a_plain_loop_and_the_machine(benchmark, task, data):
    masks = task.subset_masks()[: group_size(dict(task.make_model().named_parameters()))]
    n = len(masks)
    plain_s, images_s, product_rate, plain_losses = [], [], 0.0, []
    images = with_transforms(task, masks[0])

    def measure_the_others():  # in turns with ours, so that a busy moment does not hit one side alone
        nonlocal product_rate, plain_losses
        product_rate = max(product_rate, product_flops_per_s())
        start = time.perf_counter()
        plain_losses = plain_loop(task, in_memory(data, masks[0]))
        plain_s.append(time.perf_counter() - start)
        if images is not None:
            start = time.perf_counter()
            plain_loop(task, images)
            images_s.append(time.perf_counter() - start)

    def train():
        return train_replicas(task, data, masks, "benchmark", 0)

    trained = benchmark.pedantic(train, setup=measure_the_others, rounds=ROUNDS, warmup_rounds=1)
    ours_s = benchmark.stats.stats.min / n
    flops = training_flops(task.make_model(), EPOCHS * int(masks[0].sum()))
    report = {
        "replicas": n,
        "seconds_per_replica": ours_s,
        "plain_seconds_per_replica": min(plain_s),
        "speedup_over_plain_loop": min(plain_s) / ours_s,
        "gflops_per_s": flops / ours_s / 1e9,
        "product_gflops_per_s": product_rate / 1e9,
        "share_of_product_rate": flops / ours_s / product_rate,
    }
    if images_s:
        report["speedup_over_plain_loop_with_transforms"] = min(images_s) / ours_s
    benchmark.extra_info.update(report)
    print("\n" + ", ".join(f"{k} {v:.4g}" for k, v in report.items()), end="")

    untrained = fit_stacked(
        Program.of(task, data),
        {k: p.detach().expand(n, *p.shape).clone() for k, p in task.initial_model("benchmark", 0).named_parameters()},
        data.training,
        masks,
        ("none",),
        replace(task.recipe, epochs=0),
    )
    before, after = mean_losses(task, data, untrained, masks), mean_losses(task, data, trained, masks)
    assert after.isfinite().all()
    assert (after < before).all()
    assert plain_losses[-1] < plain_losses[0]
