// Puts the page together: what the live stream says goes to its parts, and what is picked in one of them to the others.

import { byId, facts, say } from "./dom.js";
import { bytes, duration, events } from "./format.js";
import { Live } from "./live.js";
import { showAlerts, showFots, showParts } from "./lists.js";
import { PointPanel } from "./point.js";
import { Timeline } from "./timeline.js";
import { showVolumes, stateOf } from "./volumes.js";

const LINKS = { live: "live", waiting: "connecting", lost: "no answer from the hub, trying again" };

let picked = location.hash.startsWith("#/") ? location.hash.slice(2) : null; // names need no escapes
let wanted = null; // an offset to show once its volume is there

const live = new Live(changed, (state) => {
  byId("link").dataset.state = state;
  say(byId("link"), LINKS[state]);
});
const timeline = new Timeline((point, settled) => panel.ask(point, settled));
const panel = new PointPanel((at, offset, checkpoint, how) => timeline.found(at, offset, checkpoint, how));

function pick(name) {
  picked = name;
  history.replaceState(null, "", `#/${name}`);
  changed();
  if (matchMedia("(max-width: 50rem)").matches) byId("volume").scrollIntoView();
}

function changed() {
  const document = live.document;
  if (!document) return;
  const { volumes, alerts, fots, parts } = document;
  if (!volumes.some((volume) => volume.volume === picked)) picked = volumes[0]?.volume ?? null;
  say(byId("summary"), summary(volumes, alerts));
  showAlerts(alerts, (volume, offset) => {
    wanted = offset;
    pick(volume);
  });
  showVolumes(volumes, live.series, picked, pick);
  showFots(fots);
  showParts(parts);
  const chosen = volumes.find((volume) => volume.volume === picked);
  byId("volume").hidden = !chosen;
  if (chosen) showVolume(chosen, volumes, alerts);
}

function showVolume(volume, volumes, alerts) {
  say(byId("volume-title"), volume.volume);
  byId("volume-state").dataset.state = volume.state;
  say(byId("volume-state"), stateOf(volume));
  say(byId("volume-reason"), volume.reason ?? "");
  byId("volume-reason").hidden = !volume.reason;
  const columns = live.series.get(volume.volume);
  facts(byId("volume-facts"), [
    ["RPO", duration(volume.rpo_seconds)],
    ["Goes back", duration(volume.window_seconds)],
    ["Not acked", bytes(volume.lag_bytes)],
    ["Diskbox behind", columns?.lag_events.length ? events(columns.lag_events.at(-1)) : null],
    ["Dirty", bytes(volume.dirty_bytes)],
    ["Size", bytes(volume.size_bytes)],
    ["Agent", volume.agent],
    ["Diskbox", volume.diskbox],
  ]);
  timeline.show(volume.volume);
  timeline.tick(columns ?? null, alerts.filter((alert) => alert.subject_kind === "volume" && alert.subject === volume.volume));
  panel.show(volume, volumes.filter((one) => one.group === volume.group));
  if (wanted !== null) {
    panel.ask({ kind: "offset", value: wanted }, true);
    wanted = null;
  }
}

function summary(volumes, alerts) {
  const good = volumes.filter((volume) => volume.state === "protected" && volume.consistent).length;
  const words = [`${good} of ${volumes.length} volumes protected`];
  words.push(alerts.length ? `${alerts.length} open ${alerts.length === 1 ? "alert" : "alerts"}` : "no alerts");
  return words.join(", ");
}

live.run();
