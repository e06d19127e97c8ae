"""Sends calls with httpx: for asyncio, and for blocking clients behind a proxy.

Large bodies are sent as small views of the caller's arrays: given one big `bytes`, httpx copies the
rest after every write to the socket.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterator, Sequence
from typing import Any, TypeVar

import httpx
from stepwell_core import wire

from stepwell.calls import Answer, Call
from stepwell.endpoint import Endpoint
from stepwell.errors import ClientClosed
from stepwell.transport.answers import AnswerReader, is_stream, no_stream
from stepwell.transport.failures import of_httpx
from stepwell.transport.per_process import PerProcess

PIECE_BYTES = 1 << 18
SMALL_BODY_BYTES = 1 << 16
JSON = "application/json"


class HttpxTransport:
    """Sends calls and blocks; see `DirectTransport`.

    Args:
        endpoint: The server.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self._where = endpoint.name
        self._clients = PerProcess(lambda: new_client(endpoint))

    def send(self, call: Call) -> Answer:
        """Make a call; raises as `DirectTransport.send`."""
        response = self._sent(call)
        try:
            reader = AnswerReader(call, response.status_code, response.headers)
            for piece in _received(response, self._where):
                reader.feed(piece)
            return reader.finish()
        finally:
            response.close()

    def stream(self, call: Call) -> Generator[bytes]:
        """Make a call whose answer has no end; see `DirectTransport.stream`."""
        response = self._sent(call)
        try:
            pieces = _received(response, self._where)
            if not is_stream(response.status_code, response.headers):
                reader = AnswerReader(call, response.status_code, response.headers)
                for piece in pieces:
                    reader.feed(piece)
                reader.finish()
                raise no_stream()
            for piece in pieces:
                yield piece
        finally:
            response.close()

    def _sent(self, call: Call) -> httpx.Response:
        client = _open(self._clients.get())
        try:
            request = client.build_request(call.method, call.target, **_options(call, _pieces))
            return client.send(request, stream=True)
        except httpx.HTTPError as error:
            raise of_httpx(error, self._where) from error

    def close(self) -> None:
        """Close all connections."""
        self._clients.get().close()


class AsyncHttpxTransport:
    """Sends calls with asyncio; see `DirectTransport`.

    Args:
        endpoint: The server.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self._where = endpoint.name
        self._clients = PerProcess(lambda: _new_async_client(endpoint))

    async def send(self, call: Call) -> Answer:
        """Make a call; raises as `DirectTransport.send`."""
        response = await self._sent(call)
        try:
            reader = AnswerReader(call, response.status_code, response.headers)
            async for piece in _async_received(response, self._where):
                reader.feed(piece)
            return reader.finish()
        finally:
            await response.aclose()

    async def stream(self, call: Call) -> AsyncGenerator[bytes]:
        """Make a call whose answer has no end; see `DirectTransport.stream`."""
        response = await self._sent(call)
        try:
            pieces = _async_received(response, self._where)
            if not is_stream(response.status_code, response.headers):
                reader = AnswerReader(call, response.status_code, response.headers)
                async for piece in pieces:
                    reader.feed(piece)
                reader.finish()
                raise no_stream()
            async for piece in pieces:
                yield piece
        finally:
            await response.aclose()

    async def _sent(self, call: Call) -> httpx.Response:
        client = _open(self._clients.get())
        try:
            options = _options(call, _async_pieces)
            request = client.build_request(call.method, call.target, **options)
            return await client.send(request, stream=True)
        except httpx.HTTPError as error:
            raise of_httpx(error, self._where) from error

    async def close(self) -> None:
        """Close all connections."""
        await self._clients.get().aclose()


_Client = TypeVar("_Client", httpx.Client, httpx.AsyncClient)


def _open(client: _Client) -> _Client:
    """Return a client that is not closed.

    Raises:
        ClientClosed: It is.
    """
    if client.is_closed:
        raise ClientClosed("The client is closed; make another one")
    return client


# Only reading is translated: an error of a callback that gets what was read is the caller's own.


def _received(response: httpx.Response, where: str) -> Iterator[bytes]:
    pieces = response.iter_raw()
    while True:
        try:
            piece = next(pieces, b"")
        except httpx.HTTPError as error:
            raise of_httpx(error, where) from error
        if not piece:
            return
        yield piece


async def _async_received(response: httpx.Response, where: str) -> AsyncIterator[bytes]:
    pieces = response.aiter_raw()
    while True:
        try:
            piece = await anext(pieces, b"")
        except httpx.HTTPError as error:
            raise of_httpx(error, where) from error
        if not piece:
            return
        yield piece


def new_client(endpoint: Endpoint) -> httpx.Client:
    """Return a client of httpx that goes where an endpoint says; who asks closes it."""
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


def _options(call: Call, pieces: Any) -> dict[str, Any]:
    """Return httpx's arguments for a call."""
    # Only a payload needs a message; other answers may be larger than a message's header.
    headers = {"Accept": wire.MEDIA_TYPE if call.layout is not None else JSON}
    if call.etag is not None:
        headers["If-None-Match"] = call.etag
    options: dict[str, Any] = {"headers": headers}
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
