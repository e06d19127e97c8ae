"""What the tests of the dashboard do: train a model, and look at its page."""

from __future__ import annotations

from typing import Any

import httpx
import numpy as np
import stepwell

from tests.browser import Watched

SIZE = 1000


def train(url: str, name: str, steps: int, token: str | None = None) -> None:
    """Make a model and push to it from two workers, who stay."""
    start = {"w": np.zeros(SIZE, np.float32)}
    random = np.random.default_rng(0)
    with stepwell.Client(url, token=token) as client:
        model = client.create_model(name, start, optimizer=stepwell.Adam(1e-3))
        for worker in [model.worker("w0"), model.worker("w1")]:
            worker.pull()
            for step in range(steps):
                gradient = random.normal(size=SIZE).astype(np.float32)
                worker.push_pull({"w": gradient}, metrics={"loss": 1 / (step + 1)})


def show(screen: Watched, name: str) -> Any:
    """Open the page of a model and wait until its curves are drawn."""
    screen.page.goto(f"{screen.url}/#{name}")
    screen.page.locator("#curves .main-svg").first.wait_for()
    return screen.page


def optimizer(url: str, name: str) -> dict[str, Any]:
    """Return the hyperparameters as they are on the server."""
    config = httpx.get(f"{url}/v1/models/{name}/optimizer").json()["config"]
    return dict(config)


def wait_for_text(page: Any, selector: str, text: str) -> None:
    """Wait until a text is there."""
    page.locator(selector).filter(has_text=text).first.wait_for()
