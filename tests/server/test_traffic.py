"""Counting requests around an application."""

from __future__ import annotations

import asyncio

import pytest
from stepwell_server.tallies import RequestTally
from stepwell_server.traffic import ROUTE, Traffic


def counted(app, **scope):
    """Return what was counted of one request to `app`."""
    tally = RequestTally()

    async def send(message):
        pass

    call = Traffic(app, tally)({"type": "http", "method": "GET", **scope}, None, send)
    error = None
    try:
        asyncio.run(call)
    except BaseException as raised:
        error = raised
    return list(tally.seconds), error


def test_a_request_that_ends_without_an_answer_counts_as_499():
    """Its client was gone; the error goes on to whoever waits for it."""

    async def app(scope, receive, send):
        raise asyncio.CancelledError

    keys, error = counted(app)

    assert keys == [("GET", "unmatched", 499)]
    assert isinstance(error, asyncio.CancelledError)


@pytest.mark.parametrize(("method", "told"), [("PUT", "PUT"), ("BREW", "other")])
def test_a_route_is_told_by_who_answers_it(method, told):
    """By FastAPI or before it; the status is that of the answer's beginning."""

    async def app(scope, receive, send):
        scope[ROUTE] = "/v1/{x}"
        await send({"type": "http.response.start", "status": 204})
        await send({"type": "http.response.body"})

    assert counted(app, method=method) == ([(told, "/v1/{x}", 204)], None)


def test_what_is_no_request_is_not_counted():
    """The start and the end of the application."""

    async def app(scope, receive, send):
        pass

    assert counted(app, type="lifespan") == ([], None)
