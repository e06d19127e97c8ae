"""Requests and answers of checkpoints, and of state that was made elsewhere; no I/O."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stepwell_core import wire
from stepwell_core.errors import InvalidArgument, InvalidInput, shown
from stepwell_core.layout import Layout

from stepwell.calls import Call, model_path, required
from stepwell.results import Checkpoint, CheckpointProgress
from stepwell.tensors import arrays_of, in_travel_order


def read_checkpoint(values: Any) -> Checkpoint:
    """Return a checkpoint that the server describes; of a damaged one it knows the name alone."""
    found = {name: required(values, name) for name in ("id", "version")}
    pinned, invalid = bool(values.get("pinned", False)), values.get("invalid")
    if invalid is not None:
        return Checkpoint(**found, created="", bytes=0, pinned=pinned, invalid=str(invalid))
    found |= {name: required(values, name) for name in ("created", "bytes")}
    return Checkpoint(**found, pinned=pinned)


def read_progress(values: Any) -> CheckpointProgress | None:
    """Return how far a checkpoint is that is being written, if one is."""
    progress = required(values, "progress")
    if progress is None:
        return None
    needed = ("phase", "done_bytes", "bytes")
    return CheckpointProgress(**{name: required(progress, name) for name in needed})


def import_state(
    model: str,
    layout: Layout,
    parameters: Mapping[str, Any] | None,
    slots: Mapping[str, Mapping[str, Any]] | None,
    iterations: int | None,
) -> Call:
    """Take over what was trained elsewhere.

    Raises:
        InvalidInput: Nothing is given.
        InvalidArgument: `iterations` is no count.
        LayoutMismatch, ShapeMismatch, DtypeMismatch: Arrays are not of the model's layout.
    """
    if parameters is None and not slots and iterations is None:
        raise InvalidInput("An import has parameters, slots or iterations. Received: none of them")
    is_count = iterations is None or (type(iterations) is int and 0 <= iterations < 1 << 63)
    if not is_count:
        raise InvalidArgument(
            f"`iterations` is a number >= 0, of 63 bits. Received: {shown(iterations)}"
        )
    payload: tuple[memoryview, ...] = ()
    for tensors in ([] if parameters is None else [parameters]) + list((slots or {}).values()):
        arrays = arrays_of(tensors)
        layout.check(arrays)
        payload += in_travel_order(layout, arrays)
    header = {
        "protocol": wire.PROTOCOL,
        "layout": layout.hash,
        "parameters": parameters is not None,
        "slots": list(slots or {}),
        "iterations": iterations,
    }
    path = model_path(model, "state")
    return Call("PUT", path, header=header, payload=payload, can_repeat=False)
