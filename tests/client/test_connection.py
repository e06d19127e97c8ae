"""Tests of `stepwell.connection` over real sockets."""

from __future__ import annotations

import numpy as np
import pytest
from stepwell.connection import PIECE_BYTES, SMALL_BYTES, Connection, pieces
from stepwell.endpoint import KEEP_ALIVE_S, Endpoint
from stepwell.http_response import CutOff, NoHttp
from stepwell.retry import Timeout

from tests.client.misbehaving import (
    Misbehaving,
    answers,
    closed_port,
    resets,
    response,
    says,
    stays_silent,
)

HEAD = b"POST /x HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n"
GOOD = answers(response(b"hello"))


def exchange(connection, *parts, read_s=30.0):
    """Send a request with these parts; return the response and its body."""
    head = HEAD % sum(map(len, parts))
    received = connection.exchange("POST", head, parts, Timeout(read_s=read_s))
    body = bytearray()
    while piece := received.take():
        body += piece
    return received, bytes(body)


@pytest.fixture
def connect():
    """Return what makes connections, which are closed in the end."""
    made = []

    def connect(url):
        made.append(Connection(Endpoint(url)))
        return made[-1]

    yield connect
    for connection in made:
        connection.close()


def test_nothing_is_connected_before_the_first_request(connect):
    """A connection to nowhere can be made, and fails when it is used."""
    with closed_port() as url:
        connection = connect(url)

        with pytest.raises(ConnectionRefusedError):
            exchange(connection)

    assert (connection.is_connected, connection.was_sent) == (False, False)


def test_a_connection_takes_one_request_after_the_other(connect):
    """Large and small bodies arrive as they were."""
    large = np.arange(3 << 20, dtype=np.uint8)

    with Misbehaving(GOOD) as server:
        connection = connect(server.url)
        found = [
            exchange(connection, b"small", memoryview(large), b"", b"end"),
            exchange(connection),
            exchange(connection, b"x" * 100_000),
        ]

        connection.release()
        assert not connection.is_stale

    assert [body for _, body in found] == [b"hello"] * 3
    assert all(received.is_reusable for received, _ in found)
    assert server.requests[0].body == b"small" + large.tobytes() + b"end"
    assert len(server.requests[2].body) == 100_000
    assert connection.was_sent


def test_a_refusal_that_comes_early_is_read_although_sending_broke(connect):
    """The server answers after the head and resets; its answer is what the caller gets."""
    refusal = says(response(b"no", 409))
    body = memoryview(bytes(50 << 20))

    with Misbehaving(refusal) as server:
        connection = connect(server.url)
        server.body_limit = 1000

        received, text = exchange(connection, body)

    assert (received.status, text) == (409, b"no")
    assert not received.is_reusable


@pytest.mark.parametrize(
    ("act", "error"),
    [
        (says(b""), CutOff),
        (says(response(b"hello")[:-1]), CutOff),
        (says(b"SSH-2.0-OpenSSH\r\n"), NoHttp),
        (resets, ConnectionResetError),
        (stays_silent, TimeoutError),
    ],
    ids=["closed", "cut", "no HTTP", "reset", "silent"],
)
def test_an_answer_that_does_not_come_is_an_os_error(connect, act, error):
    """And the request was sent, so nobody may think that it had no effect."""
    with Misbehaving(act) as server:
        connection = connect(server.url)
        with pytest.raises(error):
            exchange(connection, b"body", read_s=0.2)

    assert connection.is_connected
    assert connection.was_sent


def test_a_connection_that_the_server_ended_is_stale(connect):
    """The end can be read, so the next request goes over a new connection."""
    with Misbehaving(says(response(b"hello"))) as server:
        connection = connect(server.url)
        exchange(connection)
        connection.release()
    # the server is gone, and so is its end of the connection

    assert connection.is_stale


def test_a_connection_that_was_idle_for_long_is_stale(connect, monkeypatch):
    """The server may be about to close it."""
    with Misbehaving(GOOD) as server:
        connection = connect(server.url)
        exchange(connection)
        connection.release()
        fresh = connection.is_stale
        now = connection._used_at + KEEP_ALIVE_S + 1
        monkeypatch.setattr("stepwell.connection.time.monotonic", lambda: now)
        idle = connection.is_stale

    assert (fresh, idle) == (False, True)


def test_small_parts_travel_together_and_large_ones_as_views():
    """One system call for a small push, and no copy of a large array."""
    array = np.zeros(2 * PIECE_BYTES + 5, np.uint8)
    large = memoryview(array)

    small = list(pieces(b"head", [b"a", memoryview(b"b")]))
    mixed = list(pieces(b"head", [b"a", large, b"b", b"c"]))

    assert [bytes(piece) for piece in small] == [b"headab"]
    assert [len(piece) for piece in mixed] == [5, PIECE_BYTES, PIECE_BYTES, 5, 2]
    assert all(np.shares_memory(np.frombuffer(piece, np.uint8), array) for piece in mixed[1:4])


def test_parts_that_do_not_fit_together_are_sent_one_after_the_other():
    """In order, with nothing lost and nothing empty."""
    parts = [bytes([index]) * (SMALL_BYTES // 3) for index in range(7)]

    sent = list(pieces(b"head", parts))

    assert b"".join(sent) == b"head" + b"".join(parts)
    assert all(sent)


def test_a_subclass_may_receive_in_its_own_way():
    """So that file descriptors can come with the bytes of a response."""
    seen = []

    class Counting(Connection):
        def receive_into(self, view):
            seen.append(super().receive_into(view))
            return seen[-1]

    with Misbehaving(GOOD) as server:
        connection = Counting(Endpoint(server.url))
        exchange(connection)
        connection.close()

    assert sum(seen) == len(response(b"hello"))
