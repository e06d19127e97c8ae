"""A server in virtual time, and an account of what has to be true of its model.

The engine and the membership are the real ones, used as `sessions.py` and `pushes.py` of the server
use them. The parameters are a vector clock: a push of worker w adds 1 to element w, or its share of
a mean.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from stepwell_core.consistency import Async, Bounded, Buffered, Consistency, Quorum, Sync
from stepwell_core.definition import Definition
from stepwell_core.engine import Engine
from stepwell_core.errors import StepwellError, Unavailable
from stepwell_core.layout import Layout, Tensor
from stepwell_core.membership import Membership
from stepwell_core.optimizers import SGD
from stepwell_core.push import Push, Staged
from stepwell_core.session import Result

from tests.core.models import saved

NAMES = ("w0", "w1", "w2", "w3")
LAYOUT = Layout([Tensor("clock", (len(NAMES),), "float64")])

Answer = Callable[[Any], None]
Key = tuple[str, int, int]


class Time:
    """What happens when; what is due at once happens in the order in which it was planned."""

    def __init__(self) -> None:
        self.now = 0.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()

    def after(self, seconds: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._events, (self.now + seconds, next(self._order), action))

    @property
    def next(self) -> float:
        return self._events[0][0] if self._events else math.inf

    def go_on(self) -> None:
        self.now, _, action = heapq.heappop(self._events)
        action()


@dataclass
class Account:
    """What has to be true, by what was answered alone."""

    mode: Consistency
    clock: np.ndarray = field(default_factory=lambda: np.zeros(len(NAMES)))
    counted: Counter[float] = field(default_factory=Counter)
    gathered: list[tuple[int, float]] = field(default_factory=list)
    clocks: dict[str, int] = field(default_factory=dict)  # of the workers who are there
    told: Counter[str] = field(default_factory=Counter)

    def join(self, worker: str) -> None:
        self.clocks.pop(worker, None)
        self.clocks[worker] = min(self.clocks.values(), default=0)

    def leave(self, worker: str) -> None:
        del self.clocks[worker]

    def switch(self, mode: Consistency) -> None:
        self.mode = mode
        self.clocks = dict.fromkeys(self.clocks, 0)

    def commit(self, staged: Staged) -> None:
        contributed = []
        for push, result in staged.results:
            if result.outcome in ("applied", "buffered"):
                number = push.metrics["number"]
                self.counted[number] += 1
                assert self.counted[number] == 1, "a gradient counted twice"
                assert result.staleness <= self._most_stale, "a gradient came too late"
                contributed.append((NAMES.index(push.worker), self._factor(result.staleness)))
            if push.worker in self.clocks:
                self.clocks[push.worker] += 1
            self._check_bound(push.worker)
        if self.mode.gathers:
            self.gathered += contributed
            contributed = []
            if staged.scalars is not None:
                contributed, self.gathered = self.gathered, []
                if isinstance(self.mode, Buffered) and staged.results:
                    assert len(contributed) >= self.mode.size, "a step was made too soon"
        for index, factor in contributed:
            self.clock[index] += factor / len(contributed)

    @property
    def _most_stale(self) -> float:
        """How old a gradient may be that counts."""
        mode = self.mode
        if isinstance(mode, Async) and mode.on_stale == "reject":
            return math.inf if mode.max_staleness is None else mode.max_staleness
        return 0 if isinstance(mode, Sync | Quorum) else math.inf

    def _factor(self, staleness: int) -> float:
        mode = self.mode
        if mode.gathers:
            return 1 / math.sqrt(1 + staleness)
        if isinstance(mode, Async) and mode.on_stale == "scale":
            is_stale = mode.max_staleness is None or staleness > mode.max_staleness
            return 1 / max(1, staleness) if is_stale else 1.0
        return 1.0

    def _check_bound(self, worker: str) -> None:
        others = [clock for name, clock in self.clocks.items() if name != worker]
        if isinstance(self.mode, Bounded) and worker in self.clocks and others:
            ahead = self.clocks[worker] - min(others)
            assert ahead <= self.mode.bound, "a worker is too far ahead of the slowest"

    def tell(self, number: float, outcome: str) -> None:
        self.told[outcome] += 1
        assert (number in self.counted) is (outcome in ("applied", "buffered")), (
            "a worker was told what is not so"
        )

    def check(self, engine: Engine) -> None:
        apart = np.abs(engine.store.current["float64"] - self.clock).max()
        assert apart < 1e-9, "the parameters are not the clock of what was answered"
        count = engine.gathered().get("count", 0)
        assert count == len(self.gathered), "what was gathered is not there any more"


class Server:
    """One model, as `sessions.py` and `pushes.py` run it; no threads, no files."""

    def __init__(self, mode: Consistency, time: Time) -> None:
        definition = Definition("m", LAYOUT, SGD(1.0), consistency=mode)
        self.engine = Engine.create(definition, LAYOUT.new_arenas(0.0), "1" * 32)
        self.account = Account(mode)
        self.time = time
        self.disturbed = 0.0  # when something happened that others may wait for
        self.advances: list[float] = []
        self.is_idle = True  # nobody came yet
        self._waiters: dict[Key, list[Answer]] = {}
        self._turns: list[tuple[str, Callable[[], None]]] = []
        self._life = 0  # counts restarts
        self.membership = Membership(mode.lease_s, mode.patience)

    @property
    def mode(self) -> Consistency:
        return self.engine.definition.consistency

    @property
    def waiting_workers(self) -> set[str]:
        return {key[0] for key in self._waiters} | {worker for worker, _ in self._turns}

    # Sessions

    def open(self, worker: str, answer: Answer) -> None:
        session, previous = self.engine.open_session(worker)
        self.account.join(worker)
        self.disturb()
        self.is_idle = False
        self.forget()
        self.make_due()
        self.membership.joined(worker, session.epoch, self.time.now)
        answer((session.epoch, previous, self.mode.lease_s))

    def close(self, worker: str, epoch: int) -> None:
        try:
            self.engine.ledger.find(worker, epoch)
        except StepwellError:
            return
        staged = self.engine.close_session(worker, epoch)
        self.account.leave(worker)
        if self.mode.adds_on_arrival:
            self.disturb()
        if staged is not None:
            self.commit(staged)
        self.forget()
        self.make_due()
        self.membership.left(worker, epoch)

    def heartbeat(self, worker: str, epoch: int) -> None:
        self.membership.told(worker, epoch, self.time.now)

    @property
    def next_end(self) -> float:
        end = self.membership.next_end(self.waiting_workers)
        return math.inf if end is None else end

    def expire(self) -> None:
        self.membership.waits(self.waiting_workers, self.time.now)
        for expiry in self.membership.expired(self.time.now, self.waiting_workers):
            self.close(expiry.worker, expiry.epoch)

    def renew(self) -> None:
        self.membership.begin_anew(
            {s.worker: s.epoch for s in self.engine.ledger.sessions.values() if s.is_open},
            self.mode.lease_s,
            self.mode.patience,
            self.time.now,
        )
        self.disturb()

    def disturb(self) -> None:
        self.disturbed = self.time.now

    # Pushes

    def push(self, push: Push, transfer_s: float, is_cut: bool, answer: Answer) -> None:
        """A push begins to come, unless its worker is too far ahead."""
        worker, epoch, _ = push.key
        self.membership.seen(worker, epoch, self.time.now)
        try:
            session = self.engine.ledger.find(worker, epoch)
        except StepwellError as error:
            answer(error)
            return
        is_known = push.sequence <= session.last_sequence or push.key in self._waiters
        if self.mode.gates and not is_known and self.engine.policy.must_wait(worker):
            self._turns.append((worker, lambda: self._receive(push, transfer_s, is_cut, answer)))
        else:
            self._receive(push, transfer_s, is_cut, answer)

    def _receive(self, push: Push, transfer_s: float, is_cut: bool, answer: Answer) -> None:
        membership, who, life = self.membership, push.key[:2], self._life
        membership.sends(*who, self.time.now)

        def end() -> None:
            membership.sent(*who, self.time.now, whole=not is_cut)
            if not is_cut and life == self._life:
                self._admit(push, answer)

        self.time.after(transfer_s, end)

    def _admit(self, push: Push, answer: Answer) -> None:
        try:
            outcome = self.engine.stage(push)
        except StepwellError as error:
            answer(error)
            return
        if isinstance(outcome, Result):
            answer(outcome)
            return
        self._waiters.setdefault(push.key, []).append(answer)
        if isinstance(outcome, Staged):
            self.commit(outcome)
            self.make_due()
        elif outcome.is_added:
            for array in push.gradient.arenas.values():
                array.fill(np.nan)  # it is free: somebody else writes into it

    def commit(self, staged: Staged) -> None:
        counters = self.engine.counters
        results = self.engine.commit(staged)
        self.account.commit(staged)
        gathers = any(result.outcome == "buffered" for _, result in results)
        if gathers or self.engine.counters.version > counters.version:
            self.advances.append(self.time.now)
        for push, result in results:
            self.membership.settled(*push.key[:2], self.time.now)
            for answer in self._waiters.pop(push.key, []):
                answer(result)
        self.account.check(self.engine)

    def make_due(self) -> None:
        while self.engine.policy.waiting and (staged := self.engine.stage_due()) is not None:
            self.commit(staged)
        served = [turn for turn in self._turns if not self.engine.policy.must_wait(turn[0])]
        self._turns = [turn for turn in self._turns if turn not in served]
        for _, receive in served:
            receive()

    def forget(self) -> None:
        waiting = {push.key for push in self.engine.policy.waiting}
        for key in [key for key in self._waiters if key not in waiting]:
            for answer in self._waiters.pop(key):
                answer(Unavailable("it waits no more"))

    # The administrator

    def switch(self, mode: Consistency) -> None:
        """As `Rules.set_consistency` and `Pushes.readmit`."""
        staged = None if mode.gathers else self.engine.stage_gathered()
        if staged is not None:
            self.commit(staged)
        waited = self.engine.adopt_consistency(mode)
        self.account.switch(mode)
        for push in waited:
            outcome = self.engine.stage(push)
            if isinstance(outcome, Staged):
                self.commit(outcome)
        self.forget()
        self.make_due()
        self.renew()
        self.account.check(self.engine)

    def restart(self) -> None:
        """A stop and a start: connections are gone, and pushes that were waited for."""
        self.engine = Engine(saved(self.engine), self.engine.incarnation)
        self._life += 1
        self._waiters, self._turns = {}, []
        self.membership = Membership(self.mode.lease_s, self.mode.patience)
        self.renew()
        self.account.check(self.engine)

    @property
    def can_advance(self) -> bool:
        """Whether as many workers were there as the mode waits for at first, or always."""
        mode, ledger = self.mode, self.engine.ledger
        if isinstance(mode, Sync) and isinstance(mode.workers, int):
            there = len(ledger.open_workers) if mode.on_leave == "wait" else ledger.most_open
            return there >= mode.workers
        return not isinstance(mode, Quorum) or ledger.most_open >= mode.quorum
