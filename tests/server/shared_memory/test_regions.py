"""Regions for gradients: when they are made, and when their memory comes back."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator

import numpy as np
import pytest
from stepwell_core.layout import Layout, Tensor
from stepwell_server.shared_memory import ConnectionMemory, Region, connection

from tests import servers
from tests.server import calls
from tests.server.places import wait_for
from tests.server.shared_memory.neighbour import Neighbour

SMALL = Layout([Tensor("w", (1_000,), "float32")])
LARGE = Layout([Tensor("w", (300_000,), "float32")])  # more than a short step may have


@pytest.fixture
def without_collector() -> Iterator[None]:
    """What is freed here is freed by the last reference, and not some time later."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("without_collector")
@pytest.mark.parametrize("layout", [SMALL, LARGE], ids=["inline", "lane"])
def test_a_refused_gradient_in_memory_leaves_nothing_behind(layout, tmp_path):
    """An error knows the frames that it came through; none of them keeps the region alive."""
    with servers.hosted(tmp_path) as server, servers.http(server.url) as http:
        path, staging = calls.create(http, layout=layout), server.application.staging
        worker = calls.Worker(http, path, layout=layout)
        neighbour = Neighbour(server.application.memory_socket)
        for _ in range(3):
            neighbour.take_region(path).view(np.float32)[:] = np.nan
            answer = neighbour.push(worker)
            assert (answer.status, answer.fields["code"]) == (422, "nonfinite_gradient")

        wait_for(lambda: staging.leases == 1)
        neighbour.close()
        wait_for(lambda: staging.leases == 0)

        assert staging.used_bytes == 0


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_others_are_answered_while_a_region_is_made_and_who_has_gone_gets_none(
    loop, tmp_path, monkeypatch
):
    """A region of gigabytes takes a second; its bytes are back when there is nobody to have it."""
    begun, go, closed = threading.Event(), threading.Event(), threading.Event()
    close = ConnectionMemory.close

    def slow(nbytes: int, *, is_writable_elsewhere: bool) -> Region:
        begun.set()
        assert go.wait(servers.DEADLINE_S)
        return Region(nbytes, is_writable_elsewhere=is_writable_elsewhere)

    def close_and_say_so(memory: ConnectionMemory) -> None:
        close(memory)
        closed.set()

    monkeypatch.setattr(connection, "Region", slow)
    monkeypatch.setattr(ConnectionMemory, "close", close_and_say_so)
    with servers.hosted(tmp_path, loop=loop) as server, servers.http(server.url) as http:
        path, staging = calls.create(http, layout=LARGE), server.application.staging
        neighbour = Neighbour(server.application.memory_socket)
        neighbour.ask("GET", "/healthz")  # to connect
        neighbour.wire.sendall(
            f"POST {path}/memory/gradients HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
        )
        assert begun.wait(servers.DEADLINE_S)

        assert http.get("/healthz", timeout=5).status_code == 200
        assert staging.leases == 1
        neighbour.close()
        assert closed.wait(servers.DEADLINE_S)
        go.set()

        wait_for(lambda: staging.leases == 0)
