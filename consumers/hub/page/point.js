// The point that was picked: what it is, what lies after it, and what can be done with it.

import { look, Refused, wish } from "./api.js";
import { ask } from "./dialog.js";
import { byId, facts, h, say } from "./dom.js";
import { bytes, clock, count, duration, events, seconds } from "./format.js";

const SETTLE_MS = 120;

export class PointPanel {
  // found(at, offset, checkpoint, {move}): the point was found.
  constructor(found) {
    this._found = found;
    this._volume = null;
    this._members = [];
    this._point = null;
    this._asking = null;
    this._timer = null;
    byId("go").addEventListener("submit", (event) => {
      event.preventDefault();
      const text = byId("wanted").value.trim();
      if (text) this.ask(parse(text), true);
    });
    byId("latest").addEventListener("click", () => this.ask({ kind: "latest" }, true));
    byId("start-fot").addEventListener("click", () => this._do(() => this._startFot()));
    byId("plan-promote").addEventListener("click", () => this._do(() => this._planPromote()));
  }

  // Points of this volume; of its group are `members`, itself included.
  show(volume, members) {
    if (volume.volume !== this._volume) {
      this._asking?.abort();
      clearTimeout(this._timer);
      this._volume = volume.volume;
      this._take(null, h("p", {}, "Pick a point on the timeline."));
      say(byId("outcome"), "");
    }
    const names = members.map((one) => one.volume).join("\n");
    if (names === this._names && this._group === volume.group && this._shown === volume.volume) return;
    [this._names, this._group, this._shown] = [names, volume.group, volume.volume];
    byId("target-line").hidden = members.length < 2;
    byId("target").replaceChildren(
      h("option", { value: "volume" }, `volume ${volume.volume}`),
      h("option", { value: "group" }, `group ${volume.group}: ${members.length} volumes at a common checkpoint`),
    );
  }

  // Find a point; one that is not settled waits a moment for the next.
  ask(point, settled) {
    clearTimeout(this._timer);
    byId("picked").setAttribute("aria-busy", "true");
    byId("start-fot").disabled = byId("plan-promote").disabled = true; // what would be done is not what is shown any more
    this._timer = setTimeout(() => this._ask(point), settled ? 0 : SETTLE_MS);
  }

  async _ask(point) {
    this._asking?.abort();
    const asking = (this._asking = new AbortController());
    const query = point.kind === "latest" ? "latest" : new URLSearchParams({ [point.kind]: String(point.value) });
    try {
      const found = await look(`/api/volumes/${encodeURIComponent(this._volume)}/point?${query}`, asking.signal);
      if (asking.signal.aborted) return;
      this._take(found, this._list(found));
      const { offset, captured_at: at, checkpoint } = found.resolved;
      this._found(seconds(at), offset, checkpoint, { move: point.kind !== "time" });
    } catch (error) {
      if (!asking.signal.aborted) this._take(null, this._complaint(error));
    }
  }

  _take(found, shown) {
    this._point = found;
    byId("picked").replaceChildren(shown);
    byId("picked").setAttribute("aria-busy", "false");
    byId("start-fot").disabled = byId("plan-promote").disabled = !found;
  }

  _list(found) {
    const list = h("dl", { class: "facts", id: "point-facts" });
    const at = seconds(found.resolved.captured_at);
    facts(list, [
      ["Offset", count(found.offset)],
      ["Captured", at === null ? null : clock(at, true)],
      ["Checkpoint", found.resolved.checkpoint ?? (found.last_checkpoint ? `after ${found.last_checkpoint}` : null)],
      ["Would be lost", lost(found)],
    ]);
    return list;
  }

  _complaint(error) {
    const nearest = error instanceof Refused ? error.document.nearest_offset : undefined;
    return h(
      "div",
      { class: "bad" },
      h("p", {}, error.message),
      Number.isInteger(nearest)
        ? h("button", { type: "button", onclick: () => this.ask({ kind: "offset", value: nearest }, true) }, `Nearest good point: offset ${nearest}`)
        : error instanceof Refused && error.document.hint ? h("p", {}, error.document.hint) : null,
    );
  }

  // Of a request: the volume at the very offset, or its group at the checkpoint that all have.
  _wish() {
    const { offset, captured_at: at, checkpoint } = this._point.resolved;
    if (byId("target-line").hidden || byId("target").value === "volume") return { volume: this._volume, offset };
    return checkpoint ? { group: this._group, checkpoint } : { group: this._group, time: at };
  }

  async _do(work) {
    const outcome = byId("outcome");
    const buttons = [byId("start-fot"), byId("plan-promote")];
    for (const button of buttons) button.disabled = true;
    outcome.className = "";
    try {
      await work();
    } catch (error) {
      outcome.className = "bad";
      say(outcome, [error.message, error.document?.hint].filter(Boolean).join(": "));
    } finally {
      for (const button of buttons) button.disabled = !this._point;
    }
  }

  async _startFot() {
    say(byId("outcome"), "Opening the test…");
    const made = await wish("POST", "/api/fots", { ...this._wish(), read_only: byId("read-only").checked });
    say(byId("outcome"), made ? `${made.fot} is open: see Fail-over tests.` : "Nothing was started.");
  }

  async _planPromote() {
    say(byId("outcome"), "Planning…");
    const wanted = this._wish();
    const plan = await wish("POST", "/api/promote", wanted);
    say(byId("outcome"), plan ? "" : "Nothing was planned.");
    if (!plan) return;
    const plans = plan.volumes ?? [plan];
    const name = wanted.volume ?? wanted.group;
    const typed = h("input", { id: "typed", autocomplete: "off", spellcheck: "false" });
    const confirmed = await ask({
      title: `Promote ${name}?`,
      body: [
        h("p", {}, "A dry run; nothing was changed yet. A promote ends protection there, and what lies after the point goes."),
        ...plans.map((one) => planned(one)),
        h("label", { for: "typed" }, `To promote, type ${name}`),
        typed,
      ],
      yes: "Promote",
      allowed: () => typed.value === name,
    });
    if (!confirmed) {
      say(byId("outcome"), "Nothing was changed.");
      return;
    }
    const offsets = Object.fromEntries(plans.map((one) => [one.volume, one.offset]));
    say(byId("outcome"), "Promoting…");
    const done = await wish("POST", "/api/promote", { ...wanted, confirmed_offsets: offsets });
    say(byId("outcome"), done ? `The promote of ${name} is under way: its state says when it is done.` : "Nothing was changed.");
  }
}

function planned(plan) {
  const list = h("dl", { class: "facts" });
  const at = seconds(plan.resolved.captured_at);
  facts(list, [
    ["Volume", plan.volume],
    ["Offset", count(plan.offset)],
    ["Captured", at === null ? null : clock(at, true)],
    ["To apply", `${events(plan.applied_events)}, ${bytes(plan.applied_bytes)}`],
    ["Would be lost", lost(plan)],
    ["Recovery volume", plan.path],
  ]);
  return list;
}

const lost = (after) => (after.lost_events ? `${events(after.lost_events)}, ${bytes(after.lost_bytes)}, ${duration(after.lost_seconds)}` : "nothing");

// Offset, time or checkpoint of what was typed.
function parse(text) {
  if (/^[0-9]+$/.test(text)) return { kind: "offset", value: text };
  if (/^[0-9]{4}-[0-9]{2}-[0-9]{2}[T ]/.test(text)) return { kind: "time", value: text };
  return { kind: "checkpoint", value: text };
}
