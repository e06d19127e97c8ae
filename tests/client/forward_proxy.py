"""A forward proxy as companies have them: absolute-form for http, CONNECT for https.

It knows one server, and reaches it whatever host it is asked for; so a test may use names that
exist nowhere. Of http it understands one request a connection.
"""

from __future__ import annotations

import contextlib
import select
import socket
from urllib.parse import urlsplit

from tests.client.listener import DEADLINE_S, TURN_S, Listener


class ForwardProxy(Listener):
    """The proxy; a context manager.

    Args:
        url: Of the server that it reaches.

    Attributes:
        url: Where it listens.
        asked: The first line of each request, or of each tunnel.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._server = (parts.hostname or "", parts.port or 0)
        super().__init__()
        self.url = f"http://127.0.0.1:{self.port}"
        self.asked: list[str] = []

    def serve(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError), socket.create_connection(self._server) as server:
            client.settimeout(DEADLINE_S)
            server.settimeout(DEADLINE_S)
            data = client.recv(1 << 16)
            while b"\r\n\r\n" not in data:
                data += client.recv(1 << 16)
            first, _, rest = data.partition(b"\r\n")
            self.asked.append(first.decode())
            method, target, version = first.split(b" ")
            if method == b"CONNECT":
                client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
            else:
                path = b"/" + target.split(b"/", 3)[3]
                # One request a connection: the server has to close it.
                server.sendall(b" ".join([method, path, version]) + b"\r\n" + rest)
            self._relay(client, server)

    def _relay(self, client: socket.socket, server: socket.socket) -> None:
        others = {client: server, server: client}
        while not self.is_over:
            readable, _, _ = select.select([client, server], [], [], TURN_S)
            for source in readable:
                piece = source.recv(1 << 16)
                if not piece:
                    return
                others[source].sendall(piece)
