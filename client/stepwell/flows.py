"""What clients do apart from sessions, as flows: with a server, and with one of its models."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from stepwell_core import keras_config
from stepwell_core.consistency import Consistency, from_json
from stepwell_core.groups import ParameterGroup
from stepwell_core.keras_config import AnyOptimizer
from stepwell_core.layout import Layout
from stepwell_core.names import check_identifier

from stepwell import calls, checkpoint_calls, history, model_calls
from stepwell.calls import Answer, Call, model_path
from stepwell.history import Listening, ModelHistory
from stepwell.optimizers import Hyperparameters, as_optimizer, callables_of
from stepwell.pulls import Pulls
from stepwell.results import Checkpoint, CheckpointProgress
from stepwell.retry import Flow, Patience, repeatedly
from stepwell.session import Session


@dataclass(frozen=True)
class ServerFlows:
    """Everything that can be asked of a server."""

    patience: Patience

    def create_model(
        self,
        name: str,
        parameters: Mapping[str, Any],
        optimizer: Any,
        consistency: Consistency | None,
        on_nonfinite: str,
        groups: Sequence[ParameterGroup] = (),
        state: Mapping[str, Any] | None = None,
        *,
        exist_ok: bool,
    ) -> Flow[ModelFlows]:
        """Create a model, or open the one that exists."""
        check_identifier(name, "model")
        chosen = as_optimizer(optimizer)
        call = model_calls.create_model(
            name, parameters, chosen, consistency, on_nonfinite, groups, state, exist_ok=exist_ok
        )
        answer = yield from repeatedly(call, self.patience)
        return self._model(answer, callables_of(chosen))

    def open_model(self, name: str) -> Flow[ModelFlows]:
        """Open an existing model."""
        call = Call("GET", model_path(check_identifier(name, "model")))
        return self._model((yield from repeatedly(call, self.patience)), {})

    def _model(self, answer: Answer, callables: Mapping[str, Callable[[], float]]) -> ModelFlows:
        layout = Layout.from_json(answer["tensors"])
        return ModelFlows(answer["name"], layout, self.patience, callables)

    def models(self) -> Flow[list[str]]:
        """Return the names of all models."""
        answer = yield from repeatedly(Call("GET", "/v1/models"), self.patience)
        return [calls.required(model, "name") for model in answer["models"]]

    def delete_model(self, name: str) -> Flow[None]:
        """Delete a model with all its checkpoints."""
        path = model_path(check_identifier(name, "model"))
        yield from repeatedly(Call("DELETE", path, can_repeat=False), self.patience)

    def about(self) -> Flow[dict[str, Any]]:
        """Return the server's version, limits and features."""
        return dict((yield from repeatedly(Call("GET", "/v1"), self.patience)).fields)


