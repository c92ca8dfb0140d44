"""What a task's model may be, and what is refused before anything is trained."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.overrides import _get_current_function_mode_stack
from torch.utils.checkpoint import checkpoint

from tdabench import Examples, TaskData
from tdabench.baselines.grad_dot import GradDot
from tdabench.errors import UsageError
from tdabench.execution import execute
from tdabench.targets import Target
from tdabench.template import check_gradients, template_of
from tdabench.trainer import target_outputs, train_replicas

ROW = torch.rand(1, 12)
SPLITS = ("training", "queries")


class InPlace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(12, 3)

    def forward(self, x):
        x -= 0.5
        return self.layer(x)


class Viewing(nn.Module):
    """The classic network for images, which takes it for granted that they lie in memory channel by channel."""

    def __init__(self, *, pool: bool = True) -> None:
        super().__init__()
        self.convolution, self.pool = nn.Conv2d(3, 4, 3), nn.MaxPool2d(2) if pool else nn.Identity()
        self.drop, self.last = nn.Dropout(0.2), nn.Linear(36 if pool else 144, 3)

    def forward(self, x):
        h = self.pool(self.convolution(x).relu())
        return self.last(self.drop(h.view(x.size(0), -1)))


class DroppingRows(nn.Module):
    """Dropout of ``[B * T, d]``, of ``[T, B, d]``, or of what is the same for all examples."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self.drop, self.last, self.where = nn.Dropout(0.3), nn.Linear(12, 3), where
        self.positions = nn.Parameter(torch.rand(4, 3))

    def forward(self, x):
        tokens = x.view(-1, 4, 3)
        if self.where == "folded":
            tokens = self.drop(tokens.flatten(0, 1)).view(-1, 4, 3)
        elif self.where == "first":
            tokens = self.drop(tokens.transpose(0, 1)).transpose(0, 1)
        else:
            tokens = tokens + self.drop(self.positions.unsqueeze(0))
        return self.last(tokens.flatten(1))


