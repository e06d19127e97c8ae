"""Request bodies: a msgpack stream into arenas, or JSON for people.

Sizes are checked before memory is taken, and a body is read once, into the place where it is used.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import xxhash
from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect, Request
from stepwell_core import wire
from stepwell_core.errors import (
    BodyTooLarge,
    DtypeMismatch,
    InvalidInput,
    LayoutMismatch,
    MalformedMessage,
    ShapeMismatch,
)
from stepwell_core.layout import MAX_DIMENSIONS, Arenas, Array, Layout, Tensor, byte_views

from stepwell_server.problems import invalid_fields
from stepwell_server.receiving import HTTP_EXTENSION
from stepwell_server.sending import Sender

M = TypeVar("M", bound=BaseModel)

WINDOW_BYTES = 1 << 18
"""Through which a payload is read that is not kept."""


def is_json(request: Request) -> bool:
    """Whether the body is JSON; the gate lets in nothing else but msgpack, and no body at all."""
    return request.headers.get("content-type", "").lower().startswith("application/json")


async def read_json(request: Request) -> dict[str, Any]:
    """Return a JSON body.

    Raises:
        BodyTooLarge: It is larger than people write; send msgpack.
        MalformedMessage: It is not a JSON object.
    """
    limit = request.app.state.settings.max_json_bytes
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > limit:
            raise BodyTooLarge(
                f"A JSON body has at most {limit} bytes; send {wire.MEDIA_TYPE} instead",
                limit=limit,
            )
    try:
        value = json.loads(bytes(body) or b"{}", parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise MalformedMessage(f"The body is not JSON ({type(error).__name__})") from None
    if not isinstance(value, dict):
        raise MalformedMessage(f"A body is a JSON object. Received: {type(value).__name__}")
    return value


def _refuse_constant(name: str) -> float:
    """NaN and Infinity are Python's, not JSON's; `null` stands for them."""
    raise ValueError(name)


async def read_fields(request: Request) -> dict[str, Any]:
    """Return a body of fields alone: a JSON object, or a msgpack stream without payload.

    Raises:
        BodyTooLarge, MalformedMessage, PayloadSizeMismatch: It is not one.
    """
    if wire.MEDIA_TYPE not in request.headers.get("content-type", "").lower():
        return await read_json(request)
    reader = MessageReader(request)
    fields = await reader.header()
    await reader.end()
    return fields


class MessageReader:
    """Reads one msgpack stream: first the header, then, once it was checked, the payload.

    Args:
        request: Its body was not touched yet.

    Attributes:
        sender: Says whether bytes come; None where the server cannot tell.

    Raises:
        BodyTooLarge: The body says that it is larger than the server takes.
    """

    def __init__(self, request: Request) -> None:
        limit = request.app.state.settings.max_body_bytes
        length = request.headers.get("content-length", "").strip()
        if length.isdecimal() and int(length) > limit:
            raise BodyTooLarge(f"A body has at most {limit} bytes. Received: {length}", limit=limit)
        self._decoder = wire.Decoder()
        http = request.scope.get("extensions", {}).get(HTTP_EXTENSION, {})
        self._receive = http.get("receive")
        self.sender: Sender | None = http.get("body")
        self._request = request
        self._has_more = True

    async def header(self) -> dict[str, Any]:
        """Return the header.

        Raises:
            MalformedMessage: It is not one.
        """
        while self._has_more:
            self._decoder.feed(await self._piece())
            if self._decoder.header is not None:
                return self._decoder.header
        self._decoder.finish()
        raise MalformedMessage("The body is empty")

    async def payload(self, arenas: Arenas) -> None:
        """Read the payload into arenas of the caller; nothing is written to them after the end.

        Raises:
            PayloadSizeMismatch: It is shorter or longer.
            ClientDisconnect: The connection ended; nothing was done.
        """
        self._decoder.receive(byte_views(arenas))
        await self.end()

    async def payload_parts(self, parts: Sequence[Arenas]) -> None:
        """Read a payload of several arenas, one after the other; see `payload`."""
        self._decoder.receive([view for arenas in parts for view in byte_views(arenas)])
        await self.end()

    async def fingerprint(self, nbytes: int) -> str:
        """Read a payload of `nbytes` and keep nothing of it but its fingerprint.

        Returns:
            See `Gradient.fingerprint`.

        Raises:
            PayloadSizeMismatch: It is shorter or longer.
            ClientDisconnect: The connection ended; nothing was done.
        """
        fingerprint = xxhash.xxh3_64()
        window = memoryview(bytearray(min(nbytes, WINDOW_BYTES)))
        count, rest = divmod(nbytes, WINDOW_BYTES)
        self._decoder.receive([window] * count + [window[:rest]], on_filled=fingerprint.update)
        await self.end()
        return fingerprint.hexdigest()

    async def end(self) -> None:
        """Read to the end of the body, which may hold nothing more than was asked for.

        Raises:
            PayloadSizeMismatch: It is shorter or longer.
            ClientDisconnect: The connection ended; nothing was done.
        """
        if self._receive is not None:
            await self._receive(self._decoder)
        else:
            while self._has_more:
                self._decoder.feed(await self._piece())
        self._decoder.finish()

    async def _piece(self) -> bytes:
        # Not `request.stream()`: an asynchronous generator that is left half way, as the one for
        # the header would be, costs a task to close it.
        message = await self._request.receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect()
        self._has_more = message.get("more_body", False)
        piece: bytes = message.get("body", b"")
        return piece


def parse(model: type[M], fields: Mapping[str, Any]) -> M:
    """Return `fields` as a checked model.

    Raises:
        InvalidInput: Which fields break which rules.
    """
    try:
        return model.model_validate(dict(fields))
    except ValidationError as error:
        raise invalid_fields(error.errors(include_url=False)) from None


def arrays_from_json(layout: Layout, values: object) -> dict[str, Array]:
    """Return tensors that came as nested lists, all or some of the layout's, in their own dtype.

    Raises:
        InvalidInput: A tensor is unknown, misshaped or not numbers.
    """
    if not isinstance(values, dict) or not values:
        raise LayoutMismatch('Tensors are an object: {"name": [[...]], ...}. Received none')
    selection = layout.select(values)
    return {tensor.name: array_from_json(tensor, values[tensor.name]) for tensor in selection}


def array_from_json(tensor: Tensor, value: object) -> Array:
    """Return one tensor that came as nested lists; null stands for NaN, as in our answers."""
    flat: list[Any] = []
    if not _flatten(value, tensor.shape, flat):
        received = _shape_of(value)
        raise ShapeMismatch(
            f"Tensor {tensor.name!r} has shape {tensor.shape}. Received: {received}, or rows of "
            "different lengths",
            tensor=tensor.name,
            expected=list(tensor.shape),
            received=list(received),
        )
    flat = [math.nan if number is None else number for number in flat]
    if not all(isinstance(number, int | float) and not isinstance(number, bool) for number in flat):
        raise DtypeMismatch(f"Tensor {tensor.name!r} is made of numbers.", tensor=tensor.name)
    try:
        with np.errstate(over="ignore"):
            return np.array(flat, dtype=np.float64).astype(tensor.dtype).reshape(tensor.shape)
    except OverflowError:
        raise InvalidInput(f"Tensor {tensor.name!r} has a number that is too large") from None


def _flatten(value: object, shape: tuple[int, ...], flat: list[Any]) -> bool:
    """Append the elements to `flat`; stop at the first list that is not of the shape."""
    if not shape:
        flat.append(value)
        return not isinstance(value, list)
    if not isinstance(value, list) or len(value) != shape[0]:
        return False
    if len(shape) > 1:
        return all(_flatten(row, shape[1:], flat) for row in value)
    flat.extend(value)
    return not any(isinstance(element, list) for element in value)


def _shape_of(value: object) -> tuple[int, ...]:
    """Return the shape that the first elements of nested lists suggest."""
    shape: list[int] = []
    while isinstance(value, list) and len(shape) < MAX_DIMENSIONS:
        shape.append(len(value))
        value = value[0] if value else None
    return tuple(shape)
