"""The record is a strict file border: what was written comes back, and anything else is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from tdabench.cli.options import seed_type
from tdabench.errors import FileFormatError
from tdabench.records import Record, parse_record, read_record
from tdabench.seeds import MOST_SEED

GOLDEN = Path(__file__).parent / "golden" / "record.json"
WHERE = Path("run/record.json")


def golden() -> dict:
    return json.loads(GOLDEN.read_text())


def test_golden_record_is_read_and_written_byte_for_byte():
    record = parse_record(GOLDEN.read_text(), GOLDEN)
    assert record.to_json() == GOLDEN.read_text()
    assert record.label == "trak + dropout(models=5, masks=10)"
    assert record.members == 50
    assert record.costs is not None
    assert record.costs.serve_s == 3.25


def test_a_record_without_correlations_is_read():
    value = golden()
    del value["correlations"]
    assert parse_record(json.dumps(value), WHERE).correlations is None


@pytest.mark.parametrize("wrong", [{"within": 1.5}, {"between": "0.5"}, {"n_within_pairs": -1}, {"lds": 0.3}])
def test_correlations_are_between_minus_one_and_one(wrong):
    value = golden()
    value["correlations"] |= wrong
    with pytest.raises(FileFormatError, match=f"correlations.{next(iter(wrong))}: "):
        parse_record(json.dumps(value), WHERE)


def test_a_run_that_failed_has_neither_costs_nor_scores():
    value = golden() | {"status": "failed", "reason": "it broke", "ensemble": None, "phases": {}}
    for part in ("costs", "ingredients", "correlations", "scores"):
        del value[part]
    record = parse_record(json.dumps(value), WHERE)
    assert (record.costs, record.scores, record.label, record.members) == (None, None, "trak", 1)
    assert parse_record(record.to_json(), WHERE) == record


def test_option_values_keep_their_types():
    options = {"a": True, "b": 1, "c": 1.0, "d": "1", "e": None}
    record = parse_record(json.dumps(golden() | {"options": options}), WHERE)
    back = parse_record(record.to_json(), WHERE).options
    assert [(k, type(v)) for k, v in back.items()] == [(k, type(v)) for k, v in options.items()]


def test_record_is_immutable():
    record = parse_record(GOLDEN.read_text(), GOLDEN)
    with pytest.raises(ValidationError, match="frozen"):
        record.status = "failed"


def test_every_problem_is_listed():
    value = golden() | {"surprise": 1, "seed": "0", "status": "great"}
    value["costs"] = value["costs"] | {"train_s": -1.0, "wall_s": True}
    del value["task"]
    with pytest.raises(FileFormatError) as caught:
        parse_record(json.dumps(value), WHERE)
    message = str(caught.value)
    assert message.startswith("run/record.json is not a valid record (")
    assert message.endswith("Remove its folder, and run the method again.")
    assert "\n" not in message
    for field in ("surprise:", "seed:", "status:", "costs.train_s:", "costs.wall_s:", "task: Field required"):
        assert field in message


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity"])
@pytest.mark.parametrize("field", ["wall_s", "storage_bytes"])
def test_numbers_are_finite(number, field):
    text = GOLDEN.read_text().replace(f'"{field}": ', f'"{field}": {number}, "x": ')
    with pytest.raises(FileFormatError, match=f"costs.{field}: "):
        parse_record(text, WHERE)


@pytest.mark.parametrize("field", ["wall_s", "storage_bytes"])
@pytest.mark.parametrize("number", ["1e19", "-1", str(10**400)])
def test_numbers_can_be_reckoned_with(number, field):
    text = GOLDEN.read_text().replace(f'"{field}": ', f'"{field}": {number}, "x": ')
    with pytest.raises(FileFormatError, match=f"costs.{field}: "):
        parse_record(text, WHERE)


@pytest.mark.parametrize("number", [str(10**400), f"-{10**400}", "1e400"])
@pytest.mark.parametrize("place", ["ensemble.options.models", "options.ridge"])
def test_options_can_be_reckoned_with(number, place):
    value = inside = golden()
    *parents, name = place.split(".")
    for parent in parents:
        inside = inside[parent]
    assert name in inside
    inside[name] = "here"
    with pytest.raises(FileFormatError, match=place):
        parse_record(json.dumps(value).replace('"here"', number), WHERE)


def test_a_seed_is_no_higher_than_the_page_can_tell_from_the_next():
    assert parse_record(json.dumps(golden() | {"seed": MOST_SEED}), WHERE).seed == seed_type.max == 2**53 - 1
    with pytest.raises(FileFormatError, match="seed: Input should be less than or equal to 9007199254740991"):
        parse_record(json.dumps(golden() | {"seed": MOST_SEED + 1}), WHERE)


def test_there_is_no_negative_seed_and_no_ensemble_without_members():
    with pytest.raises(FileFormatError, match="seed: Input should be greater than or equal to 0"):
        parse_record(json.dumps(golden() | {"seed": -1}), WHERE)
    for members, said in ((0, "greater than or equal to 1"), (10**19, "less than or equal to 10")):
        value = golden()
        value["ensemble"]["members"] = members
        with pytest.raises(FileFormatError, match=f"ensemble.members: Input should be {said}"):
            parse_record(json.dumps(value), WHERE)


@given(st.integers(0, len(GOLDEN.read_bytes()) - 3))
def test_a_truncated_record_is_one_error(length):
    with pytest.raises(FileFormatError, match="is not a valid record"):
        parse_record(GOLDEN.read_text()[:length], WHERE)


@given(st.recursive(st.none() | st.booleans() | st.floats() | st.text(max_size=5), st.lists, max_leaves=5), st.data())
def test_any_value_in_any_field_is_a_record_or_one_error(value, data):
    changed = golden()
    place = data.draw(st.sampled_from([changed, changed["costs"], changed["machine"], changed["provenance"]]))
    place[data.draw(st.sampled_from(sorted(place)))] = value
    try:
        record = parse_record(json.dumps(changed), WHERE)
    except FileFormatError:
        return
    assert parse_record(record.to_json(), WHERE) == record


def test_folder_without_a_record(tmp_path):
    with pytest.raises(FileFormatError, match=r"is not a run folder.*`tdabench run`"):
        read_record(tmp_path)


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"", b"[]", b"null"])
def test_not_a_record_at_all(tmp_path, content):
    (tmp_path / "record.json").write_bytes(content)
    with pytest.raises(FileFormatError, match=r"record\.json"):
        read_record(tmp_path)


def test_no_field_holds_quality():
    fields = {*Record.model_fields, *golden()["costs"], *golden()["ingredients"], *golden()["correlations"]}
    assert not fields & {"lds", "score", "rank", "evaluation", "quality"}


@pytest.mark.parametrize("part", ["costs", "ingredients", "scores"])
def test_an_ok_run_without_what_the_board_reads_is_refused(part):
    with pytest.raises(FileFormatError, match="ok has costs, ingredients and scores"):
        parse_record(json.dumps(golden() | {part: None}), WHERE)


def timed(machine: dict, trainings: dict, **cpu: float) -> Record:
    """Return the golden record, which served for 2 s and 1.25 s, with other processor seconds."""
    value = golden() | {"cpu_phases": cpu, "trainings": trainings}
    value["machine"] |= machine
    return parse_record(json.dumps(value), WHERE)


def training(wall_s: float, cpu_s: float) -> dict:
    return {"wall_s": wall_s, "cpu_s": cpu_s}


def test_a_busy_machine_is_seen_by_the_processor_s_share_of_serving_and_of_each_training():
    quiet = {"model-0-0": training(10, 9.5)}
    assert timed({}, quiet, fit=1.9, attribute=1.2).busy() == {}
    assert timed({}, quiet, fit=1.9, attribute=1.2).warnings() == []
    assert timed({}, quiet, fit=2.0, attribute=0.6).busy() == {"serving": 0.8}
    trainings = {**quiet, "model-0-1": training(10, 4)}
    record = timed({}, trainings, fit=2.0, attribute=0.6, harness=0.0)
    assert record.busy() == {"serving": 0.8, "training model-0-1": 0.4}
    assert record.warnings() == [
        "The machine was busy: the process had the processor for 80% of serving, 40% of training model-0-1. "
        "Its times are too long."
    ]


def test_a_warning_names_three_times_and_counts_the_others():
    record = timed({}, {f"model-0-{i}": training(10, 4) for i in range(5)}, fit=2.0, attribute=1.25)
    (warning,) = record.warnings()
    assert "40% of training model-0-2 and 2 more." in warning


@pytest.mark.parametrize("machine", [{"threads": 2}, {"device": "cuda"}])
def test_several_threads_and_accelerators_are_not_judged_by_processor_seconds(machine):
    assert timed(machine, {"model-0-0": training(10, 1)}, fit=0.1, attribute=0.1).busy() == {}


def test_more_threads_than_the_run_was_given_are_seen():
    """A library with threads of its own, or a method that sets their number."""
    own = timed({}, {}, fit=3.0, attribute=2.5)
    given = own.machine.threads
    assert own.threads_used() == pytest.approx(5.5 / 3.25)
    assert own.warnings() == [
        f"Serving kept {own.threads_used():.1f} threads at work, and the run was given {given}: "
        "its times compare with none of that machine class."
    ]
    assert timed({"threads": 4}, {}, fit=3.0, attribute=2.5).threads_used() is None
    assert timed({"device": "cuda"}, {}, fit=3.0, attribute=2.5).threads_used() is None


def test_milliseconds_of_the_disk_are_not_a_busy_machine():
    assert timed({}, {"model-0-0": training(0.012, 0.003)}, fit=2.0, attribute=1.25).busy() == {}


@pytest.mark.parametrize(("version", "newer"), [(3, True), (1, False), (True, False), ("3", False), (3.0, False)])
def test_a_record_of_a_newer_release_is_not_to_be_removed(version, newer):
    said = "was written by a newer tdabench than this one. Update tdabench" if newer else "Remove its folder, and run"
    with pytest.raises(FileFormatError, match=said):
        parse_record(json.dumps(golden() | {"schema_version": version, "surprise": 1}), WHERE)


@pytest.mark.parametrize("name", ["mine.py:TASK", "mine.py", "folder/mine.py:TASK", "/mine", "../mine"])
def test_a_task_is_named_and_never_a_file(name):
    with pytest.raises(FileFormatError, match="task: Value error, a task's name is no path"):
        parse_record(json.dumps(golden() | {"task": name}), WHERE)
    assert parse_record(json.dumps(golden() | {"task": "mine-v2.1"}), WHERE).task == "mine-v2.1"
    assert parse_record(json.dumps(golden() | {"method": "mine.py:Mine"}), WHERE).method == "mine.py:Mine"


def test_a_run_that_is_not_ok_says_why():
    with pytest.raises(FileFormatError, match="failed has a reason"):
        parse_record(json.dumps(golden() | {"status": "failed", "reason": None}), WHERE)
