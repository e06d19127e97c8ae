// Begins: asks who we are, lists the models, shows one of them, and repaints while things happen.

import { call, forget, modelPath, NoAnswer, Problem, remember, storage, token } from "./api.js";
import { Charts } from "./charts.js";
import { Checkpoints } from "./checkpoints.js";
import { byId, element, notice, section, setText } from "./elements.js";
import { Feed } from "./feed.js";
import { Health } from "./health.js";
import { Hyperparameters } from "./hyperparameters.js";
import { bytes, number } from "./shown.js";
import { Timeline } from "./timeline.js";
import { welcome } from "./welcome.js";
import { Workers } from "./workers.js";

const ASK_MS = 1500; // what the stream does not say: states of workers, the server's health
const PATIENCE_MS = 5000; // with an answer; a server that is stopped or out of reach gives none
const PAINT_MS = 500;
const DRAW_MS = 1000; // of curves: each takes longer than a frame
const LIST_MS = 10_000; // checkpoints that are deleted or pinned are no event
const MOST_COMPARED = 3; // a browser has six connections to a server, and a stream keeps one

/** The page of one model. */
class ModelPage {
  constructor(name, role) {
    this.name = name;
    this.path = modelPath(name);
    this.feed = new Feed(name, { onEvent: (event) => this.happened(event), onLoad: () => this.reload() });
    this.compared = new Map();
    this.charts = new Charts();
    this.workers = new Workers();
    this.timeline = new Timeline();
    this.hyperparameters = new Hyperparameters(name, role === "admin");
    this.checkpoints = new Checkpoints(name, role === "admin");
    this.tiles = new Map();
    this.listed = performance.now(); // when the checkpoints were
    this.facts = element("dl", { class: "facts tiles" });
    this.choice = element("div", { class: "controls", id: "compare" });
    byId("model").replaceChildren(
      section("summary", name, this.facts),
      section("curves-section", "Curves", this.choice, this.charts.whole),
      section("workers", "Workers", this.workers.whole),
      section("timeline", "Timeline", this.timeline.whole),
      section("hyperparameters", "Hyperparameters", this.hyperparameters.whole),
      section("checkpoints", "Checkpoints", this.checkpoints.whole));
    byId("model").hidden = false;
    if (!document.hidden) this.feed.start(); // else when somebody looks
    for (const name of ["Version", "Pushes", "Workers", "Staleness", "Gradients", "Mode", "Stream", "Model"]) {
      this.tile(name, "–");
    }
    this.drawn = -Infinity;
    this.painting = setInterval(() => this.paint(), PAINT_MS);
    this.charts.show([this.feed]);
  }

  close() {
    clearInterval(this.painting);
    this.feed.stop();
    this.charts.close();
  }

  pause() {
    this.feed.stop();
  }

  resume() {
    this.feed.start();
  }

  reload() {
    this.hyperparameters.load().catch(failed);
    this.list();
  }

  list() {
    this.listed = performance.now();
    this.checkpoints.load().catch(failed);
  }

  happened({ kind }) {
    if (kind === "checkpoint" || kind === "cut") this.list();
    if (kind === "hyperparameters" || kind === "cut") this.hyperparameters.load().catch(failed);
  }

  /** Other models whose curves are drawn beside ours. */
  offer(names) {
    const others = names.filter((name) => name !== this.name);
    const shown = [...this.choice.querySelectorAll("input")].map((box) => box.value);
    if (shown.join("\n") === others.join("\n")) return;
    this.choice.replaceChildren(...(others.length ? ["Compare with "] : []), ...others.map((name) =>
      element("label", {}, element("input", {
        type: "checkbox", value: name, checked: this.compared.has(name),
        change: (event) => this.compare(name, event.target),
      }), ` ${name}`)));
    const gone = [...this.compared.keys()].filter((name) => !others.includes(name));
    for (const name of gone) this.compared.delete(name);
    if (gone.length > 0) this.charts.show([this.feed, ...this.compared.values()]);
  }

