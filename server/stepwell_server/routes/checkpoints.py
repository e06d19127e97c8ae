"""Checkpoints: write, list, look, download, restore, delete."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Request
from starlette.responses import FileResponse, Response
from stepwell_core.errors import CheckpointInvalid, CheckpointNotFound

from stepwell_server.routes.access import PREFIX, TheModel, answer
from stepwell_server.storage.checkpoint import FILES

router = APIRouter(tags=["checkpoints"])

CHECKPOINTS = PREFIX + "/checkpoints"
CHECKPOINT = CHECKPOINTS + "/{checkpoint}"


@router.get(CHECKPOINTS)
async def list_checkpoints(request: Request, model: TheModel) -> Response:
    """List all checkpoints, oldest first; one that cannot be read says why."""
    ids = await asyncio.to_thread(model.folder.checkpoint_ids)
    found = []
    for checkpoint_id in ids:
        try:
            manifest = await asyncio.to_thread(model.folder.read_manifest, checkpoint_id)
        except CheckpointInvalid as error:
            found.append({"id": checkpoint_id, "invalid": error.message})
        except CheckpointNotFound:
            continue  # deleted in between
        else:
            found.append(manifest.summary())
    return answer(request, {"checkpoints": found})


@router.post(CHECKPOINTS, status_code=201)
async def create_checkpoint(request: Request, model: TheModel) -> Response:
    """Write a checkpoint beside training; the answer comes when it is durable."""
    manifest = await model.checkpoint()
    return answer(request, manifest.summary(), 201)


@router.get(CHECKPOINT)
async def get_checkpoint(request: Request, model: TheModel, checkpoint: str) -> Response:
    """Return what a checkpoint says about itself."""
    manifest = await asyncio.to_thread(model.folder.read_manifest, checkpoint)
    return answer(request, {**manifest.summary(), "manifest": manifest.to_json()})


@router.delete(CHECKPOINT, status_code=204)
async def delete_checkpoint(model: TheModel, checkpoint: str) -> Response:
    """Delete a checkpoint, unless it is the last one that is whole."""
    await model.remove_checkpoint(checkpoint)
    return Response(status_code=204)


@router.post(CHECKPOINT + "/restore")
async def restore_checkpoint(request: Request, model: TheModel, checkpoint: str) -> Response:
    """Go back to a checkpoint: parameters, slots, counters and sessions, all or nothing."""
    _, state = await asyncio.to_thread(model.folder.read_checkpoint, checkpoint)
    incarnation, counters = await model.restore(state)
    return answer(request, {"incarnation": incarnation, "version": counters.version})


@router.get(CHECKPOINT + "/files/{file}")
async def download(model: TheModel, checkpoint: str, file: str) -> Response:
    """Download a file of a checkpoint."""
    folder = await asyncio.to_thread(model.folder.checkpoint_path, checkpoint)
    if file not in FILES:
        raise CheckpointNotFound(f"A checkpoint has the files {', '.join(FILES)}")
    return FileResponse(folder / file, filename=f"{model.definition.name}-{checkpoint}-{file}")
