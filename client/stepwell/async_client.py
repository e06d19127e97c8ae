"""The asyncio client: the same flows as `client.py`, driven with `await`."""

from __future__ import annotations

import asyncio
import contextlib
import os
import ssl
from collections.abc import AsyncIterator, Iterable, Mapping
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
from stepwell.transport import AsyncHttpxTransport

T = TypeVar("T")


class AsyncClient:
    """A connection to a server; see `Client`. An asynchronous context manager, for one event loop.

    A call that is cancelled may have reached the server; a push that is cancelled is resolved
    before the next one, as after a `TransportError`.
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
        self._transport = AsyncHttpxTransport(endpoint)
        self._flows = ServerFlows(Patience(endpoint.timeout))

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
        flow = self._flows.create_model(
            name, parameters, optimizer, consistency, on_nonfinite, exist_ok=exist_ok
        )
        return AsyncModel(self, await self.run(flow))

    async def model(self, name: str) -> AsyncModel:
        """See `Client.model`."""
        return AsyncModel(self, await self.run(self._flows.open_model(name)))

    async def models(self) -> list[str]:
        """See `Client.models`."""
        return await self.run(self._flows.models())

    async def delete_model(self, name: str) -> None:
        """See `Client.delete_model`."""
        await self.run(self._flows.delete_model(name))

    async def about(self) -> dict[str, Any]:
        """See `Client.about`."""
        return await self.run(self._flows.about())

    async def close(self) -> None:
        """Close all connections."""
        await self._transport.close()

    async def run(self, flow: Flow[T], memory: SharedMemory | None = None) -> T:
        """Drive a flow to its end and return its result; through `memory` where it can."""
        with contextlib.closing(flow):
            try:
                step = next(flow)
                while True:
                    try:
                        answer = await self._take(step, memory)
                    except StepwellError as error:
                        step = flow.throw(error)
                    else:
                        step = flow.send(answer)
            except StopIteration as stop:
                result: T = stop.value
                return result

    async def _take(self, step: Call | Sleep, memory: SharedMemory | None) -> Answer:
        if isinstance(step, Call):
            if step.shares and memory is not None and await self.finds(memory):
                answer = await asyncio.to_thread(memory.send, step)
                if answer is not None:
                    return answer
            return await self._transport.send(step)
        await asyncio.sleep(step.seconds)
        return Answer({})

    async def finds(self, memory: SharedMemory) -> bool:
        """Return whether a worker may try to share memory, and let it know with whom."""
        if memory.is_usable and not memory.is_found:
            try:
                memory.find((await self._transport.send(Call("GET", "/v1"))).fields)
            except StepwellError:
                memory.give_up()  # whatever it is, the wire will tell
        return memory.is_usable

    def memory_of(self, model: str, layout: Layout) -> SharedMemory:
        """Return what a worker of a model shares with the server, as yet nothing."""
        return SharedMemory(self._endpoint, model, layout, self._uses)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()


class AsyncModel(ModelHandle):
    """A model on the server; see `Model`."""

    def __init__(self, client: AsyncClient, flows: ModelFlows) -> None:
        super().__init__(flows)
        self._client = client

    async def optimizer(self) -> AnyOptimizer:
        """See `Model.optimizer`."""
        return await self._client.run(self._flows.optimizer())

    async def describe(self) -> dict[str, Any]:
        """See `Model.describe`."""
        return await self._client.run(self._flows.describe())

    async def pull(
        self,
        names: Iterable[str] | None = None,
        *,
        slot: str | None = None,
        **options: Unpack[PullOptions],
    ) -> Parameters:
        """See `Model.pull`."""
        return await self._client.run(self._flows.pulls.pull(names, slot, **options))

    async def overwrite(self, parameters: Mapping[str, Any]) -> int:
        """See `Model.overwrite`."""
        return await self._client.run(self._flows.overwrite(parameters))

    async def set_hyperparameters(self, **values: Any) -> None:
        """See `Model.set_hyperparameters`."""
        await self._client.run(self._flows.set_hyperparameters(values))

    async def finalize(self) -> int:
        """See `Model.finalize`."""
        return await self._client.run(self._flows.finalize())

    async def checkpoint(self) -> Checkpoint:
        """See `Model.checkpoint`."""
        return await self._client.run(self._flows.checkpoint())

    async def checkpoints(self) -> list[Checkpoint]:
        """See `Model.checkpoints`."""
        return await self._client.run(self._flows.checkpoints())

    async def restore(self, checkpoint: str | Checkpoint) -> int:
        """See `Model.restore`."""
        return await self._client.run(self._flows.restore(checkpoint))

    def worker(self, name: str, *, hyperparameters: Hyperparameters | None = None) -> AsyncWorker:
        """See `Model.worker`; `async with` opens the session."""
        session = self._flows.session(name, hyperparameters)
        return AsyncWorker(self._client, session, self._client.memory_of(self.name, self.layout))


class AsyncWorker(WorkerHandle):
    """One worker's session; see `Worker`. One push at a time."""

    def __init__(self, client: AsyncClient, session: Session, memory: SharedMemory) -> None:
        super().__init__(session, memory)
        self._client = client

    async def open(self) -> Self:
        """See `Worker.open`."""
        await self._client.run(self._session.open())
        return self

    async def pull(self, **options: Unpack[PullOptions]) -> Parameters:
        """See `Worker.pull`."""
        return await self._client.run(self._session.pull(**options), self._memory)

    async def push(
        self,
        gradients: Mapping[str, Any],
        *,
        dtype: str | None = None,
        weight: float = 1.0,
        metrics: Mapping[str, float] | None = None,
        hyperparameters: Hyperparameters | None = None,
    ) -> PushResult:
        """See `Worker.push`."""
        flow = self._session.push(
            gradients,
            dtype=dtype,
            weight=weight,
            metrics=metrics,
            hyperparameters=hyperparameters,
        )
        return await self._client.run(flow, self._memory)

    async def push_pull(
        self,
        gradients: Mapping[str, Any],
        *,
        dtype: str | None = None,
        weight: float = 1.0,
        metrics: Mapping[str, float] | None = None,
        hyperparameters: Hyperparameters | None = None,
    ) -> Parameters:
        """See `Worker.push_pull`."""
        flow = self._session.push_pull(
            gradients,
            dtype=dtype,
            weight=weight,
            metrics=metrics,
            hyperparameters=hyperparameters,
        )
        return await self._client.run(flow, self._memory)

    async def gradient_buffer(self) -> dict[str, Array]:
        """See `Worker.gradient_buffer`."""
        await self._client.finds(self._memory)
        return await asyncio.to_thread(self._memory.gradient_buffer)

    @contextlib.asynccontextmanager
    async def view(self) -> AsyncIterator[Parameters]:
        """See `Worker.view`."""
        destination = InPlace()
        try:
            flow = self._session.pull(destination)
            parameters = await self._client.run(flow, self._memory)
            with parameters.looked_at():
                yield parameters
        finally:
            await asyncio.to_thread(destination.let_go)

    async def resolve(self) -> PushResult | None:
        """See `Worker.resolve`."""
        return await self._client.run(self._session.resolve())

    async def close(self) -> None:
        """See `Worker.close`."""
        if self._session.is_open:
            with contextlib.suppress(Exception):  # nothing here may mask what ended the block
                await self._client.run(self._session.close())
        await asyncio.to_thread(self._memory.close)

    async def __aenter__(self) -> Self:
        return await self.open()

    async def __aexit__(self, *exception: object) -> None:
        await self.close()
