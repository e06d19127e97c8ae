"""Gradients: the push."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response
from stepwell_core.errors import InvalidInput
from stepwell_core.groups import MAX_GROUPS
from stepwell_core.layout import Layout
from stepwell_core.names import IDENTIFIER
from stepwell_core.pipeline import Gradient
from stepwell_core.placement import extent
from stepwell_core.push import Push, fingerprint_of
from stepwell_core.session import Result
from stepwell_core.wire import Kind

from stepwell_server import bodies
from stepwell_server.arena_copies import copy_arenas
from stepwell_server.model import HostedModel
from stepwell_server.representations import negotiate
from stepwell_server.routes.access import (
    MAX_COUNT,
    PREFIX,
    PullDtype,
    TheModel,
    answer,
    memory_of,
    staging_of,
)
from stepwell_server.routes.parameters import check_layout, parameters_response
from stepwell_server.staging import Staging
from stepwell_server.waiters import Key

router = APIRouter(tags=["gradients"])

MAX_VALUES = 8 * (MAX_GROUPS + 1)
"""That come with a push: more than any rule's numbers, of each group and of the optimizer."""

Count = Annotated[int, Field(ge=0, le=MAX_COUNT)]
Number = Annotated[float, Field(allow_inf_nan=False)]
MetricName = Annotated[str, Field(pattern=r"^[^\x00-\x1f\x7f]{1,64}$")]


class PushHeader(BaseModel):
    """The header of a push; see docs/protocol.md."""

    model_config = ConfigDict(extra="forbid", strict=True)

    protocol: Literal[1] = 1
    worker: Annotated[str, Field(pattern=IDENTIFIER)]
    epoch: Count
    sequence: Count
    incarnation: Annotated[str, Field(max_length=64)]
    version: Count | None = None
    kind: Kind = "gradient"
    layout: Annotated[str, Field(max_length=64)] | None = None
    dtype: Literal["native", "float16", "bfloat16", "float32", "float64"] = "native"
    tensors: list[str] | None = None
    state: list[str] = Field(default_factory=list)
    memory: bool = False
    weight: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    loss_scale: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    hyperparameters: dict[str, Number] = Field(default_factory=dict, max_length=MAX_VALUES)
    metrics: dict[MetricName, Number] = Field(default_factory=dict, max_length=64)

    def push(self, gradient: Gradient) -> Push:
        """Return the push of this header."""
        return Push(
            worker=self.worker,
            epoch=self.epoch,
            sequence=self.sequence,
            incarnation=self.incarnation,
            gradient=gradient,
            version=self.version,
            weight=self.weight,
            loss_scale=self.loss_scale,
            hyperparameters=self.hyperparameters,
            kind=self.kind,
            metrics=self.metrics,
            state=self.state,
        )


class PushQuery(BaseModel):
    """What a push may ask for, in the query of its URL."""

    model_config = ConfigDict(extra="forbid")

    pull: bool = False
    dtype: PullDtype = "native"


@router.post(PREFIX + "/gradients")
async def push_gradients(
    request: Request, model: TheModel, query: Annotated[PushQuery, Query()]
) -> Response:
    """Push a gradient, or with `kind: "delta"` what local steps added to the parameters.

    The body is a msgpack stream, or JSON with the header's fields and `"gradients": {name:
    [[...]]}`. With `?pull=true` the answer has the new parameters, in half width with `&dtype=`. A
    repetition of a push is answered as the first was, with `duplicate: true`. A push that waits for
    others for too long is answered 202; ask for its result at
    `.../workers/{worker}/pushes/{sequence}`. With `memory: true` in the header there is no payload:
    the gradient lies in the memory that this connection got from `.../memory/gradients`, and is the
    server's until the push is settled.
    """
    layout = model.engine.layout
    # Before the push has its effect: who accepts none of our formats is refused with nothing done.
    accept = request.headers.get("accept", "*/*")
    accepted = negotiate(accept, layout, query.dtype) if query.pull else None
    if bodies.is_json(request):
        fields = await bodies.read_json(request)
        push = await asyncio.to_thread(_from_json, fields, layout)
        if await _is_turn(model, push.key):
            result = await model.push(push)
        else:
            result = model.pushes.waiting_result()
    else:
        reader = bodies.MessageReader(request)
        header = bodies.parse(PushHeader, await reader.header())
        selection = _selection(header, layout)
        model.engine.check_session(header.worker, header.epoch, header.incarnation)
        if header.memory:
            await reader.end()
            arenas = memory_of(request).gradient(model.definition.name, selection, header.dtype)
            gradient = Gradient(selection, arenas, header.dtype)
            result = await _push_in_memory(header.push(gradient), model, staging_of(request))
        else:
            result = await _receive(reader, header, selection, model, staging_of(request))
    model.pushes.tally.duplicates += result.duplicate
    if result.outcome == "waiting":
        return answer(request, result.to_json(), 202)
    if accepted is None:
        return answer(request, result.to_json())
    return await parameters_response(
        request, model, layout, accepted, query.dtype, result=result.to_json()
    )


