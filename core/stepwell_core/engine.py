"""The only writer of a model: push -> admit -> aggregate -> step -> version + 1.

Every change has two halves. `stage` takes all decisions and changes nothing that lasts; `commit`
cannot fail. Whoever calls them may put a journal record, and its fsync, between the two:

    staged = engine.stage(push)
    if isinstance(staged, Staged):
        ...                         # the journal's place
        answers = engine.commit(staged)

Several pushes may be staged, one after the other, and then be committed in that order, so that one
fsync serves them all: each is decided on what the model will be after those before it. `can_stage`
says when that is not possible. Nothing else of the engine is called meanwhile.

A change that is staged and never committed, because its record could not be written, is withdrawn
(`withdraw`) and leaves the model as it was; the pushes in it no longer wait, and are admitted when
they come again. A push that waits is pending, in memory alone: staging may add its gradient to a
running sum.

`record.py` says what is written down of a change, `replay.py` makes it again by the same `commit`.

The engine is pure: no files, no clock, no random numbers. Not thread-safe: one lane a model calls
it. `store.hold()` and `store.release()` alone may be called from other threads.
"""

from __future__ import annotations

from collections.abc import Sequence

from stepwell_core import admission, decision
from stepwell_core.buffer import Buffer, discounted
from stepwell_core.consistency import Drop, Gather, Wait
from stepwell_core.errors import InvalidInput, JournalInvalid, PushInFlight
from stepwell_core.held_model import HeldModel
from stepwell_core.ledger import check_repetition
from stepwell_core.pipeline import Gradient, StepScalars
from stepwell_core.push import Push, Staged, Waiting
from stepwell_core.session import Result, Session
from stepwell_core.wire import Kind