class Experts(nn.Module):
    """Two experts, of which an example sees one: a batch may leave the other out."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList([nn.Linear(64, 10), nn.Linear(64, 10)])
        self.spare = nn.Parameter(torch.ones(3))

    def forward(self, x):
        first = (x.sum(1, keepdim=True) > 1e6).to(x.dtype)
        return first * self.experts[0](x) + (1 - first) * self.experts[1](x)


def coloured(n: int, split: str) -> Examples:
    random = torch.Generator().manual_seed(n)
    return Examples(torch.randn(n, 3, 8, 8, generator=random), torch.randint(3, (n,), generator=random), split)


def test_frozen_parameters_are_refused_as_they_would_be_trained():
    model = nn.Sequential(nn.Linear(12, 4), nn.ReLU(), nn.Linear(4, 3))
    model[0].requires_grad_(False)
    with pytest.raises(UsageError, match=r"The model's 0\.weight is frozen .*register_buffer"):
        template_of(model, ROW)


def test_parameters_of_another_type_are_refused():
    with pytest.raises(UsageError, match=r"The model's weight is float64, expected float32"):
        template_of(nn.Linear(12, 3).double(), ROW)


def test_a_parameter_without_elements_is_refused():
    model = nn.Linear(12, 3)
    model.register_parameter("spare", nn.Parameter(torch.empty(0, 4)))
    with pytest.raises(UsageError, match=r"The model's spare has no elements, its shape is \[0, 4\]\. Leave it out"):
        template_of(model, ROW)


@pytest.mark.parametrize("kind", [nn.Embedding, nn.EmbeddingBag])
@pytest.mark.parametrize("option", [{"max_norm": 1.0}, {"sparse": True}, {"scale_grad_by_freq": True}])
def test_options_of_embeddings_that_cannot_be_trained_are_refused(kind, option):
    (name,) = option
    with pytest.raises(UsageError, match=rf"The model's 0 is an {kind.__name__} with {name}=.* Leave {name} out"):
        template_of(nn.Sequential(kind(9, 4, **option)), torch.ones(1, 5, dtype=torch.int64))


def test_a_model_that_gives_more_than_its_outputs_is_refused(small, small_data, view):
    class Two(nn.Linear):
        def forward(self, x):
            return super().forward(x), x

    task = replace(small, make_model=lambda: Two(64, 10))
    wanted = r"The model of small gives a tuple, expected one tensor\. Return its outputs alone, \[B, \.\.\.\]"
    with pytest.raises(UsageError, match=wanted):
        train_replicas(task, small_data, task.subset_masks()[:2], "x")
    with pytest.raises(UsageError, match=wanted):
        view(task, small_data)


def test_a_target_that_is_no_float_is_refused_before_anything_is_trained(small, small_data, view):
    right = replace(small.target, function=lambda logits, labels: logits.argmax(-1) == labels)
    with pytest.raises(UsageError, match=r"The target of small is of type torch\.bool, expected floats"):
        view(replace(small, target=right), small_data)


def test_outputs_are_float32_whatever_the_target_computes_in(small, small_data):
    plain = small.target.function
    precise = replace(small.target, function=lambda logits, labels: plain(logits.double(), labels))
    stacked = train_replicas(small, small_data, small.subset_masks()[:2], "x")
    found = target_outputs(replace(small, target=precise), small_data, stacked)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, target_outputs(small, small_data, stacked))


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
def test_a_model_that_cannot_be_copied_is_refused():
    with pytest.raises(UsageError, match=r"cannot be copied: .*parametrizations\.weight_norm does not"):
        template_of(nn.utils.weight_norm(nn.Linear(12, 3)), ROW)


def test_a_model_that_writes_to_its_input_is_refused_and_the_data_is_left_as_it_was():
    example = ROW.clone()
    with pytest.raises(UsageError, match="The model writes to its input"):
        template_of(InPlace(), example)
    assert torch.equal(example, ROW)


@pytest.mark.parametrize(("where", "rows"), [("folded", "4 rows for one example and 8"), ("first", "4 .* and 4")])
def test_dropout_of_rows_that_are_not_examples_is_refused(where, rows):
    with pytest.raises(UsageError, match=rf"The model's drop is given {rows}.*\[B, \.\.\.\]"):
        template_of(DroppingRows(where), ROW)


def test_dropout_of_what_examples_share_has_a_mask_for_each():
    _, (site,) = template_of(DroppingRows("shared"), ROW)
    assert site.shape == (4, 3)


class DroppingInTraining(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.normal, self.drop, self.last = (
            nn.Linear(12, 4),
            nn.BatchNorm1d(4),
            nn.Dropout(),
            nn.Linear(4, 3),
        )

    def forward(self, x):
        h = self.normal(self.first(x)).relu()
        return self.last(self.drop(h) if self.training else h)


def test_dropout_that_is_called_in_training_only_is_refused_as_its_masks_would_be_given_in_evaluation_mode():
    model = DroppingInTraining()
    with pytest.raises(UsageError, match="calls drop in training mode only"):
        template_of(model, ROW)
    assert model.normal.num_batches_tracked == 0


class Holding(nn.Module):
    """Uses a parameter past its module's attribute: in a list, or in a function."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self.last, self.weight = nn.Linear(8, 3), nn.Parameter(torch.randn(8, 12))
        self.weights = [self.weight]
        if where == "function":
            self.weights = None
            weight = self.weight
            self.first = lambda x: nn.functional.linear(x, weight)
        else:
            self.first = lambda x: x

    def forward(self, x):
        h = self.first(x)
        return self.last((nn.functional.linear(h, self.weights[0]) if self.weights else h).tanh())


