"""The pushes of one model: admitted on its lane, waited for, asked about and repeated.

The methods are called on the event loop, unless they say that they are the lane's.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from time import perf_counter
from typing import Protocol

from stepwell_core.engine import Engine
from stepwell_core.errors import (
    PushInFlight,
    PushNotFound,
    StepwellError,
    Unavailable,
)
from stepwell_core.ledger import check_repetition
from stepwell_core.push import Push, Staged
from stepwell_core.session import Result

from stepwell_server import failpoints
from stepwell_server.fingerprints import with_fingerprint_begun
from stepwell_server.group_commit import GroupCommit
from stepwell_server.history import StepRecorder
from stepwell_server.lane import Lane
from stepwell_server.leases import Lease
from stepwell_server.recorder import Recorder
from stepwell_server.short_steps import is_small
from stepwell_server.tallies import ModelTally
from stepwell_server.turns import Turns
from stepwell_server.waiters import Key, PushWaiters, Waiter

_WAITS_NO_MORE = "The push waited for others and does so no more; send it again"


class Submit(Protocol):
    """Runs a function on the model's lane; see `HostedModel._submit`."""

    def __call__(
        self,
        function: Callable[[], None],
        lease: Lease | None = None,
        *,
        is_short: bool = False,
        is_grouped: bool = False,
    ) -> Awaitable[None]:
        """Run it."""


