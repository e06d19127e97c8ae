// Curves of a model, and of others beside it, by plotly.js, which is loaded when it is first needed.

import { element, setText } from "./elements.js";
import { number } from "./shown.js";
import { empty, rates, smoothed, thinned } from "./series.js";

const TITLES = {
  gradient_norm: "Gradient norm", update_norm: "Update norm", learning_rate: "Learning rate",
  pushes: "Pushes per second", staleness_max: "Staleness (versions)",
};
const COLORS = ["--line-1", "--line-2", "--line-3", "--line-4"];
const MARKS = { checkpoint: "dot", cut: "solid", hyperparameters: "dash", consistency: "dash" };
const MOST_MARKS = 30; // the newest
const LARGEST = 1e300; // that plotly.js can draw: it works out the span, which must be a number too,
const SMALLEST = 1e-300; // and on a logarithmic scale the power of ten below
const METRIC = "metrics.";
const MOST_METRICS = 12; // curves on a page; a worker may send 64
const DRAWN = 400; // points of a curve, which is some 400 pixels wide: plotly.js takes its time for each

let loading = null;

/** Return plotly.js, or null if this server has none; the page works without curves too. */
export function plotly() {
  loading ??= new Promise((resolve) => {
    const allowStyles = withoutStyles();
    const end = (found) => () => {
      allowStyles();
      resolve(found());
    };
    const script = element("script", {
      src: new URL("plotly.min.js", import.meta.url).href,
      load: end(() => globalThis.Plotly), error: end(() => null),
    });
    document.head.append(script);
  });
  return loading;
}

/**
 * Let style elements be templates, which style nothing, until the returned function is called. When
 * plotly.js begins, it adds the styles of its maps, which we have none of, and the page's
 * Content-Security-Policy would stop that with an error. Nothing else here makes a style element.
 */
function withoutStyles() {
  document.createElement = (tag, options) =>
    Document.prototype.createElement.call(document, tag === "style" ? "template" : tag, options);
  return () => { delete document.createElement; };
}

/** Return a color of the style sheet as the browser resolves it, for light or dark. */
function color(name) {
  const probe = element("span");
  probe.style.color = `var(${name})`;
  document.body.append(probe);
  const found = getComputedStyle(probe).color;
  probe.remove();
  return found;
}

export class Charts {
  constructor() {
    this.cards = new Map();
    this.grid = element("div", { class: "grid", id: "curves" });
    this.legend = element("p", { class: "note" },
      "Upright lines: dotted is a checkpoint, dashed a change by hand, solid a restore.");
    this.axis = select("Over", "axis", [["version", "version"], ["time", "time"]], () => this.redraw());
    this.smoothing = element("input", {
      id: "smoothing", type: "range", min: "0", max: "0.99", step: "0.01", value: "0", input: () => this.redraw(),
    });
    this.log = element("input", { id: "log", type: "checkbox", change: () => this.redraw() });
    this.missing = element("p", { class: "note", hidden: true },
      "There are no curves: this server has no plotly.js. pip install plotly, and start it again.");
    this.empty = element("p", { class: "note" }, "No step was made yet: curves begin with the first one.");
    this.more = element("p", { class: "note", hidden: true });
    this.controls = element("div", { class: "controls" }, this.axis,
      element("label", {}, "Smoothing ", this.smoothing),
      element("label", {}, this.log, " Log scale"));
    this.whole = element("div", {}, this.controls, this.missing, this.empty, this.grid, this.more, this.legend);
    this.watcher = new IntersectionObserver((seen) => {
      for (const { target, isIntersecting } of seen) {
        const card = [...this.cards.values()].find(({ plot }) => plot === target);
        if (card) card.isSeen = isIntersecting;
      }
      this.enqueue([...this.cards].filter(([, { isSeen, isOld }]) => isSeen && isOld).map(([name]) => name));
    });
    this.feeds = [];
    this.queue = [];
    this.isDrawing = false; // a frame is asked for
    this.isHeld = false; // while somebody drags in a curve, it is not drawn anew under the finger
    this.closing = new AbortController();
    this.grid.addEventListener("pointerdown", () => { this.isHeld = true; });
    for (const kind of ["pointerup", "pointercancel"]) {
      addEventListener(kind, () => { this.isHeld = false; }, { signal: this.closing.signal });
    }
  }

