"""A tiny HTTP server on loopback that does what no server should.

It is given one *act* for each request, in order; an act gets the connection and writes what it
likes. What arrived is kept, so a test can say what was sent, and how often.
"""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import msgpack
import numpy as np
from stepwell_core import wire

from tests.client.listener import DEADLINE_S, Listener


@dataclass
class Request:
    """What arrived."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def message(self) -> dict[str, Any]:
        """The msgpack header of the body."""
        unpacker = msgpack.Unpacker()
        unpacker.feed(self.body)
        return unpacker.unpack()


Act = Callable[["Connection"], None]


class Connection:
    """The server's end of a connection, for an act."""

    def __init__(self, raw: socket.socket, server: Misbehaving) -> None:
        self._raw = raw
        self._server = server
        self.is_closed = False

    def send(self, data: bytes) -> None:
        """Write bytes."""
        self._raw.sendall(data)

    def close(self) -> None:
        """End the connection in order."""
        self.is_closed = True
        with contextlib.suppress(OSError):
            self._raw.shutdown(socket.SHUT_RDWR)

    def reset(self) -> None:
        """End the connection with RST, so that the other side gets an error."""
        self._raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.is_closed = True

    def wait_for_end(self) -> None:
        """Say nothing until the client goes away, or the test is over."""
        self._raw.settimeout(0.05)
        while not self._server.is_over:
            with contextlib.suppress(TimeoutError):
                if not self._raw.recv(1):
                    break
        self.is_closed = True


class Misbehaving(Listener):
    """The server; a context manager.

    Args:
        acts: One for each request; the last one is used for all further requests.
        tls: To speak TLS, a context.
        uds: To listen on a Unix socket, its path.

    Attributes:
        url: Where it listens.
        requests: What arrived so far.
        body_limit: How much of a body is read before an act; the rest stays in the socket.
    """

    def __init__(
        self, *acts: Act, tls: ssl.SSLContext | None = None, uds: str | None = None
    ) -> None:
        self._acts = list(acts)
        self._tls = tls
        self.requests: list[Request] = []
        self.body_limit: int | None = None
        if uds is None:
            super().__init__()
            address = f"127.0.0.1:{self.port}"
        else:
            listening = socket.socket(socket.AF_UNIX)
            listening.bind(uds)
            listening.listen()
            super().__init__(listening)
            address = "stepwell"
        self.url = f"{'http' if tls is None else 'https'}://{address}"

    def serve(self, raw: socket.socket) -> None:
        with contextlib.ExitStack() as stack:
            stack.enter_context(contextlib.suppress(OSError))
            stack.enter_context(raw)
            if self._tls is not None:
                raw.settimeout(DEADLINE_S)
                raw = stack.enter_context(self._tls.wrap_socket(raw, server_side=True))
            connection = Connection(raw, self)
            while not connection.is_closed and not self.is_over:
                request = self._read(raw)
                if request is None:
                    return
                self.requests.append(request)
                act = self._acts.pop(0) if len(self._acts) > 1 else self._acts[0]
                act(connection)

    def _read(self, raw: socket.socket) -> Request | None:
        head = self._until(raw, bytearray(), lambda data: b"\r\n\r\n" in data)
        if head is None:
            return None
        text, _, rest = bytes(head).partition(b"\r\n\r\n")
        first, *lines = text.decode("latin-1").split("\r\n")
        method, path, _ = first.split(" ")
        headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
        length = int(headers.get("content-length", 0))
        if self.body_limit is not None:
            length = min(length, self.body_limit)
        body = self._until(raw, bytearray(rest), lambda data: len(data) >= length)
        return None if body is None else Request(method, path, headers, bytes(body))

    def _until(
        self, raw: socket.socket, data: bytearray, is_enough: Callable[[bytearray], bool]
    ) -> bytearray | None:
        raw.settimeout(0.05)
        while not is_enough(data):
            try:
                piece = raw.recv(1 << 16)
            except TimeoutError:
                if self.is_over:
                    return None
                continue
            if not piece:
                return None
            data += piece
        raw.settimeout(DEADLINE_S)
        return data


# Answers


def response(body: bytes, status: int = 200, media_type: str = wire.MEDIA_TYPE) -> bytes:
    """Return an HTTP response."""
    head = f"HTTP/1.1 {status} X\r\nContent-Type: {media_type}\r\nContent-Length: {len(body)}\r\n"
    return head.encode() + b"\r\n" + body


def message(header: Mapping[str, Any], *arrays: np.ndarray) -> bytes:
    """Return a msgpack stream."""
    return b"".join(wire.encode(header, [memoryview(array.view(np.uint8)) for array in arrays]))


def problem(code: str, status: int, **fields: Any) -> bytes:
    """Return a problem document as a response."""
    body = json.dumps({"code": code, "detail": "Why.", "status": status, **fields}).encode()
    return response(body, status, "application/problem+json")


# Acts


def answers(data: bytes) -> Act:
    """Return the act of a server that behaves: these bytes, and the connection stays."""
    return lambda connection: connection.send(data)


def says(data: bytes) -> Act:
    """Return the act that writes these bytes and closes."""

    def act(connection: Connection) -> None:
        connection.send(data)
        connection.close()

    return act


def resets(connection: Connection) -> None:
    """Reset the connection: the answer is lost."""
    connection.reset()


def stays_silent(connection: Connection) -> None:
    """Never answer."""
    connection.wait_for_end()


@contextlib.contextmanager
def closed_port() -> Iterator[str]:
    """Give the URL of a port where nothing listens, and nothing will for now."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"
