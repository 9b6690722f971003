"""The page's style sheet and script: what the charts do not bring."""

CSS = """
:root { color-scheme: light dark; --back: #ffffff; --fore: #1d2127; --dim: #59616b; --line: #d5d9de; --card: #f5f6f8;
  --link: #1a5fb4; }
@media (prefers-color-scheme: dark) { :root { --back: #15181c; --fore: #e6e8ea; --dim: #9aa3ad; --line: #363c43;
  --card: #1e2227; --link: #8ab8f0; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1500px; padding: 1rem clamp(.6rem, 2vw, 2rem) 4rem; background: var(--back);
  color: var(--fore); font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
table { overflow-wrap: break-word; } td:first-child { min-width: 8rem; } td:last-child { min-width: 10rem; }
h1 { font-size: 1.5rem; margin: .4rem 0 0; } h2 { font-size: 1.15rem; margin: 2rem 0 .4rem; }
p.dim, .dim { color: var(--dim); margin: .1rem 0; }
ul.reasons { padding-left: 1.2rem; margin: .6rem 0; } ul.reasons li { margin: .3rem 0; }
.chart { border: 1px solid var(--line); border-radius: 6px; padding: .3rem; min-width: 0; overflow: hidden; }
.chart:focus-visible, button:focus-visible, input:focus-visible, a:focus-visible, summary:focus-visible {
  outline: 3px solid var(--link); outline-offset: 1px; }
.tools { display: flex; flex-wrap: wrap; gap: .4rem; margin: .4rem 0; align-items: center; }
button, input { font: inherit; color: inherit; background: var(--card); border: 1px solid var(--line);
  border-radius: 5px; padding: .25rem .6rem; min-height: 2.1rem; } input { min-width: min(18rem, 100%); }
.legend { display: flex; flex-wrap: wrap; gap: .2rem .9rem; margin: .3rem 0; padding: 0; list-style: none; }
.legend span { display: inline-block; width: .8rem; height: .8rem; border-radius: 2px; margin-right: .35rem; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: .92rem; width: 100%; }
caption { text-align: left; color: var(--dim); padding: .2rem 0; }
th, td { text-align: left; padding: .25rem .7rem .25rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
#placers-table td { vertical-align: middle; }
th { color: var(--dim); font-weight: 600; } td.n, th.n { text-align: right; font-variant-numeric: tabular-nums;
  white-space: nowrap; } tr.best td { font-weight: 650; } tr.no td { color: var(--dim); }
.bar { background: linear-gradient(#3b76af, #3b76af) no-repeat left / var(--w) 100%; height: .55rem; min-width: 6rem;
  border-radius: 2px; } pre { background: var(--card); border: 1px solid var(--line); border-radius: 6px;
  padding: .7rem; overflow-x: auto; }
details summary { cursor: pointer; } a { color: var(--link); }
nav a { margin-right: 1rem; display: inline-block; overflow-wrap: normal; }
"""

