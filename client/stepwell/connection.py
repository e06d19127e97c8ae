"""One HTTP/1.1 connection of our own: a socket, no copy of what is sent or received.

Foreign exceptions (`OSError` with `ssl.SSLError`, `TimeoutError`, `NoHttp` and `CutOff`) go through
as they are; the transport translates them.
"""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import time
from collections.abc import Iterator, Sequence
from urllib.parse import urlsplit

from stepwell_core.wire import Part

from stepwell.endpoint import KEEP_ALIVE_S, Endpoint
from stepwell.http_response import Incoming, Response
from stepwell.retry import Timeout

SMALL_BYTES = 1 << 16
"""Parts up to here are joined: one system call costs more than to copy them."""

PIECE_BYTES = 1 << 20
"""How much of a large part is sent at a time: each has the whole timeout, and fits the caches."""


class Connection:
    """A connection to a server, made when it is first used. Not thread-safe, one call at a time.

    Args:
        endpoint: Where to, and what to think of its certificate.
        context: For TLS, if the URL is https.

    Attributes:
        is_connected: Whether the server was reached, TLS included.
        was_sent: Whether the server may have received a part of the present request.
    """

    def __init__(self, endpoint: Endpoint, context: ssl.SSLContext | None = None) -> None:
        parts = urlsplit(endpoint.url)
        self._address = (parts.hostname or "", parts.port or _DEFAULT_PORTS[parts.scheme])
        self._uds = endpoint.uds
        self._context = context
        self._socket: socket.socket | None = None
        self._incoming = Incoming(self.receive_into)
        self._poll = select.poll()
        self._used_at = 0.0
        self.is_connected = False
        self.was_sent = False

    def exchange(
        self, method: str, head: bytes, parts: Sequence[Part], timeout: Timeout
    ) -> Response:
        """Send a request and return the response, whose body is not read yet.

        Args:
            method: Of the request.
            head: All of it, with the empty line.
            parts: The body; read until this returns.
            timeout: `connect_s` to connect, `read_s` for each piece that is sent or received.

        Raises:
            OSError: There is no connection, it broke, or time is over: `TimeoutError`.
        """
        self.was_sent = False
        if self._socket is None:
            self._connect(timeout.connect_s)
        assert self._socket is not None
        self._socket.settimeout(timeout.read_s)
        try:
            self._send(head, parts)
        except TimeoutError:
            raise
        except OSError as error:
            # A server that refuses early may answer and close while the body is still being sent.
            try:
                return Response(self._incoming, method, is_last=True)
            except OSError:
                raise error from None
        return Response(self._incoming, method)

    def receive_into(self, view: memoryview) -> int:
        """Wait for bytes, write them to the start of `view` and return how many; 0 at the end."""
        assert self._socket is not None, "nothing is received before something was sent"
        return self._socket.recv_into(view)

    def release(self) -> None:
        """Note that the present exchange is over, and its connection kept for another."""
        self._used_at = time.monotonic()

    @property
    def is_stale(self) -> bool:
        """Whether a kept connection should not be used again: it is old, or the server ended it."""
        if time.monotonic() - self._used_at > KEEP_ALIVE_S:
            return True
        return bool(self._poll.poll(0))  # nothing is due, so what can be read is the end

    def close(self) -> None:
        """Close it; it is never used again."""
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.close()

    def _connect(self, timeout_s: float) -> None:
        if self._uds is not None:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self._socket.settimeout(timeout_s)
            self._socket.connect(self._uds)
        else:
            self._socket = socket.create_connection(self._address, timeout_s)
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._context is not None:
            host = self._address[0]
            self._socket = self._context.wrap_socket(self._socket, server_hostname=host)
        self._poll.register(self._socket, select.POLLIN)
        self.is_connected = True

    def _send(self, head: bytes, parts: Sequence[Part]) -> None:
        assert self._socket is not None
        self.was_sent = self._context is not None  # of a TLS record that failed, who knows
        for piece in pieces(head, parts):
            view = memoryview(piece)
            while view:
                view = view[self._socket.send(view) :]
                self.was_sent = True


_DEFAULT_PORTS = {"http": 80, "https": 443}


def pieces(head: bytes, parts: Sequence[Part]) -> Iterator[Part]:
    """Yield head and parts as they are sent: small ones joined, large ones cut into views."""
    small = bytearray(head)
    for part in parts:
        if len(small) + len(part) <= SMALL_BYTES:
            small += part
            continue
        if small:
            yield memoryview(small)
        small = bytearray()
        for start in range(0, len(part), PIECE_BYTES):
            yield part[start : start + PIECE_BYTES]
    if small:
        yield memoryview(small)
