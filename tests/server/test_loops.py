"""A connection that never begins its TLS handshake is closed."""

from __future__ import annotations

import socket

import pytest
from stepwell_server import deadlines

from tests import servers
from tests.server.connections import Caller


@pytest.mark.parametrize("begin", [b"", b"\x16\x03\x01"], ids=["silent", "stopped"])
@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_a_client_that_does_not_shake_hands_is_closed(
    loop, begin, tmp_path, certificate, monkeypatch
):
    """After 5 s, here less; others are served meanwhile."""
    monkeypatch.setattr(deadlines, "TLS_HANDSHAKE_S", 0.3)
    cert, key = certificate
    with servers.hosted(tmp_path, loop=loop, tls_cert=cert, tls_key=key) as server:
        caller = Caller(server.url, cert)
        with socket.create_connection((caller.host, caller.port), servers.DEADLINE_S / 2) as silent:
            silent.sendall(begin)
            with caller.session() as connection:
                connection.request("GET", "/healthz")
                assert connection.getresponse().status == 200

            assert silent.recv(1) == b""
