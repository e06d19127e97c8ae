"""The application: routes behind the gate, and what happens at start and stop."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

import structlog
from fastapi import FastAPI
from starlette.types import ASGIApp

from stepwell_server import __version__, problems
from stepwell_server.gate import Gate
from stepwell_server.registry import Registry
from stepwell_server.routes import ROUTERS
from stepwell_server.settings import Settings
from stepwell_server.storage.folders import DataFolder
from stepwell_server.tokens import Authenticator

log = structlog.get_logger("stepwell")


class Application:
    """Everything of one server that lives as long as it does.

    Args:
        settings: Of the server.
        data: Its folder; released when the server stops.
        authenticator: Knows the tokens.
    """

    def __init__(self, settings: Settings, data: DataFolder, authenticator: Authenticator) -> None:
        self.settings = settings
        self.registry = Registry(data, settings.push_wait_s)
        self._data = data
        self.api = self._build()
        self.asgi: ASGIApp = Gate(self.api, authenticator, settings.allowed_hosts)

    def _build(self) -> FastAPI:
        # The documentation pages of FastAPI load from a content network; /openapi.json is ours
        # alone.
        api = FastAPI(
            title="Stepwell",
            version=__version__,
            description="An optimizer-as-a-service parameter server.",
            lifespan=self._lifespan,
            docs_url=None,
            redoc_url=None,
            redirect_slashes=False,
        )
        api.state.registry = self.registry
        api.state.settings = self.settings
        api.state.is_ready = False
        for router in ROUTERS:
            api.include_router(router)
        problems.install(api)
        return api

    @contextlib.asynccontextmanager
    async def _lifespan(self, api: FastAPI) -> AsyncIterator[None]:
        await self.registry.recover()
        api.state.is_ready = True
        yield
        api.state.is_ready = False
        await self.registry.stop()
        self._data.release()
        log.info("stopped")

    def stop_waiting(self) -> None:
        """Answer waiting requests with 503 at once; the first part of a stop."""
        self.api.state.is_ready = False
        self.registry.stop_waiting()
