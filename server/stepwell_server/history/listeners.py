"""Who listens to a history as it happens, as server-sent events.

A listener is a place in the ring, so it costs no memory of its own, and a push next to nothing: one
call of the event loop wakes all listeners, `PACE_S` after the first entry. Who is so slow that the
ring has gone round is told, and dropped.

Source: the WHATWG's HTML standard, section "Server-sent events".
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Collection

from stepwell_server.history.ring import Ring

HEARTBEAT_S = 15.0
"""After so long without an event comes a comment, so that nobody takes the stream for dead."""

PACE_S = 0.02
"""How long entries are gathered before they are sent together."""

MOST_AT_ONCE = 256
"""Entries in one piece of the stream."""


class Listener:
    """One who listens. All methods are called on the event loop.

    Args:
        ring: Where the entries are.
        after: The number of the last entry that it has; None begins with what comes now.
        kinds: Which it wants.
        abort: Ends its connection, for one that takes nothing at the end.
    """

    def __init__(
        self,
        ring: Ring,
        after: int | None,
        kinds: Collection[str],
        abort: Callable[[], None] | None = None,
    ) -> None:
        self._ring = ring
        self._kinds = frozenset(kinds)
        self._abort = abort
        self._next = ring.next_number if after is None else min(after + 1, ring.next_number)
        self._news = asyncio.Event()
        self._is_waiting = False  # for news, and not for its connection
        self._is_over = False

    def wake(self) -> None:
        """Say that there are entries."""
        self._news.set()

    def end(self) -> None:
        """End the stream at once, even if nobody takes what was sent."""
        self._is_over = True
        if self._is_waiting:
            self._news.set()
        elif self._abort is not None:
            self._abort()

    async def messages(self) -> AsyncIterator[bytes]:
        """Yield the stream, until `end` or until the listener is too slow."""
        yield self._begin()
        while not self._is_over:
            self._news.clear()
            if self._next < self._ring.oldest:
                yield self._missed("dropped")
                return
            piece = self._taken()
            if piece:
                yield piece
            elif self._next == self._ring.next_number and not await self._has_news():
                yield b": still here\n" + self._place()

    def _begin(self) -> bytes:
        if self._next >= self._ring.oldest:
            return b"retry: 1000\n" + self._place()
        has_missed = 1 < self._next <= self._ring.last_forgotten  # from 1 on is all that there is
        missed = self._missed("missed") if has_missed else b""
        self._next = self._ring.oldest
        return b"retry: 1000\n" + self._place() + missed

    def _place(self) -> bytes:
        """Tell the listener which number it has, if nothing it wants came for long."""
        return f"id: {self._next - 1}\n\n".encode()

    def _missed(self, event: str) -> bytes:
        data = json.dumps({"first": self._next, "last": self._ring.last_forgotten})
        return f"event: {event}\ndata: {data}\n\n".encode()

    def _taken(self) -> bytes:
        """Return the next entries that are wanted, some at most."""
        piece = []
        for number in range(self._next, min(self._next + MOST_AT_ONCE, self._ring.next_number)):
            entry = self._ring.find(number)
            if entry is None:  # overtaken just now, which the next round sees
                break
            if entry.event.kind in self._kinds:
                piece.append(entry.message)
            self._next = number + 1
        return b"".join(piece)

    async def _has_news(self) -> bool:
        self._is_waiting = True
        try:
            async with asyncio.timeout(HEARTBEAT_S):
                await self._news.wait()
        except TimeoutError:
            return False
        finally:
            self._is_waiting = False
        return True
