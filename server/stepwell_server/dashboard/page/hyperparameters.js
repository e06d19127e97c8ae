// The optimizer's hyperparameters, to look at or, with the role admin, to change while it trains.

import { call, modelPath, send } from "./api.js";
import { act, confirmed, element, notice } from "./elements.js";
import { isPerPush, value } from "./shown.js";

const FIXED = new Set(["name"]); // of the optimizer, not of its steps

export class Hyperparameters {
  constructor(model, mayChange) {
    this.model = model;
    this.path = `${modelPath(model)}/optimizer`;
    this.mayChange = mayChange;
    this.inputs = new Map();
    this.title = element("p", { class: "note" });
    this.fields = element("div", { class: "fields" });
    this.button = element("button", { type: "submit", id: "change" }, "Change…");
    const form = element("form", {
      id: "hyperparameters-form",
      submit: (event) => {
        event.preventDefault();
        act(this.button, () => this.change());
      },
    }, this.title, this.fields, mayChange ? this.button : null);
    this.whole = form;
  }

  /** Ask for the present ones; what somebody is typing is left alone. */
  async load() {
    const answer = await send(this.path);
    const { class_name: name, config } = await answer.json();
    const inner = config.inner_optimizer ?? { class_name: name, config };
    this.tag = answer.headers.get("ETag");
    this.title.textContent = inner.class_name === name ? name : `${name} around ${inner.class_name}`;
    for (const [key, now] of Object.entries(inner.config)) {
      if (!FIXED.has(key)) this.field(key, now);
    }
  }

  field(key, now) {
    let input = this.inputs.get(key);
    if (input === undefined) {
      input = element("input", {
        id: `h-${key}`, spellcheck: "false", autocomplete: "off",
      });
      this.inputs.set(key, input);
      this.fields.append(element("label", { for: `h-${key}` }, key), input);
    }
    input.readOnly = !this.mayChange || isPerPush(now); // whether it comes with pushes stays for ever
    const isEdited = input.dataset.now !== undefined && input.value !== input.dataset.now;
    if (!isEdited) input.value = value(now);
    input.dataset.now = value(now);
  }

  async change() {
    const changed = {};
    const lines = [];
    for (const [key, input] of this.inputs) {
      if (input.value === input.dataset.now) continue;
      changed[key] = read(key, input.value);
      lines.push(`${key}: ${input.dataset.now} → ${input.value}`);
    }
    if (lines.length === 0) {
      notice("Nothing is another yet: write a new value into one of the fields first.");
      return;
    }
    const tag = this.tag; // of the values that the question names; they may change while it is open
    const text = `From the next step of ${this.model} on, ${lines.join("; ")}.`;
    if (!await confirmed("Change while it trains?", text, "Change")) return;
    try {
      await call(this.path, { method: "PATCH", body: changed, headers: { "If-Match": tag } });
    } catch (error) {
      if (error.status !== 412) throw error;
      await this.load();
      throw new Error("Somebody else changed the optimizer meanwhile. Look at the present values, and change again");
    }
    for (const key of Object.keys(changed)) {
      const input = this.inputs.get(key);
      input.dataset.now = input.value;
    }
    await this.load();
    notice(`Changed ${lines.join("; ")}`);
  }
}

/** Return what a text means; not a number beyond all numbers, which JSON would send as null. */
function read(key, text) {
  try {
    return JSON.parse(text, (_, some) => {
      if (some === Infinity || some === -Infinity) throw new RangeError();
      return some;
    });
  } catch {
    throw new Error(`${key} is a number, true, false, null or a schedule in JSON. Received: ${text.slice(0, 60)}`);
  }
}
