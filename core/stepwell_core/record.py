"""What a journal says of a change: plain values and a payload, from which it is made again.

    pushes           a step, a drop or a skip: the results, the counters after it, the gradient
                     that the step takes (reduced, if it is of several pushes) and its scalars; or
                     a gradient that is added to the buffer
    session_opened   a worker took an epoch
    session_closed   ... and gave it back
    optimizer        its hyperparameters are others from now on
    consistency      pushes become steps by another mode from now on
    finalized        the moving average was written into the parameters

A record has the outcome of a decision, never what it was decided from: replaying decides nothing
again. It has the step's scalars, since `pow` and `exp` may differ between processors. So
`Engine.replay` ends with the same bytes as the engine that wrote it.

Restoring and overwriting have no record: a checkpoint of what comes after is written before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from stepwell_core import consistency, keras_config, strict
from stepwell_core.consistency import Consistency
from stepwell_core.errors import JournalInvalid, StepwellError
from stepwell_core.gradient import Gradient
from stepwell_core.layout import ARENA_DTYPES, Arenas, Layout, byte_views, payload_dtype
from stepwell_core.ledger import MAX_OPEN_SESSIONS
from stepwell_core.loss_scale import LossScaleOptimizer
from stepwell_core.optimizers import Optimizer
from stepwell_core.push import Push, Staged
from stepwell_core.scalars import GroupScalars, StepScalars
from stepwell_core.session import Result
from stepwell_core.state import Counters


@dataclass(frozen=True)
class SessionOpened:
    """A worker opened a session, which got this epoch."""

    worker: str
    epoch: int


@dataclass(frozen=True)
class SessionClosed:
    """A session was closed."""

    worker: str
    epoch: int


@dataclass(frozen=True)
class OptimizerChanged:
    """The rule has these hyperparameters from now on."""

    rule: Optimizer


@dataclass(frozen=True)
class ConsistencyChanged:
    """Pushes become steps by this mode from now on."""

    consistency: Consistency


@dataclass(frozen=True)
class Finalized:
    """The moving average was written into the parameters, or a version was counted without one."""


Change = Staged | SessionOpened | SessionClosed | OptimizerChanged | ConsistencyChanged | Finalized

_RESULT = ("outcome", "version", "parameters_version", "staleness", "loss_scale")


def describe(
    change: Change, layout: Layout | None = None
) -> tuple[dict[str, Any], list[memoryview]]:
    """Return the plain values and the payload of a change.

    Args:
        change: The payload is views of its gradient: good for as long as that lives.
        layout: Of the model; a gradient of all its tensors then does not name them.
    """
    match change:
        case Staged():
            return _describe_pushes(change, layout)
        case SessionOpened():
            return {"kind": "session_opened", **vars(change)}, []
        case SessionClosed():
            return {"kind": "session_closed", **vars(change)}, []
        case OptimizerChanged():
            return {"kind": "optimizer", "rule": keras_config.serialize(change.rule)}, []
        case ConsistencyChanged():
            return {"kind": "consistency", "consistency": change.consistency.to_json()}, []
        case Finalized():
            return {"kind": "finalized"}, []


def read(header: Mapping[str, Any], payload: memoryview, layout: Layout) -> Change:
    """Return the change that `describe` described.

    Args:
        header: Perhaps from a stranger.
        payload: Read until the change is made; not copied if it is writable and aligned.
        layout: Of the model.

    Raises:
        JournalInvalid: It is not a change of such a model.
    """
    kind = header.get("kind")
    try:
        match kind:
            case "pushes":
                return _read_pushes(header, payload, layout)
            case "session_opened":
                return SessionOpened(*_session(header))
            case "session_closed":
                return SessionClosed(*_session(header))
            case "optimizer":
                optimizer = keras_config.deserialize(header["rule"])
                if not isinstance(optimizer, LossScaleOptimizer):
                    return OptimizerChanged(optimizer)
            case "consistency":
                return ConsistencyChanged(consistency.from_json(header["consistency"]))
            case "finalized":
                return Finalized()
    except (StepwellError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise JournalInvalid(
            f"A record of kind {kind!r} lacks something, or has what cannot be "
            f"({type(error).__name__})"
        ) from None
    raise JournalInvalid(f"A record has a kind that this server knows. Received: {str(kind)[:80]}")


def _session(header: Mapping[str, Any]) -> tuple[str, int]:
    return strict.identifier(header["worker"]), strict.integer(header["epoch"], 1)


def _describe_pushes(
    staged: Staged, layout: Layout | None
) -> tuple[dict[str, Any], list[memoryview]]:
    gradient, scalars = staged.gradient, staged.scalars
    header: dict[str, Any] = {
        "kind": "pushes",
        "results": [
            [*push.key, push.fingerprint, *(getattr(result, name) for name in _RESULT)]
            for push, result in staged.results
        ],
        "counters": staged.counters.to_json(),
        "gradient": None,
    }
    if scalars is not None:
        header["scalars"] = _describe_scalars(scalars)
    if gradient is None:
        return header, []
    header["gradient"] = {
        "tensors": None if gradient.layout == layout else list(gradient.layout.names),
        "dtype": gradient.dtype,
        "loss_scale": gradient.loss_scale,
    }
    if staged.weight is not None:
        header["weight"] = staged.weight
    return header, byte_views(gradient.arenas)


def _describe_scalars(scalars: StepScalars) -> dict[str, Any]:
    return {
        "learning_rate": scalars.learning_rate,
        "updates": scalars.updates,
        "overwrites": scalars.overwrites,
        "assigns": scalars.assigns,
        **_describe_numbers(scalars),
        "groups": [_describe_numbers(group) for group in scalars.groups],
    }


def _describe_numbers(scalars: StepScalars | GroupScalars) -> dict[str, Any]:
    return {
        "constants": {dtype: array.tobytes() for dtype, array in scalars.constants.items()},
        "rule": {dtype: np.array(v, dtype).tobytes() for dtype, v in scalars.rule.items()},
    }


def _read_pushes(header: Mapping[str, Any], payload: memoryview, layout: Layout) -> Staged:
    said = strict.sequence(header["results"], MAX_OPEN_SESSIONS)
    results = tuple(_read_result(entry, layout) for entry in said)
    counters = Counters.from_json(header["counters"])
    said = header["gradient"]
    scalars = _scalars(header["scalars"], layout) if "scalars" in header else None
    if said is None:
        return Staged(results, counters, scalars=scalars)
    names = said["tensors"]
    selection = layout if names is None else layout.select(names)
    selection = layout if selection == layout else selection
    arenas = _arenas(selection, said["dtype"], payload)
    loss_scale = None if said["loss_scale"] is None else strict.number(said["loss_scale"])
    gradient = Gradient(selection, arenas, said["dtype"], loss_scale)
    weight = strict.positive(header["weight"]) if "weight" in header else None
    if scalars is None and weight is None:
        raise ValueError("nothing is done with the gradient")
    return Staged(results, counters, gradient, scalars, weight)


def _read_result(said: Sequence[Any], layout: Layout) -> tuple[Push, Result]:
    worker, epoch, sequence, fingerprint, *values = said
    push = Push(
        strict.identifier(worker),
        strict.integer(epoch, 1),
        strict.integer(sequence),
        "",
        Gradient(layout, {}),
        fingerprints=_always(strict.text(fingerprint)),
    )
    return push, Result.from_json({"duplicate": False, **dict(zip(_RESULT, values, strict=True))})


def _always(fingerprint: str) -> Any:
    return lambda: fingerprint


def _scalars(said: Mapping[str, Any], layout: Layout) -> StepScalars:
    return StepScalars(
        learning_rate=strict.number(said["learning_rate"]),
        updates=strict.boolean(said["updates"]),
        overwrites=strict.boolean(said["overwrites"]),
        assigns=strict.boolean(said.get("assigns", False)),
        **_numbers(said, layout),
        groups=tuple(GroupScalars(**_numbers(group, layout)) for group in said.get("groups", ())),
    )


def _numbers(said: Mapping[str, Any], layout: Layout) -> dict[str, Any]:
    return {
        "constants": {d: np.frombuffer(said["constants"][d], d).copy() for d in layout.sizes},
        "rule": {d: tuple(np.frombuffer(said["rule"][d], d)) for d in layout.sizes},
    }


def _arenas(layout: Layout, dtype: str, payload: memoryview) -> Arenas:
    """Return a payload as the kernels take it: writable arrays, which are aligned."""
    if payload.nbytes != layout.payload_nbytes(dtype):
        raise ValueError("the payload has another size than its tensors")
    arenas: Arenas = {}
    start = 0
    for arena_dtype in (d for d in ARENA_DTYPES if d in layout.sizes):
        element, count = payload_dtype(dtype, arena_dtype), layout.sizes[arena_dtype]
        array = np.frombuffer(payload, element, count, start)
        is_usable = array.flags.writeable and array.flags.aligned
        arenas[arena_dtype] = array if is_usable else array.copy()
        start += array.nbytes
    return arenas
