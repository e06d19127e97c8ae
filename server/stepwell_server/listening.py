"""Where a server listens: its port, taken before anything else is done, or its Unix socket."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from stepwell_core.errors import StepwellError

MOST_PATH_BYTES = 107
"""Of a Unix socket: Linux has no room for more in an address."""

FREE_PORT_TRIES = 8
"""Of a host with several addresses: a port is wanted that is free on each."""


class AddressUnusable(StepwellError):
    """The server cannot listen there."""

    code = "address_unusable"


class AddressTaken(AddressUnusable):
    """Another program listens there."""

    code = "address_taken"


def bound(host: str, port: int) -> list[socket.socket]:
    """Return sockets with an address, one for each that the host has; they do not listen yet.

    Until they do, who connects is refused. Who is given them closes them. Where IPv6 is switched
    off a host's IPv6 addresses count only if it has no others: `localhost` is 127.0.0.1 there.

    Args:
        host: A name or an address of this machine.
        port: 0 takes a free one, the same for all.

    Raises:
        AddressTaken: Another program listens on the port.
        AddressUnusable: The host is not this machine, or the port is not for this user.
    """
    try:
        return _bound(host, port)
    except OSError as error:
        where = _shown(host, port)
        if error.errno == errno.EADDRINUSE:
            raise _taken(where) from None
        reason = error.strerror or str(error)
        raise AddressUnusable(
            f"The server cannot listen on {where} ({reason}); choose an address of this machine "
            "with --host, and a port above 1023 with --port"
        ) from None


def _bound(host: str, port: int) -> list[socket.socket]:
    flags = socket.AI_PASSIVE
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=flags)
    addresses = list(dict.fromkeys(found))
    for _ in range(FREE_PORT_TRIES if port == 0 else 0):
        try:
            return _bound_to(addresses)
        except OSError as error:  # what is free on one address may be taken on the next
            if error.errno != errno.EADDRINUSE:
                raise
    return _bound_to(addresses)


def _bound_to(addresses: Iterable[tuple[Any, ...]]) -> list[socket.socket]:
    """Bind all, to the port of the first: a free one is one, or clients would be told half."""
    without_ipv6: OSError | None = None
    with ExitStack() as failed:
        sockets: list[socket.socket] = []
        for family, kind, protocol, _, (host, port, *scope) in addresses:
            if sockets:
                port = sockets[0].getsockname()[1]
            try:
                listener = _bound_socket(family, kind, protocol, (host, port, *scope))
            except OSError as error:
                if family != socket.AF_INET6 or not _says_that_ipv6_is_off(error, host):
                    raise
                without_ipv6 = error
            else:
                sockets.append(failed.enter_context(listener))
        if without_ipv6 is not None and not sockets:
            raise without_ipv6
        failed.pop_all()
    return sockets


def _says_that_ipv6_is_off(error: OSError, host: str) -> bool:
    """Return whether it does: the kernel has no IPv6, or the machine no `::1`.

    Of another address EADDRNOTAVAIL says that it is another machine's.
    """
    is_missing = error.errno == errno.EADDRNOTAVAIL and host == "::1"
    return is_missing or error.errno == errno.EAFNOSUPPORT


def _bound_socket(family: int, kind: int, protocol: int, address: tuple[Any, ...]) -> socket.socket:
    with ExitStack() as failed:
        listener = failed.enter_context(socket.socket(family, kind, protocol))
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:  # "::" is no other way to "0.0.0.0"
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind(address)
        failed.pop_all()
    return listener


def listen(sockets: Iterable[socket.socket]) -> None:
    """Begin to listen on what `bound` returned.

    Raises:
        AddressTaken: Another server was bound there at the same time, and listened first.
    """
    for each in sockets:
        try:
            each.listen()
        except OSError:
            raise _taken(_shown(*each.getsockname()[:2])) from None


def _shown(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _taken(where: str) -> AddressTaken:
    return AddressTaken(f"Another program listens on {where}; choose another port with --port")


def prepare_unix_socket(path: Path, *, is_open: bool) -> None:
    """Put a socket file in place whose mode uvicorn's own socket will have.

    Args:
        path: Where the server is about to listen. What a dead server left there is replaced.
        is_open: Whether no token is needed: then only this user may connect, else everyone may try.

    Raises:
        AddressTaken: Another server listens there.
        AddressUnusable: There can be no socket.
    """
    try:
        remove_stale_socket(path, str(path))
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as placeholder:
            placeholder.bind(str(path))
        path.chmod(0o600 if is_open else 0o666)
    except OSError as error:
        reason = error.strerror or str(error)
        raise AddressUnusable(
            f"The server cannot listen on {path} ({reason}); choose another --uds"
        ) from None


def is_served(path: Path | str) -> bool:
    """Return whether somebody listens on a socket.

    Raises:
        OSError: It cannot be told: it is not there, or another user's.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            return False
    return True


def remove_stale_socket(path: Path, address: str) -> None:
    """Remove a socket that a dead server left behind, if there is one.

    Args:
        path: Where, for people.
        address: The same as what `connect` takes, which has 107 bytes at most.

    Raises:
        AddressTaken: A server listens there.
    """
    if not path.is_socket():
        return
    if not is_served(address):
        os.unlink(address)
        return
    raise AddressTaken(f"Another server listens on {path}; choose another path")
