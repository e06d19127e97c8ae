"""The two routes of the training loop, without FastAPI's way to its handlers.

A push of 4 KB takes FastAPI's routing and its dependencies longer than everything else together.
So these two are found first, and by a plain route. FastAPI has them too, with the same functions
and the same checks of the query: that is where /openapi.json has them from.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from stepwell_server import bodies
from stepwell_server.model import HostedModel
from stepwell_server.routes.access import PREFIX, model_of
from stepwell_server.routes.gradients import PushQuery, push_gradients
from stepwell_server.routes.parameters import PullQuery, pull

Q = TypeVar("Q", bound=BaseModel)
Handler = Callable[[Request, HostedModel, Q], Awaitable[Response]]


def direct_routes() -> list[BaseRoute]:
    """Return the routes, to be put before all others."""
    return [
        _route("POST", PREFIX + "/gradients", push_gradients, PushQuery),
        _route("GET", PREFIX + "/parameters", pull, PullQuery),
    ]


def _route(method: str, path: str, handler: Handler[Q], query: type[Q]) -> Route:
    nothing_asked = query()

    async def endpoint(request: Request) -> Response:
        model = await model_of(request, request.path_params["model"])
        has_query = bool(request.scope["query_string"])
        return await handler(
            request, model, _parsed(request, query) if has_query else nothing_asked
        )

    route = Route(path, endpoint, methods=[method], include_in_schema=False)
    route.methods = {method}  # Starlette adds HEAD, FastAPI does not
    return route


def _parsed(request: Request, query: type[Q]) -> Q:
    """Return the query as a checked model; as in FastAPI the last of several values counts.

    Raises:
        InvalidInput: Which fields break which rules.
    """
    params = request.query_params
    lists = {name for name, field in query.model_fields.items() if "list" in str(field.annotation)}
    return bodies.parse(
        query, {name: params.getlist(name) if name in lists else params[name] for name in params}
    )
