"""Workers: open and close sessions, and ask what became of a push."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response
from stepwell_core.engine import Engine
from stepwell_core.names import check_identifier
from stepwell_core.session import Session

from stepwell_server import bodies
from stepwell_server.routes.access import MAX_COUNT, PREFIX, TheModel, answer

router = APIRouter(tags=["workers"])

Incarnation = Annotated[str | None, Query(max_length=64)]
"""The history that is meant; clients before 0.2 do not say it."""


class OpenSession(BaseModel):
    """The body that opens a session."""

    model_config = ConfigDict(extra="forbid", strict=True)

    worker: str


class Heartbeat(BaseModel):
    """The body of a heartbeat."""

    model_config = ConfigDict(extra="forbid", strict=True)

    epoch: Annotated[int, Field(ge=0, le=MAX_COUNT)]
    incarnation: Annotated[str, Field(max_length=64)]


@router.get(PREFIX + "/workers")
async def list_workers(request: Request, model: TheModel) -> Response:
    """List the newest session of every worker, in the order in which they were opened.

    Those that are there say how long ago they gave a sign of life and made a push; those that
    pushed since the server started, what was counted of that.
    """
    sessions, there = await model.read(_sessions), model.sessions.describe()
    counted = model.pushes.tally.workers
    workers = [
        {
            **session,
            **there.get(session["worker"], {}),
            **(counted[session["worker"]].to_json() if session["worker"] in counted else {}),
        }
        for session in sessions
    ]
    return answer(request, {"workers": workers})


@router.post(PREFIX + "/workers", status_code=201)
async def open_session(request: Request, model: TheModel) -> Response:
    """Open a session; an earlier one of the same worker can push no more.

    `previous` says what became of the earlier session's last push.
    """
    body = bodies.parse(OpenSession, await bodies.read_fields(request))
    worker = check_identifier(body.worker, "worker")
    session, previous, incarnation, counters = await model.sessions.open(worker)
    values = {
        "worker": worker,
        "epoch": session.epoch,
        "incarnation": incarnation,
        "version": counters.version,
        "parameters_version": counters.parameters_version,
        "loss_scale": counters.loss_scale and counters.loss_scale.scale,
        "lease_s": model.definition.consistency.lease_s,
        "previous": previous and _previous(previous),
    }
    return answer(request, values, 201)


@router.delete(PREFIX + "/workers/{worker}", status_code=204)
async def close_session(
    model: TheModel,
    worker: str,
    epoch: Annotated[int | None, Query(ge=0, le=MAX_COUNT)] = None,
    incarnation: Incarnation = None,
) -> Response:
    """Close a session; nobody waits for the worker any more.

    Epochs are given away again in another history: `incarnation` says which one is meant.
    """
    await model.sessions.close(check_identifier(worker, "worker"), epoch, incarnation)
    return Response(status_code=204)


@router.post(PREFIX + "/workers/{worker}/heartbeat")
async def heartbeat(request: Request, model: TheModel, worker: str) -> Response:
    """Renew a worker's lease; the answer says for how long."""
    body = bodies.parse(Heartbeat, await bodies.read_fields(request))
    name = check_identifier(worker, "worker")
    lease_s = model.sessions.heartbeat(name, body.epoch, body.incarnation)
    counters = model.engine.counters
    return answer(
        request,
        {
            "lease_s": lease_s,
            "version": counters.version,
            "parameters_version": counters.parameters_version,
        },
    )


@router.get(PREFIX + "/workers/{worker}/pushes/{sequence}")
async def get_push(
    request: Request,
    model: TheModel,
    worker: str,
    sequence: int,
    epoch: Annotated[int, Query(ge=0, le=MAX_COUNT)],
    wait_s: Annotated[float, Query(ge=0, le=3600)] = 0.0,
    incarnation: Incarnation = None,
) -> Response:
    """Say what became of a push, waiting for it if it waits for others.

    With `incarnation` only if it was made in that history: another one may have a push of the same
    numbers.
    """
    key = (check_identifier(worker, "worker"), epoch, sequence)
    if incarnation is not None:
        model.engine.check_incarnation(worker, epoch, incarnation)
    model.sessions.seen(worker, epoch)
    result = await model.pushes.result(key, wait_s, incarnation=incarnation)
    if result.outcome != "waiting":
        model.sessions.settled(worker, epoch)
    return answer(request, result.to_json(), 202 if result.outcome == "waiting" else 200)


def _sessions(engine: Engine) -> list[dict[str, Any]]:
    return [
        {
            "worker": session.worker,
            "epoch": session.epoch,
            "is_open": session.is_open,
            "last_sequence": session.last_sequence,
        }
        for session in engine.ledger.sessions.values()
    ]


def _previous(session: Session) -> dict[str, Any]:
    result = session.last_result
    return {
        "epoch": session.epoch,
        "last_sequence": session.last_sequence,
        "result": result and result.to_json(),
    }
