"""What makes a repeated push harmless: (worker, epoch, sequence) -> result.

A worker opens a *session*; its *epoch* is a number that no earlier session of the model had. Pushes
of a session carry the *sequence* 0, 1, 2, ... The ledger admits each once, in order, and answers a
repetition with what the first one got. An older session of the same worker is *fenced*: it can
never push again. Beside each result lies the *fingerprint* of the push's bytes, so that other bytes
under the same number are not taken for a repetition.

The ledger is saved with the parameters, in one cut, so it is right about them after a restart.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from stepwell_core import strict
from stepwell_core.errors import (
    Fenced,
    InvalidInput,
    PayloadMismatch,
    SequenceGap,
    SessionExpired,
    TooManyWorkers,
    UnknownSession,
)
from stepwell_core.session import STORED_RESULTS, Result, Session

MAX_OPEN_SESSIONS = 10_000
MAX_CLOSED_SESSIONS = 10_000


class Ledger:
    """All sessions of one model. Not thread-safe: the model's writer alone uses it.

    Attributes:
        sessions: The newest one of each worker, in the order in which they were opened; only read.
        last_epoch: The largest that was ever given away.
        most_open: How many sessions were open at once since the last time that none was.
    """

    def __init__(self) -> None:
        self.sessions: dict[str, Session] = {}
        self.last_epoch = 0
        self.most_open = 0
        self._own: set[str] = set()  # the workers whose sessions no cut has

    def cut(self) -> Ledger:
        """Return the ledger as it is now; O(sessions), at microseconds for a thousand.

        The two share their sessions: who changes one copies it before. The cut may be read on any
        thread, as long as nobody changes it.
        """
        cut = Ledger()
        cut.sessions = dict(self.sessions)
        cut.last_epoch, cut.most_open = self.last_epoch, self.most_open
        self._own.clear()
        return cut

    def _to_change(self, worker: str) -> Session:
        """Return a session that is this ledger's alone."""
        if worker not in self._own:
            self.sessions[worker] = self.sessions[worker].copied()
            self._own.add(worker)
        return self.sessions[worker]

    @property
    def open_workers(self) -> list[str]:
        """The workers with an open session, in the order in which they opened it."""
        return [session.worker for session in self.sessions.values() if session.is_open]

    @property
    def clocks(self) -> dict[str, int]:
        """The clocks of the workers with an open session, in the order of `open_workers`."""
        return {
            session.worker: session.clock for session in self.sessions.values() if session.is_open
        }

    def restart_clocks(self) -> None:
        """Let all clocks begin at 0."""
        for worker in list(self.sessions):
            session = self._to_change(worker)
            session.clock_start = -(session.last_sequence + 1)

    def open(self, worker: str) -> tuple[Session, Session | None]:
        """Open a session and fence the worker's earlier one.

        Returns:
            The new session, and the worker's newest earlier one that admitted a push, or the one
            just before if none did; None if there was none.

        Raises:
            TooManyWorkers: So many sessions are open already.
        """
        self.check_room(worker)
        previous = self.sessions.get(worker)
        self.last_epoch += 1
        self.sessions.pop(worker, None)  # so that the order is that of opening
        if previous is not None and previous.last_sequence < 0:
            previous = previous.previous or previous
        slowest = min(self.clocks.values(), default=0)
        session = self.sessions[worker] = Session(worker, self.last_epoch, clock_start=slowest)
        session.previous = None if previous is None else previous.last_alone()
        self._own.add(worker)
        self.most_open = max(self.most_open, len(self.open_workers))
        return session, previous

    def check_room(self, worker: str) -> None:
        """Refuse one session too many.

        Raises:
            TooManyWorkers: So many sessions are open already.
        """
        previous = self.sessions.get(worker)
        is_one_more = previous is None or not previous.is_open
        if is_one_more and len(self.open_workers) >= MAX_OPEN_SESSIONS:
            raise TooManyWorkers(
                f"A model has at most {MAX_OPEN_SESSIONS} open sessions; close some of them"
            )

    def close(self, worker: str, epoch: int) -> None:
        """Close a session; a session that is closed, fenced or not known stays as it is."""
        session = self.sessions.get(worker)
        if session is not None and session.epoch == epoch:
            self._own.add(worker)
            self.sessions[worker] = closed = session.last_alone()  # nobody asks for the others
            closed.previous = session.previous
            self.most_open = self.most_open if self.open_workers else 0
            self._forget_oldest()

    def find(self, worker: str, epoch: int) -> Session:
        """Return an open session.

        Raises:
            Fenced: A newer session of the worker exists.
            UnknownSession: There never was such a session.
            SessionExpired: It was closed.
        """
        session = self.sessions.get(worker)
        if session is None or epoch > session.epoch:
            raise UnknownSession(
                f"Worker {worker!r} has no session with epoch {epoch}; open one",
                worker=worker,
                epoch=epoch,
            )
        if epoch < session.epoch:
            raise Fenced(
                f"Worker {worker!r} opened a newer session (epoch {session.epoch}); the one with "
                f"epoch {epoch} may not push any more. Two processes with one name fence each "
                "other: give each its own",
                worker=worker,
                epoch=session.epoch,
            )
        if not session.is_open:
            raise SessionExpired(
                f"The session of worker {worker!r} with epoch {epoch} ended: it was closed, or the "
                "worker gave no sign of life for longer than its lease. Open a new one",
                worker=worker,
                epoch=epoch,
            )
        return session

    def check(
        self, worker: str, epoch: int, sequence: int, fingerprint: str | None = None
    ) -> Result | None:
        """Return None if the push is the next one, or the stored result if it is a repetition.

        Args:
            worker: Who pushes.
            epoch: Of its session.
            sequence: Of the push.
            fingerprint: Of its payload; None if only its result is asked for.

        Raises:
            Fenced, UnknownSession, SessionExpired: As `find`.
            InvalidInput: The sequence number is negative.
            SequenceGap: Pushes between the last one and this one are missing.
            PayloadMismatch: It was made already, with other bytes.
        """
        session = self.find(worker, epoch)
        if sequence < 0:
            raise InvalidInput(f"Pushes are numbered 0, 1, 2, ... Received: {sequence}")
        due = session.last_sequence + 1
        if sequence == due:
            return None
        if sequence > due:
            raise SequenceGap(
                f"Worker {worker!r} is to push sequence {due} next. Received: {sequence}",
                expected=due,
                received=sequence,
            )
        check_repetition(worker, sequence, session.fingerprints.get(sequence), fingerprint)
        stored = session.results.get(sequence)
        if stored is None:
            last = session.last_result
            assert last is not None, "a session with an admitted push has its result"
            stored = replace(last, outcome="settled_before")
        return replace(stored, duplicate=True)

    def record(
        self,
        worker: str,
        epoch: int,
        sequence: int,
        result: Result,
        fingerprint: str | None = None,
    ) -> None:
        """Keep the result of the push that `check` let through; uses up its sequence number.

        A session that was closed or fenced in between is left alone: nobody can ask any more.
        """
        session = self.sessions.get(worker)
        if session is None or session.epoch != epoch:
            return
        session = self._to_change(worker)
        session.last_sequence = sequence
        session.previous = None
        session.results[sequence] = result
        if fingerprint is not None:
            session.fingerprints[sequence] = fingerprint
        if len(session.results) > STORED_RESULTS:
            oldest = next(iter(session.results))
            del session.results[oldest]
            session.fingerprints.pop(oldest, None)

    def to_json(self) -> dict[str, Any]:
        """Return plain values for the checkpoint."""
        return {
            **self.numbers(),
            "sessions": [session.to_json() for session in self.sessions.values()],
        }

    def numbers(self) -> dict[str, int]:
        """Return all plain values but the sessions."""
        return {"last_epoch": self.last_epoch, "most_open": self.most_open}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Ledger:
        """Return the ledger that `to_json` described; `value` may come from a stranger.

        Raises:
            ValueError: It is none.
        """
        value = {"most_open": 0, **strict.mapping(value)}  # the first checkpoints had none
        value = strict.mapping(value, "last_epoch", "most_open", "sessions")
        ledger = cls()
        ledger.last_epoch = strict.integer(value["last_epoch"])
        ledger.most_open = strict.integer(value["most_open"], 0, MAX_OPEN_SESSIONS)
        most = MAX_OPEN_SESSIONS + MAX_CLOSED_SESSIONS
        for entry in strict.sequence(value["sessions"], most):
            session = Session.from_json(entry)
            if session.worker in ledger.sessions or session.epoch > ledger.last_epoch:
                raise ValueError("two sessions of one worker, or an epoch that was not given yet")
            ledger.sessions[session.worker] = session
        return ledger

    def _forget_oldest(self) -> None:
        closed = [name for name, session in self.sessions.items() if not session.is_open]
        for name in closed[: max(len(closed) - MAX_CLOSED_SESSIONS, 0)]:
            del self.sessions[name]
            self._own.discard(name)


def check_repetition(worker: str, sequence: int, first: str | None, second: str | None) -> None:
    """Refuse other bytes under a number that was used.

    Args:
        worker: Who pushes.
        sequence: The number.
        first: The fingerprint of the push that used it; None if it is not known.
        second: That of the present one; None if it has no payload.

    Raises:
        PayloadMismatch: They differ.
    """
    if None not in (first, second) and first != second:
        raise PayloadMismatch(
            f"Worker {worker!r} has made push {sequence} already, with other bytes or as "
            f"another kind (fingerprint {first}). Received: {second}. A repetition "
            f"is the same; a new push has the next number",
            worker=worker,
            sequence=sequence,
            expected=first,
            received=second,
        )
