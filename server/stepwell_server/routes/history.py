"""What happened to a model: a range of it, and as it happens."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from typing import Annotated, Literal

from fastapi import APIRouter, Header, Query, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response, StreamingResponse
from stepwell_core import wire

from stepwell_server.gate import IS_STILL_ALLOWED
from stepwell_server.history.events import KINDS
from stepwell_server.history.reading import (
    DEFAULT_POINTS,
    MOST_POINTS,
    OTHER_KINDS,
    Range,
)
from stepwell_server.representations import JSON
from stepwell_server.routes.access import MAX_COUNT, PREFIX, TheModel, answer, drain_of

router = APIRouter(tags=["history"])

ASK_AGAIN_S = 1.0
"""How often a stream asks whether its token is still known; a quiet one with each comment."""

Version = Annotated[int, Field(ge=0, le=MAX_COUNT)]
Kind = Literal[KINDS]  # type: ignore[valid-type]  # the list is in one place


class HistoryQuery(BaseModel):
    """Which part of a history is asked for."""

    model_config = ConfigDict(extra="forbid")

    from_version: Version = 0
    to_version: Version = MAX_COUNT
    since: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    kinds: list[Kind] = Field(default=list(OTHER_KINDS), max_length=len(KINDS))
    series: bool = True
    points: Annotated[int, Field(ge=2, le=MOST_POINTS)] = DEFAULT_POINTS


class EventsQuery(BaseModel):
    """Which events are wanted; without `after` those that come from now on."""

    model_config = ConfigDict(extra="forbid")

    after: Version | None = None
    kinds: list[Kind] = Field(default=list(KINDS), max_length=len(KINDS))


@router.get(PREFIX + "/history")
async def get_history(
    request: Request, model: TheModel, query: Annotated[HistoryQuery, Query()]
) -> Response:
    """Return the series of a range, each thinned out to `points` values, and its events.

    With `series=false` the events alone, which is faster where a history is long.
    Of a series that is longer the smallest and largest of each bucket stay (min-max). Of the events
    that are no samples, or of the `kinds` that are named, the newest `points` come.
    """
    found = await model.history.read(Range(**query.model_dump()))
    values = {"model": model.definition.name, **found}
    if wire.MEDIA_TYPE in request.headers.get("accept", ""):
        return answer(request, values)
    return Response(await asyncio.to_thread(json.dumps, values), media_type=JSON)


@router.get(PREFIX + "/events")
async def stream_events(
    request: Request,
    model: TheModel,
    query: Annotated[EventsQuery, Query()],
    last_event_id: Annotated[str | None, Header(max_length=32, pattern=r"^[0-9]{1,18}$")] = None,
) -> Response:
    """Send events as they happen (server-sent events), until the server stops.

    An event's `id` is its number; with `Last-Event-ID`, or `after` in the query, the stream goes on
    behind it, as far back as the server remembers. `missed` says what it does not; `dropped` is the
    end for a listener that is too slow. A comment comes every 15 s. The stream of a token that is
    revoked ends with the next of them at the latest.
    """
    drain = drain_of(request)
    after = query.after if last_event_id is None else int(last_event_id)
    stream = model.history.listen(after, query.kinds, None if drain is None else drain.abort)
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    allowed = _while_allowed(stream, request.scope[IS_STILL_ALLOWED])
    return StreamingResponse(allowed, headers=headers, media_type="text/event-stream")


async def _while_allowed(
    stream: AsyncGenerator[bytes], is_still_allowed: Callable[[], bool]
) -> AsyncIterator[bytes]:
    asked = time.monotonic()
    async with aclosing(stream):
        async for piece in stream:
            if time.monotonic() - asked >= ASK_AGAIN_S:
                if not is_still_allowed():
                    return
                asked = time.monotonic()
            yield piece
