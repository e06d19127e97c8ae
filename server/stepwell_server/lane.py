"""One lane a model: a queue and one thread; every change of the model goes through, in one order.

asyncio stands on one side, the engine on the other. What runs on the lane may use the engine
freely, and nothing else may; independent models have lanes of their own and run in parallel (the
kernels release the GIL).
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from stepwell_core.errors import ShuttingDown

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Job:
    function: Callable[[], Any]
    future: asyncio.Future[Any]


class Lane:
    """Runs functions one after the other on a thread of its own.

    Args:
        name: Of the thread, for logs and debuggers.
        loop: Where the results are awaited.
    """

    def __init__(self, name: str, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._is_closed = False
        self._thread = threading.Thread(target=self._work, name=f"lane-{name}", daemon=True)
        self._thread.start()

    async def run(self, function: Callable[[], T]) -> T:
        """Run `function` on the lane, after everything that was given to it before.

        If the caller is cancelled the function still runs: a change that was begun is made whole.

        Raises:
            ShuttingDown: The lane is closed.
            Exception: Whatever `function` raises.
        """
        return await self.submit(function)

    def submit(self, function: Callable[[], T]) -> asyncio.Future[T]:
        """Give `function` to the lane without waiting; see `run`.

        Raises:
            ShuttingDown: The lane is closed.
        """
        if self._is_closed:
            raise ShuttingDown("The model is being closed; try again")
        future: asyncio.Future[T] = self._loop.create_future()
        self._jobs.put(_Job(function, future))
        return future

    def answer(self, future: asyncio.Future[T], result: T) -> None:
        """Give `future` its result, from the lane's thread."""
        self._loop.call_soon_threadsafe(_set_result, future, result)

    def refuse(self, future: asyncio.Future[Any], error: BaseException) -> None:
        """Give `future` an exception, from the lane's thread."""
        self._loop.call_soon_threadsafe(_set_exception, future, error)

    def call_soon(self, function: Callable[[], None]) -> None:
        """Run `function` on the event loop, from the lane's thread."""
        self._loop.call_soon_threadsafe(function)

    async def close(self) -> None:
        """Finish what was given to the lane, then end its thread."""
        self._is_closed = True
        self._jobs.put(None)
        await asyncio.to_thread(self._thread.join)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            self._do(job)
            del job  # a large gradient must not live until the next job comes

    def _do(self, job: _Job) -> None:
        """Run one job, in a frame of its own: nor must a large result live until then."""
        try:
            result = job.function()
        except BaseException as error:
            self.refuse(job.future, error)
        else:
            self.answer(job.future, result)


def _set_result(future: asyncio.Future[Any], result: Any) -> None:
    if not future.done():
        future.set_result(result)


def _set_exception(future: asyncio.Future[Any], error: BaseException) -> None:
    if not future.done():
        future.set_exception(error)