class Engine(HeldModel):
    """One model: what it holds, and the sessions and pushes that change it; see `HeldModel`."""

    # Sessions

    def open_session(self, worker: str) -> tuple[Session, Session | None]:
        """Open a session; see `Ledger.open`.

        A waiting push of the worker's earlier session is forgotten, and with it all that it was
        added to.
        """
        assert not self._staged, "what was staged is committed or withdrawn before"
        session, previous = self.ledger.open(worker)
        self.policy.join(worker, session.clock)
        if not self.policy.waiting:
            self._reduction.clear()
        return session, previous

    def close_session(self, worker: str, epoch: int) -> Staged | None:
        """Close a session.

        Returns:
            The first step that need not wait for the worker any more, to be committed, if there is
            one; see `stage_due`.

        Raises:
            Fenced, UnknownSession, SessionExpired: As `Ledger.find`.
        """
        assert not self._staged, "what was staged is committed or withdrawn before"
        self.ledger.find(worker, epoch)
        self.ledger.close(worker, epoch)
        self.policy.leave(worker)
        staged = self.stage_due()
        if staged is None and not self.policy.waiting:
            self._reduction.clear()
        return staged

    def stage_due(self) -> Staged | None:
        """Return a step that pushes which wait can make now, to be committed, if there is one.

        To be called until there is none after each change, if any push waits. If it fails, for
        lack of memory, none waits any more.
        """
        assert not self._staged, "what was staged is committed or withdrawn before"
        try:
            step = self.policy.due()
            return None if step is None else self._stage_step(step.pushes, step.scale)
        except BaseException:
            self._forget_waiting()  # a sum may be half made
            raise

    # Pushes

    def can_stage(self, push: Push) -> bool:
        """Return whether a push may be staged before what is staged was committed.

        Not if it, or what is staged, depends on more than the counters: an earlier push of the same
        worker, a barrier, a sum that the next gradient would be added to.
        """
        if not self._staged:
            return True
        if self._reduction.adds_on_arrival or self.policy.waiting or self._buffer is not None:
            return False
        results = [results for staged in self._staged for results in staged.results]
        return len(results) == len(self._staged) and all(
            other.worker != push.worker for other, _ in results
        )

    def stage(self, push: Push) -> Staged | Waiting | Result:
        """Decide what becomes of a push.

        Returns:
            `Staged`: to be committed. `Waiting`: the push waits for others. `Result`: it was
                settled before.

        Raises:
            StaleIncarnation, Fenced, UnknownSession, SessionExpired, SequenceGap, PushInFlight: The
                session may not make this push.
            PayloadMismatch: It was made before, with other bytes.
            InvalidInput: The push breaks a rule of the model; its sequence number is not used up.
            MemoryError: There is none for a sum; nothing changed, but no push waits any more.
        """
        assert self.can_stage(push), "what was staged is committed or withdrawn before"
        self.check_incarnation(push.worker, push.epoch, push.incarnation)
        if self._is_waiting(push):
            return Waiting(is_added=self._reduction.adds_on_arrival)
        if self.ledger.check(*push.key) is not None:
            return self._repeated(push)
        admission.check_push(push, self.definition, self._ahead.parameters_version)
        admission.check_kind(push, self._kinds_in_step())
        push = admission.with_loss_scale(push, self.definition, self._ahead)
        if not admission.is_acceptable(push, self.definition, self._ahead):
            return self.keep(decision.drop(push, "skipped_nonfinite", self._ahead))
        kept = self._reduction.kept(push)
        offered = self.policy.offer(kept, self._ahead.parameters_version)
        if isinstance(offered, Drop):
            return self.keep(decision.drop(push, offered.outcome, self._ahead))
        if isinstance(offered, Gather):
            return self._stage_gathered(push, offered)
        try:
            self._reduction.add(push)
            if isinstance(offered, Wait):
                return Waiting(is_added=self._reduction.adds_on_arrival)
            return self._stage_step(offered.pushes, offered.scale)
        except BaseException:
            self._forget_waiting()  # a sum may be half made
            raise

    def _kinds_in_step(self) -> list[Kind]:
        """Return the kinds of what the next push would make a step with."""
        if self._buffer is not None:
            return [self._buffer.kind] if self._buffer.count else []
        if self.definition.consistency.most_in_step == 1:
            return []
        return [push.kind for push in self.policy.waiting]

    def _repeated(self, push: Push) -> Result:
        """Return the stored result of a push that was settled, if this is the same one."""
        settled = self.ledger.check(*push.key, push.fingerprint)
        assert settled is not None, "the push was settled"
        return settled

    def keep(self, staged: Staged) -> Staged:
        """Take a change as staged: one decided here, or in an earlier life of the model."""
        self._staged.append(staged)
        return staged

    def withdraw(self, staged: Staged) -> None:
        """Take back what was staged last; the pushes in it may be staged again."""
        last = self._staged.pop()
        assert last is staged, "changes are withdrawn from the last one back"

    def commit(self, staged: Staged) -> tuple[tuple[Push, Result], ...]:
        """Make the first change that is staged; cannot fail.

        Returns:
            Its results, which may be answered now.
        """
        first = self._staged.pop(0)
        assert first is staged, "changes are committed in the order in which they were staged"
        gradient = staged.gradient
        if gradient is not None and staged.weight is not None:
            self._gathered.add(gradient, staged.weight)
        if staged.takes_buffer:
            gradient = self._gathered.take()
        if gradient is not None and staged.scalars is not None:
            self._write(gradient, staged.scalars, staged.counters.version)
        self.counters = staged.counters
        for push, result in staged.results:
            self.ledger.record(*push.key, result, push.fingerprint)
            self.policy.settled(push.worker, result.outcome)
        return staged.results

    @property
    def _gathered(self) -> Buffer:
        if self._buffer is None:
            raise JournalInvalid("A gradient is added to a buffer that the model does not have")
        return self._buffer

    def _write(self, gradient: Gradient, scalars: StepScalars, version: int) -> None:
        if not scalars.changes_parameters:
            current = self.store.current
            self.pipeline.apply(current, current, self.store.slots, gradient, scalars)
            return
        claim = self.store.claim()
        self.pipeline.apply(claim.source, claim.target, self.store.slots, gradient, scalars)
        self.store.publish(version)

    def _is_waiting(self, push: Push) -> bool:
        """Return whether this very push waits; raise if an earlier one of its session does."""
        self.ledger.find(push.worker, push.epoch)
        for other in self.policy.waiting:
            if other.worker == push.worker and push.sequence > other.sequence:
                raise PushInFlight(
                    f"Push {other.sequence} of worker {push.worker!r} is still waiting. Received: "
                    f"{push.sequence}"
                )
            if other.key == push.key:
                check_repetition(*push.key[::2], other.fingerprint, push.fingerprint)
                return True
        return False

    def check_session(self, worker: str, epoch: int, incarnation: str) -> None:
        """Refuse a push early, before its gradient is received.

        May be called from any thread: `stage` asks again, in the lane.

        Raises:
            StaleIncarnation, Fenced, UnknownSession, SessionExpired: The session may not push.
        """
        self.check_incarnation(worker, epoch, incarnation)
        self.ledger.find(worker, epoch)

    def check_incarnation(self, worker: str, epoch: int, incarnation: str) -> None:
        """Refuse what belongs to another history; may be called from any thread.

        Raises:
            StaleIncarnation: It does; it says which the model's is.
        """
        if incarnation != self.incarnation:
            raise admission.stale(
                self.incarnation, self.counters, self.ledger.sessions.get(worker), epoch
            )

    def _stage_gathered(self, push: Push, decided: Gather) -> Staged:
        before = self._ahead
        if before.loss_scale is not None and not push.gradient.is_finite():
            return self.keep(decision.skipped_step((push,), before))
        gradient = discounted(push.gradient, decided.discount)
        if not decided.completes:
            return self.keep(decision.gathered(push, gradient, before))
        return self._stage_gathered_step(push, gradient, push.kind)

    def _stage_gathered_step(
        self, push: Push | None, gradient: Gradient | None, kind: Kind
    ) -> Staged:
        divisor = self._gathered.divisor_with(gradient, None if push is None else push.weight)
        return self.keep(
            decision.gathered_step(
                push,
                gradient,
                divisor,
                kind,
                self._ahead,
                self.definition,
                self.pipeline,
                assigns=self._gathered.assigns_with(gradient),
            )
        )

    def _stage_step(self, pushes: Sequence[Push], scale: float = 1.0) -> Staged:
        before = self._ahead
        if before.loss_scale is not None and not self._reduction.is_finite(pushes):
            self._reduction.clear()
            return self.keep(decision.skipped_step(pushes, before))
        gradient = self._reduction.reduce(pushes)
        return self.keep(
            decision.step(pushes, gradient, before, self.definition, self.pipeline, scale)
        )

    def stage_gathered(self) -> Staged | None:
        """Return the step of what was gathered, to be committed; None if nothing was.

        Raises:
            InvalidInput: The optimizer takes values that come with each push, and none comes.
        """
        assert not self._staged, "what was staged is committed or withdrawn before"
        if self._buffer is None or not self._buffer.count:
            return None
        declared = self.definition.declared_per_push
        if declared:
            raise InvalidInput(
                f"{self._buffer.count} pushes wait in the buffer for their step, which takes "
                f"{', '.join(declared)[:400]} from the last of them. Change the mode right after a "
                "step"
            )
        return self._stage_gathered_step(None, None, self._buffer.kind)
