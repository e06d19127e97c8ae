"""One server for the tests of all integrations, and models with names of their own."""

from __future__ import annotations

import itertools

import pytest
import stepwell

from tests.servers import served

_NUMBERS = itertools.count()


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """Return a `stepwell serve` on loopback."""
    with served(tmp_path_factory.mktemp("data")) as server:
        yield server


@pytest.fixture
def client(server):
    """Return a client of it."""
    with stepwell.Client(server.url) as client:
        yield client


@pytest.fixture
def name():
    """Return a model's name that no other test has."""
    return f"model-{next(_NUMBERS)}"
