"""The asyncio client and its models: the same flows as `client.py`, driven with `await`."""

from __future__ import annotations

import os
import ssl
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from typing import Any, Literal, Self, Unpack

from stepwell_core.consistency import Consistency
from stepwell_core.groups import ParameterGroup
from stepwell_core.keras_config import AnyOptimizer

from stepwell.async_driver import AsyncDriver
from stepwell.async_worker import AsyncWorker
from stepwell.endpoint import Endpoint, check_transport
from stepwell.flows import ModelFlows, ServerFlows
from stepwell.handles import ModelHandle
from stepwell.history import HistoryEvent, ModelHistory
from stepwell.optimizers import Hyperparameters
from stepwell.pulls import PullOptions
from stepwell.results import Checkpoint, CheckpointProgress, Parameters
from stepwell.retry import Patience, Timeout


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
        self._driver = AsyncDriver(endpoint, check_transport(transport))
        self._flows = ServerFlows(Patience(endpoint.timeout))

    async def create_model(
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
    ) -> AsyncModel:
        """See `Client.create_model`."""
        flow = self._flows.create_model(
            name, parameters, optimizer, consistency, on_nonfinite, groups, state, exist_ok=exist_ok
        )
        return AsyncModel(self._driver, await self._driver.run(flow))

    async def model(self, name: str) -> AsyncModel:
        """See `Client.model`."""
        return AsyncModel(self._driver, await self._driver.run(self._flows.open_model(name)))

    async def models(self) -> list[str]:
        """See `Client.models`."""
        return await self._driver.run(self._flows.models())

    async def delete_model(self, name: str) -> None:
        """See `Client.delete_model`."""
        await self._driver.run(self._flows.delete_model(name))

    async def about(self) -> dict[str, Any]:
        """See `Client.about`."""
        return await self._driver.run(self._flows.about())

    async def close(self) -> None:
        """Close all connections."""
        await self._driver.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()


class AsyncModel(ModelHandle):
    """A model on the server; see `Model`."""

    def __init__(self, driver: AsyncDriver, flows: ModelFlows) -> None:
        super().__init__(flows)
        self._driver = driver

    async def optimizer(self) -> AnyOptimizer:
        """See `Model.optimizer`."""
        return await self._driver.run(self._flows.optimizer())

    async def describe(self) -> dict[str, Any]:
        """See `Model.describe`."""
        return await self._driver.run(self._flows.describe())

    async def pull(
        self,
        names: Iterable[str] | None = None,
        *,
        slot: str | None = None,
        **options: Unpack[PullOptions],
    ) -> Parameters:
        """See `Model.pull`."""
        return await self._driver.run(self._flows.pulls.pull(names, slot, **options))

    async def overwrite(self, parameters: Mapping[str, Any]) -> int:
        """See `Model.overwrite`."""
        return await self._driver.run(self._flows.overwrite(parameters))

    async def set_hyperparameters(self, **values: Any) -> None:
        """See `Model.set_hyperparameters`."""
        await self._driver.run(self._flows.set_hyperparameters(values))

    async def consistency(self) -> Consistency:
        """See `Model.consistency`."""
        return await self._driver.run(self._flows.consistency())

    async def set_consistency(self, mode: Consistency) -> None:
        """See `Model.set_consistency`."""
        await self._driver.run(self._flows.set_consistency(mode))

    async def finalize(self) -> int:
        """See `Model.finalize`."""
        return await self._driver.run(self._flows.finalize())

    async def checkpoint(self, *, pinned: bool = False) -> Checkpoint:
        """See `Model.checkpoint`."""
        return await self._driver.run(self._flows.checkpoint(pinned=pinned))

    async def checkpoints(self) -> list[Checkpoint]:
        """See `Model.checkpoints`."""
        return await self._driver.run(self._flows.checkpoints())

    async def checkpoint_progress(self) -> CheckpointProgress | None:
        """See `Model.checkpoint_progress`."""
        return await self._driver.run(self._flows.checkpoint_progress())

    async def restore(self, checkpoint: str | Checkpoint) -> int:
        """See `Model.restore`."""
        return await self._driver.run(self._flows.restore(checkpoint))

    async def verify(self, checkpoint: str | Checkpoint) -> Checkpoint:
        """See `Model.verify`."""
        return await self._driver.run(self._flows.verify(checkpoint))

    async def pin(self, checkpoint: str | Checkpoint, *, pinned: bool = True) -> None:
        """See `Model.pin`."""
        await self._driver.run(self._flows.pin(checkpoint, pinned=pinned))

    async def delete_checkpoint(self, checkpoint: str | Checkpoint) -> None:
        """See `Model.delete_checkpoint`."""
        await self._driver.run(self._flows.delete_checkpoint(checkpoint))

    async def fork(self, checkpoint: str | Checkpoint, name: str) -> AsyncModel:
        """See `Model.fork`."""
        return AsyncModel(self._driver, await self._driver.run(self._flows.fork(checkpoint, name)))

    async def import_state(
        self,
        parameters: Mapping[str, Any] | None = None,
        slots: Mapping[str, Mapping[str, Any]] | None = None,
        iterations: int | None = None,
    ) -> int:
        """See `Model.import_state`."""
        flow = self._flows.import_state(parameters, slots, iterations)
        return await self._driver.run(flow)

    async def history(
        self,
        from_version: int | None = None,
        to_version: int | None = None,
        *,
        since: float | None = None,
        kinds: str | Iterable[str] | None = None,
        series: bool = True,
        points: int | None = None,
    ) -> ModelHistory:
        """See `Model.history`."""
        flow = self._flows.history(
            from_version=from_version,
            to_version=to_version,
            since=since,
            kinds=kinds,
            series=series,
            points=points,
        )
        return await self._driver.run(flow)

    def events(
        self, *, after: int | None = None, kinds: str | Iterable[str] | None = None
    ) -> AsyncIterator[HistoryEvent]:
        """See `Model.events`; an asynchronous iterator."""
        return self._driver.listen(self._flows.listening(after, kinds))

    def worker(
        self,
        name: str,
        *,
        hyperparameters: Hyperparameters | None = None,
        on_stale: Literal["raise", "repull"] = "raise",
    ) -> AsyncWorker:
        """See `Model.worker`; `async with` opens the session."""
        session = self._flows.session(name, hyperparameters, on_stale)
        return AsyncWorker(self._driver, session, self._driver.memory_of(self.name, self.layout))
