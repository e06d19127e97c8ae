"""What every consistency mode promises. A new one is a subclass with two attributes.

class TestMine(ConsistencyContract):
    examples = (Mine(...), ...)

    def full_house(self, mode): ...
"""

from __future__ import annotations

import dataclasses
import json
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stepwell_core.consistency import MODES, Consistency, Drop, Policy, Step, Wait, from_json
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
    """Workers around a policy, in virtual time; it checks what each decision says."""

    def __init__(self, policy: Policy[Push], *, forgets_together: bool = False) -> None:
        self.policy = policy
        self.forgets_together = forgets_together
        self.members: set[str] = set()
        self.most_open = 0
        self.parameters_version = 0
        self.waiting: dict[str, Push] = {}
        self.contributed: list[Push] = []
        self.dropped: list[Push] = []
        self.forgotten: list[Push] = []
        self.made: list[Push] = []

    def run(self, schedule: list[tuple[str, str]]) -> None:
        for action, worker in schedule:
            if action == "join":
                self.join(worker)
            elif worker in self.members and action == "leave":
                self.leave(worker)
            elif worker in self.members and worker not in self.waiting:
                now = self.parameters_version
                self.push(worker, {"push_old": max(now - 1, 0), "push_null": None}.get(action, now))
            self.check()

    def join(self, worker: str) -> None:
        self.forget(worker)
        self.policy.join(worker)
        self.members.add(worker)
        self.most_open = max(self.most_open, len(self.members))

    def leave(self, worker: str) -> None:
        self.forget(worker)
        self.members.remove(worker)
        self.most_open = self.most_open if self.members else 0
        step = self.policy.leave(worker)
        if step is not None:
            self.make(step)

    def push(self, worker: str, version: int | None) -> Step[Push] | Wait | Drop:
        push = Push(worker, version)
        self.made.append(push)
        decision = self.policy.offer(push, self.parameters_version)
        if isinstance(decision, Drop):
            assert decision.outcome in DROPS
            self.dropped.append(push)
            return decision
        self.waiting[worker] = push
        if isinstance(decision, Step):
            assert push in decision.pushes
            self.make(decision)
        return decision

    def make(self, step: Step[Push]) -> None:
        assert step.pushes
        assert list(step.pushes) == bytewise(step.pushes)
        for push in step.pushes:
            assert self.waiting.pop(push.worker) is push
        self.contributed.extend(step.pushes)
        self.parameters_version += 1

    def forget(self, worker: str) -> None:
        if worker not in self.waiting:
            return
        self.forgotten.append(self.waiting.pop(worker))
        if self.forgets_together:
            self.forgotten.extend(self.waiting.values())
            self.waiting.clear()

    def check(self) -> None:
        assert list(self.policy.waiting) == bytewise(list(self.waiting.values()))

    def everyone_pushes(self) -> int:
        """Let each member push that is not waiting; return the number of steps that came of it."""
        before = self.parameters_version
        for worker in sorted(self.members):
            if worker not in self.waiting:
                self.push(worker, self.parameters_version)
        return self.parameters_version - before


class ConsistencyContract(ABC):
    """Inherit it and say which values to try."""

    examples: ClassVar[tuple[Consistency, ...]]

    @abstractmethod
    def full_house(self, mode: Consistency) -> int:
        """Return how many open workers are enough for a step, if each of them pushes."""

    def floor(self, mode: Consistency, *state: Any) -> Floor:
        """Return a floor around a new policy."""
        return Floor(mode.policy(*state), forgets_together=mode.adds_on_arrival)

    def draw(self, data: st.DataObject) -> Consistency:
        return data.draw(st.sampled_from(self.examples))

    @inherited
    @given(data=st.data(), schedule=schedules)
    def test_no_contribution_is_lost_or_made_twice(self, data, schedule):
        """Each push ends in one step, is dropped, is forgotten with its session, or still waits."""
        floor = self.floor(self.draw(data))

        floor.run(schedule)

        ends = [*floor.contributed, *floor.dropped, *floor.forgotten, *floor.waiting.values()]
        assert len(set(ends)) == len(ends)
        assert set(ends) == set(floor.made)

    @inherited
    @given(data=st.data(), schedule=schedules)
    def test_a_full_house_where_everyone_pushes_makes_a_step(self, data, schedule):
        """Whatever happened before, nobody waits for ever for those who are there."""
        mode = self.draw(data)
        floor = self.floor(mode)
        floor.run(schedule)
        for worker in WORKERS[: self.full_house(mode)]:
            if worker not in floor.members:
                floor.join(worker)

        assert floor.everyone_pushes() >= 1

    @inherited
    @given(data=st.data(), schedule=schedules)
    def test_those_who_stay_after_a_full_house_do_not_wait_for_those_who_left(self, data, schedule):
        """A worker that closes its session stops nobody."""
        mode = self.draw(data)
        floor = self.floor(mode)
        for worker in WORKERS[: self.full_house(mode)]:
            floor.join(worker)
        leaves = [(action, worker) for action, worker in schedule if action != "join"]
        stays = data.draw(st.sampled_from(sorted(floor.members)))
        floor.run([pair for pair in leaves if pair != ("leave", stays)])

        assert floor.everyone_pushes() >= 1

    @inherited
    @given(data=st.data(), schedule=schedules, after=schedules)
    def test_a_policy_made_again_decides_as_the_old_one(self, data, schedule, after):
        """The open workers, and how many there were, are all that a restart needs."""
        mode = self.draw(data)
        old = self.floor(mode)
        old.run(schedule)
        for worker in list(old.waiting):
            old.join(worker)  # what waits is not saved
        new = self.floor(mode, list(old.members), old.most_open)
        new.members, new.most_open = set(old.members), old.most_open
        new.parameters_version = old.parameters_version
        contributed_before = len(old.contributed)

        old.run(after)
        new.run(after)

        def names(pushes: list[Push]) -> list[tuple[str, int | None]]:
            return [(push.worker, push.version) for push in pushes]

        assert names(old.contributed[contributed_before:]) == names(new.contributed)
        assert names(list(old.policy.waiting)) == names(list(new.policy.waiting))

    @inherited
    @given(data=st.data())
    def test_a_new_policy_has_nothing_waiting(self, data):
        """State begins empty, whoever is there."""
        policy = self.draw(data).policy(WORKERS, len(WORKERS))

        assert list(policy.waiting) == []

    def test_leaving_without_having_joined_does_nothing(self):
        """A session may expire of which this policy never heard."""
        for mode in self.examples:
            policy = mode.policy()

            assert policy.leave("stranger") is None
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

    def test_a_mode_is_a_value(self):
        """It can be compared and be a key, and cannot be changed."""
        for mode in self.examples:
            assert mode == from_json(mode.to_json())
            assert hash(mode) == hash(from_json(mode.to_json()))
            with pytest.raises(AttributeError):
                mode.workers = 3  # type: ignore[attr-defined]
