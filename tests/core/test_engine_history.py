"""Exactly once, under anything that can happen to pushes: parameters that are a vector clock.

Worker w pushes `-onehot(w)` to SGD with learning rate 1: element w of the parameters is then the
number of its pushes that were applied, in every tensor.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from stepwell_core.consistency import Async, Bounded, Buffered, Consistency, Quorum, Sync
from stepwell_core.definition import Definition
from stepwell_core.engine import Engine
from stepwell_core.errors import (
    Fenced,
    InvalidInput,
    PayloadMismatch,
    PushInFlight,
    SequenceGap,
    SessionExpired,
    StaleIncarnation,
    StepwellError,
    UnknownSession,
    VersionsExhausted,
)
from stepwell_core.layout import Layout, Tensor
from stepwell_core.ledger import Ledger
from stepwell_core.optimizers import SGD
from stepwell_core.pipeline import Gradient
from stepwell_core.push import Push, Staged, Waiting
from stepwell_core.session import Result, Session
from stepwell_core.state import Counters, State
from stepwell_core.store import Version

from tests.core.journaled import Journaled, lasting
from tests.core.models import copied, image, through_json

T = TypeVar("T")
WORKERS = ("w0", "w1", "w2")
LAYOUT = Layout([Tensor("one", (3,), "float32"), Tensor("two", (3,), "float64")])


def tick(index: int, value: float = -1.0) -> Gradient:
    """Return the gradient that moves one element of the clock."""
    arenas = LAYOUT.new_arenas(0.0)
    for array in arenas.values():
        array[index] = value
    return Gradient(LAYOUT, arenas)


def pick(data: st.DataObject, items: list[T]) -> T:
    """Draw one by its number: Hypothesis would compare the items themselves by their `repr`."""
    return items[data.draw(st.integers(0, len(items) - 1))]


TICKS = {worker: tick(index) for index, worker in enumerate(WORKERS)}


@dataclass
class History:
    """What has happened since the last cut; a restore goes back to an older one."""

    clock: dict[str, float] = field(default_factory=lambda: dict.fromkeys(WORKERS, 0.0))
    steps: int = 0
    gathered: list[tuple[str, float]] = field(default_factory=list)
    answered: dict[tuple[str, int, int], Result] = field(default_factory=dict)

    def copy(self) -> History:
        return History(dict(self.clock), self.steps, list(self.gathered), dict(self.answered))


class HistoryMachine(RuleBasedStateMachine):
    """Workers, a network that repeats, delays and loses, an administrator, and readers."""

    consistency: Consistency = Async()
    others: Sequence[Consistency] = ()

    @initialize()
    def begin(self) -> None:
        definition = Definition("m", LAYOUT, SGD(1.0), consistency=self.consistency)
        self.incarnations = iter(f"{number:032x}" for number in range(1000))
        self.engine = Engine.create(definition, LAYOUT.new_arenas(0.0), next(self.incarnations))
        self.journal = Journaled(self.engine)
        self.history = History()
        self.sessions: dict[str, Session] = {}
        self.due: dict[str, int] = {}
        self.network: list[Push] = []
        self.saves: list[tuple[State, History]] = []
        self.readers: list[tuple[Version, dict[str, bytes]]] = []
        self.epochs: set[int] = set()
        self.versions: dict[int, bytes] = {}
        self.last_version = 0
        for worker in WORKERS:
            self.open_session(worker)

    # What a step does to the clock

    def factor(self, staleness: int) -> float:
        """Return what a gradient counts, beside its share of a mean."""
        mode = self.engine.definition.consistency
        if isinstance(mode, Buffered):
            return 1 / math.sqrt(1 + staleness)
        if isinstance(mode, Async) and mode.on_stale == "scale" and mode.max_staleness is not None:
            return 1 / staleness if staleness > mode.max_staleness else 1.0
        return 1.0

    def commit(self, staged: Staged) -> None:
        """Commit, and note what that has to have done."""
        gathers = self.engine.definition.consistency.gathers
        results = self.engine.commit(staged)
        counted = [
            (push.worker, self.factor(result.staleness))
            for push, result in results
            if result.outcome in ("applied", "buffered")
        ]
        if gathers:
            self.history.gathered += counted
            counted = []
            if staged.scalars is not None:
                counted, self.history.gathered = self.history.gathered, []
        for worker, factor in counted:
            self.history.clock[worker] += factor / len(counted)
        self.history.steps += staged.scalars is not None
        for push, result in results:
            assert push.key not in self.history.answered, "a push was settled twice"
            self.history.answered[push.key] = result

    def make_due(self) -> None:
        """Make the steps that need not wait any more, as a server does after each change."""
        while (staged := self.engine.stage_due()) is not None:
            self.commit(staged)
        self.follow()

    def send(self, push: Push) -> StepwellError | Result | Waiting | Staged:
        arenas = copied(push.gradient.arenas)
        try:
            outcome = self.engine.stage(
                replace(push, gradient=replace(push.gradient, arenas=arenas))
            )
        except StepwellError as error:
            return error
        if outcome == Waiting(is_added=True):  # the buffer is free: somebody else writes into it
            for array in arenas.values():
                array.fill(np.nan)
        if isinstance(outcome, Staged):
            self.commit(outcome)
        return outcome

    def expected_error(self, push: Push) -> type[StepwellError] | None:
        """Return what must become of a push, by what this test knows alone."""
        if push.incarnation != self.engine.incarnation:
            return StaleIncarnation
        mine = self.sessions.get(push.worker)
        if mine is None or push.epoch > mine.epoch:
            return UnknownSession
        if push.epoch < mine.epoch:
            return Fenced
        if not mine.is_open:
            return SessionExpired
        if push.sequence > self.due[push.worker]:
            return PushInFlight if self.waits(push.worker) else SequenceGap
        needs_version = self.engine.definition.consistency.needs_version
        if push.sequence == self.due[push.worker] and needs_version and push.version is None:
            return InvalidInput
        return None

    def waits(self, worker: str) -> bool:
        return any(push.worker == worker for push in self.engine.policy.waiting)

    def deliver(self, push: Push) -> None:
        expected = self.expected_error(push)
        stored = self.history.answered.get(push.key)
        waited = any(other.key == push.key for other in self.engine.policy.waiting)
        outcome = self.send(push)
        if expected is not None:
            assert type(outcome) is expected
        elif stored is not None:
            assert isinstance(outcome, Result)
            assert outcome.duplicate
            assert outcome.outcome in (stored.outcome, "settled_before")
        elif waited:
            assert isinstance(outcome, Waiting)
        else:
            assert isinstance(outcome, Waiting | Staged)
        self.make_due()

    def follow(self) -> None:
        """Read from the ledger what is due next; what it says is checked against the history."""
        for worker, session in self.engine.ledger.sessions.items():
            self.sessions[worker] = session
            self.due[worker] = session.last_sequence + 1
            own = [key for key in self.history.answered if key[:2] == (worker, session.epoch)]
            assert len(own) == session.last_sequence + 1

    # Workers

    @rule(worker=st.sampled_from(WORKERS))
    def open_one(self, worker: str) -> None:
        self.open_session(worker)

    def open_session(self, worker: str) -> None:
        session, _ = self.engine.open_session(worker)
        assert session.epoch not in self.epochs
        self.epochs.add(session.epoch)
        self.make_due()

    @rule(worker=st.sampled_from(WORKERS))
    def close_one(self, worker: str) -> None:
        self.close_session(worker)

    def close_session(self, worker: str) -> None:
        session = self.sessions.get(worker)
        if session is None or not session.is_open:
            return
        staged = self.engine.close_session(worker, session.epoch)
        if staged is not None:
            self.commit(staged)
        self.make_due()

    @precondition(lambda self: self.engine.policy.waiting)
    @rule(data=st.data(), opens_again=st.booleans())
    def leave_while_waiting(self, data: st.DataObject, opens_again: bool) -> None:
        worker = pick(data, list(self.engine.policy.waiting)).worker
        self.open_session(worker) if opens_again else self.close_session(worker)

    @rule(worker=st.sampled_from(WORKERS), lag=st.integers(0, 1), knows=st.booleans())
    def push_one(self, worker: str, lag: int, knows: bool) -> None:
        if worker in self.sessions:
            self.push(worker, lag, knows)

    def push(self, worker: str, lag: int, knows: bool) -> None:
        session = self.sessions[worker]
        now = self.engine.counters.parameters_version
        push = Push(
            worker, session.epoch, self.due[worker], self.engine.incarnation, TICKS[worker],
            version=max(now - lag, 0) if knows else None,
        )  # fmt: skip
        self.network.append(push)
        self.deliver(push)

    @rule(order=st.permutations(WORKERS))
    def push_in_turn(self, order: list[str]) -> None:
        """One push of each worker that is there, so that barriers are passed often."""
        for worker in order:
            if worker in self.sessions and self.sessions[worker].is_open:
                self.push(worker, lag=0, knows=True)

    # The network

    @precondition(lambda self: self.network)
    @rule(data=st.data())
    def deliver_again(self, data: st.DataObject) -> None:
        """A retry after a lost answer, a duplicate, or a push that was delayed for long."""
        self.deliver(pick(data, self.network))

    @rule(worker=st.sampled_from(WORKERS), skip=st.integers(1, 3))
    def deliver_too_early(self, worker: str, skip: int) -> None:
        session = self.sessions.get(worker)
        if session is not None:
            key = (worker, session.epoch, self.due[worker] + skip)
            self.deliver(Push(*key, self.engine.incarnation, TICKS[worker]))

    @precondition(lambda self: self.network)
    @rule(data=st.data())
    def stage_and_lose(self, data: st.DataObject) -> None:
        """The journal's disk is full: what was staged is never committed."""
        push = pick(data, self.network)
        before = self.engine.counters, self.engine.ledger.to_json()
        with contextlib.suppress(StepwellError):
            outcome = self.engine.stage(push)
            if isinstance(outcome, Staged):
                self.engine.withdraw(outcome)
        assert (self.engine.counters, self.engine.ledger.to_json()) == before

    # The administrator

    @rule()
    def save(self) -> None:
        try:
            buffers = {name: LAYOUT.new_arenas(None) for name in self.engine.store.slots}
            snapshot = self.engine.snapshot(buffers)
        except VersionsExhausted:
            return
        state = State(
            snapshot.definition,
            Counters.from_json(through_json(snapshot.counters.to_json())),
            Ledger.from_json(through_json(snapshot.ledger.to_json())),
            copied(snapshot.parameters.arenas),
            snapshot.slots,
            through_json(snapshot.gathered),
        )
        self.engine.store.release(snapshot.parameters)
        self.saves.append((state, self.history.copy()))

    @precondition(lambda self: self.saves)
    @rule(data=st.data())
    def restore(self, data: st.DataObject) -> None:
        state, history = pick(data, self.saves)
        steps = self.engine.counters.version
        slots = {name: copied(arenas) for name, arenas in state.slots.items()}
        self.engine.restore(replace(state, slots=slots), next(self.incarnations))  # owns the slots
        self.journal.save()  # a restore is no record: a checkpoint of what comes after is written
        assert self.engine.counters.version > steps
        self.history = history.copy()
        self.sessions, self.due = {}, {}
        self.follow()

    @rule()
    def restart(self) -> None:
        """A clean stop and a start: the same incarnation, nothing lost but what waits."""
        self.readers.clear()
        before = len(self.saves)
        self.save()
        if len(self.saves) > before:
            state, _ = self.saves.pop()
            self.engine = Engine(state, self.engine.incarnation)
            self.journal = Journaled(self.engine)
            self.follow()

    @rule()
    def crash(self) -> None:
        """What a checkpoint and the records since then make is what is there, but what waits."""
        recovered = self.journal.recovered()
        assert lasting(recovered) == lasting(self.engine)
        self.journal.save()

    @precondition(lambda self: self.network)
    @rule(data=st.data())
    def other_bytes(self, data: st.DataObject) -> None:
        """A number that was used, with another gradient: refused, and nothing changes."""
        push = pick(data, self.network)
        if self.expected_error(push) is None and push.key in self.history.answered:
            stored = self.engine.ledger.sessions[push.worker].fingerprints
            before = image(self.engine)
            if push.sequence in stored:
                with pytest.raises(PayloadMismatch):
                    self.engine.stage(replace(push, gradient=tick(len(WORKERS) - 1, 7.0)))
            assert image(self.engine) == before

    @precondition(lambda self: self.others)
    @rule(data=st.data())
    def switch(self, data: st.DataObject) -> None:
        """Another mode: what was gathered makes a step, what waits is decided on anew."""
        mode = pick(data, list(self.others))
        staged = None if mode.gathers else self.engine.stage_gathered()
        if staged is not None:
            self.commit(staged)
        is_added = self.engine.definition.consistency.adds_on_arrival
        waited = [push.key for push in self.engine.policy.waiting]
        pushes = self.journal.switch(mode)
        assert [push.key for push in pushes] == ([] if is_added else waited)
        for push in pushes:
            self.deliver(push)
        self.make_due()

    @rule(order=st.permutations(WORKERS), lost=st.integers(0, 3))
    def push_as_a_group(self, order: list[str], lost: int) -> None:
        """Several are staged before the first is committed; the last may not fit on the disk."""
        staged = []
        for worker in order:
            session = self.sessions.get(worker)
            if session is None or not session.is_open:
                continue
            key = (worker, session.epoch, self.due[worker])
            now = self.engine.counters.parameters_version
            push = Push(*key, self.engine.incarnation, TICKS[worker], version=now)
            if not self.engine.can_stage(push):
                break
            outcome = self.engine.stage(push)
            if not isinstance(outcome, Staged):
                break
            staged.append(outcome)
        for change in reversed(staged[max(len(staged) - lost, 0) :]):
            self.engine.withdraw(change)
        for change in staged[: max(len(staged) - lost, 0)]:
            self.commit(change)
        self.make_due()

    # Readers

    @rule()
    def hold(self) -> None:
        try:
            version = self.engine.store.hold()
        except VersionsExhausted:
            return
        assert version is not None
        held = {dtype: array.tobytes() for dtype, array in version.arenas.items()}
        self.readers.append((version, held))

    @precondition(lambda self: self.readers)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        reader = pick(data, self.readers)
        self.readers.remove(reader)
        self.engine.store.release(reader[0])

    # What always holds

    @invariant()
    def the_parameters_are_the_clock_of_the_pushes_that_were_applied(self) -> None:
        expected = np.array([self.history.clock[worker] for worker in WORKERS])
        for array in self.engine.store.current.values():
            np.testing.assert_allclose(array, expected, rtol=0, atol=1e-4)

    @invariant()
    def the_clock_sums_up_to_the_number_of_steps(self) -> None:
        assert self.engine.counters.iterations == self.history.steps
        for array in self.engine.store.current.values():
            total = float(array.sum())
            assert abs(total - sum(self.history.clock.values())) < 1e-3
            assert total < self.history.steps + 1e-3  # a stale step may count less

    @invariant()
    def what_was_gathered_is_there(self) -> None:
        assert self.engine.gathered().get("count", 0) == len(self.history.gathered)

    @invariant()
    def nobody_is_too_far_ahead(self) -> None:
        mode, clocks = self.engine.definition.consistency, self.engine.ledger.clocks
        if isinstance(mode, Bounded) and clocks:
            ahead = [
                clock - min(others)
                for worker, clock in clocks.items()
                if (others := [c for name, c in clocks.items() if name != worker])
            ]
            assert max(ahead, default=0) <= mode.bound

    @invariant()
    def readers_see_what_they_saw(self) -> None:
        for version, held in self.readers:
            assert {dtype: array.tobytes() for dtype, array in version.arenas.items()} == held

    @invariant()
    def a_version_never_repeats_for_other_bytes(self) -> None:
        number = self.engine.store.number
        now = b"".join(array.tobytes() for array in self.engine.store.current.values())
        assert self.versions.setdefault(number, now) == now
        assert self.engine.counters.version >= self.last_version
        self.last_version = self.engine.counters.version

    @invariant()
    def what_waits_is_not_settled_and_of_an_open_session(self) -> None:
        keys = [push.key for push in self.engine.policy.waiting]
        assert len(set(keys)) == len(keys)
        assert not set(keys) & self.history.answered.keys()
        for worker, epoch, _ in keys:
            assert self.sessions[worker].is_open
            assert self.sessions[worker].epoch == epoch


