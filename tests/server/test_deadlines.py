"""How long a connection may keep the server waiting: by a fake clock, then on real connections."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from stepwell_server import deadlines
from stepwell_server.deadlines import BODY_WINDOW_S, LEAST_BODY_BYTES_PER_S, Pace

from tests import servers
from tests.server.calls import Worker, create
from tests.server.clocks import Clock
from tests.server.connections import Caller, request
from tests.server.routes.test_workers import sync, waiting_push

ENOUGH = int(LEAST_BODY_BYTES_PER_S * BODY_WINDOW_S)


@pytest.fixture
def clock() -> Clock:
    """A clock that stands."""
    return Clock()


@pytest.fixture
def errors() -> list[Exception]:
    """What `pace` has said."""
    return []


@pytest.fixture
def pace(clock, errors) -> Pace:
    """The pace of one body."""
    return Pace(errors.append, clock)


def test_a_body_that_stalls_is_given_up_after_its_window(pace, clock, errors):
    """Not before; and once."""
    pace.start()

    clock.advance(BODY_WINDOW_S - 0.01)
    assert errors == []
    clock.advance(3 * BODY_WINDOW_S)

    assert [error.code for error in errors] == ["body_too_slow"]


def test_a_sender_is_silent_since_its_last_byte_while_the_server_waits_for_more(pace, clock):
    """Also over windows; not while the server itself is busy with something else."""
    before = pace.silent_since
    pace.start()
    began = pace.silent_since
    clock.advance(3.0)
    pace.count(ENOUGH)
    clock.advance(BODY_WINDOW_S - 1.0)
    since = pace.silent_since
    pace.pause()

    assert (before, began, since, pace.silent_since) == (None, 100.0, 103.0, None)


def test_a_body_that_comes_at_the_least_rate_is_waited_for_until_its_deadline(pace, clock, errors):
    """A window that brought a byte less is the last."""
    pace.start()

    for _ in range(5):
        pace.count(ENOUGH)
        clock.advance(BODY_WINDOW_S)
    assert errors == []
    pace.count(ENOUGH - 1)
    clock.advance(BODY_WINDOW_S)

    assert len(errors) == 1


@pytest.mark.parametrize("is_known", [True, False], ids=["length", "chunks"])
def test_a_whole_body_has_30_seconds_and_one_more_for_each_mebibyte(clock, errors, is_known):
    """Of its length, or of what has come if nobody knows that; pauses do not count."""
    length = 20 << 20
    pace = Pace(errors.append, clock, length if is_known else 0)
    for second in range(49):
        pace.start()
        pace.count(length // 49)
        clock.advance(1.0)
        pace.pause()
        clock.advance(100.0 * (second == 20))
    pace.start()
    clock.advance(0.9)
    assert errors == []

    clock.advance(0.2)

    assert [error.code for error in errors] == ["body_too_slow"]
    assert "30 s and a second more for each 1048576 bytes" in errors[0].message


def test_a_body_in_chunks_that_goes_on_and_on_has_no_deadline_but_its_rate(clock, errors):
    """The more has come, the more time there is; a body of 2 MiB a second is never late."""
    pace = Pace(errors.append, clock)
    pace.start()
    for _ in range(600):
        pace.count(2 << 20)
        clock.advance(1.0)

    assert errors == []


def test_bytes_of_one_window_do_not_count_in_the_next(pace, clock, errors):
    """A gigabyte at first buys no pause of a day."""
    pace.start()
    pace.count(1 << 30)

    clock.advance(2 * BODY_WINDOW_S)

    assert len(errors) == 1


def test_time_in_which_nothing_is_waited_for_does_not_count(pace, clock, errors):
    """What the server does meanwhile is not the sender's fault, but its pauses add up."""
    for _ in range(9):
        pace.start()
        clock.advance(BODY_WINDOW_S / 10)
        pace.pause()
        clock.advance(60.0)
    assert errors == []

    pace.start()
    clock.advance(BODY_WINDOW_S / 10)

    assert len(errors) == 1


def test_the_deadlines_are_those_that_the_documents_promise():
    """5 s for a header and a TLS handshake; 16 KiB a second for a body, and 30 s + 1 MiB/s."""
    assert (deadlines.HEADER_S, deadlines.TLS_HANDSHAKE_S) == (5.0, 5.0)
    assert (BODY_WINDOW_S, LEAST_BODY_BYTES_PER_S) == (5.0, 16 * 1024)
    assert (deadlines.BODY_S, deadlines.BODY_BYTES_PER_S) == (30.0, 1 << 20)


@pytest.fixture
def hasty(tmp_path, monkeypatch):
    """A server that gives a header 0.3 s."""
    monkeypatch.setattr(deadlines, "HEADER_S", 0.3)
    with servers.hosted(tmp_path, keep_alive_s=1) as server:
        yield server


@pytest.mark.parametrize(
    "begin", [b"", b"G", b"\r\n", request("/healthz", method="GET")[:-1]], ids=repr
)
def test_a_connection_whose_first_header_does_not_come_is_closed(hasty, begin):
    """Silent, or stopped at any place."""
    with Caller(hasty.url).line() as line:
        line.send(begin)

        assert line.is_closed()


@pytest.mark.parametrize("first", [b"", request("/healthz", method="GET")], ids=["new", "used"])
def test_a_header_that_trickles_has_no_more_time_than_one_that_stalls(hasty, first):
    """Each byte would buy another 5 s otherwise; empty lines before a request count as bytes."""
    with Caller(hasty.url).line() as line:
        if first:
            line.send(first)
            assert line.answer().status == 200
        begun = time.monotonic()
        line.send(b"\r\nGET / HTTP/1.1\r\nX: ")
        line.sock.settimeout(0.05)
        is_closed = False
        while not is_closed and time.monotonic() < begun + 10:
            try:
                line.send(b"x")
                is_closed = line.sock.recv(1) == b""
            except TimeoutError:
                continue
            except OSError:
                is_closed = True

    assert is_closed


def test_empty_lines_do_not_keep_a_connection_alive(hasty):
    """They are no request, so the connection is idle."""
    with Caller(hasty.url).line() as line:
        line.send(request("/healthz", method="GET"))
        assert line.answer().status == 200
        line.send(b"\r\n")

        assert line.is_closed()


def test_who_waits_for_an_answer_may_begin_a_header_and_take_its_time(hasty):
    """The server itself does not read on as long as it owes an answer."""
    with servers.http(hasty.url) as http:
        worker = Worker(http, create(http, consistency=sync(2)))
        path = f"{worker.path}/workers/w0/pushes/0?epoch={worker.epoch}&wait_s=0.8"
        with ThreadPoolExecutor(1) as pool, Caller(hasty.url).line() as line:
            waits = waiting_push(pool, worker)
            line.send(request(path, method="GET"), b"GET /healthz HT")

            waited = line.answer()
            line.send(b"TP/1.1\r\nHost: 127.0.0.1\r\n\r\n")

            assert waited.status == 202
            assert line.answer().status == 200
            other = Worker(http, worker.path, "w1")
            other.push()
            assert waits.result().status_code == 200


def test_an_idle_connection_is_closed_also_after_an_answer_that_came_before_the_body(hasty):
    """uvicorn would forget it: its clock is stopped by the rest of the body."""
    with Caller(hasty.url).line() as line:
        line.send(request("/nowhere", b"x" * 10)[:-5])
        assert line.answer().status == 404
        line.send(b"x" * 5)

        assert line.is_closed()
