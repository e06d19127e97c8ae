"""One lane a model: a queue and one thread; every change of the model goes through, in one order.

asyncio stands on one side, the engine on the other. What runs on the lane may use the engine
freely, and nothing else may; independent models have lanes of their own and run in parallel (the
kernels release the GIL).

Handing a job to the thread and its result back costs more than a small model's step. So a job that
is known to be short runs on the event loop itself, at once, if nothing was given to the lane that
is not finished. That needs no lock: jobs are given, counted and their results received on the event
loop alone, and a job is finished when its result is received.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar, TypeVarTuple, Unpack

from stepwell_core.errors import ShuttingDown

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


@dataclass(frozen=True, slots=True)
class _Job:
    function: Callable[[], Any]
    future: asyncio.Future[Any]
    is_grouped: bool


class Lane:
    """Runs functions one after the other on a thread of its own.

    Args:
        name: Of the thread, for logs and debuggers.
        loop: Where the results are awaited.

    Attributes:
        end_group: Called by the thread behind a grouped job, before any other job. It answers those
            who wait for the group; what it raises goes to the event loop's exception handler.
    """

    def __init__(self, name: str, loop: asyncio.AbstractEventLoop) -> None:
        self.end_group: Callable[[], None] = _do_nothing
        self._loop = loop
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._is_closed = False
        self._unfinished = 0  # jobs whose results did not come back to the event loop yet
        self._is_inline = False
        self._thread = threading.Thread(target=self._work, name=f"lane-{name}", daemon=True)
        self._thread.start()

    async def run(
        self,
        function: Callable[[], T],
        *,
        is_short: bool = False,
        is_grouped: bool = False,
        on_taken: Callable[[], None] | None = None,
    ) -> T:
        """Run `function` on the lane, after everything that was given to it before.

        If the caller is cancelled the function still runs: a change that was begun is made whole.

        Args:
            function: The job.
            is_short: It takes some 100 us at most, so it may stop the event loop for as long.
            is_grouped: `end_group` ends what it begins; not for short ones.
            on_taken: Called once it is certain that the function runs, before it can have ended in
                any other way than here.

        Raises:
            ShuttingDown: The lane is closed.
            Exception: Whatever `function` raises.
        """
        future = (
            None if is_short and self._is_idle else self.submit(function, is_grouped=is_grouped)
        )
        if on_taken is not None:
            on_taken()
        if future is None:
            return self._run_inline(function)
        try:
            return await future
        finally:
            del future  # it knows its error, which knows this frame: see `_do`

    @property
    def _is_idle(self) -> bool:
        """Whether no job runs or waits, so that the event loop may run one itself."""
        return not (self._unfinished or self._is_inline or self._is_closed)

    def _run_inline(self, function: Callable[[], T]) -> T:
        self._is_inline = True
        try:
            return function()
        finally:
            self._is_inline = False

    def submit(self, function: Callable[[], T], *, is_grouped: bool = False) -> asyncio.Future[T]:
        """Give `function` to the lane without waiting; see `run`.

        Raises:
            ShuttingDown: The lane is closed.
        """
        if self._is_closed:
            raise ShuttingDown("The model is being closed; try again")
        future: asyncio.Future[T] = self._loop.create_future()
        self._unfinished += 1
        self._jobs.put(_Job(function, future, is_grouped))
        return future

    def answer(self, future: asyncio.Future[T], result: T) -> None:
        """Give `future` its result, from a job."""
        self.call_soon(_set_result, future, result)

    def refuse(self, future: asyncio.Future[Any], error: BaseException) -> None:
        """Give `future` an exception, from a job."""
        self.call_soon(_set_exception, future, error)

    def call_soon(self, function: Callable[[Unpack[Ts]], object], *arguments: *Ts) -> None:
        """Run `function` on the event loop, from a job; at once if that is where the job runs."""
        if self._is_inline:
            function(*arguments)
        else:
            self._loop.call_soon_threadsafe(function, *arguments)

    async def close(self) -> None:
        """Finish what was given to the lane, then end its thread."""
        self._is_closed = True
        self._jobs.put(None)
        await asyncio.to_thread(self._thread.join)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            if not job.is_grouped:
                self._end_group()
            self._do(job)
            del job  # a large gradient must not live until the next job comes
            if self._jobs.empty():
                self._end_group()
        self._end_group()

    def _end_group(self) -> None:
        try:
            self.end_group()
        except BaseException as error:  # without its thread the model would hang
            context = {"message": "A group was not ended", "exception": error}
            self._loop.call_soon_threadsafe(self._loop.call_exception_handler, context)

    def _do(self, job: _Job) -> None:
        """Run one job, in a frame of its own: nor must a large result live until then."""
        function, future = job.function, job.future
        del job
        try:
            result = function()
        except BaseException as error:
            self.call_soon(self._finish, _set_exception, future, error)
        else:
            self.call_soon(self._finish, _set_result, future, result)
        finally:
            # An error knows this frame. If the frame knew who is told of it, what the job used
            # would live until the garbage collector comes.
            del function, future

    def _finish(
        self, settle: Callable[[asyncio.Future[Any], Any], None], future: Any, value: Any
    ) -> None:
        """Receive a result on the event loop."""
        self._unfinished -= 1
        settle(future, value)


def _do_nothing() -> None:
    """End no group: there is none."""


def _set_result(future: asyncio.Future[Any], result: Any) -> None:
    if not future.done():
        future.set_result(result)


def _set_exception(future: asyncio.Future[Any], error: BaseException) -> None:
    if not future.done():
        future.set_exception(error)
