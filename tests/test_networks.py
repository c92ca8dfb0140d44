from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tdabench.dropout import install_masks
from tdabench.examples import Examples
from tdabench.recipe import Recipe
from tdabench.registry import find_task
from tdabench.targets import cross_entropy, token_cross_entropy
from tdabench.tasks.networks import ResidualBlock, resnet9
from tdabench.tasks.transformers import Attention, music_transformer, nano_gpt, skew
from tdabench.trainer import Program, fit_stacked, stacked_state

# What other kernels may change: the order of additions, in float32.
CLOSE = {"rtol": 1e-4, "atol": 1e-5}
VOCABULARY, LENGTH, REPLICAS = 11, 8, 3


@pytest.fixture(autouse=True)
def _seeded():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def n_parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def narrow_resnet() -> nn.Sequential:
    return resnet9(2, width=8, strides=(2, 2, 2), p=0.1)


def small_transformer(make) -> nn.Module:
    return make(VOCABULARY, LENGTH, layers=2, width=12, heads=3, p=0.1)


def tokens(n: int = 4, length: int = LENGTH) -> torch.Tensor:
    return torch.randint(VOCABULARY, (n, length))


def spread(model: nn.Module) -> nn.Module:
    """Move the parameters away from their start, where biases, positions and distances hardly matter."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


# The ResNet-9


def test_the_resnet_of_the_literature_has_4_825_154_parameters():
    assert n_parameters(resnet9(2, width=64, strides=(1, 2, 2), p=0.1)) == 4_825_154


@pytest.mark.parametrize(
    ("strides", "shapes"),
    [((1, 2, 2), [(6, 32), (12, 16), (24, 8)]), ((2, 2, 2), [(6, 16), (12, 8), (24, 4)])],
)
def test_every_block_doubles_the_channels_and_divides_the_image_by_its_stride(strides, shapes):
    model, found = resnet9(7, width=3, strides=strides, p=0.1).eval(), []
    for module in model:
        if isinstance(module, ResidualBlock):
            module.register_forward_hook(lambda _, __, out: found.append(tuple(out.shape[1:])))
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 7)
    assert found == [(channels, size, size) for channels, size in shapes]


def test_images_of_a_batch_do_not_interact_in_evaluation_and_do_in_training():
    model, images = narrow_resnet(), torch.randn(6, 3, 32, 32)
    for module in model.modules():
        if isinstance(module, nn.Dropout2d):
            module.p = 0.0
    model(images)  # running statistics that are not those of a fresh model
    model.eval()
    whole = model(images)
    for i in range(6):
        torch.testing.assert_close(model(images[i : i + 1])[0], whole[i], **CLOSE)
    model.train()
    assert not torch.allclose(model(images[:3]), model(images)[:3], atol=1e-3)


# The transformers


@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 9))
def test_skewing_moves_every_distance_to_its_place(n, heads, t):
    scores = torch.arange(n * heads * t * t, dtype=torch.float32).view(n, heads, t, t)
    moved = skew(scores)
    assert moved.shape == scores.shape
    for i in range(t):
        for j in range(i + 1):
            assert torch.equal(moved[:, :, i, j], scores[:, :, i, t - 1 - (i - j)])


@pytest.mark.parametrize("relative", [False, True])
@pytest.mark.parametrize("t", [1, 5, LENGTH])
def test_attention_equals_the_formula_written_out(relative, t):
    width, heads = 12, 3
    d = width // heads
    attention = spread(Attention(LENGTH, width, heads, bias=True, relative=relative)).double()
    x = torch.randn(2, t, width, dtype=torch.float64)
    q, k, v = attention.inputs(x).split(width, dim=-1)  # [B, t, width]
    mixed = torch.zeros_like(x)
    for h in range(heads):
        own = slice(h * d, (h + 1) * d)
        for i in range(t):
            keys = [
                k[:, j, own] + (attention.distances[LENGTH - 1 - (i - j)] if relative else 0.0) for j in range(i + 1)
            ]
            scores = torch.stack([(q[:, i, own] * key).sum(-1) / math.sqrt(d) for key in keys], dim=-1)  # [B, i + 1]
            mixed[:, i, own] = (scores.softmax(-1).unsqueeze(-1) * v[:, : i + 1, own]).sum(1)
    torch.testing.assert_close(attention(x), attention.outputs(mixed))


@pytest.mark.parametrize("make", [nano_gpt, music_transformer])
def test_a_token_changes_no_logits_before_it(make):
    model, before = spread(small_transformer(make)).eval(), tokens()
    logits = model(before)
    assert logits.shape == (4, LENGTH, VOCABULARY)
    for t in range(LENGTH):
        after = before.clone()
        after[:, t] = (after[:, t] + 1) % VOCABULARY
        changed = (model(after) - logits).abs().amax(dim=(0, 2)) > 1e-6
        assert changed.tolist() == [False] * t + [True] * (LENGTH - t)


@pytest.mark.parametrize("make", [nano_gpt, music_transformer])
def test_a_shorter_input_has_the_logits_of_the_beginning(make):
    model, whole = spread(small_transformer(make)).eval(), tokens()
    logits = model(whole)
    for t in range(1, LENGTH):
        torch.testing.assert_close(model(whole[:, :t]), logits[:, :t], **CLOSE)


@pytest.mark.parametrize("make", [nano_gpt, music_transformer])
def test_the_order_of_the_past_matters(make):
    model, before = spread(small_transformer(make)).eval(), tokens(1)
    before[0, :2] = torch.tensor([1, 2])
    after = before.clone()
    after[0, :2] = torch.tensor([2, 1])
    assert (model(after) - model(before))[0, -1].abs().max() > 1e-3


def test_the_music_transformer_hears_distances_alone():
    model = spread(small_transformer(music_transformer)).eval()
    assert model.positions is None
    assert all(block.attention.distances.shape == (LENGTH, 4) for block in model.blocks)
    assert not any("distances" in name for name, _ in small_transformer(nano_gpt).named_parameters())


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("shakespeare-nanogpt", 10_770_048), ("maestro-music-transformer", 12_930_048)],
)
def test_the_reference_transformers_are_as_large_as_their_cards_say(name, parameters):
    assert n_parameters(find_task(name).make_model()) == parameters


@pytest.mark.parametrize(
    "name",
    [
        "shakespeare-nanogpt",
        "shakespeare-nanogpt-small",
        "maestro-music-transformer",
        "maestro-music-transformer-small",
        "etudes-music-transformer",
    ],
)
def test_a_fresh_transformer_finds_all_tokens_about_equally_likely(name):
    model = find_task(name).make_model().eval()
    vocabulary = model.head.out_features
    asked, answers = (torch.randint(vocabulary, (2, model.length)) for _ in range(2))
    loss = token_cross_entropy(model(asked), answers).mean().item()
    assert loss == pytest.approx(math.log(vocabulary), abs=0.2)


# Many replicas at once


def program_of(make_model, example: torch.Tensor, loss) -> Program:
    return Program(*install_masks(make_model(), example), loss)


def sequences() -> tuple[torch.Tensor, torch.Tensor]:
    both = torch.randint(VOCABULARY, (12, LENGTH + 1))
    return both[:, :-1], both[:, 1:]


def images() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(12, 3, 16, 16), torch.randint(2, (12,))


MODELS = {
    "nanoGPT": (lambda: small_transformer(nano_gpt), sequences, token_cross_entropy),
    "Music Transformer": (lambda: small_transformer(music_transformer), sequences, token_cross_entropy),
    "ResNet-9": (narrow_resnet, images, cross_entropy),
}


def stack_of(program: Program) -> dict[str, torch.Tensor]:
    """Return replicas that differ in every parameter and running statistic."""
    stacked = stacked_state(program.model, REPLICAS, torch.device("cpu"))
    return {k: v + 0.05 * torch.rand_like(v) if v.is_floating_point() else v for k, v in stacked.items()}


def alone(program: Program, values: dict[str, torch.Tensor], masks: dict[str, torch.Tensor], *, training: bool):
    """Return a module that holds a replica's values; dropout masks are set by hand."""
    model = copy.deepcopy(program.model).train(training)
    model.load_state_dict(values)
    for name, mask in masks.items():
        model.get_submodule(name.removesuffix(".mask")).mask = mask
    return model