class Pushes:
    """The pushes of one model.

    Args:
        engine: Of the model.
        recorder: Writes down what is about to be made.
        lane: Of the model; ends our groups.
        submit: Runs a function on the lane.
        check_running: Raises if the model is being closed.
        wait_s: How long a push that waits for others is kept before it is answered `waiting`.
        steps: Is told of every change that is made.
    """

    def __init__(
        self,
        engine: Engine,
        recorder: Recorder,
        lane: Lane,
        submit: Submit,
        check_running: Callable[[], None],
        wait_s: float,
        steps: StepRecorder,
    ) -> None:
        self._engine = engine
        self._recorder = recorder
        self._lane = lane
        lane.end_group = self.settle
        self._group = GroupCommit(engine, recorder, self._commit, self._refuse)
        self._submit = submit
        self._check_running = check_running
        self._wait_s = wait_s
        self._steps = steps
        self._waiters = PushWaiters(lane)  # the lane's
        self._turns = Turns(engine, lane, self._between_groups)
        self._is_making_due = False
        self._is_small = is_small(engine.definition)
        self.tally = ModelTally()

    @property
    def waiting_workers(self) -> frozenset[str]:
        """The workers who wait for others, with a push or for their turn; on any thread."""
        return frozenset([*self._waiters.workers, *self._turns.workers])

    async def push(self, push: Push, lease: Lease | None = None) -> Result:
        """Make a push: stage, record, sync, commit, publish, answer.

        Args:
            push: As it came.
            lease: Of its gradient's memory, if that is staged. Lent from here until the push is
                settled or refused.

        Returns:
            What became of it; the outcome `waiting` if it still waits for others.

        Raises:
            StepwellError: See `Engine.stage`.
            ShuttingDown: The server stops; the push was not admitted.
            DiskFull, JournalBehind, ModelReadOnly: It could not be written down; nothing changed.
        """
        waiter: Waiter = asyncio.get_running_loop().create_future()
        push = with_fingerprint_begun(push)
        await self._submit(
            partial(self._push, push, waiter, lease),
            lease,
            is_short=self._is_small and self._recorder.is_quick,
            is_grouped=self._recorder.waits,
        )
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
            self._recorder.check()
            if not self._engine.can_stage(push):
                self.settle()
            try:
                outcome = self._engine.stage(push)
            except BaseException:  # no memory for a mean, say: the pushes in it wait no more
                self.forget()
                raise
            if isinstance(outcome, Result):
                self._lane.answer(waiter, outcome)
                return
            if isinstance(outcome, Staged):
                self._record(outcome)
                self._waiters.add(push.key, waiter)
                self._make(outcome, done)
                if not self._recorder.waits:
                    self.make_due()
                return
            self._waiters.add(push.key, waiter)
            if outcome.is_added:
                self._waiters.keep(push.key, None)
            else:
                self._waiters.keep(push.key, lease)
                done.pop_all()

    def _record(self, staged: Staged) -> None:
        """Write down a change; one that cannot be is withdrawn, and those in it wait no more."""
        failpoints.reach("push.staged")
        try:
            self._recorder.append(staged)
        except BaseException:
            self._engine.withdraw(staged)
            self.forget()
            raise

    def _make(self, staged: Staged, done: contextlib.ExitStack) -> None:
        """Make a change that is written down: at once, or with its group when that is synced.

        Args:
            staged: The last one that was staged.
            done: What is to be given back when the change is made; it may be taken from.
        """
        if not self._recorder.waits:
            self._commit(staged)
            return
        self._group.add(staged, done.pop_all())
        if self._group.is_full:
            self.settle()

    def settle(self) -> None:
        """Sync, make and answer what was grouped; the lane's. Does not raise."""
        if self._group.settle():
            self.make_due()

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

    async def repeat(self, key: Key, fingerprint: str) -> Result:
        """Return what `push` would for a repetition of a push that `is_known`.

        Args:
            key: Of the push.
            fingerprint: Of the repetition's payload.

        Raises:
            StepwellError: As `push`.
        """
        self._check_running()
        try:
            return await self.result(key, self._wait_s, fingerprint)
        except PushNotFound:
            raise Unavailable(_WAITS_NO_MORE) from None

    def commit(self, staged: Staged) -> None:
        """Write down and make a change that is no push's, and answer the pushes in it; the lane's.

        One that cannot be written down is not made: the pushes in it are refused, and come again.
        """
        with contextlib.suppress(StepwellError), contextlib.ExitStack() as nothing:
            self._record(staged)
            self._make(staged, nothing)
        self.settle()

    def commit_or_raise(self, staged: Staged) -> None:
        """Write down and make a change that is no push's; the lane's.

        Raises:
            DiskFull, JournalBehind, ModelReadOnly: It was not made.
        """
        self._record(staged)
        try:
            if self._recorder.waits:
                self._recorder.sync()
        except BaseException:
            self._engine.withdraw(staged)
            raise
        self._commit(staged)

    def make_due(self) -> None:
        """Make the steps that pushes which waited can make now; the lane's.

        To be called whenever something has happened that they may have waited for.
        """
        if self._is_making_due:
            return
        self._is_making_due = True
        try:
            while self._engine.policy.waiting and (staged := self._engine.stage_due()) is not None:
                self.commit(staged)
        except BaseException:
            self.forget()
            raise
        finally:
            self._is_making_due = False
        self._turns.serve()

    def readmit(self, pushes: Iterable[Push]) -> None:
        """Decide anew on pushes that waited under another mode; the lane's."""
        for push in pushes:
            if self._waiters.of_worker(push.worker) != push.key:
                continue  # it was refused with one before it, and its memory is others' now
            try:
                outcome = self._engine.stage(push)
                if isinstance(outcome, Staged):
                    self.commit(outcome)
                elif isinstance(outcome, Result):
                    self._waiters.answer(push.key, outcome)
                elif outcome.is_added:
                    self._waiters.let_go_of_memory(push.key)
            except StepwellError as error:
                self._waiters.refuse(push.key, error)
            except BaseException:
                self.forget()
                raise
        self._is_small = is_small(self._engine.definition)
        self.forget()
        self.make_due()

    async def _between_groups(self, function: Callable[[], None]) -> None:
        """Run a function on the lane, while the model takes pushes and no group is open."""

        def run() -> None:
            self._check_running()
            self.settle()
            function()

        await self._submit(run)

    async def turn(self, worker: str) -> bool:
        """Wait until a push of a worker would not have to wait; see `Turns.ask`."""
        return await self._turns.ask(worker, self._wait_s)

    def waiting_result(self) -> Result:
        """Return what a push is answered that waits for too long."""
        counters = self._engine.counters
        return Result("waiting", counters.version, counters.parameters_version)

    def _commit(self, staged: Staged) -> None:
        before = self._steps.before(staged)
        began = perf_counter()
        with self._recorder.making():
            results = self._engine.commit(staged)
        self.tally.committed(staged, results, began)
        for push, result in results:
            self._waiters.answer(push.key, result)
        self._steps.after(staged, before)
        failpoints.reach("push.committed")

    async def result(
        self,
        key: Key,
        wait_s: float,
        fingerprint: str | None = None,
        *,
        incarnation: str | None = None,
    ) -> Result:
        """Return the result of an earlier push, waiting for it if it waits.

        Args:
            key: Of the push.
            wait_s: For how long; at most as long as a push waits.
            fingerprint: Of a repetition's payload; None if only the result is asked for.
            incarnation: Of the history it was made in; None is any.

        Raises:
            StaleIncarnation: That history is no more.
            PushNotFound: The session neither stores nor awaits such a push.
            PayloadMismatch: The push had other bytes.
        """
        waiter: Waiter = asyncio.get_running_loop().create_future()
        wait_s = min(wait_s, self._wait_s)
        try:
            await self._submit(partial(self._find, key, waiter, fingerprint, incarnation))
        except PushNotFound:
            gates = self._engine.definition.consistency.gates
            if fingerprint is None and gates and not await self._turns.ask(key[0], wait_s):
                return self.waiting_result()  # it would not be taken yet
            raise
        return await self._settled(waiter, wait_s)

    def _find(
        self, key: Key, waiter: Waiter, fingerprint: str | None, incarnation: str | None
    ) -> None:
        worker, epoch, sequence = key
        if incarnation is not None:
            self._engine.check_incarnation(worker, epoch, incarnation)
        session = self._engine.ledger.find(worker, epoch)
        if sequence <= session.last_sequence:
            result = self._engine.ledger.check(*key, fingerprint)
            assert result is not None, "an admitted push has a result"
            self._lane.answer(waiter, result)
        elif key in self._waiting:  # at a barrier: a group is settled before this job
            (first,) = (p.fingerprint for p in self._engine.policy.waiting if p.key == key)
            check_repetition(worker, sequence, first, fingerprint)
            self._check_running()
            self._waiters.add(key, waiter)
        else:
            raise PushNotFound(
                f"Worker {worker!r} has made no push {sequence} in session {epoch}; send it again",
                expected=session.last_sequence + 1,
            )

    @property
    def _waiting(self) -> set[Key]:
        """The pushes that wait for others, or for the sync of their group."""
        return self._group.keys | {push.key for push in self._engine.policy.waiting}

    async def _settled(self, waiter: Waiter, wait_s: float) -> Result:
        if not waiter.done():
            await asyncio.wait([waiter], timeout=wait_s)
        if waiter.done():
            return waiter.result()
        waiter.cancel()
        return self.waiting_result()

    def forget(self) -> None:
        """Answer those whose push waits no more: when they send it again they are told why.

        The lane's.
        """
        self._refuse(Unavailable(_WAITS_NO_MORE))

    def _refuse(self, error: StepwellError) -> None:
        self._waiters.forget(self._waiting, error)

    def end(self, error: StepwellError) -> None:
        """Refuse all who wait; the lane's."""
        self._waiters.forget((), error)
        self._turns.end(error)
