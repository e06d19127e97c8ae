"""Is the server alive, is it ready, and what does it speak?"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import stepwell_core.wire as wire
from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response
from stepwell_core.consistency import MODES
from stepwell_core.encoding import HALF_DTYPES
from stepwell_core.layout import PAYLOAD_DTYPES
from stepwell_core.optimizers import OPTIMIZERS

from stepwell_server import __version__
from stepwell_server.gate import IS_KNOWN, ROLE
from stepwell_server.model import HostedModel
from stepwell_server.representations import MEDIA_TYPES
from stepwell_server.routes.access import TheSettings, staging_of
from stepwell_server.routes.parameters import MAX_WAIT_S
from stepwell_server.shared_memory import EXTENSION

router = APIRouter(tags=["server"])


@router.get("/healthz")
async def healthz(request: Request) -> dict[str, str]:
    """Say that the process answers; over its Unix socket also which one it is.

    So a worker knows whose socket it is before it says its token there.
    """
    if EXTENSION in request.scope.get("extensions", {}):
        return {"status": "ok", "instance": request.app.state.instance}
    return {"status": "ok"}


@router.get("/readyz")
async def readyz(request: Request) -> Response:
    """Say whether every model is recovered and its kernels are compiled.

    Who may read is told of each model too: how it was recovered, and whether it is read-only since
    its disk failed. Then the status is "degraded" for everyone.
    """
    state = request.app.state
    if not state.is_ready:
        return JSONResponse({"status": "not ready"}, status_code=503)
    models = list(state.registry)
    is_degraded = any(model.recorder.failure for model in models)
    answer: dict[str, Any] = {"status": "degraded" if is_degraded else "ready"}
    if request.scope.get(IS_KNOWN):
        answer["models"] = {model.definition.name: _health(model) for model in models}
    return JSONResponse(answer)


def _health(model: HostedModel) -> dict[str, Any]:
    recovered = model.recovered
    return {
        "version": model.engine.counters.version,
        "read_only": model.recorder.failure,
        "recovered": None if recovered is None else recovered.to_json(),
    }


@router.get("/v1")
async def about(request: Request, settings: TheSettings) -> dict[str, Any]:
    """Say which protocol, limits and features this server has, what it counted, and who asks."""
    staging = staging_of(request)
    return {
        "stepwell": __version__,
        "protocol": wire.PROTOCOL,
        "durability": settings.durability,
        "instance": request.app.state.instance,
        "role": request.scope[ROLE],
        "memory_socket": request.app.state.memory_socket,
        "limits": {
            "max_header_bytes": wire.MAX_HEADER_BYTES,
            "max_body_bytes": settings.max_body_bytes,
            "max_json_bytes": settings.max_json_bytes,
            "push_wait_s": settings.push_wait_s,
            "staging_bytes": staging.budget_bytes,
            "pull_wait_s": MAX_WAIT_S,
        },
        "staging": {
            "budget_bytes": staging.budget_bytes,
            "used_bytes": staging.used_bytes,
            "idle_bytes": staging.idle_bytes,
        },
        "counts": asdict(request.app.state.counts),
        "features": {
            "consistency": list(MODES),
            "optimizers": [optimizer.__name__ for optimizer in OPTIMIZERS.values()],
            "payload_dtypes": list(PAYLOAD_DTYPES),
            "pull_dtypes": ["native", *HALF_DTYPES],
            "representations": list(MEDIA_TYPES),
        },
    }
