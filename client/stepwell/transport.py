"""Sends calls over HTTP and reads the answers, blocking or with asyncio.

Foreign errors are translated here and nowhere else. Large bodies are sent as small views of the
caller's arrays: given one big `bytes`, httpx copies the rest after every write to the socket.
"""

from __future__ import annotations

import json
import os
import ssl
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any, Generic, TypeVar

import httpx
from stepwell_core import wire
from stepwell_core.errors import LayoutMismatch, StepwellError
from stepwell_core.layout import byte_views

from stepwell.calls import Answer, Call, expected_payload
from stepwell.endpoint import Endpoint
from stepwell.errors import (
    CertificateRefused,
    ConnectionFailed,
    TimedOut,
    TransportError,
    UnexpectedAnswer,
    from_problem,
)

PIECE_BYTES = 1 << 18
SMALL_BODY_BYTES = 1 << 16
JSON = "application/json"
MAX_JSON_BYTES = 16 << 20
"""What a Stepwell server says in JSON is far smaller; something else may go on for ever."""

GATEWAY_FAILURES = frozenset({502, 503, 504})
"""What a proxy says while the server behind it restarts."""


C = TypeVar("C")


class _PerProcess(Generic[C]):
    """An httpx client of this process: a forked one must not write into its parent's sockets."""

    def __init__(self, make: Callable[[], C]) -> None:
        self._make = make
        self._pid = os.getpid()
        self._client = make()
        self._parents: list[C] = []  # kept, since forgetting them would close their sockets

    def get(self) -> C:
        if self._pid != os.getpid():
            self._parents.append(self._client)
            self._client, self._pid = self._make(), os.getpid()
        return self._client


class HttpTransport:
    """Sends calls and blocks. Thread-safe.

    Args:
        endpoint: The server.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self._clients = _PerProcess(lambda: _new_client(endpoint))

    def send(self, call: Call) -> Answer:
        """Make a call.

        Raises:
            TransportError: There was no answer, or none that could be read.
            StepwellError: What the server says.
        """
        client = self._clients.get()
        try:
            request = client.build_request(call.method, call.path, **_options(call, _pieces))
            response = client.send(request, stream=True)
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
        self._clients.get().close()


class AsyncHttpTransport:
    """Sends calls with asyncio; see `HttpTransport`."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._clients = _PerProcess(lambda: _new_async_client(endpoint))

    async def send(self, call: Call) -> Answer:
        """Make a call; raises as `HttpTransport.send`."""
        client = self._clients.get()
        try:
            request = client.build_request(call.method, call.path, **_options(call, _async_pieces))
            response = await client.send(request, stream=True)
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
        await self._clients.get().aclose()


def _new_client(endpoint: Endpoint) -> httpx.Client:
    arguments, connections = endpoint.client_arguments(), endpoint.transport_arguments()
    if not endpoint.is_local:
        return httpx.Client(**arguments, **connections)
    # A proxy of the company cannot reach this machine, so the environment's is not used.
    transport = httpx.HTTPTransport(**connections, uds=endpoint.uds)
    return httpx.Client(**arguments, transport=transport, trust_env=False)


def _new_async_client(endpoint: Endpoint) -> httpx.AsyncClient:
    arguments, connections = endpoint.client_arguments(), endpoint.transport_arguments()
    if not endpoint.is_local:
        return httpx.AsyncClient(**arguments, **connections)
    transport = httpx.AsyncHTTPTransport(**connections, uds=endpoint.uds)
    return httpx.AsyncClient(**arguments, transport=transport, trust_env=False)


