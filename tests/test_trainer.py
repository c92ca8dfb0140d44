from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up import Choosing
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from tdabench import precision, trainer
from tdabench.dropout import SequenceDropout
from tdabench.errors import UsageError
from tdabench.examples import Examples
from tdabench.recipe import Recipe
from tdabench.seeds import derive_seed, generator
from tdabench.targets import MEAN_LOG_PROBABILITY, token_cross_entropy
from tdabench.task import TaskData
from tdabench.tasks.transformers import nano_gpt
from tdabench.trainer import Program, Stream, group_size, target_outputs, train_replicas

# What grouping may change: the order of additions inside matrix products, in float32.
TOLERANCE = {"rtol": 1e-4, "atol": 2e-5}


def assert_same(a, b) -> None:
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], **TOLERANCE)


def together(task, data, masks, *stream):
    return train_replicas(task, data, masks, *stream)


def in_groups(task, data, masks, size, *stream):
    parts = [train_replicas(task, data, part, *stream) for part in masks.split(size)]
    return {k: torch.cat([p[k] for p in parts]) for k in parts[0]}


@pytest.fixture(scope="module")
def reference(small, small_data):
    return together(small, small_data, small.subset_masks(), "ground-truth", 0)


@pytest.mark.parametrize("size", [1, 3, 7])
def test_results_do_not_depend_on_who_trains_beside(small, small_data, reference, size):
    assert_same(in_groups(small, small_data, small.subset_masks(), size, "ground-truth", 0), reference)


@settings(max_examples=10)
@given(st.permutations(range(8)))
def test_results_do_not_depend_on_the_order_of_replicas(small, small_data, reference, order):
    shuffled = together(small, small_data, small.subset_masks()[order], "ground-truth", 0)
    assert_same(shuffled, {k: v[order] for k, v in reference.items()})


def test_results_do_not_depend_on_the_number_of_threads(small, small_data, reference):
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            assert_same(together(small, small_data, small.subset_masks(), "ground-truth", 0), reference)
    finally:
        torch.set_num_threads(before)


def test_results_depend_on_no_global_state(small, small_data, reference):
    torch.manual_seed(12345)
    before = torch.get_rng_state()
    again = together(small, small_data, small.subset_masks(), "ground-truth", 0)
    assert all(torch.equal(again[k], reference[k]) for k in reference)
    assert torch.equal(torch.get_rng_state(), before)


