"""The application: routes behind the gate, and what happens at start and stop."""

from __future__ import annotations

import asyncio
import secrets

import structlog
from fastapi import Depends, FastAPI
from starlette.types import ASGIApp

from stepwell_server import __version__, memory, problems, tracing
from stepwell_server.checkpoints import Schedule
from stepwell_server.counts import Counts
from stepwell_server.gate import Gate
from stepwell_server.registry import ModelOptions, Registry
from stepwell_server.routes import ROUTERS
from stepwell_server.routes.access import check_query
from stepwell_server.routes.direct import direct
from stepwell_server.settings import Settings
from stepwell_server.staging import Staging
from stepwell_server.storage.folders import DataFolder
from stepwell_server.tallies import RequestTally
from stepwell_server.tokens import Authenticator
from stepwell_server.traffic import Traffic

log = structlog.get_logger("stepwell")

LEAST_STAGING_BYTES = 256 << 20  # two workers of ResNet-50; a smaller machine needs a setting


class Application:
    """Everything of one server that lives as long as it does.

    Args:
        settings: Of the server.
        data: Its folder; released when the server stops.
        authenticator: Knows the tokens.
    """

    def __init__(self, settings: Settings, data: DataFolder, authenticator: Authenticator) -> None:
        self.settings = settings
        self.counts = Counts()
        self.requests = RequestTally()
        self._budget = _staging_budget(settings)
        self.staging = Staging(self._budget.nbytes, self.counts)
        self.registry = Registry(data, _options(settings), self.staging)
        self._data = data
        self.api = self._build()
        self.authenticator = authenticator
        gate = Gate(direct(self.api), authenticator, settings.allowed_hosts)
        traffic = Traffic(gate, self.requests)
        self._tracing = tracing.begin(settings)
        self.asgi: ASGIApp = traffic if self._tracing is None else self._tracing.around(traffic)

    def _build(self) -> FastAPI:
        # FastAPI's documentation pages load from a content network; /openapi.json is ours alone.
        api = FastAPI(
            title="Stepwell",
            version=__version__,
            description="An optimizer-as-a-service parameter server.",
            docs_url=None,
            redoc_url=None,
            redirect_slashes=False,
        )
        api.state.registry = self.registry
        api.state.settings = self.settings
        api.state.staging = self.staging
        api.state.counts = self.counts
        api.state.requests = self.requests
        api.state.is_ready = False
        api.state.memory_socket = None
        api.state.instance = secrets.token_hex(8)
        for router in ROUTERS:
            api.include_router(router, dependencies=[Depends(check_query)])
        problems.install(api)
        return api

    @property
    def memory_socket(self) -> str | None:
        """Where workers on this host ask for shared memory."""
        path: str | None = self.api.state.memory_socket
        return path

    @memory_socket.setter
    def memory_socket(self, path: str | None) -> None:
        self.api.state.memory_socket = path

    async def start(self) -> None:
        """Recover the models; comes before the first request.

        Raises:
            CheckpointInvalid, JournalInvalid: A model cannot be recovered; nothing was changed.
        """
        await self.registry.recover()
        log.info("staging", bytes=self._budget.nbytes, source=self._budget.whose)
        self.api.state.is_ready = True

    def stop_waiting(self) -> None:
        """Answer waiting requests with 503 at once; the first part of a stop."""
        self.api.state.is_ready = False
        self.staging.close()
        self.registry.stop_waiting()

    async def stop(self) -> None:
        """Save the models and let go of the data folder; comes after the last request."""
        try:
            await self.registry.stop()
        finally:
            self._data.release()
            if self._tracing is not None:
                await asyncio.to_thread(self._tracing.stop)
        log.info("stopped")


def _options(settings: Settings) -> ModelOptions:
    schedule = Schedule(
        settings.checkpoint_every_versions,
        settings.checkpoint_every_s,
        settings.keep_checkpoints,
    )
    return ModelOptions(
        settings.push_wait_s, settings.durability, settings.journal_max_bytes, schedule
    )


def _staging_budget(settings: Settings) -> memory.Limit:
    """Return how many bytes of payloads may be in memory at once, and who says so."""
    if settings.staging_bytes is not None:
        return memory.Limit(settings.staging_bytes, "settings")
    limit = memory.limit()
    if limit.nbytes // 4 < LEAST_STAGING_BYTES:
        return memory.Limit(LEAST_STAGING_BYTES, "the least there is by default")
    return memory.Limit(limit.nbytes // 4, f"a quarter of the memory of {limit.whose}")
