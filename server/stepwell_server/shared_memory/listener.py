"""The Unix socket beside the server's TCP port: for workers on the same host, of the same user."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

from stepwell_core.errors import Conflict

_CREDENTIALS = struct.Struct("3i")  # process, user, group
BACKLOG = 128


def listen(path: Path) -> socket.socket:
    """Return a listening socket; only this user may connect.

    A socket that a dead server left behind is replaced.

    Raises:
        OSError: The folder cannot have a socket, or something else lies there.
        Conflict: Another server listens there.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with _short(path) as address:
            _remove_stale(path, address)
            listener.bind(address)
            os.chmod(address, 0o600)
        listener.listen(BACKLOG)
        listener.setblocking(False)
    except BaseException:
        listener.close()
        raise
    return listener


def is_trusted(transport: asyncio.BaseTransport) -> bool:
    """Whether a connection comes over a Unix socket from a process of this user, or of root."""
    wire = transport.get_extra_info("socket")
    if wire is None or wire.family != socket.AF_UNIX:
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


def _remove_stale(path: Path, address: str) -> None:
    if not path.is_socket():
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(address)
        except ConnectionRefusedError:
            os.unlink(address)
            return
    raise Conflict(f"Another server listens at {path}")
