"""HTTP over the server's Unix socket, whose answers may bring file descriptors of regions.

A region is memory that both processes map. The server seals it, so that neither can take it away
from under the other; see `stepwell_server/shared_memory`. Linux alone has what this needs.
"""

from __future__ import annotations

import array
import contextlib
import json
import mmap
import os
import socket
import struct
import sys
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from stepwell_core import wire
from stepwell_core.errors import NoSharedMemory

from stepwell.connection import Connection
from stepwell.endpoint import LOCAL_URL, Endpoint
from stepwell.errors import UnexpectedAnswer, from_problem
from stepwell.http_response import Response

if sys.platform != "win32":
    import fcntl

MAX_ANSWER_BYTES = 1 << 20
MAX_DESCRIPTORS = 4
"""In one piece of an answer; the server sends one."""

_CREDENTIALS = struct.Struct("3i")  # process, user, group of the other side; see unix(7)


class MemoryConnection(Connection):
    """A connection to the server's Unix socket.

    What the worker shares with the server belongs to it, and is let go of when it is closed. It is
    closed in a forked process too: what is shared is the parent's.

    Args:
        endpoint: The server; of it, the token and the timeouts count.
        path: Of the socket.
        instance: Of the server: nobody else is told the token.

    Attributes:
        is_usable: Whether every request was answered to its end, and the next one can be.

    Raises:
        OSError: Nobody listens there.
        NoSharedMemory: Another server does, or a process of another user.
    """

    def __init__(self, endpoint: Endpoint, path: str, instance: str) -> None:
        self._timeout = endpoint.timeout
        self._constant = "HTTP/1.1\r\nHost: localhost\r\nAccept: application/json\r\n"
        self._descriptors: list[int] = []
        self._untold = 0  # requests whose answers were not read yet
        self.is_usable = True
        super().__init__(replace(endpoint, url=LOCAL_URL, uds=path))
        _all.add(self)
        try:
            with _short(path) as self._uds:
                self._connect(self._timeout.connect_s)
            self._check_peer(path)
            # A port that is forwarded from elsewhere is local, and its server is not.
            if self.ask("GET", "/healthz").get("instance") != instance:
                raise NoSharedMemory(f"Another server than that of the URL listens at {path}")
        except BaseException:
            self.close()
            raise
        if endpoint.token is not None:
            self._constant += f"Authorization: Bearer {endpoint.token}\r\n"

    def _check_peer(self, path: str) -> None:
        """Refuse a socket behind which is a process of somebody else, who would get the token."""
        assert self._socket is not None, "it was connected just now"
        packed = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        _, user, _ = _CREDENTIALS.unpack(packed)
        if user not in (os.geteuid(), 0):
            raise NoSharedMemory(f"Another user's process (user {user}) listens at {path}")

    def ask(
        self, method: str, target: str, header: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """Send a request and return the fields of its answer.

        Args:
            method: Of HTTP.
            target: Path and query, quoted.
            header: Of a message without payload, if there is a body.

        Raises:
            OSError: The connection ended, or there was no answer in time.
            UnexpectedAnswer: The answer cannot be read.
            StepwellError: What the server says.
        """
        body = b"" if header is None else b"".join(wire.encode(header))
        self.is_usable = False  # whatever ends this in the middle
        while self._untold:
            self._read(Response(self._incoming, "DELETE"))
            self._untold -= 1
        self._forget_descriptors()
        response = self.exchange(method, self._head(method, target, body), [body], self._timeout)
        content = self._read(response)
        self.is_usable = response.is_reusable
        return _fields(content, response.status)

    def tell(self, method: str, target: str) -> None:
        """Send a request without waiting; what is answered is of no interest.

        Raises:
            OSError: The connection ended.
        """
        was_usable, self.is_usable = self.is_usable, False
        self._send(self._head(method, target, b""), ())
        self._untold += 1
        self.is_usable = was_usable

    def take_region(self, nbytes: int, *, is_writable: bool) -> memoryview:
        """Return the region whose descriptor came with the last answer, mapped.

        Raises:
            NoSharedMemory: None came, it is not what the server promises, or it cannot be mapped.
        """
        if not self._descriptors:
            raise NoSharedMemory("No memory came with the answer; is there a proxy in between?")
        descriptor = self._descriptors.pop()
        try:
            seals = fcntl.fcntl(descriptor, fcntl.F_GET_SEALS)
            needed = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW
            if seals & needed != needed or os.fstat(descriptor).st_size < nbytes:
                raise NoSharedMemory("The server shared memory that it could take away")
            access = mmap.PROT_READ | (mmap.PROT_WRITE if is_writable else 0)
            flags = mmap.MAP_SHARED | mmap.MAP_POPULATE
            return memoryview(mmap.mmap(descriptor, nbytes, flags=flags, prot=access))
        except OSError as error:
            raise NoSharedMemory(f"A region cannot be mapped ({error.strerror})") from None
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

    def interrupt(self) -> None:
        """End it for another thread that waits for an answer; `close` comes all the same."""
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close it, and with it let go of everything that is shared."""
        self.is_usable = False
        super().close()
        self._forget_descriptors()

    def _forget_descriptors(self) -> None:
        while self._descriptors:
            os.close(self._descriptors.pop())

    def _head(self, method: str, target: str, body: bytes) -> bytes:
        content = f"Content-Type: {wire.MEDIA_TYPE}\r\nContent-Length: {len(body)}\r\n"
        lines = f"{method} {target} {self._constant}{content if body else ''}\r\n"
        return lines.encode("latin-1")

    def _read(self, response: Response) -> bytes:
        body = bytearray()
        while piece := response.take():
            body += piece
            if len(body) > MAX_ANSWER_BYTES:
                raise UnexpectedAnswer("The answer over the Unix socket does not end")
        return bytes(body)


def _fields(content: bytes, status: int) -> dict[str, Any]:
    try:
        fields = json.loads(content or b"{}")
    except (ValueError, RecursionError):
        fields = None
    if not isinstance(fields, dict):
        raise UnexpectedAnswer("The answer over the Unix socket is no JSON object")
    if status >= 400:
        raise from_problem(fields, status)
    return fields


@contextlib.contextmanager
def _short(path: str) -> Iterator[str]:
    """Name a path in the 107 bytes that an address of a Unix socket has."""
    whole = Path(path).absolute()
    folder = os.open(whole.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{whole.name}"
    finally:
        os.close(folder)


_all: weakref.WeakSet[MemoryConnection] = weakref.WeakSet()


def _close_in_child() -> None:
    """A child that outlives its parent would keep the server from seeing that it died."""
    for connection in _all:
        connection.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_in_child)
