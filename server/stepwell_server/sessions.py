"""The sessions of one model: who opened one, who is still there, and whose ends by itself.

The rules of leases are the core's (`membership.py`); here are the clock, the watch, and the changes
on the lane. Methods are called on the event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import structlog
from stepwell_core.engine import Engine
from stepwell_core.errors import Conflict, Fenced, SessionExpired, StepwellError, WorkerNotFound
from stepwell_core.membership import Expiry, Membership
from stepwell_core.record import SessionClosed, SessionOpened
from stepwell_core.session import Session
from stepwell_core.state import Counters

from stepwell_server.history import History, Joined, Left
from stepwell_server.pushes import Pushes
from stepwell_server.recorder import Recorder
from stepwell_server.sending import Sender, Sending

log = structlog.get_logger("stepwell")

LOOK_EVERY_S = 1.0  # at least; more often where leases are short
SHORTEST_LOOK_S = 0.01


class Sessions:
    """The sessions of one model.

    Args:
        engine: Of the model.
        recorder: Writes down who comes and goes.
        pushes: Of the model.
        history: Is told who comes and goes.
        change: Runs a change on the model's lane.
    """

    def __init__(
        self,
        engine: Engine,
        recorder: Recorder,
        pushes: Pushes,
        history: History,
        change: Callable[[Callable[[], Any]], Awaitable[Any]],
    ) -> None:
        self._engine = engine
        self._recorder = recorder
        self._pushes = pushes
        self._history = history
        self._change = change
        self._loop = asyncio.get_running_loop()
        self._membership = Membership(1.0, 1.0)
        self._sendings: set[Sending] = set()
        self.renew()
        self._watching = asyncio.create_task(self._watch())

    # Opening and closing

    async def open(self, worker: str) -> tuple[Session, Session | None, str, Counters]:
        """Open a session.

        Returns:
            The session, the one before, and the model's incarnation and counters at that moment.
        """

        def open_session() -> tuple[Session, Session | None, str, Counters]:
            self._engine.ledger.check_room(worker)
            self._recorder.keep(SessionOpened(worker, self._engine.ledger.last_epoch + 1))
            with self._recorder.making():
                session, previous = self._engine.open_session(worker)
            # Whatever fails from here on: a session that nobody watches would never end.
            self._loop.call_soon_threadsafe(self._joined, worker, session.epoch)
            self._history.add(Joined(self._engine.counters.version, worker, session.epoch))
            self._pushes.forget()
            opened = session, previous, self._engine.incarnation, self._engine.counters
            self._pushes.make_due()
            return opened

        opened: tuple[Session, Session | None, str, Counters] = await self._change(open_session)
        return opened

    def _joined(self, worker: str, epoch: int) -> None:
        self._membership.joined(worker, epoch, self._loop.time())
        self._cut(worker, epoch - 1, Fenced, "a newer one was opened")

    async def close(self, worker: str, epoch: int | None, incarnation: str | None = None) -> None:
        """Close a session; the current one if `epoch` is None.

        Args:
            worker: Whose.
            epoch: Of the session.
            incarnation: Of the history it was opened in; None is any.

        Raises:
            StaleIncarnation: That history is no more.
            WorkerNotFound: There never was a session of that worker.
            Fenced, UnknownSession, SessionExpired: As `Ledger.find`.
        """

        def close() -> int:
            if incarnation is not None:
                self._engine.check_incarnation(worker, -1 if epoch is None else epoch, incarnation)
            session = self._engine.ledger.sessions.get(worker)
            if session is None:
                raise WorkerNotFound(f"The model knows no worker {worker!r}", worker=worker)
            closed = session.epoch if epoch is None else epoch
            self._close(worker, closed, "closed")
            return closed

        self._membership.left(worker, await self._change(close))

    def _close(self, worker: str, epoch: int, reason: str) -> None:
        """The lane's part."""
        self._engine.ledger.find(worker, epoch)
        self._recorder.keep(SessionClosed(worker, epoch))
        with self._recorder.making():
            staged = self._engine.close_session(worker, epoch)
        self._history.add(Left(self._engine.counters.version, worker, epoch, reason))
        if staged is not None:
            self._pushes.commit(staged)
        self._pushes.forget()
        self._pushes.make_due()

    # Signs of life

    def heartbeat(self, worker: str, epoch: int, incarnation: str) -> float:
        """Renew a lease; returns for how many seconds.

        Raises:
            StaleIncarnation, Fenced, UnknownSession, SessionExpired: The session is no more.
        """
        self._engine.check_session(worker, epoch, incarnation)
        return self._membership.told(worker, epoch, self._loop.time())

    def seen(self, worker: str, epoch: int) -> None:
        """Note a sign of life."""
        self._membership.seen(worker, epoch, self._loop.time())

    @contextlib.contextmanager
    def sending(
        self, worker: str, epoch: int, sender: Sender | None = None
    ) -> Iterator[Callable[[], None]]:
        """Hold a worker's lease while its gradient comes; gives what is called when it is there.

        Args:
            worker: Whose.
            epoch: Of its session.
            sender: Tells whether bytes come: without any for a lease it ends, and the gradient is
                waited for no more. None holds the lease in any case.
        """
        sending = Sending(self._membership, worker, epoch, sender, self._loop.time())
        self._sendings.add(sending)
        try:
            yield lambda: sending.end(self._loop.time(), whole=True)
        finally:
            self._sendings.discard(sending)
            sending.end(self._loop.time(), whole=False)

    def settled(self, worker: str, epoch: int) -> None:
        """Note that a push of a worker was answered."""
        self._membership.settled(worker, epoch, self._loop.time())

    def renew(self) -> None:
        """Let all leases begin anew, by the model's present mode and ledger."""
        mode, now = self._engine.definition.consistency, self._loop.time()
        sessions = list(self._engine.ledger.sessions.values())
        epochs = {session.worker: session.epoch for session in sessions if session.is_open}
        self._membership.begin_anew(epochs, mode.lease_s, mode.patience, now)

    def describe(self) -> dict[str, dict[str, Any]]:
        """Return what is known of the workers that are there, beside the ledger."""
        now, waiting = self._loop.time(), self._pushes.waiting_workers
        return {
            worker: {
                "last_seen_s": round(now - member.seen, 3),
                "last_push_s": round(now - member.pushed, 3),
                "is_sending": member.sending > 0,
                "is_waiting": worker in waiting,
            }
            for worker, member in self._membership.members.items()
        }

    # The watch

    async def _watch(self) -> None:
        """End the sessions of those who are gone."""
        has_failed = False
        while True:
            now = self._loop.time()
            pause_s = self._longest_pause_s if has_failed else self._pause_s(now)
            await asyncio.sleep(pause_s)
            lag_s = self._loop.time() - now - pause_s
            if lag_s > min(LOOK_EVERY_S, self._membership.lease_s / 2):
                self._membership.forgive(lag_s, self._loop.time())  # it was us: stopped, say
            has_failed = False
            for expiry in self._gone():
                try:
                    await self._expire(expiry)
                except StepwellError as error:  # a full disk, say: it is tried again
                    log.warning("session_not_ended", worker=expiry.worker, reason=error.message)
                    has_failed = True
                except Exception:  # without the watch a dead worker would stop the others for ever
                    log.exception("session_not_ended", worker=expiry.worker)
                    has_failed = True

    def _gone(self) -> list[Expiry]:
        """Return whose session is to be ended now."""
        now, waiting = self._loop.time(), self._pushes.waiting_workers
        for sending in self._sendings:
            sending.listen(now)
        self._membership.waits(waiting, now)
        return self._membership.expired(now, waiting)

    @property
    def _longest_pause_s(self) -> float:
        return min(LOOK_EVERY_S, self._membership.lease_s / 4)

    def _pause_s(self, now: float) -> float:
        longest_s = self._longest_pause_s
        end = self._membership.next_end(self._pushes.waiting_workers)
        return longest_s if end is None else min(max(end - now, SHORTEST_LOOK_S), longest_s)

    async def _expire(self, expiry: Expiry) -> None:
        def expire() -> bool:
            session = self._engine.ledger.sessions.get(expiry.worker)
            if session is None or not session.is_open or session.epoch != expiry.epoch:
                return False
            self._close(expiry.worker, expiry.epoch, expiry.reason)
            return True

        is_ended = await self._change(expire)
        self._membership.left(expiry.worker, expiry.epoch)
        reason = "no byte of it came for longer than the lease. Open a new one"
        self._cut(expiry.worker, expiry.epoch, SessionExpired, reason)
        if is_ended:
            log.warning(
                "session_expired",
                model=self._engine.definition.name,
                worker=expiry.worker,
                epoch=expiry.epoch,
                reason=expiry.reason,
            )

    def _cut(self, worker: str, epoch: int, error: type[Conflict], reason: str) -> None:
        """Wait no longer for gradients of a session that has ended, or of earlier ones.

        They could not be admitted, and their memory may be what the worker's next one waits for.
        """
        for sending in list(self._sendings):
            if sending.worker == worker and sending.epoch <= epoch:
                message = (
                    f"The session of worker {worker!r} with epoch {sending.epoch} ended while its "
                    f"gradient was on its way: {reason}"
                )
                sending.cut(error(message, worker=worker, epoch=epoch))

    async def end(self) -> None:
        """Watch no longer."""
        self._watching.cancel()
        await asyncio.gather(self._watching, return_exceptions=True)
