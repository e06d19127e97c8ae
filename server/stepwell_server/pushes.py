"""The pushes of one model: admitted on its lane, waited for, asked about and repeated.

The methods are called on the event loop, unless they say that they are the lane's.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Protocol

from stepwell_core.engine import Engine
from stepwell_core.errors import PushInFlight, PushNotFound, StepwellError, Unavailable
from stepwell_core.ledger import Result
from stepwell_core.push import Push, Staged, Waiting

from stepwell_server.lane import Lane
from stepwell_server.leases import Lease
from stepwell_server.short_steps import is_small
from stepwell_server.waiters import Key, PushWaiters, Waiter

_WAITS_NO_MORE = "The push waited for others and does so no more; send it again"


class Submit(Protocol):
    """Runs a function on the model's lane; see `HostedModel._submit`."""

    def __call__(
        self, function: Callable[[], None], lease: Lease | None = None, is_short: bool = False
    ) -> Awaitable[None]:
        """Run it."""


class Pushes:
    """The pushes of one model.

    Args:
        engine: Of the model.
        lane: Of the model.
        submit: Runs a function on the lane.
        check_running: Raises if the model is being closed.
        wait_s: How long a push that waits for others is kept before it is answered `waiting`.
    """

    def __init__(
        self,
        engine: Engine,
        lane: Lane,
        submit: Submit,
        check_running: Callable[[], None],
        wait_s: float,
    ) -> None:
        self._engine = engine
        self._lane = lane
        self._submit = submit
        self._check_running = check_running
        self._wait_s = wait_s
        self._waiters = PushWaiters(lane)  # the lane's
        self._is_small = is_small(engine.definition)

    async def push(self, push: Push, lease: Lease | None = None) -> Result:
        """Make a push: stage, commit, publish, answer.

        Args:
            push: As it came.
            lease: Of its gradient's memory, if that is staged. Lent from here until the push is
                settled or refused.

        Returns:
            What became of it; the outcome `waiting` if it still waits for others.

        Raises:
            StepwellError: See `Engine.stage`.
            ShuttingDown: The server stops; the push was not admitted.
        """
        waiter: Waiter = asyncio.get_running_loop().create_future()
        await self._submit(partial(self._push, push, waiter, lease), lease, self._is_small)
        del push  # while it waits nobody holds its gradient but who will read it
        return await self._settled(waiter, self._wait_s)

    def _push(self, push: Push, waiter: Waiter, lease: Lease | None) -> None:
        """The lane's part of `push`.

        The engine has read the gradient for good when the push is settled, when it waits no more,
        or at once when it `is_added` to a running sum.
        """
        with contextlib.ExitStack() as done:
            if lease is not None:
                done.callback(lease.release)
            self._check_running()
            outcome = self._stage(push)
            if isinstance(outcome, Result):
                self._lane.answer(waiter, outcome)
                return
            self._waiters.add(push.key, waiter)
            if isinstance(outcome, Staged):
                self.commit(outcome)
            elif outcome.is_added:
                self._waiters.keep(push.key, None)
            else:
                self._waiters.keep(push.key, lease)
                done.pop_all()

    def _stage(self, push: Push) -> Staged | Waiting | Result:
        try:
            return self._engine.stage(push)
        except StepwellError:
            raise
        except BaseException:  # no memory for a mean: the pushes in it wait no more
            self.forget()
            raise

    def is_known(self, key: Key) -> bool:
        """Return whether a push was settled or waits, so that its gradient need not come again.

        Raises:
            PushInFlight: An earlier push of the session waits.
            Fenced, UnknownSession, SessionExpired: The session may not push.
        """
        worker, epoch, sequence = key
        if sequence <= self._engine.ledger.find(worker, epoch).last_sequence:
            return True
        waiting = self._waiters.of_worker(worker)
        if waiting is None or waiting[1] != epoch:
            return False
        if waiting[2] < sequence:
            raise PushInFlight(
                f"Push {waiting[2]} of worker {worker!r} is still waiting. Received: {sequence}"
            )
        return True

    async def repeat(self, key: Key) -> Result:
        """Return what `push` would for a repetition of a push that `is_known`.

        Raises:
            StepwellError: As `push`.
        """
        self._check_running()
        try:
            return await self.result(key, self._wait_s)
        except PushNotFound:
            raise Unavailable(_WAITS_NO_MORE) from None

    def commit(self, staged: Staged) -> None:
        """Make a change and answer the pushes in it; the lane's."""
        for push, result in self._engine.commit(staged):
            self._waiters.answer(push.key, result)

    async def result(self, key: Key, wait_s: float) -> Result:
        """Return the result of an earlier push, waiting for it if it waits.

        Raises:
            PushNotFound: The session neither stores nor awaits such a push.
        """
        waiter: Waiter = asyncio.get_running_loop().create_future()
        await self._submit(partial(self._find, key, waiter))
        return await self._settled(waiter, min(wait_s, self._wait_s))

    def _find(self, key: Key, waiter: Waiter) -> None:
        worker, epoch, sequence = key
        session = self._engine.ledger.find(worker, epoch)
        if sequence <= session.last_sequence:
            result = self._engine.ledger.check(*key)
            assert result is not None, "an admitted push has a result"
            self._lane.answer(waiter, result)
        elif key in self._waiting:
            self._check_running()
            self._waiters.add(key, waiter)
        else:
            raise PushNotFound(
                f"Worker {worker!r} has made no push {sequence} in session {epoch}; send it again",
                expected=session.last_sequence + 1,
            )

    @property
    def _waiting(self) -> set[Key]:
        return {push.key for push in self._engine.policy.waiting}

    async def _settled(self, waiter: Waiter, wait_s: float) -> Result:
        if not waiter.done():
            await asyncio.wait([waiter], timeout=wait_s)
        if waiter.done():
            return waiter.result()
        waiter.cancel()
        counters = self._engine.counters
        return Result("waiting", counters.version, counters.parameters_version)

    def forget(self) -> None:
        """Answer those whose push waits no more: when they send it again they are told why.

        The lane's.
        """
        self._waiters.forget(self._waiting, Unavailable(_WAITS_NO_MORE))

    def end(self, error: StepwellError) -> None:
        """Refuse all who wait; the lane's."""
        self._waiters.forget((), error)
