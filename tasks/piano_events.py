"""The events of a piano: the vocabulary that all piano tasks share, and how a MIDI file is read into it.

A performance is a sequence of events (Oore et al. 2018, arXiv:1808.03715; Huang et al. 2018, arXiv:1809.04281): a
pitch is struck (NoteOn, then its Velocity) or let go (NoteOff), and between these some time passes (TimeShift). Real
files are tokenised by miditok's ``MIDILike``. ``VOCABULARY`` is its vocabulary written out, so a task whose music is
made rather than read needs neither miditok nor symusic.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from tdabench.errors import DataError, UsageError

if TYPE_CHECKING:
    from miditok import MIDILike
    from symusic.core import ScoreTick

LOWEST_PITCH, HIGHEST_PITCH = 21, 108  # the 88 keys of a piano
VELOCITIES = tuple(range(15, 128, 16))
# Twelve holds sixteenths and triplets; at 120 beats per minute, which all files of MAESTRO state, a tick is 42 ms.
TICKS_PER_BEAT = 12
LONGEST_SHIFT = 2 * TICKS_PER_BEAT

VOCABULARY: tuple[str, ...] = (
    "PAD_None",  # miditok insists on it; no performance contains it
    *(f"NoteOn_{pitch}" for pitch in range(LOWEST_PITCH, HIGHEST_PITCH + 1)),
    *(f"NoteOff_{pitch}" for pitch in range(LOWEST_PITCH, HIGHEST_PITCH + 1)),
    *(f"Velocity_{velocity}" for velocity in VELOCITIES),
    *(f"TimeShift_{t // TICKS_PER_BEAT}.{t % TICKS_PER_BEAT}.{TICKS_PER_BEAT}" for t in range(1, LONGEST_SHIFT + 1)),
)
NUMBERS = {name: number for number, name in enumerate(VOCABULARY)}
"""Event -> token."""

_NOTE_ON = NUMBERS[f"NoteOn_{LOWEST_PITCH}"] - LOWEST_PITCH
_NOTE_OFF = NUMBERS[f"NoteOff_{LOWEST_PITCH}"] - LOWEST_PITCH
_VELOCITY = NUMBERS[f"Velocity_{VELOCITIES[0]}"]
_SHIFT = NUMBERS[f"TimeShift_0.1.{TICKS_PER_BEAT}"] - 1


class Note(NamedTuple):
    """A key that is pressed at ``start`` and let go at ``end``, in ticks.

    ``loudness`` counts the ``VELOCITIES`` from 0, the softest, to 7.
    """

    start: int
    pitch: int
    end: int
    loudness: int


def note_tokens(notes: Iterable[Note]) -> np.ndarray:
    """Return the events of ``notes`` in miditok's order: at one tick keys are let go first, then struck from below.

    Parameters
    ----------
    notes
        In any order. Notes of one pitch may touch, but neither overlap nor be empty: on a piano they are one key.

    Returns
    -------
    ``[length]`` int64 tokens. The time before the first note is written as shifts, too.
    """
    ordered = sorted(notes)
    struck = [(note.start, 1, place) for place, note in enumerate(ordered)]
    released = [(note.end, 0, place) for place, note in enumerate(ordered)]
    tokens: list[int] = []
    now = 0
    for tick, is_struck, place in sorted(struck + released):
        note = ordered[place]
        tokens += _shift_tokens(tick - now)
        tokens += [_NOTE_ON + note.pitch, _VELOCITY + note.loudness] if is_struck else [_NOTE_OFF + note.pitch]
        now = tick
    return np.array(tokens, dtype=np.int64)


def _shift_tokens(ticks: int) -> list[int]:
    longest, rest = divmod(ticks, LONGEST_SHIFT)
    return [_SHIFT + LONGEST_SHIFT] * longest + ([_SHIFT + rest] if rest else [])


def midi_tokens(path: Path) -> np.ndarray:
    """Return the events of a MIDI file's piano.

    All tracks but drums become one piano, whose keys are pressed as long as they are in the file: the pedal is not
    read. Times are in beats, so a file has to state the tempo of MAESTRO's, 120 beats per minute, to be comparable.

    Returns
    -------
    ``[length]`` int64 tokens.

    Raises
    ------
    UsageError
        If miditok or symusic is not installed.
    DataError
        If there is no such file, it is not MIDI, or no note is in it.
    """
    encoder = tokenizer()
    from miditok.utils import fix_offsets_overlapping_notes

    score = encoder.preprocess_score(_read_piano(path))
    if not score.tracks:  # miditok removes a track without notes
        raise DataError(f"{path} holds no note of a piano; give a MIDI file of a piano performance.")
    # Start and duration are rounded apart, so a note may have come to end a tick after its key is struck again.
    fix_offsets_overlapping_notes(score.tracks[0].notes)
    (sequence,) = encoder.encode(score, no_preprocess_score=True)
    return np.array(sequence.ids, dtype=np.int64)


def _read_piano(path: Path) -> ScoreTick:
    from symusic.core import ScoreTick, TrackTick

    try:
        score = ScoreTick.from_midi(path.read_bytes())
    except OSError as error:
        raise DataError(f"The MIDI file {path} cannot be read: {error.strerror or error}.") from None
    except (RuntimeError, ValueError) as error:
        raise DataError(f"{path} is not a MIDI file, or is damaged; fetch it again. symusic says: {error}") from None
    piano = TrackTick("piano", 0, False)
    for track in score.tracks:
        if not track.is_drum:
            piano.notes.extend(track.notes)
    score.tracks.clear()
    score.tracks.append(piano)
    return score


@cache
def tokenizer() -> MIDILike:
    """Return miditok's tokenizer of exactly this vocabulary; it also turns tokens back into a score.

    Raises
    ------
    UsageError
        If miditok or symusic is not installed.
    """
    try:
        from miditok import MIDILike, TokenizerConfig
    except ImportError as error:
        raise UsageError(
            f"Reading MIDI needs miditok and symusic ({error}). Install them: pip install 'tdabench[music]'"
        ) from None
    return MIDILike(
        TokenizerConfig(
            pitch_range=(LOWEST_PITCH, HIGHEST_PITCH),  # both ends are meant, from miditok 3.1 on
            beat_res={(0, LONGEST_SHIFT // TICKS_PER_BEAT): TICKS_PER_BEAT},
            num_velocities=len(VELOCITIES),
            special_tokens=["PAD"],
            use_time_signatures=False,
            use_pitchdrum_tokens=False,
            remove_duplicated_notes=True,  # a key cannot be struck twice at once
            encode_ids_split="no",
        )
    )
