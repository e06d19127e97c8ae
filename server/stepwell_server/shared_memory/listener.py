"""The Unix socket beside the server's TCP port: for workers on the same host, of the same user."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

from stepwell_server.listening import remove_stale_socket

_CREDENTIALS = struct.Struct("3i")  # process, user, group
BACKLOG = 128


class MemorySocket:
    """A listening socket; only this user may connect.

    One that a dead server left behind is replaced.

    Args:
        path: Where.

    Attributes:
        path: Where.
        socket: To be served; whoever serves it closes it.

    Raises:
        OSError: The folder cannot have a socket, or something else lies there.
        AddressTaken: Another server listens there.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if sys.platform != "linux":
            raise OSError(errno.ENOSYS, f"{sys.platform} has no sealed memory")
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with _short(path) as address:
                remove_stale_socket(path, address)
                os.fchmod(self.socket.fileno(), 0o600)  # before there is a name to connect to
                self.socket.bind(address)
                self._inode = os.stat(address).st_ino
            self.socket.listen(BACKLOG)
            self.socket.setblocking(False)
        except BaseException:
            self.socket.close()
            raise

    def remove(self) -> None:
        """Remove its name, unless another server has taken that by now."""
        with contextlib.suppress(FileNotFoundError):
            if os.stat(self.path).st_ino == self._inode:
                os.unlink(self.path)


def is_trusted(transport: asyncio.BaseTransport) -> bool:
    """Whether a connection comes over a Unix socket from a process of this user, or of root.

    One with TLS does not: descriptors cannot travel inside of it.
    """
    wire = transport.get_extra_info("socket")
    if wire is None or wire.family != socket.AF_UNIX or transport.get_extra_info("sslcontext"):
        return False
    if sys.platform != "linux":
        return False
    packed = wire.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    _, user, _ = _CREDENTIALS.unpack(packed)
    return user in (os.geteuid(), 0)


@contextlib.contextmanager
def _short(path: Path) -> Iterator[str]:
    """Name a path in the 107 bytes that an address of a Unix socket has."""
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)
