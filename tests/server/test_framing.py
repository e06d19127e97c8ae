"""Where a request begins and ends: what is too large, ambiguous or no HTTP is refused."""

from __future__ import annotations

import json

import pytest
from stepwell_core.errors import HeaderTooLarge, MalformedMessage
from stepwell_server import framing

from tests.server.calls import new_name
from tests.server.connections import Caller, chunked, request

HEALTH = request("/healthz", method="GET")


@pytest.fixture
def line(server):
    """One connection."""
    with Caller(server.url).line() as line:
        yield line


@pytest.mark.parametrize(
    ("headers", "length"),
    [
        ([], 0),
        ([("host", "x")], 0),
        ([("content-length", "5")], 5),
        ([("content-length", " 5 ")], 5),
        ([("transfer-encoding", "Chunked")], None),
    ],
    ids=repr,
)
def test_the_length_of_a_body_is_what_one_header_says(headers, length):
    """None stands for chunks."""
    pairs = [(name.encode(), value.encode()) for name, value in headers]

    assert framing.body_length("1.1", pairs, False) == length


AMBIGUOUS = {
    "both": ["Content-Length: 5", "Transfer-Encoding: chunked"],
    "both, turned": ["Transfer-Encoding: chunked", "Content-Length: 5"],
    "twice": ["Content-Length: 5", "Content-Length: 5"],
    "differing": ["Content-Length: 5", "Content-Length: 6"],
    "plus": ["Content-Length: +5"],
    "minus": ["Content-Length: -5"],
    "list": ["Content-Length: 5,5"],
    "empty": ["Content-Length:"],
    "hexadecimal": ["Content-Length: 0x5"],
    "huge": ["Content-Length: 99999999999999999999"],
    "gzip": ["Transfer-Encoding: gzip, chunked"],
    "identity": ["Transfer-Encoding: identity"],
    "chunked twice": ["Transfer-Encoding: chunked", "Transfer-Encoding: chunked"],
    "not quite chunked": ["Transfer-Encoding: xchunked"],
    "space": ["Content-Length : 5"],
    "folded": ["X: a", " Content-Length: 5"],
    "upgrade": ["Connection: upgrade", "Upgrade: h2c", "Content-Length: 5"],
}


@pytest.mark.parametrize("lines", AMBIGUOUS.values(), ids=AMBIGUOUS.keys())
def test_a_body_whose_length_can_be_read_in_two_ways_is_400_and_the_last_request(line, lines):
    """What follows might be the body or a request that somebody hid there."""
    line.send(request("/v1/models", None, *lines) + b"12345" + HEALTH)

    line.answer().problem(400, "malformed_message")
    assert line.is_closed()


@pytest.mark.parametrize("name", sorted(AMBIGUOUS.keys() - {"space", "folded", "upgrade"}))
def test_it_does_not_take_the_parser_to_see_that_a_length_is_ambiguous(name):
    """Another version of it may be more lenient."""
    pairs = [line.lower().encode().split(b":") for line in AMBIGUOUS[name]]

    with pytest.raises(MalformedMessage):
        framing.body_length("1.1", [(name, value) for name, value in pairs], False)


def test_chunks_in_http_1_0_are_ambiguous(line):
    """That version has none, so a proxy of that version would see another body."""
    line.send(chunked("/v1/models", b"12345", 5).replace(b"HTTP/1.1", b"HTTP/1.0"))

    line.answer().problem(400, "malformed_message")


@pytest.mark.parametrize(
    "noise", [b"\x16\x03\x01\x02\x00" * 9, b"hello\r\n\r\n", b"GET / HTCPCP/1.0\r\n\r\n"]
)
def test_what_is_no_http_is_told_so_in_a_problem_document(line, noise):
    """As for instance TLS at a port that has none."""
    line.send(noise)

    answer = line.answer()
    answer.problem(400, "malformed_message")
    assert answer.headers["connection"] == "close"
    assert line.is_closed()


def test_noise_behind_requests_is_refused_behind_their_answers(line):
    """The answers before it stay whole, and the connection ends."""
    line.send(request("/openapi.json", method="GET") + HEALTH + b"noise\r\n\r\n")

    assert json.loads(line.answer().body)["openapi"]
    assert line.answer().status == 200
    assert line.is_closed()


@pytest.mark.parametrize("lines", [[f"X-{n}: y" for n in range(99)], ["X: " + "y" * (32 << 10)]])
def test_a_header_that_is_too_large_is_431(line, lines):
    """Lines are counted, and bytes."""
    line.send(request("/healthz", None, *lines, method="GET"))

    line.answer().problem(431, "header_too_large")
    assert line.is_closed()


@pytest.mark.parametrize("lines", [[f"X-{n}: y" for n in range(98)], ["X: " + "y" * (31 << 10)]])
def test_a_header_that_is_just_small_enough_is_taken(line, lines):
    """The limits are what they say: 100 lines, 32 KiB."""
    line.send(request("/healthz", None, *lines, method="GET"))

    assert line.answer().status == 200


@pytest.mark.parametrize("begin", [b"GET /", b"GET / HTTP/1.1\r\nX: ", b"GET / HTTP/1.1\r\nX"])
def test_a_header_that_never_ends_is_431(line, begin):
    """Nobody sends a gigabyte into one value."""
    line.send(begin, b"y" * (600 << 10))

    line.answer().problem(431, "header_too_large")


def test_a_trailer_that_never_ends_is_431(line):
    """It would be kept in memory too."""
    line.send(chunked("/v1/models", b"\x81", 1)[:-2] + b"X: ", b"y" * (600 << 10))

    line.answer().problem(431, "header_too_large")


def test_a_trailer_is_not_taken_for_a_header(server, http, line):
    """The gate has let the request in by then."""
    body = chunked("/v1/models", b"\x80", 1)[:-2] + b"Content-Encoding: gzip\r\n\r\n"
    line.send(body + HEALTH)

    assert line.answer().status == 422
    assert line.answer().status == 200


def test_a_body_that_comes_with_its_header_is_not_counted_as_header(line):
    """The event loop may hand over 256 KiB at once; so may many small requests."""
    line.send(request("/v1/models", b"x" * (200 << 10)) + HEALTH)
    assert (line.answer().status, line.answer().status) == (400, 200)

    line.send(HEALTH * 2000)
    assert {line.answer().status for _ in range(2000)} == {200}


def test_an_offer_to_upgrade_is_ignored(line):
    """As HTTP allows; `curl --http2` offers it, and goes on with HTTP/1.1."""
    offer = request("/healthz", None, "Connection: upgrade", "Upgrade: h2c", method="GET")
    line.send(offer + HEALTH + offer, HEALTH)

    assert [line.answer().status for _ in range(4)] == [200] * 4


def test_the_size_of_a_header_is_that_of_its_parts():
    """Whole lines and the path."""
    framing.check_size(b"/", [(b"x", b"y" * (framing.MAX_HEADER_BYTES - 2))])
    with pytest.raises(HeaderTooLarge):
        framing.check_size(b"/a", [(b"x", b"y" * (framing.MAX_HEADER_BYTES - 2))])


def test_a_connection_goes_on_after_a_request_that_was_refused_for_other_reasons(line):
    """Only what makes the next request's begin uncertain ends it."""
    line.send(request(f"/v1/models/{new_name()}", method="GET") + HEALTH)

    assert (line.answer().status, line.answer().status) == (404, 200)
