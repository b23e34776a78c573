// Open alerts, open fail-over tests, and the daemons.

import { wish } from "./api.js";
import { ask } from "./dialog.js";
import { byId, h, keyed, say } from "./dom.js";
import { bytes, clock, count, percent } from "./format.js";

// Alerts, the worst first; `go(volume, offset)` shows the last good point that one names.
export function showAlerts(alerts, go) {
  byId("alerts").hidden = alerts.length === 0;
  keyed(
    byId("alert-list"),
    alerts,
    (alert) => alert.alert,
    (alert) =>
      h(
        "li",
        { class: "alert" },
        h("strong"),
        h("span", { class: "text" }),
        h("span", { class: "hint" }),
        Number.isInteger(alert.last_good_offset) && alert.subject_kind === "volume"
          ? h("button", { type: "button", onclick: () => go(alert.subject, alert.last_good_offset) }, `Last good point: offset ${count(alert.last_good_offset)}`)
          : null,
      ),
    (element, alert) => {
      element.dataset.severity = alert.severity;
      const [title, text, hint] = element.children;
      say(title, `${alert.severity}: ${alert.rule} · ${alert.subject_kind} ${alert.subject} · since ${clock(alert.since / 1e6)}`);
      say(text, alert.text);
      say(hint, alert.hint);
    },
  );
}

// Open tests, with their URIs and how far they are copied.
export function showFots(fots) {
  byId("no-fots").hidden = fots.length > 0;
  keyed(byId("fot-list"), fots, (fot) => fot.fot, newFot, (element, fot) => {
    const views = fot.volumes ?? [fot];
    say(element.querySelector(".name"), fot.fot);
    say(element.querySelector(".state"), [fot.state, fot.read_only ? "read only" : null, fot.group ? `group ${fot.group}` : null].filter(Boolean).join(", "));
    keyed(element.querySelector("ul"), views, (view) => view.volume, newView, updateView);
  });
}

function newFot(fot) {
  const outcome = h("p", { role: "status" });
  const stop = h("button", { type: "button", class: "stop", "aria-label": `Stop ${fot.fot}` }, "Stop");
  stop.addEventListener("click", async () => {
    const sure = fot.read_only || (await ask({
      title: `Stop ${fot.fot}?`,
      body: [h("p", {}, "What was written to it is discarded. The volume itself is not touched.")],
      yes: "Stop the test",
    }));
    if (!sure) return;
    stop.disabled = true;
    say(outcome, "Stopping…");
    try {
      const ended = await wish("DELETE", `/api/fots/${encodeURIComponent(fot.fot)}`);
      say(outcome, ended?.warning ?? "");
    } catch (error) {
      outcome.className = "bad";
      say(outcome, [error.message, error.document?.hint].filter(Boolean).join(": "));
    } finally {
      stop.disabled = false;
    }
  });
  return h(
    "li",
    { class: "fot" },
    h("p", { class: "title" }, h("strong", { class: "name" }), " ", h("span", { class: "state" }), stop),
    h("ul", { class: "plain" }),
    outcome,
  );
}

function newView() {
  const uri = h("code", { class: "uri" });
  const copy = h("button", { type: "button", "aria-label": "Copy the URI" }, "Copy");
  copy.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(uri.textContent);
      say(copy, "Copied");
      setTimeout(() => say(copy, "Copy"), 1500);
    } catch {
      getSelection().selectAllChildren(uri); // without a clipboard: ready to be copied by hand
    }
  });
  return h(
    "li",
    {},
    h("p", { class: "at" }),
    h("p", { class: "served" }, uri, " ", copy),
    h("p", { class: "work" }, h("progress", { max: "1", "aria-label": "copied beside it" }), " ", h("span")),
  );
}

function updateView(element, view) {
  const scratch = view.scratch_bytes === undefined ? null : `${bytes(view.scratch_bytes)} written`;
  const at = view.resolved?.captured_at ? clock(Date.parse(view.resolved.captured_at) / 1000, true) : null;
  const where = view.offset === null ? "is being opened" : `offset ${count(view.offset)}`;
  const words = [view.volume, where, at, view.resolved?.checkpoint, scratch];
  say(element.querySelector(".at"), words.filter(Boolean).join(" · "));
  element.querySelector(".served").hidden = !view.uri;
  say(element.querySelector(".uri"), view.uri ?? "");
  const work = element.querySelector(".work");
  const hydration = view.hydration;
  work.hidden = !hydration;
  if (!hydration) return;
  const share = hydration.total_events ? hydration.done_events / hydration.total_events : hydration.state === "done" ? 1 : 0;
  work.firstChild.value = share;
  const state = hydration.state === "running" ? `copied: ${percent(share)}` : `copy is ${hydration.state}`;
  say(work.lastChild, hydration.problem ? `${state}: ${hydration.problem}` : state);
}

// What each daemon costs.
export function showParts(parts) {
  keyed(
    byId("part-rows"),
    parts,
    (part) => part.name,
    () => h("tr", {}, h("th", { scope: "row" }), h("td"), h("td"), h("td")),
    (row, part) => {
      const free = part.disk_total_bytes ? `${bytes(part.disk_free_bytes)} of ${bytes(part.disk_total_bytes)}` : "–";
      const texts = [part.name, percent(part.cpu_share) ?? "–", bytes(part.rss_bytes) ?? "–", free];
      texts.forEach((text, number) => say(row.children[number], text));
    },
  );
}
