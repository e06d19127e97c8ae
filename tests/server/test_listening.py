"""A port is taken before anything else is done."""

from __future__ import annotations

import errno
import os
import socket
from typing import ClassVar

import pytest
from stepwell_server.listening import AddressTaken, AddressUnusable, bound, listen


def closed(sockets):
    """Close sockets; returns their addresses."""
    addresses = [listener.getsockname()[:2] for listener in sockets]
    for listener in sockets:
        listener.close()
    return addresses


def test_it_does_not_listen_yet():
    """A worker that comes while models are recovered is refused, and tries again."""
    (listener,) = bound("127.0.0.1", 0)
    with listener, socket.socket() as caller, pytest.raises(ConnectionRefusedError):
        caller.connect(listener.getsockname())


def test_of_two_that_are_bound_at_once_the_one_that_listens_later_is_told():
    """The kernel lets both bind until one listens: two servers that start together."""
    (first,) = bound("127.0.0.1", 0)
    port = first.getsockname()[1]
    (second,) = bound("127.0.0.1", port)

    with first, second:
        listen([first])
        with pytest.raises(AddressTaken, match=f"127.0.0.1:{port}; choose another port"):
            listen([second])


def test_a_host_with_several_addresses_has_a_socket_for_each(monkeypatch):
    """A name may be an IPv4 and an IPv6 address; one that is there twice is bound once."""
    found = [
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 0)),
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.2", 0)),
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 0)),
    ]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *arguments, **options: found)

    assert [host for host, _ in closed(bound("two.example", 0))] == ["127.0.0.1", "127.0.0.2"]


LOCALHOST = [
    (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 0)),
    (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("::1", 0, 0, 0)),
]
"""What most machines say that it is."""


def test_a_free_port_is_one_for_all_addresses_of_the_host(monkeypatch):
    """The log names one, and clients that resolve the name try both addresses."""
    monkeypatch.setattr(socket, "getaddrinfo", lambda *arguments, **options: LOCALHOST)

    (four, port), (six, other) = closed(bound("localhost", 0))

    assert (four, six) == ("127.0.0.1", "::1")
    assert port == other != 0


def test_a_free_port_that_is_taken_on_the_second_address_is_another(monkeypatch):
    """Somebody has it there; that is no reason not to start."""
    monkeypatch.setattr(socket, "getaddrinfo", lambda *arguments, **options: LOCALHOST)
    monkeypatch.setattr(socket, "socket", TakenAtFirst)
    TakenAtFirst.refused.clear()

    (_, port), (_, other) = closed(bound("localhost", 0))

    assert len(TakenAtFirst.refused) == 1
    assert port == other != 0


class TakenAtFirst(socket.socket):
    """Finds the first port that is wanted of ::1 taken."""

    refused: ClassVar[list[int]] = []

    def bind(self, address):
        if address[0] == "::1" and not self.refused:
            self.refused.append(address[1])
            raise OSError(errno.EADDRINUSE, "Address already in use")
        super().bind(address)


class WithoutIPv6(socket.socket):
    """On a machine that has no `::1`, or no IPv6 at all."""

    error: ClassVar[int] = 0

    def __init__(self, family, *arguments):
        if family == socket.AF_INET6 and self.error == errno.EAFNOSUPPORT:
            raise OSError(self.error, os.strerror(self.error))
        super().__init__(family, *arguments)

    def bind(self, address):
        if self.family == socket.AF_INET6:
            raise OSError(self.error, os.strerror(self.error))
        super().bind(address)


@pytest.mark.parametrize("error", [errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT])
def test_localhost_is_one_address_where_ipv6_is_off(monkeypatch, error):
    """Also if it is named first, as it mostly is; by itself it is refused."""
    monkeypatch.setattr(socket, "socket", WithoutIPv6)
    monkeypatch.setattr(WithoutIPv6, "error", error)
    found = LOCALHOST[::-1]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *arguments, **options: found)

    assert [host for host, _ in closed(bound("localhost", 0))] == ["127.0.0.1"]

    found = LOCALHOST[1:]
    with pytest.raises(AddressUnusable, match=os.strerror(error)):
        bound("::1", 0)


def test_a_port_that_is_taken_is_told_and_nothing_stays_open(monkeypatch):
    """Though the host's first address is free."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        found = [
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, port))
            for host in ("127.0.0.2", "127.0.0.1")
        ]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *arguments, **options: found)
        with pytest.raises(AddressTaken, match=f"listens on x:{port}; choose another port"):
            bound("x", port)
        monkeypatch.undo()

        assert closed(bound("127.0.0.2", port)) == [("127.0.0.2", port)]


OWN = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 0))
FOREIGN = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.0.2.1", 0))
FOREIGN_IPV6 = (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("2001:db8::1", 0, 0, 0))


@pytest.mark.parametrize("found", [[OWN, FOREIGN], [OWN, FOREIGN_IPV6], [FOREIGN_IPV6, OWN]])
def test_a_host_that_is_another_machine_too_is_refused(monkeypatch, found):
    """Its clients might be led there; a machine with IPv6 off is something else."""
    monkeypatch.setattr(socket, "getaddrinfo", lambda *arguments, **options: found)

    with pytest.raises(AddressUnusable, match=r"cannot listen on two\.example:0"):
        bound("two.example", 0)


def test_an_ipv6_port_that_is_not_for_this_user_is_no_missing_address(monkeypatch):
    """What is refused for another reason is told."""
    monkeypatch.setattr(socket, "socket", WithoutIPv6)
    monkeypatch.setattr(WithoutIPv6, "error", errno.EACCES)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *arguments, **options: LOCALHOST)

    with pytest.raises(AddressUnusable, match="Permission denied"):
        bound("localhost", 0)


@pytest.mark.parametrize("host", ["192.0.2.1", "no.such.host.invalid"])
def test_an_address_of_another_machine_is_refused(host):
    """With what was received and what to do."""
    with pytest.raises(AddressUnusable, match=f"cannot listen on {host}:0 .*--host"):
        bound(host, 0)
