"""HTTP over the server's Unix socket, whose answers may bring file descriptors of regions.

A region is memory that both processes map. The server seals it, so that neither can take it away
from under the other; see `stepwell_server/shared_memory`.
"""

from __future__ import annotations

import array
import contextlib
import fcntl
import json
import mmap
import os
import socket
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from stepwell_core import wire

from stepwell.connection import Connection
from stepwell.endpoint import Endpoint
from stepwell.errors import ConnectionFailed, UnexpectedAnswer, from_problem
from stepwell.http_response import Response

MAX_ANSWER_BYTES = 1 << 20
MAX_DESCRIPTORS = 4
"""In one piece of an answer; the server sends one."""

_NEEDED_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW


class ConnectionBroke(Exception):
    """The connection ended, or could not be made; an `OSError` of a callback is another thing."""


class MemoryConnection(Connection):
    """A connection to the server's Unix socket.

    What the worker shares with the server belongs to it, and is let go of when it is closed.

    Args:
        endpoint: The server; of it, the token and the timeouts count.
        path: Of the socket.

    Raises:
        ConnectionBroke: Nobody listens there.
    """

    def __init__(self, endpoint: Endpoint, path: str) -> None:
        self._token = endpoint.token
        self._timeout = endpoint.timeout
        self._descriptors: list[int] = []
        self._unread = 0
        with _broken(), _short(path) as address:
            super().__init__(replace(endpoint, url="http://localhost", uds=address))
            self._connect(self._timeout.connect_s)

    def ask(
        self, method: str, target: str, header: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """Send a request and return the fields of its answer.

        Args:
            method: Of HTTP.
            target: Path and query, quoted.
            header: Of a message without payload, if there is a body.

        Raises:
            ConnectionBroke: The connection ended, or there was no answer in time.
            StepwellError: What the server says.
        """
        body = b"".join(wire.encode(header)) if header is not None else b""
        with _broken():
            while self._unread:
                self._read_fields(Response(self._incoming, "DELETE"))
                self._unread -= 1
            head = self._head(method, target, body)
            return self._read_fields(self.exchange(method, head, [body], self._timeout))

    def tell(self, method: str, target: str) -> None:
        """Send a request without waiting; its answer is read before the next one is sent.

        Raises:
            ConnectionBroke: The connection ended, or there was no answer in time.
        """
        with _broken():
            self._send(self._head(method, target, b""), ())
        self._unread += 1

    def take_region(self, nbytes: int, *, is_writable: bool) -> memoryview:
        """Return the region whose descriptor came with the last answer, mapped.

        Raises:
            UnexpectedAnswer: None came, or it is not what the server promises.
        """
        if not self._descriptors:
            raise UnexpectedAnswer("The server shared no memory; is there a proxy in between?")
        descriptor = self._descriptors.pop()
        try:
            seals = fcntl.fcntl(descriptor, fcntl.F_GET_SEALS)
            if seals & _NEEDED_SEALS != _NEEDED_SEALS or os.fstat(descriptor).st_size < nbytes:
                raise UnexpectedAnswer("The server shared memory that it could take away")
            access = mmap.PROT_READ | (mmap.PROT_WRITE if is_writable else 0)
            flags = mmap.MAP_SHARED | mmap.MAP_POPULATE
            return memoryview(mmap.mmap(descriptor, nbytes, flags=flags, prot=access))
        finally:
            os.close(descriptor)

    def receive_into(self, view: memoryview) -> int:
        """Wait for bytes, and keep the descriptors that come with them."""
        assert self._socket is not None, "nothing is received before something was sent"
        room = socket.CMSG_SPACE(MAX_DESCRIPTORS * array.array("i").itemsize)
        count, ancillary, _, _ = self._socket.recvmsg_into([view], room, socket.MSG_CMSG_CLOEXEC)
        for level, kind, packed in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                received = array.array("i")
                received.frombytes(packed)
                self._descriptors += received
        return count

    def close(self) -> None:
        """Close it, and with it let go of everything that is shared."""
        super().close()
        while self._descriptors:
            os.close(self._descriptors.pop())

    def _head(self, method: str, target: str, body: bytes) -> bytes:
        lines = [f"{method} {target} HTTP/1.1", "Host: localhost", "Accept: application/json"]
        if self._token is not None:
            lines.append(f"Authorization: Bearer {self._token}")
        if body:
            lines += [f"Content-Type: {wire.MEDIA_TYPE}", f"Content-Length: {len(body)}"]
        return "\r\n".join([*lines, "", ""]).encode()

    def _read_fields(self, response: Response) -> dict[str, Any]:
        body = bytearray()
        while piece := response.take():
            body += piece
            if len(body) > MAX_ANSWER_BYTES:
                raise UnexpectedAnswer("The answer over the Unix socket does not end")
        if not response.is_reusable:
            raise ConnectionFailed("The server ends the connection over its Unix socket")
        if not body:
            return {}
        try:
            fields = json.loads(bytes(body))
        except ValueError:
            fields = None
        if not isinstance(fields, dict):
            raise UnexpectedAnswer("The answer over the Unix socket is no JSON object")
        if response.status >= 400:
            raise from_problem(fields, response.status)
        return fields


@contextlib.contextmanager
def _broken() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConnectionBroke(
            f"The connection to the server's Unix socket broke ({type(error).__name__})"
        ) from error


@contextlib.contextmanager
def _short(path: str) -> Iterator[str]:
    """Name a path in the 107 bytes that an address of a Unix socket has."""
    whole = Path(path).absolute()
    folder = os.open(whole.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{whole.name}"
    finally:
        os.close(folder)
