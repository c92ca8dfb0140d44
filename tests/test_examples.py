"""Examples that no model or loss could take are refused in words of ours, before anything is hashed or trained."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from tdabench.errors import DataError, UsageError
from tdabench.examples import Examples, check_examples
from tdabench.registry import find_task

INPUTS, LABELS = torch.zeros(5, 3), torch.zeros(5, dtype=torch.int64)


def with_value(value: float) -> torch.Tensor:
    inputs = INPUTS.clone()
    inputs[[2, 4], 1] = value
    return inputs


@pytest.mark.parametrize(
    ("inputs", "labels"),
    [
        (INPUTS, LABELS),
        (torch.zeros(5, 2, 4, 4), LABELS),
        (torch.zeros(5), LABELS),
        (torch.zeros(5, 7, dtype=torch.int64), torch.zeros(5, 7, dtype=torch.int64)),
    ],
    ids=["vectors", "images", "numbers", "tokens"],
)
def test_what_models_take_passes(inputs, labels):
    check_examples(Examples(inputs, labels, "train"), "queries of mine")


@pytest.mark.parametrize(
    ("inputs", "labels", "message"),
    [
        (INPUTS.double(), LABELS, "inputs of the queries of mine are float64, expected a tensor of float32 or int64"),
        (INPUTS.half(), LABELS, r"are float16, .* Write torch\.as_tensor\(inputs, dtype=torch\.float32\) in load_data"),
        (INPUTS.to(torch.uint8), LABELS, "are uint8, expected a tensor of float32 or int64 for tokens"),
        (INPUTS.numpy(), LABELS, "are a ndarray, expected a tensor of float32"),
        (
            INPUTS,
            LABELS.int(),
            r"labels of the queries .* are int32, expected a tensor of int64\. Write .*torch\.int64\)",
        ),
        (INPUTS, np.zeros(5), r"labels of the queries .* are a ndarray"),
        (INPUTS, LABELS.float(), r"are float32, expected a tensor of int64\. Write torch\.as_tensor\(labels"),
        (INPUTS, LABELS + 0.5, r"are float32, .* classes or tokens; the targets of a regression go with the inputs\.$"),
        (INPUTS, np.full(5, 0.5), r"are a ndarray, .* the targets of a regression go with the inputs\.$"),
        (INPUTS, [0.5] * 5, r"are a list, expected a tensor of int64\. Write"),
        (INPUTS, LABELS[:4], r"shape \[5, 3\], their labels \[4\]; expected \[n, \.\.\.\] for both"),
        (INPUTS[:0], LABELS[:0], r"shape \[0, 3\], their labels \[0\]; .* above 0"),
        (INPUTS, LABELS[0], r"their labels \[\]; expected"),
        (with_value(float("nan")), LABELS, r"not finite in 2 of 5, first in number 2\. Replace NaN and infinite"),
        (with_value(float("-inf")), LABELS, "not finite in 2 of 5, first in number 2"),
    ],
)
def test_what_they_do_not_take_is_one_error_that_says_what_to_write(inputs, labels, message):
    with pytest.raises(DataError, match=message):
        check_examples(Examples(inputs, labels, "queries"), "queries of mine")


@pytest.mark.parametrize("part", ["training", "queries"])
def test_a_task_of_float64_is_refused_when_its_data_is_loaded(small, small_data, part):
    examples = getattr(small_data, part)
    data = replace(small_data, **{part: replace(examples, inputs=examples.inputs.double())})
    for sha256 in ("", data.sha256):  # before it is told which hash to write, and after
        with pytest.raises(DataError, match=r"of small are float64, expected .* in load_data\."):
            replace(small, load_data=lambda _: data, data_sha256=sha256).data()


def test_load_data_that_gives_no_task_data_is_told_what_to_return(small):
    pair = (INPUTS, LABELS)
    with pytest.raises(DataError, match=r"load_data of small returns a tuple, expected a tdabench\.TaskData\. Return"):
        replace(small, load_data=lambda _: pair).data()


def test_the_shipped_tasks_that_need_no_download_pass(digits_data):
    for data in (digits_data, find_task("etudes-music-transformer").data()):
        check_examples(data.training, "training examples")
        check_examples(data.queries, "queries")


def test_a_part_of_a_set_knows_where_its_examples_are():
    whole = Examples(torch.arange(20.0).view(10, 2), torch.arange(10), "train")
    part = whole.part(torch.tensor([7, 2, 5]))
    assert whole.positions.tolist() == list(range(10))
    assert part.positions.tolist() == part.labels.tolist() == [7, 2, 5]
    for found in (part.all(), part.take(torch.tensor([0, 1, 2])), next(part.batches(9)), part.to("cpu").all()):
        assert found.index.tolist() == found.labels.tolist() == [7, 2, 5]
    assert part.take(torch.tensor([2])).index.tolist() == [5]
    assert [batch.index.tolist() for batch in part.batches(2)] == [[7, 2], [5]]
    assert whole.part(slice(3, 5)).part(slice(1, 2)).positions.tolist() == [4]
    for rows in (3, torch.tensor(3), [1, 2]):
        with pytest.raises(UsageError, match=r"A part of a set is examples\.part\(slice\(3, 5\)\) or a tensor"):
            whole.part(rows)
