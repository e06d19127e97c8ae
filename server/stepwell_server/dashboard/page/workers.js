// Who trains: states, staleness, bytes, drops, and who holds the others up.

import { element, fillRows, setText, table } from "./elements.js";
import { age, bytes, number } from "./shown.js";
import { middle } from "./series.js";

const SLOW = 0.5; // of the pushes a second that the middle worker makes
const WINDOW_S = 10; // over which rates are
const LOOKS = 6; // at which a worker may be the one that the others wait for,
const HELD = 4; // and so many of them mark it
const MOST_GONE = 50; // rows of workers who left; spot machines leave thousands
const COLUMNS = [
  "worker", "state", "last seen", "last push", "pushes/s", "MB/s", "pushes", "staleness", "p95", "drops",
];

export class Workers {
  constructor() {
    this.table = table("Workers", COLUMNS);
    this.note = element("p", { class: "note" });
    this.whole = element("div", {}, this.table.whole, this.note);
    this.before = new Map();
  }

  /** workers: as `GET .../workers` says, at a time in seconds. Returns the open ones, with their rates. */
  show(workers, now) {
    const open = workers.filter((worker) => worker.is_open);
    const gone = workers.filter((worker) => !worker.is_open);
    this.before = new Map(open.map((worker) => [worker.worker, this.seen(worker, now)]));
    const all = [...open, ...gone.slice(-MOST_GONE)].map((worker) => ({ ...worker, ...rates(this.before.get(worker.worker)) }));
    const slow = this.stragglers(all.filter((worker) => worker.is_open));
    all.sort((a, b) => Number(b.is_open) - Number(a.is_open) || a.worker.localeCompare(b.worker, "en", { numeric: true }));
    this.table.whole.hidden = all.length === 0;
    fillRows(this.table.body, all.map((worker) => this.row(worker, slow.has(worker.worker))));
    setText(this.note, workers.length === 0 ? "No worker has joined yet."
      : "Staleness, drops and MB/s are counted since the server started."
        + (gone.length > MOST_GONE ? ` ${number(gone.length - MOST_GONE)} more workers left before.` : ""));
    return all.filter((worker) => worker.is_open);
  }

  row(worker, isSlow) {
    const cells = [
      worker.worker,
      `${state(worker)}${isSlow ? " · straggler" : ""}`,
      age(worker.last_seen_s), age(worker.last_push_s),
      number(worker.rate), megabytes(worker.byteRate), number(worker.last_sequence + 1),
      number(worker.staleness), number(worker.staleness_p95), number(worker.drops),
    ];
    return { key: worker.worker, kind: isSlow ? "straggler" : worker.is_open ? "" : "gone", cells };
  }

  /** What was seen of a worker's session in the last seconds. */
  seen({ worker, epoch, last_sequence: last, received_bytes: received = 0 }, now) {
    const known = this.before.get(worker);
    const before = known?.epoch === epoch && known.points.at(-1)[1] <= last && known.points.at(-1)[2] <= received
      ? known : { epoch, points: [], held: [] };
    const points = [...before.points, [now, last, received]];
    while (points.length > 2 && now - points[0][0] > WINDOW_S) points.shift();
    return { ...before, points };
  }

  /**
   * Return the names of those who are much slower than the middle worker, or whom most others were
   * seen to wait for again and again: where there is a barrier all are equally fast.
   */
  stragglers(open) {
    const waiting = open.filter((worker) => worker.is_waiting).length;
    const rest = open.length - waiting;
    for (const worker of open) {
      const { held } = this.before.get(worker.worker);
      held.push(!worker.is_waiting && waiting >= rest);
      if (held.length > LOOKS) held.shift();
    }
    const usual = middle(open.map(({ rate }) => rate).filter((rate) => rate !== null));
    return new Set(open.filter(({ worker, rate }) => (rate !== null && rate < SLOW * usual)
      || this.before.get(worker).held.filter(Boolean).length >= HELD).map(({ worker }) => worker));
  }
}

/** Pushes and bytes a second; null until they are known. */
function rates(seen) {
  const [[since, first, from], [now, last, to]] = [seen?.points[0] ?? [], seen?.points.at(-1) ?? []];
  if (!(now > since)) return { rate: null, byteRate: null };
  return { rate: (last - first) / (now - since), byteRate: (to - from) / (now - since) };
}

const megabytes = (rate) => (rate === null ? "–" : number(rate / 1e6));

function state(worker) {
  if (!worker.is_open) return "left";
  if (worker.is_waiting) return "waiting";
  return worker.is_sending ? "sending" : "here";
}
