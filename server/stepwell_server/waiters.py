"""Who waits for pushes that wait for other pushes: one future for each request.

A push may have several: a retry joins the first attempt, and so does a question for its result.
Only the model's lane calls these methods; the futures belong to the event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from dataclasses import replace

from stepwell_core.errors import StepwellError
from stepwell_core.ledger import Result

from stepwell_server.lane import Lane

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

    def add(self, key: Key, waiter: Waiter) -> None:
        """Let `waiter` have the result of a push; those who gave up make room."""
        others = [other for other in self._waiters.get(key, []) if not other.done()]
        self._waiters[key] = [*others, waiter]

    def answer(self, key: Key, result: Result) -> None:
        """Give a push's result to all who wait for it; to all but the first it is a repetition."""
        for number, waiter in enumerate(self._waiters.pop(key, [])):
            self._lane.answer(waiter, result if number == 0 else replace(result, duplicate=True))

    def forget(self, waiting: Collection[Key], error: StepwellError) -> None:
        """Refuse all who wait for a push that is not among those that still wait."""
        for key in [key for key in self._waiters if key not in waiting]:
            for waiter in self._waiters.pop(key):
                self._lane.refuse(waiter, error)
