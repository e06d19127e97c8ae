"""A browser, a server and a page for the tests of the dashboard."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests import servers
from tests.browser import Watched, chromium, watched


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """One browser for all tests."""
    with chromium() as running:
        yield running


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An open server with no model but those of the tests."""
    with servers.hosted(tmp_path_factory.mktemp("data")) as server:
        yield server.url


@pytest.fixture
def screen(browser: Any, url: str) -> Iterator[Watched]:
    """A page of the open server, that must not have complained in the end."""
    with watched(browser, url) as page:
        yield page
        page.check()
