"""How fast the other side of a connection takes what it asked for; who takes nothing is cut off.

An answer holds a version of the parameters until its last byte has left, so a reader that stalls
costs as much memory as the model. What it has taken is what its kernel has acknowledged: the event
loop's own buffer says less, since under TLS it is not all of it, and a socket asks for more only
when a third of a large buffer has become free.

Source: tcp(7) and `struct tcp_info` in linux/tcp.h, since Linux 4.1.
"""

from __future__ import annotations

import asyncio
import socket
import struct

import structlog

from stepwell_server.counts import Counts

log = structlog.get_logger("stepwell")

WINDOW_S = 5.0  # so long a reader may stall
LEAST_BYTES_PER_S = 16 * 1024  # as for a body
FAIR_BYTES_PER_S = 1 << 20  # who is slower gives way to others when there is no version left,
FAIR_AFTER_S = 5.0  # once it had so much time

_BYTES_ACKED = struct.Struct("=120xQ")  # the field of that name in `struct tcp_info`


class Drain:
    """What one connection takes of its answers.

    Args:
        transport: Of the connection.
        loop: Whose time counts.
        counts: Of the server.
    """

    def __init__(
        self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop, counts: Counts
    ) -> None:
        self._transport = transport
        self._loop = loop
        self._counts = counts
        self._socket = transport.get_extra_info("socket")
        self._held = 0  # in the transport, when it began to hold bytes; without TCP
        self._gone = 0  # before that
        self._timer: asyncio.TimerHandle | None = None
        self._begun = 0.0
        self._window_s = WINDOW_S  # what is left of it
        self._taken_at_window = 0
        self._answer_begun = 0.0
        self._taken_at_answer = 0
        self._is_over = False

    def begin(self) -> None:
        """Say that a large answer begins, for `rate`."""
        self._answer_begun, self._taken_at_answer = self._loop.time(), self._taken()

    @property
    def age_s(self) -> float:
        """How long ago the answer began."""
        return self._loop.time() - self._answer_begun

    @property
    def rate(self) -> float:
        """How much of the answer was taken, in bytes a second; infinite at its very beginning."""
        age_s = self.age_s
        return (self._taken() - self._taken_at_answer) / age_s if age_s else float("inf")

    @property
    def is_slow(self) -> bool:
        """Whether the reader would have to give way to others."""
        return not self._is_over and self.age_s > FAIR_AFTER_S and self.rate < FAIR_BYTES_PER_S

    def start(self) -> None:
        """Say that the transport holds bytes, which the other side has to take."""
        held = self._transport.get_write_buffer_size()
        self._gone, self._held = self._gone + max(0, self._held - held), held
        if self._timer is None and not self._is_over:
            if self._window_s == WINDOW_S:
                self._taken_at_window = self._taken()
            self._begun = self._loop.time()
            self._timer = self._loop.call_later(max(0.0, self._window_s), self._check)

    def pause(self) -> None:
        """Say that it holds none."""
        self._gone, self._held = self._gone + self._held, 0
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
            self._window_s -= self._loop.time() - self._begun

    def stop(self) -> None:
        """Say that the connection has ended."""
        self._is_over = True
        self.pause()

    def abort(self) -> None:
        """End the connection, whatever it still has to send."""
        log.warning("reader_aborted", client=self._transport.get_extra_info("peername"))
        self._counts.readers_aborted += 1
        self._is_over = True
        self._transport.abort()

    def _check(self) -> None:
        self._timer, self._window_s = None, WINDOW_S
        if self._taken() - self._taken_at_window < LEAST_BYTES_PER_S * WINDOW_S:
            self.abort()
        else:
            self.start()

    def _taken(self) -> int:
        """Return how many bytes the other side has taken since the connection began."""
        if self._is_over:  # the socket may be closed, and its number another one's
            return 0
        if self._socket.family in (socket.AF_INET, socket.AF_INET6):
            try:
                info = self._socket.getsockopt(
                    socket.IPPROTO_TCP, socket.TCP_INFO, _BYTES_ACKED.size
                )
            except OSError:  # uvloop closes a socket that was reset before it says so
                return 0
            (acked,) = _BYTES_ACKED.unpack(info)
            return int(acked)
        return self._gone + self._held - self._transport.get_write_buffer_size()
