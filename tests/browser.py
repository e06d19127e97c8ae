"""A real Chromium for tests, without a window; whatever it complains about fails the test.

Debian's `chromium`, driven by Playwright's Python package, which brings no browser of its own.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from tests.requirements import require_package, require_program

DEADLINE_MS = 30_000
"""For whatever a page is waited for, on a busy machine."""

NOTE_VIOLATIONS = """
window.violations = [];
document.addEventListener("securitypolicyviolation", (event) => {
  window.violations.push(`${event.violatedDirective} ${event.blockedURI} ${event.sample}`);
});
"""


@dataclass
class Watched:
    """A page and all that went wrong on it.

    Attributes:
        page: Playwright's.
        url: Of the server; no other may be asked.
        complaints: Errors, and requests to other hosts.
    """

    page: Any
    url: str
    complaints: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.page.set_default_timeout(DEADLINE_MS)
        self.page.add_init_script(NOTE_VIOLATIONS)
        self.page.on("console", self._console)
        self.page.on("pageerror", lambda error: self.complaints.append(f"pageerror {error}"))
        self.page.on("request", self._request)

    def _console(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(f"console {message.type} {message.text}")

    def _request(self, request: Any) -> None:
        target = urlsplit(request.url)
        if target.scheme not in ("data", "blob") and target.netloc != urlsplit(self.url).netloc:
            self.complaints.append(f"request {request.url}")

    def check(self, *, allowed: str | None = None) -> None:
        """Fail if the page complained of anything, but for what contains `allowed`."""
        found = [text for text in self.complaints if allowed is None or allowed not in text]
        assert not found, found
        assert self.page.evaluate("window.violations") == []


@contextlib.contextmanager
def chromium() -> Iterator[Any]:
    """Run a browser; skips the test where there is none."""
    playwright = require_package("playwright.sync_api")
    path = require_program("chromium", "chromium")
    with playwright.sync_playwright() as driver:
        # Without its sandbox, which root in a container cannot have; it sees our own page alone.
        browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextlib.contextmanager
def watched(browser: Any, url: str, **options: Any) -> Iterator[Watched]:
    """Open a page of a fresh profile; options are Playwright's of a context."""
    context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
    try:
        yield Watched(context.new_page(), url)
    finally:
        context.close()
