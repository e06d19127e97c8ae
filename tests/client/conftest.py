"""What several client tests share: a server, and clients of either kind."""

from __future__ import annotations

import subprocess

import pytest

from tests.client.adapter import ADAPTERS
from tests.servers import served


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """Return a `stepwell serve` on loopback; each test makes models of its own on it."""
    with served(tmp_path_factory.mktemp("data")) as server:
        yield server


@pytest.fixture(scope="session")
def certificate(tmp_path_factory):
    """Return the paths of a certificate for this machine that nobody trusts, and of its key."""
    folder = tmp_path_factory.mktemp("tls")
    certificate, key = folder / "cert.pem", folder / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    command += ["-subj", "/CN=stepwell"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1,DNS:stepwell.test"]
    try:
        subprocess.run(
            [*command, "-keyout", str(key), "-out", str(certificate)],
            check=True,
            capture_output=True,
        )
    except FileNotFoundError:
        pytest.skip("there is no openssl to make a certificate with")
    return certificate, key


@pytest.fixture(params=ADAPTERS)
def clients(request):
    """Return what makes clients of either kind."""
    clients = ADAPTERS[request.param]()
    yield clients
    clients.close()
