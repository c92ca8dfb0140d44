"""Six composers who work by rule: piano performances that a seed makes, in the events of ``piano_events``.

A composer has a style: the scales, chord progressions, rhythms, registers and touch that all of his pieces share. A
piece has a key, a tempo, a progression and a motif of its own. A take is one excerpt of one piece, which begins at a
bar of its own and varies the motif. So what attribution should find is known, at two levels: the composer and the
piece. Throws are raw bits and whole numbers, so a take is the same on every platform and with every NumPy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import accumulate, count, pairwise, product

import numpy as np

from tdabench.tasks.etudes_music_transformer.theory import (
    DORIAN,
    LYDIAN,
    MAJOR,
    MINOR,
    MINOR_PENTATONIC,
    MIXOLYDIAN,
    PENTATONIC,
    Dice,
    Ints,
    Piece,
    Strike,
    chord_step,
    near,
    vary,
    walk,
)
from tdabench.tasks.piano_events import Note, note_tokens

Bar = tuple[int, list[Strike]]
"""Length in units, and the notes that begin in it."""


def _bars(piece: Piece, dice: Dice) -> Iterator[tuple[int, int, int]]:
    """Yield number, chord and next chord of each bar, from a random one on, forever."""
    n = len(piece.chords)
    for number in count(dice.below(n)):
        yield number % n, piece.chords[number % n], piece.chords[(number + 1) % n]


def _alberti(piece: Piece, dice: Dice) -> Iterator[Bar]:
    """Sing with the right hand over broken triads: low, high, middle, high."""
    at_cadence = len(piece.chords) - 1
    last = 9
    for number, chord, _ in _bars(piece, dice):
        root = chord - 7 if chord < 4 else chord - 14
        broken = [
            Strike(2 * k, piece.pitch(root + (0, 4, 2, 4)[k]), 2, piece.force(dice, -2 + (k == 0))) for k in range(4)
        ]
        steps = vary(piece.motif, dice)
        start = chord_step(max(6, min(12, last)), chord)
        rhythm = (8,) if number == at_cadence else piece.pattern
        song = []
        for k, (at, length) in enumerate(zip((0, *accumulate(rhythm)), rhythm, strict=False)):
            last = start + steps[k]
            last = chord_step(last, chord) if at % 4 == 0 else last
            song.append(Strike(at, piece.pitch(last), length, piece.force(dice, number % 4 in (1, 2))))
        yield 8, broken + song


def _swing(piece: Piece, dice: Dice) -> Iterator[Bar]:
    """Walk with the bass in quarters, and strike chords off the beat; three units are a beat."""
    for _, chord, following in _bars(piece, dice):
        target = near(piece.pitch(following), 43)
        middle = dice.pick(((2, 4), (4, 2), (4, 7), (1, 2)))
        line = [near(piece.pitch(chord + step, chord), 43) for step in (0, *middle)]
        line.append(target + dice.pick((-1, -1, 1)))
        bass = [Strike(3 * k, pitch, 3, piece.force(dice, k % 2)) for k, pitch in enumerate(line)]
        hits = []
        for at in piece.pattern:
            if dice.chance(85):
                shell = [near(piece.pitch(chord + step, chord), 63) for step in (2, 6)]
                hits += [Strike(at, pitch, 1, piece.force(dice, -1)) for pitch in shell]
        riff = zip((6, 8, 9, 11), vary(piece.motif, dice), strict=True)
        lick = [Strike(at, piece.pitch(7 + step, chord), 1, piece.force(dice, 1)) for at, step in riff]
        yield 12, bass + hits + (lick if dice.chance(50) else [])


def _pentatonic(piece: Piece, dice: Dice) -> Iterator[Bar]:
    """Roll arpeggios of five notes an octave, held as if by the pedal, that swell and sink."""
    for number, chord, _ in _bars(piece, dice):
        base = chord + dice.pick((-5, -5, -5, 0))
        steps = [arch + bend for arch, bend in zip((0, 2, 4, 6, 8, 10, 8, 6), vary(piece.motif, dice), strict=True)]
        swell = (0, 1, 2, 1)[number % 4]
        roll = [Strike(k, piece.pitch(base + steps[k]), 4, piece.force(dice, swell)) for k in piece.pattern]
        yield 8, [Strike(0, piece.pitch(chord - 10), 8, piece.force(dice, swell - 1)), *roll]


@cache
def _voicings(piece: Piece, chord: int) -> tuple[Ints, ...]:
    """Return how four voices can sing the triad on ``chord``, from the bass up, each in its range."""
    triad = [piece.pitch(chord + step, chord) % 12 for step in (0, 2, 4)]
    ranges = ((40, 56), (48, 66), (55, 72), (62, 79))
    voices = [[p for p in range(low, high) if p % 12 in triad] for low, high in ranges]
    lawful = []
    for voicing in product(*voices):
        bass, tenor, alto, soprano = voicing
        is_open = bass < tenor < alto < soprano and soprano - alto <= 12 and alto - tenor <= 12
        parts = [pitch % 12 for pitch in voicing]
        if is_open and bass % 12 != triad[2] and parts.count(triad[1]) == 1 and triad[0] in parts and triad[2] in parts:
            lawful.append(voicing)
    return tuple(lawful)


def _is_parallel(before: Ints, after: Ints) -> bool:
    """Return whether two voices move from one fifth or octave to another."""
    for low in range(4):
        for high in range(low + 1, 4):
            gap = (after[high] - after[low]) % 12
            moved = after[low] != before[low]
            if moved and gap in (0, 7) and (before[high] - before[low]) % 12 == gap:
                return True
    return False


def _lead(piece: Piece, dice: Dice, before: Ints | None, chord: int) -> Ints:
    """Return the next chord: one of the three that move the voices least, and no two of them in parallel."""
    options = _voicings(piece, chord)
    if before is None:
        return dice.pick(options)
    lawful = [voicing for voicing in options if not _is_parallel(before, voicing)]
    lawful.sort(key=lambda voicing: (sum(abs(a - b) for a, b in zip(before, voicing, strict=True)), voicing))
    return dice.pick(lawful[:3])


def _chorale(piece: Piece, dice: Dice) -> Iterator[Bar]:
    """Lead four voices, note against note, with passing notes where one of them leaps a third."""
    voices: Ints | None = None
    for number, chord, following in _bars(piece, dice):
        voices = voices or _lead(piece, dice, None, chord)
        coming = _lead(piece, dice, voices, following)
        is_cadence = number == len(piece.chords) - 1
        length = 8 if is_cadence else 4
        bar = []
        for here, there in zip(voices, coming, strict=True):
            between = [
                p for p in range(min(here, there) + 1, max(here, there)) if (p - piece.tonic) % 12 in piece.scale
            ]
            passes = len(between) == 1 and not is_cadence and dice.chance(50)
            bar.append(Strike(0, here, 2 if passes else length, piece.force(dice, (here == voices[3]) - is_cadence)))
            bar += [Strike(2, between[0], 2, piece.force(dice))] if passes else []
        yield length, bar
        voices = coming


def _toccata(piece: Piece, dice: Dice) -> Iterator[Bar]:
    """Run and hammer, fast and loud: scales, repeated notes and turns, over octaves in the bass."""
    step = 7
    for number, chord, _ in _bars(piece, dice):
        figure = piece.pattern[number % len(piece.pattern)] if dice.chance(80) else dice.below(3)
        start = chord_step(max(0, min(14, step)), chord)
        way = -1 if start > 9 else 1 if start < 4 else dice.pick((-1, 1))
        run = {
            0: [start + way * k for k in range(8)],
            1: [start + way * (k // 4) * 2 for k in range(8)],
            2: [start + s for s in (*piece.motif, *vary(piece.motif, dice))],
        }[figure]
        step = run[-1]
        fast = [Strike(k, piece.pitch(s, chord), 1, piece.force(dice, k % 4 == 0)) for k, s in enumerate(run)]
        root = piece.pitch(chord - 14 if chord < 4 else chord - 21)
        yield 8, [Strike(0, root, 4, piece.force(dice)), Strike(0, root + 12, 4, piece.force(dice)), *fast]


def _phases(piece: Piece, dice: Dice) -> Iterator[Bar]:
    """Repeat a cell; the left hand, which plays every so many of its notes, slowly falls behind."""
    cell, n = piece.motif, len(piece.motif)
    lag = dice.below(n)
    for number, chord, _ in _bars(piece, dice):
        lag += dice.chance(40)
        steps = vary(cell, dice) if dice.chance(25) else cell
        right = [Strike(k, piece.pitch(chord + s), 1, piece.force(dice, k == 0)) for k, s in enumerate(steps)]
        left = [
            Strike(k, piece.pitch(cell[(k + lag) % n] - len(piece.scale)), 1, piece.force(dice))
            for k in range(n)
            if (k + number) % piece.pattern[0] == 0
        ]
        yield n, left + right


@dataclass(frozen=True)
class Style:
    """What all pieces of a composer share; a piece takes one of each."""

    bars: Callable[[Piece, Dice], Iterator[Bar]]
    scales: tuple[Ints, ...]
    units: Ints
    loudness: Ints
    progressions: tuple[Ints, ...]
    patterns: tuple[Ints, ...]
    motif_lengths: Ints = (4,)
    strides: Ints = (-2, -1, -1, 1, 1, 2)
    reach: int = 6
    is_detached: bool = False


_STYLES = {
    "alberti": Style(
        _alberti,
        scales=(MAJOR,),
        units=(2, 3, 4),
        loudness=(3, 4, 5),
        progressions=((0, 3, 4, 0), (0, 5, 3, 4), (0, 4, 0, 3, 1, 4, 0, 0), (0, 1, 4, 0), (0, 4, 5, 3)),
        patterns=((4, 2, 2), (2, 2, 4), (3, 1, 4), (2, 2, 2, 2), (6, 2), (4, 4)),
        reach=4,
    ),
    "swing": Style(
        _swing,
        scales=(MINOR, DORIAN),
        units=(3, 4, 5),
        loudness=(3, 4),
        progressions=((0, 0, 3, 4), (0, 5, 1, 4), (0, 3, 6, 2, 5, 1, 4, 0), (0, 6, 5, 4)),
        patterns=((2, 5), (5,), (3, 5), (2, 3), (0, 5), (2, 6)),
    ),
    "pentatonic": Style(
        _pentatonic,
        scales=(PENTATONIC, MINOR_PENTATONIC),
        units=(2, 3, 4),
        loudness=(1, 2, 3),
        progressions=((0, 2, 1, 3), (0, 3), (0, 4, 3, 1), (0, 1)),
        patterns=((0, 1, 2, 3, 4, 5, 6, 7), (0, 1, 2, 3, 4, 6), (1, 2, 3, 5, 6, 7), (0, 2, 3, 4, 5, 6)),
        motif_lengths=(8,),
        strides=(-1, 0, 0, 1),
        reach=1,
    ),
    "chorale": Style(
        _chorale,
        scales=(MAJOR, MINOR),
        units=(2, 3, 4),
        loudness=(2, 3, 4),
        progressions=((0, 3, 4, 5, 1, 4, 0), (0, 4, 0, 3, 0, 4, 0), (0, 5, 3, 1, 4, 0), (0, 1, 4, 5, 3, 4, 0)),
        patterns=((0,),),
    ),
    "toccata": Style(
        _toccata,
        scales=(MINOR, MAJOR),
        units=(2, 3),
        loudness=(5, 6),
        progressions=((0, 4, 0, 3), (0, 6, 5, 4), (0, 3, 4, 4), (0, 5, 1, 4)),
        patterns=((0, 1), (1, 2), (0, 0, 1, 2), (2, 0), (1, 1, 0), (2, 2, 1)),
        is_detached=True,
    ),
    "phases": Style(
        _phases,
        scales=(LYDIAN, MIXOLYDIAN, DORIAN),
        units=(3, 4),
        loudness=(2, 3),
        progressions=((0, 0, 0, 0, 1, 1), (0,), (0, 0, 4, 4), (0, 0, 0, 3)),
        patterns=((2,), (3,), (4,)),
        motif_lengths=(5, 6, 7, 8),
        strides=(-3, -2, -1, 1, 2, 3, 4),
        is_detached=True,
    ),
}
COMPOSERS: tuple[str, ...] = tuple(_STYLES)


@cache
def _compose(composer: int, piece: int) -> Piece:
    """Return a piece; twelve in a row stand in twelve keys."""
    style, dice = _STYLES[COMPOSERS[composer]], Dice(COMPOSERS[composer], piece)
    return Piece(
        tonic=55 + (2 * composer + 7 * piece) % 12,
        scale=dice.pick(style.scales),
        unit=dice.pick(style.units),
        loudness=dice.pick(style.loudness),
        chords=dice.pick(style.progressions),
        motif=walk(dice, dice.pick(style.motif_lengths), style.strides, style.reach),
        pattern=dice.pick(style.patterns),
    )


def perform(composer: int, piece: int, take: int, length: int) -> np.ndarray:
    """Return the beginning of a take.

    Parameters
    ----------
    composer
        Place in ``COMPOSERS``.
    piece, take
        Any numbers from 0 on.
    length
        Number of tokens. A longer beginning of the same take begins the same.

    Returns
    -------
    ``[length]`` int64 tokens. The music goes on where they end: keys may be down that nobody lets go.
    """
    style, work = _STYLES[COMPOSERS[composer]], _compose(composer, piece)
    dice = Dice(COMPOSERS[composer], piece, take)
    notes: list[Note] = []
    tick = 0
    for units, strikes in style.bars(work, dice):
        n_before = len(notes)
        for at, pitch, duration, loudness in {(s.at, s.pitch): s for s in strikes}.values():
            start = tick + at * work.unit
            notes.append(Note(start, pitch, start + duration * work.unit - style.is_detached, loudness))
        if 2 * n_before >= length:  # each of them wrote two tokens before this bar, so the window ends before it
            break
        tick += units * work.unit + dice.chance(15)  # a breath
    return note_tokens(_one_keyboard(notes))[:length]


def _one_keyboard(notes: list[Note]) -> list[Note]:
    """Return the notes with each let go when its key is struck again: both hands share one keyboard."""
    ordered = sorted(notes, key=lambda note: (note.pitch, note.start))
    last = ordered[-1:]
    return [a._replace(end=min(a.end, b.start)) if a.pitch == b.pitch else a for a, b in pairwise(ordered)] + last
