"""Parameters as the caller wants them: a msgpack stream, JSON, safetensors or npz.

The msgpack stream is the fast one: the arenas' bytes go to the socket as they lie. The other three
are made whole in memory, and are for tools and people.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from starlette.background import BackgroundTask
from starlette.responses import Response
from starlette.types import Receive, Scope, Send
from stepwell_core import wire
from stepwell_core.errors import NotAcceptable
from stepwell_core.layout import Arenas, Array, Layout, byte_views
from stepwell_core.placement import extent

JSON = "application/json"
SAFETENSORS = "application/vnd.safetensors"
NPZ = "application/vnd.numpy.npz"
MEDIA_TYPES = (wire.MEDIA_TYPE, JSON, SAFETENSORS, NPZ)

MAX_DEFAULT_JSON_ELEMENTS = 10_000
"""A caller who takes anything (a person with curl) gets JSON up to this size, and msgpack above."""

MAX_JSON_ELEMENTS = 1_000_000
JSON_ELEMENT_BYTES = 60
"""So much memory it costs while it is made, so it is not for large models."""

SMALL_MESSAGE_BYTES = 1 << 15
"""Up to here a copy costs less than one more message to the transport."""

TLS_PIECE_BYTES = 1 << 20
"""How much of a payload is encrypted at a time."""


def negotiate(accept: str, layout: Layout, dtype: str = "native") -> str:
    """Return the media type to answer with.

    Args:
        accept: The header; quality values are ignored, the first type that we have is taken.
        layout: What will be sent.
        dtype: In which format; JSON and NumPy's files have no bfloat16.

    Raises:
        NotAcceptable: The caller accepts none that we have.
    """
    has_numpy = dtype != "bfloat16"
    is_small = has_numpy and layout.size <= MAX_DEFAULT_JSON_ELEMENTS
    for entry in accept.split(","):
        media_type = entry.split(";")[0].strip().lower()
        if media_type == JSON and layout.size > MAX_JSON_ELEMENTS:
            continue
        if media_type in (JSON, NPZ) and not has_numpy:
            continue
        if media_type in MEDIA_TYPES:
            return media_type
        if media_type in ("", "*/*", "application/*"):
            return JSON if is_small else wire.MEDIA_TYPE
    possible = [name for name in MEDIA_TYPES if has_numpy or name not in (JSON, NPZ)]
    raise NotAcceptable(
        f"Parameters come as {', '.join(possible)}, JSON up to {MAX_JSON_ELEMENTS} elements and, "
        f"as npz, in another dtype than bfloat16. Received: Accept {accept[:80]!r}, dtype {dtype}",
        media_types=possible,
    )


def etag(
    incarnation: str, version: int, layout: Layout, slot: str, media_type: str, dtype: str
) -> str:
    """Return the ETag of one representation of one version."""
    text = "\n".join((layout.hash, slot, media_type, dtype))
    digest = hashlib.blake2b(text.encode(), digest_size=6).hexdigest()
    return f'"{incarnation}:{version}:{digest}"'


def is_current(if_none_match: str, tag: str) -> bool:
    """Return whether an If-None-Match header names the ETag that we would send."""
    named = [entry.strip().removeprefix("W/") for entry in if_none_match.split(",")]
    return tag in named or "*" in named


def payload_of(whole: Layout, arenas: Mapping[str, Array], selection: Layout) -> list[memoryview]:
    """Return the bytes of a selection, as views into the arenas, in the order of travel."""
    if selection is whole:
        return byte_views(arenas)
    views = []
    for segment in selection.segments.values():
        place = whole.segments[segment.tensor.name]
        dtype = segment.tensor.dtype
        views += byte_views({dtype: arenas[dtype][place.start : place.stop]})
    return views


class PartsResponse(Response):
    """A body in parts that are sent as they lie in memory.

    The last, empty message is what makes it safe: the one before it was only given to the
    transport, and when the send of the last returns, the transport has no byte of it left (see
    `http_protocol.py`).

    Args:
        parts: The body.
        media_type: Of the body.
        on_sent: Called once, when the bytes have left the process or never will; until then the
            parts stay unchanged.
        headers: Of the HTTP response.

    Attributes:
        on_sent: As above; may be set until it is sent.
    """

    def __init__(
        self,
        parts: Sequence[bytes | memoryview],
        media_type: str,
        on_sent: Callable[[], None] | None = None,
        headers: Mapping[str, str] | None = None,
        status_code: int = 200,
    ) -> None:
        self._parts = parts
        self._nbytes = wire.nbytes(parts)
        self.on_sent = on_sent
        self.status_code = status_code
        self.media_type = media_type
        self.background: BackgroundTask | None = None
        self.init_headers({**(headers or {}), "Content-Length": str(self._nbytes)})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the parts, each as it is; small ones are copied, and sent in one go."""
        if scope["method"] != "HEAD" and self._nbytes <= SMALL_MESSAGE_BYTES:
            await self._send_small(send)
            return
        try:
            await send(
                {
                    "type": "http.response.start",
                    "status": self.status_code,
                    "headers": self.raw_headers,
                }
            )
            if scope["method"] != "HEAD":
                # TLS encrypts a whole piece into memory of its own before it sends any of it.
                await self._send_parts(
                    send, TLS_PIECE_BYTES if scope["scheme"] == "https" else None
                )
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            if self.on_sent is not None:
                self.on_sent()

    async def _send_small(self, send: Send) -> None:
        try:
            body = b"".join(self._parts)
        finally:
            if self.on_sent is not None:
                self.on_sent()
        start = {"status": self.status_code, "headers": self.raw_headers}
        await send({"type": "http.response.start", **start})
        await send({"type": "http.response.body", "body": body, "more_body": False})

    async def _send_parts(self, send: Send, piece_bytes: int | None) -> None:
        for part in self._parts:
            step = piece_bytes or len(part)
            for start in range(0, len(part), step):
                piece = part[start : start + step]
                await send({"type": "http.response.body", "body": piece, "more_body": True})


