"""The optimizer's state: take over what was trained elsewhere."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response
from stepwell_core.errors import InvalidInput
from stepwell_core.layout import Arenas, Layout
from stepwell_core.placement import extent

from stepwell_server import bodies
from stepwell_server.model import HostedModel
from stepwell_server.routes.access import MAX_COUNT, PREFIX, TheModel, answer, staging_of
from stepwell_server.routes.parameters import check_layout

router = APIRouter(tags=["state"])


class StateHeader(BaseModel):
    """The header of an import; see docs/protocol.md."""

    model_config = ConfigDict(extra="forbid", strict=True)

    protocol: Literal[1] = 1
    layout: Annotated[str, Field(max_length=64)]
    parameters: bool = False
    slots: Annotated[list[str], Field(max_length=16)] = Field(default_factory=list)
    iterations: Annotated[int, Field(ge=0, le=MAX_COUNT)] | None = None


class StateFields(BaseModel):
    """The same as JSON, with the tensors in it."""

    model_config = ConfigDict(extra="forbid", strict=True)

    parameters: dict[str, Any] | None = None
    slots: dict[str, dict[str, Any]] = Field(default_factory=dict)
    iterations: Annotated[int, Field(ge=0, le=MAX_COUNT)] | None = None


@router.put(PREFIX + "/state")
async def import_state(request: Request, model: TheModel) -> Response:
    """Take over parameters, slots and the number of steps that were made elsewhere.

    The body is a msgpack stream with the header `{"layout", "parameters": true, "slots":
    ["momentum", ...], "iterations"}` and the arenas of each in that order, or JSON with
    `{"parameters": {name: [[...]]}, "slots": {"momentum": {...}}, "iterations"}`. Slots come all or
    none. It begins a new history: sessions learn of it at their next push.
    """
    layout = model.engine.layout
    if bodies.is_json(request):
        fields = bodies.parse(StateFields, await bodies.read_json(request))
        _check_any(fields.parameters is not None, fields.slots, fields.iterations)
        check_slots(list(fields.slots), model)
        parameters, slots = await asyncio.to_thread(_from_json, fields, layout)
        begun = await model.import_state(parameters, slots or None, fields.iterations)
    else:
        reader = bodies.MessageReader(request)
        header = bodies.parse(StateHeader, await reader.header())
        check_layout(header.layout, layout)
        _check_any(header.parameters, header.slots, header.iterations)
        check_slots(header.slots, model)
        count = header.parameters + len(header.slots)
        # The slots will be the model's own, so their memory is none to be used again.
        with await staging_of(request).take(extent(layout) * max(1, count), has_block=False):
            arrays = [layout.new_payload("native") for _ in range(count)]
            await reader.payload_parts(arrays)
            parameters = arrays.pop(0) if header.parameters else None
            slots = dict(zip(header.slots, arrays, strict=True))
            begun = await model.import_state(parameters, slots or None, header.iterations)
    incarnation, counters = begun
    return answer(request, {"incarnation": incarnation, "version": counters.version})


def _check_any(has_parameters: bool, slots: Collection[str], iterations: int | None) -> None:
    """Refuse an import of nothing: it would cut the history, and all sessions off, for nothing."""
    if not has_parameters and not slots and iterations is None:
        raise InvalidInput("An import has parameters, slots or iterations. Received: none of them")


def check_slots(names: list[str], model: HostedModel) -> None:
    """Refuse slots that are not all of the optimizer's.

    Raises:
        InvalidInput: Some are missing, unknown or named twice.
    """
    expected = sorted(model.engine.pipeline.slot_values)
    if names and sorted(names) != expected:
        raise InvalidInput(
            f"The optimizer has the slots {', '.join(expected) or 'none'}, and an import has all "
            f"of them or none. Received: {', '.join(map(str, names))[:200]}",
            expected=expected,
        )


def _from_json(fields: StateFields, layout: Layout) -> tuple[Arenas | None, dict[str, Arenas]]:
    def arenas(values: Any) -> Arenas:
        return layout.flatten(bodies.arrays_from_json(layout, values))

    parameters = None if fields.parameters is None else arenas(fields.parameters)
    return parameters, {name: arenas(values) for name, values in fields.slots.items()}
