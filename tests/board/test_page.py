import json
import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest

from tdabench.board import Run, render, results_frame, write
from tdabench.board.findings import findings
from tdabench.results.rows import in_order, rows_of


class Reader(HTMLParser):
    """Elements and text of a page, as a browser without scripts reads it."""

    def __init__(self, html):
        super().__init__()
        self.elements, self.texts, self.inside = [], [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self.inside.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        while self.inside and self.inside.pop() != tag:
            pass

    def handle_data(self, data):
        if "script" not in self.inside and "style" not in self.inside:
            self.texts.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())

    def ids(self):
        return [a["id"] for _, a in self.elements if "id" in a]


@pytest.fixture
def said(make):
    """Return what returns the findings on a task's rows, by their first words."""
    return lambda rows, **task: {f.lead: f.text for f in findings(make.task(**task), in_order(rows))}


def test_same_rows_same_bytes_in_any_order(make):
    rows = make.board()
    assert render(rows, [make.task()]) == render(rows[::-1], [make.task()])


def test_same_bytes_in_another_process(make, tmp_path):
    """Sets of strings are ordered by a hash that differs from process to process."""
    code = (
        "import sys, hashlib; sys.path.insert(0, sys.argv[1]); import conftest as c\n"
        "from tdabench.board import render\n"
        "print(hashlib.sha256(render(c.make_board(), [c.make_task()]).encode()).hexdigest())"
    )
    folder = __file__.rpartition("/")[0]
    digests = {
        subprocess.run(
            [sys.executable, "-c", code, folder],
            env={"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(digests) == 1


def test_no_date_unless_given(make):
    assert "generated" not in Reader(render([], [])).text
    assert "generated 2026-03-02" in Reader(render([], [], "2026-03-02")).text


def test_every_run_is_on_the_page_once(make):
    rows = [*make.board(), make.row("other", task="unknown-task", run_id="u-1")]
    page = Reader(render(rows, [make.task()]))
    assert sorted(a["data-row"] for t, a in page.elements if t == "tbody") == sorted(str(i) for i in range(len(rows)))
    assert "run-u-1" in page.ids()


def test_a_configuration_of_several_seeds_is_one_row_and_one_point_a_chart(make):
    html = render(rows_of(make.seeds(lds=(0.2, 0.3, 0.34))), [make.task()])
    page = Reader(html)
    assert [a["id"] for t, a in page.elements if t == "tbody"] == ["run-trak-seed-0"]
    points = [a["href"] for t, a in page.elements if t == "a" and a.get("class", "").startswith("point")]
    assert set(points) == {"#run-trak-seed-0"}
    assert len(points) == 12  # six axes, two sizes
    row = Reader(row_of(html, "run-trak-seed-0")).text
    assert "0.280" in row
    assert "3 seeds" in row


def test_details_list_every_run_with_its_seed_lds_id_and_command(make):
    runs = make.seeds(lds=(0.2, 0.3, None), code="d" * 64)
    html = render(rows_of(runs), [make.task()])
    page = Reader(html)
    details = Reader(html.split('<tr class="details">')[1]).text
    for seed, said in ((0, "LDS 0.200, 95 % interval 0.170 to 0.230"), (1, "LDS 0.300"), (2, "timeout")):
        assert f"seed {seed} {said}" in details
        assert f"trak-seed-{seed} tdabench run digits-mlp trak --seed {seed}" in details
    assert "timeout: did not end within an hour" in details
    assert {"run-trak-seed-1", "run-trak-seed-2"} <= set(page.ids())
    assert "run seed 0 · 1 · 2" in details
    assert details.count("d" * 64) == 1, "what all have in common is said once"


def test_what_runs_differ_in_stands_in_the_order_of_the_runs(make):
    runs = [make.run(seed=seed, run_id=f"{seed}", costs={"wall_s": wall}) for seed, wall in ((0, 9.0), (1, 7.0))]
    assert "wall clock 9 s · 7 s" in Reader(render(rows_of(runs), [make.task()])).text
    runs[0] = make.run(run_id="0", status="failed")
    assert "wall clock – · 7 s" in Reader(render(rows_of(runs), [make.task()])).text


def test_a_row_that_misses_a_seed_says_so(make):
    html = render(rows_of(make.seeds(lds=(0.2, 0.3, None))), [make.task()])
    row = row_of(html, "run-trak-seed-0")
    assert "2 of 3 seeds" in Reader(row).text
    assert 'aria-label="warning: Seed 2 has no LDS: timeout."' in row


def test_a_seed_whose_evidence_is_of_other_ground_truth_says_so(make):
    first, second = make.seeds(lds=(0.2, 0.3))
    row = row_of(
        render(rows_of([first, Run(second.record, no_score="no LDS: its evidence is old")]), [make.task()]),
        "run-trak-seed-0",
    )
    assert 'aria-label="warning: Seed 1 has no LDS: its evidence is old."' in row


def test_seeds_that_all_failed_are_one_row_with_their_reasons(make):
    runs = [
        make.run(seed=0, run_id="a", status="timeout", reason="an hour", costs=None),
        make.run(seed=1, run_id="b", status="failed", reason="it broke", costs=None),
    ]
    row = Reader(row_of(render(rows_of([*runs, make.run("x")]), [make.task()]), "run-a")).text
    assert "failed, timeout" in row
    assert "seed 0: an hour; seed 1: it broke" in row


def test_what_seeds_mean_for_intervals_is_said_once_above_the_table(make):
    def said(*runs):
        text = Reader(render(rows_of(runs), [make.task()])).text
        assert text.count("Run seeds:") <= 1
        return text.partition("Run seeds: ")[2].partition(" Search ")[0]

    one, three = make.run("x"), make.seeds()
    assert said(one) == (
        "Every configuration was run with one seed, so intervals hold no variation between trained models: other"
        " models may give another result."
    )
    assert said(one, *three).startswith("1 of 2 configurations were run with several seeds (0, 1, 2), so their")
    assert said(*three).startswith("Every configuration was run with several seeds (0, 1, 2), so intervals hold the")
    assert said(*three).endswith("LDS and costs are means over a row’s seeds.")
    assert said(make.run(status="failed")) == ""
    assert "1 seed" not in Reader(row_of(render(rows_of([one, *three]), [make.task()]), "run-x-0001")).text


def test_wrong_labels_are_found_as_well_as_the_mean_over_seeds(make):
    runs = [make.run(seed=seed, mislabel_auroc=0.6 + seed / 10, run_id=f"{seed}") for seed in (0, 1)]
    html = render(rows_of([*runs, make.run("grad-dot")]), [make.task()])
    assert "labels, AUROC" in Reader(html).text
    cells = [re.findall(r"<td[^>]*>[^<]*</td>", row_of(html, i)) for i in ("run-0", "run-grad-dot-0001")]
    assert (cells[0].count('<td class="n">0.650</td>'), cells[1].count('<td class="n">–</td>')) == (1, 1)
    assert "AUROC" not in Reader(render([make.row()], [make.task()])).text


def test_ids_are_unique_even_where_run_ids_are_not(make):
    rows = [make.row(run_id=r) for r in ("a b", "a b", "a-b", "run")]
    ids = Reader(render(rows, [make.task()])).ids()
    assert len(ids) == len(set(ids))


def test_tasks_whose_names_no_url_can_hold_have_sections_of_their_own(make):
    """One of them has the very name that would be made for the second of two that look the same."""
    tasks = [make.task(name=name, title=name) for name in ("日本", "中国", "a b", "a-b", "-", "---2")]
    page = Reader(render([make.row(task="a+b")], tasks))
    sections = [a["id"] for _, a in page.elements if "data-task" in a and "id" in a]
    assert len(sections) == len(set(sections)) == 7
    assert len(page.ids()) == len(set(page.ids()))
    links = [a["href"] for tag, a in page.elements if tag == "a" and a.get("href", "").startswith("#task-")]
    assert {link.removeprefix("#") for link in links} == set(sections)


def test_points_lead_to_rows(make):
    page = Reader(render(make.board(), [make.task()]))
    targets = {a["href"][1:] for t, a in page.elements if t == "a" and a.get("class", "").startswith("point")}
    assert targets
    assert targets <= set(page.ids())


@pytest.mark.parametrize("where", ["method", "reason", "option", "kind", "command", "task", "machine"])
def test_hostile_text_is_only_text(make, where):
    bad = make.HOSTILE
    changes = {
        "method": {"method": bad},
        "reason": {"status": "failed", "reason": bad},
        "option": {"options": {bad: bad}},
        "kind": {"ensemble": make.ensemble(bad, 2, models=2)},
        "command": {"command": bad, "run_id": bad},
        "task": {"task": bad.replace("/", "")},  # no record has a task that is a path
        "machine": {"machine": make.CPU | {"cpu": bad, "machine_class": bad}},
    }[where]
    page = Reader(render([make.row(**changes)], [make.task()]))
    harmless = Reader(render([make.row()], [make.task()]))
    scripts = [a for t, a in page.elements if t == "script"]
    assert scripts == [a for t, a in harmless.elements if t == "script"]
    assert not [t for t, _ in page.elements if t == "img"]
    assert not [name for _, attrs in page.elements for name in attrs if name.startswith("on")]
    assert "alert(1)" in page.text
    assert "{{ 7*7 }}" in page.text


def embedded(html):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.S)[1])


def test_embedded_data_is_the_exact_table(make):
    rows = [*make.board(), make.row(make.HOSTILE)]
    data = embedded(render(rows, [make.task()]))
    frame = results_frame(in_order(rows))
    assert data["columns"] == list(frame.columns)
    assert data["runs"] == frame.to_numpy().tolist()
    assert [row[data["keys"].index("runs")] for row in data["rows"]] == [[i] for i in range(len(rows))]


def test_page_asks_for_nothing_outside(make):
    page = Reader(render(make.board(), [make.task()]))
    links = [v for _, a in page.elements for k, v in a.items() if k in ("src", "href", "action", "srcset")]
    assert all(link.startswith(("#", "data:")) or link in ("results.csv", "results.json") for link in links)
    (policy,) = [a["content"] for t, a in page.elements if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'")


def test_machine_classes_have_charts_of_their_own(make):
    rows = [make.row("cpu-run", 0.3), make.row("gpu-run", 0.4, machine=make.GPU)]
    html = render(rows, [make.task()])
    groups = html.split('<div class="machine">')[1:]
    assert len(groups) == 2
    for group, own, other in zip(groups, ("cpu-run", "gpu-run"), ("gpu-run", "cpu-run"), strict=True):
        charts = group.split("All results")[0]
        assert f"#run-{own}" in charts
        assert f"#run-{other}" not in charts


def test_runs_on_an_older_version_are_apart_and_not_drawn(make):
    html = render([make.row(), make.row(run_id="past", task_version="older")], [make.task()])
    charts, _, rest = html.partition("All results")
    assert "#run-past" not in charts
    assert "1 run on an older version of the task" in Reader(rest).text
    assert 'id="run-past"' in rest


@pytest.mark.parametrize(
    ("status", "reason"), [("declined", "needs checkpoints"), ("timeout", "an hour"), ("out-of-memory", "41 GB")]
)
def test_runs_that_did_not_end_well_are_rows_with_a_reason(make, status, reason):
    html = render([make.row(), make.row("late", status=status, reason=reason)], [make.task()])
    row = html.split('id="run-late-0001"')[1].split('<tr class="details">')[0]
    text = Reader(row).text
    assert status in text
    assert reason in text
    assert "0 s" not in text
    assert "0.000" not in text


def row_of(html, anchor):
    return html.split(f'id="{anchor}"')[1].split('<tr class="details">')[0]


def test_runs_of_a_task_without_ground_truth_show_their_costs_and_why_there_is_no_lds(make):
    task = make.task(n_subsets=0, n_seeds=0, ceiling=None, reliability=None, no_score="no LDS: it is still being built")
    html = render([make.row(lds=None, costs={"train_s": 77.0, "fit_s": 5.5})], [task])
    text, row = Reader(html).text, Reader(row_of(html, "run-trak-0001")).text
    assert "no LDS: it is still being built" in row
    assert "1.28 min" in row
    assert "5.5 s" in row
    assert "ground truth none yet so no run has an LDS" in text
    for untrue in ("has changed since", "not at hand", "no reason was recorded", "needs two seeds", "0 subsets"):
        assert untrue not in text


def test_runs_of_an_unknown_task_show_their_costs_and_nothing_untrue(make):
    html = render([make.row(lds=None, task="gone", costs={"fit_s": 5.5})], [])
    assert "5.5 s" in Reader(row_of(html, "run-trak-0001")).text
    assert "no LDS: the definition of the task is not at hand" in html
    assert "has changed since" not in html


def test_a_run_that_was_stopped_shows_the_costs_that_it_had(make):
    late = make.row("late", status="timeout", costs={"train_s": 5.5}, reason="an hour")
    html = render([make.row(), late], [make.task()])
    row = Reader(row_of(html, "run-late-0001")).text
    assert "an hour" in row
    assert "5.5 s" in row


def test_rows_of_two_versions_of_a_method_s_file_say_which(make):
    rows = [make.row(run_id="old", code="a" * 64), make.row(run_id="new"), make.row("other", run_id="other")]
    html = render(rows, [make.task()])
    said = {anchor: "code " in Reader(row_of(html, f"run-{anchor}")).text for anchor in ("old", "new", "other")}
    assert said == {"old": True, "new": True, "other": False}
    assert "code aaaaaa" in row_of(html, "run-old")


def test_details_say_that_the_machine_was_busy_and_with_what_sources_it_was_measured(make):
    quiet = Reader(render([make.row()], [make.task()])).text
    assert "processor, serving 1.49 s" in quiet
    assert "shared sources 5f4e3d2c1b0a" in quiet
    assert "The machine was busy" not in quiet
    row = make.row(cpu_phases={"fit": 0.5, "attribute": 0.25}, machine=make.CPU | {"threads": 1})
    busy = Reader(render([row], [make.task()])).text
    assert "The machine was busy: the process had the processor for 50% of serving." in busy


def test_details_hold_everything_needed_to_replay(make):
    row = make.row(options={"proj_dim": 512}, constant_queries=3, dirty=True)
    text = Reader(render([row], [make.task()])).text
    for fact in (row.record.command, "proj_dim 512", "[1000, 1001]", "epyc-7b13-t8-cpu", "torch 2.13.0", "b" * 64):
        assert fact in text
    assert "0f1e2d3c4b5a69788796a5b4c3d2e1f001122334 + uncommitted changes" in text
    assert "3 of 160 queries have scores or outputs that do not vary" in text


def test_empty_states_are_said(make):
    assert "No task and no run was given" in Reader(render([], [])).text
    assert "No run on this version of the task yet" in Reader(render([], [make.task()])).text
    assert "nothing to draw" in Reader(render([make.row(status="failed")], [make.task()])).text
    page = Reader(render([make.row()], [make.task(ceiling=None, reliability=None)])).text
    assert "noise ceiling unknown" in page


def test_runs_of_an_unknown_task_are_listed_but_not_compared(make):
    text = Reader(render([make.row(task="gone")], [])).text
    assert "The definition of this task is not at hand" in text
    assert "1 run on a task without a definition" in text


def test_fifty_runs_are_less_than_a_megabyte(make):
    rows = make.board()
    extra = [
        make.row(f"m{i % 9}", 0.1 + i / 100, run_id=f"x{i}", costs={"fit_s": 1.0 + i}) for i in range(50 - len(rows))
    ]
    assert len(render(rows + extra, [make.task()]).encode()) < 1_000_000


def test_findings_name_the_best_its_equals_and_the_cheapest(make, said):
    rows = [
        make.row("x", 0.41, 1, costs={"train_s": 100.0}),
        make.row("y", 0.40, 1, half=0.05, costs={"train_s": 12.0}),
        make.row("z", 0.2, 2, costs={"train_s": 1.0}),
    ]
    found = said(rows)
    assert found["Best"] == "x (LDS 0.410, 95 % interval 0.380 to 0.440, 58 % of the noise ceiling)."
    assert found["Not distinguishable from it"] == "y."
    assert found["Cheapest of that group"] == "in training, y (12 s)."


def test_the_best_is_named_with_its_seeds_where_any_has_several(make, said):
    three = make.seeds(lds=(0.4, 0.42, 0.44), half=0.001)
    assert said(rows_of([*three, make.run("y", 0.1)]))["Best"].startswith("trak (LDS 0.420, 3 seeds, 95 % interval ")
    assert said(rows_of([*three, make.run("y", 0.9)]))["Best"].startswith("y (LDS 0.900, 1 seed, 95 % interval ")
    assert "seed" not in said(rows_of([make.run("y", 0.9), make.run("x", 0.8)]))["Best"]


def test_what_alone_is_scored_is_not_called_the_best(make, said):
    assert list(said([make.row("random", 0.01), make.row(status="declined")])) == ["The only one scored so far"]


def test_the_best_is_not_worse_than_another_at_the_seed_that_both_have(make, said):
    """The dropout masks have the lucky seed alone, where one model is better; its mean over three seeds is lower."""
    masks = make.run("masks", 0.285, half=0.001, ensemble=make.ensemble("dropout", 5, models=1, masks=5))
    rows = rows_of([*make.seeds(lds=(0.30, 0.20, 0.22), half=0.001), masks])
    assert {row.record.method: row.rank_group for row in rows} == {"trak": 1, "masks": 2}
    assert said(rows)["Best"].startswith("trak (LDS 0.240, 3 seeds, ")


def test_the_page_says_how_training_is_priced(make):
    training = {"trainings": {"model-0-0": {"wall_s": 12.5, "cpu_s": 12.5}}}
    text = Reader(render(rows_of([make.run(**training)]), [make.task()])).text
    priced = "a training that gives checkpoints costs what one without does"
    assert text.count(priced) == 2, "above the table and in the glossary"
    assert "As measured in the row's own runs" not in text


def test_findings_compare_costs_inside_a_machine_class_only(make, said):
    rows = [make.row("x", 0.41, 1, machine=make.GPU), make.row("y", 0.40, 1)]
    assert not [lead for lead in said(rows) if lead.startswith("Cheapest")]


def test_findings_do_not_compare_what_was_not_ranked(make, said):
    assert list(said([make.row("x", 0.41), make.row("y", 0.4)], ceiling=None)) == ["Best"]
    assert said([make.row(status="failed")]) == {}


def test_findings_say_so_where_one_run_is_clear_of_the_rest(make, said):
    assert "Clear of the rest" in said([make.row("x", 0.41, 1), make.row("y", 0.1, 2)])


def test_what_is_level_with_the_best_is_named_whatever_its_rank(make, said):
    """The second is worse than the best and opens a rank; the third is lower still, but nobody knows how low."""
    rows = rows_of([make.run("a", 0.4), make.run("b", 0.3), make.run("c", 0.29, half=0.3)])
    assert {row.record.method: row.rank_group for row in rows} == {"a": 1, "b": 2, "c": 2}
    assert said(rows)["Not distinguishable from it"] == "c."
    assert "Clear of the rest" not in said(rows)
    assert "Clear of the rest" in said(rows[:2])


def test_rows_of_a_group_are_said_to_be_level_with_its_best_alone(make):
    page = Reader(render(make.board(), [make.task()]))
    (title,) = {a["title"] for t, a in page.elements if a.get("data-key") == "rank_group"}
    assert title == "Rows that share a group are not distinguishable from the best of the group"


def test_long_lists_of_equals_are_cut(make, said):
    rows = [make.row(f"m{i}", 0.4 - i / 1000, 1, half=0.05 if i else 0.03) for i in range(9)]
    assert said(rows)["Not distinguishable from it"] == "m1, m2, m3, m4 and 4 more."


def test_write_makes_three_whole_files(make, tmp_path):
    rows = make.board()
    html = render(rows, [make.task()])
    page = write(html, tmp_path / "site", rows)
    assert page == tmp_path / "site" / "index.html"
    assert page.read_text(encoding="utf-8") == html
    assert sorted(p.name for p in page.parent.iterdir()) == ["index.html", "results.csv", "results.json"]
    assert len(json.loads((page.parent / "results.json").read_text(encoding="utf-8"))) == len(rows)


def test_import_of_the_board_is_light():
    code = "import sys, tdabench.board; print([m for m in ('pandas', 'torch', 'scipy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_what_a_suite_leaves_out_is_said(make):
    task = make.task(left_out=(("datamodels <b>", "they take too long"),))
    text = Reader(render(make.board(), [task])).text
    assert "Left out: datamodels <b>, because they take too long." in text
    assert "Left out" not in Reader(render(make.board(), [make.task()])).text


def test_rows_whose_options_were_not_tuned_are_marked_in_words(make):
    said = "At defaults, set by hand: the method has options that can be tuned"
    rows = [make.row("a"), make.row("b", options_from="defaults"), make.row("c", options_from="given")]
    html = render(rows, [make.task()])
    assert said in Reader(html).text
    for name, mark in (("a", ""), ("b", "at defaults"), ("c", "set by hand")):
        row = Reader(html.split(f'id="run-{name}-0001"')[1].split("</th>")[0]).text
        assert ("at defaults" in row, "set by hand" in row) == (mark == "at defaults", mark == "set by hand")
    assert said not in Reader(render([make.row("a"), make.row("d", options_from=None)], [make.task()])).text


def test_tuning_time_of_another_machine_class_is_not_shown_as_none_at_all(make):
    text = Reader(render([make.row(costs={"tune_s": None})], [make.task()])).text
    assert "tuning on another machine class" in text


def test_a_link_leads_past_the_charts_to_the_table_of_its_task(make):
    html = render([make.row(), make.row("more", 0.2)], [make.task()])
    (target,) = re.findall(r'<a href="#([^"]*)">The table of 2 results</a>', html)
    assert html.count(f'id="{target}"') == 1
    assert html.index(f'href="#{target}"') < html.index("<figure") < html.index(f'id="{target}"')
