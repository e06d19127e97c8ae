"""Readers that are too slow: by a fake clock, then on real connections over each loop."""

from __future__ import annotations

import socket
from typing import Any

import pytest
from stepwell_server import drain as room
from stepwell_server.counts import Counts
from stepwell_server.drain import FAIR_BYTES_PER_S, LEAST_BYTES_PER_S, WINDOW_S, Drain

from tests import servers
from tests.server.calls import MSGPACK, definition, packed
from tests.server.clocks import Clock
from tests.server.connections import Caller
from tests.server.connections import request as request_bytes
from tests.server.places import wait_for
from tests.server.test_http_protocol import LARGE, Pusher, SlowReader, call, create

ENOUGH = int(LEAST_BYTES_PER_S * WINDOW_S)


class Transport:
    """A transport to a Unix socket: what it holds is all that can be known."""

    def __init__(self) -> None:
        self.held, self.aborts = 0, 0

    def get_write_buffer_size(self) -> int:
        return self.held

    def get_extra_info(self, name: str) -> Any:
        return socket.socket(socket.AF_UNIX) if name == "socket" else None

    def abort(self) -> None:
        self.aborts += 1


class ClosedSocket:
    """What uvloop gives for a TCP socket that is closed."""

    family = socket.AF_INET

    def getsockopt(self, *args: int) -> bytes:
        raise OSError(9, "Bad file descriptor")


class Bench:
    """A drain whose transport and clock the test moves."""

    def __init__(self) -> None:
        self.transport, self.clock, self.counts = Transport(), Clock(), Counts()
        self.drain = Drain(self.transport, self.clock, self.counts)
        self.drain._socket.close()

    def write(self, nbytes: int) -> None:
        self.transport.held = nbytes
        self.drain.start()

    def take(self, nbytes: int, seconds: float = 0.0) -> None:
        self.clock.advance(seconds)
        self.transport.held -= nbytes
        if not self.transport.held:
            self.drain.pause()


@pytest.fixture
def bench() -> Bench:
    """A drain that has nothing to do."""
    return Bench()


def test_a_reader_that_takes_nothing_is_cut_off_after_a_window(bench):
    """Once, and it is counted."""
    bench.write(10 * ENOUGH)
    bench.clock.advance(WINDOW_S - 0.1)
    assert bench.transport.aborts == 0

    bench.clock.advance(5 * WINDOW_S)

    assert (bench.transport.aborts, bench.counts.readers_aborted) == (1, 1)


def test_a_reader_at_the_least_rate_is_not_and_one_below_it_is(bench):
    """However long it takes."""
    bench.write(100 * ENOUGH)
    for _ in range(20):
        bench.take(ENOUGH, WINDOW_S - 0.1)
        bench.clock.advance(0.1)
    assert bench.transport.aborts == 0

    bench.take(ENOUGH - 1, WINDOW_S - 0.1)
    bench.clock.advance(0.1)

    assert bench.transport.aborts == 1


