// What is known of one model: its history as far as the file has it, then each event as it happens.

import { call, events, modelPath, Problem } from "./api.js";
import { add, empty, POINTS, thinned } from "./series.js";

const MOST_EVENTS = 500;
const MOST_STALENESSES = 512; // of a worker, the newest; enough for a 95th percentile
const SAMPLE_MS = 50; // a model may make thousands of steps a second; a curve has room for 20
const RETRY_MS = [500, 1000, 2000, 5000, 10_000];

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
    numbers[`metrics.${name}`] = values.reduce((sum, value) => sum + value, 0) / values.length;
  }
  return numbers;
}

export class Feed {
  /** name: of the model. onEvent: called for what is no step and no drop. */
  constructor(name, onEvent = () => {}) {
    this.name = name;
    this.series = new Map();
    this.events = []; // oldest first
    this.workers = new Map(); // by name: {stalenesses, drops, pushes, time}
    this.version = null;
    this.isLive = false;
    this.isDirty = true;
    this.leftOut = 0;
    this.onEvent = onEvent;
    this.last = null; // the number of the last event
    this.sampled = 0; // when the last step came into the curves
    this.pending = null; // the newest, if it did not
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
        // Gone, or not ours any more: app.js, which asks for the list of models, says so.
        if (error instanceof Problem && [401, 403, 404].includes(error.status)) return;
      }
      this.isLive = false;
      await new Promise((resolve) => { setTimeout(resolve, RETRY_MS[Math.min(tries, 4)]); });
    }
  }

  /** The stream first and then the history, so that nothing happens in between. */
  async listen(signal, onOpen) {
    const after = this.last === null ? "" : `?after=${this.last}`;
    let isNew = this.last === null;
    for await (const { id, kind, data } of events(`${modelPath(this.name)}/events${after}`, signal)) {
      if (!this.isLive) {
        this.isLive = true;
        onOpen();
      }
      if (isNew || kind === "missed") {
        isNew = false;
        await this.load(signal);
      }
      if (kind === "dropped") {
        this.last = null;
        return;
      }
      if (id !== null) this.last = id;
      if (data !== null && kind !== "missed") this.take(data);
    }
  }

  async load(signal) {
    const path = `${modelPath(this.name)}/history?points=${POINTS}`;
    const [history, samples] = await Promise.all([
      call(path, { signal }),
      call(`${modelPath(this.name)}/history?points=4000&kinds=step&kinds=drop`, { signal }),
    ]);
    this.series = new Map(Object.entries(history.series));
    this.pending = null;
    this.events = rows(history.events).slice(-MOST_EVENTS);
    this.leftOut = history.left_out;
    this.workers = new Map();
    for (const sample of rows(samples.events)) this.count(sample);
    const times = this.series.get("learning_rate")?.time ?? [];
    this.known = Math.max(times.at(-1) ?? 0, this.events.at(-1)?.time ?? 0);
    this.isDirty = true;
  }

  /** Without a stream: ask for what came since the last time. */
  async refresh() {
    if (this.known === undefined) {
      await this.load();
      return;
    }
    const since = this.known + 1e-6;
    const { series } = await call(`${modelPath(this.name)}/history?points=${POINTS}&since=${since}&kinds=cut`);
    for (const [name, columns] of Object.entries(series)) {
      const all = this.series.get(name) ?? empty();
      columns.value.forEach((value, place) => add(all, columns.version[place], columns.time[place], value));
      this.series.set(name, all.value.length > 2 * POINTS ? thinned(all) : all);
      this.known = Math.max(this.known, columns.time.at(-1));
      this.isDirty = true;
    }
  }

  take(event) {
    this.version = event.version;
    this.isDirty = true;
    if (event.time <= this.known) return; // the history had it
    if (event.kind === "step" || event.kind === "drop") this.count(event);
    if (event.kind === "step") {
      this.draw(event);
    } else if (event.kind !== "drop") {
      this.events.push(event);
      if (this.events.length > MOST_EVENTS) this.events.shift();
      this.onEvent(event);
    }
  }

  /** One step in a while, and the newest of all, once `flush` is called. */
  draw(step) {
    this.pending = step;
    if ((step.time - this.sampled) * 1000 >= SAMPLE_MS) this.flush();
  }

  flush() {
    const step = this.pending;
    if (step === null) return;
    this.pending = null;
    this.sampled = step.time;
    for (const [name, value] of Object.entries(seriesOf(step))) {
      if (value === null || value === undefined) continue;
      let columns = this.series.get(name) ?? empty();
      add(columns, step.version, step.time, value);
      if (columns.value.length > 2 * POINTS) columns = thinned(columns);
      this.series.set(name, columns);
    }
  }

  count(sample) {
    for (const name of sample.kind === "drop" ? [sample.worker] : sample.workers) {
      const worker = this.workers.get(name) ?? { stalenesses: [], drops: 0 };
      this.workers.set(name, worker);
      if (sample.kind === "drop") {
        worker.drops += 1;
        continue;
      }
      worker.stalenesses.push(sample.staleness_max);
      if (worker.stalenesses.length > MOST_STALENESSES) worker.stalenesses.shift();
    }
  }
}

/** Turn a history's columns of events into objects, as the stream has them. */
function rows(columns) {
  return columns.number.map((number, place) => ({
    number, time: columns.time[place], kind: columns.kind[place], version: columns.version[place],
    ...columns.fields[place],
  }));
}
