// The journal of one volume over time: restorable ranges, gaps, checkpoints and alerts; how much was written, and how random
// that was. A slider: whatever moves it calls `asked`.

import uPlot from "./vendor/uPlot.esm.js";
import { look } from "./api.js";
import { chart, colour } from "./charts.js";
import { byId, h, say } from "./dom.js";
import { bytes, clock, count, duration, seconds, tick } from "./format.js";

const SPANS = [["1 min", 60], ["15 min", 900], ["1 h", 3600], ["6 h", 21600], ["24 h", 86400], ["All", null]];
const SPAN_MIN = 0.02; // seconds: some events
const STEPS = 200; // of an arrow key over what is shown
const AXIS_PX = 58;
const REFRESH_MS = 4000;
const LOAD_FACTOR = 20; // a document that took t to get is not asked for again before 20 t
const SNAP_PX = 6; // a named checkpoint so near is meant
const SIZES = Array.from({ length: 40 }, (_none, power) => 2 ** power); // steps of an axis of bytes
const LEVELS = { band: 0.55, periodic: 0.68, named: 0.8, alert: 0.93 };

export class Timeline {
  // asked({kind: "time" | "offset" | "checkpoint" | "latest", value}, settled): a point is pointed at; not settled while it is dragged.
  constructor(asked) {
    this._asked = asked;
    this._slider = byId("slider");
    this._volume = null;
    this._document = null;
    this._columns = null;
    this._alerts = [];
    this._span = 900;
    this._view = { from: 0, to: 1 };
    this._at = null; // where the line is, seconds
    this._offset = null; // of the point that was found there
    this._timer = null;
    this._loading = null;
    this._makeSpans();
    this._makeCharts();
    this._listen();
  }

  // Show a volume; null: none.
  show(volume) {
    if (volume === this._volume) return;
    this._volume = volume;
    this._document = this._columns = this._at = this._offset = null;
    if (SPANS.every(([, span]) => span !== this._span)) this._choose(900);
    this._slider.setAttribute("aria-label", `Point in time of volume ${volume}`);
    this._follow();
    this._draw();
    this._load();
  }

  // A second has passed: columns of the volume's series, and its open alerts.
  tick(columns, alerts) {
    this._columns = columns;
    this._alerts = alerts;
    if (this._following) this._follow();
    this._draw();
  }

  // Where the point that was asked for is: seconds since the Unix epoch, offset, name.
  found(at, offset, checkpoint, { move }) {
    this._offset = offset;
    if (move && at !== null) this._at = at;
    if (move && (this._at < this._view.from || this._at > this._view.to)) this._centre();
    this._slider.setAttribute("aria-valuetext", `offset ${offset}, ${clock(at ?? this._at, true)}${checkpoint ? `, checkpoint ${checkpoint}` : ""}`);
    this._draw();
  }

  // Go to the next checkpoint in a direction, -1 or 1.
  step(direction) {
    const marks = this._document?.checkpoints ?? [];
    const here = this._at ?? Date.now() / 1000;
    const beyond = marks.filter((mark) =>
      this._offset !== null && this._at !== null ? (mark.offset - this._offset) * direction > 0 : (mark.at - here) * direction > 0,
    );
    const next = direction > 0 ? beyond[0] : beyond.at(-1);
    if (next) this._point({ kind: "offset", value: next.offset }, next.at, true);
  }

  get _following() {
    return this._view.follow;
  }

  _makeSpans() {
    for (const [name, span] of SPANS) {
      const button = h("button", { type: "button", "aria-pressed": "false", onclick: () => this._choose(span) }, name);
      button.dataset.span = String(span);
      byId("spans").append(button);
    }
  }

