"""The page's files, in memory, under a name that changes when any of them does.

A file is found in a dictionary, never by a path from a request, so there is no way out of the
folder. Their addresses have a hash of them all, so a browser may keep them for ever, and modules
that import each other are always of one version. `index.html` alone is asked for each time.
"""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import metadata, util
from pathlib import Path

PAGE = Path(__file__).parent / "page"

INDEX = "index.html"
PLOTLY = "plotly.min.js"

MEDIA_TYPES: Mapping[str, str] = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}

CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "connect-src 'self'",
        "img-src 'self' data:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)

HEADERS: Mapping[str, str] = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Vary": "Accept-Encoding",
}
"""Of every answer with one of the files."""

VERSION_MARK = b"{version}"
"""Stands in `index.html` for the hash."""


@dataclass(frozen=True)
class StaticFile:
    """A file as it is sent.

    Attributes:
        body: As it is.
        packed: The same through gzip.
        media_type: Of the body.
    """

    body: bytes
    packed: bytes
    media_type: str

    @classmethod
    def of(cls, name: str, body: bytes) -> StaticFile:
        """Return the file of that name; for 5 MB of JavaScript gzip takes some 0.2 s."""
        # mtime=0: the same bytes each time.
        packed = gzip.compress(body, 6, mtime=0)
        return cls(body, packed, MEDIA_TYPES[Path(name).suffix])


class Files:
    """The files of the page. Any thread may ask.

    Args:
        plotly: Of the package `plotly`; None if it is not installed, and there are no charts then.

    Attributes:
        version: The hash.
        index: The page at `/`.
    """

    def __init__(self, plotly: Path | None) -> None:
        bodies = {path.name: path.read_bytes() for path in sorted(PAGE.iterdir()) if _is_ours(path)}
        index = bodies.pop(INDEX)
        digest = hashlib.blake2b(index, digest_size=8)
        for name, body in bodies.items():
            digest.update(name.encode() + b"\0" + body)
        if plotly is not None:
            digest.update(metadata.version("plotly").encode())
        self.version = digest.hexdigest()
        self.index = StaticFile.of(INDEX, index.replace(VERSION_MARK, self.version.encode()))
        self._files = {name: StaticFile.of(name, body) for name, body in bodies.items()}
        self._plotly = plotly

    @property
    def names(self) -> frozenset[str]:
        """Names of all files but the index."""
        return frozenset(self._files) | ({PLOTLY} if self._plotly is not None else set())

    def find(self, version: str, name: str) -> StaticFile | None:
        """Return a file, or None if there is none of that name and version.

        plotly.js is read when somebody first asks for it, which blocks for as long as gzip takes.
        """
        if version != self.version:
            return None
        if name == PLOTLY and self._plotly is not None and name not in self._files:
            self._files[name] = StaticFile.of(name, self._plotly.read_bytes())
        return self._files.get(name)


@cache
def shared_files() -> Files:
    """Return the files that all servers of this process share; reads them the first time."""
    return Files(_installed_plotly())


def _is_ours(path: Path) -> bool:
    return path.suffix in MEDIA_TYPES


def _installed_plotly() -> Path | None:
    """Return where plotly.js is, without importing the package, which takes longer than a start."""
    spec = util.find_spec("plotly")
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin).parent / "package_data" / PLOTLY
    return path if path.is_file() else None
