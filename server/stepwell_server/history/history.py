"""The history of one model: what is added to it, from any thread, and who reads it."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import threading
import time
from collections.abc import AsyncGenerator, Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import structlog

from stepwell_server.history import reading
from stepwell_server.history.database import Database, is_damage
from stepwell_server.history.events import KINDS, Entry, Event
from stepwell_server.history.listeners import PACE_S, Listener
from stepwell_server.history.reading import Range
from stepwell_server.history.ring import Ring

LEAP = 1 << 20
"""By how much numbers go on after a restart: more than a crash can have kept from the file, so that
none is given twice."""

log = structlog.get_logger("stepwell")


class History:
    """What happened to one model.

    Args:
        database: Where it is kept; None keeps it in memory alone.
        clock: Unix seconds.
    """

    def __init__(
        self, database: Database | None = None, clock: Callable[[], float] = time.time
    ) -> None:
        self._database = database
        self._clock = clock
        last = 0 if database is None else database.last_number
        self._ring = Ring(last + LEAP if last else 1, last_before=last)
        self._adding = threading.Lock()
        self._listeners: set[Listener] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._is_waking = False
        self._is_over = False

    @classmethod
    def open(cls, path: Path) -> History:
        """Return the history that is kept in a file; blocks for as long as the disk takes.

        One that cannot be opened is none: the log says so, and the model runs all the same.
        """
        try:
            return cls(Database(path))
        except (OSError, sqlite3.Error) as error:
            log.error("history_in_memory_only", path=str(path), reason=str(error))
            return cls()

    # Any thread

    def add(self, event: Event, *, is_kept: bool = True) -> None:
        """Add what has just happened; takes some microseconds and never waits for a disk.

        Args:
            event: What happened.
            is_kept: Whether it goes into the file too, not just to those who listen.
        """
        with self._adding:
            entry = Entry(self._ring.next_number, self._clock(), event)
            self._ring.add(entry)
            if is_kept and self._database is not None:
                self._database.put(entry)
        if self._listeners and not self._is_waking:
            self._is_waking = True
            loop = self._loop
            assert loop is not None, "who listens has a loop"
            loop.call_soon_threadsafe(loop.call_later, PACE_S, self._wake)

    # The event loop

    def _wake(self) -> None:
        self._is_waking = False
        for listener in self._listeners:
            listener.wake()

    async def listen(
        self,
        after: int | None = None,
        kinds: Collection[str] = KINDS,
        abort: Callable[[], None] | None = None,
    ) -> AsyncGenerator[bytes]:
        """Yield server-sent events until the server stops; see `Listener`."""
        self._loop = asyncio.get_running_loop()
        listener = Listener(self._ring, after, kinds, abort)
        with self._listening(listener):
            async for message in listener.messages():
                yield message

    @contextlib.contextmanager
    def _listening(self, listener: Listener) -> Iterator[None]:
        self._listeners.add(listener)
        if self._is_over:
            listener.end()
        try:
            yield
        finally:
            self._listeners.discard(listener)

    @property
    def listeners(self) -> int:
        """How many listen."""
        return len(self._listeners)

    async def read(self, wanted: Range) -> dict[str, Any]:
        """Return a range of what was kept, all that was added before included; see `reading`."""
        return await asyncio.to_thread(self._read, wanted)

    def _read(self, wanted: Range) -> dict[str, Any]:
        database = self._database
        if database is None:
            return {**reading.nothing(), "lost": 0}
        database.flush()
        try:
            found = reading.read(database.path, wanted)
        except sqlite3.Error as error:
            if is_damage(error):
                database.report_damage()
            else:
                log.warning("history_not_read", path=str(database.path), reason=str(error))
            found = reading.nothing()
        return {**found, "lost": database.lost}

    def end(self) -> None:
        """End the streams of all who listen, now and from now on: the model goes away."""
        self._is_over = True
        for listener in self._listeners:
            listener.end()

    def close(self) -> None:
        """Write everything and end; blocks for as long as the disk takes. Once."""
        if self._database is not None:
            self._database.close()
