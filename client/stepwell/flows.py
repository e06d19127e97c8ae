"""What clients do apart from sessions, as flows; and how a flow is given up on a server never
reached.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from stepwell_core import keras_config
from stepwell_core.consistency import Consistency
from stepwell_core.errors import InvalidArgument
from stepwell_core.keras_config import AnyOptimizer
from stepwell_core.layout import Layout
from stepwell_core.schedules import LearningRateSchedule

from stepwell import calls
from stepwell.calls import Call, Hyperparameters, model_path
from stepwell.results import Checkpoint, Parameters
from stepwell.retry import Flow, repeatedly
from stepwell.session import Session


@dataclass(frozen=True)
class ModelRef:
    """A model as a client knows it; everything that can be asked of it is a flow.

    Attributes:
        name: On the server.
        layout: Its tensors.
        optimizer: As it was when the model was opened.
        hyperparameters: Callables that a push evaluates.
        retry_s: How long a call is repeated.
    """

    name: str
    layout: Layout
    optimizer: AnyOptimizer
    retry_s: float
    hyperparameters: Mapping[str, Callable[[], float]] = field(default_factory=dict)

    def call(self, method: str, *path: str, can_repeat: bool = True, **fields: Any) -> Flow[Any]:
        """Make a call below the model; returns its fields."""
        call = Call(method, model_path(self.name, *path), can_repeat=can_repeat, **fields)
        return (yield from repeatedly(call, self.retry_s)).fields

    def pull(self, names: Iterable[str] | None, slot: str | None) -> Flow[Parameters]:
        """Pull parameters or a slot."""
        call = calls.pull(self.name, self.layout, names, slot)
        return calls.parameters_of((yield from repeatedly(call, self.retry_s)))

    def set_hyperparameters(self, values: Mapping[str, Any]) -> Flow[None]:
        """Change hyperparameters from the next step on."""
        plain = {
            name: value.serialize() if isinstance(value, LearningRateSchedule) else value
            for name, value in values.items()
        }
        yield from self.call("PATCH", "optimizer", json=plain)

    def optimizer_now(self) -> Flow[AnyOptimizer]:
        """Return the optimizer as it is."""
        return keras_config.deserialize((yield from self.call("GET", "optimizer")))

    def finalize(self) -> Flow[int]:
        """Write the moving average into the parameters; returns the version."""
        version: int = (yield from self.call("POST", "finalize", can_repeat=False))["version"]
        return version

    def overwrite(self, parameters: Mapping[str, Any]) -> Flow[int]:
        """Replace all parameters; returns the version."""
        body = calls.overwrite(self.layout, parameters)
        version: int = (yield from self.call("PUT", "parameters", body=body))["version"]
        return version

    def checkpoint(self) -> Flow[Checkpoint]:
        """Write a checkpoint."""
        return Checkpoint.of((yield from self.call("POST", "checkpoints", can_repeat=False)))

    def checkpoints(self) -> Flow[list[Checkpoint]]:
        """List the checkpoints that can be read, oldest first."""
        found = (yield from self.call("GET", "checkpoints"))["checkpoints"]
        return [Checkpoint.of(fields) for fields in found if "invalid" not in fields]

    def restore(self, checkpoint: str | Checkpoint) -> Flow[int]:
        """Go back to a checkpoint; returns the version."""
        checkpoint_id = checkpoint.id if isinstance(checkpoint, Checkpoint) else checkpoint
        path = ("checkpoints", checkpoint_id, "restore")
        version: int = (yield from self.call("POST", *path, can_repeat=False))["version"]
        return version

    def session(self, worker: str, hyperparameters: Hyperparameters | None) -> Session:
        """Return a session, not opened yet."""
        merged = {**self.hyperparameters, **(hyperparameters or {})}
        return Session(self.name, self.layout, worker, merged, self.retry_s)


def create_model(
    name: str,
    parameters: Mapping[str, Any],
    optimizer: Any,
    consistency: Consistency | None,
    on_nonfinite: str,
    retry_s: float,
    *,
    exist_ok: bool,
) -> Flow[ModelRef]:
    """Create a model, or open the one that exists."""
    chosen = calls.as_optimizer(optimizer)
    if consistency is not None and not isinstance(consistency, Consistency):
        raise InvalidArgument(
            "`consistency` is a mode such as stepwell.Sync(workers=4). Received: "
            f"{type(consistency).__name__}"
        )
    call = calls.create_model(
        name, parameters, chosen, consistency, on_nonfinite, exist_ok=exist_ok
    )
    answer = yield from repeatedly(call, retry_s)
    return _ref(answer.fields, retry_s, calls.callables_of(chosen))


def open_model(name: str, retry_s: float) -> Flow[ModelRef]:
    """Open an existing model."""
    answer = yield from repeatedly(Call("GET", model_path(name)), retry_s)
    return _ref(answer.fields, retry_s, {})


def _ref(
    fields: Mapping[str, Any], retry_s: float, callables: Mapping[str, Callable[[], float]]
) -> ModelRef:
    return ModelRef(
        name=fields["name"],
        layout=Layout.from_json(fields["tensors"]),
        optimizer=keras_config.deserialize(fields["optimizer"]),
        retry_s=retry_s,
        hyperparameters=callables,
    )


__all__ = ["ModelRef", "create_model", "open_model"]
