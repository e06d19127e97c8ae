"""The asyncio client: the same flows as `client.py`, driven with `await`."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import time
from collections.abc import Iterable, Mapping
from typing import Any, Self, TypeVar

from stepwell_core.consistency import Consistency
from stepwell_core.errors import StepwellError
from stepwell_core.keras_config import AnyOptimizer
from stepwell_core.layout import Layout
from stepwell_core.names import check_identifier

from stepwell import flows
from stepwell.calls import Answer, Call, Hyperparameters
from stepwell.client import endpoint, is_hopeless
from stepwell.flows import ModelRef
from stepwell.results import Checkpoint, Parameters, PushResult
from stepwell.retry import Flow, Sleep, repeatedly
from stepwell.session import Session
from stepwell.transport import AsyncHttpTransport, Timeout

T = TypeVar("T")


class AsyncClient:
    """A connection to a server; see `Client`. Used on one event loop; an asynchronous context
    manager.
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
        self._transport = AsyncHttpTransport(self._endpoint)
        self._was_reached = False

    async def create_model(
        self,
        name: str,
        parameters: Mapping[str, Any],
        *,
        optimizer: Any,
        consistency: Consistency | None = None,
        on_nonfinite: str = "reject",
        exist_ok: bool = False,
    ) -> AsyncModel:
        """See `Client.create_model`."""
        flow = flows.create_model(
            check_identifier(name, "model"),
            parameters,
            optimizer,
            consistency,
            on_nonfinite,
            self._endpoint.timeout.retry_s,
            exist_ok=exist_ok,
        )
        return AsyncModel(self, await self.run(flow))

    async def model(self, name: str) -> AsyncModel:
        """See `Client.model`."""
        flow = flows.open_model(check_identifier(name, "model"), self._endpoint.timeout.retry_s)
        return AsyncModel(self, await self.run(flow))

    async def models(self) -> list[str]:
        """See `Client.models`."""
        answer = await self.run(
            repeatedly(Call("GET", "/v1/models"), self._endpoint.timeout.retry_s)
        )
        return [fields["name"] for fields in answer.fields["models"]]

    async def delete_model(self, name: str) -> None:
        """See `Client.delete_model`."""
        path = f"/v1/models/{check_identifier(name, 'model')}"
        call = Call("DELETE", path, can_repeat=False)
        await self.run(repeatedly(call, self._endpoint.timeout.retry_s))

    async def about(self) -> dict[str, Any]:
        """See `Client.about`."""
        flow = repeatedly(Call("GET", "/v1"), self._endpoint.timeout.retry_s)
        return (await self.run(flow)).fields

    async def close(self) -> None:
        """Close all connections."""
        await self._transport.close()

    async def run(self, flow: Flow[T]) -> T:
        """Drive a flow to its end."""
        started = time.monotonic()
        try:
            step = next(flow)
            while True:
                try:
                    answer = await self._take(step)
                except StepwellError as error:
                    if not self._was_reached and is_hopeless(error, started, self._endpoint):
                        raise
                    step = flow.throw(error)
                else:
                    step = flow.send(answer)
        except StopIteration as stop:
            result: T = stop.value
            return result

    async def _take(self, step: Call | Sleep) -> Answer:
        if isinstance(step, Sleep):
            await asyncio.sleep(step.seconds)
            return Answer(0, {})
        answer = await self._transport.send(step)
        self._was_reached = True
        return answer

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()


class AsyncModel:
    """A model on the server; see `Model`."""

    def __init__(self, client: AsyncClient, ref: ModelRef) -> None:
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

    async def optimizer(self) -> AnyOptimizer:
        """Return the optimizer as it is now on the server."""
        return await self._client.run(self._ref.optimizer_now())

    async def describe(self) -> dict[str, Any]:
        """See `Model.describe`."""
        fields: dict[str, Any] = await self._client.run(self._ref.call("GET"))
        return fields

    async def pull(
        self, names: Iterable[str] | None = None, *, slot: str | None = None
    ) -> Parameters:
        """See `Model.pull`."""
        return await self._client.run(self._ref.pull(names, slot))

    async def overwrite(self, parameters: Mapping[str, Any]) -> int:
        """See `Model.overwrite`."""
        return await self._client.run(self._ref.overwrite(parameters))

    async def set_hyperparameters(self, **values: Any) -> None:
        """See `Model.set_hyperparameters`."""
        await self._client.run(self._ref.set_hyperparameters(values))

    async def finalize(self) -> int:
        """See `Model.finalize`."""
        return await self._client.run(self._ref.finalize())

    async def checkpoint(self) -> Checkpoint:
        """See `Model.checkpoint`."""
        return await self._client.run(self._ref.checkpoint())

    async def checkpoints(self) -> list[Checkpoint]:
        """See `Model.checkpoints`."""
        return await self._client.run(self._ref.checkpoints())

    async def restore(self, checkpoint: str | Checkpoint) -> int:
        """See `Model.restore`."""
        return await self._client.run(self._ref.restore(checkpoint))

    def worker(self, name: str, *, hyperparameters: Hyperparameters | None = None) -> AsyncWorker:
        """See `Model.worker`; `async with` opens the session."""
        session = self._ref.session(check_identifier(name, "worker"), hyperparameters)
        return AsyncWorker(self._client, session)

    def __repr__(self) -> str:
        return f"<AsyncModel {self.name!r}: {self.layout!r}>"


class AsyncWorker:
    """One worker's session; see `Worker`. One push at a time."""

    def __init__(self, client: AsyncClient, session: Session) -> None:
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

    async def open(self) -> Self:
        """See `Worker.open`."""
        await self._client.run(self._session.open())
        return self

    async def pull(self) -> Parameters:
        """See `Worker.pull`."""
        await self._opened()
        return await self._client.run(self._session.pull())

    async def push(
        self,
        gradients: Mapping[str, Any],
        *,
        weight: float = 1.0,
        metrics: Mapping[str, float] | None = None,
        hyperparameters: Hyperparameters | None = None,
    ) -> PushResult:
        """See `Worker.push`."""
        return await self._push(gradients, False, weight, metrics, hyperparameters)

    async def push_pull(
        self,
        gradients: Mapping[str, Any],
        *,
        weight: float = 1.0,
        metrics: Mapping[str, float] | None = None,
        hyperparameters: Hyperparameters | None = None,
    ) -> Parameters:
        """See `Worker.push_pull`."""
        result = await self._push(gradients, True, weight, metrics, hyperparameters)
        assert result.parameters is not None, "a flow that pulls returns parameters"
        return result.parameters

    async def _push(
        self,
        gradients: Mapping[str, Any],
        pulls: bool,
        weight: float,
        metrics: Mapping[str, float] | None,
        hyperparameters: Hyperparameters | None,
    ) -> PushResult:
        await self._opened()
        return await self._client.run(
            self._session.push(
                gradients,
                pulls=pulls,
                weight=weight,
                metrics=metrics,
                hyperparameters=hyperparameters,
            )
        )

    async def close(self) -> None:
        """See `Worker.close`."""
        if self._session.is_open:
            with contextlib.suppress(StepwellError):
                await self._client.run(self._session.close())
            self._session.epoch = -1

    async def _opened(self) -> None:
        if self._session.epoch < 0:
            await self.open()

    async def __aenter__(self) -> Self:
        return await self.open()

    async def __aexit__(self, *exception: object) -> None:
        await self.close()
