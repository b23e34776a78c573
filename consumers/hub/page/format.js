// Numbers and times as people read them.

export function bytes(size) {
  if (size === null || size === undefined) return null;
  for (const unit of ["B", "KiB", "MiB", "GiB", "TiB"]) {
    if (Math.abs(size) < 1024) return unit === "B" ? `${Math.round(size)} B` : `${size.toFixed(1)} ${unit}`;
    size /= 1024;
  }
  return `${size.toFixed(1)} PiB`;
}

export function duration(seconds) {
  if (seconds === null || seconds === undefined) return null;
  if (seconds === 0) return "0 s";
  if (seconds < 1) return `${Math.max(1, Math.round(seconds * 1000))} ms`;
  if (seconds < 10) return `${seconds.toFixed(1)} s`;
  if (seconds < 120) return `${Math.round(seconds)} s`;
  if (seconds < 7200) return `${Math.round(seconds / 60)} min`;
  if (seconds < 172800) return `${(seconds / 3600).toFixed(1)} h`;
  return `${(seconds / 86400).toFixed(1)} d`;
}

export const count = (number) => (number === null || number === undefined ? null : number.toLocaleString("en"));

export const events = (number) => `${count(number)} ${number === 1 ? "event" : "events"}`;

export const percent = (share) => (share === null || share === undefined ? null : `${(share * 100).toFixed(share < 0.1 ? 1 : 0)} %`);

const pad = (number, digits = 2) => String(number).padStart(digits, "0");

// Seconds since the Unix epoch as the local time of day; the date if it is not today's.
export function clock(seconds, withMilliseconds = false) {
  const at = new Date(seconds * 1000);
  let text = `${pad(at.getHours())}:${pad(at.getMinutes())}:${pad(at.getSeconds())}`;
  if (withMilliseconds) text += `.${pad(at.getMilliseconds(), 3)}`;
  if (at.toDateString() === new Date().toDateString()) return text;
  return `${at.getFullYear()}-${pad(at.getMonth() + 1)}-${pad(at.getDate())} ${text}`;
}

// Labels of a time axis that is `span` seconds long.
export function tick(seconds, span) {
  const at = new Date(seconds * 1000);
  const minutes = `${pad(at.getHours())}:${pad(at.getMinutes())}`;
  if (span < 8) return `${pad(at.getSeconds())}.${pad(at.getMilliseconds(), 3)}`;
  if (span < 600) return `${minutes}:${pad(at.getSeconds())}`;
  if (span < 86400 * 2) return minutes;
  return `${pad(at.getMonth() + 1)}-${pad(at.getDate())} ${minutes}`;
}

// Seconds since the Unix epoch of an RFC 3339 time; null stays null.
export const seconds = (rfc3339) => (rfc3339 ? Date.parse(rfc3339) / 1000 : null);