@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
@pytest.mark.parametrize("name", MODELS)
def test_stacked_replicas_give_what_each_gives_alone(name, training):
    make_model, make_data, loss = MODELS[name]
    inputs = torch.stack([make_data()[0] for _ in range(REPLICAS)])  # [R, B, ...]
    program = program_of(make_model, inputs[0, :1], loss)
    assert len(program.sites) == {"ResNet-9": 3}.get(name, 5)
    stacked = stack_of(program)
    before = {k: v.clone() for k, v in stacked.items()}
    program.model.train(training)
    masks = {s.buffer: torch.rand(REPLICAS, inputs.shape[1], *s.shape).round() * 2 for s in program.sites}
    models = [
        alone(program, {k: v[r] for k, v in stacked.items()}, {k: m[r] for k, m in masks.items()}, training=training)
        for r in range(REPLICAS)
    ]
    with torch.no_grad():
        logits = program.logits(stacked, inputs, masks)
        for r, model in enumerate(models):
            torch.testing.assert_close(logits[r], model(inputs[r]), **CLOSE)
            for key, value in model.state_dict().items():  # running statistics have moved alike
                torch.testing.assert_close(stacked[key][r], value, **CLOSE)
    counted = [v - before[k] for k, v in stacked.items() if k.endswith("num_batches_tracked")]
    assert all(v.tolist() == [int(training)] * REPLICAS for v in counted)


@pytest.mark.parametrize("name", MODELS)
def test_replicas_trained_together_are_those_trained_apart(name):
    make_model, make_data, loss = MODELS[name]
    inputs, labels = make_data()
    program, training = program_of(make_model, inputs[:1], loss), Examples(inputs, labels, "train")
    masks = torch.zeros(REPLICAS, 12, dtype=torch.bool)
    for r in range(REPLICAS):
        masks[r, torch.randperm(12)[:8]] = True
    recipe = Recipe(lr=0.01, momentum=0.5, batch_size=4, epochs=2)
    if name != "ResNet-9":
        recipe = replace(recipe, optimizer="adamw", lr=1e-3, momentum=0.9, beta2=0.99, weight_decay=0.1)

    def fit(replicas: slice) -> dict[str, torch.Tensor]:
        start = {k: v[replicas].clone() for k, v in stacked.items()}
        return fit_stacked(program, start, training, masks[replicas], ("networks", name), recipe)

    stacked = stack_of(program)
    together = fit(slice(None))
    for r in range(REPLICAS):
        for key, value in fit(slice(r, r + 1)).items():
            torch.testing.assert_close(together[key][r : r + 1], value, rtol=1e-3, atol=1e-4)
    assert any(not torch.allclose(together[k], stacked[k]) for k in together)
