// Questions and wishes to the hub. The token is asked for at the first wish and kept as long as the tab.

import { ask } from "./dialog.js";
import { h } from "./dom.js";

const KEPT = "rephub-web-token";

// What the hub refuses: `document` is its {"class", "message", "hint", …}.
export class Refused extends Error {
  constructor(status, document) {
    super(document.message);
    this.status = status;
    this.document = document;
  }
}

// GET a document; raises Refused, or TypeError where nobody answers.
export const look = (path, signal) => request(path, { signal });

// POST or DELETE with the token; null if the operator would not give one.
export async function wish(method, path, body) {
  let why = "";
  for (;;) {
    const token = sessionStorage.getItem(KEPT) ?? (await askForToken(why));
    if (token === null) return null;
    try {
      const headers = { Authorization: `Bearer ${token}` };
      if (body !== undefined) headers["Content-Type"] = "application/json";
      const answer = await request(path, { method, headers, body: body === undefined ? undefined : JSON.stringify(body) });
      sessionStorage.setItem(KEPT, token);
      return answer;
    } catch (error) {
      if (!(error instanceof Refused) || error.status !== 401) throw error;
      sessionStorage.removeItem(KEPT);
      why = error.message;
    }
  }
}

async function request(path, options) {
  const response = await fetch(path, { cache: "no-store", ...options });
  const text = await response.text();
  let document;
  try {
    document = JSON.parse(text);
  } catch {
    throw new Refused(response.status, { message: `the hub answered ${response.status}`, hint: "" });
  }
  if (document.error) throw new Refused(response.status, document.error);
  return document;
}

async function askForToken(why) {
  const input = h("input", { id: "token", type: "password", autocomplete: "off", required: true });
  const given = await ask({
    title: "Token",
    body: [
      why && h("p", { class: "bad" }, why),
      h("p", {}, "Changes need the hub's token. It is in the file ", h("code", {}, "web-token"), " of the hub's state directory."),
      h("label", { for: "token" }, "Token"),
      input,
    ],
    yes: "Go on",
  });
  // A header takes visible ASCII only, and so does a token.
  return given ? input.value.replace(/[^\x21-\x7e]/g, "") || "?" : null;
}
