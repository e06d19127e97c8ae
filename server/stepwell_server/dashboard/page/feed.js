// What is known of one model: its history as far as the file has it, then each event as it happens.

import { call, events, modelPath, Problem } from "./api.js";
import { add, empty, POINTS, received, thinned } from "./series.js";

const MOST_EVENTS = 500;
const MOST_METRICS = 64; // as many as the history has; a worker may make up a name a step
const MOST_WAITING = 10_000; // events that come while the history is read
const METRIC = "metrics.";
const SAMPLE_MS = 50; // a model may make thousands of steps a second; a curve has room for 20
const RETRY_MS = [500, 1000, 2000];
const SILENCE_MS = 25_000; // the server says something every 15 s, or it is not there any more

/** The numbers of a step, by the names that the history has for them. */
function seriesOf(step) {
  const numbers = {
    learning_rate: step.learning_rate,
    staleness_max: step.staleness_max,
    staleness_mean: step.staleness_mean,
    contributors: step.workers.length,
  };
  for (const name of ["gradient_norm", "update_norm"]) numbers[name] = step[name];
  const said = new Map();
  for (const metrics of Object.values(step.metrics)) {
    for (const [name, value] of Object.entries(metrics)) {
      said.set(name, [...(said.get(name) ?? []), value]);
    }
  }
  for (const [name, values] of said) {
    numbers[`${METRIC}${name}`] = values.reduce((sum, value) => sum + value, 0) / values.length;
  }
  return numbers;
}

export class Feed {
  /** name: of the model. onEvent: called for what is no step and no drop. onLoad: after a load. */
  constructor(name, { onEvent = () => {}, onLoad = () => {} } = {}) {
    this.name = name;
    this.series = new Map();
    this.events = []; // oldest first
    this.version = null; // until the stream says it
    this.isLive = false;
    this.isDirty = true;
    this.leftOut = 0;
    this.onEvent = onEvent;
    this.onLoad = onLoad;
    this.last = 0; // the number of the newest event that is in here
    this.sampled = 0; // when the last step came into the curves
    this.pending = null; // the newest, if it did not
    this.known = null; // until when `refresh` has asked
  }

  /** Listen, in one stream however often this is called. */
  start() {
    this.stop();
    this.stopping = new AbortController();
    this.run(this.stopping.signal);
  }

  /** Listen no more; also one that never did. */
  stop() {
    this.stopping?.abort();
    this.isLive = false;
  }

  async run(signal) {
    for (let tries = 0; !signal.aborted; tries += 1) {
      try {
        await this.listen(signal, () => { tries = 0; });
      } catch (error) {
        if (signal.aborted) return;
        // Not ours any more: app.js, which asks for the list of models, says so.
        if (error instanceof Problem && [401, 403].includes(error.status)) return;
      }
      if (signal.aborted) return;
      this.isLive = false;
      await new Promise((resolve) => { setTimeout(resolve, RETRY_MS[Math.min(tries, RETRY_MS.length - 1)]); });
    }
  }

  /**
   * The stream first and then the history, so that nothing happens in between. A stream that is taken
   * up again goes on behind the last event, if it is of the same history and nothing was missed:
   * reading a long history takes the server seconds.
   */
  async listen(signal, onOpen) {
    const ending = new AbortController();
    const end = (reason) => ending.abort(reason);
    const both = AbortSignal.any([signal, ending.signal]);
    let waiting = null; // what comes before the history is there
    let silence = 0;
    const load = async () => {
      waiting = [];
      await this.load(both);
      for (const event of waiting) this.take(event);
      waiting = null;
    };
    const opened = () => {
      this.isLive = true;
      onOpen();
    };
    const after = this.last > 0 ? `?after=${this.last}` : "";
    let isOpen = false;
    try {
      for await (const { id, kind, data } of events(`${modelPath(this.name)}/events${after}`, both)) {
        clearTimeout(silence);
        silence = setTimeout(end, SILENCE_MS);
        const isOther = !isOpen && (this.last === 0 || id < this.last); // numbers never go back
        if (isOther || kind === "missed") load().then(opened).catch(end);
        else if (!isOpen) opened();
        isOpen = true;
        if (kind === "dropped") {
          this.last = 0;
          return;
        }
        if (data === null || kind === "missed") continue;
        if (waiting === null) this.take(data);
        else if (waiting.push(data) > MOST_WAITING) waiting.shift();
      }
    } catch (error) {
      throw ending.signal.reason ?? error;
    } finally {
      clearTimeout(silence);
      end();
    }
  }

