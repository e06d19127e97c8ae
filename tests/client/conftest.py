"""Servers that several client tests share."""

from __future__ import annotations

import pytest

from tests.servers import served


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """Return a `stepwell serve` on loopback; each test makes models of its own on it."""
    with served(tmp_path_factory.mktemp("data")) as server:
        yield server
