// A model's checkpoints: write, verify, restore, download.

import { call, modelPath, send } from "./api.js";
import { act, confirmed, element, fillRows, notice, table } from "./elements.js";
import { bytes, number } from "./shown.js";

const HOUR_MS = 3_600_000; // reading a large one back takes long
const MOST_BYTES = 512e6; // a page holds a download in memory; the command line does not
const LOOK_MS = 1000;
const FILES = ["parameters.safetensors", "optimizer.safetensors", "manifest.json"];

export class Checkpoints {
  constructor(model, mayChange) {
    this.model = model;
    this.path = `${modelPath(model)}/checkpoints`;
    this.mayChange = mayChange;
    this.table = table("Checkpoints", ["checkpoint", "version", "made", "size", "state", "to do"]);
    this.progress = element("p", { class: "note", role: "status" });
    const write = element("button", { type: "button", id: "write", click: () => act(write, () => this.write()) }, "Write one now");
    this.whole = element("div", {}, mayChange ? element("div", { class: "tools" }, write) : null, this.progress, this.table.whole);
    this.verified = new Map(); // by id: what was found, and when
  }

  async load() {
    clearTimeout(this.looking);
    const { checkpoints, progress } = await call(this.path);
    if (progress !== null && this.whole.isConnected) this.lookAgain();
    const doing = { writing: "written", verifying: "verified", reading: "read" };
    this.progress.textContent = progress === null ? ""
      : `One is being ${doing[progress.phase] ?? progress.phase}: ${bytes(progress.done_bytes)} of ${bytes(progress.bytes)}`;
    fillRows(this.table.body, [...checkpoints].reverse().map((checkpoint) => ({
      key: checkpoint.id,
      kind: checkpoint.invalid ? "straggler" : "",
      cells: [
        checkpoint.id, number(checkpoint.version),
        checkpoint.created ? new Date(checkpoint.created).toLocaleString() : "–", bytes(checkpoint.bytes),
        this.state(checkpoint), this.buttons(checkpoint),
      ],
    })));
  }

  /** While one is written, say how far it is; what cannot be asked is asked at the next event. */
  lookAgain() {
    clearTimeout(this.looking);
    this.looking = setTimeout(() => this.load().catch(() => {}), LOOK_MS);
  }

  state({ id, invalid, pinned }) {
    if (invalid) return `damaged: ${invalid}`;
    return [this.verified.get(id), pinned ? "pinned" : ""].filter(Boolean).join(", ") || "whole when written";
  }

  buttons(checkpoint) {
    const { id } = checkpoint;
    const button = (name, doing, kind = "") => {
      const made = element("button", {
        type: "button", class: kind, "data-action": name.toLowerCase(), "aria-label": `${name} ${id}`,
        click: () => act(made, () => doing(checkpoint)),
      }, name);
      return made;
    };
    return element("div", { class: "tools" },
      this.mayChange ? button("Verify", () => this.verify(id)) : null,
      this.mayChange ? button("Restore", () => this.restore(id), "danger") : null,
      button("Download", (one) => this.download(one)));
  }

  async write() {
    this.lookAgain();
    const { id } = await call(this.path, { method: "POST", timeoutMs: HOUR_MS });
    notice(`Checkpoint ${id} is written`);
    await this.load();
  }

  async verify(id) {
    const now = () => new Date().toLocaleTimeString();
    try {
      await call(`${this.path}/${id}/verify`, { method: "POST", timeoutMs: HOUR_MS });
    } catch (error) {
      if (error.code === "checkpoint_invalid") this.verified.set(id, `found damaged at ${now()}`);
      this.load().catch(() => {});
      throw error;
    }
    this.verified.set(id, `verified at ${now()}`);
    notice(`Checkpoint ${id} is whole: every tensor has its hash`);
    await this.load();
  }

  async restore(id) {
    const text = `${this.model} goes back to ${id}. What was trained since is in no version any more, `
      + "and workers have to pull again. A checkpoint of now is not written first.";
    if (!await confirmed("Restore this checkpoint?", text, "Restore")) return;
    const { version } = await call(`${this.path}/${id}/restore`, { method: "POST", timeoutMs: HOUR_MS });
    notice(`${this.model} is as it was in ${id}, as version ${version}`);
    await this.load();
  }

  async download(checkpoint) {
    if (checkpoint.bytes > MOST_BYTES) {
      throw new Error(`${bytes(checkpoint.bytes)} are too much for a page. Use `
        + `stepwell checkpoint export ${this.model} ${checkpoint.id} FOLDER`);
    }
    for (const file of FILES) {
      // With the token in a header, which a plain link could not have.
      const answer = await send(`${this.path}/${checkpoint.id}/files/${file}`, { timeoutMs: HOUR_MS });
      const address = URL.createObjectURL(await answer.blob());
      element("a", { href: address, download: `${this.model}-${checkpoint.id}-${file}` }).click();
      setTimeout(() => URL.revokeObjectURL(address), 60_000);
    }
  }
}