  compare(name, box) {
    if (!box.checked) {
      this.compared.delete(name);
    } else if (this.compared.size === MOST_COMPARED) {
      box.checked = false;
      notice(`${MOST_COMPARED} models beside this one are the most that one can tell apart.`);
    } else {
      this.compared.set(name, new Feed(name));
      this.askCompared().catch(failed);
    }
    this.charts.show([this.feed, ...this.compared.values()]);
  }

  /** They are asked for again and again: a stream each would take the connections of other tabs. */
  async askCompared() {
    for (const feed of [...this.compared.values()]) {
      try {
        await feed.refresh(this.incarnations.get(feed.name));
      } catch (error) {
        if (!(error instanceof Problem && error.status === 404)) throw error;
        // Deleted a moment ago: the next list of models is without it.
      }
    }
  }

  async ask(models) {
    const model = models.find(({ name }) => name === this.name);
    this.model = model;
    this.feed.check(model.incarnation);
    this.incarnations = new Map(models.map(({ name, incarnation }) => [name, incarnation]));
    if (performance.now() - this.listed > LIST_MS) this.list();
    this.offer(models.map(({ name }) => name));
    const [{ workers }] = await Promise.all([call(`${this.path}/workers`, { timeoutMs: PATIENCE_MS }), this.askCompared()]);
    const open = this.workers.show(workers, performance.now() / 1000);
    const sum = (name) => open.reduce((all, worker) => all + (worker[name] ?? 0), 0);
    this.tile("Workers", `${number(open.length)} open`);
    this.tile("Pushes", `${number(sum("rate"))} /s`);
    this.tile("Gradients", `${bytes(sum("byteRate"))}/s`);
    this.tile("Model", `${number(model.parameters)} parameters, ${bytes(model.bytes)}`);
    this.tile("Mode", model.consistency.mode);
  }

  paint() {
    const { feed } = this;
    const version = (feed.isLive ? feed.version : null) ?? this.model?.version;
    if (version !== undefined) this.tile("Version", number(version));
    this.tile("Stream", feed.isLive && !isAway ? "live" : "reconnecting");
    const isDirty = [feed, ...this.compared.values()].some((one) => one.isDirty);
    const now = performance.now();
    if (!isDirty || now - this.drawn < DRAW_MS - PAINT_MS / 2) return;
    this.drawn = now;
    feed.flush();
    for (const one of [feed, ...this.compared.values()]) one.isDirty = false;
    this.tile("Staleness", number(feed.series.get("staleness_mean")?.value.at(-1)));
    this.charts.redraw();
    this.timeline.show(feed);
  }

  tile(name, text) {
    if (!this.tiles.has(name)) {
      const place = element("dd", { id: `tile-${name.toLowerCase()}` });
      this.tiles.set(name, place);
      this.facts.append(element("div", {}, element("dt", {}, name), place));
    }
    setText(this.tiles.get(name), text);
  }
}

let page = null;
let health = null;
let asking = 0;
let isAway = false; // since the last time that we asked

function failed(error) {
  if (error instanceof Problem && error.status === 401) signIn(error);
  else if (error.name !== "AbortError") notice(error.message, { failed: true });
}

function signIn(refusal) {
  clearTimeout(asking);
  if (refusal.secret !== token()) { // another one was given meanwhile
    asking = setTimeout(ask, ASK_MS);
    return;
  }
  leave();
  if (token() !== null) notice("The server does not know this token, or not any more.", { failed: true });
  forget();
  byId("health").hidden = true;
  byId("welcome").hidden = true;
  byId("sign-in").hidden = false;
  byId("sign-out").hidden = true;
  byId("models").replaceChildren();
  setText(byId("server-state"), "needs a token");
  byId("token").focus();
}

