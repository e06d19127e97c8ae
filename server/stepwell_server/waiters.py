"""Pushes that wait for other pushes: who is to be answered, and the memory of their gradients.

A push may have several requests that wait for it, a future each: a retry joins the first attempt,
and so does a question for its result. It has one gradient, the first attempt's; that of a retry is
let go of at once. Only the model's lane calls these methods, but for `of_worker`; the futures
belong to the event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from dataclasses import replace

from stepwell_core.errors import StepwellError
from stepwell_core.session import Result

from stepwell_server.lane import Lane
from stepwell_server.leases import Lease

Key = tuple[str, int, int]
"""Worker, epoch, sequence: what names a push."""

Waiter = asyncio.Future[Result]


class PushWaiters:
    """The requests that wait for a push of one model.

    Args:
        lane: Of the model; brings answers to the event loop.
    """

    def __init__(self, lane: Lane) -> None:
        self._lane = lane
        self._waiters: dict[Key, list[Waiter]] = {}
        self._pushes: dict[str, tuple[Key, Lease | None]] = {}  # by worker: each has one

    def of_worker(self, worker: str) -> Key | None:
        """Return which push of a worker waits, if any; may be called from any thread."""
        push = self._pushes.get(worker)
        return None if push is None else push[0]

    @property
    def workers(self) -> list[str]:
        """The workers whose push waits; may be called from any thread."""
        return list(self._pushes)

    def keep(self, key: Key, lease: Lease | None) -> None:
        """Keep the memory of a push until it is answered or forgotten."""
        kept = self._pushes.setdefault(key[0], (key, lease))
        assert kept[0] == key, "an earlier push of the worker was answered or forgotten"
        if lease is not None:
            lease.is_waiting = kept[1] is lease
            if not lease.is_waiting:
                lease.release()

    def add(self, key: Key, waiter: Waiter) -> None:
        """Let `waiter` have the result of a push; those who gave up make room."""
        others = [other for other in self._waiters.get(key, []) if not other.done()]
        self._waiters[key] = [*others, waiter]

    def answer(self, key: Key, result: Result) -> None:
        """Give a push's result to all who wait for it; to all but the first it is a repetition."""
        self._let_go(key)
        for number, waiter in enumerate(self._waiters.pop(key, [])):
            self._lane.answer(waiter, result if number == 0 else replace(result, duplicate=True))

    def refuse(self, key: Key, error: StepwellError) -> None:
        """Refuse all who wait for a push."""
        self._let_go(key)
        for waiter in self._waiters.pop(key, []):
            self._lane.refuse(waiter, error)

    def let_go_of_memory(self, key: Key) -> None:
        """Release the memory of a push that still waits: its gradient was added to a sum."""
        kept = self._pushes.get(key[0])
        if kept is not None and kept[0] == key and kept[1] is not None:
            kept[1].release()
            self._pushes[key[0]] = (key, None)

    def forget(self, waiting: Collection[Key], error: StepwellError) -> None:
        """Refuse all who wait for a push that is not among those that still wait."""
        for key in [key for key, _ in self._pushes.values() if key not in waiting]:
            self._let_go(key)
        for key in [key for key in self._waiters if key not in waiting]:
            self.refuse(key, error)

    def _let_go(self, key: Key) -> None:
        kept = self._pushes.get(key[0])
        if kept is not None and kept[0] == key:
            del self._pushes[key[0]]
            if kept[1] is not None:
                kept[1].release()
