"""Who may do what: a default-deny wrapper around the whole application, outside its routing.

Every request passes here first, also those for paths that do not exist. In this order: a Host that
is ours (a web page cannot rebind its own name to us), an Origin that is ours (a web page cannot
call us), a media type that a browser must ask for first, no encoded body, a token, and the token's
role.
"""

from __future__ import annotations

import contextlib
import ipaddress
from collections.abc import Iterable, Mapping
from functools import lru_cache, partial
from urllib.parse import urlsplit

from starlette.routing import compile_path
from starlette.types import ASGIApp, Receive, Scope, Send
from stepwell_core import errors, wire
from stepwell_core.errors import StepwellError

from stepwell_server import problems
from stepwell_server.tokens import ROLES, Authenticator

PUBLIC = frozenset({"/healthz", "/readyz", "/", "/dashboard/{version}/{file}"})
"""Paths that everyone may get: health, and the dashboard's page and files, which hold no data."""

IS_KNOWN = "stepwell.is_known"
"""In the scope of a public call: whether its caller has a role all the same."""

ROLE = "stepwell.role"
"""In the scope of any other call: the role of its caller."""

IS_STILL_ALLOWED = "stepwell.is_still_allowed"
"""Likewise: a function that says whether the caller would be let through now, too."""

READ, PUSH, ADMIN = ROLES

_MODEL = "/v1/models/{model}"
ROLE_OF_ROUTE: Mapping[tuple[str, str], str] = {
    ("GET", "/openapi.json"): READ,
    ("GET", "/metrics"): READ,
    ("GET", "/v1"): READ,
    ("GET", "/v1/models"): READ,
    ("POST", "/v1/models"): ADMIN,
    ("GET", _MODEL): READ,
    ("DELETE", _MODEL): ADMIN,
    ("GET", _MODEL + "/parameters"): READ,
    ("PUT", _MODEL + "/parameters"): ADMIN,
    ("GET", _MODEL + "/parameters/{name:path}"): READ,
    ("POST", _MODEL + "/gradients"): PUSH,
    ("POST", _MODEL + "/memory/gradients"): PUSH,
    ("POST", _MODEL + "/memory/parameters"): READ,
    ("DELETE", _MODEL + "/memory/parameters/{number}"): READ,
    ("POST", _MODEL + "/finalize"): ADMIN,
    ("GET", _MODEL + "/optimizer"): READ,
    ("PATCH", _MODEL + "/optimizer"): ADMIN,
    ("GET", _MODEL + "/consistency"): READ,
    ("PATCH", _MODEL + "/consistency"): ADMIN,
    ("GET", _MODEL + "/history"): READ,
    ("GET", _MODEL + "/events"): READ,
    ("GET", _MODEL + "/workers"): READ,
    ("POST", _MODEL + "/workers"): PUSH,
    ("DELETE", _MODEL + "/workers/{worker}"): PUSH,
    ("POST", _MODEL + "/workers/{worker}/heartbeat"): PUSH,
    ("GET", _MODEL + "/workers/{worker}/pushes/{sequence}"): PUSH,
    ("GET", _MODEL + "/checkpoints"): READ,
    ("POST", _MODEL + "/checkpoints"): ADMIN,
    ("GET", _MODEL + "/checkpoints/{checkpoint}"): READ,
    ("DELETE", _MODEL + "/checkpoints/{checkpoint}"): ADMIN,
    ("POST", _MODEL + "/checkpoints/{checkpoint}/restore"): ADMIN,
    ("POST", _MODEL + "/checkpoints/{checkpoint}/verify"): ADMIN,
    ("POST", _MODEL + "/checkpoints/{checkpoint}/pin"): ADMIN,
    ("POST", _MODEL + "/checkpoints/{checkpoint}/fork"): ADMIN,
    ("GET", _MODEL + "/checkpoints/{checkpoint}/files/{file}"): READ,
    ("PUT", _MODEL + "/state"): ADMIN,
}
"""The role that each route needs; a test holds it against the routes. What is not here needs
`admin`."""

DECISIVE = frozenset(
    {"host", "origin", "authorization", "content-type", "content-encoding", "content-length"}
)
"""The headers that the gate decides by."""

MAX_ADDRESS_CHARACTERS = 64  # an IPv6 address has 45, its zone not many more

BODY_TYPES = frozenset({"application/json", wire.MEDIA_TYPE})

# The very patterns by which the application routes, so that both mean the same.
_PATTERNS = [
    (method, compile_path(path)[0], role) for (method, path), role in ROLE_OF_ROUTE.items()
]
_PUBLIC_PATTERNS = [compile_path(path)[0] for path in PUBLIC if "{" in path]
_TEMPLATES = [(method, compile_path(path)[0], path) for method, path in ROLE_OF_ROUTE]


