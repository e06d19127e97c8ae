"""Sends calls over connections of our own; blocking. No copy of large bodies in either direction.

httpx is the other way, for what this one does not do: see `over_httpx.py`.
"""

from __future__ import annotations

import json
import ssl
import threading
from collections.abc import Generator

from stepwell_core import wire

from stepwell.calls import Answer, Call
from stepwell.connection import Connection
from stepwell.endpoint import Endpoint
from stepwell.errors import ClientClosed
from stepwell.http_response import Response
from stepwell.retry import Timeout
from stepwell.transport.answers import AnswerReader, is_stream, no_stream
from stepwell.transport.failures import of_socket
from stepwell.transport.per_process import PerProcess

JSON = "application/json"


class DirectTransport:
    """Sends calls and blocks. Thread-safe, and a forked process makes connections of its own.

    Args:
        endpoint: The server; no proxy lies between.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self._timeout = endpoint.timeout
        self._where = endpoint.name
        self._requests = Requests(endpoint)
        self._pools = PerProcess(lambda: Pool(endpoint))

    def send(self, call: Call) -> Answer:
        """Make a call.

        Raises:
            TransportError: There was no answer, or none that could be read.
            StepwellError: What the server says.
        """
        pool = self._pools.get()
        connection = pool.take()
        response: Response | None = None
        try:
            response = self._exchange(call, connection)
            return self._read(call, connection, response)
        finally:
            if response is not None and response.is_reusable:
                pool.give_back(connection)
            else:
                connection.close()

    def stream(self, call: Call) -> Generator[bytes]:
        """Make a call whose answer has no end, and yield it as it comes; raises as `send`.

        Close the generator, and its connection is closed.
        """
        connection = self._pools.get().take()
        try:
            response = self._exchange(call, connection)
            if not is_stream(response.status, response.headers):
                self._read(call, connection, response)
                raise no_stream()
            while True:
                try:
                    piece = bytes(response.take())
                except OSError as error:
                    raise self._failure(connection, error) from error
                if not piece:
                    return
                yield piece
        finally:
            connection.close()

    def close(self) -> None:
        """Close all connections."""
        self._pools.get().close()

    def _exchange(self, call: Call, connection: Connection) -> Response:
        body = self._requests.body(call)
        head = self._requests.head(call, body)
        try:
            return connection.exchange(call.method, head, body, self._requests.timeout(call))
        except OSError as error:
            raise self._failure(connection, error) from error

    def _read(self, call: Call, connection: Connection, response: Response) -> Answer:
        reader = AnswerReader(call, response.status, response.headers)
        while True:
            # Only reading is translated: an OSError of a callback is the caller's own.
            target = reader.target()
            piece = memoryview(b"")
            try:
                count = response.read_into(target) if target else len(piece := response.take())
            except OSError as error:
                raise self._failure(connection, error) from error
            if not count:
                return reader.finish()
            if target:
                reader.advance(count)
            else:
                reader.feed(piece)

    def _failure(self, connection: Connection, error: OSError) -> Exception:
        return of_socket(
            error,
            self._where,
            is_connected=connection.is_connected,
            was_sent=connection.was_sent,
        )


class Requests:
    """Writes calls as HTTP requests; what is the same in all of them is made once.

    Args:
        endpoint: The server.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self._timeout = endpoint.timeout
        lines = [f"Host: {endpoint.host}", "Accept-Encoding: identity"]
        if endpoint.token is not None:
            lines.append(f"Authorization: Bearer {endpoint.token}")
        self._constant = " HTTP/1.1\r\n" + "".join(f"{line}\r\n" for line in lines)

    def body(self, call: Call) -> list[wire.Part]:
        """Return the parts of a call's body."""
        return call.body if call.json is None else [json.dumps(dict(call.json)).encode()]

    def head(self, call: Call, body: list[wire.Part]) -> bytes:
        """Return the head of a call, with the empty line."""
        lines = [call.method, " ", call.target, self._constant]
        # Only a payload needs a message; other answers may be larger than a message's header.
        lines.append(f"Accept: {wire.MEDIA_TYPE if call.layout is not None else JSON}\r\n")
        if call.etag is not None:
            lines.append(f"If-None-Match: {call.etag}\r\n")
        if body:
            media_type = wire.MEDIA_TYPE if call.json is None else JSON
            lines.append(f"Content-Type: {media_type}\r\n")
        if body or call.method in ("POST", "PUT", "PATCH"):
            lines.append(f"Content-Length: {wire.nbytes(body)}\r\n")
        return "".join([*lines, "\r\n"]).encode("latin-1")

    def timeout(self, call: Call) -> Timeout:
        """Return how long to wait: half of a call's own time to connect, half for the answer."""
        if call.timeout_s is None:
            return self._timeout
        return Timeout(connect_s=call.timeout_s / 2, read_s=call.timeout_s / 2)


class Pool:
    """The connections of one process that are kept for the next call. Thread-safe.

    Args:
        endpoint: Where they go.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._context: ssl.SSLContext | None = None
        if endpoint.is_tls:  # to read all certificates takes 30 ms
            self._context = endpoint.ssl_context()
        self._kept: list[Connection] = []
        self._is_closed = False
        self._lock = threading.Lock()

    def take(self) -> Connection:
        """Return the connection that was used last, if it is still good, or a new one.

        Raises:
            ClientClosed: The pool is closed.
        """
        while True:
            with self._lock:
                if self._is_closed:
                    raise ClientClosed("The client is closed; make another one")
                connection = self._kept.pop() if self._kept else None
            if connection is None:
                return Connection(self._endpoint, self._context)
            if not connection.is_stale:
                return connection
            connection.close()

    def give_back(self, connection: Connection) -> None:
        """Keep a connection whose exchange is over, and close those that nobody used for long."""
        connection.release()
        with self._lock:
            if self._is_closed:
                connection.close()
                return
            while self._kept and self._kept[0].is_stale:
                self._kept.pop(0).close()
            self._kept.append(connection)

    def close(self) -> None:
        """Close the connections that are kept; others when they are given back."""
        with self._lock:
            self._is_closed = True
            while self._kept:
                self._kept.pop().close()
