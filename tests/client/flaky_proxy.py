"""A TCP proxy between client and server that loses answers when it is told to.

    with FlakyProxy(server.url) as proxy:
        client = stepwell.Client(proxy.url)
        proxy.lose_next_answer(after_bytes=0)

The request has gone through whole and the server has answered; the client gets `after_bytes` of
that answer and then a reset. It can also be late: a request that is held arrives when the client
has given it up.
"""

from __future__ import annotations

import contextlib
import re
import select
import socket
import struct
import threading
from urllib.parse import urlsplit

from tests.client.listener import DEADLINE_S, TURN_S, Listener


class FlakyProxy(Listener):
    """The proxy; a context manager.

    Args:
        url: Of the server behind it.

    Attributes:
        url: Where it listens.
        lost: How many answers were lost so far.
        is_holding: Whether what clients send is kept here, and their connection closed.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._server = (parts.hostname or "", parts.port or 0)
        super().__init__()
        self.url = f"http://127.0.0.1:{self.port}"
        self.lost = 0
        self.is_holding = False
        self._held: list[bytes] = []
        self._lock = threading.Lock()
        self._left: int | None = None  # bytes of the next answer that still go through
        self._answers_to_lose = 0
        self._after_bytes = 0

    def lose_next_answer(self, after_bytes: int = 0, answers: int = 1) -> None:
        """Cut the connection after so many bytes of each of the next answers; of none, if 0."""
        with self._lock:
            self._after_bytes, self._answers_to_lose = after_bytes, answers
            self._left = after_bytes if answers else None

    def release(self) -> list[bytes]:
        """Give the server the requests that were held, and return its answers."""
        answers = []
        for request in self._held:
            with socket.create_connection(self._server, DEADLINE_S) as server:
                server.sendall(request)
                answers.append(_whole(server))
        return answers

    def serve(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError), socket.create_connection(self._server) as server:
            while not self.is_over:
                readable, _, _ = select.select([client, server], [], [], TURN_S)
                for source in readable:
                    piece = source.recv(1 << 16)
                    if not piece:
                        return
                    if source is client and self.is_holding:
                        self._held.append(_whole(client, piece))
                        return
                    elif source is client:
                        server.sendall(piece)
                    elif not self._answer(client, piece):
                        return

    def _answer(self, client: socket.socket, piece: bytes) -> bool:
        """Send a piece of an answer on; returns whether the connection is still there."""
        with self._lock:
            if self._left is None:
                client.sendall(piece)
                return True
            client.sendall(piece[: self._left])
            if len(piece) <= self._left:
                self._left -= len(piece)
                return True
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.lost += 1
            self._answers_to_lose -= 1
            self._left = self._after_bytes if self._answers_to_lose else None
            return False


def _whole(end: socket.socket, data: bytes = b"") -> bytes:
    """Read one request or answer, or the rest of it."""
    end.settimeout(DEADLINE_S)
    while b"\r\n\r\n" not in data:
        data += end.recv(1 << 16)
    head, _, body = data.partition(b"\r\n\r\n")
    length = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
    missing = (int(length[1]) if length else 0) - len(body)
    while missing > 0:
        piece = end.recv(missing)
        data, missing = data + piece, missing - len(piece)
    return data