SCRIPT = """
(function () {
  "use strict";
  var dark = window.matchMedia("(prefers-color-scheme: dark)");
  function model(name) {
    for (var i = 0; i < Bokeh.documents.length; i++) {
      var found = Bokeh.documents[i].get_model_by_name(name);
      if (found) { return found; }
    }
    return null;
  }
  function paint() {
    var fore = dark.matches ? "#e6e8ea" : "#1d2127", grid = dark.matches ? "#363c43" : "#e3e6ea";
    Bokeh.documents.forEach(function (doc) {
      doc.roots().forEach(function (root) {
        root.references().forEach(function (m) {
          var p = m.properties || {};
          ["major_label_text_color", "axis_label_text_color", "title_text_color", "label_text_color"].forEach(
            function (k) { if (k in p) { m[k] = fore; } });
          ["axis_line_color", "major_tick_line_color", "minor_tick_line_color", "outline_line_color"].forEach(
            function (k) { if (k in p) { m[k] = grid; } });
          if ("grid_line_color" in p) { m.grid_line_color = grid; }
          if ("background_fill_alpha" in p && "label_text_color" in p) {
            m.background_fill_color = dark.matches ? "#15181c" : "#ffffff"; }
        });
      });
    });
  }
  function limits(range) {
    if (!range.full) { range.full = [range.start, range.end]; }
    return range.full;
  }
  function move(name, action) {
    var found = model(name);
    if (!found) { return; }
    var range = found.x_range, full = limits(range), from = range.start, to = range.end, width = to - from;
    if (action === "in" || action === "out") {
      var middle = (from + to) / 2, half = width * (action === "in" ? 0.25 : 1);
      from = middle - half; to = middle + half;
    } else if (action === "left" || action === "right") {
      var by = width * (action === "left" ? -0.25 : 0.25);
      from += by; to += by;
    } else { from = full[0]; to = full[1]; }
    width = Math.min(to - from, full[1] - full[0]);
    from = Math.min(Math.max(from, full[0]), full[1] - width);
    range.setv({start: from, end: from + width});
    say(name, from, from + width);
  }
  function say(name, from, to) {
    var where = document.getElementById("said");
    where.textContent = "Shown: " + from.toFixed(3) + " to " + to.toFixed(3) + (name === "curve" ? "" : " ms");
  }
  function filter(typed) {
    var wanted = typed.trim().toLowerCase(), count = 0;
    [["timeline_data", "share"], ["treemap_data", null]].forEach(function (pair) {
      var source = model(pair[0]);
      if (!source) { return; }
      var names = source.data.name, alpha = new Float32Array(names.length), shown = 0;
      for (var i = 0; i < names.length; i++) {
        var hit = !wanted || names[i].toLowerCase().indexOf(wanted) >= 0;
        var full = pair[1] ? 0.35 + 0.65 * source.data[pair[1]][i] : 0.85;
        alpha[i] = hit ? full : 0.06;
        if (hit) { shown++; }
      }
      source.data = Object.assign({}, source.data, {alpha: alpha});
      if (pair[1]) { count = shown; }
    });
    var rows = document.querySelectorAll("#groups tbody tr");
    if (wanted) { document.getElementById("all-groups").open = true; }
    for (var r = 0; r < rows.length; r++) {
      rows[r].hidden = !!wanted && rows[r].cells[0].textContent.toLowerCase().indexOf(wanted) < 0;
    }
    var text = wanted ? count + " bars of the timeline match" : "Everything is shown";
    document.getElementById("said").textContent = text;
    document.body.dataset.matches = wanted ? count : "";
  }
  var keys = {"+": "in", "=": "in", "-": "out", "ArrowLeft": "left", "ArrowRight": "right", "0": "all"};
  function fit() {
    var labels = model("treemap_labels");
    if (labels) { labels.visible = window.innerWidth > 900; }
    document.querySelectorAll(".chart").forEach(leaveOut);
  }
  function leaveOut(node) {  // Bokeh's own tools have no role for the keyboard; the page's buttons and keys do the same
    Array.prototype.forEach.call(node.querySelectorAll("*"), function (inner) {
      if (inner.tabIndex >= 0) { inner.tabIndex = -1; }
      if (inner.shadowRoot) { leaveOut(inner.shadowRoot); }
    });
  }
  function start() {
    if (!window.Bokeh || !Bokeh.documents.length || !model("timeline")) { window.setTimeout(start, 30); return; }
    paint();
    fit();
    window.addEventListener("resize", fit);
    dark.addEventListener("change", paint);
    document.querySelectorAll("button[data-chart]").forEach(function (button) {
      button.addEventListener("click", function () { move(button.dataset.chart, button.dataset.action); });
    });
    document.querySelectorAll(".chart[data-keys]").forEach(function (chart) {
      chart.addEventListener("keydown", function (event) {
        var action = keys[event.key];
        if (action && !event.ctrlKey && !event.metaKey && !event.altKey) {
          event.preventDefault(); move(chart.dataset.keys, action);
        }
      });
    });
    var field = document.getElementById("filter"), timer = 0;
    field.addEventListener("input", function () {
      window.clearTimeout(timer); timer = window.setTimeout(function () { filter(field.value); }, 120);
    });
    document.body.dataset.ready = "yes";
  }
  start();
})();
"""
