"""Parameters: pull all or some, in four formats; overwrite; finalize."""

from __future__ import annotations

import asyncio
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response
from stepwell_core import wire
from stepwell_core.engine import Engine
from stepwell_core.errors import LayoutMismatch
from stepwell_core.layout import Arenas, Layout
from stepwell_core.store import Version

from stepwell_server import bodies
from stepwell_server.drain import Drain
from stepwell_server.model import HostedModel
from stepwell_server.representations import (
    MessageResponse,
    etag,
    is_current,
    negotiate,
    payload_of,
    select_arenas,
    whole_body,
)
from stepwell_server.routes.access import PREFIX, TheModel, answer, drain_of, staging_of

router = APIRouter(tags=["parameters"])


@router.get(PREFIX + "/parameters")
async def pull(
    request: Request,
    model: TheModel,
    names: Annotated[list[str] | None, Query()] = None,
    slot: str | None = None,
) -> Response:
    """Pull the parameters, or one slot of the optimizer; one version of all tensors.

    `names` (repeated) chooses tensors. Answers 304 if `If-None-Match` names the present version.
    """
    layout = model.engine.layout.select(names) if names else model.engine.layout
    media_type = negotiate(request.headers.get("accept", "*/*"), layout)
    if slot is not None:
        return await _slot(model, layout, slot, media_type)
    return await parameters_response(model, layout, media_type, drain_of(request), request)


@router.get(PREFIX + "/parameters/{name:path}")
async def pull_one(request: Request, model: TheModel, name: str) -> Response:
    """Pull a single tensor."""
    layout = model.engine.layout.select([name])
    media_type = negotiate(request.headers.get("accept", "*/*"), layout)
    return await parameters_response(model, layout, media_type, drain_of(request), request)


async def parameters_response(
    model: HostedModel,
    layout: Layout,
    media_type: str,
    drain: Drain | None,
    request: Request | None = None,
    **fields: object,
) -> Response:
    """Return the current version's tensors; the version is held until its bytes have left.

    Args:
        model: Whose.
        layout: The model's, or a selection of it.
        media_type: One of `representations.MEDIA_TYPES`.
        drain: Of the connection.
        request: For its If-None-Match; None means the bytes are wanted in any case.
        fields: Said in the header beside the version.
    """
    engine = model.engine
    incarnation, version = await model.pulls.hold(model.hold)
    try:
        tag = etag(incarnation, version.number, layout, "", media_type)
        headers = {"ETag": tag, "Vary": "Accept, Authorization", "Cache-Control": "no-cache"}
        if request is not None and is_current(request.headers.get("if-none-match", ""), tag):
            model.release(version)
            return Response(status_code=304, headers=headers)
        said = {
            "incarnation": incarnation,
            "version": version.number,
            "loss_scale": engine.loss_scale,
            **fields,
        }
        if media_type == wire.MEDIA_TYPE:
            payload = payload_of(engine.layout, version.arenas, layout)
            header = {**_payload_header(engine.layout, layout), **said}
            on_sent = model.pulls.begin(drain, lambda: model.release(version))
            return MessageResponse(header, payload, on_sent, headers)
    except BaseException:
        model.release(version)
        raise
    body = await asyncio.to_thread(_body_and_release, model, version, layout, media_type, said)
    return Response(body, 200, headers, media_type)


def _body_and_release(
    model: HostedModel, version: Version, layout: Layout, media_type: str, said: dict[str, object]
) -> bytes:
    """Make a whole body and release its version, in one thread, even if its reader is gone."""
    try:
        arenas = select_arenas(model.engine.layout, version.arenas, layout)
        return whole_body(media_type, said, layout, arenas)
    finally:
        model.release(version)


async def _slot(model: HostedModel, layout: Layout, slot: str, media_type: str) -> Response:
    def copied(engine: Engine) -> tuple[dict[str, object], Arenas]:
        said = {"incarnation": engine.incarnation, "version": engine.counters.version, "slot": slot}
        return said, engine.slot(slot)

    said, slots = await model.read(copied)
    whole = model.engine.layout
    if media_type == wire.MEDIA_TYPE:
        header = {**_payload_header(whole, layout), **said}
        return MessageResponse(header, payload_of(whole, slots, layout))
    arenas = select_arenas(whole, slots, layout)
    body = await asyncio.to_thread(whole_body, media_type, said, layout, arenas)
    return Response(body, media_type=media_type)


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
        with await staging_of(request).take(layout.block_nbytes()) as lease:
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
