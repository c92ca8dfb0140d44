import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tdabench.board.names import names
from tdabench.formats import format_bytes, format_count, format_score, format_seconds
from tdabench.results.axes import AXES
from tdabench.results.rows import in_order, on_fronts, rows_of
from tdabench.results.runs import Run

AXIS = {axis.key: axis for axis in AXES}


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "–"),
        (math.nan, "–"),
        (0, "0 s"),
        (2e-7, "0.2 µs"),
        (0.0000123, "12.3 µs"),
        (0.0123, "12.3 ms"),
        (0.9999, "1 s"),
        (1.5, "1.5 s"),
        (59.99, "1 min"),
        (312, "5.2 min"),
        (3600, "1 h"),
        (5 * 86400, "5 d"),
        (5000 * 86400, "5000 d"),
    ],
)
def test_seconds_are_written_for_people(seconds, text):
    assert format_seconds(seconds) == text


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (None, "–"),
        (0, "0 B"),
        (999, "999 B"),
        (1234, "1.2 kB"),
        (999_999, "1 MB"),
        (1_234_567, "1.2 MB"),
        (350_000_000, "350 MB"),
        (64_000_000_000, "64 GB"),
    ],
)
def test_sizes_are_written_for_people(size, text):
    assert format_bytes(size) == text


@pytest.mark.parametrize(("n", "text"), [(0, "0"), (7, "7"), (9999, "9,999"), (12_000, "12 k"), (1_234_567, "1.23 M")])
def test_counts_are_written_for_people(n, text):
    assert format_count(n) == text


@pytest.mark.parametrize(("lds", "text"), [(0.41234, "0.412"), (-0.03, "−0.030"), (-0.0001, "0.000"), (None, "–")])
def test_scores_have_three_decimals_and_a_true_minus(lds, text):
    assert format_score(lds) == text


@given(st.floats(min_value=1e-9, max_value=1e15))
def test_written_times_are_within_rounding_of_the_value(seconds):
    units = {"µs": 1e-6, "ms": 1e-3, "s": 1, "min": 60, "h": 3600, "d": 86400}
    number, unit = format_seconds(seconds).split()
    assert math.isclose(float(number) * units[unit], seconds, rel_tol=0.0051) or seconds < 1e-6


def test_costs_are_read_from_the_record(make):
    row = make.row(costs={"train_s": 10.0, "extra_train_s": 4.0, "fit_s": 2.0, "attribute_s": 1.0})
    assert {k: row.cost(AXIS[k]) for k in ("train", "extra", "serve", "total")} == {
        "train": 10.0,
        "extra": 4.0,
        "serve": 3.0,
        "total": 13.0,
    }
    assert row.cost(AXIS["memory"]) == 350_000_000
    assert AXIS["memory"].text(1_234_567) == "1.2 MB"


def test_memory_is_the_devices_where_the_record_has_it(make):
    row = make.row(costs={"peak_device_bytes": 5_000})
    assert row.cost(AXIS["memory"]) == 5_000


def test_costs_that_were_not_measured_are_missing(make):
    assert make.row(status="timeout").cost(AXIS["train"]) is None


def test_a_run_that_did_not_end_well_has_no_lds(make):
    assert make.row(status="failed").lds is None
    assert make.row(lds=math.nan).lds is None


def test_order_does_not_depend_on_the_order_given_and_missing_is_last(make):
    rows = make.board()
    assert in_order(rows) == in_order(rows[::-1])
    scores = [row.lds for row in in_order(rows) if row.record.task_version == "0123456789abcdef"]
    known = [s for s in scores if s is not None]
    assert known == sorted(known, reverse=True)
    assert scores[len(known) :] == [None] * (len(scores) - len(known))


def test_fronts_do_not_mix_machine_classes(make):
    slow = make.row("trak", 0.3, costs={"fit_s": 50.0})
    fast = make.row("trak", 0.4, machine=make.GPU, costs={"fit_s": 0.1})
    assert all("serve" in keys for keys in on_fronts([slow, fast]))
    assert "serve" not in on_fronts([slow, make.row("trak", 0.4, costs={"fit_s": 0.1})])[0]


