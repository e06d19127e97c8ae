"""The only writer of a model: push -> admit -> aggregate -> step -> version + 1.

Every change has two halves. `stage` takes all decisions and changes nothing that lasts; `commit`
cannot fail. Whoever calls them may put a journal record, and its fsync, between the two:

    staged = engine.stage(push)
    if isinstance(staged, Staged):
        ...                         # the journal's place
        answers = engine.commit(staged)

Nothing else of the engine is called between the two, or the decision is not right any more. A
change that is staged and never committed, because its record could not be written, leaves the model
as it was; the pushes in it no longer wait, and are admitted when they come again. A push that waits
is pending, in memory alone: staging may add its gradient to a running sum.

The engine is pure: no files, no clock, no random numbers. Not thread-safe: one lane a model calls
it. `store.hold()` and `store.release()` alone may be called from other threads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from stepwell_core import decision
from stepwell_core.consistency import Drop, Policy, Wait
from stepwell_core.definition import Definition
from stepwell_core.errors import (
    CheckpointInvalid,
    InvalidInput,
    LayoutMismatch,
    NonFiniteGradient,
    NothingToFinalize,
    PushInFlight,
    StaleIncarnation,
)
from stepwell_core.hyperparameters import with_hyperparameters
from stepwell_core.layout import Arenas, Layout
from stepwell_core.ledger import Ledger, Result, Session
from stepwell_core.loss_scale import LossScale, LossScaleOptimizer
from stepwell_core.pipeline import AVERAGE, Gradient, Pipeline, StepScalars
from stepwell_core.push import Push, Staged, Waiting, check_push
from stepwell_core.reduction import reduction_of
from stepwell_core.state import Counters, Snapshot, State, check_state, ledger_of
from stepwell_core.store import Store


class Engine:
    """One model: its arrays, bookkeeping and rules.

    Args:
        state: What it begins with.
        incarnation: Names the history of this model from now on; 128 random bits, in hexadecimal.

    Raises:
        CheckpointInvalid: The state is not whole: see `restore`.
    """

    def __init__(self, state: State, incarnation: str) -> None:
        self._adopt(state, incarnation)
        self.store = Store(
            self.definition.layout, state.parameters, state.counters.parameters_version, state.slots
        )

    @classmethod
    def create(cls, definition: Definition, parameters: Arenas, incarnation: str) -> Engine:
        """Return the engine of a new model; it owns `parameters` from now on."""
        pipeline = Pipeline(definition.layout, definition.rule, definition.excluded)
        optimizer = definition.optimizer
        scaled = optimizer if isinstance(optimizer, LossScaleOptimizer) else None
        counters = Counters(loss_scale=LossScale.initial(scaled) if scaled else None)
        state = State(definition, counters, Ledger().to_json(), parameters, pipeline.new_slots())
        return cls(state, incarnation)

    def _adopt(self, state: State, incarnation: str) -> None:
        definition = state.definition
        pipeline = Pipeline(definition.layout, definition.rule, definition.excluded)
        check_state(state, pipeline)
        ledger = ledger_of(state)
        reduction = reduction_of(definition, pipeline)
        self.definition = definition  # from here on nothing fails
        self.pipeline = pipeline
        self.incarnation = incarnation
        self.counters = state.counters
        self.ledger = ledger
        self._reduction = reduction
        self._forget_waiting()

    def _forget_waiting(self) -> None:
        """Begin with a policy that knows who is there, and for which nothing waits."""
        consistency = self.definition.consistency
        self.policy: Policy[Push] = consistency.policy(
            self.ledger.open_workers, self.ledger.most_open
        )
        self._reduction.clear()

    @property
    def layout(self) -> Layout:
        """The model's tensors."""
        return self.definition.layout

    @property
    def loss_scale(self) -> float | None:
        """What workers are to multiply their loss by, with dynamic loss scaling."""
        scale = self.counters.loss_scale
        return None if scale is None else scale.scale

    # Sessions

    def open_session(self, worker: str) -> tuple[Session, Session | None]:
        """Open a session; see `Ledger.open`.

        A waiting push of the worker's earlier session is forgotten, and with it all that it was
        added to.
        """
        session, previous = self.ledger.open(worker)
        self.policy.join(worker)
        if not self.policy.waiting:
            self._reduction.clear()
        return session, previous

    def close_session(self, worker: str, epoch: int) -> Staged | None:
        """Close a session.

        Returns:
            The step that nobody else has to wait for now, to be committed, if there is one.

        Raises:
            Fenced, UnknownSession, SessionExpired: As `Ledger.find`.
        """
        self.ledger.find(worker, epoch)
        self.ledger.close(worker, epoch)
        step = self.policy.leave(worker)
        if step is not None:
            return self._stage_step(step.pushes)
        if not self.policy.waiting:
            self._reduction.clear()
        return None

    # Pushes

    def stage(self, push: Push) -> Staged | Waiting | Result:
        """Decide what becomes of a push.

        Returns:
            `Staged`: to be committed. `Waiting`: the push waits for others. `Result`: it was
                settled before.

        Raises:
            StaleIncarnation, Fenced, UnknownSession, SessionExpired, SequenceGap, PushInFlight: The
                session may not make this push.
            InvalidInput: The push breaks a rule of the model; its sequence number is not used up.
        """
        self._check_incarnation(push.worker, push.epoch, push.incarnation)
        if self._is_waiting(push):
            return Waiting(is_added=self._reduction.adds_on_arrival)
        settled = self.ledger.check(*push.key)
        if settled is not None:
            return settled
        check_push(push, self.definition.rule, self.counters.parameters_version)
        push = self._with_loss_scale(push)
        dropped = self._check_finite(push)
        if dropped is not None:
            return dropped
        kept = self._reduction.kept(push)
        offered = self.policy.offer(kept, self.counters.parameters_version)
        if isinstance(offered, Drop):
            return decision.drop(push, offered.outcome, self.counters)
        self._reduction.add(push)
        if isinstance(offered, Wait):
            return Waiting(is_added=self._reduction.adds_on_arrival)
        return self._stage_step(offered.pushes)

    def commit(self, staged: Staged) -> tuple[tuple[Push, Result], ...]:
        """Make a staged change; cannot fail. Returns its results, which may be answered now."""
        if staged.gradient is not None and staged.scalars is not None:
            self._write(staged.gradient, staged.scalars, staged.counters.version)
        self.counters = staged.counters
        for push, result in staged.results:
            self.ledger.record(*push.key, result)
        return staged.results

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
                return True
        return False

    def check_session(self, worker: str, epoch: int, incarnation: str) -> None:
        """Refuse a push early, before its gradient is received.

        May be called from any thread: `stage` asks again, in the lane.

        Raises:
            StaleIncarnation, Fenced, UnknownSession, SessionExpired: The session may not push.
        """
        self._check_incarnation(worker, epoch, incarnation)
        self.ledger.find(worker, epoch)

    def _check_incarnation(self, worker: str, epoch: int, incarnation: str) -> None:
        if incarnation == self.incarnation:
            return
        session = self.ledger.sessions.get(worker)
        if session is not None and session.epoch != epoch:
            session = None  # the numbers of another session say nothing about this one's pushes
        raise StaleIncarnation(
            "The model's history was cut since this session was opened: it was restored, "
            "overwritten or created anew, or the server crashed and came back from a checkpoint. "
            f"It is at version {self.counters.version} now. Open a new session (`worker.open()`), "
            "pull, and go on",
            incarnation=self.incarnation,
            version=self.counters.version,
            parameters_version=self.counters.parameters_version,
            last_sequence=None if session is None else session.last_sequence,
        )

    def _with_loss_scale(self, push: Push) -> Push:
        """Say in the gradient what it has still to be divided by."""
        scale = push.loss_scale
        if scale is None:
            fixed = self.definition.rule.loss_scale_factor
            scale = fixed if self.loss_scale is None else self.loss_scale
        return (
            push
            if scale is None
            else replace(push, gradient=replace(push.gradient, loss_scale=scale))
        )

    def _check_finite(self, push: Push) -> Staged | None:
        """Apply `on_nonfinite`; a dynamic loss scale looks at all gradients of a step later."""
        action = self.definition.on_nonfinite
        if self.counters.loss_scale is not None or action == "allow" or push.gradient.is_finite():
            return None
        if action == "reject":
            name = push.gradient.first_nonfinite()
            raise NonFiniteGradient(
                f"The gradient of {name!r} has NaN or infinity in it and this model rejects those; "
                "nothing changed. Lower the learning rate, clip, or create the model with "
                "on_nonfinite='drop'",
                tensor=name,
            )
        return decision.drop(push, "skipped_nonfinite", self.counters)

    def _stage_step(self, pushes: Sequence[Push]) -> Staged:
        if self.counters.loss_scale is not None and not self._reduction.is_finite(pushes):
            self._reduction.clear()
            return decision.skipped_step(pushes, self.counters)
        gradient = self._reduction.reduce(pushes)
        return decision.step(pushes, gradient, self.counters, self.definition, self.pipeline)

    # Everything else that changes a model

    def finalize(self) -> Counters:
        """Write the moving average into the parameters, as `finalize_variable_values` does.

        Pushes that wait are forgotten if the parameters change: they come too late now, and are
        told so when they are staged again.

        Raises:
            NothingToFinalize: There was no step yet, so the average is still all zeros.
        """
        after = replace(self.counters, version=self.counters.version + 1)
        if self.definition.rule.use_ema:
            if not self.counters.iterations:
                raise NothingToFinalize(
                    "The moving average is all zeros before the first push; push first"
                )
            self._replace_parameters(self.store.slots[AVERAGE], after.version)
            after = replace(after, parameters_version=after.version)
            self._forget_waiting()
        self.counters = after
        return after

    def overwrite(self, parameters: Arenas, incarnation: str) -> Counters:
        """Replace the parameters and leave slots and sessions; a new incarnation.

        Sessions of the old incarnation are told so at their next push. Pushes that wait are
        forgotten.

        Raises:
            LayoutMismatch: The arenas are not of this layout; nothing changed.
        """
        if not self.layout.fits(parameters):
            raise LayoutMismatch("The parameters are not of the model's layout; nothing changed.")
        version = self.counters.version + 1
        self._replace_parameters(parameters, version)
        self.counters = replace(self.counters, version=version, parameters_version=version)
        self.incarnation = incarnation
        self._forget_waiting()
        return self.counters

    def restore(self, state: State, incarnation: str) -> Counters:
        """Replace everything by what a checkpoint held; a new incarnation.

        The version goes on from the larger of the two, so that it never repeats for other bytes.

        Raises:
            CheckpointInvalid: The state is of another layout, or its slots, arrays, loss scale or
                ledger are not what its definition asks for; nothing changed.
        """
        if state.definition.layout != self.layout:
            raise CheckpointInvalid("The checkpoint has another layout than the model.")
        version = max(self.counters.version, state.counters.version) + 1
        last_epoch = self.ledger.last_epoch
        self._adopt(state, incarnation)
        self.store.slots = dict(state.slots)
        self._replace_parameters(state.parameters, version)
        self.counters = replace(self.counters, version=version, parameters_version=version)
        self.ledger.last_epoch = max(last_epoch, self.ledger.last_epoch)
        return self.counters

    def _replace_parameters(self, parameters: Arenas, version: int) -> None:
        claim = self.store.claim()
        for dtype, array in parameters.items():
            claim.target[dtype][...] = array
        self.store.publish(version)

    def prepare_hyperparameters(self, values: Mapping[str, Any]) -> tuple[Definition, Pipeline]:
        """Return what `adopt_hyperparameters` takes; changes nothing.

        Raises:
            InvalidArgument: See `with_hyperparameters`.
        """
        return with_hyperparameters(self.definition, self.pipeline, values)

    def adopt_hyperparameters(self, definition: Definition, pipeline: Pipeline) -> None:
        """Use other hyperparameters from the next step on; adds no version."""
        self.definition = definition
        self.pipeline = pipeline

    # Cuts

    def snapshot(self, buffers: dict[str, Arenas]) -> Snapshot:
        """Return a consistent cut; O(slots), at the speed of memory. No reader can prevent it.

        Args:
            buffers: Arenas for each slot, allocated and touched before; the snapshot owns them.
        """
        for name, arenas in self.store.slots.items():
            for dtype, array in arenas.items():
                np.copyto(buffers[name][dtype], array)
        version = self.store.hold(is_reserved=True)
        assert version is not None, "the writer itself takes the snapshot, so no step is under way"
        return Snapshot(
            definition=self.definition,
            incarnation=self.incarnation,
            counters=self.counters,
            ledger=self.ledger.to_json(),
            parameters=version,
            slots=buffers,
        )

    def slot(self, name: str) -> Arenas:
        """Return a copy of one slot.

        Raises:
            InvalidInput: The optimizer has no such slot.
        """
        if name not in self.store.slots:
            raise InvalidInput(
                f"The optimizer has the slots: {', '.join(self.store.slots) or 'none'}. Received: "
                f"{name[:80]!r}"
            )
        return {dtype: array.copy() for dtype, array in self.store.slots[name].items()}
