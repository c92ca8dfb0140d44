"""What is said about how runs were measured: with other sources than today's, or on a busy machine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tdabench import provenance
from tdabench.cli.caveats import note_other_sources, warn_of_busy, warn_of_busy_candidates
from tdabench.records import Record, parse_record

GOLDEN = json.loads((Path(__file__).parent / "golden" / "record.json").read_text())


@pytest.fixture
def said(capsys):
    """Return a function that gives the lines on stderr."""
    return lambda: capsys.readouterr().err.splitlines()


def make(sources: str = "today", **changes) -> Record:
    value = GOLDEN | changes | {"provenance": GOLDEN["provenance"] | {"sources_sha256": sources}}
    return parse_record(json.dumps(value), Path("record.json"))


BUSY = {"cpu_phases": {"fit": 1.0, "attribute": 1.0}}
SLOWLY_TRAINED = {"trainings": {"model-0-3": {"wall_s": 2.0, "cpu_s": 1.0}}}
AGAIN = "To measure anew, use `tdabench run ... --again` or another folder with --runs."


def test_runs_of_other_sources_are_counted_in_one_line_that_says_what_to_do(monkeypatch, said):
    monkeypatch.setattr(provenance, "sources_sha256", lambda: "today")
    note_other_sources([make(), make()])
    assert said() == []
    note_other_sources([make("older")])
    assert said() == [f"The run was measured with other tdabench sources than today's. {AGAIN}"]
    note_other_sources([make("older"), make()])
    assert said() == [f"1 of 2 runs was measured with other tdabench sources than today's. {AGAIN}"]
    note_other_sources([make("older"), make(), make("oldest")])
    assert said() == [f"2 of 3 runs were measured with other tdabench sources than today's. {AGAIN}"]


def test_a_run_on_a_busy_machine_says_which_of_its_times(said):
    warn_of_busy([make()])
    assert said() == []
    warn_of_busy([make(**BUSY)])
    (line,) = said()
    assert line.startswith("Warning: The machine was busy: the process had the processor for 62% of serving.")
    assert line.endswith("Measure again on an idle machine, with `tdabench run ... --again`.")


def test_a_training_keeps_its_time_until_it_is_removed(cache, said):
    warn_of_busy([make(**SLOWLY_TRAINED)])
    (line,) = said()
    assert "50% of training model-0-3." in line
    assert line.endswith(f"Trainings keep their times: remove those models below {cache / 'models'} first.")


def test_busy_runs_of_many_are_counted_and_named(said):
    name = "digits-mlp: trak + dropout(models=5, masks=10)"
    warn_of_busy([make(), make(**BUSY), make()])
    assert f"1 of 3 runs was measured on a busy machine ({name})." in said()[0]
    warn_of_busy([make(**BUSY)] * 5)
    assert f"5 of 5 runs were measured on a busy machine ({'; '.join([name] * 3)} and 2 more)." in said()[0]


def test_candidates_of_a_tuning_on_a_busy_machine_are_named_with_their_folder(tmp_path, said):
    warn_of_busy_candidates([make()], tmp_path)
    assert said() == []
    warn_of_busy_candidates([make(), make(**BUSY)], tmp_path)
    (line,) = said()
    assert line.startswith(f"Warning: Of 2 candidates 1 had a busy machine ({GOLDEN['run_id']}), and the ")
    assert line.endswith(f"remove their folders in {tmp_path / '.tuning'}.")
