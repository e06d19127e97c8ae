"""Shared memory: regions for gradients, and parameters read where they are."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request
from pydantic import Field
from starlette.responses import Response
from stepwell_core import wire

from stepwell_server.representations import etag
from stepwell_server.routes.access import PREFIX, TheModel, answer, memory_of, staging_of
from stepwell_server.routes.parameters import VersionQuery, wait_for_version

router = APIRouter(tags=["memory"])

MAX_KNOWN = 64


class HoldQuery(VersionQuery):
    """Which version a worker wants to hold, and what it has of it."""

    known: Annotated[list[int], Field(default_factory=list, max_length=MAX_KNOWN)]


@router.post(PREFIX + "/memory/gradients", status_code=201)
async def take_region(request: Request, model: TheModel) -> Response:
    """Take a region for gradients; its file descriptor comes with the answer.

    The connection has one a model; an older one is forgotten. It lives as long as the connection.
    """
    name, layout = model.definition.name, model.engine.layout
    region = await memory_of(request).new_gradient(name, layout, staging_of(request))
    return answer(request, {"bytes": region.nbytes}, 201)


@router.post(PREFIX + "/memory/parameters", status_code=201)
async def hold_parameters(
    request: Request, model: TheModel, query: Annotated[HoldQuery, Query()]
) -> Response:
    """Hold the current version and say where it lies.

    It does not change from then on, whatever becomes of the connection. Let go of it soon: when
    others need its place, one that is old is the worker's alone, and takes a buffer more. `known`
    (repeated) names the regions that the worker has mapped; the file descriptor of another one
    comes with the answer. Waits for a version as a pull does; `etag` is that of the message that a
    pull would be.
    """
    memory = memory_of(request)
    await wait_for_version(request, model, query)
    await model.share()
    present, version = await model.hold()
    number, region = memory.keep(version, model.engine.store, model.pulls, query.known)
    layout = model.engine.layout
    values = {
        "held": number,
        "region": region.serial,
        "bytes": region.nbytes,
        "incarnation": present,
        "version": version.number,
        "loss_scale": model.engine.loss_scale,
        "layout": layout.hash,
        "etag": etag(present, version.number, layout, "", wire.MEDIA_TYPE, "native"),
    }
    return answer(request, values, 201)


@router.delete(PREFIX + "/memory/parameters/{number}", status_code=204)
async def let_go(request: Request, number: int) -> Response:
    """Let go of a version that this connection holds; once more, or of none, does no harm."""
    memory_of(request).let_go(number)
    return Response(status_code=204)
