"""Metrics: the server's numbers for Prometheus."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Request
from starlette.responses import Response

from stepwell_server.metrics import Reading, exposition
from stepwell_server.routes.access import TheRegistry, staging_of

router = APIRouter(tags=["server"])


@router.get("/metrics")
async def metrics(request: Request, registry: TheRegistry) -> Response:
    """Say all numbers in Prometheus's text format, or in OpenMetrics if that is asked for."""
    state = request.app.state
    reading = Reading.of(registry, state.requests, state.counts, staging_of(request))
    accept = request.headers.get("accept", "")
    body, media_type = await asyncio.to_thread(exposition, reading, accept)
    return Response(body, headers={"Content-Type": media_type, "Cache-Control": "no-store"})
