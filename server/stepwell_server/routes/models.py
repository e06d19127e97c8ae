"""Models: create, list, look, delete."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response
from stepwell_core import wire
from stepwell_core.definition import Definition
from stepwell_core.errors import InvalidInput, ShuttingDown
from stepwell_core.layout import Arenas
from stepwell_core.placement import extent

from stepwell_server import bodies
from stepwell_server.creation import check_memory
from stepwell_server.routes.access import (
    PREFIX,
    TheModel,
    TheRegistry,
    answer,
    staging_of,
)
from stepwell_server.staging import Staging

router = APIRouter(tags=["models"])


@router.get("/v1/models")
async def list_models(request: Request, registry: TheRegistry) -> Response:
    """List all models, by name."""
    described = []
    for model in registry:
        with contextlib.suppress(ShuttingDown):  # it was deleted in between
            described.append(await model.describe())
    for fields in described:
        del fields["tensors"]
    return answer(request, {"models": described})


@router.post("/v1/models", status_code=201)
async def create_model(request: Request, registry: TheRegistry) -> Response:
    """Create a model.

    The body is a definition, `{"name", "tensors": [{"name", "shape", "dtype"}], "optimizer",
    "exclude_from_weight_decay", "groups", "consistency", "on_nonfinite", "exist_ok"}`, as JSON with
    `"values": {name: [[...]]}`, or as a msgpack stream with the values as payload. Without values
    (in a msgpack stream: `"has_values": false`) all parameters begin at zero.
    """
    if bodies.is_json(request):
        fields = await bodies.read_json(request)
        values = fields.pop("values", None)
        exist_ok, definition = _definition(fields)
        parameters = (
            None if values is None else await asyncio.to_thread(_from_json, definition, values)
        )
    else:
        reader = bodies.MessageReader(request)
        fields = await reader.header()
        has_values = _flag(fields, "has_values", default=True)
        exist_ok, definition = _definition(fields)
        check_memory(definition)
        parameters = await _receive(reader, definition, staging_of(request)) if has_values else None
    model, is_new = await registry.create(definition, parameters, exist_ok=exist_ok)
    fields = {**await model.describe(), "created": is_new}
    return answer(request, fields, 201 if is_new else 200)


@router.get(PREFIX)
async def get_model(request: Request, model: TheModel) -> Response:
    """Say what a model is, and at which version."""
    return answer(request, await model.describe())


@router.delete(PREFIX, status_code=204)
async def delete_model(model: TheModel, registry: TheRegistry) -> Response:
    """Delete a model with all its checkpoints."""
    await registry.delete(model.definition.name)
    return Response(status_code=204)


async def _receive(
    reader: bodies.MessageReader, definition: Definition, staging: Staging
) -> Arenas:
    """Receive initial values into arenas that will be the model's, hence not used again."""
    layout = definition.layout
    with await staging.take(extent(layout), has_block=False):
        arenas = layout.new_payload("native")
        await reader.payload(arenas)
        return arenas


def _definition(fields: dict[str, Any]) -> tuple[bool, Definition]:
    exist_ok = _flag(fields, "exist_ok", default=False)
    if fields.pop("protocol", wire.PROTOCOL) != wire.PROTOCOL:
        raise InvalidInput(f"This server speaks protocol {wire.PROTOCOL}.")
    if "created_with" in fields:
        raise InvalidInput("`created_with` is set by the server.")
    return exist_ok, Definition.from_json(fields)


def _flag(fields: dict[str, Any], name: str, *, default: bool) -> bool:
    value = fields.pop(name, default)
    if not isinstance(value, bool):
        raise InvalidInput(f"`{name}` is true or false. Received: {type(value).__name__}")
    return value


def _from_json(definition: Definition, values: object) -> Arenas:
    return definition.layout.flatten(bodies.arrays_from_json(definition.layout, values))
