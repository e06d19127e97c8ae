"""Models: create, list, look, delete."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response
from stepwell_core.definition import Definition
from stepwell_core.errors import InvalidInput
from stepwell_core.layout import Arenas

from stepwell_server import bodies
from stepwell_server.registry import check_memory
from stepwell_server.routes.access import PREFIX, TheModel, TheRegistry, answer, describe

router = APIRouter(tags=["models"])


@router.get("/v1/models")
async def list_models(request: Request, registry: TheRegistry) -> Response:
    """List all models, by name."""
    models = [describe(model) for model in registry]
    for model in models:
        del model["tensors"]
    return answer(request, {"models": models})


@router.post("/v1/models", status_code=201)
async def create_model(request: Request, registry: TheRegistry) -> Response:
    """Create a model.

    The body is a definition, `{"name", "tensors": [{"name", "shape", "dtype"}], "optimizer",
    "exclude_from_weight_decay", "consistency", "on_nonfinite", "exist_ok"}`, as JSON with
    `"values": {name: [[...]]}`, or as a msgpack stream with the values as payload. Without values,
    all parameters begin at zero.
    """
    if bodies.is_json(request):
        fields = await bodies.read_json(request)
        values = fields.pop("values", None)
        exist_ok, definition = _definition(fields)
        parameters = None if values is None else _from_json(definition, values)
    else:
        reader = bodies.MessageReader(request)
        fields = await reader.header()
        has_values = fields.pop("has_values", True)
        exist_ok, definition = _definition(fields)
        check_memory(definition)
        parameters = await reader.payload(definition.layout, "native") if has_values else None
    model, is_new = await registry.create(definition, parameters, exist_ok=exist_ok)
    return answer(request, {**describe(model), "created": is_new}, 201 if is_new else 200)


@router.get(PREFIX)
async def get_model(request: Request, model: TheModel) -> Response:
    """Say what a model is, and at which version."""
    return answer(request, describe(model))


@router.delete(PREFIX, status_code=204)
async def delete_model(model: TheModel, registry: TheRegistry) -> Response:
    """Delete a model with all its checkpoints."""
    await registry.delete(model.definition.name)
    return Response(status_code=204)


def _definition(fields: dict[str, Any]) -> tuple[bool, Definition]:
    exist_ok = fields.pop("exist_ok", False)
    if not isinstance(exist_ok, bool):
        raise InvalidInput("`exist_ok` is true or false.")
    fields.pop("protocol", None)
    if "created_with" in fields:
        raise InvalidInput("`created_with` is set by the server.")
    return exist_ok, Definition.from_json(fields)


def _from_json(definition: Definition, values: object) -> Arenas:
    return definition.layout.flatten(bodies.arrays_from_json(definition.layout, values))
