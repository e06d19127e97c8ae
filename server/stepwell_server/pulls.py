"""The pulls of one model that are on their way, and whose turn it is to give way.

Each holds a version of the parameters. When all that can be spared are held, the slowest reader is
cut off, if it is slow at all; only then is a new pull refused.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from stepwell_core.errors import VersionsExhausted

from stepwell_server.drain import Drain

T = TypeVar("T")


class Pulls:
    """Who reads the versions of one model. On the event loop."""

    def __init__(self) -> None:
        self._ended: dict[Drain, asyncio.Future[None]] = {}

    def begin(self, drain: Drain | None, release: Callable[[], None]) -> Callable[[], None]:
        """Note that a version is sent; returns what to call when it has left the process.

        Args:
            drain: Of the connection; None if the server cannot tell.
            release: Gives the version back.
        """
        if drain is None:
            return release
        drain.begin()
        ended = self._ended[drain] = asyncio.get_running_loop().create_future()

        def end() -> None:
            del self._ended[drain]
            release()
            ended.set_result(None)

        return end

    async def hold(self, hold: Callable[[], Awaitable[T]]) -> T:
        """Return what `hold` returns, cutting off slow readers if it has to be.

        Raises:
            VersionsExhausted: No reader is slow, and `hold` raised it.
        """
        while True:
            try:
                return await hold()
            except VersionsExhausted:
                slow = [drain for drain in self._ended if drain.is_slow]
                if not slow:
                    raise
            slowest = min(slow, key=lambda drain: drain.rate)
            ended = self._ended[slowest]
            slowest.abort()
            await asyncio.wait([ended])