function leave() {
  page?.close();
  page = null;
  document.title = "Stepwell";
  byId("model").hidden = true;
}

/** The model that the address names, else the one that is shown, else the first one. */
function wanted(models) {
  const names = models.map(({ name }) => name);
  return [location.hash.slice(1), page?.name, ...names].find((name) => names.includes(name));
}

function listModels(models, chosen) {
  const where = byId("models");
  const names = models.map(({ name }) => name);
  const mark = JSON.stringify([names, chosen]);
  if (where.dataset.mark === mark) return;
  where.dataset.mark = mark;
  where.replaceChildren(...names.map((name) => element("a", {
    href: `#${name}`, "aria-current": name === chosen ? "page" : null,
  }, name)));
}

/** Ask for everything that is no event, and show it; again after a while. */
async function ask() {
  clearTimeout(asking);
  try {
    const [about, ready, { models }] = await Promise.all(
      ["/v1", "/readyz", "/v1/models"].map((path) => call(path, { timeoutMs: PATIENCE_MS })));
    if (isAway) notice("");
    isAway = false;
    byId("sign-in").hidden = true;
    byId("sign-out").hidden = token() === null;
    health ??= new Health(byId("health"));
    byId("health").hidden = false;
    health.show(about, ready, models);
    setText(byId("server-state"), ready.status);
    byId("server-state").className = `state ${ready.status}`;
    await showModel(models, about.role);
  } catch (error) {
    if (error instanceof Problem && error.status === 401) {
      signIn(error);
      return;
    }
    isAway = true;
    const isStarting = error instanceof Problem && error.status === 503;
    setText(byId("server-state"), isStarting ? "not ready" : error instanceof Problem ? `error ${error.status}` : "no answer");
    byId("server-state").className = "state failed";
    if (!(error instanceof Problem || error instanceof NoAnswer)) throw error; // ours: the console says so
  } finally {
    if (!document.hidden && byId("sign-in").hidden) {
      clearTimeout(asking);
      asking = setTimeout(ask, ASK_MS);
    }
  }
}

async function showModel(models, role) {
  const name = wanted(models);
  listModels(models, name);
  byId("welcome").hidden = models.length > 0;
  if (models.length === 0) {
    if (!byId("welcome").firstChild) welcome(byId("welcome"));
    leave();
    return;
  }
  if (page?.name !== name) {
    const isGone = page !== null && models.every((model) => model.name !== page.name);
    if (isGone) notice(`The model ${page.name} is not on this server any more. This is ${name}.`);
    leave();
    page = new ModelPage(name, role);
    document.title = `${name} – Stepwell`;
  }
  await page.ask(models);
}

function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  setText(byId("theme"), `Theme: ${theme}`);
  page?.charts.redraw();
}

function begin() {
  const themes = ["auto", "light", "dark"];
  const kept = storage("localStorage");
  setTheme(kept.getItem("stepwell.theme") ?? "auto");
  byId("theme").addEventListener("click", () => {
    const next = themes[(themes.indexOf(document.documentElement.dataset.theme) + 1) % themes.length];
    kept.setItem("stepwell.theme", next);
    setTheme(next);
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => page?.charts.redraw());
  byId("token-form").addEventListener("submit", (event) => {
    event.preventDefault();
    const secret = byId("token").value.trim();
    byId("token").value = "";
    if (!/^[!-~]+$/.test(secret)) { // a header cannot have it
      notice("That is no token: one is sw_, its role, and letters and digits.", { failed: true });
      return;
    }
    remember(secret);
    notice("");
    ask();
  });
  byId("sign-out").addEventListener("click", () => {
    forget();
    location.reload();
  });
  addEventListener("hashchange", ask);
  // A tab that nobody sees asks for nothing, and lets go of its connection.
  document.addEventListener("visibilitychange", () => {
    if (document.hidden) page?.pause();
    else {
      page?.resume();
      ask();
    }
  });
  ask();
}

begin();
