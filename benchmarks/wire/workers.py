"""Several workers at once, async, 10 MB a push, against as many raw connections into one process.

All push to one model for a second at a time; ours makes an Adam step of each push. The rate is that
of all workers together, and no worker may get less than half of what the luckiest one gets.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import stepwell

from benchmarks.measure import Result, Row, at_least, shown
from benchmarks.programs import Program
from benchmarks.server import serving
from benchmarks.wire.pusher import MODEL

SIZE = 2_500_000
COUNTS = (1, 2, 4, 8)
ROUNDS = 5
WINDOW_S = 1.0
LEAD_S = 0.05  # to tell all workers before the first one begins


@dataclass(frozen=True)
class Window:
    """What some workers got done at the same time.

    Attributes:
        pushes: How many, all together.
        per_s: Of them.
        share: What the slowest got done, of what the fastest did.
    """

    pushes: int
    per_s: float
    share: float


def run(
    size: int = SIZE,
    counts: Sequence[int] = COUNTS,
    rounds: int = ROUNDS,
    window_s: float = WINDOW_S,
) -> Result:
    """Measure everything."""
    found: dict[tuple[str, int], list[Window]] = {}
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(serving())
        raw = stack.enter_context(Program("references.raw_socket"))
        workers = {
            kind: [
                stack.enter_context(Program("wire.pusher", kind, size, f"worker-{n}", address))
                for n in range(max(counts))
            ]
            for kind, address in (("ours", server.url), ("raw", raw.facts["port"]))
        }
        for count in counts:
            for _ in range(1 + rounds):  # the first to warm up
                for kind, started in workers.items():
                    window = _window(started[:count], window_s)
                    found.setdefault((kind, count), []).append(window)
        _check_steps(
            server.url, [w for key, windows in found.items() if "ours" in key for w in windows]
        )
    rows = [row for n in counts for row in _rows(n, size, found, is_last=n == counts[-1])]
    seconds = {f"{kind}, {n} workers": 1 / _rate(windows) for (kind, n), windows in found.items()}
    return Result(rows, seconds)


def _window(workers: Sequence[Program], window_s: float) -> Window:
    begins = time.monotonic() + LEAD_S
    for worker in workers:
        worker.tell("push", begins=begins, ends=begins + window_s)
    answers = [worker.hear() for worker in workers]
    rates = [answer["pushes"] / answer["seconds"] for answer in answers]
    return Window(sum(a["pushes"] for a in answers), sum(rates), min(rates) / max(rates))


def _check_steps(url: str, windows: Sequence[Window]) -> None:
    """Check that each push made a step."""
    with stepwell.Client(url) as client:
        version = client.model(MODEL).describe()["version"]
    pushes = sum(window.pushes for window in windows)
    if version != pushes:
        raise AssertionError(f"{pushes} pushes make as many steps. Received: {version}")


def _rate(windows: Sequence[Window]) -> float:
    return statistics.median(window.per_s for window in windows[1:])


def _rows(
    count: int, size: int, found: dict[tuple[str, int], list[Window]], *, is_last: bool
) -> list[Row]:
    """Return the figures for a number of workers; the bars are for the largest number."""
    ours, raw = found["ours", count], found["raw", count]
    ratio = _rate(ours) / _rate(raw)
    share = statistics.median(window.share for window in ours[1:])
    bytes_per_push = 4 * size
    detail = " against ".join(f"{_rate(w) * bytes_per_push / 1e9:.2f} GB/s" for w in (ours, raw))
    who = "1 worker" if count == 1 else f"{count} workers at once"
    what = f"{who}, 10 MB a push, async: rate of all, against raw sockets"
    fairness = f"{who}: the slowest's rate, against the fastest's"
    if not is_last:
        return [shown(what, ratio, f"{detail}; slowest {share:.0%} of fastest")]
    return [
        at_least(what, ratio, 0.7, detail),
        at_least(fairness, share, 0.5),
    ]
