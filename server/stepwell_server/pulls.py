"""Who reads the versions of one model, over the wire or in memory, and who gives way.

Each holds a version of the parameters. When all that can be spared are held, a slow reader has to
give its version back: first the slowest at a wire, which is cut off; then the oldest in memory,
which reads on in a buffer that is its own from then on. Only when nobody is slow a new pull is
refused.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar

from stepwell_core.errors import VersionsExhausted

T = TypeVar("T")


class Reader(Protocol):
    """Who reads a version: a connection's `Drain`, or a hold of its `ConnectionMemory`."""

    def begin(self) -> None:
        """Say that it begins to read."""

    @property
    def rate(self) -> float:
        """How fast it reads, in bytes a second; infinite if nobody knows."""

    @property
    def is_slow(self) -> bool:
        """Whether it would have to give way to others."""

    def abort(self) -> None:
        """Make it give its version back, now or as soon as its connection has ended."""


class Pulls:
    """Who reads the versions of one model. On the event loop."""

    def __init__(self) -> None:
        self._ended: dict[Reader, asyncio.Future[None]] = {}  # the oldest first

    def begin(self, reader: Reader | None, release: Callable[[], None]) -> Callable[[], None]:
        """Note that a version is read; returns what to call when that is over.

        Args:
            reader: Who reads it, one version at a time; None if the server cannot tell.
            release: Gives the version back.
        """
        if reader is None:
            return release
        reader.begin()
        ended = self._ended[reader] = asyncio.get_running_loop().create_future()

        def end() -> None:
            del self._ended[reader]
            release()
            ended.set_result(None)

        return end

    async def hold(self, hold: Callable[[], Awaitable[T]]) -> T:
        """Return what `hold` returns, making slow readers give way if it has to be.

        Raises:
            VersionsExhausted: No reader is slow, and `hold` raised it.
        """
        while True:
            try:
                return await hold()
            except VersionsExhausted:
                slow = [reader for reader in self._ended if reader.is_slow]
                if not slow:
                    raise
            slowest = min(slow, key=lambda reader: reader.rate)  # the oldest, if there are several
            ended = self._ended[slowest]
            slowest.abort()
            await asyncio.wait([ended])
