"""Drives flows to their end, with `await`: over the wire, or through shared memory."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
from collections.abc import AsyncIterator, Callable
from typing import TypeVar

from stepwell_core.errors import StepwellError
from stepwell_core.layout import Layout

from stepwell.calls import Answer, Call
from stepwell.endpoint import Endpoint
from stepwell.history import HistoryEvent, Listening
from stepwell.retry import Flow, Sleep
from stepwell.shared_memory import SharedMemory
from stepwell.transport import AsyncHttpxTransport

T = TypeVar("T")

INTERRUPT_S = 0.1
"""How often a thread is interrupted whose call was cancelled; it may be about to connect."""


class AsyncDriver:
    """What an asyncio client, its models and their workers have in common; for one event loop.

    Args:
        endpoint: The server.
        uses: "auto", or "http": no memory is shared.
    """

    def __init__(self, endpoint: Endpoint, uses: str) -> None:
        self._endpoint = endpoint
        self._uses = uses
        self._transport = AsyncHttpxTransport(endpoint)

    async def run(self, flow: Flow[T], memory: SharedMemory | None = None) -> T:
        """Drive a flow to its end and return its result; through `memory` where it can."""
        with contextlib.closing(flow):
            try:
                step = next(flow)
                while True:
                    try:
                        answer = await self._take(step, memory)
                    except StepwellError as error:
                        step = flow.throw(error)
                    else:
                        step = flow.send(answer)
            except StopIteration as stop:
                result: T = stop.value
                return result

    async def _take(self, step: Call | Sleep, memory: SharedMemory | None) -> Answer:
        if isinstance(step, Sleep):
            await asyncio.sleep(step.seconds)
            return Answer({})
        if step.shares and memory is not None and await self.finds(memory):
            answer = await self.in_thread(memory, lambda: memory.send(step))
            if answer is not None:
                return answer
        return await self._transport.send(step)

    async def listen(self, listening: Listening) -> AsyncIterator[HistoryEvent]:
        """Yield events for as long as the caller asks for more."""
        while True:
            error: StepwellError | None = None
            try:
                stream = self._transport.stream(listening.call())
                async with contextlib.aclosing(stream) as pieces:
                    async for piece in pieces:
                        for event in listening.feed(piece):
                            yield event
            except StepwellError as failure:
                error = failure
            await asyncio.sleep(listening.pause_s(error))

    async def in_thread(self, memory: SharedMemory, function: Callable[[], T]) -> T:
        """Return `function()`, which uses `memory`, from another thread.

        If it is cancelled, it is over only when the thread is: until then that reads gradients, or
        writes into what is pulled.
        """
        # No task, which the end of the loop would cancel under its thread.
        context = contextvars.copy_context()
        done = asyncio.get_running_loop().run_in_executor(None, context.run, function)
        try:
            return await asyncio.shield(done)
        except asyncio.CancelledError:
            while not done.done():
                memory.interrupt()
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.wait([done], timeout=INTERRUPT_S)
            done.exception()  # it was seen
            raise

    async def finds(self, memory: SharedMemory) -> bool:
        """Return whether a worker may try to share memory, and let it know with whom."""
        if memory.is_usable and not memory.is_found:
            try:
                memory.find((await self._transport.send(Call("GET", "/v1"))).fields)
            except StepwellError as error:
                memory.give_up(error)  # whatever it is, the wire will tell
        return memory.is_usable

    def memory_of(self, model: str, layout: Layout) -> SharedMemory:
        """Return what a worker of a model shares with the server, as yet nothing."""
        return SharedMemory(self._endpoint, model, layout, self._uses)

    async def close(self) -> None:
        """Close all connections over the wire."""
        await self._transport.close()
