"""What the dashboard costs a browser: `python -m benchmarks dashboard`, with Debian's Chromium.

One server in a process of its own, and one model with 100 workers who have made 100,000 steps, all
of them in its history. Then, in a real browser without a window:

- the page is opened in fresh profiles: the first paint of content, and the last curve drawn;
- a push is made: the time from its answer until the page shows its version;
- all workers push for some seconds while somebody scrolls and points at curves: the time from each
  frame to the next. A page is smooth if 95 of 100 frames take no more than two of a screen's.

Source: Web Vitals' "first contentful paint"; a screen of 60 Hz.
"""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import stepwell

from benchmarks.measure import Result, Row, within
from benchmarks.server import serving
from tests.browser import chromium, watched

MODEL = "digits"
WORKERS, STEPS = 100, 100_000
OPENINGS, PUSHES, SECONDS = 5, 9, 12.0
PUSHES_PER_S = 200.0

FRAME_MS = 1000 / 60
CLOCK_MS = 0.1
"""What a browser's clock counts in: two frames are 33.3 of them or 33.4."""

PAINT_BAR_MS, LIVE_BAR_MS = 1000.0, 2000.0

RECORD_FRAMES = """
window.frames_ms = [];
let last = performance.now();
const note = (now) => {
  window.frames_ms.push(now - last);
  last = now;
  requestAnimationFrame(note);
};
requestAnimationFrame(note);
"""
FIRST_PAINT = "performance.getEntriesByName('first-contentful-paint')[0].startTime"
NOW = "performance.now()"
VERSION = "document.querySelector('#tile-version').textContent"
SEEN = 4  # curves that the first screen has room for
GRADIENT = {"w": np.full(16, 0.01, np.float32)}


def run(workers: int = WORKERS, steps: int = STEPS, seconds: float = SECONDS) -> Result:
    """Measure everything."""
    with ExitStack() as stack:
        server = stack.enter_context(serving())
        client = stack.enter_context(stepwell.Client(server.url, transport="http"))
        sessions = _trained(stack, client, workers, steps)
        browser = stack.enter_context(chromium())
        who = f"{workers} workers, {steps:,} steps"
        rows, told = _openings(browser, server.url, who)
        with watched(browser, server.url) as screen:
            _open(screen.page, server.url)
            for more, ms in (
                _live(screen.page, sessions, who),
                _frames(screen, sessions, who, seconds),
            ):
                rows += more
                told |= ms
            screen.check()
    return Result(rows, {name: value / 1e3 for name, value in told.items()})


def _trained(
    stack: ExitStack, client: stepwell.Client, workers: int, steps: int
) -> list[stepwell.Worker]:
    """Return workers who have made so many steps together."""
    model = client.create_model(
        MODEL, {"w": np.zeros(16, np.float32)}, optimizer=stepwell.Adam(1e-3)
    )
    sessions = [stack.enter_context(model.worker(f"w{n:03}")) for n in range(workers)]
    for step in range(steps):
        _push(sessions[step % workers], step)
    return sessions


def _push(worker: stepwell.Worker, step: int) -> int:
    metrics = {"loss": 2.3 / (1 + step / 2_000), "accuracy": 1 - 0.9 / (1 + step / 2_000)}
    return worker.push(GRADIENT, metrics=metrics).version


def _open(page: Any, url: str) -> None:
    page.goto(f"{url}/#{MODEL}")
    for number in range(SEEN):
        page.locator("#curves .card").nth(number).locator(".main-svg").first.wait_for()
    page.locator("#tile-stream", has_text="live").wait_for()


def _openings(browser: Any, url: str, who: str) -> tuple[list[Row], dict[str, float]]:
    paints, wholes = [], []
    for _ in range(OPENINGS):
        with watched(browser, url) as screen:
            _open(screen.page, url)
            wholes.append(screen.page.evaluate(NOW))
            paints.append(screen.page.evaluate(FIRST_PAINT))
            screen.check()
    paint, whole = statistics.median(paints), statistics.median(wholes)
    detail = (
        f"the longest of {OPENINGS} {max(paints):.0f} ms; all curves in sight at {whole:.0f} ms"
    )
    row = within(f"{who}: first paint of the dashboard", paint, PAINT_BAR_MS, "ms", detail)
    return [row], {"paint": paint, "whole": whole}


def _live(
    page: Any, sessions: Sequence[stepwell.Worker], who: str
) -> tuple[list[Row], dict[str, float]]:
    delays = []
    for number in range(PUSHES):
        version = _push(sessions[number], STEPS + number)
        began = time.perf_counter()
        while int(page.evaluate(VERSION).replace(",", "")) < version:
            page.wait_for_timeout(2)
        delays.append(1e3 * (time.perf_counter() - began))
    longest, median = max(delays), statistics.median(delays)
    row = within(
        f"{who}: the longest from a push's answer until the page shows it",
        longest,
        LIVE_BAR_MS,
        "ms",
        f"median {median:.0f} ms of {PUSHES}",
    )
    return [row], {"live": median}


def _frames(
    screen: Any, sessions: Sequence[stepwell.Worker], who: str, seconds: float
) -> tuple[list[Row], dict[str, float]]:
    page = screen.page
    with _pushing(sessions) as counted:
        page.evaluate(RECORD_FRAMES)
        ends, turn = time.monotonic() + seconds, 0
        while time.monotonic() < ends:
            page.mouse.move(200 + 37 * turn % 900, 250 + 13 * turn % 300)
            page.mouse.wheel(0, 400 if turn // 20 % 2 == 0 else -400)
            page.wait_for_timeout(50)
            turn += 1
        frames = sorted(page.evaluate("window.frames_ms"))
    p95 = frames[int(0.95 * len(frames))]
    median = statistics.median(frames)
    rate, pushes = len(frames) / seconds, counted[0] / seconds
    row = within(
        f"{who}, {pushes:.0f} pushes/s: 95 of 100 frames take at most",
        p95,
        2 * FRAME_MS + CLOCK_MS,
        "ms",
        f"median {median:.1f} ms, longest {frames[-1]:.0f} ms, {rate:.0f} a second",
    )
    return [row], {"frame": median, "frame/p95": p95, "frame/longest": frames[-1]}


@contextmanager
def _pushing(sessions: Sequence[stepwell.Worker]) -> Iterator[list[int]]:
    """Let all workers push, one after the other; gives the count."""
    counted, is_over = [0], threading.Event()

    def push() -> None:
        while not is_over.wait(1 / PUSHES_PER_S):
            _push(sessions[counted[0] % len(sessions)], STEPS + counted[0])
            counted[0] += 1

    thread = threading.Thread(target=push)
    thread.start()
    try:
        yield counted
    finally:
        is_over.set()
        thread.join()