class Gate:
    """The wrapper.

    Args:
        app: What is behind it.
        authenticator: Knows the tokens.
        allowed_hosts: Names by which the server may be called, beside IP addresses and localhost.
    """

    def __init__(
        self, app: ASGIApp, authenticator: Authenticator, allowed_hosts: Iterable[str] = ()
    ) -> None:
        self._app = app
        self._authenticator = authenticator
        self._allowed_hosts = frozenset(host.lower() for host in allowed_hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through or answer why not; other connections than HTTP are closed."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            raise RuntimeError("Stepwell speaks HTTP only")
        try:
            self._check(scope)
        except StepwellError as error:
            await problems.problem(error)(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _check(self, scope: Scope) -> None:
        headers = _headers(scope)
        self._check_browser(headers)
        self._check_body(scope["method"], headers)
        if scope["method"] in ("GET", "HEAD") and is_public(scope["path"]):
            scope[IS_KNOWN] = self._is_known(headers)
            return
        needed = role_needed(scope["method"], scope["path"])
        role = self._role(headers)
        if ROLES.index(role) < ROLES.index(needed):
            raise errors.Forbidden(
                f"This call needs a token with the role {needed!r}. Received one with {role!r}",
                needed=needed,
                received=role,
            )
        scope[ROLE] = role
        scope[IS_STILL_ALLOWED] = partial(self._is_allowed, headers, needed)

    def _check_browser(self, headers: Mapping[str, str]) -> None:
        authority = headers.get("host", "").lower()
        host = _host_name(authority)
        if not (host == "localhost" or _is_address(host) or host in self._allowed_hosts):
            raise errors.Forbidden(
                f"This server does not answer to the host name {host[:80]!r}; allow it with "
                "--allowed-host"
            )
        origin = headers.get("origin")
        if origin is not None and _authority(origin) != authority:
            raise errors.Forbidden("Requests from pages of other origins are refused")

    def _check_body(self, method: str, headers: Mapping[str, str]) -> None:
        encoding = headers.get("content-encoding", "identity")
        if encoding.lower() != "identity":
            raise errors.UnsupportedMediaType(
                f"A body is sent as it is. Received: Content-Encoding {encoding[:40]!r}"
            )
        has_body = headers.get("content-length", "0") != "0" or "transfer-encoding" in headers
        if not has_body or method in ("GET", "HEAD"):
            return
        media_type = headers.get("content-type", "").split(";")[0].strip().lower()
        if media_type not in BODY_TYPES:
            raise errors.UnsupportedMediaType(
                f"A body is {' or '.join(sorted(BODY_TYPES))}. Received: {media_type[:80]!r}"
            )

    def _is_allowed(self, headers: Mapping[str, str], needed: str) -> bool:
        with contextlib.suppress(errors.Unauthenticated):
            return ROLES.index(self._role(headers)) >= ROLES.index(needed)
        return False

    def _is_known(self, headers: Mapping[str, str]) -> bool:
        """Return whether the caller has a role, which every role may read with."""
        with contextlib.suppress(errors.Unauthenticated):
            return bool(self._role(headers))
        return False

    def _role(self, headers: Mapping[str, str]) -> str:
        if self._authenticator.is_open:
            return ADMIN
        scheme, _, token = headers.get("authorization", "").partition(" ")
        role = self._authenticator.role_of(token.strip()) if scheme.lower() == "bearer" else None
        if role is None:
            raise errors.Unauthenticated(
                "This server needs a token that it knows: send `Authorization: Bearer <token>`, or "
                "give the client token=... or STEPWELL_TOKEN. One that was revoked is known no "
                "more; make one with `stepwell token create`"
            )
        return role


def _headers(scope: Scope) -> dict[str, str]:
    """Return the headers by name; those that we decide by may come once, or others read them so."""
    headers: dict[str, str] = {}
    for raw_name, raw_value in scope["headers"]:
        name = raw_name.decode("latin-1")
        if name in headers and name in DECISIVE:
            raise errors.MalformedMessage(f"A request has one {name} header. Received: several")
        headers[name] = raw_value.decode("latin-1")
    return headers


def is_public(path: str) -> bool:
    """Return whether everyone may get a path."""
    return path in PUBLIC or any(pattern.match(path) for pattern in _PUBLIC_PATTERNS)


def role_needed(method: str, path: str) -> str:
    """Return the role that a call needs; `admin` for everything that is not in the table."""
    method = "GET" if method == "HEAD" else method
    roles = (role for m, pattern, role in _PATTERNS if m == method and pattern.match(path))
    return next(roles, ADMIN)


def route_template(method: str, path: str) -> str | None:
    """Return the path of the route that a call means, with names for values; None if none does."""
    method = "GET" if method == "HEAD" else method
    routes = (route for m, pattern, route in _TEMPLATES if m == method and pattern.match(path))
    return next(routes, None)


def _host_name(host: str) -> str:
    """Return the name in a Host header, without port and brackets."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.rpartition(":")[0] if host.count(":") == 1 else host


def _authority(origin: str) -> str | None:
    """Return host and port of an Origin header, or None if it has none or is not a URL."""
    try:
        return urlsplit(origin).netloc.lower() or None
    except ValueError:
        return None


@lru_cache(maxsize=64)
def _is_address(host: str) -> bool:
    if len(host) > MAX_ADDRESS_CHARACTERS:
        return False
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
