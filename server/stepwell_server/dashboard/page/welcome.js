// What a server without models shows: the lines to paste.

import { token } from "./api.js";
import { act, element, notice } from "./elements.js";

function program() {
  const secret = token() === null ? "" : ', token="..."';
  return `import numpy as np, stepwell
client = stepwell.Client("${location.origin}"${secret})
model = client.create_model("mine", {"w": np.zeros(3, np.float32)}, optimizer=stepwell.Adam(1e-3))
with model.worker("w0") as worker:
    parameters = worker.push_pull({"w": worker.pull()["w"] - 1}, metrics={"loss": 1.0})
`;
}

export function welcome(where) {
  const copy = element("button", {
    type: "button",
    click: () => act(copy, async () => {
      if (navigator.clipboard === undefined) { // over HTTP from another machine
        getSelection().selectAllChildren(where.querySelector("code"));
        notice("The lines are selected: this browser lets a page copy over HTTPS alone. Copy them by hand.");
        return;
      }
      await navigator.clipboard.writeText(program());
      notice("Copied");
    }),
  }, "Copy");
  where.replaceChildren(
    element("h2", { id: "welcome-title" }, "No models yet"),
    element("p", {}, "Paste these five lines into Python, and the model is here:"),
    element("pre", { tabindex: "0" }, element("code", {}, program())),
    copy);
}