  /** incarnation: of the model now. One that no event told of is that of another model of this name. */
  check(incarnation) {
    const isStrange = this.incarnation !== undefined && incarnation !== this.incarnation;
    if (isStrange && incarnation === this.doubted) {
      this.last = 0;
      this.incarnation = incarnation; // so that it is begun anew once
      this.start();
    }
    this.doubted = isStrange ? incarnation : undefined; // the event may be on its way
    this.incarnation ??= incarnation;
  }

  async load(signal) {
    const history = await call(`${modelPath(this.name)}/history?points=${POINTS}`, { signal });
    this.series = new Map(Object.entries(history.series).map(([name, columns]) => [name, received(columns)]));
    this.pending = null;
    this.version = null;
    this.incarnation = undefined;
    this.events = rows(history.events).slice(-MOST_EVENTS);
    this.leftOut = history.left_out + history.events.number.length - this.events.length;
    this.last = history.last;
    const times = this.series.get("learning_rate")?.time ?? [];
    this.known = Math.max(times.at(-1) ?? 0, this.events.at(-1)?.time ?? 0);
    this.isDirty = true;
    this.onLoad();
  }

  /** Without a stream: ask for what came since the last time, of the same history; once at a time. */
  refresh(incarnation) {
    this.refreshing ??= this.askForMore(incarnation).finally(() => { this.refreshing = undefined; });
    return this.refreshing;
  }

  async askForMore(incarnation) {
    if (this.incarnation !== incarnation || this.known === null) {
      await this.load();
      this.incarnation = incarnation;
      return;
    }
    const since = this.known + 1e-6;
    const { series } = await call(`${modelPath(this.name)}/history?points=${POINTS}&since=${since}&kinds=cut`);
    for (const [name, columns] of Object.entries(series)) {
      const more = received(columns);
      more.value.forEach((value, place) => {
        this.extend(name, more.version[place], more.time[place], value, more.mean[place], more.weight[place]);
      });
      this.known = Math.max(this.known, more.time.at(-1));
      this.isDirty = true;
    }
  }

  take(event) {
    if (event.number <= this.last) return; // the history had it
    this.last = event.number;
    this.version = event.version;
    this.incarnation = event.incarnation ?? this.incarnation;
    this.isDirty = true;
    if (event.kind === "step") {
      this.draw(event);
    } else if (event.kind !== "drop") {
      this.events.push(event);
      if (this.events.length > MOST_EVENTS) {
        this.events.shift();
        this.leftOut += 1;
      }
      this.onEvent(event);
    }
  }

  /** One step in a while, those that were measured, and the newest of all, once `flush` is called. */
  draw(step) {
    this.pending = step;
    const isDue = Math.abs(step.time - this.sampled) * 1000 >= SAMPLE_MS;
    if (isDue || step.gradient_norm !== null || step.update_norm !== null) this.flush();
  }

  flush() {
    const step = this.pending;
    if (step === null) return;
    this.pending = null;
    this.sampled = step.time;
    for (const [name, value] of Object.entries(seriesOf(step))) {
      if (Number.isFinite(value)) this.extend(name, step.version, step.time, value);
    }
  }

  extend(name, ...point) {
    let columns = this.series.get(name);
    if (columns === undefined) {
      const metrics = [...this.series.keys()].filter((one) => one.startsWith(METRIC));
      if (name.startsWith(METRIC) && metrics.length >= MOST_METRICS) return;
      columns = empty();
    }
    add(columns, ...point);
    this.series.set(name, columns.value.length > 2 * POINTS ? thinned(columns) : columns);
  }
}

/** Turn a history's columns of events into objects, as the stream has them. */
export function rows(columns) {
  return columns.number.map((number, place) => ({
    number, time: columns.time[place], kind: columns.kind[place], version: columns.version[place],
    ...columns.fields[place],
  }));
}
