"""What all routes share: the model that a path names, and answers in the caller's format."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from fastapi import Depends, Request
from starlette.responses import Response
from stepwell_core import wire
from stepwell_core.errors import NoSharedMemory
from stepwell_core.names import check_identifier

from stepwell_server.drain import Drain
from stepwell_server.model import HostedModel
from stepwell_server.problems import invalid_fields
from stepwell_server.receiving import HTTP_EXTENSION
from stepwell_server.registry import Registry
from stepwell_server.representations import JSON, MessageResponse
from stepwell_server.settings import Settings
from stepwell_server.shared_memory import EXTENSION, ConnectionMemory
from stepwell_server.staging import Staging

PREFIX = "/v1/models/{model}"

MAX_COUNT = (1 << 63) - 1
"""The largest epoch, sequence or version; JSON and msgpack readers take it everywhere."""


# Coroutines, though they never wait: FastAPI runs other dependencies in a thread of its pool.


async def registry_of(request: Request) -> Registry:
    """Return the server's models."""
    registry: Registry = request.app.state.registry
    return registry


async def settings_of(request: Request) -> Settings:
    """Return the server's settings."""
    settings: Settings = request.app.state.settings
    return settings


def staging_of(request: Request) -> Staging:
    """Return the server's memory for payloads on their way."""
    staging: Staging = request.app.state.staging
    return staging


def drain_of(request: Request) -> Drain | None:
    """Return how fast the caller takes its answers, if the server can tell."""
    drain: Drain | None = request.scope.get("extensions", {}).get(HTTP_EXTENSION, {}).get("drain")
    return drain


async def model_of(request: Request, model: str) -> HostedModel:
    """Return the model that the path names.

    Raises:
        ModelNotFound: There is none.
    """
    return (await registry_of(request)).get(check_identifier(model, "model"))


def memory_of(request: Request) -> ConnectionMemory:
    """Return what the request's connection shares with its worker.

    Raises:
        NoSharedMemory: It comes over the network, or from another user.
    """
    memory: ConnectionMemory | None = request.scope.get("extensions", {}).get(EXTENSION)
    if memory is None or not request.app.state.settings.shared_memory:
        raise NoSharedMemory(
            "Memory is shared with processes of the server's user, over its Unix socket, which "
            "`GET /v1` names. This is another connection"
        )
    return memory


async def check_query(request: Request) -> None:
    """Refuse what a route does not know: a caller relies on it, and would be answered all the same.

    Of what lies outside of the API, such as the dashboard's page, anyone may ask with any query.

    Raises:
        InvalidInput: The query names something that the route has not.
    """
    if not request.scope["query_string"] or not request.url.path.startswith("/v1"):
        return
    paths = request.app.openapi()["paths"]  # made once, and the same as for who asks for it
    route = paths[request.scope["route"].path_format][request.method.lower()]
    known = {parameter["name"] for parameter in route.get("parameters", ())}
    unknown = [name for name in request.query_params if name not in known]
    if unknown:
        raise invalid_fields([{"loc": ("query", n), "type": "extra_forbidden"} for n in unknown])


PullDtype = Literal["native", "float16", "bfloat16"]
"""What the elements of a pull may be; "native" means each tensor's own dtype."""

TheModel = Annotated[HostedModel, Depends(model_of)]
TheRegistry = Annotated[Registry, Depends(registry_of)]
TheSettings = Annotated[Settings, Depends(settings_of)]


def answer(
    request: Request,
    values: Mapping[str, Any],
    status_code: int = 200,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """Return plain values as msgpack if the caller asks for it, else as JSON."""
    if wire.MEDIA_TYPE in request.headers.get("accept", ""):
        return MessageResponse(values, headers=headers, status_code=status_code)
    body = json.dumps(values)
    return Response(body, status_code, dict(headers or {}), JSON)
