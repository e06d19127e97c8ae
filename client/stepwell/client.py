"""The blocking client: thin shells around flows."""

from __future__ import annotations

import contextlib
import os
import ssl
import time
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Any, Self, TypeVar

from stepwell_core.consistency import Consistency
from stepwell_core.errors import StepwellError
from stepwell_core.keras_config import AnyOptimizer
from stepwell_core.layout import Layout
from stepwell_core.names import check_identifier

from stepwell import flows
from stepwell.calls import Answer, Call, Hyperparameters
from stepwell.flows import ModelRef
from stepwell.results import Checkpoint, Parameters, PushResult
from stepwell.retry import Flow, Sleep, repeatedly
from stepwell.session import Session
from stepwell.transport import Endpoint, HttpTransport, Timeout

T = TypeVar("T")

DEFAULT_URL = "http://127.0.0.1:8700"


def endpoint(
    url: str | None,
    token: str | None,
    timeout: Timeout | None,
    verify: bool | ssl.SSLContext,
    uds: str | None,
) -> Endpoint:
    """Return where the server is; what is not given comes from the environment."""
    return Endpoint(
        url=url or os.environ.get("STEPWELL_URL") or DEFAULT_URL,
        token=token or os.environ.get("STEPWELL_TOKEN") or None,
        timeout=timeout or Timeout(),
        verify=verify,
        uds=uds,
    )


class Client:
    """A connection to a server. Thread-safe; a context manager.

    Args:
        url: Of the server; default: `STEPWELL_URL`, or http://127.0.0.1:8700.
        token: Default: `STEPWELL_TOKEN`.
        timeout: How long to wait for what.
        verify: What to think of the server's certificate: True, False or an `ssl.SSLContext`.
        uds: Path of the server's Unix socket, instead of TCP.
    """

    def __init__(
        self,
        url: str | None = None,
        token: str | None = None,
        *,
        timeout: Timeout | None = None,
        verify: bool | ssl.SSLContext = True,
        uds: str | None = None,
    ) -> None:
        self._endpoint = endpoint(url, token, timeout, verify, uds)
        self._transport = HttpTransport(self._endpoint)
        self._was_reached = False

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
        """Create a model on the server.

        Args:
            name: Lower-case letters, digits, '.', '_', '-'.
            parameters: Initial values by name, float32 or float64; anything NumPy can view.
            optimizer: Ours, a Keras optimizer, or Keras's JSON.
            consistency: When pushes become a step; default `Async()`.
            on_nonfinite: What happens to a gradient with NaN: "reject", "drop" or "allow".
            exist_ok: Open the model if it exists with the same definition; its values stay.

        Raises:
            ModelExists: And `exist_ok` is False.
            ModelDiffers: It exists with another definition.
            InvalidInput: Something in the definition is not allowed.
        """
        flow = flows.create_model(
            check_identifier(name, "model"),
            parameters,
            optimizer,
            consistency,
            on_nonfinite,
            self._endpoint.timeout.retry_s,
            exist_ok=exist_ok,
        )
        return Model(self, self.run(flow))

    def model(self, name: str) -> Model:
        """Open an existing model.

        Raises:
            ModelNotFound: There is none of that name.
        """
        retry_s = self._endpoint.timeout.retry_s
        return Model(self, self.run(flows.open_model(check_identifier(name, "model"), retry_s)))

    def models(self) -> list[str]:
        """Return the names of all models."""
        answer = self.run(repeatedly(Call("GET", "/v1/models"), self._endpoint.timeout.retry_s))
        return [fields["name"] for fields in answer.fields["models"]]

    def delete_model(self, name: str) -> None:
        """Delete a model with all its checkpoints."""
        path = f"/v1/models/{check_identifier(name, 'model')}"
        call = Call("DELETE", path, can_repeat=False)
        self.run(repeatedly(call, self._endpoint.timeout.retry_s))

    def about(self) -> dict[str, Any]:
        """Return the server's version, limits and features."""
        return self.run(repeatedly(Call("GET", "/v1"), self._endpoint.timeout.retry_s)).fields

    def close(self) -> None:
        """Close all connections."""
        self._transport.close()

    def run(self, flow: Flow[T]) -> T:
        """Drive a flow to its end."""
        started = time.monotonic()
        try:
            step = next(flow)
            while True:
                try:
                    answer = self._take(step)
                except StepwellError as error:
                    if not self._was_reached and is_hopeless(error, started, self._endpoint):
                        raise
                    step = flow.throw(error)
                else:
                    step = flow.send(answer)
        except StopIteration as stop:
            result: T = stop.value
            return result

    def _take(self, step: Call | Sleep) -> Answer:
        if isinstance(step, Sleep):
            time.sleep(step.seconds)
            return Answer(0, {})
        answer = self._transport.send(step)
        self._was_reached = True
        return answer

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def is_hopeless(error: StepwellError, started: float, server: Endpoint) -> bool:
    """Whether to give up on a server that was never reached: most likely it is not there."""
    is_unreachable = error.code == "connection_failed"
    return is_unreachable and time.monotonic() - started > server.timeout.connect_s


