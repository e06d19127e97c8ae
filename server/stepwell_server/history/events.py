"""Everything that a history can say, as frozen values; `KINDS` is the whole list.

    kind              says
    step              pushes became a step, or were accumulated
    drop              a push had no effect but its answer
    loss_scale        the dynamic loss scale is another
    hyperparameters   an administrator changed some
    consistency       ... or the mode
    join, leave       a worker opened a session; a session ended, and why
    checkpoint        one was written
    cut               restored, overwritten or imported: a new incarnation
    finalize          the moving average was written into the parameters
    start             the server began with this model

Each has the model's `version` after it. What is None is not known, or was not measured. An event
becomes an `Entry` when it is added to a history, which gives it a number and a time.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

from stepwell_core import keras_config
from stepwell_core.definition import Definition

METRIC = "metrics."
"""What the series of a metric is called before its name."""


@dataclass(frozen=True)
class Event:
    """What happened.

    Attributes:
        kind: Its name; one of `KINDS`.
        is_sample: Whether it is one of many like it, so that some may be left out of the file.
        version: Of the model, after it.
    """

    kind: ClassVar[str]
    is_sample: ClassVar[bool] = False

    version: int

    def fields(self) -> dict[str, Any]:
        """Return everything but the version, as plain values."""
        return {name: value for name, value in vars(self).items() if name != "version"}

    def series(self) -> dict[str, float]:
        """Return the finite numbers that are drawn over versions, by the name of their series."""
        return {}


@dataclass(frozen=True)
class Step(Event):
    """A step.

    Attributes:
        outcome: "applied" or "accumulated".
        workers: Whose pushes it is made of, in the order of the reduction.
        learning_rate: Of the step.
        staleness_max: Of its pushes.
        staleness_mean: Of its pushes.
        metrics: What workers said, by worker and name.
        gradient_norm: See `stepwell_core.norms`; of some steps only.
        update_norm: Likewise; None too if the step changed no parameters.
    """

    kind: ClassVar[str] = "step"
    is_sample: ClassVar[bool] = True

    outcome: str
    workers: tuple[str, ...]
    learning_rate: float
    staleness_max: int
    staleness_mean: float
    metrics: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    gradient_norm: float | None = None
    update_norm: float | None = None

    @classmethod
    def made(cls, **values: Any) -> Step:
        """Return `Step(**values)`, all of them given, in a fifth of the time.

        There is one behind every push, and a frozen dataclass sets its fields one by one.
        """
        step = object.__new__(cls)
        vars(step).update(values)
        return step

    def series(self) -> dict[str, float]:
        """Return its numbers; a metric is the mean of what its workers said."""
        numbers: dict[str, float] = {
            "learning_rate": self.learning_rate,
            "staleness_max": float(self.staleness_max),
            "staleness_mean": self.staleness_mean,
            "contributors": float(len(self.workers)),
        }
        for name, value in (
            ("gradient_norm", self.gradient_norm),
            ("update_norm", self.update_norm),
        ):
            if value is not None:
                numbers[name] = value
        said: dict[str, list[float]] = {}
        for metrics in self.metrics.values():
            for name, value in metrics.items():
                said.setdefault(METRIC + name, []).append(value)
        numbers |= {name: sum(values) / len(values) for name, values in said.items()}
        return {name: value for name, value in numbers.items() if math.isfinite(value)}


@dataclass(frozen=True)
class Dropped(Event):
    """A push that had no effect."""

    kind: ClassVar[str] = "drop"
    is_sample: ClassVar[bool] = True

    worker: str
    outcome: str
    staleness: int = 0


@dataclass(frozen=True)
class LossScaleChanged(Event):
    """The dynamic loss scale was halved or doubled."""

    kind: ClassVar[str] = "loss_scale"

    old: float
    new: float


@dataclass(frozen=True)
class HyperparametersChanged(Event):
    """Some hyperparameters are others from the next step on; by name, in their JSON form."""

    kind: ClassVar[str] = "hyperparameters"

    old: Mapping[str, Any]
    new: Mapping[str, Any]


@dataclass(frozen=True)
class ConsistencyChanged(Event):
    """The mode is another from the next step on; both in their JSON form."""

    kind: ClassVar[str] = "consistency"

    old: Mapping[str, Any]
    new: Mapping[str, Any]


@dataclass(frozen=True)
class Joined(Event):
    """A worker opened a session."""

    kind: ClassVar[str] = "join"

    worker: str
    epoch: int


@dataclass(frozen=True)
class Left(Event):
    """A worker's session ended; `reason` says why, such as "closed"."""

    kind: ClassVar[str] = "leave"

    worker: str
    epoch: int
    reason: str


@dataclass(frozen=True)
class CheckpointWritten(Event):
    """A checkpoint is durable; `version` is the one in it."""

    kind: ClassVar[str] = "checkpoint"

    checkpoint: str


@dataclass(frozen=True)
class HistoryCut(Event):
    """The model became another state.

    Attributes:
        cause: "restore", "overwrite" or "import".
        incarnation: Of the model from now on.
        checkpoint: What was restored, else None.
    """

    kind: ClassVar[str] = "cut"

    cause: str
    incarnation: str
    checkpoint: str | None = None


@dataclass(frozen=True)
class Finalized(Event):
    """The moving average was written into the parameters."""

    kind: ClassVar[str] = "finalize"


@dataclass(frozen=True)
class Started(Event):
    """The server began with this model: it was created, or is there again after a restart."""

    kind: ClassVar[str] = "start"

    incarnation: str


EVENTS: tuple[type[Event], ...] = (
    Step,
    Dropped,
    LossScaleChanged,
    HyperparametersChanged,
    ConsistencyChanged,
    Joined,
    Left,
    CheckpointWritten,
    HistoryCut,
    Finalized,
    Started,
)

KINDS: tuple[str, ...] = tuple(event.kind for event in EVENTS)

SAMPLE_KINDS: tuple[str, ...] = tuple(event.kind for event in EVENTS if event.is_sample)


@dataclass(eq=False)  # not frozen, which takes longer to make; nobody changes it
class Entry:
    """An event in a history.

    Attributes:
        number: Larger than that of any earlier entry of the model, also over restarts.
        time: Unix seconds.
        event: What happened.
    """

    number: int
    time: float
    event: Event

    def to_json(self) -> dict[str, Any]:
        """Return plain values: number, time, kind, version, and the event's own fields."""
        event = self.event
        head = {"number": self.number, "time": self.time, "kind": event.kind}
        return {**head, "version": event.version, **event.fields()}

    @cached_property
    def message(self) -> bytes:
        """The entry as a server-sent event, made once for all who listen."""
        data = json.dumps(finite(self.to_json()))
        return f"id: {self.number}\nevent: {self.event.kind}\ndata: {data}\n\n".encode()


def changed_hyperparameters(
    version: int, before: Definition, after: Definition
) -> HyperparametersChanged:
    """Return which hyperparameters changed between two definitions of a model."""
    old, new = (keras_config.serialize(definition.rule)["config"] for definition in (before, after))
    names = [name for name in new if old.get(name) != new[name]]
    return HyperparametersChanged(
        version, {name: old.get(name) for name in names}, {name: new[name] for name in names}
    )


def finite(value: Any) -> Any:
    """Return plain values with None for what JSON has no number for: NaN and infinity."""
    match value:
        case float():
            return value if math.isfinite(value) else None
        case Mapping():
            return {name: finite(item) for name, item in value.items()}
        case list() | tuple():
            return [finite(item) for item in value]
        case _:
            return value