class Checkpointing(nn.Module):
    """Computes a block again in the backward pass: always, or in training mode, as is usual."""

    def __init__(self, *, always: bool) -> None:
        super().__init__()
        self.first, self.block, self.last = nn.Linear(12, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.always = always
        self.normal = nn.Identity() if always else nn.BatchNorm1d(8)

    def forward(self, x):
        h, block = self.normal(self.first(x)), lambda h: self.block(h).relu()
        again = self.always or self.training
        return self.last(checkpoint(block, h, use_reentrant=False) if again else block(h))


def compare_gradients(model: nn.Module) -> None:
    """Check a model as a task's is, on rows that differ."""
    made, _ = template_of(model, ROW)
    check_gradients(model, made, torch.rand(2, 12))


@pytest.mark.parametrize("where", ["list", "function"])
def test_a_parameter_that_is_used_past_its_attribute_is_refused_as_it_would_not_be_trained(where):
    with pytest.raises(UsageError, match=r"The model's weight gets another gradient .*.* not one .* list"):
        compare_gradients(Holding(where))


@pytest.mark.parametrize("always", [True, False])
def test_activation_checkpointing_is_refused_as_it_would_compute_with_other_values(always):
    with pytest.raises(UsageError, match=r"The model's first\.weight gets .* without torch\.utils\.checkpoint"):
        compare_gradients(Checkpointing(always=always))


def test_a_task_s_model_is_refused_for_its_gradients_before_anything_is_trained(small, small_data, view):
    task = replace(small, make_model=lambda: nn.Sequential(nn.Linear(64, 12), Holding("list"), nn.Linear(3, 10)))
    with pytest.raises(UsageError, match=r"The model's 1\.weight gets another gradient"):
        train_replicas(task, small_data, task.subset_masks()[:2], "x")
    with pytest.raises(UsageError, match=r"The model's 1\.weight gets another gradient"):
        view(task, small_data)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cells, self.last, self.spare = nn.LSTM(3, 4), nn.Linear(4, 3), nn.Parameter(torch.ones(2))

    def forward(self, x):
        return self.last(self.cells(x.view(-1, 4, 3).transpose(0, 1))[0][-1])


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(12, 12), nn.Linear(12, 12)
        self.last.weight = self.first.weight

    def forward(self, x):
        return self.last(self.first(x).relu()).log_softmax(-1)


@pytest.mark.parametrize(
    "make_model",
    [
        lambda: nn.Sequential(nn.Linear(12, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(), nn.Linear(8, 3)),
        Recurrent,
        Tied,
        lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(12, 3)),
        lambda: nn.Sequential(nn.Unflatten(1, (4, 3)), nn.TransformerEncoderLayer(3, 1, 8, 0.0, batch_first=True)),
    ],
    ids=["normalised", "recurrent and unused", "tied", "parametrized", "attention"],
)
def test_gradients_are_compared_without_a_trace_and_those_of_ordinary_models_agree(make_model):
    model = make_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    compare_gradients(model)
    assert not model.training
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def test_gradients_are_compared_once_for_a_task(small, small_data, monkeypatch):
    task, compared = replace(small), []
    monkeypatch.setattr("tdabench.task.check_gradients", lambda *given: compared.append(given))
    for _ in range(3):
        task.template(small_data.training.inputs[:2])
    assert len(compared) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"loss": nn.functional.cross_entropy}, r"The loss of small has shape \[\] for two .* reduction=\"none\""),
        ({"target": Target("kept", lambda z, y: z[:, :1], None)}, r"The target of small has shape \[2, 1\] for two"),
    ],
)
def test_losses_and_targets_give_one_value_an_example(small, small_data, view, change, message):
    other = replace(small, **change)
    with pytest.raises(UsageError, match=message):
        train_replicas(other, small_data, small.subset_masks()[:2], "x")
    with pytest.raises(UsageError, match=message):
        view(other, small_data)


def test_a_model_for_inputs_of_another_size_is_refused_with_what_it_was_given(small, small_data, view):
    task = replace(small, make_model=lambda: nn.Sequential(nn.Linear(63, 10)))
    wanted = r"The model, given inputs of shape \[64\], fails: RuntimeError: mat1 and mat2"
    with pytest.raises(UsageError, match=wanted):
        train_replicas(task, small_data, task.subset_masks()[:2], "x")
    with pytest.raises(UsageError, match=wanted):
        view(task, small_data)


@pytest.mark.parametrize("split", ["training", "queries"])
def test_classes_that_are_counted_from_one_are_refused_with_the_labels_there_are(small, small_data, view, split):
    """The first example may well be of a class that has a logit."""
    examples = getattr(small_data, split)
    data = replace(small_data, **{split: replace(examples, labels=examples.labels + 1)})
    what = {"training": "loss", "queries": "target"}[split]
    wanted = rf"The {what} of small, given logits \[2, 10\] and labels \[2\] from 1 to 10, fails: .*numbered from 0"
    with pytest.raises(UsageError, match=wanted):
        train_replicas(small, data, small.subset_masks()[:2], "x")
    with pytest.raises(UsageError, match=wanted):
        view(small, data)


