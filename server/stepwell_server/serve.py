"""Runs the application on uvicorn until a signal comes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import FrameType

import structlog
import uvicorn
from stepwell_core.errors import StepwellError

from stepwell_server import __version__
from stepwell_server.app import Application
from stepwell_server.http_protocol import StepwellProtocol
from stepwell_server.listening import AddressTaken, bound, listen, prepare_unix_socket
from stepwell_server.loops import LOOPS
from stepwell_server.settings import Settings
from stepwell_server.shared_memory.listener import MemorySocket
from stepwell_server.storage.folders import DataFolder
from stepwell_server.storage.stores import open_store
from stepwell_server.tokens import Authenticator, TokenStore

log = structlog.get_logger("stepwell")


class NotSafe(StepwellError):
    """The settings would open the server to strangers."""

    code = "not_safe"


class TlsUnusable(StepwellError):
    """The certificate or its key cannot be used."""

    code = "tls_unusable"


class Server(uvicorn.Server):
    """uvicorn's server, which starts and stops the application around its own work.

    The application is told of a stop before uvicorn waits for connections, so that those who wait
    for a push are answered at once.

    Args:
        config: From `uvicorn_config`.
        application: Behind `config.app`.
    """

    def __init__(self, config: uvicorn.Config, application: Application) -> None:
        super().__init__(config)
        self._application = application
        self._memory_socket: MemorySocket | None = None  # beside the port

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Recover the models, listen, and say where."""
        await self._application.start()
        try:
            # Who comes through the port as soon as it is open is told of the socket already.
            self._application.memory_socket = self._listen_beside()
            if self.config.uds:
                is_open = self._application.authenticator.is_open
                prepare_unix_socket(Path(self.config.uds), is_open=is_open)
            listen(sockets or ())
            await super().startup(sockets)
        except BaseException:  # the models were opened already
            if self._memory_socket is not None:
                self._memory_socket.remove()
                self._memory_socket.socket.close()
            await self._application.stop()
            raise
        await self._serve_beside()
        log.info(
            "ready",
            version=__version__,
            address=self.address,
            data_dir=str(self._application.settings.data_dir.absolute()),
            pid=os.getpid(),
        )

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Answer who waits, then stop as uvicorn does, then save the models."""
        self._application.stop_waiting()
        if self._memory_socket is not None:
            self._memory_socket.remove()
        await super().shutdown(sockets)
        await self._application.stop()

    def _listen_beside(self) -> str | None:
        """Listen for workers on this host; return where they are to come, or None."""
        path = self._application.settings.memory_path
        if path is None:
            return None
        if self.config.uds:  # they come there; but descriptors do not travel inside of TLS
            return None if self.config.ssl_certfile else str(path)
        try:
            self._memory_socket = MemorySocket(path)
        except (OSError, AddressTaken) as error:  # a folder that has no sockets, on some network
            log.warning("no_shared_memory", path=str(path), error=str(error))
            return None
        return str(path)

    async def _serve_beside(self) -> None:
        """Serve workers on this host as uvicorn serves the port, but without TLS."""
        if self._memory_socket is None:
            return
        protocol_class: Callable[..., asyncio.Protocol] = self.config.http_protocol_class
        new_protocol = partial(
            protocol_class,
            config=self.config,
            server_state=self.server_state,
            app_state={},
        )
        loop = asyncio.get_running_loop()
        server = await loop.create_unix_server(new_protocol, sock=self._memory_socket.socket)
        self.servers.append(server)

    @property
    def address(self) -> str:
        """The URL, or the path of the Unix socket, that the server listens on."""
        if self.config.uds:
            return self.config.uds
        host, port = self.servers[0].sockets[0].getsockname()[:2]
        scheme = "https" if self.config.ssl_certfile else "http"
        return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def run(settings: Settings) -> bool:
    """Serve until SIGTERM, which exits with 0, or SIGINT; returns whether the server ever started.

    Raises:
        NotSafe: The server would be reachable from other machines without a token.
        AddressTaken, AddressUnusable: It cannot listen where it is to.
        TlsUnusable: Certificate or key cannot be used.
        DataFolderInvalid: The data folder or a token file cannot be used.
        CheckpointInvalid, JournalInvalid: A model cannot be recovered.
    """
    authenticator_of(settings)  # a refusal leaves no folder behind
    with contextlib.ExitStack() as stack:
        sockets = None if settings.uds else bound(settings.host, settings.port)
        for listener in sockets or []:
            stack.enter_context(listener)
        data = open_data(settings)
        stack.callback(data.release)
        server = new_server(settings, data)
        # uvicorn raises the signal again when all is done; unhandled, it would kill the process.
        signal.signal(signal.SIGTERM, _exit)
        server.run(sockets)
    return server.started


def authenticator_of(settings: Settings) -> Authenticator:
    """Return who knows the tokens.

    Raises:
        NotSafe: The server would be reachable from other machines without one.
        DataFolderInvalid: A file of tokens cannot be used.
    """
    authenticator = Authenticator(TokenStore(settings.data_dir), settings.token_file)
    if not settings.is_loopback and authenticator.is_open:
        raise NotSafe(
            f"Other machines could reach {settings.host}, so a token is needed. Make one with "
            f"`stepwell token create --role admin --data-dir {settings.data_dir}`, or listen on "
            "127.0.0.1"
        )
    return authenticator


def open_data(settings: Settings) -> DataFolder:
    """Return the data folder of a server's settings, locked.

    Raises:
        InvalidArgument: The checkpoint store is not a URL of one.
        DataFolderInvalid, StoreFailed: One of them cannot be used.
    """
    store = None if settings.checkpoint_store is None else open_store(settings.checkpoint_store)
    return DataFolder(settings.data_dir, store, takes_over=settings.take_over_store)


def new_server(settings: Settings, data: DataFolder, loop: str = "uvloop") -> Server:
    """Return a server that is ready to run.

    Args:
        settings: Of the server.
        data: The folder of `settings.data_dir`.
        loop: "uvloop" or "asyncio".

    Raises:
        NotSafe, TlsUnusable, DataFolderInvalid: See `run`.
    """
    authenticator = authenticator_of(settings)
    if not settings.is_loopback and settings.tls_cert is None:
        log.warning(
            "no_tls", host=settings.host, advice="tokens travel in the clear; use --tls-cert"
        )
    application = Application(settings, data, authenticator)
    return Server(uvicorn_config(settings, application, loop), application)


def uvicorn_config(settings: Settings, application: Application, loop: str) -> uvicorn.Config:
    """Return what uvicorn is told.

    Raises:
        TlsUnusable: Certificate or key cannot be used.
    """
    config = uvicorn.Config(
        application.asgi,
        host=settings.host,
        port=settings.port,
        uds=None if settings.uds is None else str(settings.uds),
        loop=f"stepwell_server.loops:{LOOPS[loop].__name__}",
        http=partial(StepwellProtocol, counts=application.counts),  # type: ignore[arg-type]
        ws="none",
        interface="asgi3",
        lifespan="off",  # `Server` does that
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,  # who sends X-Forwarded-Proto does not decide what we do
        timeout_keep_alive=settings.keep_alive_s,
        timeout_graceful_shutdown=settings.shutdown_grace_s,
        ssl_certfile=settings.tls_cert,
        ssl_keyfile=settings.tls_key,
    )
    try:
        config.load()
    except OSError as error:
        raise TlsUnusable(
            f"The certificate {settings.tls_cert} or its key cannot be used ({error.strerror}); "
            "both are PEM files"
        ) from None
    return config


def _exit(number: int, frame: FrameType | None) -> None:
    raise SystemExit(0)
