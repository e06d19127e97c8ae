"""The event loops, with a deadline for TLS handshakes, which uvicorn has no setting for.

`uvicorn_config` names these classes; uvicorn calls the one it was given.
"""

from __future__ import annotations

import asyncio
from typing import Any

import uvloop

from stepwell_server import deadlines


def _with_deadline(options: dict[str, Any]) -> dict[str, Any]:
    if options.get("ssl") is None:
        return options
    return {"ssl_handshake_timeout": deadlines.TLS_HANDSHAKE_S, **options}


class UvLoop(uvloop.Loop):
    """uvloop's."""

    async def create_server(self, *args: Any, **options: Any) -> Any:
        """Listen; see `asyncio.loop.create_server`."""
        return await super().create_server(*args, **_with_deadline(options))

    async def create_unix_server(self, *args: Any, **options: Any) -> Any:
        """Listen on a Unix socket; see `asyncio.loop.create_unix_server`."""
        return await super().create_unix_server(*args, **_with_deadline(options))


class AsyncioLoop(asyncio.SelectorEventLoop):
    """The standard library's."""

    async def create_server(self, *args: Any, **options: Any) -> Any:
        """Listen; see `asyncio.loop.create_server`."""
        return await super().create_server(*args, **_with_deadline(options))

    async def create_unix_server(self, *args: Any, **options: Any) -> Any:
        """Listen on a Unix socket; see `asyncio.loop.create_unix_server`."""
        return await super().create_unix_server(*args, **_with_deadline(options))


LOOPS = {"uvloop": UvLoop, "asyncio": AsyncioLoop}
