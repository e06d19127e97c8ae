"""Bodies that stall, trickle or do not come before a stop; `places.py` has the ways they come."""

from __future__ import annotations

import contextlib
import ssl
import threading
import time
from concurrent.futures import wait

import pytest
from stepwell_server import deadlines

from tests import servers
from tests.server.calls import Worker, create, filled, image, packed, payload
from tests.server.connections import Caller, chunked, request
from tests.server.places import LARGE, Push, wait_for
from tests.server.routes.test_workers import waiting_push

pytestmark = pytest.mark.usefixtures("nothing_is_logged")


def test_a_body_that_stalls_is_408_and_the_last_of_its_connection(place, monkeypatch):
    """Before its header, in it, in its payload, and in a chunk."""
    monkeypatch.setattr(deadlines, "BODY_WINDOW_S", 0.1)
    push = place.push(LARGE)
    data, pieces = request(push.route, push.body()), chunked(push.route, push.body(), 9_999)
    head = data.index(b"\r\n\r\n") + 4
    before = image(place.http, push.path)
    for begin in (data[:head], data[: head + 9], data[:-1], pieces[:2_000_000]):
        with place.caller.line() as line:
            line.send(begin)
            answer = line.answer()

            answer.problem(408, "body_too_slow")
            assert answer.headers["connection"] == "close"
            assert line.is_closed()
    assert image(place.http, push.path) == before


@pytest.mark.parametrize("how", ["length", "chunks"])
def test_a_body_that_stands_still_delays_a_step_by_its_workers_lease(http, pool, server, how):
    """Not by the longer time that a body may stall; its sender is told that its session ended."""
    mode = {"mode": "sync", "workers": 2, "lease_s": 0.6}
    path = create(http, values=filled(0.0), consistency=mode)
    stopped, lives = Worker(http, path, "stopped"), Worker(http, path, "lives")
    body = packed(stopped.header(), payload(filled(1.0)))
    route = f"{path}/gradients"
    whole = request(route, body) if how == "length" else chunked(route, body, 90)
    with Caller(server.url).line() as line:
        line.send(whole[:-9])
        began = time.monotonic()
        waits = pool.submit(lives.try_push)
        while not waits.done():
            assert lives.heartbeat().status_code == 200
            wait([waits], timeout=0.05)
        took_s = time.monotonic() - began

        assert waits.result().json()["outcome"] == "applied"
        assert took_s < 0.6 * deadlines.BODY_WINDOW_S
        line.answer().problem(409, "session_expired")
        assert line.is_closed()


def test_a_body_of_a_session_that_was_fenced_makes_room_for_the_next_one(http, server):
    """Its worker was started again, and its old connection does not know of it yet."""
    path = create(http, consistency={"mode": "sync", "workers": 1})
    old = Worker(http, path)
    with Caller(server.url).line() as line:
        line.send(request(f"{path}/gradients", packed(old.header(), bytes(80)))[:-9])
        wait_for(lambda: is_sending(http, path, "w0"))
        began = time.monotonic()

        assert Worker(http, path).push()["outcome"] == "applied"

        assert time.monotonic() - began < 0.6 * deadlines.BODY_WINDOW_S
        line.answer().problem(409, "fenced")
        assert line.is_closed()


def test_a_step_of_a_quorum_does_not_wait_for_the_body_of_a_straggler(http, pool, server):
    """That is what the others are there for: each of the workers has a place to send to."""
    path = create(http, consistency={"mode": "quorum", "workers": 3, "quorum": 2})
    straggler, first, second = (Worker(http, path, name) for name in ("slow", "w1", "w2"))
    waits = waiting_push(pool, first)
    with Caller(server.url).line() as line:
        line.send(request(f"{path}/gradients", packed(straggler.header(), bytes(80)))[:-9])
        wait_for(lambda: is_sending(http, path, "slow"))
        began = time.monotonic()

        assert second.push()["outcome"] == "applied"

        assert time.monotonic() - began < 0.6 * deadlines.BODY_WINDOW_S
        assert waits.result().json()["outcome"] == "applied"


def is_sending(http, path: str, worker: str) -> bool:
    """Return whether a gradient of a worker is being received."""
    listed = http.get(f"{path}/workers").json()["workers"]
    return any(known["worker"] == worker and known["is_sending"] for known in listed)


def test_a_body_that_trickles_is_408(place, monkeypatch):
    """Each byte would buy more time otherwise."""
    monkeypatch.setattr(deadlines, "BODY_WINDOW_S", 0.2)
    push = place.push()
    with place.caller.line() as line:
        stop = threading.Event()

        def trickle() -> None:
            with contextlib.suppress(OSError):
                for byte in push.body():
                    line.send(bytes([byte]))
                    if stop.wait(0.02):
                        return

        line.send(request(push.route, b"", length=len(push.body())))
        if isinstance(line.sock, ssl.SSLSocket):  # it is not for two threads
            line.send(push.body()[:9])
            line.answer().problem(408, "body_too_slow")
            return
        thread = threading.Thread(target=trickle)
        thread.start()
        try:
            line.answer().problem(408, "body_too_slow")
        finally:
            stop.set()
            thread.join()
    assert push.version() == 0


def test_a_rest_that_nobody_waits_for_may_not_stall_either(place, monkeypatch):
    """After an early answer it is thrown away, at the same rate."""
    monkeypatch.setattr(deadlines, "BODY_WINDOW_S", 0.1)
    push = place.push(LARGE)
    refused = request("/v1/models/none/gradients", b"", length=5_000_000)
    wrong = request(push.route, packed(push.worker.header(), bytes(6_000_000)))[:1_000_000]
    for data, status in ((refused, 404), (wrong, 422)):
        with place.caller.line() as line:
            line.send(data)
            assert line.answer().status == status

            assert line.is_closed()


def test_a_body_that_does_not_come_within_the_grace_of_a_stop_is_503(tmp_path):
    """The client is told to try again, and no task is cancelled in the middle."""
    with (
        servers.served(tmp_path, STEPWELL_SHUTDOWN_GRACE_S="2") as server,
        servers.http(server.url) as http,
    ):
        push = Push(Worker(http, create(http, layout=LARGE), layout=LARGE))
        body = push.body()
        data = request(push.route, b"", "Expect: 100-continue", length=len(body))
        with Caller(server.url).line() as payload_cut, Caller(server.url).line() as header_cut:
            for line, begin in ((payload_cut, body[:-1]), (header_cut, body[:3])):
                line.send(data)
                assert line.answer().status == 100  # it waits for the body
                line.send(begin)

            server.terminate()

            payload_cut.answer().problem(503, "shutting_down")
            header_cut.answer().problem(503, "shutting_down")
            assert payload_cut.is_closed()
        code = server.wait()

    assert code == 0
    assert [entry for entry in server.events if entry.get("level") in ("error", "warning")] == []


def test_a_body_that_is_late_on_the_whole_is_408_and_counted(place, monkeypatch):
    """However fast it begins: memory for it is held all the while."""
    monkeypatch.setattr(deadlines, "BODY_S", 0.2)
    monkeypatch.setattr(deadlines, "BODY_BYTES_PER_S", 1 << 40)
    push = place.push(LARGE)
    before = place.counts.bodies_too_slow
    with place.caller.line() as line:
        line.send(request(push.route, push.body())[:-1])
        line.answer().problem(408, "body_too_slow")
        assert line.is_closed()

    assert place.counts.bodies_too_slow == before + 1
    assert place.staging.leases == 0
