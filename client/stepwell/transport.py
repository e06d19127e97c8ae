"""Sends calls over HTTP and reads the answers, blocking or with asyncio.

Foreign errors are translated here and nowhere else. Large bodies are sent as small views of the
caller's arrays: given one big `bytes`, httpx copies the rest after every write to the socket.
"""

from __future__ import annotations

import ipaddress
import json
import ssl
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httpx
from stepwell_core import wire
from stepwell_core.errors import InvalidArgument, StepwellError
from stepwell_core.layout import byte_views

from stepwell.calls import Answer, Call, expected_payload
from stepwell.errors import (
    ConnectionFailed,
    TimedOut,
    TransportError,
    UnexpectedAnswer,
    from_problem,
)

PIECE_BYTES = 1 << 18
SMALL_BODY_BYTES = 1 << 16
KEEP_ALIVE_S = 30.0
"""Shorter than the server's 75 s, so the client never writes into a connection that is being
closed."""


@dataclass(frozen=True)
class Timeout:
    """How long a client waits, in seconds.

    Attributes:
        connect_s: For a connection.
        read_s: For the next bytes of an answer; the server answers a waiting push after 20 s.
        retry_s: For an answer in all, repetitions included. A server that this client never reached
            is given up after `connect_s`.
    """

    connect_s: float = 5.0
    read_s: float = 30.0
    retry_s: float = 60.0

    def to_httpx(self) -> httpx.Timeout:
        """Return httpx's form; writing has no limit of its own while bytes move."""
        return httpx.Timeout(connect=self.connect_s, read=self.read_s, write=None, pool=None)


@dataclass(frozen=True)
class Endpoint:
    """Where the server is and how to speak to it.

    Attributes:
        url: `http://` or `https://`, without a path.
        token: Sent as a bearer token.
        timeout: How long to wait.
        verify: False, or an SSL context: what to think of the server's certificate.
        uds: Path of the Unix socket to use instead of TCP.
    """

    url: str
    token: str | None = None
    timeout: Timeout = Timeout()
    verify: bool | ssl.SSLContext = True
    uds: str | None = None

    def __post_init__(self) -> None:
        """Refuse what is not a server's URL."""
        parts = urlsplit(self.url)
        if (
            parts.scheme not in ("http", "https")
            or not parts.hostname
            or parts.path not in ("", "/")
        ):
            raise InvalidArgument(
                f"A server's URL is like http://127.0.0.1:8700. Received: {self.url[:200]!r}"
            )

    def arguments(self) -> dict[str, Any]:
        """Return what both of httpx's clients are made with."""
        headers = {"Accept": wire.MEDIA_TYPE}
        if self.token is not None:
            headers["Authorization"] = f"Bearer {self.token}"
        return {
            "base_url": self.url,
            "headers": headers,
            "timeout": self.timeout.to_httpx(),
            "verify": self.verify,
            "trust_env": not self.is_local,  # a proxy of the company cannot reach this machine
        }

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


_LIMITS = httpx.Limits(keepalive_expiry=KEEP_ALIVE_S)


