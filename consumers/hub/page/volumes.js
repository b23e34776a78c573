// Groups and their volumes: state, recovery point over time, what is under way.

import { sparkline } from "./charts.js";
import { byId, h, keyed, say } from "./dom.js";
import { bytes, duration, percent } from "./format.js";

const lines = new Map(); // element of a volume → its sparkline, while it can be seen
const held = new WeakMap(); // element of a volume → the columns that it shows
const seen = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) {
    if (isIntersecting && !lines.has(target)) {
      lines.set(target, sparkline(target.querySelector(".spark")));
      draw(target);
    }
    if (!isIntersecting) close(target);
  }
});

function draw(element) {
  const columns = held.get(element);
  lines.get(element)?.setData([(columns?.at ?? []).map((at) => at / 1e6), columns?.rpo_seconds ?? []]);
}

// Show all of them; `pick` is called with the name of one that was chosen.
export function showVolumes(volumes, series, picked, pick) {
  byId("no-volumes").hidden = volumes.length > 0;
  const groups = new Map();
  for (const volume of volumes) groups.set(volume.group, [...(groups.get(volume.group) ?? []), volume]);
  keyed(
    byId("groups"),
    [...groups],
    ([group]) => group,
    ([group]) => h("section", { class: "group" }, h("h3", {}, group), h("ul", { class: "plain" })),
    (element, [group, members]) => {
      // A volume alone is a group of its own name: its name is enough.
      element.firstChild.hidden = members.length === 1 && members[0].volume === group;
      const gone = [...element.lastChild.children].filter((row) => !members.some((one) => one.volume === row.dataset.key));
      for (const row of gone) {
        seen.unobserve(row);
        close(row);
      }
      keyed(
        element.lastChild,
        members,
        (volume) => volume.volume,
        (volume) => row(volume, pick),
        (item, volume) => update(item, volume, series.get(volume.volume), picked),
      );
    },
  );
}

function close(element) {
  lines.get(element)?.close();
  lines.delete(element);
}

function row(volume, pick) {
  const name = volume.volume;
  const element = h(
    "li",
    { class: "volume" },
    h(
      "button",
      { type: "button", onclick: () => pick(name) },
      h("span", { class: "name" }, name),
      h("span", { class: "state" }),
      h("span", { class: "spark", "aria-hidden": "true" }),
      h("span", { class: "numbers" }),
    ),
    h("p", { class: "work", hidden: true }, h("progress", { max: "1", "aria-label": `sync of ${name}` }), " ", h("span")),
    h("p", { class: "reason", hidden: true }),
  );
  seen.observe(element);
  return element;
}

function update(element, volume, columns, picked) {
  element.firstChild.setAttribute("aria-pressed", String(volume.volume === picked));
  const state = element.querySelector(".state");
  state.dataset.state = volume.state;
  say(state, stateOf(volume));
  const rate = columns?.written_bytes_per_second.at(-1);
  const numbers = [
    volume.rpo_seconds === null ? "RPO –" : `RPO ${duration(volume.rpo_seconds)}`,
    volume.window_seconds === null ? null : `back ${duration(volume.window_seconds)}`,
    rate === undefined ? null : `${bytes(rate)}/s`,
  ];
  say(element.querySelector(".numbers"), numbers.filter(Boolean).join(" · "));
  progress(element.querySelector(".work"), volume);
  const reason = element.querySelector(".reason");
  reason.hidden = !volume.reason;
  say(reason, volume.reason ?? "");
  held.set(element, columns);
  draw(element);
}

// The state, and whether the newest point can be trusted.
export const stateOf = (volume) =>
  volume.consistent || ["syncing", "gap", "failed"].includes(volume.state) ? volume.state : `${volume.state}, not consistent`;

function progress(element, volume) {
  const job = volume.sync ?? volume.verify;
  element.hidden = !job;
  if (!job) return;
  const share = job.total_bytes ? job.done_bytes / job.total_bytes : 0;
  element.firstChild.value = share;
  const words = [
    volume.sync ? "sync" : "verify",
    percent(share),
    `of ${bytes(job.total_bytes)}`,
    job.waiting ? "waits for its turn" : job.paused ? "paused" : null,
    job.eta_seconds === null ? null : `${duration(job.eta_seconds)} left`,
  ];
  say(element.lastChild, words.filter(Boolean).join(" "));
}
