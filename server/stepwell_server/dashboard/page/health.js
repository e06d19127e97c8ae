// The server itself: whether it is well, what it has room for, what it has cut off.

import { element, setText } from "./elements.js";
import { bytes, number } from "./shown.js";

export class Health {
  constructor(where) {
    this.list = element("dl", { class: "facts" });
    this.places = new Map();
    where.replaceChildren(element("h2", { id: "health-title" }, "Server"), this.list);
    where.hidden = false;
  }

  /** about: `GET /v1`; ready: `GET /readyz`; models: the list of them. */
  show(about, ready, models) {
    const { staging, counts } = about;
    this.fact("State", ready.status);
    this.fact("Version", `${about.stepwell}, protocol ${about.protocol}`);
    this.fact("Your role", about.role);
    this.fact("Durability", about.durability);
    this.fact("Models", `${number(models.length)}, ${bytes(models.reduce((sum, model) => sum + model.bytes, 0))}`);
    this.fact("Staging", `${bytes(staging.used_bytes)} of ${bytes(staging.budget_bytes)}`);
    this.fact("Journals", bytes(models.reduce((sum, model) => sum + model.durability.journal_bytes, 0)));
    const cuts = Object.entries(counts).filter(([, count]) => count > 0);
    this.fact("Cut off", cuts.map(([name, count]) => `${name.replaceAll("_", " ")} ${count}`).join(", ") || "nobody");
    const broken = models.filter((model) => model.durability.read_only !== null);
    this.fact("Read-only", broken.map((model) => `${model.name}: ${model.durability.read_only}`).join("; ") || "no model");
  }

  fact(name, text) {
    if (!this.places.has(name)) {
      const place = element("dd");
      this.places.set(name, place);
      this.list.append(element("div", {}, element("dt", {}, name), place));
    }
    setText(this.places.get(name), String(text));
  }
}
