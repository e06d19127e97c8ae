"""What every consistency mode promises. A new one is a subclass with two attributes.

class TestMine(ConsistencyContract):
    examples = (Mine(...), ...)

    def full_house(self, mode): ...
"""

from __future__ import annotations

import dataclasses
import json
from abc import ABC, abstractmethod
from collections import Counter
from dataclasses import dataclass
from typing import ClassVar

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stepwell_core.consistency import (
    MODES,
    Consistency,
    Drop,
    Gather,
    Policy,
    Standing,
    Step,
    Wait,
    from_json,
)
from stepwell_core.errors import InvalidArgument

WORKERS = ("w2", "w10", "w-1", "w.1", "w")
"""Their bytewise order is not that of their numbers."""

DROPS = {"dropped_stale", "dropped_late"}

schedules = st.lists(
    st.tuples(
        st.sampled_from(["join", "leave", "push", "push", "push", "push_old", "push_null"]),
        st.sampled_from(WORKERS),
    ),
    max_size=60,
)
inherited = settings(suppress_health_check=[HealthCheck.differing_executors])


@dataclass(frozen=True, eq=False)
class Push:
    """A contribution that can be told from every other."""

    worker: str
    version: int | None


def bytewise(pushes: list[Push] | tuple[Push, ...]) -> list[Push]:
    """Return the pushes in the order in which they are to be reduced."""
    return sorted(pushes, key=lambda push: push.worker.encode())


class Floor:
    """Workers around a policy; it does what an engine does, and checks what each decision says."""

    def __init__(self, mode: Consistency, standing: Standing | None = None) -> None:
        self.mode = mode
        standing = standing or Standing()
        self.policy: Policy[Push] = mode.policy(standing)
        self.clocks = dict(standing.members)
        self.most_open = standing.most_open
        self.gathered: list[Push] = []
        self.gathered_before = standing.gathered
        self.parameters_version = 0
        self.waiting: dict[str, Push] = {}
        self.contributed: list[Push] = []
        self.dropped: list[Push] = []
        self.forgotten: list[Push] = []
        self.made: list[Push] = []

    @property
    def standing(self) -> Standing:
        """What a restart finds."""
        gathered = self.gathered_before + len(self.gathered)
        return Standing(dict(self.clocks), self.most_open, gathered)

    def run(self, schedule: list[tuple[str, str]]) -> None:
        for action, worker in schedule:
            if action == "join":
                self.join(worker)
            elif worker in self.clocks and action == "leave":
                self.leave(worker)
            elif worker in self.clocks and worker not in self.waiting:
                now = self.parameters_version
                self.push(worker, {"push_old": max(now - 1, 0), "push_null": None}.get(action, now))
            self.check()

    def join(self, worker: str) -> None:
        self.forget(worker)
        self.clocks.pop(worker, None)
        clock = self.clocks[worker] = min(self.clocks.values(), default=0)
        self.policy.join(worker, clock)
        self.most_open = max(self.most_open, len(self.clocks))
        self.make_due()

    def leave(self, worker: str) -> None:
        self.forget(worker)
        del self.clocks[worker]
        self.most_open = self.most_open if self.clocks else 0
        self.policy.leave(worker)
        self.make_due()

    def push(self, worker: str, version: int | None) -> Step[Push] | Gather | Wait | Drop:
        push = Push(worker, version)
        self.made.append(push)
        must_wait = self.policy.must_wait(worker)
        decision = self.policy.offer(push, self.parameters_version)
        if self.mode.gates:
            assert must_wait is isinstance(decision, Wait)
        match decision:
            case Drop(outcome):
                assert outcome in DROPS
                self.dropped.append(push)
                self.settle(push, outcome)
            case Gather(discount, completes):
                assert 0 < discount <= 1
                self.gathered.append(push)
                if completes:
                    self.make_gathered()
                else:
                    self.settle(push, "buffered")
            case Wait():
                self.waiting[worker] = push
            case Step(pushes, scale):
                assert 0 < scale <= 1
                assert push in pushes
                self.waiting[worker] = push
                self.make(decision)
        self.make_due()
        return decision

    def make(self, step: Step[Push]) -> None:
        assert step.pushes
        assert list(step.pushes) == bytewise(step.pushes)
        for push in step.pushes:
            assert self.waiting.pop(push.worker) is push
        self.contributed.extend(step.pushes)
        self.parameters_version += 1
        for push in step.pushes:
            self.settle(push, "applied")

    def make_gathered(self) -> None:
        pushes, self.gathered, self.gathered_before = self.gathered, [], 0
        self.contributed.extend(pushes)
        self.parameters_version += 1
        self.settle(pushes[-1], "applied")

    def settle(self, push: Push, outcome: str) -> None:
        self.clocks[push.worker] += 1
        self.policy.settled(push.worker, outcome)

    def make_due(self) -> None:
        while (step := self.policy.due()) is not None:
            self.make(step)

    def forget(self, worker: str) -> None:
        if worker not in self.waiting:
            return
        self.forgotten.append(self.waiting.pop(worker))
        if self.mode.adds_on_arrival:
            self.forgotten.extend(self.waiting.values())
            self.waiting.clear()

    def check(self) -> None:
        assert Counter(self.policy.waiting) == Counter(self.waiting.values())

    def everyone_pushes(self) -> int:
        """Let each member push that is not waiting; return how many pushes had an effect."""
        before = len(self.contributed) + len(self.gathered)
        for worker in sorted(self.clocks):
            if worker not in self.waiting:
                self.push(worker, self.parameters_version)
        return len(self.contributed) + len(self.gathered) - before


