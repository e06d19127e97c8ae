"""The blocking client: thin shells around flows."""

from __future__ import annotations

import contextlib
import os
import ssl
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal, Self, TypeVar, Unpack

from stepwell_core.consistency import Consistency
from stepwell_core.errors import StepwellError
from stepwell_core.keras_config import AnyOptimizer
from stepwell_core.layout import Array, Layout

from stepwell.calls import Answer, Call
from stepwell.destinations import InPlace
from stepwell.endpoint import Endpoint
from stepwell.flows import ModelFlows, ServerFlows
from stepwell.handles import ModelHandle, WorkerHandle
from stepwell.optimizers import Hyperparameters
from stepwell.pulls import PullOptions
from stepwell.results import Checkpoint, Parameters, PushResult
from stepwell.retry import Flow, Patience, Sleep, Timeout
from stepwell.session import Session
from stepwell.shared_memory import SharedMemory, check_transport
from stepwell.transport import new_transport

T = TypeVar("T")


class Client:
    """A connection to a server. Thread-safe; a context manager. No call is made before it is used.

    A forked process may go on using it: it makes connections of its own.

    Args:
        url: Of the server; default: `STEPWELL_URL`, or http://127.0.0.1:8700.
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
        self._endpoint = endpoint
        self._uses = check_transport(transport)
        self._transport = new_transport(endpoint)
        self._flows = ServerFlows(Patience(endpoint.timeout))

    def create_model(
        self,
        name: str,
        parameters: Mapping[str, Any],
        *,
        optimizer: Any,
        consistency: Consistency | None = None,
        on_nonfinite: str = "reject",
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
            exist_ok: Open the model if it exists with the same definition; its values stay.

        Raises:
            ModelExists: And `exist_ok` is False.
            ModelDiffers: It exists with another definition.
            DtypeMismatch: A parameter is neither float32 nor float64.
            InvalidInput: Something else in the definition is not allowed.
            DoesNotFit: The server has not enough memory.
        """
        flow = self._flows.create_model(
            name, parameters, optimizer, consistency, on_nonfinite, exist_ok=exist_ok
        )
        return Model(self, self.run(flow))

    def model(self, name: str) -> Model:
        """Open an existing model.

        Raises:
            ModelNotFound: There is none of that name.
        """
        return Model(self, self.run(self._flows.open_model(name)))

    def models(self) -> list[str]:
        """Return the names of all models, in order."""
        return self.run(self._flows.models())

    def delete_model(self, name: str) -> None:
        """Delete a model with all its checkpoints.

        Raises:
            ModelNotFound: There is none of that name.
        """
        self.run(self._flows.delete_model(name))

    def about(self) -> dict[str, Any]:
        """Return the server's version, limits and features."""
        return self.run(self._flows.about())

    def close(self) -> None:
        """Close all connections."""
        self._transport.close()

    def run(self, flow: Flow[T], memory: SharedMemory | None = None) -> T:
        """Drive a flow to its end and return its result; through `memory` where it can."""
        with contextlib.closing(flow):
            try:
                step = next(flow)
                while True:
                    try:
                        answer = self._take(step, memory)
                    except StepwellError as error:
                        step = flow.throw(error)
                    else:
                        step = flow.send(answer)
            except StopIteration as stop:
                result: T = stop.value
                return result

    def _take(self, step: Call | Sleep, memory: SharedMemory | None) -> Answer:
        if isinstance(step, Call):
            if step.shares and memory is not None and self.finds(memory):
                answer = memory.send(step)
                if answer is not None:
                    return answer
            return self._transport.send(step)
        time.sleep(step.seconds)
        return Answer({})

    def finds(self, memory: SharedMemory) -> bool:
        """Return whether a worker may try to share memory, and let it know with whom."""
        if memory.is_usable and not memory.is_found:
            try:
                memory.find((self._transport.send(Call("GET", "/v1"))).fields)
            except StepwellError:
                memory.give_up()  # whatever it is, the wire will tell
        return memory.is_usable

    def memory_of(self, model: str, layout: Layout) -> SharedMemory:
        """Return what a worker of a model shares with the server, as yet nothing."""
        return SharedMemory(self._endpoint, model, layout, self._uses)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class Model(ModelHandle):
    """A model on the server, for those who look at it or steer it; workers open a session."""

    def __init__(self, client: Client, flows: ModelFlows) -> None:
        super().__init__(flows)
        self._client = client

    def optimizer(self) -> AnyOptimizer:
        """Return the optimizer as it is now on the server."""
        return self._client.run(self._flows.optimizer())

    def describe(self) -> dict[str, Any]:
        """Return what the server says of the model: version, bytes, optimizer, consistency, ..."""
        return self._client.run(self._flows.describe())

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
            Arrays that belong to the caller, in the parameters' shapes and dtypes. Their memory is
            used for a later pull of this object when no view of it is alive any more.

        Raises:
            UnknownTensor: The model has no such tensor.
            InvalidInput: The optimizer has no such slot.
            InvalidArgument: An option cannot be.
            LayoutMismatch: The model was deleted and created anew with other tensors; or the names
                in `out` are not those that are pulled.
            ShapeMismatch, DtypeMismatch: An array in `out` does not fit.
            StaleIncarnation: `min_version` is of a history that was cut.
        """
        return self._client.run(self._flows.pulls.pull(names, slot, **options))

    def overwrite(self, parameters: Mapping[str, Any]) -> int:
        """Replace all parameters; slots stay. Sessions have to be opened again.

        Args:
            parameters: All of the model's, in their shapes and dtypes; read until this returns.

        Returns:
            The model's version after it.

        Raises:
            LayoutMismatch, ShapeMismatch, DtypeMismatch: They are not of the model's layout.
        """
        return self._client.run(self._flows.overwrite(parameters))

    def set_hyperparameters(self, **values: Any) -> None:
        """Change hyperparameters from the next step on: `set_hyperparameters(learning_rate=1e-4)`.

        Raises:
            InvalidArgument: A value is not allowed, or the learning rate is a schedule.
        """
        self._client.run(self._flows.set_hyperparameters(values))

    def finalize(self) -> int:
        """Write the moving average into the parameters, and return the version after it.

        Raises:
            NothingToFinalize: There was no step yet.
        """
        return self._client.run(self._flows.finalize())

    def checkpoint(self) -> Checkpoint:
        """Write a checkpoint; it is durable when this returns."""
        return self._client.run(self._flows.checkpoint())

    def checkpoints(self) -> list[Checkpoint]:
        """List the checkpoints that can be read, oldest first."""
        return self._client.run(self._flows.checkpoints())

    def restore(self, checkpoint: str | Checkpoint) -> int:
        """Go back to a checkpoint, and return the version after it; sessions have to be reopened.

        Raises:
            CheckpointNotFound: The model has none of that id.
            CheckpointInvalid: It does not match its hashes; nothing changed.
        """
        return self._client.run(self._flows.restore(checkpoint))

    def worker(self, name: str, *, hyperparameters: Hyperparameters | None = None) -> Worker:
        """Return a worker; its session is opened by `with`, or by the first call.

        Args:
            name: One process at a time may use it: a second one fences the first.
            hyperparameters: Values or callables for those that were declared to come with each
                push.
        """
        session = self._flows.session(name, hyperparameters)
        return Worker(self._client, session, self._client.memory_of(self.name, self.layout))


class Worker(WorkerHandle):
    """One worker's session. A context manager; not thread-safe, and a forked process has none."""

    def __init__(self, client: Client, session: Session, memory: SharedMemory) -> None:
        super().__init__(session, memory)
        self._client = client

    def open(self) -> Self:
        """Open a session, or a new one after `StaleIncarnation`; pull before the next push.

        An older session of this worker, in whatever process, can push no more.
        """
        self._client.run(self._session.open())
        return self

    def pull(self, **options: Unpack[PullOptions]) -> Parameters:
        """Pull the parameters; the next gradient counts as computed at them.

        Args:
            options: See `Model.pull`.

        Returns:
            Arrays that belong to the caller; see `Model.pull`.

        Raises:
            StaleIncarnation: With `min_version`: the model was restored or overwritten.
        """
        return self._client.run(self._session.pull(**options), self._memory)

    def push(
        self,
        gradients: Mapping[str, Any],
        *,
        dtype: str | None = None,
        weight: float = 1.0,
        metrics: Mapping[str, float] | None = None,
        hyperparameters: Hyperparameters | None = None,
    ) -> PushResult:
        """Push gradients; they have their effect once, however often the network fails.

        Args:
            gradients: By parameter name, in the parameters' shapes; anything NumPy can view. Of
                the parameters' dtypes, or all of one: float16, bfloat16, float32, float64. Torch
                tensors are detached and moved to the CPU. Parameters without one, or with None,
                are left alone. Not copied if in C order: they must not change until this returns.
            dtype: "bfloat16" or "float16", if gradients are the bits of that as uint16.
            weight: In an aggregate, such as the number of examples; finite and > 0.
            metrics: Numbers for the history, such as the loss.
            hyperparameters: Values for those that were declared to come with each push.

        Returns:
            What became of it. In synchronous mode this comes when the step is made.

        Raises:
            InvalidInput: A gradient does not fit, or has NaN in it; nothing changed.
            StaleIncarnation: The model was restored or overwritten: `open()` and `pull()`, then go
                on.
            Fenced: Another process uses this worker's name.
            PushInFlight: Another thread or task is pushing with this worker.
            TransportError, Unavailable: There was no answer for `retry_s`. `resolve()` tells what
                became of this push; the next push asks that first by itself.
        """
        flow = self._session.push(
            gradients,
            dtype=dtype,
            weight=weight,
            metrics=metrics,
            hyperparameters=hyperparameters,
        )
        return self._client.run(flow, self._memory)

    def push_pull(
        self,
        gradients: Mapping[str, Any],
        *,
        dtype: str | None = None,
        weight: float = 1.0,
        metrics: Mapping[str, float] | None = None,
        hyperparameters: Hyperparameters | None = None,
    ) -> Parameters:
        """Push gradients and get the new parameters, in one round trip; see `push` and `pull`."""
        flow = self._session.push_pull(
            gradients,
            dtype=dtype,
            weight=weight,
            metrics=metrics,
            hyperparameters=hyperparameters,
        )
        return self._client.run(flow, self._memory)

    def gradient_buffer(self) -> dict[str, Array]:
        """Return a gradient to write into, which `push` then copies nowhere.

        Ask for it again for each push: `push(worker.gradient_buffer())` after it was filled. It
        keeps what was written before, and partial pushes of some of its tensors are allowed. It is
        the server's while a push is under way. Where no memory is shared it is plain memory.

        Returns:
            Writable arrays by name, in the parameters' shapes and dtypes; zeros at first.
        """
        self._client.finds(self._memory)
        return self._memory.gradient_buffer()

    @contextlib.contextmanager
    def view(self) -> Iterator[Parameters]:
        """Look at the parameters where the server keeps them: `with worker.view() as parameters`.

        The same as `pull`, but no copy is made if the server shares its memory. One version, that
        does not change inside the block, whatever others push.

        Returns:
            Read-only arrays. They mean nothing after the block: do not keep them, nor views of
            them. After it the mapping is empty.
        """
        destination = InPlace()
        try:
            parameters = self._client.run(self._session.pull(destination), self._memory)
            with parameters.looked_at():
                yield parameters
        finally:
            destination.let_go()

    def resolve(self) -> PushResult | None:
        """Learn what became of the last push, for one that raised or was interrupted.

        Returns:
            Its result, or None if it had no effect and never will.

        Raises:
            TransportError, Unavailable: There was no answer for `retry_s`.
        """
        return self._client.run(self._session.resolve())

    def close(self) -> None:
        """Close the session within a second, at best effort: a server that is gone is no error."""
        if self._session.is_open:
            with contextlib.suppress(Exception):  # nothing here may mask what ended the block
                self._client.run(self._session.close())
        self._memory.close()

    def __enter__(self) -> Self:
        return self.open()

    def __exit__(self, *exception: object) -> None:
        self.close()
