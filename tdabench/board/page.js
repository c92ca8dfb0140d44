"use strict";
// The page is whole without this file. It picks one chart to be big, sorts and filters rows, and exports what is shown.
// It draws nothing and decides nothing: fronts, groups and places come from the page.
(() => {
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  const data = JSON.parse(document.getElementById("data").textContent);
  const named = (names, lines) => lines.map((cells) => Object.fromEntries(names.map((name, i) => [name, cells[i]])));
  const runs = named(data.columns, data.runs);
  const rows = named(data.keys, data.rows);
  for (const row of rows) row.runs = row.runs.map((i) => runs[i]);
  const axisNames = Object.keys(data.axes);
  const searched = ["method", "ensemble", "ensemble_options", "options", "status", "reason", "run_id"];
  const textOf = (row, shown) => [shown, ...row.runs.flatMap((run) => searched.map((name) => run[name]))]
    .filter((value) => value !== null).join(" ").toLowerCase();

  // --- The address keeps the axis, and the task whose controls were used with its filters and sorting:
  // "#axis=serve&task=digits-mlp&method=trak&sort=-lds"; or it names a run.
  const sections = all("section.task");
  const filters = ["text", "method", "ensemble", "status"];
  let axis = "total";

  // Where the page was when the address was left for a row is its state: Back comes back to there.
  function readAddress() {
    const move = history.state === null;
    const back = () => { if (!move) scrollTo({ top: history.state, behavior: "instant" }); };
    back();
    if (location.hash.startsWith("#run-") && openRow(location.hash.slice(1), move)) return;
    const fields = new URLSearchParams(location.hash.slice(1));
    const wanted = fields.get("axis");
    if (wanted === "all" || axisNames.includes(wanted)) chooseAxis(wanted);
    const named = sections.find((section) => section.dataset.task === fields.get("task"));
    const of = sections.length > 1 ? named : sections[0];
    const view = fields.has("axis") && views.find((view) => view.section === of);
    if (view) {
      view.read(fields);
      back(); // filters change how high the page is
    }
    if (named && move) named.scrollIntoView();
  }

  function writeAddress(section) {
    const fields = new URLSearchParams({ axis });
    if (sections.length > 1) fields.set("task", section.dataset.task);
    const view = views.find((view) => view.section === section);
    for (const [name, value] of view ? view.address() : []) fields.set(name, value);
    history.replaceState(null, "", "#" + fields);
  }

  function chooseAxis(key) {
    axis = key;
    for (const charts of all(".charts")) charts.classList.toggle("one", key !== "all");
    for (const figure of all("figure")) figure.classList.toggle("chosen", figure.dataset.axis === key);
    for (const button of all(".axes button")) button.setAttribute("aria-pressed", String(button.dataset.axis === key));
    const label = key === "all" ? "only what is on a front" : "only the front for " + data.axes[key];
    for (const check of all(".check span")) check.textContent = label;
    for (const view of views) view.show();
    hideTip();
  }

  // --- A task's table: what is shown, and in which order.
  class View {
    constructor(section) {
      this.section = section;
      this.form = section.querySelector("form.tools");
      this.table = section.querySelector("table.runs");
      this.bodies = all(":scope > tbody", this.table);
      this.rows = this.bodies.map((body) => rows[Number(body.dataset.row)]);
      this.texts = this.rows.map((row, i) => textOf(row, this.bodies[i].querySelector("tr").textContent));
      this.order = this.bodies.map((_, i) => i);
      this.sort = { key: null, descending: false };
      this.offer("method");
      this.offer("ensemble");
      this.offer("status");
      this.addSorting();
      this.form.addEventListener("input", () => this.change());
      this.form.addEventListener("submit", (event) => event.preventDefault());
      this.form.addEventListener("click", (event) => this.act(event.target.dataset && event.target.dataset.act));
    }

    offer(name) {
      const values = [...new Set(this.rows.flatMap((row) => row.runs).map((run) => run[name]))].sort(compareText);
      for (const value of values) {
        const text = name === "ensemble" && value === "none" ? "none (one model)" : value;
        this.form.elements[name].append(new Option(text, value));
      }
    }

    addSorting() {
      for (const head of all("th[data-key]", this.table)) {
        const button = document.createElement("button");
        button.type = "button";
        button.append(...head.childNodes);
        head.append(button);
        button.addEventListener("click", () => this.sortBy(head));
      }
    }

    // First click: best first (most where more is better, else least). Second: turned round. Third: as the page had it.
    sortBy(head) {
      const key = head.dataset.key;
      const first = "more" in head.dataset;
      if (this.sort.key !== key) this.sortAs(key, first);
      else if (this.sort.descending === first) this.sortAs(key, !first);
      else this.sortAs(null, false);
      writeAddress(this.section);
    }

    sortAs(key, descending) {
      this.sort = { key, descending };
      for (const head of all("th[data-key]", this.table)) {
        if (head.dataset.key === key) head.setAttribute("aria-sort", descending ? "descending" : "ascending");
        else head.removeAttribute("aria-sort");
      }
      this.table.classList.toggle("sorted", key !== null);
      this.order = sorted(this.rows, this.sort);
      this.table.append(...this.order.map((i) => this.bodies[i]));
    }

    // What the address says of it: filters that are set, and the sorting.
    address() {
      const wanted = this.form.elements;
      const said = filters.map((name) => [name, wanted[name].value]);
      said.push(["front", wanted.front && wanted.front.checked ? "1" : ""]);
      said.push(["sort", this.sort.key ? (this.sort.descending ? "-" : "") + this.sort.key : ""]);
      return said.filter(([, value]) => value);
    }

    read(fields) {
      const wanted = this.form.elements;
      for (const name of filters) {
        wanted[name].value = fields.get(name) || "";
        if (!wanted[name].value) wanted[name].value = ""; // a choice that is not there
      }
      if (wanted.front) wanted.front.checked = fields.has("front");
      const sort = fields.get("sort") || "";
      const key = sort.replace(/^-/, "");
      const known = all("th[data-key]", this.table).some((head) => head.dataset.key === key);
      this.sortAs(known ? key : null, sort.startsWith("-"));
      this.show();
    }

    change() {
      this.show();
      writeAddress(this.section);
    }

    passes(row, text) {
      const wanted = this.form.elements;
      const words = wanted.text.value.toLowerCase().split(/\s+/).filter(Boolean);
      return words.every((word) => text.includes(word))
        && ["method", "ensemble", "status"].every((name) => !wanted[name].value || row.runs.some((run) => run[name] === wanted[name].value))
        && (!wanted.front || !wanted.front.checked || (axis === "all" ? axisNames.some((key) => row["front_" + key]) : row["front_" + axis]));
    }

    show() {
      const passing = this.rows.map((row, i) => this.passes(row, this.texts[i]));
      passing.forEach((ok, i) => { this.bodies[i].hidden = !ok; });
      this.tell();
    }

    // Say what is shown, which may be more than what passes: a link opens a row whatever the filters are.
    tell() {
      const shown = this.bodies.filter((body) => !body.hidden).length;
      this.form.querySelector(".count").textContent = shown + " of " + this.rows.length + " rows";
      this.section.querySelector(".no-match").hidden = shown > 0;
      const hidden = new Set(this.bodies.filter((body) => body.hidden).map((body) => "#" + body.id));
      for (const point of all("a.point", this.section)) {
        point.classList.toggle("dim", hidden.has(point.getAttribute("href")));
      }
      for (const drawn of all("[data-of]", this.section)) { // labels and curves, with all the rows they are of
        drawn.classList.toggle("dim", drawn.dataset.of.split(" ").every((id) => hidden.has("#" + id)));
      }
      const method = this.form.elements.method.value;
      for (const button of all(".legend button", this.section)) {
        button.setAttribute("aria-pressed", String(button.parentElement.dataset.method === method));
      }
    }

    act(name) {
      if (name === "clear") { this.form.reset(); this.change(); }
      if (name === "csv") save(this.name("csv"), "text/csv", csv(this.shown()));
      if (name === "json") save(this.name("json"), "application/json", JSON.stringify(this.shown(), null, 1) + "\n");
    }

    name(ending) { return this.section.dataset.task + "." + ending; }

    shown() {
      return this.order.filter((i) => !this.bodies[i].hidden).flatMap((i) => this.rows[i].runs);
    }
  }

  const collator = new Intl.Collator("en", { numeric: true });
  function compareText(a, b) { return collator.compare(a, b); }

  // Stable; what is missing stays last whichever way the sort goes.
  function sorted(rows, { key, descending }) {
    const order = rows.map((_, i) => i);
    if (key === null) return order;
    const compare = (a, b) => (typeof a === "number" ? a - b : compareText(a, b)) * (descending ? -1 : 1);
    return order.sort((i, j) => {
      const a = rows[i][key], b = rows[j][key];
      if (a === null || b === null) return (a === null) - (b === null) || i - j;
      return compare(a, b) || i - j;
    });
  }

  // --- Export of the runs of what is shown. A text cell that a spreadsheet would run as a formula gets a quote in front,
  // and its line breaks are line feeds, as in results.csv.
  function csv(rows) {
    const cell = (value) => {
      if (value === null) return "";
      if (typeof value === "boolean") return value ? "True" : "False";
      let text = String(value);
      if (typeof value === "string" && /^[=+\-@\t\r]/.test(text)) text = "'" + text;
      text = text.replace(/\r\n?/g, "\n");
      return /[",\n]/.test(text) ? '"' + text.replaceAll('"', '""') + '"' : text;
    };
    const lines = [data.columns, ...rows.map((row) => data.columns.map((name) => row[name]))];
    return lines.map((line) => line.map(cell).join(",") + "\n").join("");
  }

  function save(name, type, text) {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], { type: type + ";charset=utf-8" }));
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  }

  // --- Points: a tooltip, arrow keys from one to the next, a click opens its row. Where nothing hovers, the first tap on
  // a point is what shows its tip, so that it is read before the page moves away.
  const tip = document.querySelector(".tip");
  const touched = matchMedia("(hover: none)");
  let tapped = null;
  function hideTip() {
    tip.hidden = true;
    tapped = null;
  }

  function showTip(point) {
    tip.textContent = point.getAttribute("aria-label");
    tip.hidden = false;
    const box = point.querySelector(".mark").getBoundingClientRect();
    const wide = document.documentElement.clientWidth;
    const left = Math.min(Math.max(8, box.left + box.width / 2 - tip.offsetWidth / 2), wide - tip.offsetWidth - 8);
    const above = box.top - tip.offsetHeight - 12;
    tip.style.left = left + scrollX + "px";
    tip.style.top = (above > 4 ? above : box.bottom + 12) + scrollY + "px";
  }

  function openRow(id, move = true) {
    const found = document.getElementById(id);
    const body = found && found.closest("tbody"); // a run is inside its row
    if (!body) return false;
    for (const other of all("tbody.picked")) other.classList.remove("picked");
    const older = body.closest("details.older");
    if (older) older.open = true;
    body.hidden = false;
    for (const view of views.filter((view) => view.bodies.includes(body))) view.tell();
    body.classList.add("picked");
    body.querySelector("details").open = true;
    if (move) {
      body.scrollIntoView({ block: "start" });
      body.querySelector("summary").focus({ preventScroll: true });
    }
    return true;
  }

  function enliven(chart) {
    const points = all("a.point", chart);
    const place = (point) => point.transform.baseVal[0].matrix.e;
    const inOrder = [...points].sort((a, b) => place(a) - place(b));
    inOrder.forEach((point, i) => {
      // A native tooltip would lie over ours; the name stays.
      const title = point.querySelector("title");
      point.setAttribute("aria-label", title.textContent);
      title.remove();
      // One tab stop a chart; the arrow keys go on from there.
      point.setAttribute("tabindex", i === 0 ? "0" : "-1");
    });
    chart.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
      if (!step) return;
      event.preventDefault();
      const here = inOrder.indexOf(event.target.closest("a.point"));
      const next = inOrder[(here + step + inOrder.length) % inOrder.length];
      inOrder.forEach((point) => point.setAttribute("tabindex", point === next ? "0" : "-1"));
      next.focus();
    });
    for (const point of points) {
      for (const name of ["mouseenter", "focus"]) point.addEventListener(name, () => showTip(point));
      for (const name of ["mouseleave", "blur"]) point.addEventListener(name, hideTip);
      point.addEventListener("click", (event) => {
        if (event.ctrlKey || event.metaKey || event.shiftKey) return; // another tab or window
        event.preventDefault();
        if (touched.matches && event.detail > 0 && tapped !== point) { // no detail: a key, which had the tip on focus
          showTip(point);
          tapped = point;
          return;
        }
        const href = point.getAttribute("href");
        if (location.hash !== href) {
          history.replaceState(scrollY, "");
          history.pushState(null, "", href);
        }
        openRow(href.slice(1));
      });
    }
  }

  function addLegend(view) {
    for (const item of all(".legend .method", view.section)) {
      const button = document.createElement("button");
      button.type = "button";
      button.title = "Show this method only";
      button.append(...item.childNodes);
      item.append(button);
      button.addEventListener("click", () => {
        const select = view.form.elements.method;
        select.value = select.value === item.dataset.method ? "" : item.dataset.method;
        view.change();
      });
    }
  }

  function addCopying(block) {
    const text = block.textContent;
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = "Copy";
    button.addEventListener("click", async () => {
      try {
        await navigator.clipboard.writeText(text);
        button.textContent = "Copied";
      } catch {
        getSelection().selectAllChildren(block.querySelector("code"));
        button.textContent = "Selected";
      }
      setTimeout(() => { button.textContent = "Copy"; }, 1600);
    });
    block.append(button);
  }

  const views = sections.filter((section) => section.querySelector("form.tools")).map((section) => new View(section));
  all("svg.chart").forEach(enliven);
  views.forEach(addLegend);
  all(".command").forEach(addCopying);
  for (const button of all(".axes button")) {
    button.addEventListener("click", () => {
      chooseAxis(button.dataset.axis);
      writeAddress(button.closest("section"));
    });
  }
  addEventListener("keydown", (event) => { if (event.key === "Escape") hideTip(); });
  addEventListener("hashchange", readAddress);
  chooseAxis(axis);
  readAddress();
  // And once more after the browser's own jump to the address, which takes the place and the focus away.
  addEventListener("load", () => setTimeout(readAddress));
})();
