"""Performances are grammatical, the same everywhere, and tell who wrote them."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from functools import cache
from itertools import islice, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tdabench.tasks.etudes_music_transformer import composers
from tdabench.tasks.etudes_music_transformer.composers import COMPOSERS, perform
from tdabench.tasks.etudes_music_transformer.theory import MINOR, Dice
from tdabench.tasks.piano_events import VOCABULARY

KINDS = [name.split("_")[0] for name in VOCABULARY]
VALUES = [name.split("_")[1] for name in VOCABULARY]
PIECES, TRAIN, HELD_OUT = range(6), range(8), range(8, 12)

takes = st.tuples(st.integers(0, len(COMPOSERS) - 1), st.integers(0, 40), st.integers(0, 2**40))


@settings(max_examples=200)
@given(takes, st.integers(1, 300))
def test_a_take_is_what_a_piano_can_play(take, length):
    tokens = perform(*take, length)
    assert tokens.shape == (length,)
    assert tokens.dtype == np.int64
    down: set[str] = set()
    for before, token in pairwise([0, *tokens.tolist()]):
        kind, value = KINDS[token], VALUES[token]
        assert (kind == "Velocity") == (KINDS[before] == "NoteOn")
        if kind == "NoteOn":
            assert value not in down
            down.add(value)
        if kind == "NoteOff":
            down.remove(value)
    assert len(down) <= 10


@given(takes, st.integers(1, 200), st.integers(0, 200))
def test_a_longer_window_begins_the_same(take, length, more):
    assert np.array_equal(perform(*take, length), perform(*take, length + more)[:length])


def test_performances_are_the_same_on_every_machine_and_in_every_version():
    digest = hashlib.sha256()
    for composer in range(len(COMPOSERS)):
        for piece, take in ((0, 0), (1, 5), (9, 2**40)):
            digest.update(perform(composer, piece, take, 160).astype("<i8").tobytes())
    assert digest.hexdigest() == "07a9b751db5acd41300e697bb8674036b3c380d7234abc126d81901cc4030381"


def test_takes_differ_and_so_do_pieces():
    played = {perform(c, p, t, 96).tobytes() for c in range(len(COMPOSERS)) for p in PIECES for t in range(20)}
    assert len(played) == len(COMPOSERS) * len(PIECES) * 20


@pytest.mark.parametrize("composer", range(len(COMPOSERS)))
def test_pieces_stand_in_keys_of_their_own(composer):
    assert len({composers._compose(composer, piece).tonic % 12 for piece in range(12)}) == 12


def test_composing_needs_no_library_for_midi():
    code = (
        "import sys; from tdabench.tasks.etudes_music_transformer.composers import perform; perform(0, 0, 0, 64); "
        "assert not {'miditok', 'symusic'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@cache
def bigrams(composer: int, piece: int, take: int) -> np.ndarray:
    """Return how often each pair of tokens occurs, ``[V * V]``."""
    tokens = perform(composer, piece, take, 96)
    return np.bincount(tokens[:-1] * len(VOCABULARY) + tokens[1:], minlength=len(VOCABULARY) ** 2)


def accuracy(classes: list[list[np.ndarray]], held_out: list[list[np.ndarray]]) -> float:
    """Return how often the class whose smoothed bigrams fit best is the right one; classes are equally frequent."""
    rates = []
    for counts in classes:
        table = np.sum(counts, axis=0).reshape(len(VOCABULARY), -1) + 0.01
        rates.append(np.log(table / table.sum(axis=1, keepdims=True)).ravel())
    right = [np.argmax(np.array(rates) @ counts) == c for c, group in enumerate(held_out) for counts in group]
    return float(np.mean(right))


def test_composers_are_told_apart_in_new_takes_of_their_pieces():
    known, new = (
        [[bigrams(c, p, t) for p in PIECES for t in times] for c in range(len(COMPOSERS))]
        for times in (TRAIN, HELD_OUT)
    )
    assert accuracy(known, new) > 0.95


def test_composers_are_told_apart_in_pieces_never_heard():
    n = len(COMPOSERS)
    known = [[bigrams(c, p, t) for p in range(18) for t in range(4)] for c in range(n)]
    new = [[bigrams(c, p, 0) for p in range(18, 24)] for c in range(n)]
    assert accuracy(known, new) > 0.8


@pytest.mark.parametrize("composer", range(len(COMPOSERS)))
def test_pieces_of_a_composer_are_told_apart(composer):
    known, new = ([[bigrams(composer, p, t) for t in times] for p in PIECES] for times in (TRAIN, HELD_OUT))
    assert accuracy(known, new) > 0.8


@pytest.mark.parametrize("composer", range(len(COMPOSERS)))
def test_a_piece_is_neither_fixed_nor_noise(composer):
    counts = sum(bigrams(composer, 0, t) for t in range(20)).reshape(len(VOCABULARY), -1)
    rates = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    bits = -(counts * np.log2(np.where(counts > 0, rates, 1.0))).sum() / counts.sum()
    assert 0.5 < bits < 3.5


@given(st.integers(0, 40), st.integers(0, 1000))
def test_the_chorale_never_moves_in_parallel_fifths_or_octaves(number, take):
    piece = composers._compose(COMPOSERS.index("chorale"), number)
    bars = islice(composers._chorale(piece, Dice("test", take)), 12)
    chords = [[strike.pitch for strike in bar if strike.at == 0] for _, bar in bars]
    for before, after in pairwise(chords):
        assert after == sorted(after)
        for low, high in ((0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)):
            gaps = [(chord[high] - chord[low]) % 12 for chord in (before, after)]
            assert gaps[0] != gaps[1] or gaps[0] not in (0, 7) or before[low] == after[low]


def test_the_dominant_of_a_minor_key_has_its_leading_note():
    found = 0
    for number in range(20):
        piece = composers._compose(COMPOSERS.index("chorale"), number)
        if piece.scale == MINOR:
            found += 1
            assert (piece.pitch(6, chord=4) - piece.tonic, piece.pitch(6, chord=2) - piece.tonic) == (11, 10)
    assert found > 3


@given(st.integers(), st.integers(1, 10**9))
def test_dice_fall_within_their_faces(name, n):
    dice = Dice(name)
    assert all(0 <= dice.below(n) < n for _ in range(20))
