"""Plain connections to a server, for what an HTTP library would not send."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tests import servers
from tests.server.calls import MSGPACK, PROBLEM


class Caller:
    """Plain connections to one server, with TLS if it has a certificate."""

    def __init__(self, url: str, cert: Path | None = None) -> None:
        parts = urlsplit(url)
        self.host, self.port = parts.hostname or "", parts.port or 0
        self.tls = None if cert is None else ssl.create_default_context(cafile=str(cert))

    def connect(self, receive_buffer_bytes: int | None = None) -> socket.socket:
        sock = socket.socket()
        sock.settimeout(servers.DEADLINE_S)
        if receive_buffer_bytes is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
        sock.connect((self.host, self.port))
        return sock if self.tls is None else self.tls.wrap_socket(sock, server_hostname=self.host)

    @contextlib.contextmanager
    def session(self) -> Iterator[http.client.HTTPConnection]:
        """Give a connection that is kept alive; http.client sends a large body without copies."""
        connection = http.client.HTTPConnection(self.host, self.port)
        connection.sock = self.connect()
        with contextlib.closing(connection):
            yield connection

    @contextlib.contextmanager
    def line(self) -> Iterator[Line]:
        """Give a connection that says what it is told, byte by byte."""
        with self.connect() as sock, sock.makefile("rb") as file:
            yield Line(sock, file)


@dataclass
class Answer:
    """One answer as it came."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes

    def problem(self, status: int, code: str) -> dict[str, Any]:
        """Check that it is the problem document it should be, and return it."""
        assert self.status == status, self.body
        document = json.loads(self.body)
        assert (document["code"], self.headers["content-type"]) == (code, PROBLEM)
        return document


class Line:
    """One connection; answers are read one by one and nothing behind them is lost."""

    def __init__(self, sock: socket.socket, file: Any) -> None:
        self.sock, self._file = sock, file

    def send(self, *pieces: bytes) -> None:
        for piece in pieces:
            self.sock.sendall(piece)

    def answer(self, is_head: bool = False) -> Answer:
        line = self._file.readline()
        assert line, "the connection was closed without an answer"
        headers = http.client.parse_headers(self._file)
        body = b"" if is_head else self._file.read(int(headers.get("content-length", 0)))
        return Answer(int(line.split()[1]), headers, body)

    def is_closed(self) -> bool:
        """Wait for the server's next byte; return whether it closed instead."""
        try:
            return self._file.read(1) == b""
        except ConnectionResetError:
            return True


def request(
    path: str,
    body: bytes | None = None,
    *lines: str,
    method: str = "POST",
    length: int | None = None,
) -> bytes:
    """Return a request; `length` is what it says of its body, which is msgpack."""
    head = [f"{method} {path} HTTP/1.1", "Host: 127.0.0.1", "Accept: application/json", *lines]
    if body is not None:
        length = len(body) if length is None else length
        head += [f"Content-Type: {MSGPACK}", f"Content-Length: {length}"]
    return "\r\n".join([*head, "", ""]).encode() + (body or b"")


def chunked(path: str, body: bytes, chunk_bytes: int, *lines: str) -> bytes:
    """Return a request whose body comes in chunks."""
    pieces = [body[at : at + chunk_bytes] for at in range(0, len(body), chunk_bytes)]
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"
    fields = (f"Content-Type: {MSGPACK}", "Transfer-Encoding: chunked")
    return request(path, None, *fields, *lines) + chunks
