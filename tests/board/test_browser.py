import io
import json

import pandas as pd
import pytest

from tdabench.board import render, write
from tdabench.results.rows import in_order, rows_of

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def site(make, tmp_path_factory):
    """The realistic board with one hostile run, on disk."""
    rows = [
        *make.board(),
        make.row(
            make.HOSTILE,
            0.05,
            6,
            run_id=make.HOSTILE,
            options={make.HOSTILE: make.HOSTILE},
            command=make.HOSTILE,
            costs={"extra_train_s": 4.0},
        ),
        make.row("hostile-reason", status="failed", reason=f"{make.HOSTILE}\rand another line", run_id="h2"),
    ]
    return write(render(rows, [make.task()]), tmp_path_factory.mktemp("site"), rows).as_uri()


@pytest.fixture
def visit(browser, site):
    """Open the page; fails the test on any script error, dialog, console message or request to the outside."""
    contexts, trouble = [], []

    def open_page(at="", url=site, **options):
        context = browser.new_context(**({"viewport": {"width": 1280, "height": 900}} | options))
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(5000)
        page.on("pageerror", lambda error: trouble.append(f"error: {error}"))
        page.on("console", lambda message: trouble.append(f"console: {message.text}"))
        page.on("dialog", lambda dialog: (trouble.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        page.on("request", lambda r: None if r.url.startswith(("file:", "blob:", "data:")) else trouble.append(r.url))
        page.goto(url + at)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert trouble == []


def methods(page):
    return (
        page.locator("table.runs")
        .first.locator("tbody:visible th summary > span")
        .evaluate_all("spans => spans.map(s => s.firstChild.textContent)")
    )


def column(page, key):
    """The values of a column in the order shown, from the embedded data."""
    return page.evaluate(
        """key => {
          const data = JSON.parse(document.getElementById("data").textContent);
          const at = data.keys.indexOf(key);
          return [...document.querySelector("table.runs").tBodies]
            .filter(b => !b.hidden).map(b => data.rows[b.dataset.row][at]);
        }""",
        key,
    )


def sort_by(page, key):
    page.locator(f"table.runs >> nth=0 >> th[data-key={key}] button").click()


def test_hostile_names_are_shown_and_never_run(visit, make):
    page = visit()
    assert make.HOSTILE in methods(page)
    row = page.locator("tbody", has_text="alert(1)").first
    row.locator("summary").click()
    assert make.HOSTILE in row.locator(".command code").text_content()
    assert page.locator("td.reason", has_text="alert(1)").text_content() == f"{make.HOSTILE}\nand another line"
    page.locator(".legend button", has_text="alert(1)").click()
    assert methods(page) == [make.HOSTILE]
    assert page.locator("img").count() == 0


def test_readable_without_javascript(visit):
    page = visit(java_script_enabled=False)
    assert page.locator(".charts svg.chart:visible").count() == 6
    assert page.locator("table.runs").first.locator("tbody:visible").count() == 31
    assert page.locator(".js-only:visible").count() == 0
    details = page.locator("tbody tr.details").first
    assert not details.is_visible()
    page.locator("table.runs summary").first.click()
    assert details.is_visible()
    assert "tdabench run" in details.inner_text()


def test_one_big_chart_with_a_choice_of_axis_kept_in_the_address(visit):
    page = visit()
    assert page.locator(".charts svg.chart:visible").count() == 1
    assert page.locator(".axes button[aria-pressed=true]").inner_text() == "Total time"
    page.locator(".axes button", has_text="Serving").click()
    assert page.url.endswith("#axis=serve")
    assert page.locator(".charts figure:visible h4").inner_text() == "LDS against serving time (fit + attribute)"
    page.reload()
    assert page.locator(".charts figure:visible").get_attribute("data-axis") == "serve"
    page.locator(".axes button", has_text="All six").click()
    assert page.locator(".charts svg.chart:visible").count() == 6


def test_unknown_axis_in_the_address_is_ignored(visit):
    assert visit("#axis=__proto__").locator(".charts figure:visible").get_attribute("data-axis") == "total"


def test_sorting_is_numeric_with_missing_last_and_comes_back(visit):
    page = visit()
    before = methods(page)
    for key, best_first in (("train_s", False), ("lds", True), ("members", False)):
        sort_by(page, key)
        first = column(page, key)
        known = [v for v in first if v is not None]
        assert known == sorted(known, reverse=best_first)
        assert first[len(known) :] == [None] * (len(first) - len(known))
        sort_by(page, key)
        turned = column(page, key)
        assert turned[: len(known)] == sorted(known, reverse=not best_first)
        assert turned[len(known) :] == [None] * (len(first) - len(known))
        sort_by(page, key)
        assert methods(page) == before


def test_sorting_is_stable_and_announced(visit):
    page = visit()
    sort_by(page, "train_s")
    assert page.locator("table.runs >> nth=0 >> th[aria-sort=ascending]").get_attribute("data-key") == "train_s"
    pairs = list(zip(column(page, "train_s"), column(page, "lds"), strict=True))
    same = [lds for cost, lds in pairs if cost == 12.5]
    assert len(same) > 3
    assert same == sorted(same, reverse=True)


def test_filters_narrow_rows_dim_points_and_clear(visit):
    page = visit()
    page.locator("select[name=ensemble]").select_option("dropout")
    assert set(column(page, "ensemble")) == {"dropout"}
    assert page.locator(".count").inner_text() == "6 of 31 rows"
    assert page.locator("svg.wide a.point:not(.dim):visible").count() == 6
    bright = page.locator("svg.wide [data-of]:not(.dim):visible").evaluate_all("found => found.map(e => e.dataset.of)")
    assert bright
    assert all("-dropout-" in ids for ids in bright)
    assert page.locator("svg.wide [data-of].dim:visible").count() > 0
    page.locator("input[name=text]").fill("masks models nothing-like-this")
    assert page.locator(".no-match").is_visible()
    page.locator("button[data-act=clear]").click()
    assert len(methods(page)) == 31
    page.locator("select[name=status]").select_option("timeout")
    assert methods(page) == ["retrain-loo"]


def test_a_row_is_found_by_what_it_shows(visit):
    page = visit()
    shown = page.locator("table.runs").first.locator("tbody#run-trak-dropout-1-25-q-only-shared").locator("tr").first
    assert "masks=25" in shown.text_content()
    page.locator("input[name=text]").fill("masks=25 scope=q-only")
    assert page.locator(".count").inner_text() == "1 of 31 rows"


def test_front_filter_follows_the_axis(visit):
    page = visit()
    page.locator("input[name=front]").check()
    assert all(column(page, "front_total"))
    page.locator(".axes button", has_text="Serving").click()
    assert all(column(page, "front_serve"))
    assert page.locator(".check span").inner_text() == "only the front for serving time (fit + attribute)"


def test_filters_and_sorting_are_kept_in_the_address(visit):
    page = visit()
    page.locator("select[name=ensemble]").select_option("dropout")
    page.locator("input[name=text]").fill("q-only & 25")
    page.locator("input[name=front]").check()
    sort_by(page, "serve_s")
    assert page.url.endswith("#axis=total&text=q-only+%26+25&ensemble=dropout&front=1&sort=serve_s")
    page.locator("input[name=front]").uncheck()
    page.locator("input[name=text]").fill("q-only")
    sort_by(page, "serve_s")
    shown = methods(page), column(page, "serve_s")
    assert shown[1] == sorted(shown[1], reverse=True)
    page.reload()
    assert (methods(page), column(page, "serve_s")) == shown
    assert page.locator("input[name=text]").input_value() == "q-only"
    assert page.locator("select[name=ensemble]").input_value() == "dropout"
    assert page.locator("th[aria-sort=descending]").get_attribute("data-key") == "serve_s"
    page.locator("button[data-act=clear]").click()
    sort_by(page, "serve_s")
    assert page.url.endswith("#axis=total")
    assert page.locator("th[aria-sort]").count() == 0


def test_filters_of_an_address_that_the_page_does_not_have_are_ignored(visit):
    page = visit("#axis=serve&method=nobody&status=__proto__&sort=-constructor")
    assert page.locator(".count").inner_text() == "31 of 31 rows"
    assert page.locator("th[aria-sort]").count() == 0
    chosen = page.locator("select[name=method], select[name=status]").evaluate_all(
        "all => all.map(s => s.selectedIndex)"
    )
    assert chosen == [0, 0]


def test_a_method_chosen_in_the_legend_is_in_the_address_and_back_from_a_row_keeps_it(visit):
    page = visit(reduced_motion="reduce")
    page.locator(".legend button", has_text="ek-fac").click()
    assert page.url.endswith("#axis=total&method=ek-fac")
    kept = methods(page)
    page.locator("svg.wide a.point:not(.dim):visible .mark").first.click()
    page.go_back()
    page.wait_for_function("location.hash.startsWith('#axis=')")
    assert methods(page) == kept
    assert page.locator("select[name=method]").input_value() == "ek-fac"


def exported(page, kind):
    with page.expect_download() as info:
        page.locator(f"button[data-act={kind}]").click()
    assert info.value.suggested_filename == f"digits-mlp.{kind}"
    return info.value.path().read_text(encoding="utf-8")


def test_exports_hold_the_view_as_shown(visit, make):
    page = visit(accept_downloads=True)
    page.locator("select[name=ensemble]").select_option("none")
    sort_by(page, "serve_s")
    shown = methods(page)
    records = json.loads(exported(page, "json"))
    assert [r["method"] for r in records] == shown
    assert make.HOSTILE in shown
    table = pd.read_csv(io.StringIO(exported(page, "csv")))
    assert list(table.method) == shown
    assert list(table.columns) == list(records[0])


def test_exports_without_filters_are_the_files_beside_the_page(visit, site):
    from pathlib import Path

    page = visit(accept_downloads=True)
    folder = Path(site.removeprefix("file://")).parent
    everything = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    current = [r for r in everything if r["task_version"] == "0123456789abcdef"]
    assert json.loads(exported(page, "json")) == current
    beside = pd.read_csv(folder / "results.csv").query("task_version == '0123456789abcdef'")
    ours = pd.read_csv(io.StringIO(exported(page, "csv")))
    pd.testing.assert_frame_equal(ours, beside.reset_index(drop=True), check_dtype=False)


def test_keyboard_reaches_points_tooltips_and_rows(visit):
    page = visit()
    first = page.locator("svg.wide a.point[tabindex='0']:visible")
    assert first.count() == 1
    first.focus()
    tip = page.locator(".tip")
    assert tip.is_visible()
    before = tip.inner_text()
    page.keyboard.press("ArrowRight")
    assert tip.inner_text() != before
    name = page.evaluate("document.activeElement.getAttribute('aria-label')")
    assert tip.inner_text() == name
    page.keyboard.press("Escape")
    assert not tip.is_visible()
    page.keyboard.press("Enter")
    assert page.locator("tbody.picked details[open]").count() == 1
    assert page.locator("tbody.picked tr.details").is_visible()
    assert page.evaluate("document.activeElement.tagName") == "SUMMARY"


def test_headers_and_rows_work_from_the_keyboard(visit):
    page = visit()
    page.locator("table.runs >> nth=0 >> th[data-key=lds] button").focus()
    page.keyboard.press("Enter")
    assert page.locator("th[aria-sort=descending]").count() == 1
    page.locator("table.runs summary").first.focus()
    page.keyboard.press("Enter")
    assert page.locator("tr.details:visible").count() == 1


def test_zero_cost_is_visible(visit):
    page = visit("#axis=extra")
    column_box = page.locator("svg.wide:visible rect.zeros").bounding_box()
    marks = page.locator("svg.wide:visible a.point .mark").evaluate_all(
        "marks => marks.map(m => { const b = m.getBoundingClientRect(); return b.x + b.width / 2 })"
    )
    inside = [x for x in marks if column_box["x"] < x < column_box["x"] + column_box["width"]]
    assert len(inside) >= 6


@pytest.mark.parametrize("width", [390, 768, 1280, 1440])
def test_page_never_scrolls_sideways(visit, width):
    page = visit(viewport={"width": width, "height": 800})
    for body in page.locator("table.runs summary").all()[:2]:
        body.click()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    box = page.locator(".scroll").first
    assert box.evaluate("e => e.scrollWidth > e.clientWidth")


def test_a_link_to_a_run_opens_it(visit):
    page = visit("#run-ek-fac-0001")
    assert page.locator("tbody#run-ek-fac-0001 tr.details").is_visible()


def test_a_link_to_a_run_opens_it_on_the_open_page_also_where_it_was_filtered_out(visit):
    page = visit()
    page.locator("select[name=status]").select_option("timeout")
    assert methods(page) == ["retrain-loo"]
    page.evaluate("location.hash = '#run-ek-fac-0001'")
    page.locator("tbody#run-ek-fac-0001 tr.details").wait_for(state="visible")
    assert page.locator("tbody.picked").evaluate_all("bodies => bodies.map(b => b.id)") == ["run-ek-fac-0001"]


def test_a_row_opened_against_the_filters_is_counted(visit):
    page = visit()
    page.locator("input[name=text]").fill("nothing-like-this")
    assert page.locator(".count").inner_text() == "0 of 31 rows"
    page.evaluate("location.hash = '#run-ek-fac-0001'")
    page.locator("tbody#run-ek-fac-0001 tr.details").wait_for(state="visible")
    assert page.locator(".count").inner_text() == "1 of 31 rows"
    assert not page.locator(".no-match").is_visible()


def test_a_link_to_a_run_has_the_focus_and_the_place_once_the_page_has_loaded(visit):
    page = visit("#run-ek-fac-0001")
    page.wait_for_function("document.activeElement.closest('#run-ek-fac-0001')")
    page.wait_for_function(
        """() => {
          const { top } = document.activeElement.getBoundingClientRect();
          return document.activeElement.tagName === "SUMMARY" && top > 0 && top < innerHeight;
        }"""
    )


def test_a_click_on_a_point_is_an_address_and_back_returns(visit):
    page = visit(reduced_motion="reduce")
    point = page.locator("svg.wide a.point.on-front:visible").first
    point.scroll_into_view_if_needed()
    before, href = page.evaluate("scrollY"), point.get_attribute("href")
    point.locator(".mark").click()
    assert page.url.endswith(href)
    assert page.locator(f"tbody{href}.picked summary").evaluate("e => e === document.activeElement")
    assert page.evaluate("scrollY") > before
    page.go_back()
    page.wait_for_function("before => Math.abs(scrollY - before) < 2", arg=before)
    assert "#" not in page.url
    page.go_forward()
    page.wait_for_function("before => scrollY > before + 2", arg=before)


def test_back_from_a_row_returns_to_the_chart_also_where_a_row_was_open_before(visit):
    page = visit("#run-ek-fac-0001", reduced_motion="reduce")
    page.wait_for_function("document.activeElement.closest('#run-ek-fac-0001')")
    point = page.locator("svg.wide a.point.on-front:visible").first
    page.locator("svg.wide:visible").evaluate("chart => chart.scrollIntoView()")
    before = page.evaluate("scrollY")
    point.evaluate("p => p.dispatchEvent(new MouseEvent('click', { bubbles: true, cancelable: true }))")
    page.wait_for_function("before => scrollY > before + 2", arg=before)
    page.go_back()
    page.wait_for_function("before => Math.abs(scrollY - before) < 2", arg=before)
    page.wait_for_function("document.querySelector('tbody.picked').id === 'run-ek-fac-0001'")
    assert page.evaluate("scrollY") == pytest.approx(before, abs=2)


def test_the_first_tap_on_a_point_shows_its_tip_and_the_second_opens_its_row(visit):
    page = visit(viewport={"width": 390, "height": 800}, has_touch=True, is_mobile=True)
    assert page.evaluate("matchMedia('(hover: none)').matches")
    mark = page.locator("svg.compact a.point.on-front:visible .mark").first
    mark.tap()
    assert page.locator(".tip").is_visible()
    assert page.locator("tbody.picked").count() == 0
    mark.tap()
    assert page.locator("tbody.picked tr.details").is_visible()
    assert "#run-" in page.url


def test_escape_hides_the_tip_of_a_hovered_point(visit):
    page = visit()
    page.locator("svg.wide a.point.on-front:visible .mark").first.hover()
    assert page.locator(".tip").is_visible()
    page.keyboard.press("Escape")
    assert not page.locator(".tip").is_visible()


def test_a_point_opens_in_another_tab_with_ctrl(visit):
    page = visit()
    point = page.locator("svg.wide a.point:visible").first
    swallowed = """(point, keys) => {
      const click = new MouseEvent("click", { bubbles: true, cancelable: true, ...keys });
      let prevented = null;
      addEventListener("click", (event) => { prevented = event.defaultPrevented; event.preventDefault(); },
        { once: true });
      point.dispatchEvent(click);
      return prevented;
    }"""
    assert [point.evaluate(swallowed, keys) for keys in ({}, {"ctrlKey": True}, {"metaKey": True})] == [
        True,
        False,
        False,
    ]


@pytest.fixture(scope="module")
def of_seeds(make, tmp_path_factory):
    """A board with a configuration of three seeds, one of which was stopped, and two of one."""
    runs = [*make.seeds(lds=(0.2, 0.4, None)), make.run("grad-dot", 0.25), make.run("knn", status="declined")]
    rows = rows_of(runs)
    return write(render(rows, [make.task()]), tmp_path_factory.mktemp("seeds"), rows).as_uri()


def test_a_link_to_any_run_of_a_row_opens_it(visit, of_seeds):
    page = visit("#run-trak-seed-1", url=of_seeds)
    assert page.locator("tbody.picked #run-trak-seed-1").is_visible()


def test_rows_of_several_seeds_sort_by_their_mean_and_are_exported_run_by_run(visit, of_seeds):
    page = visit(url=of_seeds, accept_downloads=True)
    sort_by(page, "lds")
    assert column(page, "lds") == [pytest.approx(0.3), 0.25, None]
    records = json.loads(exported(page, "json"))
    assert [(r["run_id"], r["seed"], r["lds"]) for r in records] == [
        ("trak-seed-0", 0, 0.2),
        ("trak-seed-1", 1, 0.4),
        ("trak-seed-2", 2, None),
        ("grad-dot-0001", 0, 0.25),
        ("knn-0001", 0, None),
    ]
    assert len({r["configuration"] for r in records}) == 3


def test_a_row_is_found_by_what_is_said_of_any_of_its_runs(visit, of_seeds):
    page = visit(url=of_seeds)
    page.locator("select[name=status]").select_option("timeout")
    assert methods(page) == ["trak"]
    page.locator("button[data-act=clear]").click()
    page.locator("input[name=text]").fill("seed-1")
    assert methods(page) == ["trak"]
    assert page.locator(".count").inner_text() == "1 of 3 rows"


def test_runs_on_older_versions_open_on_demand(visit):
    page = visit()
    assert not page.locator("#run-trak-old").is_visible()
    page.locator("details.older > summary").click()
    assert page.locator("#run-trak-old").is_visible()


def test_dark_scheme_changes_the_colours(visit):
    colours = [
        visit(color_scheme=scheme).evaluate(
            "[getComputedStyle(document.body).backgroundColor, "
            "getComputedStyle(document.querySelector('svg.wide .on-front .mark')).fill]"
        )
        for scheme in ("light", "dark")
    ]
    assert colours[0][0] == "rgb(255, 255, 255)"
    assert colours[0][0] != colours[1][0]
    assert colours[0][1] != colours[1][1]


def test_heads_stay_over_a_long_table(visit):
    page = visit(reduced_motion="reduce")
    scroll = page.locator(".scroll").first
    scroll.scroll_into_view_if_needed()
    page.locator("table.runs summary").nth(25).focus()
    head, box = page.locator("table.runs thead").first.bounding_box(), scroll.bounding_box()
    assert scroll.evaluate("e => e.scrollTop") > 0
    assert head["y"] == pytest.approx(box["y"], abs=2)
    page.emulate_media(media="print")
    assert scroll.evaluate("e => e.scrollHeight <= e.clientHeight + 1")


def test_a_row_that_a_link_opens_is_clear_of_the_heads(visit):
    page = visit("#run-ek-fac-0001", reduced_motion="reduce")
    page.wait_for_function(
        """() => {
          const row = document.querySelector("#run-ek-fac-0001 > tr").getBoundingClientRect();
          return row.top >= document.querySelector("table.runs thead").getBoundingClientRect().bottom - 1
            && row.bottom <= innerHeight;
        }"""
    )


def test_print_shows_all_charts_and_no_controls(visit):
    page = visit()
    page.emulate_media(media="print")
    assert page.locator(".charts svg.chart:visible").count() == 6
    assert page.locator("form.tools:visible, .axes:visible").count() == 0


def test_a_link_to_another_task_s_table_leads_there_past_what_was_never_laid_out(visit, make, tmp_path):
    tasks = [make.task(name=f"task-{i}", title=f"Task {i}") for i in range(6)]
    ensembles = [make.ensemble("dropout", n, models=1, masks=n) for n in (2, 5, 10)]
    rows = [
        make.row(f"m{k}", ensemble=e, run_id=f"{i}-{k}-{n}", task=task.name)
        for i, task in enumerate(tasks)
        for k in range(6)
        for n, e in enumerate(ensembles)
    ]
    page = visit(url=write(render(rows, tasks), tmp_path, rows).as_uri())
    for target in ("#task-task-5", "#results-task-task-5", "#results-task-task-1", "#task-task-4"):
        page.locator(f"a[href='{target}']").first.click()
        page.wait_for_function("t => Math.abs(document.querySelector(t).getBoundingClientRect().top) < 40", arg=target)


def test_two_tasks_keep_the_task_in_the_address(visit, make, tmp_path):
    rows = [make.row(), make.row(task="second"), make.row(run_id="g", machine=make.GPU, task="second")]
    tasks = [make.task(), make.task(name="second", title="Second")]
    url = write(render(rows, tasks), tmp_path, rows).as_uri()
    page = visit(url=url)
    page.locator("#task-second .axes button", has_text="Storage").click()
    assert page.url.endswith("#axis=storage&task=second")
    assert page.locator(".charts figure:visible").count() == 3
    page.locator("#task-second th[data-key=lds] button").click()
    assert page.url.endswith("#axis=storage&task=second&sort=-lds")
    page.reload()
    assert page.locator(".charts figure:visible").first.get_attribute("data-axis") == "storage"
    assert page.evaluate("scrollY") > 0


def test_empty_pages_work(visit, make, tmp_path):
    for i, (rows, tasks) in enumerate([([], []), ([], [make.task()]), ([make.row(status="failed")], [make.task()])]):
        page = visit(url=write(render(in_order(rows), tasks), tmp_path / str(i), rows).as_uri())
        assert page.locator(".empty:visible").count() == 1
