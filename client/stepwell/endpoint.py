"""Where a server is and how to speak to it: given by the caller, or read from the environment."""

from __future__ import annotations

import ipaddress
import os
import ssl
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import httpx
from stepwell_core import wire
from stepwell_core.errors import InvalidArgument, shown

from stepwell.retry import Timeout

DEFAULT_URL = "http://127.0.0.1:8700"

UNIX = "unix://"
MOST_SOCKET_BYTES = 107
"""Linux has no room for more in an address."""

LOCAL_URL = "http://localhost"
"""What a server behind a Unix socket is called in requests."""

KEEP_ALIVE_S = 30.0
"""Shorter than the server's 75 s, so the client never writes into a connection that is being
closed."""


@dataclass(frozen=True)
class Endpoint:
    """Where the server is and how to speak to it.

    Attributes:
        url: `http://` or `https://`, without a path.
        token: Sent as a bearer token.
        timeout: How long to wait.
        verify: False, or an SSL context: what to think of the server's certificate.
        uds: Path of the Unix socket to use instead of TCP.

    Raises:
        InvalidArgument: Something of it cannot be.
    """

    url: str
    token: str | None = field(default=None, repr=False)
    timeout: Timeout = field(default_factory=Timeout)
    verify: bool | ssl.SSLContext = True
    uds: str | None = None

    def __post_init__(self) -> None:
        """Refuse what is no server's URL or no token."""
        if not _is_server_url(self.url):
            raise InvalidArgument(
                "A server's URL is like http://127.0.0.1:8700, with nothing behind the port and no "
                "user in it, or like unix:///run/stepwell/stepwell.sock. Received: "
                f"{_without_user(self.url)!r}"
            )
        if self.token is not None and not (self.token.isascii() and self.token.isprintable()):
            raise InvalidArgument("A token is like sw_push_... Received: other characters")
        if self.uds is not None and (length := len(os.fsencode(self.uds))) > MOST_SOCKET_BYTES:
            raise InvalidArgument(
                f"The path of a Unix socket has at most {MOST_SOCKET_BYTES} bytes. Received: "
                f"{length} of {self.uds!r}"
            )
        if not isinstance(self.timeout, Timeout):
            raise InvalidArgument(
                "`timeout` is like stepwell.Timeout(retry_s=60). Received: "
                f"{type(self.timeout).__name__}"
            )

    @classmethod
    def find(
        cls,
        url: str | None,
        token: str | None,
        uds: str | os.PathLike[str] | None,
        **options: Any,
    ) -> Self:
        """Return where the server is; what is not given comes from the environment."""
        token = (token or os.environ.get("STEPWELL_TOKEN") or _token_from_file()).strip()
        url = url or os.environ.get("STEPWELL_URL") or DEFAULT_URL
        if uds is None and isinstance(url, str) and url.startswith(UNIX):
            url, uds = LOCAL_URL, _socket_in(url)
        found = cls(
            url=url,
            token=token or None,
            uds=None if uds is None else os.fspath(uds),
            **{name: value for name, value in options.items() if value is not None},
        )
        if found.token and not found.is_local and urlsplit(found.url).scheme == "http":
            warnings.warn(
                "The token travels in the clear over http:// to another machine; use https://",
                stacklevel=3,
            )
        return found

    @property
    def is_local(self) -> bool:
        """Whether the server is on this machine."""
        host = urlsplit(self.url).hostname or ""
        if self.uds is not None or host == "localhost":
            return True
        try:
            return ipaddress.ip_address(host).is_loopback
        except ValueError:
            return False

    @property
    def name(self) -> str:
        """The URL for people: of the Unix socket if there is one."""
        return self.url if self.uds is None else f"{UNIX}{self.uds}"

    @property
    def is_tls(self) -> bool:
        """Whether the server speaks TLS."""
        return urlsplit(self.url).scheme == "https"

    @property
    def host(self) -> str:
        """Name and port as the header `Host` has them."""
        host = urlsplit(self.url).netloc
        return host if host.isascii() else host.encode("idna").decode()

    @property
    def has_proxy(self) -> bool:
        """Whether the environment names a proxy on the way: HTTP_PROXY, NO_PROXY and their like.

        A proxy of the company cannot reach this machine, so there is none to a local server.
        """
        if self.is_local:
            return False
        proxies = getproxies()
        parts = urlsplit(self.url)
        is_named = bool(proxies.get(parts.scheme) or proxies.get("all"))
        return is_named and not proxy_bypass(parts.hostname or "")

    def ssl_context(self) -> ssl.SSLContext:
        """Return what the server's certificate is checked with.

        Raises:
            InvalidArgument: The file that the environment names cannot be used.
        """
        try:
            return httpx.create_ssl_context(self.verify)
        except OSError as error:  # SSLError is one
            path = os.environ.get("SSL_CERT_FILE") or os.environ.get("SSL_CERT_DIR")
            if not path:
                raise
            raise InvalidArgument(
                f"`SSL_CERT_FILE` names a file of certificates, PEM, that cannot be read "
                f"({type(error).__name__}). Received: {path!r}"
            ) from None

    def client_arguments(self) -> dict[str, Any]:
        """Return what both of httpx's clients are made with."""
        headers = {"Accept": wire.MEDIA_TYPE, "Accept-Encoding": "identity"}
        if self.token is not None:
            headers["Authorization"] = f"Bearer {self.token}"
        timeout = httpx.Timeout(
            connect=self.timeout.connect_s,
            read=self.timeout.read_s,
            write=None,  # no limit of its own while bytes move
            pool=None,
        )
        return {"base_url": self.url, "headers": headers, "timeout": timeout}

    def transport_arguments(self) -> dict[str, Any]:
        """Return what httpx makes connections with."""
        needs_none = self.is_local and urlsplit(self.url).scheme == "http"
        verify = False if needs_none else self.ssl_context()  # to read all takes 30 ms
        return {"verify": verify, "limits": httpx.Limits(keepalive_expiry=KEEP_ALIVE_S)}


