"""Parameters: pull all or some, in four formats; overwrite; finalize."""

from __future__ import annotations

import asyncio
from typing import Annotated

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, ConfigDict
from starlette.responses import Response
from stepwell_core import wire
from stepwell_core.errors import LayoutMismatch
from stepwell_core.layout import Layout

from stepwell_server import bodies
from stepwell_server.model import HostedModel
from stepwell_server.representations import (
    MessageResponse,
    etag,
    negotiate,
    payload_of,
    select_arenas,
    whole_body,
)
from stepwell_server.routes.access import PREFIX, TheModel, answer

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
    return await parameters_response(model, layout, media_type, request)


@router.get(PREFIX + "/parameters/{name:path}")
async def pull_one(request: Request, model: TheModel, name: str) -> Response:
    """Pull a single tensor."""
    layout = model.engine.layout.select([name])
    media_type = negotiate(request.headers.get("accept", "*/*"), layout)
    return await parameters_response(model, layout, media_type, request)


async def parameters_response(
    model: HostedModel,
    layout: Layout,
    media_type: str,
    request: Request | None = None,
    **fields: object,
) -> Response:
    """Return the current version's tensors; the version is held until its bytes have left.

    Args:
        model: Whose.
        layout: The model's, or a selection of it.
        media_type: One of `representations.MEDIA_TYPES`.
        request: For its If-None-Match; None means the bytes are wanted in any case.
        fields: Said in the header beside the version.
    """
    version = await model.hold()
    try:
        engine = model.engine
        tag = etag(engine.incarnation, version.number, layout, "", media_type)
        headers = {"ETag": tag, "Vary": "Accept, Authorization", "Cache-Control": "no-cache"}
        if request is not None and request.headers.get("if-none-match") == tag:
            model.release(version)
            return Response(status_code=304, headers=headers)
        values = {
            "protocol": wire.PROTOCOL,
            "incarnation": engine.incarnation,
            "version": version.number,
            "layout": engine.layout.hash,
            "tensors": None if layout is engine.layout else list(layout.names),
            "loss_scale": engine.loss_scale,
            **fields,
        }
        if media_type == wire.MEDIA_TYPE:
            payload = payload_of(engine.layout, version.arenas, layout)
            return MessageResponse(values, payload, lambda: model.release(version), headers)
        arenas = select_arenas(engine.layout, version.arenas, layout)
        body = await asyncio.to_thread(whole_body, media_type, _plain(values), layout, arenas)
    except BaseException:
        model.release(version)
        raise
    model.release(version)
    return Response(body, 200, headers, media_type)


async def _slot(model: HostedModel, layout: Layout, slot: str, media_type: str) -> Response:
    counters, copied = await model.slot(slot)
    whole = model.engine.layout
    values = {
        "protocol": wire.PROTOCOL,
        "incarnation": model.engine.incarnation,
        "version": counters.version,
        "layout": whole.hash,
        "tensors": None if layout is whole else list(layout.names),
        "slot": slot,
    }
    arenas = select_arenas(whole, copied, layout)
    if media_type == wire.MEDIA_TYPE:
        return MessageResponse(values, payload_of(layout, arenas, layout))
    body = await asyncio.to_thread(whole_body, media_type, _plain(values), layout, arenas)
    return Response(body, media_type=media_type)


def _plain(values: dict[str, object]) -> dict[str, object]:
    """Return what people are told beside the tensors."""
    return {name: values[name] for name in ("incarnation", "version", "slot") if name in values}


class OverwriteHeader(BaseModel):
    """The header of an overwrite."""

    model_config = ConfigDict(extra="forbid", strict=True)

    protocol: int = wire.PROTOCOL
    layout: str


@router.put(PREFIX + "/parameters")
async def overwrite(request: Request, model: TheModel) -> Response:
    """Replace all parameters; slots stay, and sessions learn of it at their next push.

    The body is a msgpack stream with the header `{"layout": hash}`, or JSON `{"parameters": {name:
    [[...]]}}`.
    """
    layout = model.engine.layout
    if bodies.is_json(request):
        fields = await bodies.read_json(request)
        arenas = layout.flatten(bodies.arrays_from_json(layout, fields.get("parameters")))
    else:
        reader = bodies.MessageReader(request)
        header = bodies.parse(OverwriteHeader, await reader.header())
        check_layout(header.layout, layout)
        arenas = await reader.payload(layout, "native")
    counters = await model.overwrite(arenas)
    return answer(request, {"incarnation": model.engine.incarnation, "version": counters.version})


@router.post(PREFIX + "/finalize")
async def finalize(request: Request, model: TheModel) -> Response:
    """Write the moving average into the parameters."""
    counters = await model.finalize()
    values = {"version": counters.version, "parameters_version": counters.parameters_version}
    return answer(request, values)


def check_layout(received: str, layout: Layout) -> None:
    """Refuse a message that was made for another layout.

    Raises:
        LayoutMismatch: The hashes differ.
    """
    if received != layout.hash:
        raise LayoutMismatch(
            f"The message was made for layout {received[:64]!r}, the model has {layout.hash!r}; read "
            "the model's tensors again",
            expected=layout.hash,
            received=received[:64],
        )