class _AnswerReader:
    """Reads one response from its pieces: a message into new arenas, anything else into memory."""

    def __init__(self, call: Call, response: httpx.Response) -> None:
        self._call = call
        self._status = response.status_code
        self._media_type = response.headers.get("content-type", "").split(";")[0].strip()
        is_message = self._media_type == wire.MEDIA_TYPE and self._status < 300
        self._decoder = wire.Decoder() if is_message else None
        self._body = bytearray()
        self._answer: Answer | None = None

    def feed(self, piece: bytes) -> None:
        try:
            self._take(piece)
        except LayoutMismatch:
            raise
        except StepwellError as error:
            raise _unreadable(error) from error

    def _take(self, piece: bytes) -> None:
        if self._decoder is None:
            self._body += piece
            if len(self._body) > MAX_JSON_BYTES:
                raise self._unexpected()
            return
        self._decoder.feed(piece)
        if self._answer is None and self._decoder.header is not None:
            layout = expected_payload(self._call, self._decoder.header)
            arenas = None if layout is None else layout.new_payload()
            self._decoder.receive([] if arenas is None else byte_views(arenas))
            self._answer = Answer(self._decoder.header, arenas, layout)

    def finish(self) -> Answer:
        if self._decoder is None:
            return Answer({} if self._status == 204 else self._fields())
        try:
            self._decoder.finish()
        except StepwellError as error:
            raise _unreadable(error) from error
        assert self._answer is not None, "a complete message has a header"
        return self._answer

    def _fields(self) -> dict[str, Any]:
        try:
            fields = json.loads(bytes(self._body))
        except (ValueError, RecursionError):
            fields = None
        is_object = isinstance(fields, dict)
        if is_object and self._status < 300:
            return dict(fields)
        if is_object and self._status >= 400 and "code" in fields:
            raise from_problem(fields, self._status)
        raise self._unexpected()

    def _unexpected(self) -> TransportError:
        if self._status in GATEWAY_FAILURES:
            return ConnectionFailed(
                f"Something in between answered {self._status} for the server; is it running?",
                was_sent=True,
            )
        return UnexpectedAnswer(
            f"Expected a Stepwell server. Received: status {self._status}, type "
            f"{self._media_type[:40]!r}; is the URL right, and is a proxy in the way?"
        )


def _unreadable(error: StepwellError) -> StepwellError:
    """Return what to raise for an answer that breaks the protocol."""
    if isinstance(error, TransportError):
        return error
    return UnexpectedAnswer(f"The answer cannot be read. {error.message}")


def translated(error: httpx.HTTPError) -> TransportError:
    """Return our exception for one of httpx's."""
    try:
        where = f"{error.request.url.scheme}://{error.request.url.netloc.decode()}"
    except RuntimeError:
        where = "the server"
    name = type(error).__name__
    if _is_about_certificate(error):
        return CertificateRefused(
            f"The certificate of {where} is not trusted. If it is your own, give the client "
            "verify=ssl.create_default_context(cafile=...)",
            was_sent=False,
        )
    if _is_about_tls(error):
        return ConnectionFailed(
            f"{where} does not speak TLS; if it is a Stepwell server without a certificate, its "
            "URL begins with http://",
            was_sent=False,
        )
    if isinstance(error, httpx.ConnectTimeout | httpx.ConnectError | httpx.PoolTimeout):
        return ConnectionFailed(
            f"{where} cannot be reached ({name}); is that the right name and port, and is the "
            "server running? Start one with `stepwell serve`",
            was_sent=False,
        )
    if isinstance(error, httpx.RemoteProtocolError) and where.startswith("http://"):
        return ConnectionFailed(
            f"The connection to {where} broke ({name}); if the server speaks TLS, its URL begins "
            "with https://"
        )
    if isinstance(error, httpx.TimeoutException):
        return TimedOut(f"{where} did not answer in time ({name})")
    if isinstance(error, httpx.TransportError):
        return ConnectionFailed(f"The connection to {where} broke ({name})")
    return TransportError(f"The call to {where} failed ({name})")


def _is_about_certificate(error: BaseException) -> bool:
    return _has_cause(error, ssl.SSLCertVerificationError)


def _is_about_tls(error: BaseException) -> bool:
    return isinstance(error, httpx.ConnectError) and _has_cause(error, ssl.SSLError)


def _has_cause(error: BaseException | None, kind: type[BaseException]) -> bool:
    while error is not None and not isinstance(error, kind):
        error = error.__cause__ or error.__context__
    return error is not None


def _options(call: Call, pieces: Any) -> dict[str, Any]:
    """Return httpx's arguments for a call."""
    # Only a payload needs a message; other answers may be larger than a message's header.
    headers = {"Accept": wire.MEDIA_TYPE if call.layout is not None else JSON}
    options: dict[str, Any] = {"params": dict(call.query), "headers": headers}
    if call.timeout_s is not None:
        options["timeout"] = httpx.Timeout(call.timeout_s / 2)  # to connect, and to answer
    if call.json is not None:
        options["json"] = dict(call.json)
    elif call.body:
        length = wire.nbytes(call.body)
        headers |= {"Content-Type": wire.MEDIA_TYPE, "Content-Length": str(length)}
        is_small = length <= SMALL_BODY_BYTES
        options["content"] = b"".join(call.body) if is_small else pieces(call.body)
    return options


def _pieces(body: Sequence[wire.Part]) -> Iterator[wire.Part]:
    for part in body:
        for start in range(0, len(part), PIECE_BYTES):
            yield part[start : start + PIECE_BYTES]


async def _async_pieces(body: Sequence[wire.Part]) -> AsyncIterator[wire.Part]:
    for piece in _pieces(body):
        yield piece
