// Elements of the page. Text goes in as text, never as HTML: names come from whoever may push.

/** Return a new element. Attributes that are functions listen; true is a bare one, null is none. */
export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") made.addEventListener(name, value);
    else if (value === true) made.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

export const byId = (id) => document.getElementById(id);

/** Set text only where it is another, so that nothing is laid out for nothing. */
export function setText(where, text) {
  if (where.textContent !== text) where.textContent = text;
}

/** A section with a heading. */
export function section(id, title, ...children) {
  return element("section", { id, "aria-labelledby": `${id}-title` },
    element("h2", { id: `${id}-title` }, title), ...children);
}

/** A table with a head, which stays in sight where the rows scroll; `fillRows` fills its body. */
export function table(caption, columns) {
  const body = element("tbody");
  const head = element("tr", {}, ...columns.map((name) => element("th", { scope: "col" }, name)));
  const whole = element("div", { class: "scroll rows", tabindex: "0", role: "region", "aria-label": caption },
    element("table", {}, element("caption", {}, caption), element("thead", {}, head), body));
  return { whole, body };
}

/**
 * Make the rows of a table body what `rows` says, keeping those that stay: [{key, class, cells}].
 * A cell is text or an element; an element is put in once, when its row is made.
 */
export function fillRows(body, rows) {
  const known = new Map([...body.children].map((row) => [row.dataset.key, row]));
  rows.forEach(({ key, kind = "", cells }, place) => {
    let row = known.get(key);
    known.delete(key);
    if (row === undefined) {
      row = element("tr", { "data-key": key }, ...cells.map((cell, number) =>
        element(number === 0 ? "th" : "td", number === 0 ? { scope: "row" } : {}, cell)));
    } else {
      cells.forEach((cell, number) => {
        if (typeof cell === "string") setText(row.children[number], cell);
      });
    }
    if (row.className !== kind) row.className = kind;
    if (body.children[place] !== row) body.insertBefore(row, body.children[place] ?? null);
  });
  for (const row of known.values()) row.remove();
}

/** Ask before something is changed; resolves to whether the answer was yes. */
export function confirmed(title, text, action) {
  const dialog = byId("dialog");
  const close = (answer) => () => dialog.close(answer);
  const yes = element("button", { type: "button", class: "danger", id: "confirm", click: close("yes") }, action);
  const no = element("button", { type: "button", id: "cancel", click: close("no") }, "Cancel");
  dialog.replaceChildren(element("h2", { id: "dialog-title" }, title), element("p", { id: "dialog-text" }, text),
    element("div", { class: "tools" }, no, yes));
  dialog.returnValue = "no"; // what Escape leaves
  dialog.showModal();
  no.focus();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true });
  });
}

let hiding = 0;

/** Say something on top of the page; a failure stays until the next, other news for a few seconds. */
export function notice(text, { failed = false } = {}) {
  const where = byId("notice");
  clearTimeout(hiding);
  where.hidden = text === "";
  where.classList.toggle("failed", failed);
  setText(where, text);
  if (!failed && text) hiding = setTimeout(() => { where.hidden = true; }, 8000);
}

/** Run something that a person asked for: its button rests meanwhile, and a failure is said. */
export async function act(button, doing) {
  const hadFocus = document.activeElement === button;
  button.disabled = true;
  try {
    await doing();
  } catch (error) {
    notice(error.message, { failed: true });
  } finally {
    button.disabled = false;
    // A button that rests loses the focus, and whoever has no mouse would begin at the top again.
    const isLost = document.activeElement === document.body || !document.activeElement.checkVisibility();
    if (hadFocus && isLost) button.focus();
  }
}
