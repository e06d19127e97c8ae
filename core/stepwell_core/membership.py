"""Who is there: leases that a worker's signs of life renew, and patience with those who only live.

A worker is *there* while its session is open. Its lease ends when it has given no sign of life for
`lease_s`: no call, no heartbeat, no byte of a gradient. A hung trainer whose heartbeat lives on is
caught by `patience_s` without a push. A push that waits for others is no silence of its worker, as
long as that lives.

A worker lives by the lease that it was told: when that becomes shorter, it is so for the worker
from its next heartbeat on, whose answer says it.

Pure: time comes in as an argument, in seconds of a clock that never goes back.

Source: Gray and Cheriton, 1989, "Leases: An Efficient Fault-Tolerant Mechanism for Distributed File
Cache Consistency".
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

SILENT = "lease_expired"
HUNG = "patience_exhausted"
REASONS = (SILENT, HUNG)
"""Why a session may be ended that its worker did not close."""


@dataclass
class Member:
    """One worker that is there.

    Attributes:
        epoch: Of its session.
        seen: When it gave its last sign of life.
        pushed: When its last push came or last waited, or its session was opened.
        told_s: The lease that it knows of.
        sending: How many of its gradients are being received; while one is, nobody is impatient.
    """

    epoch: int
    seen: float
    pushed: float
    told_s: float
    sending: int = 0


@dataclass(frozen=True)
class Expiry:
    """A session that is to be ended, and why: one of `REASONS`."""

    worker: str
    epoch: int
    reason: str


class Membership:
    """The workers of one model. Not thread-safe.

    Args:
        lease_s: Seconds of silence.
        patience_s: Seconds without a push.

    Attributes:
        members: By name.
    """

    def __init__(self, lease_s: float, patience_s: float) -> None:
        self.members: dict[str, Member] = {}
        self.lease_s = lease_s
        self.patience_s = patience_s

    def begin_anew(
        self, sessions: Mapping[str, int], lease_s: float, patience_s: float, now: float
    ) -> None:
        """Let all leases begin now; gradients that are being received go on.

        Args:
            sessions: The epochs of those that are open, by worker.
            lease_s: From now on.
            patience_s: From now on.
            now: The time.
        """
        before = self.members
        self.lease_s, self.patience_s = lease_s, patience_s
        self.members = {
            worker: Member(epoch, now, now, lease_s) for worker, epoch in sessions.items()
        }
        for worker, member in self.members.items():
            old = before.get(worker)
            if old is not None and old.epoch == member.epoch:
                member.sending, member.told_s = old.sending, old.told_s

    def joined(self, worker: str, epoch: int, now: float) -> None:
        """Note a new session, in the place of an older one of the worker."""
        member = self.members.get(worker)
        if member is None or member.epoch < epoch:
            self.members[worker] = Member(epoch, now, now, self.lease_s)

    def left(self, worker: str, epoch: int) -> None:
        """Note that a session ended."""
        member = self.members.get(worker)
        if member is not None and member.epoch <= epoch:
            del self.members[worker]

    def seen(self, worker: str, epoch: int, now: float) -> None:
        """Note a sign of life."""
        member = self._find(worker, epoch)
        if member is not None:
            member.seen = max(member.seen, now)

    def told(self, worker: str, epoch: int, now: float) -> float:
        """Note a sign of life that is answered with the lease, and return that in seconds."""
        member = self._find(worker, epoch)
        if member is not None:
            member.seen, member.told_s = max(member.seen, now), self.lease_s
        return self.lease_s

    def waits(self, workers: Collection[str], now: float) -> None:
        """Note who waits for others: patience is counted from when they were last seen to."""
        for worker in workers:
            member = self.members.get(worker)
            if member is not None:
                member.pushed = max(member.pushed, now)

    def sends(self, worker: str, epoch: int, now: float) -> None:
        """Note that a gradient begins to come; its bytes are signs of life, to be noted too."""
        member = self._find(worker, epoch)
        if member is not None:
            member.sending += 1
            member.seen = max(member.seen, now)

    def sent(self, worker: str, epoch: int, now: float, *, whole: bool) -> None:
        """Note that it has come, or will not: the connection is gone."""
        member = self._find(worker, epoch)
        if member is None:
            return
        member.sending = max(0, member.sending - 1)
        if whole:
            member.seen = member.pushed = max(member.seen, now)

    def settled(self, worker: str, epoch: int, now: float) -> None:
        """Note that a push that waited waits no more: from now on the next one is awaited."""
        member = self._find(worker, epoch)
        if member is not None:
            member.pushed = max(member.pushed, now)

    def forgive(self, lag_s: float, now: float) -> None:
        """Take no account of some seconds in which nobody listened: the server itself slept.

        Who was heard since then gets nothing: no sign is later than now.
        """
        for member in self.members.values():
            member.seen = min(member.seen + lag_s, max(member.seen, now))
            member.pushed = min(member.pushed + lag_s, max(member.pushed, now))

    def expired(self, now: float, waiting: Collection[str] = ()) -> list[Expiry]:
        """Return whose session is to be ended.

        Args:
            now: The time.
            waiting: The workers who have a push that waits for others.
        """
        reasons: dict[str, str] = {}
        for worker, end, reason in self._ends(waiting):
            if end <= now:
                reasons.setdefault(worker, reason)
        return [Expiry(name, self.members[name].epoch, why) for name, why in reasons.items()]

    def next_end(self, waiting: Collection[str] = ()) -> float | None:
        """Return when the first session ends if nothing happens until then; None if none does."""
        return min((end for _, end, _ in self._ends(waiting)), default=None)

    def _ends(self, waiting: Collection[str]) -> Iterator[tuple[str, float, str]]:
        for worker, member in self.members.items():
            yield worker, member.seen + max(member.told_s, self.lease_s), SILENT
            if not member.sending and worker not in waiting:
                yield worker, member.pushed + self.patience_s, HUNG

    def _find(self, worker: str, epoch: int) -> Member | None:
        member = self.members.get(worker)
        return member if member is not None and member.epoch == epoch else None
