"""What a task's model may be, and what is refused before anything is trained."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from tdabench import Examples, TaskData
from tdabench.baselines.grad_dot import GradDot
from tdabench.errors import UsageError
from tdabench.execution import execute
from tdabench.targets import Target
from tdabench.template import template_of
from tdabench.trainer import train_replicas

ROW = torch.rand(1, 12)


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
