"""Bounded staleness: nobody runs far ahead of the slowest."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stepwell_core.consistency import Bounded, Standing, Step, Wait, from_json
from stepwell_core.errors import InvalidArgument

from tests.core.consistency.contract import (
    ConsistencyContract,
    Floor,
    Push,
    inherited,
    schedules,
)


class TestBounded(ConsistencyContract):
    examples = (Bounded(1), Bounded(2), Bounded(4))

    def full_house(self, mode):
        return 1

    @inherited
    @given(data=st.data(), schedule=schedules)
    def test_nobody_is_more_than_the_bound_ahead_of_the_slowest(self, data, schedule):
        """Whatever happens; and there is always one who need not wait."""
        mode = self.draw(data)
        floor = Floor(mode)
        for action in schedule:
            floor.run([action])

            clocks = floor.clocks.values()
            assert max(clocks, default=0) - min(clocks, default=0) <= mode.bound
            assert not floor.clocks or len(floor.waiting) < len(floor.clocks)

    def test_the_push_that_would_be_too_far_ahead_waits_for_the_slowest(self):
        """And is made as soon as that has caught up."""
        policy = Bounded(2).policy(Standing({"fast": 2, "slow": 0}, 2))
        push = Push("fast", 2)

        assert policy.must_wait("fast")
        assert policy.offer(push, 2) == Wait()
        assert policy.due() is None
        policy.settled("slow", "applied")

        assert policy.due() == Step((push,))

    def test_a_dropped_push_is_a_step_of_its_worker(self):
        """A worker whose gradients are all NaN holds up nobody."""
        policy = Bounded(1).policy(Standing({"fast": 1, "slow": 0}, 2))
        policy.settled("slow", "skipped_nonfinite")

        assert not policy.must_wait("fast")

    def test_who_leaves_holds_nobody_up(self):
        """The slowest one may have died."""
        policy = Bounded(1).policy(Standing({"fast": 1, "slow": 0}, 2))
        push = Push("fast", 1)
        policy.offer(push, 1)

        policy.leave("slow")

        assert policy.due() == Step((push,))

    def test_who_comes_late_begins_where_the_slowest_is(self):
        """It neither holds the others up nor runs ahead."""
        floor = Floor(Bounded(1), Standing({"a": 41, "b": 40}, 2))

        floor.join("c")

        assert floor.clocks["c"] == 40
        assert isinstance(floor.push("c", 0), Step)

    def test_who_is_alone_never_waits(self):
        """There is nobody to wait for."""
        policy = Bounded(1).policy(Standing({"a": 0}, 1))

        for _ in range(5):
            assert isinstance(policy.offer(Push("a", 0), 9), Step)
            policy.settled("a", "applied")

    @pytest.mark.parametrize("bound", [0, -1, 1.0, "2", None, True])
    def test_a_bound_that_cannot_be_is_refused(self, bound):
        """With 0 everybody would wait for everybody."""
        with pytest.raises(InvalidArgument, match="bound"):
            Bounded(bound)
        with pytest.raises(InvalidArgument, match="bound"):
            from_json({"mode": "bounded", "bound": bound})