def test_what_is_written_in_pieces_counts_together(bench):
    """As under TLS: each piece is taken whole, and the next one is written at once."""
    for _ in range(40):
        bench.write(ENOUGH // 4)
        bench.take(ENOUGH // 4, WINDOW_S / 5)
    assert bench.transport.aborts == 0
    for _ in range(10):
        bench.write(ENOUGH // 6)
        bench.take(ENOUGH // 6, WINDOW_S / 5)

    assert bench.transport.aborts == 1


def test_time_in_which_there_is_nothing_to_take_does_not_count(bench):
    """A connection that is idle for an hour is not slow."""
    for _ in range(4):
        bench.write(10)
        bench.take(10, WINDOW_S / 5)
        bench.clock.advance(3600)

    assert bench.transport.aborts == 0


def test_a_connection_that_ended_is_watched_no_more(bench):
    """Its socket's number may be another one's by then."""
    bench.write(10)
    bench.drain.stop()
    bench.clock.advance(100)

    assert (bench.transport.aborts, bench.drain.is_slow) == (0, False)


def test_a_socket_that_is_closed_and_nobody_was_told_yet_has_taken_nothing(bench):
    """Between a reset and `connection_lost` a pull may look for the slowest reader."""
    bench.drain._socket = ClosedSocket()
    bench.drain.begin()
    bench.clock.advance(10)

    assert bench.drain.rate == 0


def test_a_reader_is_slow_below_a_mebibyte_a_second_on_the_average_of_its_answer(bench):
    """After 5 s, and whatever it did before this answer."""
    bench.write(1 << 30)
    bench.take(100 << 20)
    bench.drain.begin()
    bench.take(2 * FAIR_BYTES_PER_S, 4.9)
    assert not bench.drain.is_slow
    bench.clock.advance(0.2)
    assert bench.drain.is_slow
    assert bench.drain.rate == pytest.approx(2 * FAIR_BYTES_PER_S / 5.1)

    bench.take(4 * FAIR_BYTES_PER_S)

    assert not bench.drain.is_slow


def test_the_limits_are_those_that_the_documents_promise():
    """16 KiB a second over 5 s; 1 MiB a second after 5 s."""
    assert (LEAST_BYTES_PER_S, WINDOW_S) == (16 * 1024, 5.0)
    assert (FAIR_BYTES_PER_S, room.FAIR_AFTER_S) == (1 << 20, 5.0)


LOOPS = pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
SCHEMES = pytest.mark.parametrize("is_encrypted", [False, True], ids=["plain", "tls"])


@LOOPS
@SCHEMES
def test_a_stalled_reader_is_cut_off_and_its_version_let_go_of(
    loop, is_encrypted, tmp_path, request, monkeypatch
):
    """One that reads at all gets its answer to the end."""
    monkeypatch.setattr(room, "WINDOW_S", 0.5)
    cert, key = request.getfixturevalue("certificate") if is_encrypted else (None, None)
    with servers.hosted(tmp_path, loop=loop, tls_cert=cert, tls_key=key) as server:
        counts, caller = server.application.counts, Caller(server.url, cert)
        path = create(caller, "large", LARGE)
        with caller.session() as connection:
            pusher = Pusher(connection, path, LARGE)
            pusher.push()
            stalled = SlowReader(caller, path)
            wait_for(lambda: counts.readers_aborted == 1)
            store = server.application.registry.get("large").engine.store
            wait_for(lambda: store._current.holders == 0)
            stalled.leave()
            version, _ = SlowReader(caller, path).read()

    assert (version, counts.readers_aborted) == (1, 1)


def test_a_stalled_reader_at_a_unix_socket_is_cut_off_too(tmp_path, monkeypatch):
    """There the transport's own buffer says what is taken."""
    monkeypatch.setattr(room, "WINDOW_S", 0.3)
    path = tmp_path / "socket"
    with servers.hosted(tmp_path / "data", uds=path) as server:
        application = server.application

        def connected() -> socket.socket:
            sock = socket.socket(socket.AF_UNIX)
            sock.settimeout(servers.DEADLINE_S)
            sock.connect(str(path))
            return sock

        with connected() as sock:
            header = definition("large", LARGE, has_values=False)
            sock.sendall(request_bytes("/v1/models", packed(header)))
            assert b" 201 " in sock.recv(100)
        with connected() as sock:
            accept = f"Accept: {MSGPACK}"
            sock.sendall(
                b"GET /v1/models/large/parameters HTTP/1.1\r\nHost: localhost\r\n"
                + accept.encode()
                + b"\r\n\r\n"
            )
            wait_for(lambda: application.counts.readers_aborted == 1)


@LOOPS
@SCHEMES
def test_a_slow_reader_gives_way_when_every_version_is_held(
    loop, is_encrypted, tmp_path, request, monkeypatch
):
    """The slowest of three, once; the pull that needed it is answered."""
    monkeypatch.setattr(room, "FAIR_AFTER_S", 0.0)
    monkeypatch.setattr(room, "FAIR_BYTES_PER_S", 1 << 40)
    cert, key = request.getfixturevalue("certificate") if is_encrypted else (None, None)
    with servers.hosted(tmp_path, loop=loop, tls_cert=cert, tls_key=key) as server:
        caller = Caller(server.url, cert)
        path = create(caller, "large", LARGE)
        with caller.session() as connection:
            pusher, readers = Pusher(connection, path, LARGE), []
            for _ in range(3):
                readers.append(SlowReader(caller, path))
                pusher.push()

            status, _ = call(connection, "GET", f"{path}/parameters")

            aborted = server.application.counts.readers_aborted
            for reader in readers:
                reader.leave()

    assert (status, aborted) == (200, 1)
