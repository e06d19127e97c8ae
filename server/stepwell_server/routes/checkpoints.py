"""Checkpoints: write, list, look, verify, pin, download, restore, fork, delete."""

from __future__ import annotations

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict
from starlette.responses import Response, StreamingResponse
from stepwell_core.names import check_identifier

from stepwell_server import bodies
from stepwell_server.routes.access import PREFIX, TheModel, TheRegistry, answer

router = APIRouter(tags=["checkpoints"])


class CreateCheckpoint(BaseModel):
    """The body that asks for a checkpoint; none is one too."""

    model_config = ConfigDict(extra="forbid", strict=True)

    pinned: bool = False


class PinCheckpoint(BaseModel):
    """The body that pins a checkpoint; none is one too."""

    model_config = ConfigDict(extra="forbid", strict=True)

    pinned: bool = True


class ForkCheckpoint(BaseModel):
    """The body that names a new model."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: str


CHECKPOINTS = PREFIX + "/checkpoints"
CHECKPOINT = CHECKPOINTS + "/{checkpoint}"


@router.get(CHECKPOINTS)
async def list_checkpoints(request: Request, model: TheModel) -> Response:
    """List all checkpoints, oldest first, and how far one is that is being written or read.

    One that cannot be read says why.
    """
    listed = {"checkpoints": await model.checkpoints.listed()}
    return answer(request, {**listed, "progress": model.checkpoints.progress})


@router.post(CHECKPOINTS, status_code=201)
async def create_checkpoint(request: Request, model: TheModel) -> Response:
    """Write a checkpoint beside training; the answer comes when it is durable and was read back."""
    body = bodies.parse(CreateCheckpoint, await bodies.read_fields(request))
    manifest = await model.checkpoint(pinned=body.pinned)
    return answer(request, {**manifest.summary(), "pinned": body.pinned}, 201)


@router.get(CHECKPOINT)
async def get_checkpoint(request: Request, model: TheModel, checkpoint: str) -> Response:
    """Return what a checkpoint says about itself."""
    manifest = await model.checkpoints.manifest(checkpoint)
    return answer(request, {**manifest.summary(), "manifest": manifest.to_json()})


@router.delete(CHECKPOINT, status_code=204)
async def delete_checkpoint(model: TheModel, checkpoint: str) -> Response:
    """Delete a checkpoint, unless it is pinned, or none that is newer is whole."""
    await model.checkpoints.remove(checkpoint)
    return Response(status_code=204)


@router.post(CHECKPOINT + "/restore")
async def restore_checkpoint(request: Request, model: TheModel, checkpoint: str) -> Response:
    """Go back to a checkpoint: parameters, slots, counters and sessions, all or nothing."""
    incarnation, counters = await model.restore(checkpoint)
    return answer(request, {"incarnation": incarnation, "version": counters.version})


@router.post(CHECKPOINT + "/verify")
async def verify_checkpoint(request: Request, model: TheModel, checkpoint: str) -> Response:
    """Read a checkpoint whole and check every tensor against its hash."""
    manifest = await model.checkpoints.verify(checkpoint)
    return answer(request, manifest.summary())


@router.post(CHECKPOINT + "/pin")
async def pin_checkpoint(request: Request, model: TheModel, checkpoint: str) -> Response:
    """Keep a checkpoint for ever; with `{"pinned": false}` no longer."""
    body = bodies.parse(PinCheckpoint, await bodies.read_fields(request))
    await model.checkpoints.pin(checkpoint, body.pinned)
    return answer(request, {"id": checkpoint, "pinned": body.pinned})


@router.post(CHECKPOINT + "/fork", status_code=201)
async def fork_checkpoint(
    request: Request, model: TheModel, registry: TheRegistry, checkpoint: str
) -> Response:
    """Create another model, `{"name": ...}`, from a checkpoint: all but its sessions."""
    body = bodies.parse(ForkCheckpoint, await bodies.read_fields(request))
    name = check_identifier(body.name, "model")
    forked = await registry.fork(model, checkpoint, name)
    return answer(request, await forked.describe(), 201)


@router.get(CHECKPOINT + "/files/{file}")
async def download(model: TheModel, checkpoint: str, file: str) -> Response:
    """Download a file of a checkpoint."""
    nbytes, pieces = await model.checkpoints.open_file(checkpoint, file)
    name = f"{model.definition.name}-{checkpoint}-{file}"
    headers = {
        "Content-Length": str(nbytes),
        "Content-Disposition": f'attachment; filename="{name}"',
    }
    # Copied: a piece is good until the next, and the socket may hold it for longer.
    return StreamingResponse(map(bytes, pieces), 200, headers, "application/octet-stream")