class PlainNetwork(nn.Module):
    """The small task's model once more, with dropout masks as an argument."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(64, 32), nn.Linear(32, 10)

    def forward(self, x, mask):
        return self.last(self.first(x).relu() * mask)


def plain_training(task, data, kept, *stream):
    """Train one replica the way a first-year student would."""
    recipe = task.recipe
    torch.manual_seed(derive_seed(task.name, *stream, "init"))
    model = PlainNetwork()
    _, sites = task.template(data.training.inputs[:1])
    optimizer = torch.optim.SGD(
        model.parameters(), lr=recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay
    )
    for epoch in range(recipe.epochs):
        order = torch.randperm(task.n_train, generator=generator(task.name, *stream, "order", epoch))
        mine = [i for i in order.tolist() if kept[i]]
        masks = Stream((task.name, *stream), task.n_train, sites, torch.device("cpu")).dropout(epoch).masks["2.mask"]
        for start in range(0, len(mine), recipe.batch_size):
            batch = mine[start : start + recipe.batch_size]
            logits = model(data.training.inputs[batch], masks[batch])
            loss = nn.functional.cross_entropy(logits, data.training.labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model


@pytest.mark.parametrize("change", [{}, {"weight_decay": 0.01}, {"momentum": 0.0}, {"batch_size": 17}])
def test_training_equals_a_plain_loop(small, small_data, change):
    task = replace(small, recipe=replace(small.recipe, **change))
    masks = task.subset_masks()[:3]
    ours = together(task, small_data, masks, "ground-truth", 2)
    with torch.random.fork_rng():
        for r in range(3):
            plain = plain_training(task, small_data, masks[r], "ground-truth", 2)
            expected = dict(zip(("0.weight", "0.bias", "3.weight", "3.bias"), plain.parameters(), strict=True))
            assert_same({k: p[r] for k, p in ours.items()}, {k: p.detach() for k, p in expected.items()})


def test_training_learns(small, small_data):
    everything = torch.ones(1, small.n_train, dtype=torch.bool)
    recipe = replace(small.recipe, epochs=15)
    trained = train_replicas(small, small_data, everything, "attribution", 0, 0, recipe=recipe)
    outputs = target_outputs(small, small_data, trained)
    assert (outputs > 0).double().mean() > 0.6  # the right class outweighs all others together


def test_ground_truth_and_attribution_models_share_nothing(small, small_data):
    _, sites = small.template(small_data.training.inputs[:1])
    everything = torch.ones(1, small.n_train, dtype=torch.bool)
    truth, attribution = (
        Stream((small.name, *name), small.n_train, sites, torch.device("cpu"))
        for name in (("ground-truth", 0), ("attribution", 0, 0))
    )
    assert not torch.equal(truth.kept_in_order(0, everything), attribution.kept_in_order(0, everything))
    assert not torch.equal(truth.dropout(0).masks["2.mask"], attribution.dropout(0).masks["2.mask"])
    initial = [small.initial_model(*name)[0].weight for name in (("ground-truth", 0), ("attribution", 0, 0))]
    assert not torch.equal(*initial)


def test_subsets_of_a_seed_share_order_masks_and_start(small, small_data):
    _, sites = small.template(small_data.training.inputs[:1])
    stream = Stream((small.name, "ground-truth", 0), small.n_train, sites, torch.device("cpu"))
    masks = small.subset_masks()
    whole = stream.kept_in_order(1, torch.ones(1, small.n_train, dtype=torch.bool))[0].tolist()
    for mask, order in zip(masks, stream.kept_in_order(1, masks).tolist(), strict=True):
        assert order == [i for i in whole if mask[i]]


def test_an_example_outside_the_subset_has_no_effect(small, small_data):
    masks = small.subset_masks()[:1]
    changed = small.load_data(None)
    changed.training.inputs[~masks[0]] = 100.0
    same = together(small, changed, masks, "ground-truth", 0)
    expected = together(small, small_data, masks, "ground-truth", 0)
    assert all(torch.equal(same[k], expected[k]) for k in same)


def test_subsets_of_different_sizes_are_refused(small, small_data):
    masks = torch.ones(2, small.n_train, dtype=torch.bool)
    masks[0, :2] = False
    with pytest.raises(ValueError, match="equal size"):
        together(small, small_data, masks, "ground-truth", 0)


def test_on_epoch_hears_of_every_epoch(small, small_data):
    seen = {}

    def keep(epoch, values):
        seen[epoch] = {k: v.detach().clone() for k, v in values.items()}

    masks = small.subset_masks()[:2]
    final = train_replicas(small, small_data, masks, "x", on_epoch=keep)
    assert list(seen) == [1, 2, 3]
    assert all(torch.equal(seen[3][k], final[k]) for k in final)
    early = train_replicas(small, small_data, masks, "x", recipe=replace(small.recipe, epochs=1))
    assert all(torch.equal(seen[1][k], early[k]) for k in early)


def test_the_recipe_can_be_replaced(small, small_data):
    masks = small.subset_masks()[:1]
    short = train_replicas(small, small_data, masks, "x", recipe=replace(small.recipe, epochs=1))
    expected = together(replace(small, recipe=replace(small.recipe, epochs=1)), small_data, masks, "x")
    assert all(torch.equal(short[k], expected[k]) for k in short)


def test_outputs_are_the_target_with_dropout_off(small, small_data, reference):
    model = small.make_model().eval()
    outputs = target_outputs(small, small_data, reference)
    assert outputs.shape == (8, 40)
    for r in range(8):
        model.load_state_dict({k: p[r] for k, p in reference.items()})
        expected = small.target.function(model(small_data.queries.inputs), small_data.queries.labels)
        torch.testing.assert_close(outputs[r], expected.detach())


def test_batched_logits_equal_the_logits_of_each(small, small_data, reference):
    program = Program.of(small, small_data)
    inputs = small_data.queries.inputs.expand(8, -1, -1)
    batched = program.logits(reference, inputs, {})
    for r in range(8):
        alone = program.logits({k: p[r : r + 1] for k, p in reference.items()}, inputs[:1], {})
        torch.testing.assert_close(batched[r], alone[0])


def normalising(*, images: bool) -> nn.Module:
    body = (nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 10))
    return nn.Sequential(*body) if images else nn.Sequential(nn.Linear(64, 8), nn.BatchNorm1d(8), nn.Linear(8, 10))


@pytest.mark.parametrize(("kept", "batch_size", "better"), [(61, 20, 21), (41, 40, 41), (40, 1, 2)])
def test_batches_of_one_vector_are_refused_before_training_where_they_cannot_be_normalised(
    small, small_data, kept, batch_size, better
):
    recipe = replace(small.recipe, batch_size=batch_size)
    task = replace(small, make_model=lambda: normalising(images=False), recipe=recipe)
    masks = torch.arange(120).expand(2, 120) < kept
    heard = []
    wanted = rf"An epoch over {kept} examples in batches of {batch_size} has a batch of one.* as {better}: one that"
    with pytest.raises(UsageError, match=wanted):
        train_replicas(task, small_data, masks, "x", on_epoch=lambda *told: heard.append(told))
    assert heard == []
    train_replicas(replace(task, recipe=replace(recipe, batch_size=better, epochs=1)), small_data, masks, "x")


@pytest.mark.parametrize(("images", "kept"), [(True, 61), (False, 60), (False, 62)])
def test_other_batches_are_normalised(small, small_data, images, kept):
    task = replace(small, make_model=lambda: normalising(images=images), recipe=replace(small.recipe, epochs=1))
    found = train_replicas(task, small_data, torch.arange(120).expand(2, 120) < kept, "x")
    (tracked,) = [v for k, v in found.items() if k.endswith("num_batches_tracked")]
    assert tracked.tolist() == [-(-kept // 20)] * 2


def test_what_vmap_has_no_rule_for_is_refused_in_a_group_and_trained_alone(small, small_data):
    task = replace(small, make_model=Choosing)
    masks = torch.ones(2, small.n_train, dtype=torch.bool)
    with pytest.raises(UsageError, match=r"2 replicas of the model of small cannot .* at once: .*one at a time"):
        train_replicas(task, small_data, masks, "test")
    assert train_replicas(task, small_data, masks[:1], "test")["last.bias"].shape == (1, 10)


def test_groups_are_bounded_by_memory_and_number():
    assert group_size({"w": torch.zeros(1)}) == 50
    assert group_size({"w": torch.empty(10**8, device="meta")}) == 1
    assert group_size({"w": torch.zeros(100_000)}) == (16 << 20) // 1_200_000


# Models with running statistics, Adam and schedules, sequences, bfloat16

VOCABULARY, LENGTH = 13, 6
ADAMW = Recipe(
    lr=3e-3,
    momentum=0.9,
    batch_size=16,
    epochs=3,
    weight_decay=0.1,
    optimizer="adamw",
    beta2=0.99,
    schedule="linear",
    warmup=0.2,
)


def normalised_model() -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)),
        nn.Conv2d(1, 4, 3, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Dropout2d(0.25),
        nn.Flatten(),
        nn.Linear(144, 8),
        nn.BatchNorm1d(8),
        nn.Linear(8, 10),
    )


def normalised(small):
    return replace(small, make_model=normalised_model, recipe=replace(small.recipe, lr=0.05, weight_decay=1e-3))


def sequence_model() -> nn.Module:
    return nano_gpt(VOCABULARY, LENGTH, layers=1, width=8, heads=2, p=0.2)


@pytest.fixture(scope="module")
def counting(small):
    """Return a task of counting in steps, and its data: numbers modulo thirteen, one, two or three apart."""
    starts, steps = torch.meshgrid(torch.arange(VOCABULARY), torch.arange(1, 4), indexing="ij")
    numbers = (starts.reshape(-1, 1) + steps.reshape(-1, 1) * torch.arange(LENGTH + 1)) % VOCABULARY  # [39, LENGTH + 1]
    order = torch.randperm(39, generator=generator("counting"))
    parts = {"train": numbers[order[:30]], "queries": numbers[order[30:]]}
    data = TaskData(*(Examples(n[:, :-1].contiguous(), n[:, 1:].contiguous(), split) for split, n in parts.items()))
    task = replace(
        small,
        name="counting",
        n_train=30,
        n_queries=9,
        make_model=sequence_model,
        loss=token_cross_entropy,
        target=MEAN_LOG_PROBABILITY,
        recipe=replace(ADAMW, batch_size=8),
    )
    return task, data


def by_hand(model: nn.Module) -> nn.Module:
    """Let every dropout layer multiply by its ``mask``, which the loop sets, or leave its inputs alone."""
    for module in model.modules():
        if isinstance(module, (nn.Dropout, nn.Dropout2d, SequenceDropout)):
            module.mask = None
            module.forward = lambda x, module=module: x if module.mask is None else x * module.mask
    return model


def torchs_rule(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(model.parameters(), recipe.lr, recipe.momentum, weight_decay=recipe.weight_decay)
    groups = [
        {"params": [p for p in model.parameters() if p.dim() > 1], "weight_decay": recipe.weight_decay},
        {"params": [p for p in model.parameters() if p.dim() <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, recipe.lr, betas=(recipe.momentum, recipe.beta2))


def any_plain_training(task, data, kept, *stream):
    """Train one replica of any model the way a second-year student would."""
    recipe = task.recipe
    torch.manual_seed(derive_seed(task.name, *stream, "init"))
    model = by_hand(task.make_model()).train()
    _, sites = task.template(data.training.inputs[:1])
    rule = torchs_rule(model, recipe)
    per_epoch = -(-int(kept.sum()) // recipe.batch_size)
    warm, total = recipe.warmup * recipe.epochs * per_epoch, recipe.epochs * per_epoch
    linear = recipe.schedule == "linear"
    schedule = torch.optim.lr_scheduler.LambdaLR(
        rule, lambda t: min(1.0, (t + 1) / warm if warm else 1.0) * ((total - t) / total if linear else 1.0)
    )
    for epoch in range(recipe.epochs):
        order = torch.randperm(task.n_train, generator=generator(task.name, *stream, "order", epoch))
        mine = order[kept[order]]
        masks = Stream((task.name, *stream), task.n_train, sites, torch.device("cpu")).dropout(epoch).masks
        for batch in mine.split(recipe.batch_size):
            for name, mask in masks.items():
                model.get_submodule(name.removesuffix(".mask")).mask = mask[batch]
            loss = task.loss(model(data.training.inputs[batch]), data.training.labels[batch]).mean()
            rule.zero_grad()
            loss.backward()
            rule.step()
            schedule.step()
    return model.state_dict()


def assert_equal_to_plain_loops(task, data, replicas: int) -> None:
    masks = task.subset_masks()[:replicas]
    ours = train_replicas(task, data, masks, "ground-truth", 3)
    with torch.random.fork_rng():
        for r in range(replicas):
            plain = any_plain_training(task, data, masks[r], "ground-truth", 3)
            assert ours.keys() == plain.keys()
            for name, value in plain.items():
                torch.testing.assert_close(
                    ours[name][r], value, rtol=1e-3, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}"
                )


@pytest.mark.parametrize("replicas", [1, 3])
def test_training_with_running_statistics_equals_a_plain_loop(small, small_data, replicas):
    assert_equal_to_plain_loops(normalised(small), small_data, replicas)


@pytest.mark.parametrize("replicas", [1, 3])
@pytest.mark.parametrize(
    "change", [{}, {"warmup": 0.0}, {"schedule": "constant"}, {"schedule": "constant", "warmup": 0.0}]
)
def test_adamw_with_warm_up_and_a_linear_schedule_equals_a_plain_loop(small, small_data, change, replicas):
    assert_equal_to_plain_loops(replace(small, recipe=replace(ADAMW, **change)), small_data, replicas)


@pytest.mark.parametrize("replicas", [1, 3])
def test_training_on_sequences_equals_a_plain_loop(counting, replicas):
    task, data = counting
    assert_equal_to_plain_loops(task, data, replicas)


def test_a_sequence_model_learns(counting):
    task, data = counting
    masks, outputs = torch.ones(2, task.n_train, dtype=torch.bool), []
    for epochs in (1, 25):
        recipe = replace(task.recipe, epochs=epochs, lr=0.03)
        outputs.append(target_outputs(task, data, train_replicas(task, data, masks, "x", recipe=recipe)))
        assert outputs[-1].shape == (2, task.n_queries)
        assert outputs[-1].dtype == torch.float32
    assert (outputs[1].mean(1) > outputs[0].mean(1) + 0.5).all()


@pytest.mark.parametrize("which", ["plain", "normalised", "sequences"])
def test_outputs_do_not_depend_on_the_batch_of_queries(small, small_data, counting, monkeypatch, which):
    task, data = {"plain": (small, small_data), "normalised": (normalised(small), small_data)}.get(which, counting)
    trained = train_replicas(task, data, task.subset_masks()[:2], "x")
    whole = target_outputs(task, data, trained)
    monkeypatch.setattr(trainer, "_QUERY_BATCH", 7)
    torch.testing.assert_close(target_outputs(task, data, trained), whole, rtol=1e-4, atol=1e-5)


class OnRows(nn.Module):
    """A module of torch's on the rows of an image."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body, self.last = body, nn.Linear(64, 10)

    def forward(self, x):
        rows = x.view(-1, 8, 8)
        out = self.body(rows, rows, rows) if isinstance(self.body, nn.MultiheadAttention) else self.body(rows)
        return self.last((out[0] if isinstance(out, tuple) else out).flatten(1))


