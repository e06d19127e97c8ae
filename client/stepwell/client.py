"""The blocking client and its models: thin shells around flows."""

from __future__ import annotations

import os
import ssl
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, Self, Unpack

from stepwell_core.consistency import Consistency
from stepwell_core.groups import ParameterGroup
from stepwell_core.keras_config import AnyOptimizer

from stepwell.driver import Driver
from stepwell.endpoint import Endpoint, check_transport
from stepwell.flows import ModelFlows, ServerFlows
from stepwell.handles import ModelHandle
from stepwell.history import HistoryEvent, ModelHistory
from stepwell.optimizers import Hyperparameters
from stepwell.pulls import PullOptions
from stepwell.results import Checkpoint, CheckpointProgress, Parameters
from stepwell.retry import Patience, Timeout
from stepwell.transport import new_transport
from stepwell.worker import Worker


class Client:
    """A connection to a server. Thread-safe; a context manager. No call is made before it is used.

    A forked process may go on using it: it makes connections of its own.

    What each call may raise, of a model and a worker too, beside what stands there:
    `TransportError` or `Unavailable` (no answer, or a server that cannot now, for
    `timeout.retry_s`), `Unauthenticated` and `Forbidden` (the token), `InvalidName`, and
    `ModelNotFound` (it was deleted).

    Args:
        url: Of the server, or unix:///path of its socket; default: `STEPWELL_URL`, or
            http://127.0.0.1:8700.
        token: Default: `STEPWELL_TOKEN`, or the first one in the file `STEPWELL_TOKEN_FILE`.
        timeout: How long to wait for what.
        verify: What to think of the server's certificate: True, False or an `ssl.SSLContext`.
        uds: Path of the server's Unix socket, instead of TCP.
        transport: "auto": workers exchange tensors with a server on this host in shared memory,
            if both can; "http": over the wire in any case.

    Raises:
        InvalidArgument: The URL is no server's, the token no token, or `transport` neither.
    """

    def __init__(
        self,
        url: str | None = None,
        token: str | None = None,
        *,
        timeout: Timeout | None = None,
        verify: bool | ssl.SSLContext = True,
        uds: str | os.PathLike[str] | None = None,
        transport: Literal["auto", "http"] = "auto",
    ) -> None:
        endpoint = Endpoint.find(url, token, uds, timeout=timeout, verify=verify)
        self._driver = Driver(endpoint, check_transport(transport), new_transport)
        self._flows = ServerFlows(Patience(endpoint.timeout))

    def create_model(
        self,
        name: str,
        parameters: Mapping[str, Any],
        *,
        optimizer: Any,
        consistency: Consistency | None = None,
        on_nonfinite: str = "reject",
        groups: Sequence[ParameterGroup] = (),
        state: Mapping[str, Any] | None = None,
        exist_ok: bool = False,
    ) -> Model:
        """Create a model on the server; it is durable there when this returns.

        Args:
            name: 1 to 64 lower-case letters, digits, '.', '_', '-'.
            parameters: Initial values by name, each float32 or float64, of any shape; anything
                NumPy can view. Read until this returns, not kept.
            optimizer: Ours, a live Keras optimizer, Keras's JSON, or a class's name. A callable
                hyperparameter is evaluated at each push of workers of the returned model.
            consistency: When pushes become a step; default `Async()`.
            on_nonfinite: What happens to a gradient with NaN: "reject", "drop" or "allow".
            groups: Tensors with hyperparameters of their own; the others take the optimizer's.
            state: Initial values of tensors that are pulled and saved with the parameters, but not
                optimized: pushes set them. Such as the statistics of a batch normalization.
            exist_ok: Open the model if it exists with the same definition; its values stay.

        Raises:
            ModelExists: And `exist_ok` is False.
            ModelDiffers: It exists with another definition.
            DtypeMismatch: A parameter is neither float32 nor float64.
            InvalidInput: Something else in the definition is not allowed.
            DoesNotFit: The server has not enough memory.
        """
        flow = self._flows.create_model(
            name, parameters, optimizer, consistency, on_nonfinite, groups, state, exist_ok=exist_ok
        )
        return Model(self._driver, self._driver.run(flow))

    def model(self, name: str) -> Model:
        """Open an existing model.

        Raises:
            ModelNotFound: There is none of that name.
        """
        return Model(self._driver, self._driver.run(self._flows.open_model(name)))

    def models(self) -> list[str]:
        """Return the names of all models, in order."""
        return self._driver.run(self._flows.models())

    def delete_model(self, name: str) -> None:
        """Delete a model with all its checkpoints.

        Raises:
            ModelNotFound: There is none of that name.
            StoreFailed: The model is gone, its checkpoints are not: repeat it.
        """
        self._driver.run(self._flows.delete_model(name))

    def about(self) -> dict[str, Any]:
        """Return the server's version, limits and features."""
        return self._driver.run(self._flows.about())

    def close(self) -> None:
        """Close all connections."""
        self._driver.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class Model(ModelHandle):
    """A model on the server, for those who look at it or steer it; workers open a session."""

    def __init__(self, driver: Driver, flows: ModelFlows) -> None:
        super().__init__(flows)
        self._driver = driver

    def optimizer(self) -> AnyOptimizer:
        """Return the optimizer as it is now on the server."""
        return self._driver.run(self._flows.optimizer())

    def describe(self) -> dict[str, Any]:
        """Return what the server says of the model: version, bytes, optimizer, consistency, ..."""
        return self._driver.run(self._flows.describe())

    def pull(
        self,
        names: Iterable[str] | None = None,
        *,
        slot: str | None = None,
        **options: Unpack[PullOptions],
    ) -> Parameters:
        """Pull the parameters of one version.

        Args:
            names: Some of them only; they come in the model's order.
            slot: A slot of the optimizer instead: "momentum", "velocity", "average", ... Always
                sent, since slots have no version of their own.
            options: `dtype`, `cached`, `min_version` and `wait_s`, `out`, `into`: see
                `stepwell.PullOptions`.

        Returns:
            Arrays that belong to the caller, in the parameters' shapes and dtypes. The memory of
            two pulls at most stays with this object, and is used again when no view of it is alive.

        Raises:
            UnknownTensor: The model has no such tensor.
            InvalidInput: The optimizer has no such slot, or `names` has none.
            InvalidArgument: An option cannot be.
            LayoutMismatch: The model was deleted and created anew with other tensors; or the names
                in `out` are not those that are pulled.
            ShapeMismatch, DtypeMismatch: An array in `out` does not fit.
            StaleIncarnation: `min_version` is of a history that was cut.
        """
        return self._driver.run(self._flows.pulls.pull(names, slot, **options))

    def overwrite(self, parameters: Mapping[str, Any]) -> int:
        """Replace all parameters; slots stay. Sessions have to be opened again.

        Args:
            parameters: All of the model's, in their shapes and dtypes; read until this returns.

        Returns:
            The model's version after it.

        Raises:
            LayoutMismatch, ShapeMismatch, DtypeMismatch: They are not of the model's layout.
            TransportError: No answer came. It may have been done, and is not repeated: that would
                undo what was pushed in between.
        """
        return self._driver.run(self._flows.overwrite(parameters))

    def set_hyperparameters(self, **values: Any) -> None:
        """Change hyperparameters from the next step on: `set_hyperparameters(learning_rate=1e-4)`.

        Raises:
            InvalidArgument: The optimizer has no such argument, a value is not allowed, it would
                change the slots, or the learning rate is a schedule. Nothing changed.
        """
        self._driver.run(self._flows.set_hyperparameters(values))

    def consistency(self) -> Consistency:
        """Return the mode by which pushes become steps now."""
        return self._driver.run(self._flows.consistency())

    def set_consistency(self, mode: Consistency) -> None:
        """Let pushes become steps by another mode: `set_consistency(stepwell.Sync(workers=4))`.

        It holds from between two steps on. Pushes that wait are decided on anew, and what was
        gathered by `Buffered` makes a step before.

        Raises:
            InvalidArgument: It is no mode.
            DoesNotFit: The server has no room for the gradients that it may keep waiting.
        """
        self._driver.run(self._flows.set_consistency(mode))

    def finalize(self) -> int:
        """Write the moving average into the parameters, and return the version after it.

        Without `use_ema` the parameters stay as they are.

        Raises:
            NothingToFinalize: There is an average, and there was no step yet.
        """
        return self._driver.run(self._flows.finalize())

    def checkpoint(self, *, pinned: bool = False) -> Checkpoint:
        """Write a checkpoint; it is durable, and was read back, when this returns.

        Args:
            pinned: Keep it for ever; else it goes when it is older than those that are kept.

        Raises:
            DiskFull, StoreFailed: It could not be written; nothing changed.
            TransportError: No answer came. It may have been written, and is not tried again.
        """
        return self._driver.run(self._flows.checkpoint(pinned=pinned))

    def checkpoints(self) -> list[Checkpoint]:
        """List the checkpoints, oldest first; one whose manifest is damaged says so: `invalid`."""
        return self._driver.run(self._flows.checkpoints())

    def checkpoint_progress(self) -> CheckpointProgress | None:
        """Return how far a checkpoint is that is being written or read; None if there is none."""
        return self._driver.run(self._flows.checkpoint_progress())

    def restore(self, checkpoint: str | Checkpoint) -> int:
        """Go back to a checkpoint, and return the version after it; sessions have to be reopened.

        Raises:
            CheckpointNotFound: The model has none of that id.
            CheckpointInvalid: It does not match its hashes; nothing changed.
            DiskFull, StoreFailed: What comes after could not be saved; nothing changed.
        """
        return self._driver.run(self._flows.restore(checkpoint))

    def verify(self, checkpoint: str | Checkpoint) -> Checkpoint:
        """Have every tensor of a checkpoint read and checked against its hash.

        Raises:
            CheckpointNotFound: The model has none of that id.
            CheckpointInvalid: It is damaged; says which tensor.
        """
        return self._driver.run(self._flows.verify(checkpoint))

    def pin(self, checkpoint: str | Checkpoint, *, pinned: bool = True) -> None:
        """Keep a checkpoint for ever, or with `pinned=False` no longer."""
        self._driver.run(self._flows.pin(checkpoint, pinned=pinned))

    def delete_checkpoint(self, checkpoint: str | Checkpoint) -> None:
        """Delete a checkpoint.

        Raises:
            Conflict: It is pinned, or no newer one is whole; write another first.
        """
        self._driver.run(self._flows.delete_checkpoint(checkpoint))

    def fork(self, checkpoint: str | Checkpoint, name: str) -> Model:
        """Create another model from a checkpoint: all but its sessions.

        Raises:
            ModelExists: There is a model of that name.
            CheckpointNotFound, CheckpointInvalid: There is no such checkpoint, or it is damaged.
            DoesNotFit: The server has not enough memory.
        """
        return Model(self._driver, self._driver.run(self._flows.fork(checkpoint, name)))

    def import_state(
        self,
        parameters: Mapping[str, Any] | None = None,
        slots: Mapping[str, Mapping[str, Any]] | None = None,
        iterations: int | None = None,
    ) -> int:
        """Take over what was trained elsewhere; sessions have to be opened again.

        Args:
            parameters: All of the model's, in their shapes and dtypes; None leaves them.
            slots: All of the optimizer's, each with an array for every parameter:
                `{"momentum": {...}, "velocity": {...}}`; None leaves them.
            iterations: Steps made so far, Keras's counter; None leaves it.

        Returns:
            The model's version after it.

        Raises:
            InvalidInput: Nothing is given, a slot is missing or unknown, or `iterations` is no
                count; nothing changed.
            LayoutMismatch, ShapeMismatch, DtypeMismatch: Arrays are not of the model's layout.
        """
        flow = self._flows.import_state(parameters, slots, iterations)
        return self._driver.run(flow)

    def history(
        self,
        from_version: int | None = None,
        to_version: int | None = None,
        *,
        since: float | None = None,
        kinds: str | Iterable[str] | None = None,
        series: bool = True,
        points: int | None = None,
    ) -> ModelHistory:
        """Return a range of what happened: norms, learning rate, staleness, metrics; and events.

        Args:
            from_version: The first version.
            to_version: The last one.
            since: Unix seconds.
            kinds: Of events; by default all but steps and drops, which are the series.
            series: False for the events alone, which is faster where a history is long.
            points: Values of a series at most, 2 to 4000; the default is 1000. Of longer series
                the smallest and largest values of each part are returned.

        Raises:
            InvalidInput: A kind or a number is not allowed.
        """
        flow = self._flows.history(
            from_version=from_version,
            to_version=to_version,
            since=since,
            kinds=kinds,
            series=series,
            points=points,
        )
        return self._driver.run(flow)

    def events(
        self, *, after: int | None = None, kinds: str | Iterable[str] | None = None
    ) -> Iterator[HistoryEvent]:
        """Yield events as they happen; the stream begins when the first one is asked for.

        It goes on after a connection that broke and a server that was restarted. What the server
        does not remember is left out, with a line in the log "stepwell".

        Args:
            after: The number of the last event that is known: what came since comes first, as far
                back as the server remembers; 0 is all of that.
            kinds: Which are wanted; default all.

        Raises:
            InvalidArgument, InvalidInput: An argument is not allowed.
            ModelNotFound: The model was deleted.
        """
        return self._driver.listen(self._flows.listening(after, kinds))

    def worker(
        self,
        name: str,
        *,
        hyperparameters: Hyperparameters | None = None,
        on_stale: Literal["raise", "repull"] = "raise",
    ) -> Worker:
        """Return a worker; its session is opened by `with`, or by the first call.

        Args:
            name: One process at a time may use it: a second one fences the first.
            hyperparameters: Values or callables for those that were declared to come with each
                push.
            on_stale: When the model's history was cut, by a restore or by a crash that took more
                than the journal had: "raise" `StaleIncarnation`, or "repull": go on from the
                present parameters. The push that met it is dropped then, and says so.

        Raises:
            InvalidArgument: `on_stale` is neither.
        """
        session = self._flows.session(name, hyperparameters, on_stale)
        return Worker(self._driver, session, self._driver.memory_of(self.name, self.layout))
