"""A TCP proxy that does to connections what networks do, by a seeded plan.

    with FaultyProxy(server.url, Schedule(1, [Fault(loses_answer=0), CALM])) as proxy:
        client = stepwell.Client(proxy.url)

It knows nothing of HTTP: an answer is what the server says after the client has said something. So
a lost answer is one whose request went through whole.
"""

from __future__ import annotations

import contextlib
import random
import select
import socket
import struct
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from tests.client.listener import DEADLINE_S, TURN_S, Listener

PIECE_BYTES = 1 << 14


@dataclass(frozen=True)
class Fault:
    """What is done to one connection.

    Attributes:
        latency_s: Each piece comes so much later, either way.
        bytes_per_s: So fast at most; None means as fast as it goes.
        cut_request_after: The connection breaks when the client has said so many bytes.
        cut_answer_after: It breaks when the server has said so many bytes.
        loses_answer: It breaks when the server begins the answer of this number, from 0; nothing of
            that answer goes through.
        has_reset: Whether it breaks by a reset (RST); else it is closed in order.
    """

    latency_s: float = 0.0
    bytes_per_s: float | None = None
    cut_request_after: int | None = None
    cut_answer_after: int | None = None
    loses_answer: int | None = None
    has_reset: bool = True


CALM = Fault()


@dataclass(frozen=True)
class Schedule:
    """Which connection gets which fault.

    Attributes:
        seed: The same seed gives the same faults to the same connections, counted from 0.
        faults: Each is as likely as the others.
    """

    seed: int = 0
    faults: Sequence[Fault] = (CALM,)

    def of(self, connection: int) -> Fault:
        """Return the fault of a connection."""
        return random.Random(f"{self.seed}:{connection}").choice(self.faults)


class FaultyProxy(Listener):
    """The proxy; a context manager.

    Args:
        url: Of the server behind it; it need not be there.
        schedule: May be set at any time, for connections that come later.

    Attributes:
        url: Where it listens.
        connections: How many there were so far.
        broken: How many of them were broken on purpose.
        passed: Bytes that went through, both ways.
    """

    def __init__(self, url: str, schedule: Schedule | None = None) -> None:
        parts = urlsplit(url)
        self._server = (parts.hostname or "", parts.port or 0)
        super().__init__()
        self.url = f"http://127.0.0.1:{self.port}"
        self.schedule = schedule or Schedule()
        self.connections = 0
        self.broken = 0
        self.passed = 0
        self._more = threading.Condition()
        self._lock = threading.Lock()
        self._generation = 0

    def break_all(self) -> None:
        """Reset all connections that there are now."""
        with self._lock:
            self._generation += 1

    def wait_for(self, passed: int) -> None:
        """Wait until so many bytes went through in all."""
        with self._more:
            assert self._more.wait_for(lambda: self.passed >= passed, DEADLINE_S)

    def serve(self, client: socket.socket) -> None:
        with self._lock:
            number, generation = self.connections, self._generation
            self.connections += 1
        with client, contextlib.suppress(OSError):
            try:
                server = socket.create_connection(self._server, DEADLINE_S)
            except OSError:
                _reset(client)  # as a host does on which nothing listens
                return
            with server:
                for end in (client, server):
                    end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                relay = _Relay(client, server, self.schedule.of(number), self._note)
                is_whole = relay.run(lambda: self.is_over, lambda: self._generation != generation)
            with self._lock:
                self.broken += not is_whole

    def _note(self, nbytes: int) -> None:
        with self._more:
            self.passed += nbytes
            self._more.notify_all()


class _Relay:
    """One connection through the proxy."""

    def __init__(
        self,
        client: socket.socket,
        server: socket.socket,
        fault: Fault,
        on_passed: Callable[[int], None],
    ) -> None:
        self._client, self._server, self._fault = client, server, fault
        self._on_passed = on_passed
        self._waiting = threading.Event()  # never set: its `wait` is a pause
        self._asked = self._answered = 0
        self._answer = -1
        self._client_spoke_last = False

    def run(self, is_over: Callable[[], bool], is_broken: Callable[[], bool]) -> bool:
        """Pass on what comes; returns False if the connection was broken on purpose."""
        while not is_over():
            readable, _, _ = select.select([self._client, self._server], [], [], TURN_S)
            if is_broken():
                self._reset()
                return False
            for source in readable:
                piece = source.recv(PIECE_BYTES)
                if not piece:
                    return True
                if not self._pass_on(piece, is_request=source is self._client):
                    if self._fault.has_reset:
                        self._reset()
                    return False
        return True

    def _pass_on(self, piece: bytes, *, is_request: bool) -> bool:
        """Pass a piece on, or a part of it; returns whether the connection goes on."""
        fault = self._fault
        if is_request:
            limit, done, target = fault.cut_request_after, self._asked, self._server
            self._asked += len(piece)
        else:
            self._answer += self._client_spoke_last
            if self._answer == fault.loses_answer:
                return False
            limit, done, target = fault.cut_answer_after, self._answered, self._client
            self._answered += len(piece)
        self._client_spoke_last = is_request
        passed = piece if limit is None else piece[: max(limit - done, 0)]
        pause_s = fault.latency_s + (len(piece) / fault.bytes_per_s if fault.bytes_per_s else 0)
        if pause_s:
            self._waiting.wait(pause_s)
        target.sendall(passed)
        self._on_passed(len(passed))
        return limit is None or done + len(piece) < limit

    def _reset(self) -> None:
        _reset(self._client)
        _reset(self._server)


def _reset(end: socket.socket) -> None:
    """Have an end send RST when it is closed."""
    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
