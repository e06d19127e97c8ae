"""Counts requests: a wrapper around the gate, so that those it refuses count too.

What never becomes a request, since it is none or its header is cut, is not seen here; see
`counts.py`.
"""

from __future__ import annotations

from collections.abc import Awaitable
from time import perf_counter

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from stepwell_server.tallies import RequestTally

ROUTE = "stepwell.route"
"""In the scope of a request: the route that answers it, if that is not one of FastAPI's."""

UNMATCHED = "unmatched"
"""The route of a request that none answers: refused at the gate, or for a path that is not there.

One name for all of them, or strangers could make as many series as they like.
"""

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})

NO_ANSWER = 499
"""What proxies write down as the status of a request whose client did not wait for an answer."""


class Traffic:
    """The wrapper.

    Args:
        app: What answers.
        tally: Where requests are counted.
    """

    def __init__(self, app: ASGIApp, tally: RequestTally) -> None:
        self._app = app
        self._tally = tally

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, and count it when it is over."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = NO_ANSWER

        def noting_status(message: Message) -> Awaitable[None]:  # no coroutine of its own
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            return send(message)

        began = perf_counter()
        try:
            await self._app(scope, receive, noting_status)
        finally:
            method = scope["method"]
            route = str(scope.get(ROUTE) or getattr(scope.get("route"), "path", UNMATCHED))
            self._tally.note(
                method if method in METHODS else "other", route, status, perf_counter() - began
            )
