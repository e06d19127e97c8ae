"""Errors as `application/problem+json` (RFC 9457): an HTTP status for each branch of the tree."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.routing import compile_path
from stepwell_core import errors
from stepwell_core.errors import StepwellError

from stepwell_server import __version__

MEDIA_TYPE = "application/problem+json"

STATUS: Mapping[type[StepwellError], int] = {
    errors.StepwellError: 500,
    errors.InvalidInput: 422,
    errors.MalformedMessage: 400,
    errors.Unauthenticated: 401,
    errors.Forbidden: 403,
    errors.NotFound: 404,
    errors.MethodNotAllowed: 405,
    errors.NotAcceptable: 406,
    errors.UnsupportedMediaType: 415,
    errors.Conflict: 409,
    errors.PreconditionFailed: 412,
    errors.BodyTooLarge: 413,
    errors.HeaderTooLarge: 431,
    errors.BodyTooSlow: 408,
    errors.Unavailable: 503,
    errors.DoesNotFit: 507,
    errors.CheckpointInvalid: 500,
    errors.StoreFailed: 502,
    errors.JournalInvalid: 500,
    errors.DataFolderInvalid: 500,
    errors.InternalError: 500,
}
"""The status of a class is that of its nearest ancestor in this table."""

_HEADERS = {503: {"Retry-After": "1"}, 401: {"WWW-Authenticate": "Bearer"}}

log = structlog.get_logger("stepwell")


def status_of(error: type[StepwellError]) -> int:
    """Return the HTTP status of an error class."""
    return next(STATUS[cls] for cls in error.__mro__ if cls in STATUS)


def problem(error: StepwellError, headers: Mapping[str, str] | None = None) -> Response:
    """Return the problem document of an error.

    Args:
        error: What happened.
        headers: To be sent beside those that its status asks for.
    """
    status = status_of(type(error))
    title = (type(error).__doc__ or "").split("\n")[0].rstrip(".")
    document = {
        "type": f"urn:stepwell:problem:{error.code}",
        "title": title,
        "status": status,
        "detail": error.message,
        "code": error.code,
    }
    details = {name: value for name, value in error.details.items() if name not in document}
    headers = {**(headers or {}), **_HEADERS.get(status, {})}
    body = json.dumps({**document, **details}, default=str)
    return Response(body, status, headers, MEDIA_TYPE)


def install(app: FastAPI) -> None:
    """Answer every exception of `app` with a problem document."""
    for error, handler in _HANDLERS.items():
        app.add_exception_handler(error, handler)


async def answer(request: Request, error: Exception) -> Response:
    """Return the problem document of any exception, as an application does that has them."""
    handler = next(_HANDLERS[cls] for cls in type(error).__mro__ if cls in _HANDLERS)
    return await handler(request, error)


async def _on_stepwell_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, StepwellError)
    return problem(error)


async def _on_validation_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return problem(invalid_fields(error.errors()))


def invalid_fields(found: Any) -> errors.InvalidInput:
    """Return pydantic's findings as our error: which field, which rule; of values only numbers.

    Text may be a secret, and is repeated nowhere.
    """
    places = []
    for entry in list(found)[:16]:
        place = {
            "field": ".".join(str(part) for part in entry["loc"])[:200],
            "rule": _rule(entry),
        }
        if isinstance(value := entry.get("input"), int | float):
            place["received"] = errors.shown(value)
        places.append(place)
    text = "; ".join(
        f"{place['field']}: {place['rule']}"
        + (f". Received: {place['received']}" if "received" in place else "")
        for place in places
    )
    return errors.InvalidInput(f"The request's fields break rules: {text}", fields=places)


def _rule(entry: Mapping[str, Any]) -> str:
    if entry["type"] == "extra_forbidden":
        return (
            f"Stepwell {__version__}, which this server is, has no such field; is the client newer?"
        )
    return str(entry["msg"]).removeprefix("Value error, ")[:200]


async def _on_http_exception(request: Request, error: Exception) -> Response:
    """Translate what the routing itself says."""
    assert isinstance(error, HTTPException)
    path = request.url.path[:200]
    if error.status_code == 404:
        return problem(errors.RouteNotFound(f"There is no {path}; see /openapi.json"))
    if error.status_code == 405:
        methods = _methods(request) or (error.headers or {}).get("Allow", "")
        return problem(
            errors.MethodNotAllowed(f"{path} takes {methods}. Received: {request.method[:20]}"),
            {"Allow": methods},
        )
    log.warning("http_exception", path=path, status=error.status_code)
    return problem(errors.MalformedMessage("The request could not be read."))


def _methods(request: Request) -> str:
    """Return what a path of the API takes; the error itself knows but the first of its routes."""
    calls = request.app.openapi()["paths"].items()
    matching = (methods for path, methods in calls if compile_path(path)[0].match(request.url.path))
    return ", ".join(sorted(method.upper() for methods in matching for method in methods))


async def _on_disconnect(request: Request, error: Exception) -> Response:
    """The caller went away inside its body, or while it waited: nobody reads an answer."""
    log.info("caller_gone", path=request.url.path[:200])
    return problem(errors.MalformedMessage("The body was cut off."))


async def _on_exception(request: Request, error: Exception) -> Response:
    log.error("internal_error", path=request.url.path, exc_info=error)
    return problem(
        errors.InternalError(
            "A bug in Stepwell; the server's log has the trace. Nothing was sent back"
        )
    )


_HANDLERS: Mapping[type[Exception], Callable[[Request, Exception], Awaitable[Response]]] = {
    StepwellError: _on_stepwell_error,
    RequestValidationError: _on_validation_error,
    HTTPException: _on_http_exception,
    ClientDisconnect: _on_disconnect,
    Exception: _on_exception,
}