MODES = [
    Async(),
    Async(max_staleness=0, on_stale="reject"),
    Async(max_staleness=0, on_stale="scale"),
    Sync(1),
    Sync(2),
    Sync(3),
    Sync("all"),
    Sync(2, reduction="arrival"),
    Sync(3, reduction="arrival"),
    Quorum(workers=3, quorum=2),
    Buffered(3),
    Bounded(1),
]
SWITCHED = [Async(), Sync(2), Sync(2, reduction="arrival"), Buffered(2), Buffered(3), Bounded(1)]


def run(consistency: Consistency, examples: int, others: Sequence[Consistency] = ()) -> None:
    """Run the machine from a mode on."""
    attributes = {"consistency": consistency, "others": others}
    machine = type("Machine", (HistoryMachine,), attributes)
    brief = settings(max_examples=examples, stateful_step_count=50)
    run_state_machine_as_test(machine, settings=brief)


@pytest.mark.parametrize("consistency", MODES, ids=str)
def test_every_push_has_its_effect_once_or_is_refused(consistency):
    """Sum of the clock == steps, and each worker's element counts exactly its applied pushes."""
    run(consistency, 20)


@pytest.mark.parametrize("consistency", SWITCHED[2:4], ids=str)
def test_so_it_has_when_the_mode_changes_in_between(consistency):
    """From any mode to any other, and back; a crash finds the same bytes, the buffer's too."""
    run(consistency, 40, SWITCHED)