def test_labels_that_do_not_fit_the_logits_are_refused_with_both_shapes(padded, view):
    task, data = padded()
    two = replace(data.training, labels=data.training.labels.unsqueeze(1).expand(-1, 2).contiguous())
    with pytest.raises(
        UsageError, match=r"The loss of small, given logits \[2, 3\] and labels \[2, 2\] from 0 to 2, fails"
    ):
        view(task, replace(data, training=two))


def test_tokens_that_the_model_does_not_know_are_refused(padded, view):
    task, data = padded()
    two = replace(data.training, inputs=data.training.inputs + 9)
    with pytest.raises(UsageError, match=r"The model, given inputs of shape \[5\], fails: IndexError"):
        view(task, replace(data, training=two))


def test_a_loss_that_runs_out_of_memory_is_no_mistake_of_the_author_s(small, small_data, view):
    def loss(logits, labels):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        view(replace(small, loss=loss), small_data)


def test_examples_without_labels_are_passed_as_they_are(small, small_data, view):
    """A regression, whose targets go with the inputs."""
    empty = {s: replace(getattr(small_data, s), labels=getattr(small_data, s).labels[:, None][:, :0]) for s in SPLITS}
    squares = replace(small, loss=lambda z, _: z.square().sum(1), target=Target("sum", lambda z, _: z.sum(1), None))
    view(squares, TaskData(**empty))


def test_images_come_channels_last_where_the_model_takes_them_so():
    given: list[torch.Tensor] = []
    for model in (Viewing(pool=True), nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten())):
        made, _ = template_of(model, coloured(1, "train").inputs)
        made.register_forward_hook(lambda _, inputs, __: given.append(inputs[0]))
        made(coloured(2, "train").inputs.contiguous(memory_format=torch.channels_last))
    assert [x.is_contiguous() for x in given] == [True, False]
    assert given[1].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("pool", [True, False])
def test_a_network_that_views_its_images_is_trained_evaluated_and_attributed(small, view, pool):
    task = replace(small, make_model=lambda: Viewing(pool=pool), n_train=30, n_queries=4)
    mine = view(task, TaskData(coloured(30, "train"), coloured(4, "queries")))
    mine.warm_up()
    member = mine.member()
    wanted = -member.gradients(mine.queries, of="target").dense() @ member.gradients(mine.training, of="loss").dense().T
    torch.testing.assert_close(execute(GradDot(), None, mine), wanted, rtol=1e-4, atol=1e-5)
    one_by_one = member.targets(mine.queries, batch_size=1)
    torch.testing.assert_close(member.targets(mine.queries), one_by_one, rtol=1e-4, atol=1e-5)


def test_what_a_batch_does_not_use_is_trained_by_zeros(small, small_data, view):
    task = replace(small, make_model=Experts)
    mine = view(task, small_data)
    mine.warm_up()
    start, end = task.initial_model("attribution", 0, 0).state_dict(), mine.train()
    assert torch.equal(end["spare"], torch.ones(3))
    assert torch.equal(end["experts.0.weight"], start["experts.0.weight"])
    assert not torch.equal(end["experts.1.weight"], start["experts.1.weight"])
    member = mine.member()
    dense = member.gradients(mine.training, of="loss").dense()
    assert dense[:, : 3 + 650].count_nonzero() == 0
    products = member.hessian(mine.training, ridge=0.5).times(torch.ones(1, dense.shape[1]))
    assert torch.equal(products[0, :653], torch.full((653,), 0.5))


class Scaled(nn.Embedding):
    """As in many language models."""

    def forward(self, input):  # noqa: A002 - as torch calls it
        return 3 * super().forward(input)


class Functional(nn.Embedding):
    def forward(self, input):  # noqa: A002 - as torch calls it
        return nn.functional.embedding(input, self.weight, self.padding_idx)


class Bare(nn.Embedding):
    def forward(self, input):  # noqa: A002 - as torch calls it
        return torch.embedding(self.weight, input, self.padding_idx)


