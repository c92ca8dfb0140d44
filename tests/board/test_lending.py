"""Lending: seeds of another machine class count for an LDS where it computes the same scores, and never for a cost."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tdabench.board.page import render
from tdabench.board.table import COLUMNS, results_frame
from tdabench.findings import contests_of, numbers
from tdabench.findings.document import Source
from tdabench.findings.document import render as written
from tdabench.results.lending import agreement, lend
from tdabench.results.rows import rows_of
from tdabench.results.seed_variance import measure

HERE = {
    "machine_class": "here",
    "cpu": "AMD EPYC 9B45",
    "cores": 2,
    "threads": 1,
    "memory_bytes": 24_000_000_000,
    "device": "cpu",
    "device_name": None,
}
THERE = HERE | {"machine_class": "there", "cpu": "AMD EPYC 9B14"}
MASKS = {"kind": "dropout", "options": {"models": 1, "masks": 5}, "members": 5}


def scores(sign: str) -> dict[str, object]:
    return {"sha256": sign * 64, "shape": [200, 1000], "dtype": "float32"}


@pytest.fixture
def there(make):
    """Make a run of the lender: seed 0 with the scores that the other machine has, too."""

    def made(seed=0, lds=0.3, method="trak", **changes):
        given = {"machine": THERE, "scores": scores("a"), "costs": {"train_s": 99.0, "fit_s": 99.0}}
        return make.run(method, lds, seed=seed, run_id=f"{method}-there-{seed}", **given | changes)

    return made


@pytest.fixture
def here(make):
    def made(seed=0, lds=0.3, method="trak", **changes):
        given = {"machine": HERE, "scores": scores("a"), "costs": {"train_s": 4.0, "fit_s": 1.0}}
        return make.run(method, lds, seed=seed, run_id=f"{method}-here-{seed}", **given | changes)

    return made


def test_a_seed_that_lacks_is_lent_and_counts_for_the_lds_alone(here, there):
    own = [here(lds=0.30)]
    lent = lend(own, [there(0, 0.30), there(1, 0.20), there(2, 0.40)])
    assert [(run.record.seed, run.lent_to, run.counts_for) for run in lent] == [
        (1, "here", "here"),
        (2, "here", "here"),
    ]
    (row,) = rows_of([*own, *lent])
    assert row.lds == pytest.approx(0.30)
    assert row.seeds == "3 seeds, 2 lent"
    assert row.seeds_counted == {0, 1, 2}
    assert row.record.machine.machine_class == "here"
    alone = rows_of(own)[0]
    assert [row.cost(axis) for axis in _axes()] == [alone.cost(axis) for axis in _axes()]
    assert row.interval[1] - row.interval[0] > alone.interval[1] - alone.interval[0], "it holds the luck of the models"
    assert row.price == alone.price


def _axes():
    from tdabench.results.axes import AXES

    return AXES


def test_a_lent_seed_is_at_the_same_models_as_the_seeds_here(here, there):
    own = [here(0, 0.30), here(0, 0.25, "logra"), here(1, 0.20, "logra")]
    lent = lend(own, [there(0, 0.30), there(1, 0.25)])
    trak, logra = (next(r for r in rows_of([*own, *lent]) if r.record.method == name) for name in ("trak", "logra"))
    assert set(trak.draws.by_seed) == set(logra.draws.by_seed)
    difference = (trak.draws - logra.draws).interval()
    assert difference == pytest.approx((0.05, 0.05)), "what a model does to both cancels"


@pytest.mark.parametrize(
    ("offered", "why"),
    [
        ([(1, {})], "no run that both made"),
        ([(0, {"scores": scores("b")}), (1, {})], "other scores at the seed that both ran"),
        ([(0, {}), (1, {"options": {"proj_dim": 8}})], "another configuration"),
        ([(0, {}), (1, {"code": "d" * 64})], "other code"),
        ([(0, {}), (1, {"task_version": "f" * 16})], "another version of the task"),
        ([(0, {}), (1, {"packages": {"torch": "9.9"}})], "another torch"),
        ([(0, {}), (1, {"ensemble": MASKS})], "an ensemble that is not here"),
        ([(0, {}), (1, {"machine": HERE})], "the same machine class: no loan"),
        ([(0, {}), (1, {"lds": None})], "no LDS"),
        ([(0, {})], "nothing that lacks here"),
    ],
)
def test_nothing_is_lent_without_a_proof(here, there, offered, why):
    assert lend([here()], [there(seed, **changes) for seed, changes in offered]) == [], why


def test_the_proof_is_by_method_and_kind_of_ensemble(here, there):
    own = [here(), here(method="logra"), here(ensemble=MASKS)]
    offered = [there(), there(1), there(1, method="logra"), there(1, ensemble=MASKS)]
    assert [(run.record.method, run.record.ensemble) for run in lend(own, offered)] == [("trak", None)]
    assert len(lend(own, [*offered, there(ensemble=MASKS)])) == 2
    assert agreement(own, [*offered, there(ensemble=MASKS)]) == (2, 0)
    assert agreement(own, [there(scores=scores("b")), there(ensemble=MASKS)]) == (1, 1)


def test_a_configuration_without_an_lds_here_is_lent_nothing(here, there):
    proof = here(options={"proj_dim": 8}), there(options={"proj_dim": 8})
    assert lend([here(lds=None), proof[0]], [there(), there(1), proof[1]]) == []


def test_two_lenders_lend_a_seed_once(here, there):
    third = THERE | {"machine_class": "third"}
    offered = [there(), there(1), there(machine=third), there(1, machine=third), there(2, machine=third)]
    assert sorted(run.record.seed for run in lend([here()], offered)) == [1, 2]


def test_seeds_are_lent_to_each_machine_class_that_lacks_them(here, there):
    third = HERE | {"machine_class": "third"}
    lent = lend([here(), here(machine=third)], [there(), there(1)])
    assert [run.lent_to for run in lent] == ["here", "third"]
    assert [row.seeds for row in rows_of([here(), here(machine=third), *lent])] == ["2 seeds, 1 lent"] * 2


def test_seed_variance_is_measured_with_what_is_lent(here, there):
    own = [here(0, 0.30), here(0, 0.25, "logra")]
    lent = lend(own, [there(0), there(1, 0.20), there(0, method="logra"), there(1, 0.16, "logra")])
    assert measure(rows_of(own)) == {}
    (found,) = measure(rows_of([*own, *lent])).values()
    assert (found.n_configurations, found.n_pairs, found.n_seeds) == (2, 1, 2)


def test_the_page_lists_a_lent_run_and_the_exports_say_whose_it_is(make, here, there):
    own = [here()]
    rows = rows_of([*own, *lend(own, [there(), there(1, 0.4)])])
    page = render(rows, [make.task()])
    assert "3 seeds" not in page
    assert '<small class="seeds">2 seeds, 1 lent</small>' in page
    assert "Lent by machine class <code>there</code>, AMD EPYC 9B14, 1 thread, CPU only" in page
    assert page.count("trak-there-1") > 1
    assert "99 s" not in page, "its costs are in no table and no detail"
    frame = results_frame(rows)
    assert list(frame.columns) == COLUMNS
    assert list(frame.lent_to) == [None, "here"]
    assert list(frame.machine_class) == ["here", "there"]
    assert list(frame.configuration.unique()) == [frame.configuration[0]]
    assert list(frame.priced_train_s) == [4.0, 99.0], "a run's own costs, as measured"


def test_findings_count_what_is_lent_and_say_by_whom(make, here, there):
    own = [here(), here(ensemble=MASKS, lds=0.4)]
    lent = lend(own, [there(), there(1, 0.2), there(2, 0.1)])
    (contest,) = contests_of([*own, *lent], [make.task()])
    single = next(entry for entry in contest.entries if entry.record.ensemble is None)
    assert single.seeds == (0, 1, 2)
    assert single.lds == pytest.approx(0.2)
    assert [record.run_id for record in single.records] == ["trak-here-0"]
    assert contest.machine.machine_class == "here"
    assert single.costs["train"] == 4.0
    told = numbers([*own, *lent], [make.task()])[0]["methods"][0]["ensembles"][0]
    assert (told["runs"], told["lent"]) == (["trak-here-0"], ["trak-there-1", "trak-there-2"])
    text = written([*own, *lent], [make.task()], Source("tdabench findings")).text
    assert "- 2 runs of 1 task, of which 2 have an LDS;" in text
    assert (
        "- Lent by machine class `there` (AMD EPYC 9B14, 1 thread, CPU only): 2 runs at other run seeds, of 1 task. In "
        "the runs that both machines made it computes the same scores, bit for bit, so its LDS count; its costs do not."
    ) in text
    assert (
        "- 2 more runs at other run seeds, lent by machine class `there`, which computes the same scores: 1 "
        "configuration has its LDS from them, too."
    ) in text
    assert written(own, [make.task()], Source("tdabench findings")).text.count("ent by machine class") == 0


def test_what_is_lent_does_not_depend_on_the_order(here, there):
    own = [here(), here(method="logra")]
    offered = [there(), there(1), there(2), there(0, method="logra"), there(1, method="logra")]
    assert lend(own, offered) == lend(own[::-1], offered[::-1])
    assert replace(lend(own, offered)[0], lent_to="") in offered
