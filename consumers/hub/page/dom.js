// Elements. Whatever a name or a reason holds, it becomes text: nothing here, or anywhere else, parses HTML.

export const byId = (id) => document.getElementById(id);

// An element: h("li", {class: "row", onclick: f}, "text", child); null and false children are left out.
export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (typeof value === "boolean") element.toggleAttribute(name, value);
    else if (value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

// Set the text, if it is another one: a screen reader and a selection are not disturbed for nothing.
export function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

// Make the children of `parent` those of `items`, keeping the elements (and with them the focus) of those that stay.
//   make(item) → element; update(element, item).
export function keyed(parent, items, keyOf, make, update) {
  const before = new Map([...parent.children].map((child) => [child.dataset.key, child]));
  let at = parent.firstElementChild;
  for (const item of items) {
    const key = keyOf(item);
    let element = before.get(key);
    if (element) before.delete(key);
    else {
      element = make(item);
      element.dataset.key = key;
    }
    update(element, item);
    if (element === at) at = at.nextElementSibling;
    else parent.insertBefore(element, at);
  }
  for (const gone of before.values()) gone.remove();
}

// Pairs of term and value in a <dl>; a value may be null, which is shown as a dash.
export function facts(list, pairs) {
  keyed(
    list,
    pairs,
    ([term]) => term,
    ([term]) => h("div", {}, h("dt", {}, term), h("dd")),
    (element, [, value]) => say(element.lastElementChild, value ?? "–"),
  );
}
