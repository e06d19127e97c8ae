// What people and workers did: versions, checkpoints, restores, who came and went, what was changed.

import { call, modelPath } from "./api.js";
import { element, notice } from "./elements.js";
import { rows } from "./feed.js";
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
    this.filter = element("select", { id: "kinds", change: () => this.feed && this.show(this.feed) },
      element("option", { value: "" }, "everything"),
      ...Object.keys(SENTENCES).map((kind) => element("option", { value: kind }, kind.replace("_", " "))));
    this.more = element("p", { class: "note", hidden: true });
    this.whole = element("div", {}, element("label", {}, "Show ", this.filter),
      element("div", { class: "scroll tall", tabindex: "0", role: "region", "aria-label": "Timeline" }, this.list), this.more);
    this.newest = null;
    this.read = null; // of one kind, what the server has of it
  }

  show(feed) {
    this.feed = feed;
    const { events, leftOut } = this.chosen(feed);
    const shown = events.slice(-SHOWN).reverse();
    const left = leftOut + events.length - shown.length;
    const mark = `${feed.name} ${this.filter.value} ${left} ${shown.length} ${shown[0]?.number}`;
    if (mark === this.newest) return;
    this.newest = mark;
    this.list.replaceChildren(...shown.map((event) => element("li", { class: `kind-${event.kind}` },
      element("span", { class: "version" }, `v${event.version}`),
      element("span", {}, sentence(event)),
      element("time", { datetime: new Date(event.time * 1000).toISOString() }, moment(event.time)))));
    this.more.hidden = left === 0;
    this.more.textContent = Number.isNaN(left) ? "Older ones may be in GET …/history."
      : `${number(left)} older ones are in GET …/history.`;
  }

  /** Return the events to show, and how many older ones there are; NaN while that is not known. */
  chosen(feed) {
    const kind = this.filter.value;
    if (kind === "") return feed;
    const ofKind = feed.events.filter((event) => event.kind === kind);
    if (feed.leftOut === 0) return { events: ofKind, leftOut: 0 };
    // The newest of all kinds are here. Those of a kind that is rare may be older than all of them.
    const isRead = this.read?.kind === kind && this.read.of === feed.events; // another list after a load
    if (!isRead || this.read.last < feed.events[0].number) this.ask(feed, kind);
    if (this.read.events === null) return { events: ofKind, leftOut: NaN };
    follow(this.read);
    return this.read;
  }

  /** Ask the server for the newest of a kind, once until the feed or the choice is another. */
  async ask(feed, kind) {
    const read = { kind, of: feed.events, events: null, last: Infinity, leftOut: 0 };
    this.read = read;
    try {
      const found = await call(`${modelPath(feed.name)}/history?points=${SHOWN}&kinds=${kind}&series=false`);
      if (this.read !== read) return;
      Object.assign(read, { events: rows(found.events), last: found.last, leftOut: found.left_out });
      follow(read);
      this.show(feed);
    } catch (error) {
      const isWanted = this.read === read && this.whole.isConnected;
      if (isWanted) notice(`The timeline has the newest events alone: ${error.message}`, { failed: true });
    }
  }
}

/** Add what the stream brought since; `last` is the number up to which all of the kind are there. */
function follow(read) {
  read.events.push(...read.of.filter((event) => event.kind === read.kind && event.number > read.last));
  read.last = Math.max(read.last, read.of.at(-1).number);
  read.leftOut += read.events.splice(0, read.events.length - SHOWN).length;
}
