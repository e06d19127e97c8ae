"""Runs the application on uvicorn until a signal comes."""

from __future__ import annotations

import socket

import structlog
import uvicorn
from stepwell_core.errors import StepwellError

from stepwell_server import __version__
from stepwell_server.app import Application
from stepwell_server.http_protocol import StepwellProtocol
from stepwell_server.settings import Settings
from stepwell_server.storage.folders import DataFolder
from stepwell_server.tokens import Authenticator, TokenStore

log = structlog.get_logger("stepwell")


class NotSafe(StepwellError):
    """The settings would open the server to strangers."""

    code = "not_safe"


class Server(uvicorn.Server):
    """uvicorn's server, which tells the application of a stop before it waits for connections."""

    def __init__(self, config: uvicorn.Config, application: Application) -> None:
        super().__init__(config)
        self._application = application

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, and say where."""
        await super().startup(sockets)
        if self.started:
            log.info("ready", version=__version__, address=self.address, pid=_pid())

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Answer who waits, then stop as uvicorn does."""
        self._application.stop_waiting()
        await super().shutdown(sockets)

    @property
    def address(self) -> str:
        """The URL, or the path of the Unix socket, that the server listens on."""
        if self.config.uds:
            return self.config.uds
        host, port = self.servers[0].sockets[0].getsockname()[:2]
        scheme = "https" if self.config.ssl_certfile else "http"
        return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def run(settings: Settings) -> bool:
    """Serve until SIGTERM or SIGINT; returns whether the server ever started.

    Raises:
        NotSafe: The server would be reachable from other machines without a token.
        DataFolderInvalid: The data folder or a token file cannot be used.
        CheckpointInvalid: A model cannot be recovered.
    """
    data = DataFolder(settings.data_dir)
    authenticator = Authenticator(TokenStore(settings.data_dir), settings.token_file)
    if not settings.is_loopback and authenticator.is_open:
        data.release()
        raise NotSafe(
            f"Other machines could reach {settings.host}, so a token is needed. Make one with `stepwell "
            f"token create --role admin --data-dir {settings.data_dir}`, or listen on 127.0.0.1"
        )
    application = Application(settings, data, authenticator)
    if not settings.is_loopback and settings.tls_cert is None:
        log.warning(
            "no_tls", host=settings.host, advice="tokens travel in the clear; use --tls-cert"
        )
    config = uvicorn.Config(
        application.asgi,
        host=settings.host,
        port=settings.port,
        uds=None if settings.uds is None else str(settings.uds),
        loop="uvloop",
        http=StepwellProtocol,
        ws="none",
        interface="asgi3",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=settings.keep_alive_s,
        timeout_graceful_shutdown=settings.shutdown_grace_s,
        ssl_certfile=settings.tls_cert,
        ssl_keyfile=settings.tls_key,
    )
    server = Server(config, application)
    server.run()
    return server.started


def _pid() -> int:
    import os

    return os.getpid()