  /** Let go of everything: plotly.js and the window would keep the curves of each page there was. */
  close() {
    this.closing.abort();
    this.watcher.disconnect();
    this.feeds = [];
    this.redraw();
  }

  /** Show these models; the first has the first color. */
  async show(feeds) {
    this.feeds = feeds;
    this.Plotly ??= await plotly();
    if (this.closing.signal.aborted) return;
    this.missing.hidden = this.Plotly !== null;
    if (this.Plotly !== null) this.redraw();
  }

  redraw() {
    if (!this.Plotly) return;
    const names = this.names();
    this.empty.hidden = names.length > 0;
    for (const [name, { card, plot }] of this.cards) {
      if (names.includes(name)) continue;
      this.watcher.unobserve(plot);
      this.Plotly.purge(plot);
      card.remove();
      this.cards.delete(name);
    }
    this.style = {
      text: color("--text"), grid: color("--rule"), mark: color("--quiet"), lines: COLORS.map(color),
    };
    this.queue = this.queue.filter((name) => names.includes(name));
    this.enqueue(names);
  }

  /** Draw these soon, behind those that wait already. */
  enqueue(names) {
    const isDrawing = this.isDrawing;
    this.queue.push(...names.filter((name) => !this.queue.includes(name)));
    this.isDrawing = this.queue.length > 0;
    if (!isDrawing && this.isDrawing) requestAnimationFrame(() => this.drawNext());
  }

  /** One curve a frame: all of them at once would take longer than a frame has. Unseen ones take none. */
  drawNext() {
    let isDrawn = false;
    while (!isDrawn && this.queue.length > 0) {
      const name = this.queue.shift();
      isDrawn = !this.isHeld && this.draw(name, this.style);
    }
    this.isDrawing = this.queue.length > 0;
    if (this.isDrawing) requestAnimationFrame(() => this.drawNext());
  }

  names() {
    const had = new Set(this.feeds.flatMap((feed) => [...feed.series.keys()]));
    const metrics = [...had].filter((name) => name.startsWith(METRIC)).sort();
    const first = metrics.filter((name) => name === `${METRIC}loss`);
    const others = metrics.filter((name) => name !== `${METRIC}loss`).slice(0, MOST_METRICS - 1);
    const left = metrics.length - first.length - others.length;
    this.more.hidden = left === 0;
    setText(this.more, `${left} more metrics are in GET …/history; the first ${MOST_METRICS} by name are drawn.`);
    const own = ["gradient_norm", "update_norm", "learning_rate"].filter((name) => had.has(name));
    return [...first, ...others, ...own, ...(had.has("contributors") ? ["pushes", "staleness_max"] : [])];
  }

  /** Draw a curve, or only its newest number where nobody sees it; returns whether it was drawn. */
  draw(name, style) {
    const title = TITLES[name] ?? name.slice(METRIC.length);
    if (!this.cards.has(name)) {
      const plot = element("div", { class: "plot" });
      const now = element("span", { class: "now" });
      const card = element("figure", { class: "card" }, element("figcaption", {}, element("bdi", {}, title), " ", now), plot);
      this.grid.append(card);
      this.cards.set(name, { card, plot, now, isSeen: true, isOld: true });
      this.watcher.observe(plot);
    }
    const known = this.cards.get(name);
    const { card, plot, now } = known;
    const all = this.feeds.map((feed) => columnsOf(feed, name));
    // Of pushes a second the newest is of the last push, which may be long ago; the tile says it of now.
    const newest = name === "pushes" ? "" : number(all[0].value.at(-1));
    setText(now, newest);
    card.setAttribute("aria-label", [title, newest].filter(Boolean).join(": "));
    known.isOld = !known.isSeen;
    if (known.isOld) return false;
    const traces = all.flatMap((columns, place) =>
      this.traces(columns, this.feeds[place].name, style.lines[place], this.feeds.length > 1));
    this.Plotly.react(plot, traces, this.layout(style, all), { displayModeBar: false, responsive: true });
    return true;
  }

