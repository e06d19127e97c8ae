// Who trains: states, staleness, drops, and who holds the others up.

import { element, fillRows, table } from "./elements.js";
import { age, number } from "./shown.js";
import { quantile } from "./series.js";

const SLOW = 0.5; // of the pushes a second that the middle worker makes
const COLUMNS = ["worker", "state", "last seen", "last push", "pushes/s", "pushes", "staleness", "p95", "drops"];

/** Return the names of open workers who are much slower than the others, or whom a barrier waits for. */
export function stragglers(workers) {
  const open = workers.filter((worker) => worker.is_open && worker.rate !== null);
  if (open.length < 2) return new Set();
  const waited = open.filter((worker) => worker.is_waiting);
  if (waited.length * 2 > open.length) {
    return new Set(open.filter((worker) => !worker.is_waiting && worker.last_push_s > 2).map(({ worker }) => worker));
  }
  const middle = quantile(open.map(({ rate }) => rate), 0.5);
  return new Set(open.filter(({ rate }) => rate < SLOW * middle).map(({ worker }) => worker));
}

export class Workers {
  constructor() {
    this.table = table("Workers", COLUMNS);
    this.nobody = element("p", { class: "note" }, "No worker has joined yet.");
    this.whole = element("div", {}, this.nobody, this.table.whole);
    this.before = new Map();
  }

  /** workers: as `GET .../workers` says, at a time in seconds; feed: has their stalenesses. */
  show(workers, now, feed) {
    const all = workers.map((worker) => ({ ...worker, rate: this.rate(worker, now) }));
    const slow = stragglers(all);
    this.nobody.hidden = all.length > 0;
    this.table.whole.hidden = all.length === 0;
    all.sort((a, b) => Number(b.is_open) - Number(a.is_open) || a.worker.localeCompare(b.worker, "en", { numeric: true }));
    fillRows(this.table.body, all.map((worker) => this.row(worker, slow.has(worker.worker), feed)));
    return all.filter((worker) => worker.is_open);
  }

  row(worker, isSlow, feed) {
    const known = feed.workers.get(worker.worker) ?? { stalenesses: [], drops: 0 };
    const cells = [
      worker.worker,
      `${state(worker)}${isSlow ? " · straggler" : ""}`,
      age(worker.last_seen_s), age(worker.last_push_s), number(worker.rate), number(worker.last_sequence + 1),
      number(known.stalenesses.at(-1)), number(quantile(known.stalenesses, 0.95)), number(known.drops),
    ];
    return { key: worker.worker, kind: isSlow ? "straggler" : worker.is_open ? "" : "gone", cells };
  }

  /** Pushes a second, over the last ten seconds of asking; null until it is known. */
  rate({ worker, epoch, last_sequence: last }, now) {
    const seen = this.before.get(worker);
    if (seen === undefined || seen.epoch !== epoch) {
      this.before.set(worker, { epoch, points: [[now, last]] });
      return null;
    }
    seen.points.push([now, last]);
    while (seen.points.length > 2 && now - seen.points[0][0] > 10) seen.points.shift();
    const [since, first] = seen.points[0];
    return now > since ? (last - first) / (now - since) : null;
  }
}

function state(worker) {
  if (!worker.is_open) return "left";
  if (worker.is_waiting) return "waiting";
  return worker.is_sending ? "sending" : "here";
}
