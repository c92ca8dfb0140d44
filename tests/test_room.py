"""Pieces that are gathered come out as they went in, in order and once each."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tdabench.examples import consecutive
from tdabench.pieces import Outer, Piece, Rows
from tdabench.room import Room


def pieces(n: int) -> list[Piece]:
    """Return a layer whose sums are formed, one that stays factored, and one that is whole."""
    random = torch.Generator().manual_seed(n)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randint(-4, 5, shape, generator=random).float()  # sums of integers are exact

    many = Outer("many", ("m",), draw(n, 6, 2), draw(n, 6, 3))
    one = Outer("one", ("o",), draw(n, 1, 4), draw(n, 1, 3))
    return [many, one, Rows("whole", ("w",), draw(n, 5, 1))]


def gathered(layers: list[Piece], n: int, batch: int, most_bytes: int) -> list[tuple[slice, list[Piece]]]:
    """Return copies of what comes out, since it is written over."""
    room = Room(n, most_bytes)
    batches = ((rows, [room.place(layer.part(rows)) for layer in layers]) for rows in consecutive(n, batch))
    return list(map(copied, room.filled(batches)))


def copied(item: tuple[slice, list[Piece]]) -> tuple[slice, list[Piece]]:
    rows, held = item
    return rows, [Rows(piece.key, piece.parameters, piece.rows().values.clone()) for piece in held]


@given(n=st.integers(1, 40), batch=st.integers(1, 40), most_bytes=st.integers(1, 8_000))
def test_everything_comes_out_once_in_order_and_within_the_room(n, batch, most_bytes):
    layers = pieces(n)
    out = gathered(layers, n, batch, most_bytes)
    ends = [0, *(rows.stop for rows, _ in out)]
    assert [rows.start for rows, _ in out] == ends[:-1]
    assert ends[-1] == n
    for number, layer in enumerate(layers):
        values = torch.cat([held[number].rows().values for _, held in out])
        assert torch.equal(values, layer.rows().values)
    bytes_each = sum(layer.compact().bytes for layer in layers) / n
    longest = max(rows.stop - rows.start for rows, _ in out)
    assert longest <= max(min(n, batch), most_bytes / bytes_each)


@pytest.mark.parametrize(
    ("n", "batch", "at_once", "expected"),
    [
        (10, 4, 12, [10]),  # the last batch is shorter, and fits
        (10, 4, 11, [8, 2]),  # whole batches
        (10, 4, 7, [4, 4, 2]),  # no two fit
        (10, 10, 30, [10]),
        (9, 2, 5, [4, 4, 1]),
    ],
)
def test_as_many_at_once_as_may_be_held(n, batch, at_once, expected):
    layers = pieces(n)
    each = sum(layer.compact().bytes for layer in layers) // n
    out = gathered(layers, n, batch, at_once * each)
    assert [rows.stop - rows.start for rows, _ in out] == expected


def test_sums_are_formed_in_their_place():
    layer = pieces(12)[0]
    room, starts = Room(12, 1 << 20), []

    def batches():
        for rows in consecutive(12, 3):
            placed = room.place(layer.part(rows)).rows().values
            starts.append(placed.data_ptr())
            yield rows, [Rows("many", ("m",), placed)]

    assert [rows for rows, _ in room.filled(batches())] == [slice(0, 12)]
    batch_bytes = 3 * 2 * 3 * 4
    assert starts[2] - starts[1] == starts[3] - starts[2] == batch_bytes  # the first is seen before there is room