  traces(columns, model, color, hasLegend) {
    const isTime = this.axis.value === "time";
    const x = isTime ? columns.time.map((time) => new Date(time * 1000)) : columns.version;
    const weight = Number(this.smoothing.value);
    const mode = columns.value.length < 2 ? "markers" : "lines";
    const base = { type: "scatter", mode, name: model, marker: { color } };
    const line = (values, more) => ({ ...base, ...broken(columns.version, x, values.map(drawable)), ...more });
    if (weight === 0) return [line(columns.value, { line: { color, width: 1.6 }, showlegend: hasLegend })];
    return [
      line(columns.value, { line: { color, width: 1 }, opacity: 0.25, hoverinfo: "skip", showlegend: false }),
      line(smoothed(columns.mean, weight), { line: { color, width: 1.6 }, showlegend: hasLegend }),
    ];
  }

  layout(style, all) {
    // exponentformat: 10 with a raised exponent would need a style attribute, hence another policy.
    const axis = {
      gridcolor: style.grid, linecolor: style.grid, zeroline: false, automargin: false, exponentformat: "e",
    };
    return {
      xaxis: { ...axis, type: this.axis.value === "time" ? "date" : "linear", nticks: 6 },
      yaxis: { ...axis, type: this.log.checked ? "log" : "linear", nticks: 6, ...this.span(all) },
      margin: { l: 52, r: 8, t: 8, b: 28 }, height: 210,
      font: { color: style.text, size: 11, family: "system-ui, sans-serif" },
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", hovermode: "x", dragmode: "zoom",
      legend: { orientation: "h", y: 1.15 }, uirevision: this.axis.value + this.log.checked,
      shapes: this.marks(style),
    };
  }

  /** A value that stays the same has a range of its own: plotly's is from -1 to 1 around it. */
  span(all) {
    const values = all.flatMap(({ value }) => value.map(drawable).filter((one) => one !== null));
    const least = values.reduce((a, b) => Math.min(a, b), Infinity);
    const most = values.reduce((a, b) => Math.max(a, b), -Infinity);
    if (this.log.checked || least !== most) return {};
    const reach = Math.abs(least) / 2 || 1;
    return { range: [least - reach, most + reach] };
  }

  /** Where something was changed by hand, or saved: thin lines from bottom to top. */
  marks(style) {
    const isTime = this.axis.value === "time";
    return this.feeds[0].events.filter(({ kind }) => kind in MARKS).slice(-MOST_MARKS).map((event) => {
      const x = isTime ? new Date(event.time * 1000) : event.version;
      return {
        type: "line", xref: "x", yref: "paper", x0: x, x1: x, y0: 0, y1: 1, layer: "below",
        line: { color: style.mark, width: 1, dash: MARKS[event.kind] },
      };
    });
  }
}

/** Return x and y with a gap where versions go back, as after a crash, instead of a line to there. */
export function broken(versions, x, y) {
  const isBack = (place) => place > 0 && versions[place] < versions[place - 1];
  if (!versions.some((_, place) => isBack(place))) return { x, y };
  const gaps = (values) => values.flatMap((value, place) => (isBack(place) ? [null, value] : [value]));
  return { x: gaps(x), y: gaps(y) };
}

function drawable(value) {
  if (Math.abs(value) > LARGEST) return null;
  return Math.abs(value) < SMALLEST ? 0 : value;
}

function columnsOf(feed, name) {
  if (name === "pushes") return thinned(rates(feed.series.get("contributors") ?? empty()), DRAWN);
  return thinned(feed.series.get(name) ?? empty(), DRAWN);
}

function select(label, id, options, change) {
  const made = element("select", { id, change },
    ...options.map(([value, text]) => element("option", { value }, text)));
  const whole = element("label", {}, `${label} `, made);
  Object.defineProperty(whole, "value", { get: () => made.value });
  return whole;
}
