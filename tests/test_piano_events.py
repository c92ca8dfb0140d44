"""The vocabulary is miditok's own, and what we write is what miditok reads."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tdabench.errors import DataError, UsageError
from tdabench.tasks import piano_events
from tdabench.tasks.piano_events import VELOCITIES, VOCABULARY, Note, midi_tokens, note_tokens


@pytest.fixture(scope="module", autouse=True)
def _no_network():
    """Let no library reach out; pytest turns its warnings into errors, besides."""

    def refuse(*_: object) -> None:
        raise AssertionError("a library wants to reach the network")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", refuse)
        patch.setattr(socket, "getaddrinfo", refuse)
        yield


@st.composite
def performances(draw) -> list[Note]:
    """Draw notes of which no two of one pitch overlap."""
    free: dict[int, int] = {}
    notes = []
    for _ in range(draw(st.integers(1, 30))):
        pitch = draw(st.integers(21, 108) | st.integers(60, 62))
        start = free.get(pitch, 0) + draw(st.integers(0, 60))
        free[pitch] = start + draw(st.integers(1, 60))
        notes.append(Note(start, pitch, free[pitch], draw(st.integers(0, 7))))
    return notes


def write_midi(path: Path, notes: list[Note], tpq: int = 12) -> Path:
    from symusic import Note as MidiNote
    from symusic import Score, Track

    score, track = Score(tpq), Track()
    for note in notes:
        track.notes.append(MidiNote(note.start, note.end - note.start, note.pitch, VELOCITIES[note.loudness]))
    score.tracks.append(track)
    score.dump_midi(path)
    return path


def names(tokens: np.ndarray) -> list[str]:
    return [VOCABULARY[token] for token in tokens]


def test_the_vocabulary_is_that_of_miditok():
    vocabulary = piano_events.tokenizer().vocab
    assert tuple(sorted(vocabulary, key=vocabulary.get)) == VOCABULARY
    assert list(vocabulary.values()) == list(range(len(VOCABULARY)))
    assert len(VOCABULARY) == 209


def test_loudness_counts_the_velocities_of_miditok():
    assert piano_events.tokenizer().velocities.tolist() == list(VELOCITIES)


@settings(max_examples=50)
@given(performances())
def test_what_we_write_is_what_miditok_writes(tmp_path_factory, notes):
    path = write_midi(tmp_path_factory.getbasetemp() / "written.mid", notes)
    tokens = midi_tokens(path)
    assert tokens.dtype == np.int64
    assert names(tokens) == names(note_tokens(notes))


@settings(max_examples=50)
@given(performances())
def test_miditok_gives_the_notes_back(notes):
    score = piano_events.tokenizer().decode([note_tokens(notes).tolist()])
    (track,) = score.tracks
    assert score.ticks_per_quarter == piano_events.TICKS_PER_BEAT
    found = [Note(n.start, n.pitch, n.end, VELOCITIES.index(n.velocity)) for n in track.notes]
    assert sorted(found) == sorted(notes)


def test_a_pause_is_as_many_of_the_longest_shifts_as_it_takes():
    tokens = note_tokens([Note(50, 60, 51, 0)])
    expected = "TimeShift_2.0.12 TimeShift_2.0.12 TimeShift_0.2.12 NoteOn_60 Velocity_15 TimeShift_0.1.12 NoteOff_60"
    assert names(tokens) == expected.split()


def test_keys_are_let_go_before_others_are_struck():
    tokens = note_tokens([Note(4, 60, 6, 1), Note(0, 64, 4, 0), Note(0, 60, 4, 0)])
    assert names(tokens)[4:9] == ["TimeShift_0.4.12", "NoteOff_60", "NoteOff_64", "NoteOn_60", "Velocity_31"]


def test_no_notes_are_no_tokens():
    assert note_tokens([]).shape == (0,)
    assert note_tokens([]).dtype == np.int64


def test_tracks_become_one_piano_and_drums_are_left_out(tmp_path):
    from symusic import Note as MidiNote
    from symusic import Score, Track

    score = Score(480)
    for is_drum, program, pitch in ((False, 0, 64), (True, 0, 36), (False, 40, 60)):
        track = Track(program=program, is_drum=is_drum)
        track.notes.append(MidiNote(0, 240, pitch, 64))
        score.tracks.append(track)
    score.dump_midi(tmp_path / "trio.mid")
    expected = "NoteOn_60 Velocity_63 NoteOn_64 Velocity_63 TimeShift_0.6.12 NoteOff_60 NoteOff_64"
    assert names(midi_tokens(tmp_path / "trio.mid")) == expected.split()


def test_a_key_struck_again_is_let_go_first(tmp_path):
    # Rounded apart, a start of 3973.59 and a duration of 1.53 end at 3976, but the key is struck again at 3975.125.
    notes = [Note(127155, 54, 127204, 2), Note(127204, 54, 127746, 0)]
    tokens = midi_tokens(write_midi(tmp_path / "again.mid", notes, tpq=384))
    assert names(tokens)[-7:-1] == [
        "Velocity_47", "TimeShift_0.1.12", "NoteOff_54", "NoteOn_54", "Velocity_15", "TimeShift_1.5.12",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("data", "message"), [(b"", "is damaged"), (b"RIFF" * 20, "is not a MIDI file"), (None, "No such file")]
)
def test_a_file_that_is_not_midi_is_refused(tmp_path, data, message):
    path = tmp_path / "file.midi"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(DataError, match=message):
        midi_tokens(path)


def test_a_file_without_notes_is_refused(tmp_path):
    with pytest.raises(DataError, match="holds no note of a piano"):
        midi_tokens(write_midi(tmp_path / "silence.mid", []))


@pytest.mark.parametrize("library", ["miditok", "symusic"])
def test_a_missing_library_is_named_with_what_to_type(monkeypatch, tmp_path, library):
    piano_events.tokenizer.cache_clear()
    for name in [name for name in sys.modules if name.split(".")[0] == "miditok"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(UsageError, match=rf"{library}.*pip install 'tdabench\[music\]'"):
        midi_tokens(tmp_path / "any.midi")


@pytest.mark.data
def test_a_real_performance_is_read(record_property):
    folder = Path(os.environ.get("TDABENCH_DATA", "")) / "maestro-v3.0.0" / "2008"
    path = folder / "MIDI-Unprocessed_07_R2_2008_01-05_ORIG_MID--AUDIO_07_R2_2008_wav--1.midi"
    if not os.environ.get("TDABENCH_DATA") or not path.exists():
        pytest.skip("set TDABENCH_DATA to a folder that holds maestro-v3.0.0 to run this test")
    from symusic import Score

    tokens = midi_tokens(path)
    kinds = [name.split("_")[0] for name in names(tokens)]
    n_notes = len(Score(path).tracks[0].notes)
    assert 0.995 * n_notes <= kinds.count("NoteOn") <= n_notes
    assert kinds.count("NoteOn") == kinds.count("NoteOff") == kinds.count("Velocity")
    assert 0.8 * n_notes < kinds.count("TimeShift") < 2 * n_notes
    assert kinds.count("PAD") == 0
    assert np.array_equal(tokens, midi_tokens(path))