class ConsistencyContract(ABC):
    """Inherit it and say which values to try."""

    examples: ClassVar[tuple[Consistency, ...]]

    @abstractmethod
    def full_house(self, mode: Consistency) -> int:
        """Return how many open workers are enough for a step, if each of them pushes."""

    def draw(self, data: st.DataObject) -> Consistency:
        return data.draw(st.sampled_from(self.examples))

    @inherited
    @given(data=st.data(), schedule=schedules)
    def test_no_contribution_is_lost_or_made_twice(self, data, schedule):
        """Each push ends in one step, is dropped, is forgotten with its session, or still waits."""
        floor = Floor(self.draw(data))

        floor.run(schedule)

        ends = [*floor.contributed, *floor.dropped, *floor.forgotten, *floor.waiting.values()]
        ends += floor.gathered
        assert len(set(ends)) == len(ends)
        assert set(ends) == set(floor.made)

    @inherited
    @given(data=st.data(), schedule=schedules)
    def test_a_full_house_where_everyone_pushes_gets_on(self, data, schedule):
        """Whatever happened before, nobody waits for ever for those who are there."""
        mode = self.draw(data)
        floor = Floor(mode)
        floor.run(schedule)
        for worker in WORKERS[: self.full_house(mode)]:
            if worker not in floor.clocks:
                floor.join(worker)

        assert floor.everyone_pushes() >= 1

    @inherited
    @given(data=st.data(), schedule=schedules)
    def test_those_who_stay_after_a_full_house_do_not_wait_for_those_who_left(self, data, schedule):
        """A worker that closes its session stops nobody."""
        mode = self.draw(data)
        if getattr(mode, "on_leave", "shrink") == "wait":
            return
        floor = Floor(mode)
        for worker in WORKERS[: self.full_house(mode)]:
            floor.join(worker)
        leaves = [(action, worker) for action, worker in schedule if action != "join"]
        stays = data.draw(st.sampled_from(sorted(floor.clocks)))
        floor.run([pair for pair in leaves if pair != ("leave", stays)])

        assert floor.everyone_pushes() >= 1

    @inherited
    @given(data=st.data(), schedule=schedules, after=schedules)
    def test_a_policy_made_again_decides_as_the_old_one(self, data, schedule, after):
        """Its `Standing` is all that a restart needs."""
        mode = self.draw(data)
        old = Floor(mode)
        old.run(schedule)
        for worker in list(old.waiting):
            old.join(worker)  # what waits is not saved
        new = Floor(mode, old.standing)
        new.parameters_version = old.parameters_version
        contributed_before = len(old.contributed)
        gathered_before = len(old.gathered)

        old.run(after)
        new.run(after)

        def names(pushes: list[Push]) -> list[tuple[str, int | None]]:
            return [(push.worker, push.version) for push in pushes]

        contributed = names(old.contributed[contributed_before:])
        if contributed:  # the first step has what was gathered before
            contributed = contributed[gathered_before:]
        assert contributed == names(new.contributed)
        assert names(list(old.policy.waiting)) == names(list(new.policy.waiting))

    @inherited
    @given(data=st.data())
    def test_a_new_policy_has_nothing_waiting(self, data):
        """State begins empty, whoever is there."""
        policy = self.draw(data).policy(Standing(dict.fromkeys(WORKERS, 0), len(WORKERS)))

        assert list(policy.waiting) == []
        assert policy.due() is None

    def test_leaving_without_having_joined_does_nothing(self):
        """A session may expire of which this policy never heard."""
        for mode in self.examples:
            policy = mode.policy()

            policy.leave("stranger")

            assert policy.due() is None
            assert list(policy.waiting) == []

    def test_the_mode_is_in_the_registry(self):
        """Its name in JSON leads back to it."""
        for mode in self.examples:
            assert MODES[mode.mode] is type(mode)

    def test_json_round_trip(self):
        """What is saved is what was given."""
        for mode in self.examples:
            assert from_json(json.loads(json.dumps(mode.to_json()))) == mode

    def test_unknown_arguments_are_refused(self):
        """A typing error in an argument is not taken for its default."""
        for mode in self.examples:
            with pytest.raises(InvalidArgument, match="wrokers"):
                from_json({**mode.to_json(), "wrokers": 3})

    def test_missing_arguments_are_refused(self):
        """But those with a default, which older checkpoints do not have."""
        for mode in self.examples:
            fields = dataclasses.fields(mode)
            for name in [field.name for field in fields if field.default is dataclasses.MISSING]:
                value = mode.to_json()
                del value[name]

                with pytest.raises(InvalidArgument, match=name):
                    from_json(value)

    @pytest.mark.parametrize(
        "times",
        [
            {"lease_s": 0}, {"lease_s": -1.0}, {"lease_s": "30"}, {"lease_s": True},
            {"lease_s": float("nan")}, {"lease_s": float("inf")}, {"lease_s": 1e9},
            {"lease_s": 10**400}, {"patience_s": 10**400},
            {"lease_s": None}, {"patience_s": 0}, {"lease_s": 10.0, "patience_s": 9.0},
        ],
    )  # fmt: skip
    def test_times_that_cannot_be_are_refused(self, times):
        """A lease is some seconds, and the patience is no shorter."""
        for mode in self.examples:
            with pytest.raises(InvalidArgument, match="_s"):
                from_json({**mode.to_json(), **times})

    def test_patience_is_ten_leases_unless_it_is_said(self):
        """And a worker may be silent for half a minute."""
        for mode in self.examples:
            assert (mode.lease_s, mode.patience) == (30.0, 300.0)
            assert dataclasses.replace(mode, lease_s=1.0, patience_s=5.0).patience == 5.0

    def test_a_miniature_decides_by_the_same_code(self):
        """The rehearsal compiles with it what the mode will need."""
        for mode in self.examples:
            miniature = mode.miniature(2)

            assert type(miniature) is type(mode)
            assert miniature.most_in_step <= 2 or miniature == mode
            assert miniature.adds_on_arrival == mode.adds_on_arrival

    def test_a_mode_is_a_value(self):
        """It can be compared and be a key, and cannot be changed."""
        for mode in self.examples:
            assert mode == from_json(mode.to_json())
            assert hash(mode) == hash(from_json(mode.to_json()))
            with pytest.raises(AttributeError):
                mode.workers = 3  # type: ignore[misc]
