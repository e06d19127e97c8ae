"""The proxy does what it says: a network's faults, and the same ones for the same seed."""

from __future__ import annotations

import contextlib
import socket
import time

import pytest

from tests.client.listener import DEADLINE_S, Listener
from tests.faults.proxy import CALM, Fault, FaultyProxy, Schedule


class Echo(Listener):
    """Answers each piece with itself, and remembers all."""

    def __init__(self) -> None:
        super().__init__()
        self.url = f"http://127.0.0.1:{self.port}"
        self.heard = b""

    def serve(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError):
            client.settimeout(DEADLINE_S)
            while piece := client.recv(1 << 16):
                self.heard += piece
                client.sendall(piece)


@pytest.fixture
def echo():
    """Return a server that repeats what it hears."""
    with Echo() as server:
        yield server


def connect(proxy: FaultyProxy) -> socket.socket:
    """Return a connection through the proxy."""
    return socket.create_connection(("127.0.0.1", proxy.port), DEADLINE_S)


def say(connection: socket.socket, message: bytes) -> bytes:
    """Return what is answered, as far as it comes."""
    connection.sendall(message)
    answer = b""
    while len(answer) < len(message) and (piece := connection.recv(1 << 16)):
        answer += piece
    return answer


def test_a_calm_connection_passes_everything_both_ways(echo):
    """Without a fault nothing is changed, however much it is."""
    message = bytes(range(256)) * 1000

    with FaultyProxy(echo.url) as proxy, connect(proxy) as connection:
        assert say(connection, message) == message
    assert proxy.broken == 0


def test_an_answer_is_lost_whole_after_its_request_went_through(echo):
    """The server has heard the second request; the client gets a reset and nothing else."""
    with (
        FaultyProxy(echo.url, Schedule(faults=[Fault(loses_answer=1)])) as proxy,
        connect(proxy) as connection,
    ):
        assert say(connection, b"first") == b"first"
        with pytest.raises(ConnectionResetError):
            say(connection, b"second")

    assert echo.heard == b"firstsecond"
    assert proxy.broken == 1


@pytest.mark.parametrize("has_reset", [True, False])
def test_an_answer_is_cut_after_so_many_bytes(echo, has_reset):
    """The client gets those bytes, and then a reset or the end."""
    fault = Fault(cut_answer_after=4, has_reset=has_reset)

    with FaultyProxy(echo.url, Schedule(faults=[fault])) as proxy, connect(proxy) as connection:
        connection.sendall(b"request")
        if has_reset:  # what had arrived may go with it
            with pytest.raises(ConnectionResetError):
                say(connection, bytes(100))
        else:
            assert connection.recv(100) == b"requ"
            assert connection.recv(100) == b""


def test_a_request_is_cut_after_so_many_bytes(echo):
    """The server hears those bytes and no more."""
    with (
        FaultyProxy(echo.url, Schedule(faults=[Fault(cut_request_after=3)])) as proxy,
        connect(proxy) as connection,
        pytest.raises(ConnectionResetError),
    ):
        say(connection, b"request")

    assert b"req".startswith(echo.heard)


def test_latency_and_a_slow_line_take_their_time(echo):
    """A round trip takes twice the latency, and bytes come no faster than they may."""
    slow = Fault(latency_s=0.02, bytes_per_s=100_000)

    with FaultyProxy(echo.url, Schedule(faults=[slow])) as proxy, connect(proxy) as connection:
        began = time.monotonic()
        assert len(say(connection, bytes(5_000))) == 5_000

    assert time.monotonic() - began >= 2 * (0.02 + 0.05)


def test_the_schedule_is_the_same_for_the_same_seed_and_may_be_changed_live(echo):
    """What is set applies to the connections that come after."""
    faults = [Fault(loses_answer=0), CALM, Fault(cut_request_after=1)]
    schedule = Schedule(7, faults)

    assert [schedule.of(n) for n in range(50)] == [Schedule(7, faults).of(n) for n in range(50)]
    assert {schedule.of(n) for n in range(50)} == set(faults)
    with FaultyProxy(echo.url, Schedule(faults=[Fault(loses_answer=0)])) as proxy:
        with connect(proxy) as connection, pytest.raises(ConnectionResetError):
            say(connection, b"lost")
        proxy.schedule = Schedule()
        with connect(proxy) as connection:
            assert say(connection, b"found") == b"found"


def test_all_connections_are_reset_at_once(echo):
    """`break_all` breaks those that are there; later ones are fine."""
    with FaultyProxy(echo.url) as proxy:
        with connect(proxy) as connection:
            say(connection, b"hello")
            proxy.break_all()
            with pytest.raises(ConnectionResetError):
                connection.recv(1)
        with connect(proxy) as connection:
            assert say(connection, b"again") == b"again"


def test_a_server_that_is_not_there_looks_like_one(echo):
    """The client gets a reset, and later connections go through if a server came."""
    with (
        FaultyProxy("http://127.0.0.1:1") as proxy,
        pytest.raises(ConnectionResetError),
        connect(proxy) as connection,
    ):
        connection.recv(1)
