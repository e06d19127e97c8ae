// What people and workers did: versions, checkpoints, restores, who came and went, what was changed.

import { element } from "./elements.js";
import { moment, number, value } from "./shown.js";

const SHOWN = 60;

const SENTENCES = {
  join: (event) => `${event.worker} joined`,
  leave: (event) => `${event.worker} left (${event.reason})`,
  checkpoint: (event) => `checkpoint ${event.checkpoint}`,
  cut: (event) => (event.cause === "restore" ? `restored ${event.checkpoint}` : `state replaced (${event.cause})`),
  hyperparameters: (event) => changes(event),
  consistency: (event) => `mode ${value(event.old.mode)} → ${value(event.new.mode)}`,
  loss_scale: (event) => `loss scale ${number(event.old)} → ${number(event.new)}`,
  finalize: () => "average written into the parameters",
  start: () => "server started",
};

function changes({ old, new: now }) {
  return Object.keys(now).map((name) => `${name} ${value(old[name] ?? null)} → ${value(now[name])}`).join(", ");
}

export const sentence = (event) => (SENTENCES[event.kind] ?? (() => event.kind))(event);

export class Timeline {
  constructor() {
    this.list = element("ol", { class: "timeline", reversed: true });
    this.filter = element("select", { id: "kinds", change: () => this.show(this.feed) },
      element("option", { value: "" }, "everything"),
      ...Object.keys(SENTENCES).map((kind) => element("option", { value: kind }, kind.replace("_", " "))));
    this.more = element("p", { class: "note", hidden: true });
    this.whole = element("div", {}, element("label", {}, "Show ", this.filter),
      element("div", { class: "scroll tall", tabindex: "0", role: "region", "aria-label": "Timeline" }, this.list), this.more);
    this.newest = null;
  }

  show(feed) {
    this.feed = feed;
    const chosen = feed.events.filter((event) => !this.filter.value || event.kind === this.filter.value);
    const mark = `${feed.name} ${this.filter.value} ${chosen.length} ${chosen.at(-1)?.number}`;
    if (mark === this.newest) return;
    this.newest = mark;
    const shown = chosen.slice(-SHOWN).reverse();
    this.list.replaceChildren(...shown.map((event) => element("li", { class: `kind-${event.kind}` },
      element("span", { class: "version" }, `v${event.version}`),
      element("span", {}, sentence(event)),
      element("time", { datetime: new Date(event.time * 1000).toISOString() }, moment(event.time)))));
    const left = feed.leftOut + chosen.length - shown.length;
    this.more.hidden = left <= 0;
    this.more.textContent = `${number(left)} older ones are in GET …/history.`;
  }
}