class Model:
    """A model on the server, for those who look at it or steer it; workers open a session."""

    def __init__(self, client: Client, ref: ModelRef) -> None:
        self._client = client
        self._ref = ref

    @property
    def name(self) -> str:
        """The model's name."""
        return self._ref.name

    @property
    def layout(self) -> Layout:
        """The model's tensors."""
        return self._ref.layout

    @property
    def optimizer(self) -> AnyOptimizer:
        """The optimizer as it is now on the server."""
        return self._client.run(self._ref.optimizer_now())

    def describe(self) -> dict[str, Any]:
        """Return what the server says of the model: version, bytes, optimizer, consistency, ..."""
        fields: dict[str, Any] = self._client.run(self._ref.call("GET"))
        return fields

    def pull(self, names: Iterable[str] | None = None, *, slot: str | None = None) -> Parameters:
        """Pull the parameters of one version.

        Args:
            names: Some of them only.
            slot: A slot of the optimizer instead: "momentum", "velocity", "average", ...
        """
        return self._client.run(self._ref.pull(names, slot))

    def overwrite(self, parameters: Mapping[str, Any]) -> int:
        """Replace all parameters; slots stay. Returns the version. Sessions have to be reopened."""
        return self._client.run(self._ref.overwrite(parameters))

    def set_hyperparameters(self, **values: Any) -> None:
        """Change hyperparameters from the next step on: `set_hyperparameters(learning_rate=1e-4)`.

        Raises:
            InvalidArgument: A value is not allowed, or the learning rate is a schedule.
        """
        self._client.run(self._ref.set_hyperparameters(values))

    def finalize(self) -> int:
        """Write the moving average into the parameters. Returns the version."""
        return self._client.run(self._ref.finalize())

    def checkpoint(self) -> Checkpoint:
        """Write a checkpoint; it is durable when this returns."""
        return self._client.run(self._ref.checkpoint())

    def checkpoints(self) -> list[Checkpoint]:
        """List the checkpoints, oldest first."""
        return self._client.run(self._ref.checkpoints())

    def restore(self, checkpoint: str | Checkpoint) -> int:
        """Go back to a checkpoint. Returns the version. Sessions have to be reopened."""
        return self._client.run(self._ref.restore(checkpoint))

    def worker(self, name: str, *, hyperparameters: Hyperparameters | None = None) -> Worker:
        """Return a worker; its session is opened by `with`, or by the first call.

        Args:
            name: One process at a time may use it: a second one fences the first.
            hyperparameters: Values or callables for those that were declared to come with each
                push.
        """
        session = self._ref.session(check_identifier(name, "worker"), hyperparameters)
        return Worker(self._client, session)

    def __repr__(self) -> str:
        return f"<Model {self.name!r}: {self.layout!r}>"


class Worker:
    """One worker's session. A context manager; not thread-safe."""

    def __init__(self, client: Client, session: Session) -> None:
        self._client = client
        self._session = session

    @property
    def name(self) -> str:
        """The worker's name."""
        return self._session.worker

    @property
    def epoch(self) -> int:
        """The session's number; larger than that of any earlier session of the model, -1 if
        closed.
        """
        return self._session.epoch

    @property
    def version(self) -> int | None:
        """The version of the parameters that were pulled last."""
        return self._session.version

    @property
    def loss_scale(self) -> float | None:
        """What to multiply the next loss by, with dynamic loss scaling."""
        return self._session.loss_scale

    def open(self) -> Self:
        """Open a session, or a new one after `StaleIncarnation`; pull before the next push."""
        self._client.run(self._session.open())
        return self

    def pull(self) -> Parameters:
        """Pull the parameters; the next gradient counts as computed at them."""
        self._opened()
        return self._client.run(self._session.pull())

    def push(
        self,
        gradients: Mapping[str, Any],
        *,
        weight: float = 1.0,
        metrics: Mapping[str, float] | None = None,
        hyperparameters: Hyperparameters | None = None,
    ) -> PushResult:
        """Push gradients; they have their effect once, however often the network fails.

        Args:
            gradients: By parameter name; parameters without one are left alone. Not copied: they
                must not change until this returns.
            weight: In an aggregate, such as the number of examples.
            metrics: Numbers for the history, such as the loss.
            hyperparameters: Values for those that were declared to come with each push.

        Returns:
            What became of it. In synchronous mode this comes when the step is made.

        Raises:
            InvalidInput: A gradient does not fit, or has NaN in it; nothing changed.
            StaleIncarnation: The model was restored or overwritten: `open()` and `pull()`, then go
                on.
            Fenced: Another process uses this worker's name.
            TransportError: The server was not reached for `retry_s`; the next push first learns
                what became of this one.
        """
        return self._push(gradients, False, weight, metrics, hyperparameters)

    def push_pull(
        self,
        gradients: Mapping[str, Any],
        *,
        weight: float = 1.0,
        metrics: Mapping[str, float] | None = None,
        hyperparameters: Hyperparameters | None = None,
    ) -> Parameters:
        """Push gradients and get the new parameters, in one round trip; see `push`."""
        result = self._push(gradients, True, weight, metrics, hyperparameters)
        assert result.parameters is not None, "a flow that pulls returns parameters"
        return result.parameters

    def _push(
        self,
        gradients: Mapping[str, Any],
        pulls: bool,
        weight: float,
        metrics: Mapping[str, float] | None,
        hyperparameters: Hyperparameters | None,
    ) -> PushResult:
        self._opened()
        return self._client.run(
            self._session.push(
                gradients,
                pulls=pulls,
                weight=weight,
                metrics=metrics,
                hyperparameters=hyperparameters,
            )
        )

    def close(self) -> None:
        """Close the session, at best effort: a server that is gone is no error."""
        if self._session.is_open:
            with contextlib.suppress(StepwellError):
                self._client.run(self._session.close())
            self._session.epoch = -1

    def _opened(self) -> None:
        if self._session.epoch < 0:
            self.open()

    def __enter__(self) -> Self:
        return self.open()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
