"""Tests of `stepwell.http_response`: what a peer may send, in pieces of any size."""

from __future__ import annotations

import pytest
from stepwell.http_response import BUFFER_BYTES, CutOff, Incoming, NoHttp, Response

BODY = bytes(range(256)) * 300


class Wire:
    """Gives bytes as a socket would: as many as there is room for, at most `most` at a time."""

    def __init__(self, data: bytes, most: int = 1 << 30) -> None:
        self.data, self.most = data, most

    def receive_into(self, view):
        piece = self.data[: min(len(view), self.most)]
        view[: len(piece)] = piece
        self.data = self.data[len(piece) :]
        return len(piece)


def respond(data, most=1 << 30, method="GET"):
    """Return the response that begins in `data`, and the wire it comes over."""
    wire = Wire(data, most)
    return Response(Incoming(wire.receive_into), method)


def taken(response):
    """Return the whole body, read piece by piece."""
    body = bytearray()
    while piece := response.take():
        body += piece
    return bytes(body)


def filled(response, room):
    """Return the whole body, read into memory of that size."""
    target, count = memoryview(bytearray(room)), 0
    while got := response.read_into(target[count:]):
        count += got
    return bytes(target[:count])


def chunked(body, size, trailers=b""):
    """Return a body in chunks."""
    chunks = [body[start : start + size] for start in range(0, len(body), size)]
    framed = b"".join(b"%x;a=b\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks)
    return framed + b"0\r\n" + trailers + b"\r\n"


WAYS = {
    "length": b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(BODY) + BODY,
    "until the end": b"HTTP/1.1 200 OK\r\n\r\n" + BODY,
    "1.0": b"HTTP/1.0 200 OK\r\nContent-Length: %d\r\n\r\n" % len(BODY) + BODY,
    "chunks": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunked(BODY, 70_000),
    "small chunks": b"HTTP/1.1 200\r\nTransfer-Encoding: Chunked\r\n\r\n" + chunked(BODY, 999),
    "trailers": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    + chunked(BODY, 1 << 20, b"A: b\r\nC: d\r\n"),
    "interim": b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"
    b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(BODY) + BODY,
}


@pytest.mark.parametrize("most", [1, 1500, 1 << 30])
@pytest.mark.parametrize("way", WAYS)
def test_a_body_is_the_same_whatever_its_framing_and_the_pieces_it_comes_in(way, most):
    """Taken piece by piece, or read into memory that the caller owns."""
    assert taken(respond(WAYS[way], most)) == BODY
    assert filled(respond(WAYS[way], most), 2 * len(BODY)) == BODY


@pytest.mark.parametrize(
    ("way", "expected"),
    [
        ("length", True), ("chunks", True), ("trailers", True), ("interim", True),
        ("until the end", False), ("1.0", False),
    ],
)  # fmt: skip
def test_a_connection_is_used_again_where_the_end_of_the_body_is_known(way, expected):
    """And only when the body was read to that end."""
    response = respond(WAYS[way])

    before = response.is_reusable
    taken(response)

    assert (before, response.is_reusable) == (False, expected)


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: Close\r\n\r\nab",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nab and more that nobody asked for",
    ],
    ids=["close", "more"],
)
def test_a_connection_is_not_used_again_when_it_is_not_clean(data):
    """The server closes it, or there are bytes that would be taken for the next answer."""
    response = respond(data)

    assert taken(response) == b"ab"
    assert not response.is_reusable


@pytest.mark.parametrize(("status", "method"), [(204, "GET"), (304, "GET"), (200, "HEAD")])
def test_some_responses_have_no_body_whatever_they_say(status, method):
    """204, 304, and what answers HEAD."""
    response = respond(b"HTTP/1.1 %d X\r\nContent-Length: 5\r\n\r\n" % status, method=method)

    assert taken(response) == b""
    assert response.is_reusable


def test_headers_are_found_by_their_lower_case_names():
    """Spaces around a value are no part of it; two of one name are joined."""
    response = respond(b'HTTP/1.1 409 Conflict\r\nETag:  "a" \r\nX: 1\r\nx: 2\r\n\r\n')

    assert response.status == 409
    assert response.headers == {"etag": '"a"', "x": "1, 2"}


@pytest.mark.parametrize(
    "data",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"\x15\x03\x01\x00\x02\x02\x28",
        b"HTTP/2 200 OK\r\n\r\n",
        b"HTTP/1.1 OK\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
        b"HTTP/1.1 102 Processing\r\n\r\n" * 200,
        b"HTTP/1.1 200 OK\r\nNoColon\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA: b\r\n folded\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nName : spaced\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: " + b"1" * 5000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: y\nContent-Length: 5\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"a" * BUFFER_BYTES + b"\r\n\r\n",
    ],
    ids=[
        "ssh", "tls", "2", "no status", "upgrade", "interim", "no colon", "folded", "space",
        "two lengths", "negative", "two framings", "gzip", "thousands of digits", "bare feed",
        "endless",
    ],
)  # fmt: skip
def test_what_is_no_response_is_refused_at_once(data):
    """Also where more bytes could still come, and where two readers would disagree."""
    with pytest.raises(NoHttp):
        respond(data + b"HTTP/1.1 200 OK")


@pytest.mark.parametrize(
    "chunks",
    [
        b"x\r\n",
        b"-1\r\nab",
        b"0x2\r\nab",
        b"2\x0b\r\nab",
        b"\r\nab",
        b"2\r\nabc\r\n",
        b"0\r\n" + b"A: b\r\n" * 200,
    ],
)
def test_chunks_that_cannot_be_are_refused(chunks):
    """A size is hexadecimal digits, and a chunk ends where it says."""
    response = respond(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks + b"\r\n")

    with pytest.raises(NoHttp):
        taken(response)


@pytest.mark.parametrize("way", ["length", "chunks", "trailers", "interim"])
def test_a_response_that_is_cut_anywhere_says_so(way):
    """At no place is a part taken for the whole."""
    data = WAYS[way]

    for end in [*range(120), *range(120, len(data), 9_973), *range(len(data) - 30, len(data))]:
        with pytest.raises(CutOff):
            taken(respond(data[:end]))


def test_a_large_body_goes_straight_to_where_it_belongs():
    """The socket is given the caller's memory, not a buffer in between."""
    rooms = []
    body = BODY * 10
    wire = Wire(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body, most=1000)

    def receive_into(view):
        rooms.append(view.obj)
        return wire.receive_into(view)

    response = Response(Incoming(receive_into), "GET")
    target = bytearray(len(body))
    count = 0
    while got := response.read_into(memoryview(target)[count:]):
        count += got

    assert bytes(target) == body
    assert sum(room is target for room in rooms) > 500
