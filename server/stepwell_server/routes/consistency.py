"""The consistency mode of a model."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response
from stepwell_core import consistency

from stepwell_server import bodies
from stepwell_server.routes.access import PREFIX, TheModel, answer

router = APIRouter(tags=["consistency"])


@router.get(PREFIX + "/consistency")
async def get_consistency(request: Request, model: TheModel) -> Response:
    """Return the mode and its arguments."""
    return answer(request, model.definition.consistency.to_json())


@router.patch(PREFIX + "/consistency")
async def set_consistency(request: Request, model: TheModel) -> Response:
    """Let pushes become steps by another mode, from between two steps on.

    The body is a mode: `{"mode": "sync", "workers": 4}`. Arguments that are left out have their
    defaults. Pushes that wait are decided on anew; what was gathered in a buffer makes a step.
    """
    mode = consistency.from_json(await bodies.read_fields(request))
    await model.rules.set_consistency(mode)
    return answer(request, mode.to_json())