def check_transport(transport: str) -> str:
    """Return `transport`, which a client was given.

    Raises:
        InvalidArgument: It is neither "auto" nor "http".
    """
    if transport not in ("auto", "http"):
        raise InvalidArgument(f'`transport` is "auto" or "http". Received: {shown(transport)}')
    return transport


def _socket_in(url: str) -> str:
    """Return the path in a URL `unix:///path`.

    Raises:
        InvalidArgument: There is none, or a host before it.
    """
    path = url.removeprefix(UNIX)
    if not path.startswith("/") or len(path) < 2:
        raise InvalidArgument(
            "The URL of a Unix socket is like unix:///run/stepwell/stepwell.sock. Received: "
            f"{url!r}"
        )
    return path


def _token_from_file() -> str:
    """Return the first token of the secret file that `STEPWELL_TOKEN_FILE` names, if it is set."""
    path = os.environ.get("STEPWELL_TOKEN_FILE")
    if not path:
        return ""
    try:
        lines = Path(path).read_text("utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise InvalidArgument(
            f"`STEPWELL_TOKEN_FILE` names a file that cannot be read ({type(error).__name__}). "
            f"Received: {path!r}"
        ) from None
    return next((line for line in map(str.strip, lines) if line and line[0] != "#"), "")


def _is_server_url(url: str) -> bool:
    try:
        parts = urlsplit(url)
        port = parts.port
    except (ValueError, AttributeError, TypeError):
        return False
    is_bare = parts.path in ("", "/") and not (parts.query or parts.fragment or "@" in parts.netloc)
    return parts.scheme in ("http", "https") and bool(parts.hostname) and is_bare and port != 0


def _without_user(url: object) -> str:
    """Return a URL as an error may show it: a password is no text for a log."""
    before, at, behind = str(url)[:200].rpartition("@")
    return f"{before.partition('//')[0]}//...@{behind}" if at else behind