def test_fronts_do_not_mix_task_versions(make):
    old = make.row("trak", 0.1, costs={"fit_s": 50.0}, task_version="old")
    assert "serve" in on_fronts([old, make.row("trak", 0.4)])[0]


def test_identical_runs_share_the_front_and_zero_cost_is_on_it(make):
    keys = on_fronts([make.row(lds=0.3), make.row(lds=0.3), make.row(lds=0.2)])
    assert "extra" in keys[0]
    assert keys[0] == keys[1]
    assert not keys[2]


def test_runs_without_a_score_are_on_no_front(make):
    assert on_fronts([make.row(status="timeout", costs={})]) == [frozenset()]


def test_runs_that_differ_in_their_seed_are_one_row_with_the_mean(make):
    runs = [
        make.run(lds=lds, half=0.01, n=2000, seed=seed, run_id=f"{seed}", costs={"fit_s": fit, "attribute_s": 0.0})
        for seed, lds, fit in ((0, 0.2, 1.0), (1, 0.3, 2.0), (2, 0.34, 6.0))
    ]
    (row,) = rows_of(runs)
    assert [run.record.seed for run in row.runs] == [0, 1, 2]
    assert row.lds == pytest.approx(0.28)
    assert row.cost(AXIS["serve"]) == 3.0
    low, high = row.interval
    half = 4.303 * 0.0721 / math.sqrt(3)  # t distribution with 2 degrees of freedom; subsets and queries add little
    assert (low + high) / 2 == pytest.approx(0.28, abs=0.01)
    assert (high - low) / 2 == pytest.approx(half, rel=0.2)
    assert (row.rank_group, row.seeds) == (1, "3 seeds")


def test_an_interval_of_two_seeds_ends_where_correlations_do(make):
    """With one degree of freedom the t factor is 12.7: half the difference of two seeds becomes six of it."""
    (row,) = rows_of([make.run(lds=0.6, seed=0), make.run(lds=0.05, seed=1)])
    assert row.draws.interval() < (-1.0, math.inf)
    assert row.draws.interval()[1] > 1.0
    assert row.interval == (-1.0, 1.0)


def test_a_row_of_one_run_has_its_interval(make):
    (row,) = rows_of([make.run(lds=0.3, half=0.02)])
    assert row.interval == pytest.approx((0.28, 0.32))
    assert (row.lds, row.seeds) == (0.3, "")


def test_a_seed_measured_twice_weighs_once(make):
    def run(seed, lds, fit, name):
        return make.run(lds=lds, seed=seed, run_id=name, costs={"fit_s": fit, "attribute_s": 0.0})

    (row,) = rows_of([run(0, 0.1, 1.0, "a"), run(0, 0.2, 3.0, "again"), run(1, 0.45, 6.0, "b")])
    assert row.lds == pytest.approx(0.3)
    assert row.cost(AXIS["serve"]) == 4.0
    assert row.seeds == "2 seeds, 3 runs"
    assert rows_of([run(0, 0.1, 1.0, "a"), run(0, 0.2, 3.0, "again")])[0].seeds == "1 seed, 2 runs"


def test_a_seed_measured_again_on_an_idle_machine_or_with_newer_sources_replaces_what_it_was(make):
    def run(name, serve, day, busy=False, sources="new", **changes):
        record = make.record(
            run_id=name,
            created=f"2026-03-0{day}T12:00:00Z",
            machine=make.CPU | {"threads": 1},
            phases={"fit": serve},
            cpu_phases={"fit": serve / (2 if busy else 1)},
            costs={"fit_s": serve, "attribute_s": 0.0},
            **changes,
        )
        code = record.provenance.model_copy(update={"sources_sha256": sources})
        return Run(record.model_copy(update={"provenance": code}), make.run(lds=0.3).evaluation)

    def joined(*runs):
        (row,) = rows_of(runs)
        return [r.record.run_id for r in row.runs], row.cost(AXIS["serve"])

    idle, busy, old = run("idle", 1.0, 2), run("busy", 3.0, 3, busy=True), run("old", 5.0, 1, sources="old")
    assert joined(busy, idle) == (["idle"], 1.0), "whichever was first"
    assert joined(old, busy) == (["busy"], 3.0), "a busy time is better than one of other code"
    assert joined(old, busy, idle) == (["idle"], 1.0)
    assert joined(idle, run("later", 2.0, 4)) == (["idle", "later"], 1.5)
    other = run("other", 7.0, 1, busy=True, seed=1)
    assert joined(busy, idle, other) == (["idle", "other"], 4.0), "each seed for itself"
    failed = make.run("trak", status="timeout", run_id="failed", machine=make.CPU | {"threads": 1})
    assert joined(failed, busy, idle)[0] == ["failed", "idle"], "what did not end well says something"
    unscored = Run(run("unscored", 9.0, 5, sources="newest").record, no_score="its evidence is of other ground truth")
    assert joined(old, unscored) == (["old", "unscored"], 5.0), "an LDS is not hidden by a newer run without"
    assert joined(unscored) == (["unscored"], 9.0)