class MessageResponse(PartsResponse):
    """A msgpack stream.

    Args:
        header: Of the message.
        payload: Views that stay unchanged until `on_sent` is called.
        on_sent: See `PartsResponse`.
        headers: Of the HTTP response.
        status_code: Of the HTTP response.
    """

    def __init__(
        self,
        header: Mapping[str, Any],
        payload: Sequence[memoryview] = (),
        on_sent: Callable[[], None] | None = None,
        headers: Mapping[str, str] | None = None,
        status_code: int = 200,
    ) -> None:
        parts = wire.encode(header, payload)
        super().__init__(parts, wire.MEDIA_TYPE, on_sent, headers, status_code)


def converted_bytes(layout: Layout, media_type: str, dtype: str) -> int:
    """Return how much memory making a representation takes at most, in bytes.

    Args:
        layout: Of what is sent.
        media_type: One of `MEDIA_TYPES`.
        dtype: In which format.
    """
    is_native, tensors = dtype == "native", extent(layout, dtype)
    if media_type == wire.MEDIA_TYPE:
        return 0 if is_native else tensors
    body = JSON_ELEMENT_BYTES * layout.size if media_type == JSON else tensors
    return tensors + body


def whole_body(media_type: str, fields: Mapping[str, Any], layout: Layout, arenas: Arenas) -> bytes:
    """Return JSON, safetensors or npz of all tensors of a layout; a copy, O(bytes).

    Args:
        media_type: One of `MEDIA_TYPES` without msgpack.
        fields: What is said beside the tensors: version, incarnation, dtype.
        layout: Of `arenas`.
        arenas: The tensors, in half width if `fields` say so.
    """
    tensors = layout.views(arenas)
    if media_type == JSON:
        values = {name: to_json(array) for name, array in tensors.items()}
        return json.dumps({**fields, "parameters": values}).encode()
    notes = {
        name: value if isinstance(value, str) else json.dumps(value)
        for name, value in fields.items()
    }
    if media_type == SAFETENSORS:
        return _safetensors(tensors, notes, is_bfloat16=fields.get("dtype") == "bfloat16")
    return _npz(tensors)


def _safetensors(
    tensors: Mapping[str, Array], notes: Mapping[str, str], *, is_bfloat16: bool
) -> bytes:
    """Return a safetensors file; its own library has bfloat16 for arrays of ml_dtypes alone."""
    header: dict[str, Any] = {"__metadata__": notes}
    stop = 0
    for name, array in tensors.items():
        start, stop = stop, stop + array.nbytes
        dtype = "BF16" if is_bfloat16 else f"F{array.itemsize * 8}"
        header[name] = {"dtype": dtype, "shape": array.shape, "data_offsets": [start, stop]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # so that the tensors are aligned
    return b"".join(
        [len(text).to_bytes(8, "little"), text, *(array.data for array in tensors.values())]
    )


def _npz(tensors: Mapping[str, Array]) -> bytes:
    """Return what `np.savez` writes; it would take tensors named `file` for its own arguments."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, array in tensors.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, np.asarray(array), allow_pickle=False)
    return buffer.getvalue()


def to_json(array: Array) -> Any:
    """Return nested lists; NaN and infinities become null, which JSON has and they are not in."""
    if bool(np.isfinite(array).all()):
        return array.tolist()
    values = array.astype(object)
    values[~np.isfinite(array)] = None
    return values.tolist()


def select_arenas(whole: Layout, arenas: Arenas, selection: Layout) -> Arenas:
    """Return arenas of a selection: the same ones if it is all, else copies."""
    if selection is whole:
        return arenas
    return selection.flatten({name: whole.segments[name].view(arenas) for name in selection.names})
