"""The consistency modes: one file, one mode. `MODES` is the registry, a line for each."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from stepwell_core.consistency.asynchronous import Async
from stepwell_core.consistency.base import (
    Consistency,
    Drop,
    Gather,
    Policy,
    Standing,
    Step,
    Wait,
)
from stepwell_core.consistency.bounded import Bounded
from stepwell_core.consistency.buffered import Buffered
from stepwell_core.consistency.quorum import Quorum
from stepwell_core.consistency.synchronous import Sync
from stepwell_core.errors import InvalidArgument

MODES: dict[str, type[Consistency]] = {
    mode.mode: mode for mode in (Async, Sync, Quorum, Buffered, Bounded)
}

__all__ = [
    "MODES",
    "Async",
    "Bounded",
    "Buffered",
    "Consistency",
    "Drop",
    "Gather",
    "Policy",
    "Quorum",
    "Standing",
    "Step",
    "Sync",
    "Wait",
    "from_json",
]


def from_json(value: object) -> Consistency:
    """Return the mode that `Consistency.to_json` described; `value` may come from a stranger.

    Raises:
        InvalidArgument: The mode is not known, or an argument is missing, unknown or out of range.
    """
    if isinstance(value, str):
        value = {"mode": value}
    mode = MODES.get(str(value.get("mode"))) if isinstance(value, Mapping) else None
    if mode is None or not isinstance(value, Mapping):
        raise InvalidArgument(
            f'A consistency is {{"mode": ...}} with one of {", ".join(MODES)}. Received: '
            f"{repr(value)[:80]}"
        )
    arguments = {str(name): argument for name, argument in value.items() if name != "mode"}
    fields = dataclasses.fields(mode)
    names = {field.name for field in fields}
    needed = {field.name for field in fields if field.default is dataclasses.MISSING}
    if not needed <= arguments.keys() <= names:
        raise InvalidArgument(
            f"Mode {mode.mode!r} takes {', '.join(sorted(names)) or 'no arguments'}. Received: "
            f"{', '.join(sorted(arguments))[:200] or 'none'}"
        )
    return mode(**arguments)