@pytest.mark.parametrize(
    "body",
    [
        lambda: nn.MultiheadAttention(8, 2, batch_first=True),
        lambda: nn.TransformerEncoderLayer(8, 2, 8, dropout=0.0, batch_first=True),
        lambda: nn.LSTM(8, 8, batch_first=True),
    ],
    ids=["attention", "encoder", "LSTM"],
)
def test_replicas_of_torchs_sequence_modules_do_not_depend_on_who_trains_beside(small, small_data, body):
    recipe = replace(small.recipe, epochs=1)
    task = replace(small, name="modules", make_model=lambda: OnRows(body()), recipe=recipe)
    masks = task.subset_masks()[:2]
    alone = in_groups(task, small_data, masks, 1, "ground-truth", 0)
    assert_same(alone, together(task, small_data, masks, "ground-truth", 0))


@pytest.fixture(params=["normalised", "sequences"])
def half_precise(request, small, small_data, counting):
    """Return a task whose recipe asks for bfloat16, and its data."""
    task, data = (normalised(small), small_data) if request.param == "normalised" else counting
    return replace(task, recipe=replace(task.recipe, precision="bfloat16")), data


def trained_in(task, data, asked, monkeypatch, *, available: bool):
    monkeypatch.setattr(precision, "bfloat16_pays", lambda kind: available)
    recipe = replace(task.recipe, precision=asked)
    return train_replicas(task, data, task.subset_masks()[:2], "x", recipe=recipe)


