"""Servers that receive bodies in each of the ways there are, and the pushes that are sent to them.

With the extension and without it (as on another ASGI server), on both event loops, with TLS and
without: the same bytes give the same answers and the same state.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from stepwell_core.layout import Layout, Tensor
from stepwell_server.counts import Counts
from stepwell_server.gate import Gate
from stepwell_server.http_protocol import StepwellProtocol
from stepwell_server.receiving import HTTP_EXTENSION
from stepwell_server.staging import Staging

from tests import servers
from tests.server.calls import LAYOUT, Worker, create, filled, packed, payload
from tests.server.connections import Caller, request

LARGE = Layout([Tensor("w", (1_250_000,), "float32")])  # 5 MB, more than sockets buffer
HEALTH = request("/healthz", method="GET")


class Connections:
    """Counts the connections of a server; its end of one is waited for, not slept for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.open, self._changed = 0, threading.Condition()
        made, lost = StepwellProtocol.connection_made, StepwellProtocol.connection_lost

        def on_made(protocol: StepwellProtocol, transport: asyncio.Transport) -> None:
            made(protocol, transport)
            self._add(1)

        def on_lost(protocol: StepwellProtocol, error: Exception | None) -> None:
            lost(protocol, error)
            protocol.loop.call_soon(protocol.loop.call_soon, self._add, -1)  # behind the handler

        monkeypatch.setattr(StepwellProtocol, "connection_made", on_made)
        monkeypatch.setattr(StepwellProtocol, "connection_lost", on_lost)

    def _add(self, count: int) -> None:
        with self._changed:
            self.open += count
            self._changed.notify_all()

    def wait_until_idle(self, caller: Caller) -> None:
        """Wait until all that were begun have been seen, and none is open but `Place.http`'s."""
        with caller.line() as line:  # they are accepted in their order
            line.send(HEALTH)
            assert line.answer().status == 200
        with self._changed:
            assert self._changed.wait_for(lambda: self.open == 1, servers.DEADLINE_S)


@dataclass
class Place:
    """A server and how to reach it."""

    caller: Caller
    http: httpx.Client
    connections: Connections
    staging: Staging
    counts: Counts

    def push(self, layout: Layout = LAYOUT, **fields: Any) -> Push:
        return Push(Worker(self.http, create(self.http, layout=layout, **fields), layout=layout))


class Push:
    """The next push of a worker as bytes."""

    def __init__(self, worker: Worker) -> None:
        self.worker, self.http, self.path = worker, worker.http, worker.path
        self.route = f"{worker.path}/gradients"

    def body(self, sequence: int = 0, value: float = 1.0, **fields: Any) -> bytes:
        self.worker.sequence = sequence
        gradient = payload(filled(value, self.worker.layout), self.worker.layout)
        return packed(self.worker.header(**fields), gradient)

    def version(self) -> int:
        return self.http.get(self.path).json()["version"]


@contextlib.contextmanager
def place_of(folder: Any, certificate: Any, way: tuple[str, str, str]) -> Iterator[Place]:
    """Run a server."""
    receives, loop, scheme = way
    cert, key = certificate if scheme == "tls" else (None, None)
    with pytest.MonkeyPatch.context() as patch:
        if receives == "streaming":
            inner = Gate.__call__

            async def without(gate: Any, scope: Any, receive: Any, send: Any) -> None:
                scope.get("extensions", {}).get(HTTP_EXTENSION, {}).pop("receive", None)
                await inner(gate, scope, receive, send)

            patch.setattr(Gate, "__call__", without)
        connections = Connections(patch)
        with servers.hosted(folder, loop=loop, tls_cert=cert, tls_key=key) as server:
            verify = ssl.create_default_context(cafile=str(cert)) if cert else True
            with servers.http(server.url, verify=verify) as http:
                http.get("/healthz")  # so that its connection is there for all tests
                application = server.application
                yield Place(
                    Caller(server.url, cert),
                    http,
                    connections,
                    application.staging,
                    application.counts,
                )


WAYS = [
    (receives, loop, scheme)
    for receives in ("into", "streaming")
    for loop in ("uvloop", "asyncio")
    for scheme in ("plain", "tls")
]


def wait_for(condition: Callable[[], bool]) -> None:
    """Wait until something is so in the server's thread, which has no event for it."""
    end = time.monotonic() + servers.DEADLINE_S
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.002)