def test_rows_whose_runs_trained_alike_pay_alike(make):
    """One seed's training was slow; who was run with it alone is no dearer, nor cheaper who was not."""

    def run(name, seed, lds, seconds):
        cost = {"train_s": seconds, "extra_train_s": 0.0, "fit_s": 1.0, "attribute_s": 0.0}
        training = {f"model-{seed}-0": {"wall_s": seconds, "cpu_s": seconds}}
        return make.run(name, lds, seed=seed, run_id=f"{name}-{seed}", costs=cost, trainings=training)

    rows = rows_of(
        [run("slow", 0, 0.31, 4.0), run("fast", 1, 0.3, 2.0), run("both", 0, 0.2, 4.0), run("both", 1, 0.2, 2.0)]
    )
    assert [row.cost(AXIS["train"]) for row in rows] == [3.0] * 3
    assert [row.cost(AXIS["total"]) for row in rows] == [4.0] * 3
    assert [row.cost(AXIS["extra"]) for row in rows] == [0.0] * 3
    on = {row.record.method for row, keys in zip(rows, on_fronts(rows), strict=True) if "train" in keys}
    assert on == {"slow"}
    assert [row.mean(lambda r: r.record.costs.train_s) for row in in_order(rows)] == [4.0, 2.0, 3.0], "records stand"


def test_a_model_of_another_torch_is_another_model_and_counts_for_itself(make):
    def run(run_id, seconds, torch="2.13.0"):
        training = {"model-0-0": {"wall_s": seconds, "cpu_s": seconds}}
        return make.run(run_id, run_id=run_id, packages={"torch": torch}, trainings=training)

    rows = rows_of([run("a", 1.0), run("b", 1.0), run("c", 4.0, torch="2.14.0")])
    assert {(row.price.seconds, row.price.n) for row in rows} == {(2.5, 2)}


def test_a_method_that_trains_for_checkpoints_itself_pays_a_model_and_whoever_has_one_pays_it_too(make):
    """Its training has a model's name; as a model gives no checkpoints, an owner of one is charged with all of it."""

    def run(method, seconds, given):
        cost = {"train_s": seconds, "extra_train_s": seconds - given, "fit_s": 1.0, "attribute_s": 0.0}
        training = {"model-0-0": {"wall_s": seconds, "cpu_s": seconds}}
        return make.run(method, costs=cost, trainings=training)

    rows = {row.record.method: row for row in rows_of([run("own", 5.0, 0.0), run("plain", 2.0, 2.0)])}
    assert {row.price.seconds for row in rows.values()} == {2.0}
    costs = {name: (row.cost(AXIS["train"]), row.cost(AXIS["extra"])) for name, row in rows.items()}
    assert costs == {"own": (2.0, 2.0), "plain": (2.0, 0.0)}


def test_one_seed_is_other_models_on_another_machine_or_with_another_torch(make):
    def ranks(**changes):
        lds = {0: 0.3, 1: 0.2, 2: 0.1}
        runs = [make.run("many", value, seed=seed, run_id=f"many-{seed}") for seed, value in lds.items()]
        rows = rows_of([*runs, make.run("one", 0.19, run_id="one", **changes)])
        return {row.record.method: row.rank_group for row in rows}

    assert ranks() == {"many": 1, "one": 2}, "at the seed that both have the difference is plain"
    assert ranks(seed=7) == {"many": 1, "one": 1}
    assert ranks(machine=make.GPU) == {"many": 1, "one": 1}
    assert ranks(packages={"torch": "2.14.0"}) == {"many": 1, "one": 1}


