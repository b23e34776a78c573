// One dialog for all questions.

import { byId } from "./dom.js";

// Ask; true if the answer was yes.
//   title, yes: texts; body: elements; allowed: () → whether yes may be given now (asked at each input).
export function ask({ title, body, yes, allowed = () => true, no = "Cancel" }) {
  const dialog = byId("dialog");
  const form = byId("dialog-form");
  const button = byId("dialog-yes");
  byId("dialog-title").textContent = title;
  byId("dialog-body").replaceChildren(...body.filter(Boolean));
  byId("dialog-no").textContent = no;
  button.textContent = yes ?? "";
  button.hidden = !yes;
  const look = () => (button.disabled = !allowed());
  look();
  return new Promise((resolve) => {
    const finish = (answer) => {
      ended.abort();
      dialog.close();
      resolve(answer);
    };
    const ended = new AbortController();
    const { signal } = ended;
    form.addEventListener("input", look, { signal });
    form.addEventListener(
      "submit",
      (event) => {
        event.preventDefault();
        if (yes && allowed()) finish(true);
      },
      { signal },
    );
    byId("dialog-no").addEventListener("click", () => finish(false), { signal });
    dialog.addEventListener("cancel", () => finish(false), { signal });
    dialog.showModal();
    (byId("dialog-body").querySelector("input") ?? byId("dialog-no")).focus();
  });
}