  _makeCharts() {
    const x = { time: true, auto: false, range: () => [this._view.from, this._view.to] };
    const cursor = { drag: { x: false, y: false }, y: false, points: { show: false }, sync: { key: "timeline" } };
    const line = (stroke, more = {}) => ({ stroke: colour(stroke), width: 1.5, points: { show: false }, ...more });
    const grid = { stroke: colour("--grid"), width: 1 };
    const axis = { stroke: colour("--muted"), grid, ticks: { show: false }, size: AXIS_PX, font: "11px system-ui, sans-serif" };
    const times = (one, splits) => splits.map((at) => tick(at, one.scales.x.max - one.scales.x.min));
    const bottom = { ...axis, size: 26, space: 72, values: times };
    const none = { ...axis, size: 4, values: () => [] };
    const marks = (fill, size) => ({ paths: () => null, points: { show: true, size, fill: colour(fill), stroke: colour("--surface"), width: 1 } });
    const band = (stroke) => ({ width: 0, fill: colour(stroke), points: { show: false } });
    const options = (more) => ({
      cursor,
      padding: [6, 26, 0, 0],
      hooks: { draw: [(one) => this._mark(one)], setCursor: [(one) => this._read(one)] },
      ...more,
    });
    this._strip = chart(
      byId("strip"),
      options({
        scales: { x, y: { auto: false, range: [0, 1] } },
        axes: [none, { ...axis, values: () => [], grid: { show: false } }],
        series: [{}, band("--restorable"), band("--gap"), marks("--periodic", 7), marks("--named", 10), marks("--alert", 10)],
      }),
      [[], [], [], [], [], []],
    );
    this._rate = chart(
      byId("rate"),
      options({
        scales: { x, y: { range: (_one, _low, high) => [0, Math.max(high ?? 0, 4096)] } },
        axes: [none, { ...axis, values: (_one, splits) => splits.map((size) => (size ? bytes(size) : "0")), incrs: SIZES, space: 34 }],
        series: [{}, line("--line", { fill: colour("--line-fill") })],
      }),
      [[], []],
    );
    this._entropy = chart(
      byId("entropy"),
      options({
        scales: { x, y: { auto: false, range: [0, 8.2] } },
        axes: [bottom, { ...axis, splits: () => [0, 4, 8], values: (_one, splits) => splits.map((bits) => `${bits} bits`) }],
        series: [{}, line("--entropy", { spanGaps: false }), line("--random", { dash: [4, 4] })],
      }),
      [[], [], []],
    );
    this._charts = [this._strip, this._rate, this._entropy];
    for (const one of this._charts) {
      one.pick = h("div", { class: "pick", hidden: true });
      one.over.append(one.pick);
    }
  }

  _listen() {
    for (const one of this._charts) {
      const at = (event) => one.posToVal(event.clientX - one.over.getBoundingClientRect().left, "x");
      one.over.addEventListener("pointerdown", (event) => {
        if (event.button !== 0) return;
        one.over.setPointerCapture(event.pointerId);
        this._slider.focus({ preventScroll: true });
        this._point(null, at(event), false);
      });
      one.over.addEventListener("pointermove", (event) => {
        if (one.over.hasPointerCapture(event.pointerId)) this._point(null, at(event), false);
      });
      one.over.addEventListener("pointerup", (event) => {
        if (one.over.hasPointerCapture(event.pointerId)) this._drop(one, at(event));
      });
    }
    this._slider.addEventListener("keydown", (event) => {
      if (event.altKey || event.ctrlKey || event.metaKey || !this._volume) return;
      if (this._key(event.key, event.shiftKey ? 10 : 1)) event.preventDefault();
    });
    document.addEventListener("visibilitychange", () => this._load());
  }

  _key(key, times) {
    const step = ((this._view.to - this._view.from) / STEPS) * times;
    const at = this._at ?? this._view.to;
    switch (key) {
      case "ArrowLeft":
        if (at - step <= (this._restorable()[0]?.from ?? -Infinity)) this._end(true);
        else this._point(null, at - step, true);
        return true;
      case "ArrowRight":
        this._point(null, at + step, true);
        return true;
      case "ArrowUp":
      case "ArrowDown":
        if (this._offset !== null) this._asked({ kind: "offset", value: Math.max(0, this._offset + (key === "ArrowUp" ? times : -times)) }, true);
        else this._asked({ kind: "latest" }, true);
        return true;
      case "PageUp":
      case "PageDown":
        this.step(key === "PageUp" ? -1 : 1);
        return true;
      case "Home":
      case "End":
        this._end(key === "Home");
        return true;
      case "+":
      case "=":
      case "-":
        this._zoom(key === "-" ? 2 : 0.5);
        return true;
      default:
        return false;
    }
  }

