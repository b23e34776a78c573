// How things go now: the last quarter of an hour at first, then what the hub's stream brings each second.

import { look } from "./api.js";

export const SECONDS = 900;
const RETRY_MS = 2000;

export class Live {
  // changed(): called after each document; linked(state): "live", "waiting" or "lost".
  constructor(changed, linked) {
    this.document = null;
    this.series = new Map(); // volume → columns, as in the document
    this._changed = changed;
    this._linked = linked;
    this._last = 0;
  }

  // Follow for ever; a hub that is away is tried again.
  run() {
    const source = new EventSource("/api/stream");
    let whole = false;
    const again = () => {
      source.close();
      this._linked("lost");
      setTimeout(() => this.run(), RETRY_MS);
    };
    source.addEventListener("error", again);
    source.addEventListener("live", (event) => {
      if (!whole) return;
      this._take(JSON.parse(event.data));
    });
    // The stream first and then the past: nothing falls between the two.
    source.addEventListener("open", async () => {
      try {
        this.series.clear();
        this._take(await look(`/api/live?seconds=${SECONDS}`));
        whole = true;
      } catch {
        again();
      }
    });
  }

  _take(document) {
    this.document = document;
    this._linked("live");
    const names = new Set(document.volumes.map((volume) => volume.volume));
    for (const name of this.series.keys()) if (!names.has(name)) this.series.delete(name);
    for (const [name, columns] of Object.entries(document.series)) this._append(name, columns);
    this._changed();
  }

  _append(name, columns) {
    const held = this.series.get(name);
    if (!held) {
      this.series.set(name, columns);
      return;
    }
    const newest = held.at.at(-1) ?? 0;
    let first = 0;
    while (first < columns.at.length && columns.at[first] <= newest) first += 1;
    for (const column of Object.keys(held)) {
      held[column].push(...(columns[column] ?? []).slice(first));
      if (held[column].length > SECONDS) held[column].splice(0, held[column].length - SECONDS);
    }
  }
}