class HttpTransport:
    """Sends calls and blocks. Thread-safe.

    Args:
        endpoint: The server.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        arguments = endpoint.arguments()
        self._client = httpx.Client(
            **arguments,
            transport=httpx.HTTPTransport(
                verify=endpoint.verify, limits=_LIMITS, uds=endpoint.uds, trust_env=False
            )
            if endpoint.is_local
            else None,
            limits=_LIMITS,
        )

    def send(self, call: Call) -> Answer:
        """Make a call.

        Raises:
            TransportError: There was no answer, or none that could be read.
            StepwellError: What the server says.
        """
        try:
            request = self._client.build_request(
                call.method, call.path, **_options(call), **_content(call, _pieces)
            )
            response = self._client.send(request, stream=True)
            try:
                reader = _AnswerReader(call, response)
                for piece in response.iter_raw():
                    reader.feed(piece)
                return reader.finish()
            finally:
                response.close()
        except httpx.HTTPError as error:
            raise translated(error) from error

    def close(self) -> None:
        """Close all connections."""
        self._client.close()


class AsyncHttpTransport:
    """Sends calls with asyncio; see `HttpTransport`."""

    def __init__(self, endpoint: Endpoint) -> None:
        arguments = endpoint.arguments()
        self._client = httpx.AsyncClient(
            **arguments,
            transport=httpx.AsyncHTTPTransport(
                verify=endpoint.verify, limits=_LIMITS, uds=endpoint.uds, trust_env=False
            )
            if endpoint.is_local
            else None,
            limits=_LIMITS,
        )

    async def send(self, call: Call) -> Answer:
        """Make a call; raises as `HttpTransport.send`."""
        try:
            request = self._client.build_request(
                call.method, call.path, **_options(call), **_content(call, _async_pieces)
            )
            response = await self._client.send(request, stream=True)
            try:
                reader = _AnswerReader(call, response)
                async for piece in response.aiter_raw():
                    reader.feed(piece)
                return reader.finish()
            finally:
                await response.aclose()
        except httpx.HTTPError as error:
            raise translated(error) from error

    async def close(self) -> None:
        """Close all connections."""
        await self._client.aclose()


class _AnswerReader:
    """Reads one response from its pieces: a message into new arenas, anything else into memory."""

    def __init__(self, call: Call, response: httpx.Response) -> None:
        self._call = call
        self._status = response.status_code
        self._media_type = response.headers.get("content-type", "").split(";")[0].strip()
        self._decoder = wire.Decoder() if self._media_type == wire.MEDIA_TYPE else None
        self._body = bytearray()
        self._answer: Answer | None = None

    def feed(self, piece: bytes) -> None:
        if self._decoder is None:
            self._body += piece
            return
        self._decoder.feed(piece)
        if self._answer is None and self._decoder.header is not None:
            layout = expected_payload(self._call, self._decoder.header)
            arenas = None if layout is None else layout.new_payload()
            self._decoder.receive([] if arenas is None else byte_views(arenas))
            self._answer = Answer(self._status, self._decoder.header, arenas, layout)

    def finish(self) -> Answer:
        if self._decoder is not None:
            self._decoder.finish()
            assert self._answer is not None, "a complete message has a header"
            return self._answer
        if self._status == 204:
            return Answer(self._status, {})
        return Answer(self._status, self._fields())

    def _fields(self) -> dict[str, Any]:
        try:
            fields = json.loads(bytes(self._body))
        except ValueError:
            fields = None
        if not isinstance(fields, dict):
            raise UnexpectedAnswer(
                f"Expected a Stepwell server. Received: status {self._status}, type "
                f"{self._media_type[:40]!r}; is the URL right, and is a proxy in the way?",
                was_sent=True,
            )
        if self._status >= 400:
            raise from_problem(fields, self._status)
        return fields


def translated(error: httpx.HTTPError) -> StepwellError:
    """Return our exception for one of httpx's."""
    try:
        where = str(error.request.url)
    except RuntimeError:
        where = "the server"
    name = type(error).__name__
    if isinstance(error, httpx.ConnectTimeout | httpx.ConnectError | httpx.PoolTimeout):
        return ConnectionFailed(
            f"{where} cannot be reached ({name}); is the server running there? Start one with "
            "`stepwell serve`",
            was_sent=False,
        )
    if isinstance(error, httpx.TimeoutException):
        return TimedOut(f"{where} did not answer in time ({name})", was_sent=True)
    if isinstance(error, httpx.TransportError):
        return ConnectionFailed(f"The connection to {where} broke ({name})", was_sent=True)
    return TransportError(f"The call to {where} failed ({name})", was_sent=True)


def _options(call: Call) -> dict[str, Any]:
    """Return httpx's arguments for everything but the body."""
    options: dict[str, Any] = {"params": dict(call.query)}
    if call.timeout_s is not None:
        options["timeout"] = call.timeout_s
    return options


def _content(call: Call, pieces: Any) -> dict[str, Any]:
    """Return httpx's arguments for a body."""
    if call.json is not None:
        return {"json": dict(call.json)}
    if not call.body:
        return {}
    length = wire.nbytes(call.body)
    headers = {"Content-Type": wire.MEDIA_TYPE, "Content-Length": str(length)}
    if length <= SMALL_BODY_BYTES:
        return {"content": b"".join(call.body), "headers": headers}
    return {"content": pieces(call.body), "headers": headers}


def _pieces(body: tuple[wire.Part, ...]) -> Iterator[wire.Part]:
    for part in body:
        for start in range(0, len(part), PIECE_BYTES):
            yield part[start : start + PIECE_BYTES]


async def _async_pieces(body: tuple[wire.Part, ...]) -> AsyncIterator[wire.Part]:
    for piece in _pieces(body):
        yield piece
