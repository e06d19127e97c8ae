"""The limit of the wire: `sendall` on one side, `recv_into` on the other, nothing in between.

A request is one byte and a length: `u` and the payload follows, answered with one byte when the
last one is there; or `d`, answered with the payload. With a certificate, the same over TLS.
"""

from __future__ import annotations

import socket
import ssl
import struct
import sys
import threading
from typing import Any

import numpy as np

from benchmarks import turns

REQUEST = struct.Struct("<cQ")
UP, DOWN = b"u", b"d"


class RawSocket:
    """A connection to the program.

    Args:
        port: Where it listens.
        cafile: Its certificate, if it speaks TLS.
    """

    def __init__(self, port: int, cafile: str | None = None) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if cafile is not None:
            context = ssl.create_default_context(cafile=cafile)
            self.socket = context.wrap_socket(self.socket, server_hostname="127.0.0.1")

    def push(self, payload: memoryview) -> None:
        """Send so many bytes, and return when they are there."""
        self.socket.sendall(REQUEST.pack(UP, len(payload)))
        self.socket.sendall(payload)
        _receive(self.socket, memoryview(bytearray(1)))

    def pull(self, into: memoryview) -> None:
        """Fill `into` with what the other side sends."""
        self.socket.sendall(REQUEST.pack(DOWN, len(into)))
        _receive(self.socket, into)

    def close(self) -> None:
        """Close the connection."""
        self.socket.close()


def as_bytes(array: Any) -> memoryview:
    """Return a view of an array's bytes."""
    return memoryview(array).cast("B")


def _receive(connection: socket.socket, into: memoryview) -> None:
    while into:
        count = connection.recv_into(into)
        if not count:
            raise ConnectionError("the other side of a raw socket is gone")
        into = into[count:]


def _serve(connection: socket.socket, context: ssl.SSLContext | None) -> None:
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if context is not None:
        connection = context.wrap_socket(connection, server_side=True)
    request, held = memoryview(bytearray(REQUEST.size)), memoryview(b"")
    while True:
        try:
            _receive(connection, request)
        except ConnectionError:
            return
        way, length = REQUEST.unpack(request)
        if len(held) != length:
            held = as_bytes(np.ones(length, np.uint8))  # touched, so no page fault is measured
        if way == UP:
            _receive(connection, held)
            connection.sendall(b"k")
        else:
            connection.sendall(held)


def main() -> None:
    context = None
    if len(sys.argv) > 1:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(*sys.argv[1:])
    listener = socket.create_server(("127.0.0.1", 0), backlog=64)

    def accept() -> None:
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=_serve, args=(connection, context), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    turns.take({}, port=listener.getsockname()[1])


if __name__ == "__main__":
    main()