async def _receive(
    reader: bodies.MessageReader,
    header: PushHeader,
    selection: Layout,
    model: HostedModel,
    staging: Staging,
) -> Result:
    """Receive a gradient into staged memory and push it, unless the push is known already."""
    key = header.worker, header.epoch, header.sequence
    if model.pushes.is_known(key):
        with model.sessions.sending(*key[:2], reader.sender):
            fingerprint = await reader.fingerprint(selection.payload_nbytes(header.dtype))
        return await model.pushes.repeat(key, fingerprint_of(header.kind, fingerprint))
    if not await _is_turn(model, key):
        return model.pushes.waiting_result()
    nbytes, holder = extent(selection, header.dtype), (model, *key[:2])
    with (
        model.sessions.sending(*key[:2], reader.sender) as is_there,
        await staging.take(nbytes, model.part, holder) as lease,
    ):
        arenas = lease.arenas(selection, header.dtype)
        await reader.payload(arenas)
        is_there()
        push = header.push(Gradient(selection, arenas, header.dtype))
        return await model.push(push, lease)


async def _is_turn(model: HostedModel, key: Key) -> bool:
    """Return whether a push may come now: its worker is not too far ahead, or it was made before.

    The gradient of one that has to wait is not received: it comes again when it may.
    """
    worker, epoch, _ = key
    model.sessions.seen(worker, epoch)
    if not model.definition.consistency.gates or model.pushes.is_known(key):
        return True
    return await model.pushes.turn(worker)


async def _push_in_memory(push: Push, model: HostedModel, staging: Staging) -> Result:
    """Push a gradient that its worker could still write to; a journal needs one that nobody can."""
    if not await _is_turn(model, push.key):
        return model.pushes.waiting_result()
    with model.sessions.sending(push.worker, push.epoch) as is_there:
        is_there()
    if not model.recorder.copies_shared_memory:
        return await model.push(push)
    gradient, holder = push.gradient, (model, push.worker, push.epoch)
    nbytes = extent(gradient.layout, gradient.dtype)
    with await staging.take(nbytes, model.part, holder) as lease:
        arenas = lease.arenas(gradient.layout, gradient.dtype)
        await copy_arenas(gradient.arenas, arenas)
        return await model.push(replace(push, gradient=replace(gradient, arenas=arenas)), lease)


def _selection(header: PushHeader, layout: Layout) -> Layout:
    check_layout(header.layout, layout)
    return layout if header.tensors is None else layout.select(header.tensors)


def _from_json(fields: dict[str, Any], layout: Layout) -> Push:
    arrays = bodies.arrays_from_json(layout, fields.pop("gradients", None))
    header = bodies.parse(PushHeader, fields)
    if header.layout is not None:
        check_layout(header.layout, layout)
    if header.dtype != "native" or header.tensors is not None:
        raise InvalidInput("In JSON the gradients say themselves which tensors they are")
    selection = layout.select(arrays)
    return header.push(Gradient(selection, selection.flatten(arrays)))