def test_bfloat16_is_float32_where_the_processor_lacks_it(half_precise, monkeypatch):
    asked, plain = (trained_in(*half_precise, p, monkeypatch, available=False) for p in ("bfloat16", "float32"))
    assert all(torch.equal(asked[k], plain[k]) for k in plain)


def test_replicas_in_bfloat16_do_not_depend_on_who_trains_beside(half_precise, monkeypatch):
    monkeypatch.setattr(precision, "bfloat16_pays", lambda kind: True)
    task, data = half_precise
    masks = task.subset_masks()[:3]
    together = train_replicas(task, data, masks, "x")
    assert_same(in_groups(task, data, masks, 1, "x"), together)


def test_bfloat16_is_close_where_the_processor_has_it(half_precise, monkeypatch):
    task, data = half_precise
    found, plain = (trained_in(task, data, p, monkeypatch, available=True) for p in ("bfloat16", "float32"))
    assert all(p.dtype == plain[k].dtype and p.isfinite().all() for k, p in found.items())
    assert any(not torch.equal(found[k], plain[k]) for k in plain)
    changed = target_outputs(task, data, found) - target_outputs(task, data, plain)
    assert changed.isfinite().all()
    assert changed.abs().mean() < 0.2 * target_outputs(task, data, plain).std()


