"""One contract over all the ways a body can come; see `places.py`."""

from __future__ import annotations

import pytest

from tests.server.calls import create, filled, packed, payload
from tests.server.connections import chunked, request
from tests.server.places import HEALTH, LARGE

pytestmark = pytest.mark.usefixtures("nothing_is_logged")


def test_a_push_is_applied_whatever_its_pieces(place):
    """Together with its header, behind it, byte by byte, cut within the length of a `bin`."""
    push = place.push()
    with place.caller.line() as line:
        for sequence, step in enumerate((1 << 20, 1, 7, 100)):
            data = request(push.route, push.body(sequence))
            line.send(*(data[at : at + step] for at in range(0, len(data), step)))
            assert line.answer().status == 200
        head = request(push.route, b"", length=len(push.body(4)))
        line.send(head, push.body(4))
        assert line.answer().status == 200

    assert push.version() == 5


def test_requests_directly_behind_a_body_are_answered_in_order(place):
    """No byte of them is taken for the body or lost, and the connection goes on."""
    small, large = place.push(), place.push(LARGE)
    data = [
        request(large.route, large.body(0)),
        HEALTH,
        request(small.route, small.body(0)),
        request(large.route, large.body(1)),
        request(small.route, small.body(1)),
        HEALTH,
    ]
    with place.caller.line() as line:
        line.send(b"".join(data))
        statuses = [line.answer().status for _ in data]
        line.send(HEALTH)

        assert [*statuses, line.answer().status] == [200] * 7
    assert (small.version(), large.version()) == (2, 2)


def test_chunks_are_taken_whatever_their_sizes(place):
    """Then there is no length, and the body is streamed."""
    small, large = place.push(), place.push(LARGE)
    with place.caller.line() as line:
        for sequence, size in enumerate((1, 5, 10_000)):
            line.send(chunked(small.route, small.body(sequence), size) + HEALTH)
            assert (line.answer().status, line.answer().status) == (200, 200)
        line.send(chunked(large.route, large.body(), 77_777) + HEALTH)
        assert (line.answer().status, line.answer().status) == (200, 200)

    assert (small.version(), large.version()) == (3, 1)


def test_an_error_in_the_middle_is_answered_while_the_rest_is_sent(place):
    """The connection goes on, and so does the session."""
    push = place.push(LARGE)
    body = push.body(layout="another")
    with place.caller.line() as line:
        line.send(request(push.route, body)[: len(body) // 3])
        line.answer().problem(422, "layout_mismatch")
        line.send(request(push.route, body)[len(body) // 3 :] + HEALTH)
        assert line.answer().status == 200

        line.send(request(push.route, push.body()))
        assert line.answer().status == 200


def test_a_wrong_payload_is_answered_before_its_end(place):
    """The length of its `bin` is enough to know."""
    push = place.push(LARGE)
    wrong = packed(push.worker.header(), bytes(6_000_000))
    with place.caller.line() as line:
        line.send(request(push.route, wrong)[:2_000_000])
        line.answer().problem(422, "payload_size_mismatch")
        line.send(request(push.route, wrong)[2_000_000:] + HEALTH)

        assert line.answer().status == 200
    assert push.version() == 0


@pytest.mark.parametrize("extra", [-1, -40, 1, 100_000])
def test_a_length_that_is_not_the_messages_is_refused(place, extra):
    """Shorter or longer; the length counts, so the next request begins behind it."""
    push = place.push()
    body = push.body()
    body = body[:extra] if extra < 0 else body + b"\xc4\x01x" + bytes(extra)
    with place.caller.line() as line:
        line.send(request(push.route, body) + HEALTH)
        line.answer().problem(422, "payload_size_mismatch")

        assert line.answer().status == 200
    assert push.version() == 0


def test_empty_bins_and_no_payload_at_all_are_messages(place):
    """An empty `bin` is nothing; a session is opened by a header alone."""
    push = place.push()
    spaced = packed(push.worker.header(), b"", payload(filled(1.0)), b"")
    header = packed({"worker": "w1"})
    with place.caller.line() as line:
        line.send(request(push.route, spaced))
        assert line.answer().status == 200
        for body in (header, header + b"\xc4\x00"):
            data = request(f"{push.path}/workers", body)
            line.send(data[:-1], data[-1:])
            assert line.answer().status == 201
        line.send(request(push.route, b"") + HEALTH)
        line.answer().problem(400, "malformed_message")
        assert line.answer().status == 200


def test_expect_100_continue_is_answered_when_the_body_is_wanted(place):
    """Once, before the body."""
    push = place.push(LARGE)
    body = push.body()
    with place.caller.line() as line:
        line.send(request(push.route, b"", "Expect: 100-continue", length=len(body)))
        assert line.answer().status == 100
        line.send(body)
        assert line.answer().status == 200
        line.send(HEALTH)
        assert line.answer().status == 200


def test_expect_100_continue_for_a_body_that_is_not_wanted_ends_the_connection(place):
    """The client may send it or not, so nobody knows what its next bytes are."""
    with place.caller.line() as line:
        line.send(request("/v1/models/none/gradients", b"", "Expect: 100-continue", length=9))
        answer = line.answer()
        answer.problem(404, "model_not_found")
        assert answer.headers["connection"] == "close"
        line.send(b"123456789" + HEALTH)

        assert line.is_closed()


def test_http_1_0_is_answered_and_closed(place):
    """It knows neither chunks, 100 nor kept connections."""
    push = place.push(LARGE)
    data = request(push.route, push.body(), "Expect: 100-continue")
    with place.caller.line() as line:
        line.send(data.replace(b"HTTP/1.1", b"HTTP/1.0", 1))
        assert line.answer().status == 200
        assert line.is_closed()


@pytest.mark.parametrize("method", ["GET", "HEAD", "DELETE"])
def test_a_body_that_nobody_asked_for_is_read_over(place, method):
    """A handler that does not read its body does not harm the next request."""
    path = create(place.http)
    data = request(path, bytes(5_000_000), method=method)
    with place.caller.line() as line:
        line.send(data)
        assert line.answer(is_head=method == "HEAD").status in (200, 204, 405)
        line.send(HEALTH)
        assert line.answer().status == 200


@pytest.mark.parametrize("last", ["Connection: close", "Connection: keep-alive"])
def test_a_client_that_sends_its_whole_body_first_reads_why_it_was_refused(place, last):
    """Also if the connection ends with it: closed at once, a reset would reach the client."""
    body = bytes(5_000_000)
    with place.caller.line() as line:
        line.send(request("/v1/models/none/gradients", body, last))
        line.answer().problem(404, "model_not_found")
        if "close" in last:
            assert line.is_closed()


def test_a_broken_chunk_is_400_and_nothing_is_applied(place):
    """The parser finds it, and the handler that waits for the body is told."""
    push = place.push(LARGE)
    data = chunked(push.route, push.body(), 9_999)
    with place.caller.line() as line:
        line.send(data[:2_000_000], b"noise\r\n" * 9_999)
        line.answer().problem(400, "malformed_message")
        assert line.is_closed()
    assert push.version() == 0
