"""What several client tests share: a server, and clients of either kind."""

from __future__ import annotations

import pytest

from tests.client.adapter import ADAPTERS
from tests.servers import served


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """Return a `stepwell serve` on loopback; each test makes models of its own on it."""
    with served(tmp_path_factory.mktemp("data")) as server:
        yield server


@pytest.fixture(params=ADAPTERS)
def clients(request):
    """Return what makes clients of either kind."""
    clients = ADAPTERS[request.param]()
    yield clients
    clients.close()
