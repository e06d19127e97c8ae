"""Is the server alive, is it ready, and what does it speak?"""

from __future__ import annotations

from typing import Any

import stepwell_core.wire as wire
from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response
from stepwell_core.consistency import MODES
from stepwell_core.encoding import HALF_DTYPES
from stepwell_core.layout import PAYLOAD_DTYPES
from stepwell_core.optimizers import OPTIMIZERS

from stepwell_server import __version__
from stepwell_server.representations import MEDIA_TYPES
from stepwell_server.routes.access import TheSettings
from stepwell_server.routes.parameters import MAX_WAIT_S

router = APIRouter(tags=["server"])


@router.get("/healthz")
async def healthz() -> dict[str, str]:
    """Say that the process answers."""
    return {"status": "ok"}


@router.get("/readyz")
async def readyz(request: Request) -> Response:
    """Say whether every model is recovered and its kernels are compiled."""
    is_ready = request.app.state.is_ready
    return JSONResponse(
        {"status": "ready" if is_ready else "not ready"}, status_code=200 if is_ready else 503
    )


@router.get("/v1")
async def about(request: Request, settings: TheSettings) -> dict[str, Any]:
    """Say which protocol, limits and features this server has."""
    return {
        "stepwell": __version__,
        "protocol": wire.PROTOCOL,
        "durability": settings.durability,
        "instance": request.app.state.instance,
        "memory_socket": request.app.state.memory_socket,
        "limits": {
            "max_header_bytes": wire.MAX_HEADER_BYTES,
            "max_body_bytes": settings.max_body_bytes,
            "max_json_bytes": settings.max_json_bytes,
            "push_wait_s": settings.push_wait_s,
            "pull_wait_s": MAX_WAIT_S,
        },
        "features": {
            "consistency": list(MODES),
            "optimizers": [optimizer.__name__ for optimizer in OPTIMIZERS.values()],
            "payload_dtypes": list(PAYLOAD_DTYPES),
            "pull_dtypes": ["native", *HALF_DTYPES],
            "representations": list(MEDIA_TYPES),
        },
    }
