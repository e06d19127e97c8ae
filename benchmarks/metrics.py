"""What the counting for `GET /metrics` costs a small push, against the same server without it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from functools import partial

import httpx
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from stepwell_core.push import Push, Staged
from stepwell_core.session import Result as PushResult
from stepwell_server.tallies import ModelTally, RequestTally
from stepwell_server.traffic import ROUTE, Traffic

from benchmarks import adam, ours
from benchmarks.measure import Result, medians_told, shown, us, within
from benchmarks.server import serving
from benchmarks.turns import median_s

SIZE = 1 << 10
"""Parameters, of 4 KiB."""

ROUNDS = 41
CALLS = 100
"""In one turn, of which the median counts."""

SERVERS = {"counted": "stepwell_server", "uncounted": "benchmarks.references.uncounted"}


def run(rounds: int = ROUNDS, calls: int = CALLS) -> Result:
    """Measure everything."""
    turns: dict[str, Callable[[], float]] = {}
    gradients = {ours.TENSOR: adam.gradient(SIZE)}
    with contextlib.ExitStack() as stack:
        for name, module in SERVERS.items():
            server = stack.enter_context(serving(module=module))
            start = {ours.TENSOR: adam.parameters(SIZE)}
            worker = stack.enter_context(ours.working(server.url, start, model="m"))
            ours.check(worker, gradients)
            turns[name] = partial(median_s, partial(worker.push, gradients), calls)
            if name == "counted":
                client = stack.enter_context(httpx.Client(base_url=server.url, trust_env=False))
                turns["scrape"] = partial(_scrape_s, client)
        seconds = medians_told(turns, rounds)
    with_it, without = seconds["counted"], seconds["uncounted"]
    rows = [
        # Without a bar: the noise of two servers is ten times what is looked for.
        shown(
            "4 KB push p50, against the same server that counts neither requests nor pushes",
            with_it / without,
            f"{us(with_it)} against {us(without)}",
        ),
        within("the counting of one push, alone", 1e6 * counting_s(), 5, "us"),
        within("one scrape of a server with one model", seconds["scrape"] * 1e3, 20, "ms"),
    ]
    return Result(rows, seconds)


def counting_s(calls: int = 2000) -> float:
    """Return the seconds that the counting itself takes: the least of many, so nobody disturbs."""
    push = Push("w0", 1, 0, "", gradient=None)  # type: ignore[arg-type]
    staged = Staged(((push, PushResult("applied", 1, 1)),), None, gradient=True)  # type: ignore[arg-type]
    tally, requests = ModelTally(), RequestTally()
    scope = {"type": "http", "method": "POST", ROUTE: "/v1/models/{model}/gradients"}

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body"})

    async def nothing(message: Message) -> None:
        pass

    async def least_s(app: ASGIApp) -> float:
        least = 1.0
        for _ in range(calls):
            began = time.perf_counter()
            await app(scope, None, nothing)  # type: ignore[arg-type]
            least = min(least, time.perf_counter() - began)
        return least

    async def counted(scope: Scope, receive: Receive, send: Send) -> None:
        began = time.perf_counter()
        tally.received(push.worker, 4 * SIZE)
        tally.committed(staged, staged.results, began)
        await around(scope, receive, send)

    around = Traffic(answer, requests)
    return asyncio.run(least_s(counted)) - asyncio.run(least_s(answer))


def _scrape_s(client: httpx.Client) -> float:
    began = time.perf_counter()
    answer = client.get("/metrics")
    seconds = time.perf_counter() - began
    if b"stepwell_pushes_total" not in answer.content:
        raise AssertionError(f"A scrape has the pushes. Received: {answer.status_code}")
    return seconds