@pytest.mark.parametrize(
    "change",
    [
        {"task": "other"},
        {"task_version": "older"},
        {"machine": {"machine_class": "another"}},
        {"method": "logra"},
        {"code": "e" * 64},
        {"packages": {"torch": "2.14.0"}},
        {"packages": {"dattri": "0.4.0"}},
        {"options": {"proj_dim": 64}},
        {"ensemble": {"kind": "independent", "options": {"models": 1}, "members": 1}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_runs_that_differ_in_more_than_their_seed_are_rows_of_their_own(make, change):
    changed = change | ({"machine": make.CPU | change["machine"]} if "machine" in change else {})
    rows = rows_of([make.run(seed=0), make.run(**{"method": "trak", "seed": 1} | changed)])
    assert [len(row.runs) for row in rows] == [1, 1]


def test_rows_do_not_depend_on_the_order_of_runs(make):
    runs = make.seeds() + make.seeds("grad-dot", (0.1, None)) + [make.run("knn", status="declined")]
    assert in_order(rows_of(runs)) == in_order(rows_of(runs[::-1]))


def test_seeds_without_an_lds_are_counted_and_no_part_of_a_mean(make):
    (row,) = rows_of(make.seeds(lds=(0.2, 0.3, None), costs={"train_s": 4.0}))
    assert row.lds == pytest.approx(0.25)
    assert (row.seeds, row.status) == ("2 of 3 seeds", "ok")
    assert row.reason == "seed 2: did not end within an hour"
    (row,) = rows_of(make.seeds(lds=(None, None)))
    assert (row.lds, row.seeds, row.status, row.reason) == (None, "2 seeds", "timeout", "did not end within an hour")


def test_a_run_that_failed_and_was_tried_again_counts_as_its_seed(make):
    (row,) = rows_of([make.run(status="failed", run_id="a"), make.run(run_id="a-attempt-2")])
    assert (row.lds, row.seeds, row.status) == (0.3, "", "ok")


def test_rows_are_ranked_within_their_task_with_the_luck_of_their_models(make):
    """Each run of the first is above each of the second, by less than models differ; the third is far below."""
    runs = [
        *(make.run("a", lds, half=0.005, seed=seed) for seed, lds in ((0, 0.30), (1, 0.38))),
        *(make.run("b", lds, half=0.005, seed=seed) for seed, lds in ((2, 0.20), (3, 0.28))),
        make.run("c", -0.4, half=0.005, seed=4),
        make.run("d", 0.1, half=0.005, task="other"),
        make.run("e", status="failed"),
    ]
    groups = {row.record.method: row.rank_group for row in rows_of(runs)}
    assert groups == {"a": 1, "b": 1, "c": 2, "d": 1, "e": None}
    single = {row.record.method: row.rank_group for row in rows_of([runs[0], runs[2]])}
    assert single == {"a": 1, "b": 2}


def test_seeds_are_one_entry_in_the_fronts(make):
    """One lucky seed of the noisy method is better than the other, its mean is not."""
    cost = {"fit_s": 1.0, "attribute_s": 0.0}
    lucky = make.seeds("lucky", (0.5, 0.1, 0.1), costs=cost)
    rows = rows_of([*lucky, *make.seeds("steady", (0.3, 0.3, 0.3), costs=cost)])
    assert {row.record.method: "serve" in keys for row, keys in zip(rows, on_fronts(rows), strict=True)} == {
        "lucky": False,
        "steady": True,
    }


def test_rows_that_cost_the_same_are_at_the_same_place_of_a_front(make):
    """The mean of three equal times may be another number in its last bit, above or below."""
    for serve in (0.11000000000000001, 3.8500000000000005):
        cost = {"fit_s": serve, "attribute_s": 0.0}
        rows = rows_of([*make.seeds("worse", (0.1, 0.1, 0.1), costs=cost), make.run("better", 0.3, costs=cost)])
        assert len({row.cost(AXIS["serve"]) for row in rows}) == 1
        on = {row.record.method for row, keys in zip(rows, on_fronts(rows), strict=True) if "serve" in keys}
        assert on == {"better"}


def test_options_that_one_run_was_tuned_to_are_tuned(make):
    (row,) = rows_of([make.run(seed=0), make.run(seed=1, options_from="given")])
    assert row.untuned == ""
    assert rows_of([make.run(seed=1, options_from="given")])[0].untuned == "set by hand"


def test_what_is_said_of_some_runs_is_said_with_their_seeds(make):
    runs = [make.run(seed=seed, above_ceiling=seed == 1, constant_queries=2) for seed in (0, 1)]
    (row,) = rows_of(runs)
    constant, above = row.warnings()
    assert constant.startswith("2 of 160 queries")
    assert above.startswith("seed 1: The LDS 0.300")


def test_names_say_only_what_tells_runs_apart(make):
    dropout = [make.row(ensemble=make.ensemble("dropout", 10, models=m, masks=10 // m, scope="all")) for m in (1, 2)]
    sparse = [make.row("grad-dot", options={"projection": size}) for size in (64, 512)]
    assert names([make.row("trak"), *dropout, *sparse]) == [
        "trak",
        "trak · dropout ×10",
        "trak · dropout 2×5",
        "grad-dot (projection=64)",
        "grad-dot (projection=512)",
    ]


def test_names_say_which_dropout_it_is(make):
    def named(members, **options):
        return make.row(ensemble=make.ensemble("dropout", members, **options)).short

    assert named(20, models=1, masks=20, scope="all", mask="shared") == "trak · dropout ×20"
    assert named(20, models=1, masks=20, scope="q-only", mask="shared") == "trak · dropout q-only ×20"
    assert named(20, models=1, masks=20, scope="all", mask="per-sample") == "trak · dropout per-sample ×20"
    assert named(25, models=5, masks=5, scope="all", mask="shared") == "trak · dropout 5×5"
    assert make.row(ensemble=make.ensemble("lora", 2, models=1, adapters=2, rank=4)).short == "trak · lora rank=4 ×2"


def test_an_option_that_happens_to_equal_the_number_of_members_is_no_size(make):
    options = {"models": 1, "rank": 8, "epochs": 5}
    rows = [make.row(ensemble=make.ensemble("lora", n, adapters=n, **options)) for n in (5, 8, 10)]
    assert [row.sizes for row in rows] == [{"models": 1, "adapters": n} for n in (5, 8, 10)]
    assert {row.flavour for row in rows} == {""}
    unknown = make.row(ensemble=make.ensemble("new", 5, copies=5, rank=8))
    assert unknown.sizes == {"copies": 5}


def test_names_say_the_version_of_a_method_s_file_where_runs_differ_in_it(make):
    old, new = (make.row(run_id=sha, code=sha * 64) for sha in "ab")
    assert names([old, new]) == ["trak (code aaaaaa)", "trak (code bbbbbb)"]
    assert names([new, make.row("x", code="a" * 64)]) == ["trak", "x"]


def test_names_say_the_versions_in_which_runs_differ(make):
    old, new = (make.row(packages={"dattri": version}) for version in ("0.3.0", "0.4.0"))
    assert names([old, new]) == ["trak (dattri 0.3.0)", "trak (dattri 0.4.0)"]
    assert names([make.row(), make.row(packages={"torch": "2.14.0"})]) == ["trak (torch 2.13.0)", "trak (torch 2.14.0)"]


def test_packages_that_no_result_hangs_on_tell_nothing_apart(make):
    (row,) = rows_of([make.run(seed=0), make.run(seed=1, packages={"numpy": "9.0"})])
    assert len(row.runs) == 2


def test_names_fall_back_to_machine_and_run(make):
    rows = [make.row(run_id="a"), make.row(run_id="b"), make.row(machine=make.GPU)]
    assert names(rows[::2]) == ["trak (on AMD EPYC 7B13)", "trak (on NVIDIA H100 80GB HBM3)"]
    assert names(rows[:2]) == ["trak (run a)", "trak (run b)"]