  _restorable() {
    return (this._document?.ranges ?? []).filter((range) => range.kind === "restorable");
  }

  _end(first) {
    const ranges = this._restorable();
    if (first && ranges.length) this._asked({ kind: "offset", value: ranges[0].first_offset }, true);
    else this._asked({ kind: "latest" }, true);
  }

  // The line moves at once; what is there is asked for.
  _point(point, at, settled) {
    const now = Date.now() / 1000;
    this._at = Math.min(at, now);
    this._slider.setAttribute("aria-valuenow", String(this._at));
    this._asked(point ?? { kind: "time", value: new Date(this._at * 1000).toISOString() }, settled);
    if (this._at < this._view.from || this._at > this._view.to) {
      this._centre();
      this._draw();
    } else for (const one of this._charts) this._mark(one);
  }

  _drop(one, at) {
    const near = (one.posToVal(SNAP_PX, "x") - one.posToVal(0, "x")) || 0;
    const named = (this._document?.checkpoints ?? []).filter((mark) => !mark.periodic);
    const nearest = named
      .map((mark) => ({ mark, away: Math.abs(mark.at - at) }))
      .sort((left, right) => left.away - right.away)[0];
    if (nearest && nearest.away <= near) {
      this._point({ kind: "offset", value: nearest.mark.offset }, nearest.mark.at, true);
    } else this._point(null, at, true);
  }

  // What is shown

  _choose(span) {
    this._span = span;
    if (this._at !== null && this._at < this._since(span)) this._centre();
    else this._follow();
    this._draw();
    this._load();
  }

  _since(span) {
    const now = Date.now() / 1000;
    if (span !== null) return now - span;
    const first = this._document?.ranges.find((range) => range.from !== null);
    return Math.min(now - 60, first?.from ?? now);
  }

  _follow() {
    const now = Date.now() / 1000;
    const from = this._since(this._span);
    this._view = { from, to: now + (now - from) * 0.01, follow: true };
  }

  _centre() {
    const width = this._span ?? this._view.to - this._view.from;
    const now = Date.now() / 1000;
    const to = Math.min(this._at + width / 2, now + width * 0.01);
    this._view = { from: to - width, to, follow: false };
    this._loadSoon();
  }

  _zoom(factor) {
    const width = Math.max(SPAN_MIN, (this._view.to - this._view.from) * factor);
    const oldest = Date.now() / 1000 - this._since(null);
    this._span = Math.min(width, Math.max(oldest, 60));
    if (this._at !== null) this._centre();
    else this._follow();
    this._draw();
    this._loadSoon();
  }

  // The document

  _loadSoon() {
    clearTimeout(this._timer);
    this._timer = setTimeout(() => this._load(), 150);
  }

  async _load() {
    clearTimeout(this._timer);
    this._loading?.abort();
    if (!this._volume || document.hidden) return;
    const loading = (this._loading = new AbortController());
    const began = performance.now();
    const micros = (at) => String(Math.max(0, Math.floor(at * 1e6)));
    const query = new URLSearchParams({ columns: String(Math.max(100, Math.round(this._strip.over.clientWidth / 2))) });
    if (this._span !== null) {
      query.set("from", micros(this._view.from));
      query.set("to", micros(this._view.to + REFRESH_MS / 1000));
    }
    try {
      const found = await look(`/api/volumes/${encodeURIComponent(this._volume)}/timeline?${query}`, loading.signal);
      if (loading.signal.aborted) return;
      this._document = timed(found);
      if (this._following) this._follow();
      this._draw();
      say(byId("readout"), "");
    } catch (error) {
      if (loading.signal.aborted) return;
      say(byId("readout"), `No timeline: ${error.message}`);
    }
    this._timer = setTimeout(() => this._load(), Math.max(REFRESH_MS, (performance.now() - began) * LOAD_FACTOR));
  }

  // Drawing

