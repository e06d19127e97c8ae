"""A model at one moment: its counters, a cut of everything, and what it is restored from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from stepwell_core import strict
from stepwell_core.buffer import BUFFER
from stepwell_core.definition import Definition
from stepwell_core.errors import CheckpointInvalid
from stepwell_core.layout import Arenas
from stepwell_core.ledger import Ledger
from stepwell_core.loss_scale import LossScale, LossScaleOptimizer
from stepwell_core.pipeline import Pipeline
from stepwell_core.store import Version


@dataclass(frozen=True)
class Counters:
    """The numbers that belong to one version.

    Attributes:
        version: Changes so far.
        parameters_version: The version at which the parameters' bytes last changed.
        iterations: Keras's raw counter: applies so far, accumulating ones included.
        loss_scale: With dynamic loss scaling.
    """

    version: int = 0
    parameters_version: int = 0
    iterations: int = 0
    loss_scale: LossScale | None = None

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Counters:
        """Return the counters that `to_json` described; `value` may come from a stranger.

        Raises:
            ValueError: It is none.
        """
        names = ("version", "parameters_version", "iterations")
        value = strict.mapping(value, *names, "loss_scale")
        numbers = {name: strict.integer(value[name]) for name in names}
        if numbers["parameters_version"] > numbers["version"]:
            raise ValueError("the parameters are newer than the model")
        scale = value["loss_scale"]
        return cls(**numbers, loss_scale=None if scale is None else LossScale.from_json(scale))


@dataclass(frozen=True)
class Snapshot:
    """One consistent cut of a model, taken between two changes.

    Attributes:
        definition: With the hyperparameters of that moment.
        incarnation: Of the history it belongs to.
        counters: At the cut.
        ledger: A cut of it.
        parameters: Held; the caller releases it with `Engine.store.release`.
        slots: Copies that the caller owns.
        gathered: What `Buffer.to_json` says; empty without a buffer.
    """

    definition: Definition
    incarnation: str
    counters: Counters
    ledger: Ledger
    parameters: Version
    slots: dict[str, Arenas]
    gathered: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class State:
    """What a model is restored from; the engine owns the arrays from then on.

    Its fields are those of a `Snapshot`.
    """

    definition: Definition
    counters: Counters
    ledger: Ledger
    parameters: Arenas
    slots: dict[str, Arenas]
    gathered: Mapping[str, Any] = field(default_factory=dict)


def check_state(state: State, pipeline: Pipeline) -> None:
    """Refuse a state that does not belong to a pipeline.

    Raises:
        CheckpointInvalid: It has other slots, arrays of another layout, or a loss scale too many.
    """
    expected = slot_names(state.definition, pipeline)
    if set(state.slots) != set(expected):
        raise CheckpointInvalid(
            f"The optimizer has the slots {sorted(expected)}. Received: {sorted(state.slots)}"
        )
    for name, arenas in {"parameters": state.parameters, **state.slots}.items():
        if not pipeline.layout.fits(arenas):
            raise CheckpointInvalid(f"The arrays of {name!r} are not of the model's layout.")
    is_scaled = isinstance(state.definition.optimizer, LossScaleOptimizer)
    if is_scaled is (state.counters.loss_scale is None):
        raise CheckpointInvalid("A loss scale belongs to a LossScaleOptimizer, and to no other.")


def pipeline_of(definition: Definition) -> Pipeline:
    """Return the steps of a model that is so defined."""
    return Pipeline(
        definition.layout, definition.rule, definition.excluded, definition.groups, definition.state
    )


def slot_names(definition: Definition, pipeline: Pipeline) -> tuple[str, ...]:
    """Return the names of a model's slots: the optimizer's, and the buffer if there is one."""
    return (*pipeline.slot_values, *((BUFFER,) if definition.consistency.gathers else ()))
