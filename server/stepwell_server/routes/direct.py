"""The two calls of the training loop, answered before FastAPI sees them.

A push of 4 KB takes FastAPI's layers, its routing and its dependencies longer than everything else
together. So these two are found here, by the very patterns of their routes, and their functions are
called with what their routes would give them. FastAPI has the routes too: /openapi.json says them,
and whatever is not exactly one of these calls is answered there.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

from fastapi import FastAPI
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import compile_path
from starlette.types import ASGIApp, Receive, Scope, Send

from stepwell_server import bodies, problems
from stepwell_server.model import HostedModel
from stepwell_server.routes.access import PREFIX, model_of
from stepwell_server.routes.gradients import PushQuery, push_gradients
from stepwell_server.routes.parameters import PullQuery, pull
from stepwell_server.traffic import ROUTE

Q = TypeVar("Q", bound=BaseModel)


def direct(api: FastAPI) -> ASGIApp:
    """Return an application that answers pushes and pulls itself, and leaves the rest to `api`."""
    calls = {
        "POST": (PREFIX + "/gradients", _call(push_gradients, PushQuery)),
        "GET": (PREFIX + "/parameters", _call(pull, PullQuery)),
    }
    patterns = {method: compile_path(path)[0] for method, (path, _) in calls.items()}

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        pattern = patterns.get(scope.get("method", ""))
        match = None if pattern is None else pattern.match(scope["path"])
        if match is None:
            await api(scope, receive, send)
            return
        path, call = calls[scope["method"]]
        scope["app"], scope[ROUTE] = api, path
        request = Request(scope, receive)
        try:
            response = await call(request, match["model"])
        except Exception as error:
            response = await problems.answer(request, error)
        await response(scope, receive, send)

    return app


def _call(
    handler: Callable[[Request, HostedModel, Q], Awaitable[Response]], query: type[Q]
) -> Callable[[Request, str], Awaitable[Response]]:
    nothing_asked = query()

    async def call(request: Request, name: str) -> Response:
        model = await model_of(request, name)
        asked = _parsed(request, query) if request.scope["query_string"] else nothing_asked
        return await handler(request, model, asked)

    return call


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