# A GPU is never waited for: tests/gpu has the same on a device; here, what a step asks of any device


class Watch(TorchDispatchMode):
    """Fail at operations whose result, or its size, the host has to know before it can go on."""

    WAITING = ("_local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select", "_unique2", "bincount")

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        picked = [i for i in args[1] if i is not None] if name in ("index", "index_put_") else []
        if name in self.WAITING or any(i.dtype == torch.bool for i in picked):
            raise AssertionError(f"{name} waits for the device")
        return function(*args, **(kwargs or {}))


@pytest.fixture
def watched(monkeypatch) -> list[int]:
    """Watch from when an epoch's order and masks are on the device to its last step; note how many steps there were."""
    steps: list[int] = []
    unwatched = trainer._steps

    def watch(*args):
        found = unwatched(*args)
        first = next(found)
        with Watch():
            for step in itertools.chain([first], found):
                steps.append(len(steps))
                yield step

    monkeypatch.setattr(trainer, "_steps", watch)
    return steps


@pytest.mark.parametrize("replicas", [1, 3])
@pytest.mark.parametrize("asked", ["float32", "bfloat16"])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("name", ["mlp", "normalised", "sequences"])
def test_the_steps_of_an_epoch_wait_for_nothing(small, small_data, counting, watched, name, optimizer, asked, replicas):
    task, data = counting if name == "sequences" else (normalised(small) if name == "normalised" else small, small_data)
    recipe = replace(task.recipe, precision=asked, optimizer=optimizer, beta2=0.99, epochs=2)
    train_replicas(task, data, task.subset_masks()[:replicas], "x", recipe=recipe)
    assert len(watched) == 2 * -(-int(task.subset_masks()[0].sum()) // recipe.batch_size)


@pytest.mark.parametrize(
    "waiting", [lambda x: x.sum().item(), lambda x: x[x > 0], lambda x: x.nonzero(), lambda x: bool((x > 0).any())]
)
def test_the_watch_notices_what_waits(small, small_data, watched, waiting):
    def loss(logits, labels):
        waiting(logits.detach())
        return small.loss(logits, labels)

    with pytest.raises(AssertionError, match="waits for the device"):
        train_replicas(replace(small, loss=loss), small_data, small.subset_masks()[:1], "x")
