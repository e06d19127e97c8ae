"""A body that is cut off leaves no trace but a counter; see `places.py` for the ways it comes."""

from __future__ import annotations

import socket
import struct

import pytest

from tests.server.calls import MOMENTUM, image
from tests.server.connections import chunked, request
from tests.server.places import LARGE

pytestmark = pytest.mark.usefixtures("nothing_is_logged")

RESET = struct.pack("ii", 1, 0)  # SO_LINGER: close at once, throw away what is not sent


def cut(place, data: bytes, *, is_reset: bool) -> None:
    """Send some bytes on a connection of its own and end it."""
    with place.caller.line() as line:
        if data:
            line.send(data)
        if is_reset:
            line.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)


def wait_until_unused(place) -> None:
    """Wait for those bodies of one session that stood in line for its one lease, to be dropped.

    Where a lease is lost for good this never ends, and the test has a time limit.
    """
    while place.staging.leases:
        assert place.http.get("/healthz").status_code == 200


@pytest.mark.parametrize("is_reset", [False, True], ids=["closed", "reset"])
def test_a_message_cut_at_any_byte_leaves_no_trace_but_a_counter(place, is_reset):
    """In a header line, the msgpack header or the payload; the same sequence number is due."""
    push = place.push(optimizer=MOMENTUM)
    push.worker.push()
    data = request(push.route, push.body(1))
    head = data.index(b"\r\n\r\n") + 4
    begin = 0 if place.caller.tls is None else head - 2  # a handshake for each takes its time
    before = image(place.http, push.path)
    headers, bodies = place.counts.headers_cut, place.counts.bodies_cut

    for end in range(begin, len(data)):
        cut(place, data[:end], is_reset=is_reset)
    place.connections.wait_until_idle(place.caller)

    assert image(place.http, push.path) == before
    wait_until_unused(place)
    assert place.staging.used_bytes == 0
    headers, bodies = place.counts.headers_cut - headers, place.counts.bodies_cut - bodies
    most = (head - max(begin, 1), len(data) - head)
    if is_reset:  # it may overtake bytes that the server has not read; then it never saw them
        assert bodies <= most[1]
        assert headers <= sum(most)
    else:
        assert (headers, bodies) == most
    result = push.worker.try_push().json()
    assert (result["version"], result.get("duplicate", False)) == (2, False)


@pytest.mark.parametrize("is_chunked", [False, True], ids=["length", "chunks"])
@pytest.mark.parametrize("is_reset", [False, True], ids=["closed", "reset"])
def test_a_large_message_cut_in_many_places_leaves_no_trace(place, is_chunked, is_reset):
    """As of a process that was killed, or a machine that went away."""
    push = place.push(LARGE)
    before = image(place.http, push.path)
    body = push.body()
    data = chunked(push.route, body, 100_000) if is_chunked else request(push.route, body)

    for end in (*range(400, len(data), len(data) // 19), len(data) - 1):
        cut(place, data[:end], is_reset=is_reset)
    place.connections.wait_until_idle(place.caller)

    assert image(place.http, push.path) == before
    wait_until_unused(place)
    assert place.staging.used_bytes == 0
    assert push.worker.push()["version"] == 1
