"""Parameters: pull all or some, in four formats; overwrite; finalize."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from stepwell_core import wire
from stepwell_core.encoding import HALF_DTYPES, encode
from stepwell_core.engine import Engine
from stepwell_core.errors import LayoutMismatch
from stepwell_core.layout import Arenas, Layout
from stepwell_core.placement import extent

from stepwell_server import bodies
from stepwell_server.model import HostedModel
from stepwell_server.representations import (
    MessageResponse,
    PartsResponse,
    converted_bytes,
    etag,
    is_current,
    negotiate,
    payload_of,
    select_arenas,
    whole_body,
)
from stepwell_server.routes.access import (
    MAX_COUNT,
    PREFIX,
    PullDtype,
    TheModel,
    answer,
    drain_of,
    staging_of,
)
from stepwell_server.staging import Staging

MAX_WAIT_S = 60.0
"""How long a pull waits for a version at most; it then comes again, and proxies see it alive."""

ACCOUNTED_BYTES = 1 << 20
"""An answer that is copied takes part in the budget from here on; less waits for nobody."""

router = APIRouter(tags=["parameters"])


class VersionQuery(BaseModel):
    """Which version a reader waits for, and for how long, in the query of a URL."""

    model_config = ConfigDict(extra="forbid")

    min_version: Annotated[int, Field(ge=0, le=MAX_COUNT)] = 0
    incarnation: Annotated[str | None, Field(max_length=64)] = None
    wait_s: Annotated[float, Field(ge=0, le=MAX_WAIT_S)] = 0.0


class PullQuery(VersionQuery):
    """What a pull may ask for."""

    names: list[str] | None = None
    slot: str | None = None
    dtype: PullDtype = "native"


@router.get(PREFIX + "/parameters")
async def pull(request: Request, model: TheModel, query: Annotated[PullQuery, Query()]) -> Response:
    """Pull the parameters, or one slot of the optimizer; one version of all tensors.

    `names` (repeated) chooses tensors; `dtype` float16 or bfloat16 has them rounded, a slot too.
    Waits up to `wait_s` seconds until the parameters are at `min_version` or later, then answers
    with what there is; 409 `stale_incarnation` if `incarnation` is not, or while it waits becomes
    not, the model's. Answers 304 if `If-None-Match` names the present version.
    """
    names, dtype = query.names, query.dtype
    layout = model.engine.layout.select(names) if names else model.engine.layout
    media_type = negotiate(request.headers.get("accept", "*/*"), layout, dtype)
    await wait_for_version(request, model, query)
    if query.slot is not None:
        return await _slot(request, model, layout, query.slot, media_type, dtype)
    return await parameters_response(request, model, layout, media_type, dtype)


async def wait_for_version(request: Request, model: HostedModel, query: VersionQuery) -> None:
    """Wait until the parameters are at a version, or the time is over.

    Raises:
        StaleIncarnation: The model's history is another one, or was cut while this waited.
        ShuttingDown: The server stops.
        ClientDisconnect: Nobody waits for the answer any more.
    """
    model.readers.check(query.incarnation)
    if query.wait_s and not model.readers.has(query.min_version):
        waiting = model.readers.wait_for(query.min_version, query.wait_s, query.incarnation)
        await _while_connected(request, waiting)


async def _while_connected(request: Request, waiting: Coroutine[Any, Any, None]) -> None:
    """Wait, but not for a client that has gone away.

    Raises:
        ClientDisconnect: It has.
    """
    wait, gone = asyncio.ensure_future(waiting), asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait((wait, gone), return_when=asyncio.FIRST_COMPLETED)
        if not wait.done():
            gone.result()  # it may know better why
            raise ClientDisconnect()
        wait.result()
    finally:
        wait.cancel()
        gone.cancel()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass  # a pull has no body; what comes as one is thrown away


@router.get(PREFIX + "/parameters/{name:path}")
async def pull_one(
    request: Request, model: TheModel, name: str, dtype: PullDtype = "native"
) -> Response:
    """Pull a single tensor."""
    layout = model.engine.layout.select([name])
    media_type = negotiate(request.headers.get("accept", "*/*"), layout, dtype)
    return await parameters_response(request, model, layout, media_type, dtype)


async def parameters_response(
    request: Request,
    model: HostedModel,
    layout: Layout,
    media_type: str,
    dtype: str,
    **fields: object,
) -> Response:
    """Return the current version's tensors; to a GET 304, if it names that version.

    The version is held until its bytes have left; if they are converted, until that is done.

    Args:
        request: Who asks.
        model: Whose.
        layout: The model's, or a selection of it.
        media_type: One of `representations.MEDIA_TYPES`.
        dtype: "native", or one of `HALF_DTYPES`.
        fields: Said in the header beside the version.
    """
    known = request.headers.get("if-none-match") if request.method == "GET" else None
    if known is not None:
        tag = etag(*model.readers.present, layout, "", media_type, dtype)
        if is_current(known, tag):  # nothing is read, so nothing need be held
            return Response(status_code=304, headers=_cached(tag))
    await model.rehearsals.for_pull(dtype)
    if media_type != wire.MEDIA_TYPE or dtype != "native":
        nbytes = converted_bytes(layout, media_type, dtype)
        converting = _converted_parameters(model, layout, media_type, dtype, fields)
        return await _accounted(staging_of(request), nbytes, converting)
    whole, (incarnation, version) = model.engine.layout, await model.hold()
    try:
        said, headers = _said(model, layout, media_type, dtype, incarnation, version.number)
        header = {**_payload_header(whole, layout), **said, **fields}
        payload = payload_of(whole, version.arenas, layout)
        on_sent = model.pulls.begin(drain_of(request), lambda: model.release(version))
        return MessageResponse(header, payload, on_sent, headers)
    except BaseException:
        model.release(version)
        raise


async def _accounted(
    staging: Staging, nbytes: int, converting: Coroutine[Any, Any, PartsResponse]
) -> Response:
    """Return an answer that is a copy of its own, for which there is room until it has left.

    Args:
        staging: Where the room is taken from; not for small ones.
        nbytes: How much is copied.
        converting: Makes the answer, when there is room.
    """
    with contextlib.ExitStack() as room, contextlib.closing(converting):
        if nbytes >= ACCOUNTED_BYTES:
            room.enter_context(await staging.take_for_answer(nbytes))
        response = await converting
        response.on_sent = room.pop_all().close
        return response


async def _converted_parameters(
    model: HostedModel, layout: Layout, media_type: str, dtype: str, fields: dict[str, object]
) -> PartsResponse:
    incarnation, version = await model.hold()

    def converted() -> PartsResponse:
        """Release the version in the same thread, even if its reader is gone."""
        try:
            said, headers = _said(model, layout, media_type, dtype, incarnation, version.number)
            return _converted(
                model.engine.layout, version.arenas, layout, media_type, {**said, **fields}, headers
            )
        finally:
            model.release(version)

    return await asyncio.to_thread(converted)


def _converted(
    whole: Layout,
    arenas: Arenas,
    layout: Layout,
    media_type: str,
    said: dict[str, object],
    headers: dict[str, str] | None = None,
) -> PartsResponse:
    """Return the tensors in the format that `said` and the media type name; O(bytes).

    Where that is the one in which they are, the payload is views of `arenas`.
    """
    dtype = str(said["dtype"])
    if dtype in HALF_DTYPES:
        arenas, held = encode(whole, arenas, layout, dtype), layout
    else:
        held = whole
    if media_type == wire.MEDIA_TYPE:
        header = {**_payload_header(whole, layout), **said}
        return MessageResponse(header, payload_of(held, arenas, layout), headers=headers)
    body = whole_body(media_type, said, layout, select_arenas(held, arenas, layout))
    return PartsResponse([body], media_type, headers=headers)


async def _slot(
    request: Request, model: HostedModel, layout: Layout, slot: str, media_type: str, dtype: str
) -> Response:
    whole = model.engine.layout

    def copied(engine: Engine) -> tuple[dict[str, object], Arenas]:
        said = {"incarnation": engine.incarnation, "version": engine.counters.version, "slot": slot}
        return {**said, "dtype": dtype}, engine.slot(slot)

    async def converting() -> PartsResponse:
        said, slots = await model.read(copied)
        return await asyncio.to_thread(_converted, whole, slots, layout, media_type, said)

    await model.rehearsals.for_pull(dtype)
    nbytes = extent(whole) + converted_bytes(layout, media_type, dtype)
    return await _accounted(staging_of(request), nbytes, converting())


def _said(
    model: HostedModel, layout: Layout, media_type: str, dtype: str, incarnation: str, version: int
) -> tuple[dict[str, object], dict[str, str]]:
    """Return what is said of a version beside its tensors, in the body and in the headers."""
    said = {
        "incarnation": incarnation,
        "version": version,
        "loss_scale": model.engine.loss_scale,
        "dtype": dtype,
    }
    return said, _cached(etag(incarnation, version, layout, "", media_type, dtype))


def _cached(tag: str) -> dict[str, str]:
    """Return the headers of an answer that a cache may keep, and has to ask for again."""
    return {"ETag": tag, "Vary": "Accept, Authorization", "Cache-Control": "no-cache"}


def _payload_header(whole: Layout, selection: Layout) -> dict[str, object]:
    """Return what a msgpack header says of its payload."""
    return {
        "protocol": wire.PROTOCOL,
        "layout": whole.hash,
        "tensors": None if selection is whole else list(selection.names),
    }


class OverwriteHeader(BaseModel):
    """The header of an overwrite, or the fields beside the tensors in JSON."""

    model_config = ConfigDict(extra="forbid", strict=True)

    protocol: Literal[1] = 1
    layout: Annotated[str, Field(max_length=64)] | None = None


@router.put(PREFIX + "/parameters")
async def overwrite(request: Request, model: TheModel) -> Response:
    """Replace all parameters; slots stay, and sessions learn of it at their next push.

    The body is a msgpack stream with the header `{"layout": hash}`, or JSON `{"parameters": {name:
    [[...]]}}`.
    """
    layout = model.engine.layout
    if bodies.is_json(request):
        fields = await bodies.read_json(request)
        values = fields.pop("parameters", None)
        header = bodies.parse(OverwriteHeader, fields)
        check_layout(header.layout or layout.hash, layout)
        arrays = await asyncio.to_thread(bodies.arrays_from_json, layout, values)
        cut = await model.overwrite(layout.flatten(arrays))
    else:
        reader = bodies.MessageReader(request)
        header = bodies.parse(OverwriteHeader, await reader.header())
        check_layout(header.layout, layout)
        with await staging_of(request).take(extent(layout)) as lease:
            arenas = lease.arenas(layout, "native")
            await reader.payload(arenas)
            cut = await model.overwrite(arenas, lease)
    incarnation, counters = cut
    return answer(request, {"incarnation": incarnation, "version": counters.version})


@router.post(PREFIX + "/finalize")
async def finalize(request: Request, model: TheModel) -> Response:
    """Write the moving average into the parameters."""
    counters = await model.finalize()
    values = {"version": counters.version, "parameters_version": counters.parameters_version}
    return answer(request, values)


def check_layout(received: str | None, layout: Layout) -> None:
    """Refuse a message that was made for another layout, or does not say for which.

    Raises:
        LayoutMismatch: The hashes differ.
    """
    if received != layout.hash:
        raise LayoutMismatch(
            f"The message was made for layout {received!r}, the model has {layout.hash!r}; read "
            "the model's tensors again",
            expected=layout.hash,
            received=received,
        )
