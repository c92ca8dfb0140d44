"""What the composers share: dice, scales, and pieces whose pitches are counted in steps of a scale."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np

from tdabench.seeds import derive_seed

T = TypeVar("T")
Ints = tuple[int, ...]

MAJOR, MINOR = (0, 2, 4, 5, 7, 9, 11), (0, 2, 3, 5, 7, 8, 10)
DORIAN, LYDIAN, MIXOLYDIAN = (0, 2, 3, 5, 7, 9, 10), (0, 2, 4, 6, 7, 9, 11), (0, 2, 4, 5, 7, 9, 10)
PENTATONIC, MINOR_PENTATONIC = (0, 2, 4, 7, 9), (0, 3, 5, 7, 10)


class Dice:
    """Throws of a named stream."""

    def __init__(self, *name: str | int) -> None:
        # random_raw is part of NumPy's stream-compatibility promise; the methods of its Generator are not.
        self._bits = np.random.SFC64(derive_seed("etudes", *name))

    def below(self, n: int) -> int:
        """Return a number from 0 to ``n - 1``; the remainder's bias is below 2 ** -56."""
        return int(self._bits.random_raw()) % n

    def chance(self, percent: int) -> bool:
        """Return whether something happens that happens ``percent`` times in a hundred."""
        return self.below(100) < percent

    def pick(self, options: Sequence[T]) -> T:
        """Return one of ``options``."""
        return options[self.below(len(options))]


@dataclass(frozen=True)
class Piece:
    """What all takes of a piece share.

    Pitches are counted in steps of the scale from the tonic near middle C, times in units, and a unit in ticks.
    Chords are the steps of their roots, one a bar. What the pattern means is the composer's affair.
    """

    tonic: int
    scale: Ints
    unit: int
    loudness: int
    chords: Ints
    motif: Ints
    pattern: Ints

    def pitch(self, step: int, chord: int = 0) -> int:
        """Return the pitch of a step; over the dominant of a minor key the leading note is raised."""
        octave, degree = divmod(step, len(self.scale))
        raised = self.scale == MINOR and degree == 6 and chord % 7 == 4
        return self.tonic + 12 * octave + self.scale[degree] + raised

    def force(self, dice: Dice, accent: int = 0) -> int:
        """Return how loud a note is: the piece's loudness and the accent, and one in four is a shade off."""
        shade = (-1, 1, 0, 0, 0, 0, 0, 0)[dice.below(8)]
        return max(0, min(7, self.loudness + accent + shade))


class Strike(NamedTuple):
    """A note in a bar: when, in units; pitch; how long, in units; how loud, 0 to 7."""

    at: int
    pitch: int
    length: int
    loudness: int


def walk(dice: Dice, n: int, strides: Ints, reach: int) -> Ints:
    """Return a motif of ``n`` steps that begins at 0 and stays within ``reach`` of it."""
    steps = [0]
    while len(steps) < n:
        stride = dice.pick(strides)
        steps.append(steps[-1] + (stride if abs(steps[-1] + stride) <= reach else -stride))
    return tuple(steps)


def vary(motif: Ints, dice: Dice) -> Ints:
    """Return the motif as it is, upside down, from behind, or with one of its notes moved."""
    kind = dice.below(8)
    if kind == 0:
        return tuple(-step for step in motif)
    if kind == 1:
        return motif[::-1]
    if kind == 2:
        place = dice.below(len(motif))
        return (*motif[:place], motif[place] + dice.pick((-1, 1)), *motif[place + 1 :])
    return motif


def chord_step(step: int, chord: int) -> int:
    """Return the step nearest to ``step`` that belongs to the triad on ``chord``."""
    return min((s for s in (step, step - 1, step + 1) if (s - chord) % 7 in (0, 2, 4)), key=lambda s: abs(s - step))


def near(pitch: int, centre: int) -> int:
    """Return ``pitch`` in the octave around ``centre``."""
    return centre - 6 + (pitch - centre + 6) % 12