class Padded(nn.Module):
    """An embedding with padding, which the model asks for by name, called once or twice."""

    def __init__(self, *, padding: int = 0, twice: bool = False, kind: type[nn.Embedding] = nn.Embedding) -> None:
        super().__init__()
        self.tokens, self.last, self.twice = kind(9, 6, padding_idx=padding), nn.Linear(6, 3), twice

    def forward(self, x):
        h = self.tokens(input=x) + (self.tokens(x) if self.twice else 0)
        kept = x != self.tokens.padding_idx
        return self.last((h.tanh() * (1 + kept.unsqueeze(-1))).mean(1))


def padded_tokens(n: int, split: str) -> Examples:
    """Return sequences of which neither the first nor the last is padded."""
    random = torch.Generator().manual_seed(n)
    tokens = torch.randint(1, 8, (n, 5), generator=random)
    tokens[1 : n // 2, 3:], tokens[n // 2 : -1, 4:] = 0, 8
    return Examples(tokens, torch.randint(3, (n,), generator=random), split)


@pytest.fixture
def padded(small):
    """Return a factory of tasks whose sequences are padded, by 0 or by -1, and the data."""

    def make(**options):
        task = replace(small, make_model=lambda: Padded(**options), n_train=30, n_queries=4)
        return task, TaskData(padded_tokens(30, "train"), padded_tokens(4, "queries"))

    return make


def one_loss(member):
    """Return the loss of one example in terms of parameters, input and label."""

    def value(parameters, x, y):
        logits = functional_call(member.model, parameters, (x.unsqueeze(0),))
        return member.task.loss_function(logits, y.unsqueeze(0)).squeeze(0)

    return value


def test_padding_is_seen_to_in_calls_of_the_model_alone():
    """Also after a call that failed: what comes after must not go through it."""
    made, _ = template_of(Padded(), torch.ones(1, 5, dtype=torch.int64))
    with pytest.raises(IndexError):
        made(torch.full((1, 5), 9))
    made(torch.ones(1, 5, dtype=torch.int64))
    assert not _get_current_function_mode_stack()


@pytest.mark.parametrize("kind", [nn.Embedding, Scaled, Functional, Bare])
@pytest.mark.parametrize("padding", [0, -1])
def test_padding_is_not_trained_whoever_trains_beside(padded, padding, kind):
    task, data = padded(padding=padding, kind=kind)
    masks = torch.ones(3, 30, dtype=torch.bool)
    masks[range(3), range(3)] = False
    together, start = train_replicas(task, data, masks, "x"), task.initial_model("x").tokens.weight
    assert torch.equal(together["tokens.weight"][:, padding], start[padding].expand(3, 6))
    for r in range(3):
        alone = train_replicas(task, data, masks[r : r + 1], "x")
        for name, p in alone.items():
            torch.testing.assert_close(together[name][r], p[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "way"),
    [({}, "together"), ({"twice": True}, "mapped"), *(({"kind": kind}, "mapped") for kind in (Scaled, Functional))],
)
def test_gradients_with_padding_are_those_of_the_plain_model(padded, view, options, way):
    task, data = padded(**options)
    member = view(task, data).member()
    plain = Padded(**options).double()
    plain.load_state_dict(member.parameters)
    found = member.gradients(data.training, of="loss")
    assert found.layout.way == way
    assert found.layout.loose == (("tokens.weight",) if options else ())
    values, training = found.dense(), data.training
    by_example = vmap(grad(one_loss(member)), in_dims=(None, 0, 0))
    mapped = by_example(member.parameters, training.inputs, training.labels)
    own = torch.cat([g.flatten(1) for g in mapped.values()], dim=1)  # as a method may find them itself
    torch.testing.assert_close(own, values, rtol=1e-4, atol=1e-6)
    for i, row in enumerate(values):
        value = task.loss(plain(data.training.inputs[i : i + 1]), data.training.labels[i : i + 1]).sum()
        wanted = torch.cat([g.flatten() for g in torch.autograd.grad(value, list(plain.parameters()))])
        torch.testing.assert_close(row.double(), wanted, rtol=1e-4, atol=1e-6)
