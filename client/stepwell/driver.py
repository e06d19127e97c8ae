"""Drives flows to their end, blocking: over the wire, or through shared memory."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from stepwell_core.errors import StepwellError
from stepwell_core.layout import Layout

from stepwell.calls import Answer, Call
from stepwell.endpoint import Endpoint
from stepwell.history import HistoryEvent, Listening
from stepwell.retry import Flow, Sleep
from stepwell.shared_memory import SharedMemory
from stepwell.transport import Transport

T = TypeVar("T")


class Driver:
    """What a client, its models and their workers have in common. Thread-safe.

    Args:
        endpoint: The server.
        uses: "auto", or "http": no memory is shared.
        new_transport: Makes what sends calls over the wire.
    """

    def __init__(
        self, endpoint: Endpoint, uses: str, new_transport: Callable[[Endpoint], Transport]
    ) -> None:
        self._endpoint = endpoint
        self._uses = uses
        self._transport = new_transport(endpoint)

    def run(self, flow: Flow[T], memory: SharedMemory | None = None) -> T:
        """Drive a flow to its end and return its result; through `memory` where it can."""
        with contextlib.closing(flow):
            try:
                step = next(flow)
                while True:
                    try:
                        answer = self._take(step, memory)
                    except StepwellError as error:
                        step = flow.throw(error)
                    else:
                        step = flow.send(answer)
            except StopIteration as stop:
                result: T = stop.value
                return result

    def _take(self, step: Call | Sleep, memory: SharedMemory | None) -> Answer:
        if isinstance(step, Sleep):
            time.sleep(step.seconds)
            return Answer({})
        if step.shares and memory is not None and self.finds(memory):
            answer = memory.send(step)
            if answer is not None:
                return answer
        return self._transport.send(step)

    def listen(self, listening: Listening) -> Iterator[HistoryEvent]:
        """Yield events for as long as the caller asks for more."""
        while True:
            error: StepwellError | None = None
            try:
                with contextlib.closing(self._transport.stream(listening.call())) as pieces:
                    for piece in pieces:
                        yield from listening.feed(piece)
            except StepwellError as failure:
                error = failure
            time.sleep(listening.pause_s(error))

    def finds(self, memory: SharedMemory) -> bool:
        """Return whether a worker may try to share memory, and let it know with whom."""
        if memory.is_usable and not memory.is_found:
            try:
                memory.find(self._transport.send(Call("GET", "/v1")).fields)
            except StepwellError as error:
                memory.give_up(error)  # whatever it is, the wire will tell
        return memory.is_usable

    def memory_of(self, model: str, layout: Layout) -> SharedMemory:
        """Return what a worker of a model shares with the server, as yet nothing."""
        return SharedMemory(self._endpoint, model, layout, self._uses)

    def close(self) -> None:
        """Close all connections over the wire."""
        self._transport.close()
