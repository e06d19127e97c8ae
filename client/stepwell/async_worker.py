"""One worker of a model: the asyncio shell around its session."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping
from typing import Any, Self, TypeVar, Unpack

from stepwell_core.layout import Array
from stepwell_core.wire import Kind

from stepwell.async_driver import AsyncDriver
from stepwell.destinations import InPlace
from stepwell.handles import WorkerHandle
from stepwell.heartbeat import AsyncHeartbeat
from stepwell.optimizers import Hyperparameters
from stepwell.pulls import PullOptions
from stepwell.results import Parameters, PushResult
from stepwell.retry import Flow
from stepwell.session import Session
from stepwell.shared_memory import SharedMemory

T = TypeVar("T")


class AsyncWorker(WorkerHandle):
    """One worker's session; see `Worker`. One push at a time."""

    def __init__(self, driver: AsyncDriver, session: Session, memory: SharedMemory) -> None:
        super().__init__(session, memory)
        self._driver = driver
        self._heartbeat = AsyncHeartbeat(session, driver.run)

    async def _run(self, flow: Flow[T]) -> T:
        """Drive a flow to its end; it may open the session, and may take long."""
        self._heartbeat.start()
        return await self._driver.run(flow, self._memory)

    async def open(self) -> Self:
        """See `Worker.open`."""
        await self._run(self._session.open())
        return self

    async def pull(self, **options: Unpack[PullOptions]) -> Parameters:
        """See `Worker.pull`."""
        self._forget_pulled()
        return self._note_pulled(await self._run(self._session.pull(**options)))

    async def push(
        self,
        gradients: Mapping[str, Any],
        *,
        dtype: str | None = None,
        weight: float = 1.0,
        metrics: Mapping[str, float] | None = None,
        hyperparameters: Hyperparameters | None = None,
        kind: Kind = "gradient",
        version: int | None = None,
        loss_scale: float | None = None,
        state: Mapping[str, Any] | None = None,
    ) -> PushResult:
        """See `Worker.push`."""
        flow = self._session.push(
            gradients,
            dtype=dtype,
            weight=weight,
            metrics=metrics,
            hyperparameters=hyperparameters,
            kind=kind,
            version=version,
            loss_scale=loss_scale,
            state=state,
        )
        return await self._run(flow)

    async def push_pull(
        self,
        gradients: Mapping[str, Any],
        *,
        dtype: str | None = None,
        weight: float = 1.0,
        metrics: Mapping[str, float] | None = None,
        hyperparameters: Hyperparameters | None = None,
        kind: Kind = "gradient",
        version: int | None = None,
        loss_scale: float | None = None,
        state: Mapping[str, Any] | None = None,
    ) -> Parameters:
        """See `Worker.push_pull`."""
        flow = self._session.push_pull(
            gradients,
            dtype=dtype,
            weight=weight,
            metrics=metrics,
            hyperparameters=hyperparameters,
            kind=kind,
            version=version,
            loss_scale=loss_scale,
            state=state,
        )
        self._forget_pulled()
        return self._note_pulled(await self._run(flow))

    async def push_delta(
        self,
        parameters: Mapping[str, Any],
        *,
        weight: float = 1.0,
        metrics: Mapping[str, float] | None = None,
        hyperparameters: Hyperparameters | None = None,
        state: Mapping[str, Any] | None = None,
    ) -> PushResult:
        """See `Worker.push_delta`; the subtraction is made in another thread."""
        with self._making_delta():
            buffer = await self.gradient_buffer()
            delta = await self._driver.in_thread(
                self._memory, lambda: self._delta(parameters, buffer, state)
            )
            return await self.push(
                delta,
                weight=weight,
                metrics=metrics,
                hyperparameters=hyperparameters,
                kind="delta",
                state=state,
            )

    async def gradient_buffer(self) -> dict[str, Array]:
        """See `Worker.gradient_buffer`."""
        await self._driver.finds(self._memory)
        return await self._driver.in_thread(self._memory, self._memory.gradient_buffer)

    @contextlib.asynccontextmanager
    async def view(self) -> AsyncIterator[Parameters]:
        """See `Worker.view`."""
        destination = InPlace()
        try:
            parameters = await self._run(self._session.pull(destination))
            with parameters.looked_at():
                yield parameters
        finally:
            destination.let_go()

    async def resolve(self) -> PushResult | None:
        """See `Worker.resolve`."""
        return await self._driver.run(self._session.resolve())

    async def close(self) -> None:
        """See `Worker.close`."""
        self._heartbeat.stop()
        if self._session.is_open:
            with contextlib.suppress(Exception):  # nothing here may mask what ended the block
                await self._driver.run(self._session.close())
        self._forget_pulled()
        self._memory.close()

    async def __aenter__(self) -> Self:
        return await self.open()

    async def __aexit__(self, *exception: object) -> None:
        await self.close()
