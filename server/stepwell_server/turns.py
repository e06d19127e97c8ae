"""Workers who run ahead and wait for their turn before they send a gradient.

Where one push alone makes a step, the mode can say beforehand that it would have to wait
(`Policy.must_wait`). Its gradient is then not received, so the server keeps nothing of it, however
many run ahead. `ask` is called on the event loop, the rest on the lane.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from stepwell_core.engine import Engine
from stepwell_core.errors import StepwellError

from stepwell_server.lane import Lane

Turn = asyncio.Future[bool]


class Turns:
    """Who waits for a turn at one model.

    Args:
        engine: Of the model.
        lane: Of the model; brings answers to the event loop.
        submit: Runs a function on the lane, in front of which groups of pushes are settled.
    """

    def __init__(
        self, engine: Engine, lane: Lane, submit: Callable[[Callable[[], None]], Awaitable[None]]
    ) -> None:
        self._engine = engine
        self._lane = lane
        self._submit = submit
        self._turns: dict[str, list[Turn]] = {}

    @property
    def workers(self) -> list[str]:
        """The workers who wait; on any thread."""
        return [
            worker
            for worker, turns in list(self._turns.items())
            if not all(turn.done() for turn in turns)
        ]

    async def ask(self, worker: str, wait_s: float) -> bool:
        """Wait until a push of a worker would not have to wait; returns False if that lasts.

        Raises:
            StepwellError: The model does not take pushes any more.
        """
        turn: Turn = asyncio.get_running_loop().create_future()
        await self._submit(lambda: self._add(worker, turn))
        if not turn.done():
            await asyncio.wait([turn], timeout=wait_s)
        if not turn.done():
            turn.cancel()
            return False
        return turn.result()

    def _add(self, worker: str, turn: Turn) -> None:
        if self._engine.policy.must_wait(worker):
            others = [other for other in self._turns.get(worker, []) if not other.done()]
            self._turns[worker] = [*others, turn]
        else:
            self._lane.answer(turn, True)

    def serve(self) -> None:
        """Let those go on who need not wait any more."""
        for worker in [name for name in self._turns if not self._engine.policy.must_wait(name)]:
            for turn in self._turns.pop(worker):
                self._lane.answer(turn, True)

    def end(self, error: StepwellError) -> None:
        """Refuse all who wait."""
        for turn in [turn for turns in self._turns.values() for turn in turns]:
            self._lane.refuse(turn, error)
        self._turns.clear()
