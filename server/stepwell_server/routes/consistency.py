"""The consistency mode of a model."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from stepwell_server.routes.access import PREFIX, TheModel, answer

router = APIRouter(tags=["consistency"])


@router.get(PREFIX + "/consistency")
async def get_consistency(request: Request, model: TheModel) -> Response:
    """Return the mode and its arguments."""
    return answer(request, model.definition.consistency.to_json())