@dataclass(frozen=True)
class ModelFlows:
    """A model as a client knows it, and everything that can be asked of it.

    Attributes:
        name: On the server.
        layout: Its tensors.
        patience: How long a call is repeated.
        callables: Hyperparameters that each push evaluates.
    """

    name: str
    layout: Layout
    patience: Patience
    callables: Mapping[str, Callable[[], float]]

    @cached_property
    def pulls(self) -> Pulls:
        """What pulls its parameters."""
        return Pulls(self.name, self.layout, self.patience)

    def describe(self) -> Flow[dict[str, Any]]:
        """Return what the server says of the model."""
        return dict((yield from self._ask("GET")).fields)

    def optimizer(self) -> Flow[AnyOptimizer]:
        """Return the optimizer as it is now."""
        return keras_config.deserialize((yield from self._ask("GET", "optimizer")).fields)

    def overwrite(self, parameters: Mapping[str, Any]) -> Flow[int]:
        """Replace all parameters; returns the version."""
        call = model_calls.overwrite(self.name, self.layout, parameters)
        return _version((yield from repeatedly(call, self.patience)))

    def set_hyperparameters(self, values: Mapping[str, Any]) -> Flow[None]:
        """Change hyperparameters from the next step on."""
        yield from repeatedly(model_calls.set_hyperparameters(self.name, values), self.patience)

    def consistency(self) -> Flow[Consistency]:
        """Return the mode by which pushes become steps now."""
        return from_json(dict((yield from self._ask("GET", "consistency")).fields))

    def set_consistency(self, mode: Consistency) -> Flow[None]:
        """Use another mode from between two steps on."""
        yield from repeatedly(model_calls.set_consistency(self.name, mode), self.patience)

    def finalize(self) -> Flow[int]:
        """Write the moving average into the parameters; returns the version."""
        return _version((yield from self._ask("POST", "finalize")))

    def checkpoint(self, *, pinned: bool = False) -> Flow[Checkpoint]:
        """Write a checkpoint."""
        body = {"pinned": bool(pinned)}
        answer = yield from self._ask("POST", "checkpoints", json=body)
        return checkpoint_calls.read_checkpoint(answer.fields)

    def checkpoints(self) -> Flow[list[Checkpoint]]:
        """List the checkpoints, oldest first, those that cannot be read too."""
        found = (yield from self._ask("GET", "checkpoints"))["checkpoints"]
        return [checkpoint_calls.read_checkpoint(fields) for fields in found]

    def checkpoint_progress(self) -> Flow[CheckpointProgress | None]:
        """Return how far a checkpoint is that is being written."""
        return checkpoint_calls.read_progress((yield from self._ask("GET", "checkpoints")).fields)

    def restore(self, checkpoint: str | Checkpoint) -> Flow[int]:
        """Go back to a checkpoint; returns the version."""
        return _version((yield from self._ask("POST", *_path_of(checkpoint), "restore")))

    def verify(self, checkpoint: str | Checkpoint) -> Flow[Checkpoint]:
        """Have every tensor of a checkpoint checked against its hash."""
        answer = yield from self._ask("POST", *_path_of(checkpoint), "verify")
        return checkpoint_calls.read_checkpoint(answer.fields)

    def pin(self, checkpoint: str | Checkpoint, *, pinned: bool) -> Flow[None]:
        """Keep a checkpoint for ever, or no longer."""
        yield from self._ask("POST", *_path_of(checkpoint), "pin", json={"pinned": bool(pinned)})

    def delete_checkpoint(self, checkpoint: str | Checkpoint) -> Flow[None]:
        """Delete a checkpoint."""
        yield from self._ask("DELETE", *_path_of(checkpoint))

    def fork(self, checkpoint: str | Checkpoint, name: str) -> Flow[ModelFlows]:
        """Create another model from a checkpoint."""
        body = {"name": check_identifier(name, "model")}
        answer = yield from self._ask("POST", *_path_of(checkpoint), "fork", json=body)
        layout = Layout.from_json(answer["tensors"])
        return ModelFlows(answer["name"], layout, self.patience, self.callables)

    def import_state(
        self,
        parameters: Mapping[str, Any] | None,
        slots: Mapping[str, Mapping[str, Any]] | None,
        iterations: int | None,
    ) -> Flow[int]:
        """Take over what was trained elsewhere; returns the version."""
        call = checkpoint_calls.import_state(self.name, self.layout, parameters, slots, iterations)
        return _version((yield from repeatedly(call, self.patience)))

    def history(self, **wanted: Any) -> Flow[ModelHistory]:
        """Return a range of the history; see `history.ask`."""
        call = history.ask(self.name, **wanted)
        return history.history_of((yield from repeatedly(call, self.patience)))

    def listening(self, after: int | None, kinds: str | Iterable[str] | None) -> Listening:
        """Return what listens to the model; no flow, since it has no end."""
        return Listening(self.name, after, kinds, self.patience)

    def session(
        self, worker: str, hyperparameters: Hyperparameters | None, on_stale: str = "raise"
    ) -> Session:
        """Return a session, not opened yet."""
        merged = {**self.callables, **(hyperparameters or {})}
        check_identifier(worker, "worker")
        return Session(self.name, self.layout, worker, merged, self.patience, on_stale)

    def _ask(self, method: str, *path: str, json: Mapping[str, Any] | None = None) -> Flow[Answer]:
        """Make a call; one that may do something twice is not repeated."""
        call = Call(method, model_path(self.name, *path), json=json, can_repeat=method == "GET")
        return (yield from repeatedly(call, self.patience))


def _path_of(checkpoint: str | Checkpoint) -> tuple[str, str]:
    name = checkpoint.id if isinstance(checkpoint, Checkpoint) else checkpoint
    return "checkpoints", check_identifier(name, "checkpoint")


def _version(answer: Answer) -> int:
    return int(answer["version"])
