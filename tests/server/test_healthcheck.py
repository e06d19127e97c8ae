"""`docker/healthcheck.py`, which says to Docker whether the server in its container is ready."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests import servers

PROGRAM = Path(__file__).resolve().parents[2] / "docker" / "healthcheck.py"


def asked(**environment: object) -> int:
    """Run it in a container's environment; returns its exit code."""
    return ran(**environment).returncode


def ran(**environment: object) -> subprocess.CompletedProcess[str]:
    """Run it in a container's environment."""
    command = [sys.executable, "-I", "-S", str(PROGRAM)]
    variables = {f"STEPWELL_{name.upper()}": str(value) for name, value in environment.items()}
    # What this machine's environment says of a server is not the container's.
    kept = {name: value for name, value in os.environ.items() if not name.startswith("STEPWELL_")}
    return subprocess.run(
        command, env=kept | variables, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize(
    ("listens", "told"),
    [
        ("127.0.0.1", {}),
        ("127.0.0.1", {"host": "0.0.0.0"}),
        ("127.0.0.2", {"host": "127.0.0.2"}),
        ("::1", {"host": "::"}),
    ],
)
def test_a_server_is_asked_where_it_listens(tmp_path, listens, told):
    """Not only on 127.0.0.1: one that is ready is not restarted for ever."""
    with servers.hosted(tmp_path, host=listens) as server:
        port = urlsplit(server.url).port
        found = asked(port=port, **told)

    assert found == 0
    assert asked(port=port, **told) == 1


def test_a_port_of_kubernetes_is_none():
    """The server ignores it too, and listens where it does by default."""
    assert "Traceback" not in ran(port="tcp://10.0.0.1:8700").stderr


def test_a_server_on_a_unix_socket_is_asked_there(tmp_path):
    """It has no port."""
    path = tmp_path / "s"
    with servers.hosted(tmp_path / "data", uds=path):
        found = asked(uds=path)

    assert found == 0
    assert asked(uds=path) == 1


def test_a_server_with_tls_is_asked_over_tls(tmp_path, certificate):
    """Whatever name is in its certificate."""
    cert, key = certificate
    with servers.hosted(tmp_path, tls_cert=cert, tls_key=key) as server:
        assert asked(port=urlsplit(server.url).port, tls_cert=cert) == 0