  _draw() {
    if (!this._volume) return;
    const columns = this._columns ?? { at: [], written_bytes_per_second: [], entropy: [], random_share: [] };
    const at = columns.at.map((micros) => micros / 1e6);
    const random = columns.random_share.map((share) => (share === null ? null : share * 8));
    this._show(this._strip, this._stripData());
    this._show(this._rate, [at, columns.written_bytes_per_second]);
    this._show(this._entropy, [at, columns.entropy, random]);
    const values = { "aria-valuemin": this._since(null), "aria-valuemax": Date.now() / 1000, "aria-valuenow": this._at ?? this._view.to };
    for (const [name, value] of Object.entries(values)) this._slider.setAttribute(name, String(value));
    if (this._offset === null) this._slider.setAttribute("aria-valuetext", "no point is picked");
    for (const button of byId("spans").children) {
      button.setAttribute("aria-pressed", String(button.dataset.span === String(this._span)));
    }
  }

  _show(one, data) {
    one.batch(() => {
      one.setData(data, false);
      one.setScale("x", { min: this._view.from, max: this._view.to });
    });
  }

  _stripData() {
    const ranges = this._document?.ranges ?? [];
    const marks = this._document?.checkpoints ?? [];
    const end = Date.now() / 1000;
    // A range lasts until the next one begins: until then nothing was written.
    const lasting = ranges.map((range, number) => ({
      kind: range.kind,
      from: range.from ?? this._view.from,
      to: ranges[number + 1]?.from ?? (number + 1 < ranges.length ? range.to : end),
    }));
    const alerts = this._alerts.map((alert) => alert.since / 1e6);
    const table = (points, level) => {
      const unique = [...new Set(points)].sort((left, right) => left - right);
      return [unique, unique.map(() => level)];
    };
    const at = (chosen) => marks.filter(chosen).map((mark) => mark.at);
    return uPlot.join([
      bands(lasting.filter((range) => range.kind === "restorable")),
      bands(lasting.filter((range) => range.kind === "gap")),
      table(at((mark) => mark.periodic), LEVELS.periodic),
      table(at((mark) => !mark.periodic), LEVELS.named),
      table(alerts, LEVELS.alert),
    ]);
  }

  _mark(one) {
    if (!one.pick) return;
    const shown = this._at !== null && this._at >= this._view.from && this._at <= this._view.to;
    one.pick.hidden = !shown;
    if (shown) one.pick.style.transform = `translateX(${one.valToPos(this._at, "x")}px)`;
  }

  // What is under the mouse, in words.
  _read(one) {
    if (one.cursor.left < 0 || !this._columns) return;
    const under = one.posToVal(one.cursor.left, "x");
    const number = nearestTo(this._columns.at, under * 1e6);
    const words = [clock(under)];
    if (number !== null && Math.abs(this._columns.at[number] / 1e6 - under) < 2) {
      const value = (name) => this._columns[name]?.[number];
      words.push(`${bytes(value("written_bytes_per_second"))}/s`, `${count(Math.round(value("writes_per_second")))} writes/s`);
      if (value("rpo_seconds") !== null) words.push(`RPO ${duration(value("rpo_seconds"))}`);
      if (value("entropy") !== null) words.push(`entropy ${value("entropy").toFixed(1)} bits a byte`);
      if (value("random_share") !== null) words.push(`${Math.round(value("random_share") * 100)} % random`);
    }
    say(byId("readout"), words.join(" · "));
  }
}

// The document with its times as seconds since the Unix epoch, too.
function timed(document) {
  const ranges = document.ranges.map((range) => ({ ...range, from: seconds(range.from_at), to: seconds(range.to_at) }));
  const checkpoints = document.checkpoints.map((mark) => ({ ...mark, at: seconds(mark.captured_at) }));
  return { ...document, ranges, checkpoints };
}

// A table for uPlot.join that is level over each range and nothing between them.
function bands(ranges) {
  const at = [];
  const level = [];
  let last = -Infinity;
  const add = (time, value) => {
    last = Math.max(time, last + 1e-6);
    at.push(last);
    level.push(value);
  };
  for (const range of ranges) {
    add(range.from, LEVELS.band);
    add(range.to, LEVELS.band);
    add(range.to, null);
  }
  return [at, level];
}

// The number of the entry that is nearest to a value, in an ascending list; null if it is empty.
function nearestTo(list, value) {
  if (!list.length) return null;
  let low = 0;
  let high = list.length - 1;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (list[middle] < value) low = middle + 1;
    else high = middle;
  }
  return low > 0 && value - list[low - 1] < list[low] - value ? low - 1 : low;
}
